"""The encoder–decoder Transformer: attention over the source, causal attention over what was written so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from locant.checks import check_types
from locant.grid import Grid
from locant.masks import Causal, Padding
from locant.models.folders import InFolders
from locant.models.tokens import check_ids
from locant.nn.arguments import check_probabilities
from locant.nn.multihead import MultiHeadAttention
from locant.nn.perceptron import Perceptron
from locant.positions.sinusoid import Sinusoid

Heads = tuple[Float[Tensor, "batch heads _ head_dim"], Float[Tensor, "batch heads _ head_dim"]]  # keys, values


class State(NamedTuple):
    """What decoding goes on from: keys and values, block by block, each projected once.

    source: of the encoded source. own: of the tokens so far. mask: which of the source are real. A pytree of tensors:
    to keep some beams, choose rows of all of them.
    """

    source: tuple[Heads, ...]
    own: tuple[Heads, ...]
    mask: Padding | None

    @property
    def seen(self) -> int:
        """How many tokens came before."""
        return self.own[0][0].shape[2] if self.own else 0


class AddNorm(nn.LayerNorm):
    """norm(x + dropout(f(x))); with `pre_norm` x + dropout(f(norm(x))). f is called between `before` and `after`."""

    def __init__(self, dim: int, *, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__(dim)
        self.dropout, self.pre_norm = dropout, pre_norm

    def before(self, x: Tensor) -> Tensor:
        """What f gets."""
        return self(x) if self.pre_norm else x

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """What becomes of x and y = f(...)."""
        x = x + F.dropout(y, self.dropout, self.training)
        return x if self.pre_norm else self(x)


class EncoderBlock(nn.Module):
    """Self-attention and a perceptron fc2 ∘ ReLU ∘ fc1, each inside an `AddNorm`. Arguments as for `Transformer`."""

    def __init__(self, dim: int, heads: int, hidden: int, *, dropout: float, bias: bool, pre_norm: bool) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, bias=bias, dropout=dropout)
        self.norm1 = AddNorm(dim, dropout=dropout, pre_norm=pre_norm)
        self.mlp = Perceptron(dim, hidden, activation=nn.ReLU())
        self.norm2 = AddNorm(dim, dropout=dropout, pre_norm=pre_norm)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Padding | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """`mask` says which tokens are real."""
        y = self.norm1.before(x)
        x = self.norm1.after(x, self.attention(y, y, y, mask=mask)[0])
        return self.norm2.after(x, self.mlp(self.norm2.before(x)))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention over the source, a perceptron, each inside an `AddNorm`."""

    def __init__(self, dim: int, heads: int, hidden: int, *, dropout: float, bias: bool, pre_norm: bool) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, bias=bias, dropout=dropout)
        self.norm1 = AddNorm(dim, dropout=dropout, pre_norm=pre_norm)
        self.cross_attention = MultiHeadAttention(dim, heads, bias=bias, dropout=dropout)
        self.norm2 = AddNorm(dim, dropout=dropout, pre_norm=pre_norm)
        self.mlp = Perceptron(dim, hidden, activation=nn.ReLU())
        self.norm3 = AddNorm(dim, dropout=dropout, pre_norm=pre_norm)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], source: Heads, own: Heads | None = None, mask: Padding | None = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Heads]:
        """x comes behind the tokens whose keys and values `own` holds. Returns theirs and those of x as well."""
        y = self.norm1.before(x)
        k, v = self.attention.projected(y, y)
        if own is not None:
            k, v = torch.cat([own[0], k], dim=2), torch.cat([own[1], v], dim=2)
        line = Grid(k.shape[2])
        new = line[k.shape[2] - x.shape[1] :]
        x = self.norm1.after(x, self.attention.attend(y, k, v, grid=new, key_grid=line, mask=Causal())[0])
        x = self.norm2.after(x, self.cross_attention.attend(self.norm2.before(x), *source, mask=mask)[0])
        return self.norm3.after(x, self.mlp(self.norm3.before(x))), (k, v)


class Stack(nn.Module):
    """x = dropout(√dim · embedding[ids] + PE(places)), `Sinusoid`'s PE, and blocks behind it. As for `Transformer`."""

    block: ClassVar[type[EncoderBlock | DecoderBlock]]

    @check_types
    def __init__(
        self,
        vocabulary: int,
        *,
        dim: int = 512,
        heads: int = 8,
        hidden: int = 2048,
        depth: int = 6,
        dropout: float = 0.1,
        bias: bool = False,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_probabilities(name, dropout=dropout)
        if min(vocabulary, depth, hidden) < 1:
            raise ValueError(
                f"{name} needs a vocabulary, a `depth` and a `hidden` of at least 1; got {vocabulary}, {depth} and "
                f"{hidden}. The paper's base model has depth=6 and hidden=2048."
            )
        self.embedding, self.position, self.dropout = nn.Embedding(vocabulary, dim), Sinusoid(dim), dropout
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.blocks = nn.ModuleList(
            self.block(dim, heads, hidden, dropout=dropout, bias=bias, pre_norm=pre_norm) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()

    def embed(self, ids: Int[Tensor, "batch tokens"], seen: int = 0) -> Float[Tensor, "batch tokens dim"]:
        """The tokens of `ids`, which come behind `seen` others."""
        check_ids(type(self).__name__, "ids", ids)
        x = self.embedding(ids)
        places = self.position(Grid(seen + ids.shape[1])[seen:])
        return F.dropout(x * x.shape[-1] ** 0.5 + places.to(x.dtype), self.dropout, self.training)


class TransformerEncoder(Stack):
    """ids [batch, tokens] → [batch, tokens, dim]. Arguments as for `Transformer`."""

    block = EncoderBlock

    def forward(
        self, ids: Int[Tensor, "batch tokens"], *, mask: Padding | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Read. Rows of padding are computed, and mean nothing."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class TransformerDecoder(Stack):
    """ids [batch, tokens] and a state → [batch, tokens, dim] and the state behind them. As for `Transformer`."""

    block = DecoderBlock

    def start(self, memory: Float[Tensor, "batch source dim"], *, mask: Padding | None = None) -> State:
        """The state before the first token: keys and values of the source in every block, and which are real."""
        blocks = cast("Iterable[DecoderBlock]", self.blocks)
        return State(tuple(block.cross_attention.projected(memory, memory) for block in blocks), (), mask)

    def forward(
        self, ids: Int[Tensor, "batch tokens"], state: State
    ) -> tuple[Float[Tensor, "batch tokens dim"], State]:
        """Go on from `state` with any number of tokens."""
        x, own = self.embed(ids, state.seen), []
        for block, source, kept in zip(self.blocks, state.source, state.own or (None,) * len(self.blocks), strict=True):
            x, now = block(x, source, kept, state.mask)
            own.append(now)
        return self.norm(x), State(state.source, tuple(own), state.mask)


class Transformer(InFolders, nn.Module):
    """logits = decoder(target ids; encoder(source ids)): what follows each token of the target.

    source [batch, source tokens], target [batch, tokens], logits [batch, tokens, classes]. Tokens enter as
    √dim · embedding + sinusoid, positions from 0. Every branch is inside norm(x + dropout(branch(x))). It is causal in
    training and evaluation alike, so that a sentence may be read whole or token by token:

        state = model.start(source, mask=mask)
        logits, state = model.decode(first_tokens, state)
        logits, state = model.decode(next_token, state)

    A state holds keys and values. How many tokens it has seen is the position of the next one. `greedy` writes.

    Names in the state dict: encoder and decoder with `embedding`, `blocks.{}.attention.q` (k, v, out),
    `cross_attention`, `norm1` to `norm3`, `mlp.fc1`, `mlp.fc2`; `head`, which is d2l's `decoder.dense`.

    Where it differs: d2l's decoder is causal in training alone, and sees the future of a whole sentence in evaluation;
    token by token it puts each at position 0, and keeps the inputs of blocks where keys and values would do. Its
    embeddings start at N(0, 1); here at N(0, 1 / dim), as in tensor2tensor, so that √dim makes them as large as the
    positions. `nn.TransformerEncoderLayer` has biases in attention and dropout inside the perceptron as well.
    Source: Attention Is All You Need (arXiv 1706.03762, section 3); d2l, chapter "The Transformer Architecture".

    Args:
        source_vocabulary, target_vocabulary: how many ids there are.
        dim: channels of a token; `heads` divides it, and it is even. The defaults are the paper's base model.
        heads: of every attention.
        hidden: channels inside the perceptrons.
        depth: blocks in the encoder, and in the decoder.
        dropout: on the weights of attention, on every branch and on the embedded tokens, in training only.
        bias: whether the projections of attention have one.
        pre_norm: x + dropout(branch(norm(x))) instead, with a last norm behind the blocks.

    Raises:
        ValueError: for sizes that do not divide, a depth or hidden below 1, or a dropout out of range.
    """

    @check_types
    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        *,
        dim: int = 512,
        heads: int = 8,
        hidden: int = 2048,
        depth: int = 6,
        dropout: float = 0.1,
        bias: bool = False,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(
            source_vocabulary, dim=dim, heads=heads, hidden=hidden, depth=depth,
            dropout=dropout, bias=bias, pre_norm=pre_norm,
        )  # fmt: skip
        self.decoder = TransformerDecoder(
            target_vocabulary, dim=dim, heads=heads, hidden=hidden, depth=depth,
            dropout=dropout, bias=bias, pre_norm=pre_norm,
        )  # fmt: skip
        self.head = nn.Linear(dim, target_vocabulary)

    def forward(
        self,
        source: Int[Tensor, "batch source"],
        target: Int[Tensor, "batch tokens"],
        *,
        mask: Padding | None = None,
    ) -> Float[Tensor, "batch tokens classes"]:
        """Logits of what follows each token of the target. `mask` says which of the source are real.

        Raises:
            ValueError: for ids that are not whole numbers [batch, tokens], or a mask of another size.
        """
        return self.decode(target, self.start(source, mask=mask))[0]

    def start(self, source: Int[Tensor, "batch source"], *, mask: Padding | None = None) -> State:
        """Read the source, once."""
        return self.decoder.start(self.encoder(source, mask=mask), mask=mask)

    def decode(
        self, target: Int[Tensor, "batch tokens"], state: State
    ) -> tuple[Float[Tensor, "batch tokens classes"], State]:
        """Go on from a state: logits of what follows each of these tokens, and the state behind them."""
        x, state = self.decoder(target, state)
        return self.head(x), state
