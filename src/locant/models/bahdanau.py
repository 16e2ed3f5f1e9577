"""Translation by learning to align: a recurrent decoder that looks back at the source at every step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from locant.checks import check_types
from locant.dispatch import is_exporting, is_open
from locant.masks import Padding
from locant.models.folders import InFolders
from locant.models.tokens import check_ids
from locant.nn.arguments import check_probabilities
from locant.nn.scoring import AdditiveAttention, allowed_pairs


class State(NamedTuple):
    """What decoding goes on from: the recurrent state of every layer, the encoded source, W_k of it, who is real."""

    hidden: Float[Tensor, "layers batch hidden"]
    memory: Float[Tensor, "batch keys hidden"]
    projected: Float[Tensor, "batch keys hidden"]
    mask: Padding | None


class RecurrentEncoder(nn.Module):
    """h = GRU(embedding[ids]): ids [batch, tokens] → memory [batch, tokens, hidden], state [layers, batch, hidden]."""

    def __init__(self, vocabulary: int, *, embed: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embed)
        self.rnn = nn.GRU(embed, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def forward(
        self, ids: Int[Tensor, "batch tokens"], *, mask: Padding | None = None
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Float[Tensor, "layers batch hidden"]]:
        """Read. Each row ends where its padding begins: the state is that of its last token; padding's memory is 0."""
        check_ids("Bahdanau", "source", ids)
        _check_length("source", ids)
        x = self.embedding(ids)
        if mask is None or ids.shape[0] == 0:
            memory, state = self.rnn(x)
            return memory, state
        lengths = _lengths(mask, ids)
        packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        packed, state = self.rnn(packed)
        memory, _ = pad_packed_sequence(packed, batch_first=True, total_length=ids.shape[1])
        empty = lengths == 0
        return memory.masked_fill(empty[:, None, None], 0.0), state.masked_fill(empty[:, None], 0.0)


class AttentionDecoder(nn.Module):
    """s_t = GRU([c_t | embedding[id_t]], s_{t-1}),  c_t = Σ_j α_tj h_j,  α_t = additive attention of s_{t-1} to h."""

    def __init__(self, vocabulary: int, *, embed: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.attention = AdditiveAttention(hidden, dropout=dropout)
        self.embedding = nn.Embedding(vocabulary, embed)
        self.rnn = nn.GRU(embed + hidden, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def start(
        self,
        memory: Float[Tensor, "batch keys hidden"],
        hidden: Float[Tensor, "layers batch hidden"],
        *,
        mask: Padding | None = None,
    ) -> State:
        """The state before the first token; W_k h is made here, once for all steps."""
        return State(hidden, memory, self.attention.W_k(memory), mask)

    def forward(
        self, ids: Int[Tensor, "batch tokens"], state: State
    ) -> tuple[Float[Tensor, "batch tokens hidden"], State, Float[Tensor, "batch tokens keys"]]:
        """Go on from `state`, step by step. Returns every s_t, the new state, and α before dropout."""
        check_ids("Bahdanau", "target", ids)
        _check_length("target", ids)
        hidden, memory, projected, mask = state
        allowed = allowed_pairs(mask, memory.shape[0], 1, memory.shape[1], memory.device)
        outputs, weights = [], []
        for x in self.embedding(ids).split(1, dim=1):
            context, p = self.attention.attend(hidden[-1][:, None], projected, memory, allowed)
            out, hidden = self.rnn(torch.cat([context, x], dim=-1), hidden)
            outputs.append(out)
            weights.append(p)
        return torch.cat(outputs, dim=1), State(hidden, memory, projected, mask), torch.cat(weights, dim=1)


class Bahdanau(InFolders, nn.Module):
    """logits_t = head(s_t),  s_t = GRU([c_t | E(y_t)], s_{t-1}),  c_t = Σ_j α_tj h_j,
    α_t = softmax_j(w_vᵀ tanh(W_q s_{t-1} + W_k h_j)).

    source [batch, source tokens], target [batch, tokens], logits [batch, tokens, classes], α [batch, tokens, source
    tokens]. h are the last layer's outputs of a GRU over the source, whose last state is s_{-1}. The query is the last
    layer's state of the step **before**: where to look is settled before the current token is read. Token by token it
    goes as with `Transformer`: `start`, `decode`, `greedy`.

    Names in the state dict are d2l's: encoder.embedding, encoder.rnn, decoder.attention.W_q (W_k, w_v),
    decoder.embedding, decoder.rnn; but `head` for decoder.dense, as in `Transformer`.

    Where it differs: this is d2l's form. The paper reads the source in both directions, takes s_0 from the backward
    one, has one layer, and puts a maxout layer before the output, which sees c_t and the last word too. d2l's encoder
    runs on over the padding, so that the state handed on depends on how much of it there is; here every row ends with
    its last token, and a padded batch equals each sentence alone. d2l projects the source anew at every step.
    Source: Bahdanau (arXiv 1409.0473, section 3 and appendix A); d2l, chapter "The Bahdanau Attention Mechanism",
    `Seq2SeqEncoder` and `Seq2SeqAttentionDecoder`.

    Args:
        source_vocabulary, target_vocabulary: how many ids there are.
        embed: channels of an embedded token.
        hidden: channels of the recurrent states, and under the tanh of the scores.
        layers: of either GRU.
        dropout: on the weights of attention and between layers, in training only.

    Raises:
        ValueError: for a size below 1, or a dropout out of range.
    """

    @check_types
    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        *,
        embed: int = 256,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_probabilities("Bahdanau", dropout=dropout)
        sizes = (source_vocabulary, target_vocabulary, embed, hidden, layers)
        if min(sizes) < 1:
            raise ValueError(
                "Bahdanau needs two vocabularies, `embed`, `hidden` and `layers` of at least 1; got "
                f"{', '.join(map(str, sizes))}. d2l has embed=256, hidden=256 and layers=2."
            )
        self.encoder = RecurrentEncoder(source_vocabulary, embed=embed, hidden=hidden, layers=layers, dropout=dropout)
        self.decoder = AttentionDecoder(target_vocabulary, embed=embed, hidden=hidden, layers=layers, dropout=dropout)
        self.head = nn.Linear(hidden, target_vocabulary)

    def forward(
        self,
        source: Int[Tensor, "batch source"],
        target: Int[Tensor, "batch tokens"],
        *,
        mask: Padding | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens classes"], Float[Tensor, "batch tokens source"] | None]:
        """Logits of what follows each token of the target, and with `need_weights` α; else None.

        Args:
            source, target: ids.
            mask: which of the source are real; padding comes at the end.
            need_weights: whether to return α.

        Raises:
            ValueError: for ids that are not whole numbers [batch, tokens], and a mask of another size or with padding
                before a token.
        """
        logits, _, weights = self.decode(target, self.start(source, mask=mask))
        return logits, weights if need_weights else None

    def start(self, source: Int[Tensor, "batch source"], *, mask: Padding | None = None) -> State:
        """Read the source, once."""
        return self.decoder.start(*self.encoder(source, mask=mask), mask=mask)

    def decode(
        self, target: Int[Tensor, "batch tokens"], state: State
    ) -> tuple[Float[Tensor, "batch tokens classes"], State, Float[Tensor, "batch tokens source"]]:
        """Go on from a state: logits of what follows each of these tokens, the state behind them, and α."""
        x, state, weights = self.decoder(target, state)
        return self.head(x), state, weights


def _check_length(name: str, ids: Tensor) -> None:
    """A graph holds one step after the other: as many as there were."""
    if is_open(ids.shape[1]) and is_exporting():
        raise ValueError(
            f"Bahdanau is exported for one length of `{name}`, as a program holds its recurrence step by step; got an "
            "open one. Leave the batch open alone."
        )


def _lengths(mask: Padding, ids: Tensor) -> Int[Tensor, " batch"]:
    """How many tokens of each row are real. A recurrent net reads in order: they must come first."""
    valid = mask.valid
    if valid.shape != ids.shape:
        raise ValueError(
            f"Bahdanau needs a `mask` of {list(ids.shape)}, as the source is; got {list(valid.shape)}. "
            "Build it by Padding.from_lengths(lengths, tokens)."
        )
    lengths = valid.sum(1)
    if not torch.equal(valid, torch.arange(ids.shape[1], device=valid.device) < lengths[:, None]):
        raise ValueError(
            "Bahdanau needs a `mask` whose padding comes last; got a row with padding before a token. "
            "Move it to the end of the source."
        )
    return lengths
