"""Transformer-XL: a language model that goes on from segment to segment, with a memory of hidden states.

    transformer_xl_enwik8_base     12 layers, 512 channels, 8 heads × 64      41 M parameters
    transformer_xl_enwik8_large    24 layers, 1,024 channels, 8 heads × 128   277 M
    transformer_xl_wt103_base      16 layers, 410 channels, 10 heads × 41     151 M

Tokens are [batch, tokens] and hidden states [batch, tokens, dim]; the published code has the length first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from locant.checks import check_types
from locant.grid import Grid
from locant.masks import Causal, Mask, Pairs
from locant.models.folders import InFolders
from locant.models.tokens import check_ids
from locant.models.transformer_xl_layers import DecoderLayer, MemoryAttention
from locant.nn.arguments import check_probabilities, check_tokens
from locant.nn.linears import bare_weight
from locant.positions.learned import Learned
from locant.positions.position import Content
from locant.positions.shaw import Shaw
from locant.positions.sinusoid import Sinusoid
from locant.positions.transformer_xl import TransformerXL

Memory = list[Tensor]


class MemTransformerLM(InFolders, nn.Module):
    """logits = E · layers(√dim · E[tokens]) + b, and a memory for the next segment.

    E (`word_emb`) [vocabulary, dim]. The memory is a list of layers + 1 tensors [batch, earlier, dim]: the embedding's
    output and that of every layer, cut to the last `mem_len` and detached. Given back, it lies in front of what each
    layer attends to, so that with enough of it, segments one after the other equal one long sequence. What position is
    depends on `attn_type`:

        0   `TransformerXL`: W_r per layer, u and v shared by all layers (`untie_r`: per layer)
        1   `Shaw` with biases: learned vectors per layer, head and distance back, up to max_len - 1
        2   sinusoids of the distance to the segment's end, added to the input of the first layer
        3   learned vectors of the distance to the segment's end, added to the input of every layer

    Types 2 and 3 are the paper's baselines. Positions that are counted in the segment mean another place in the next
    one: a memory under them is not what one long sequence gives.

    Where it differs: published types 2 and 3 add their vectors to the memory in place, so that they pile up from
    segment to segment; here hidden states are kept without, and get them as they are used. Head and loss are a plain
    softmax: of the published models, those with an adaptive one differ there. With `same_length` and no memory the
    published code forbids every pair; here that is an error. With `causal=False` every token sees all, by explicit
    distances of either sign.
    Source: arXiv 1901.02860; kimiyoung/transformer-xl `pytorch/mem_transformer.py`.

    Args:
        vocabulary: how many tokens there are.
        dim: channels of a token.
        layers: how many.
        heads: per layer.
        hidden: channels inside the perceptrons.
        head_dim: channels of a head; None is dim / heads, rounded down.
        attn_type: see above.
        mem_len: how many hidden states are kept; 0 keeps none.
        ext_len: how many of the last tokens come again in the next segment, and are not kept.
        max_len: for types 1 and 3, how many distances are learned; farther ones are taken for the last.
        clamp_len: distances beyond are taken for this one (type 1 takes them for the one before it, as published).
        same_length: whether a query sees mem_len keys at most, itself included.
        causal: whether a token sees no later one.
        pre_norm: whether norms stand in front of both branches.
        tie_weight: whether the head's matrix is E, read as a parameter: hooks and adapters of the look-up do not act on
            it. Else it is a layer of its own.
        untie_r: whether each layer has its own u and v.
        dropout: on embeddings, distances, projections, perceptrons and the output, in training only.
        dropatt: on the weights of attention, in training only.
        init_std: of the normal that matrices and vectors start from.

    Raises:
        ValueError: for sizes that do not fit each other, an unknown `attn_type`, and what one of them cannot do.
    """

    @check_types
    def __init__(
        self,
        vocabulary: int,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        *,
        head_dim: int | None = None,
        attn_type: int = 0,
        mem_len: int = 0,
        ext_len: int = 0,
        max_len: int | None = None,
        clamp_len: int | None = None,
        same_length: bool = False,
        causal: bool = True,
        pre_norm: bool = False,
        tie_weight: bool = True,
        untie_r: bool = False,
        dropout: float = 0.0,
        dropatt: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        head_dim = dim // max(heads, 1) if head_dim is None else head_dim
        _check_sizes(vocabulary=vocabulary, dim=dim, layers=layers, heads=heads, head_dim=head_dim, hidden=hidden)
        _check_type(attn_type, max_len, causal)
        check_probabilities("MemTransformerLM", dropout=dropout, dropatt=dropatt)
        self.vocabulary, self.dim, self.attn_type = vocabulary, dim, attn_type
        self.causal, self.dropout = causal, dropout
        self.word_emb = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList()
        longest, first = 0 if max_len is None else max_len, None
        for _ in range(layers):
            position: Content | None = None
            if attn_type == 0:
                position = TransformerXL(dim, heads, head_dim, shared=None if untie_r else first, dropout=dropout)
                first = position if first is None else first
            elif attn_type == 1:
                position = Shaw(heads, head_dim, longest - 1, per_head=True, causal=True, biases=True)
            attends = MemoryAttention(dim, heads, head_dim, position=position, dropout=dropatt, proj_dropout=dropout)
            self.layers.append(DecoderLayer(attends, hidden, pre_norm=pre_norm, dropout=dropout))
        sines = [Sinusoid(dim, layout="halves")] if attn_type == 2 else []
        rows = [Learned(Grid(longest), dim) for _ in range(layers)] if attn_type == 3 else []
        self.positions = nn.ModuleList([*sines, *rows])
        self.head = None if tie_weight else nn.Linear(dim, vocabulary, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary))
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=init_std)
            elif "norm" not in name:
                nn.init.zeros_(parameter)
        self.reset_length(mem_len=mem_len, ext_len=ext_len, clamp_len=clamp_len, same_length=same_length)

    def reset_length(
        self, *, mem_len: int, ext_len: int = 0, clamp_len: int | None = None, same_length: bool = False
    ) -> None:
        """Other lengths from now on: published models are trained with a short memory and evaluated with a long one.

        Raises:
            ValueError: for lengths below 0 (a clamp_len below 1), and `same_length` without memory or both ways.
        """
        if min(mem_len, ext_len) < 0 or (clamp_len is not None and clamp_len < 1):
            raise ValueError(
                "MemTransformerLM needs `mem_len` and `ext_len` of at least 0, a `clamp_len` of at least 1 or None; "
                f"got {mem_len}, {ext_len} and {clamp_len}. Published scripts write clamp_len -1 for None."
            )
        if same_length and (mem_len < 1 or not self.causal):
            raise ValueError(
                "`same_length` lets every query see its mem_len last keys: it needs a memory, and causal=True; "
                f"got mem_len={mem_len}, causal={self.causal}. Give mem_len, or leave same_length out."
            )
        self.mem_len, self.ext_len, self.clamp_len, self.same_length = mem_len, ext_len, clamp_len, same_length
        for module in self.modules():
            if isinstance(module, TransformerXL):
                module.clamp = clamp_len
            elif isinstance(module, Shaw):
                module.clamp = None if clamp_len is None else clamp_len - 1

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], memory: Sequence[Tensor] | None = None
    ) -> tuple[Float[Tensor, "batch tokens vocabulary"], Memory]:
        """Logits of the next token at each place, and the memory for the next segment.

        Raises:
            ValueError: if `tokens` or `memory` do not fit the model.
        """
        check_ids("MemTransformerLM", "tokens", tokens)
        x, memory = self.forward_features(self.word_emb(tokens) * self.dim**0.5, memory)
        if self.head is not None:
            return self.head(x) + self.head_bias, memory
        return F.linear(x, self.word_emb.weight, self.head_bias), memory  # tied: E itself, which is no look-up here

    def forward_features(
        self, x: Float[Tensor, "batch tokens dim"], memory: Sequence[Tensor] | None = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Memory]:
        """The last layer's output for embedded tokens (or any other sequence of vectors), and the memory."""
        memory = self._checked(x, memory)
        earlier, mask = memory[0].shape[1], self._mask(memory[0].shape[1], x.shape[1], x.device)
        x = F.dropout(x, self.dropout, self.training)
        seen = [x]
        for number, layer in enumerate(self.layers):
            rows = self._rows(number, earlier + x.shape[1])
            past, now = memory[number], x
            if rows is not None:
                past, now = past + rows[:earlier].to(past.dtype), x + rows[earlier:].to(x.dtype)
            x = layer(now, past, mask=mask)
            seen.append(x)
        return F.dropout(x, self.dropout, self.training), [self._kept(*pair) for pair in zip(memory, seen, strict=True)]

    def _rows(self, number: int, length: int) -> Float[Tensor, "length dim"] | None:
        """What absolute positions add to the input of a layer: vectors of the distance to the segment's end."""
        if number >= len(self.positions):
            return None
        scheme = self.positions[number]
        back = torch.arange(length - 1, -1, -1, device=self.head_bias.device)
        if isinstance(scheme, Sinusoid):
            return scheme(Grid(length))[back if self.clamp_len is None else back.clamp(max=self.clamp_len)]
        assert isinstance(scheme, Learned), "attn_type 3"
        return scheme()[(scheme.grid.cells - 1 - back).clamp(min=0)]

    def _mask(self, earlier: int, tokens: int, device: torch.device) -> Mask | None:
        if not self.causal:
            return None
        if not self.same_length or earlier + tokens <= self.mem_len:
            return Causal()
        distance = torch.arange(earlier, earlier + tokens, device=device)[:, None]
        distance = distance - torch.arange(earlier + tokens, device=device)
        return Causal() & Pairs(distance < self.mem_len)

    def _kept(
        self, past: Float[Tensor, "batch earlier dim"], now: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch kept dim"]:
        """The last mem_len hidden states of those that do not come again."""
        end = past.shape[1] + max(0, now.shape[1] - self.ext_len)
        return torch.cat([past, now], dim=1)[:, max(0, end - self.mem_len) : end].detach()

    def _checked(self, x: Tensor, memory: Sequence[Tensor] | None) -> Memory:
        check_tokens(x, self.dim, bare_weight(self.word_emb))
        if memory is None:
            return [x.new_empty(x.shape[0], 0, self.dim)] * (len(self.layers) + 1)
        shapes = [list(m.shape) for m in memory]
        wanted = [x.shape[0], memory[0].shape[1] if memory and memory[0].ndim == 3 else 0, self.dim]
        if len(memory) != len(self.layers) + 1 or any(shape != wanted for shape in shapes):
            raise ValueError(
                f"`memory` must be {len(self.layers) + 1} tensors of equal shape [{x.shape[0]}, earlier, {self.dim}]: "
                f"the embedding's output and every layer's; got {shapes}. Pass what the last call returned, or None."
            )
        return list(memory)

    def extra_repr(self) -> str:
        lengths = f"mem_len={self.mem_len}, clamp_len={self.clamp_len}, same_length={self.same_length}"
        return f"attn_type={self.attn_type}, causal={self.causal}, {lengths}"


SIZES: dict[str, dict[str, Any]] = {
    "enwik8_base": {"dim": 512, "layers": 12, "heads": 8, "hidden": 2048, "head_dim": 64},
    "enwik8_large": {"dim": 1024, "layers": 24, "heads": 8, "hidden": 3072, "head_dim": 128},
    "wt103_base": {"dim": 410, "layers": 16, "heads": 10, "hidden": 2100, "head_dim": 41},
}


@check_types
def transformer_xl_enwik8_base(
    vocabulary: int = 204, *, mem_len: int = 512, dropout: float = 0.1, dropatt: float = 0.0
) -> MemTransformerLM:
    """The 12 layers of the paper's small character model: 1.06 bits per character on enwik8."""
    return MemTransformerLM(**SIZES["enwik8_base"], **locals())


@check_types
def transformer_xl_enwik8_large(
    vocabulary: int = 204, *, mem_len: int = 768, dropout: float = 0.15, dropatt: float = 0.15
) -> MemTransformerLM:
    """The 24 layers of the paper's large character model: 0.99 bits per character on enwik8."""
    return MemTransformerLM(**SIZES["enwik8_large"], **locals())


@check_types
def transformer_xl_wt103_base(
    vocabulary: int = 267735, *, mem_len: int = 150, dropout: float = 0.1, dropatt: float = 0.0
) -> MemTransformerLM:
    """The paper's standard word model, with a plain softmax in place of the adaptive one."""
    return MemTransformerLM(**SIZES["wt103_base"], **locals())


def _check_sizes(**sizes: int) -> None:
    if min(sizes.values()) < 1:
        raise ValueError(
            "MemTransformerLM needs sizes of at least 1 (head_dim is dim / heads unless it is given); got "
            f"{', '.join(f'{name}={size}' for name, size in sizes.items())}. Change what is 0 or less."
        )


def _check_type(attn_type: int, max_len: int | None, causal: bool) -> None:
    if attn_type not in (0, 1, 2, 3):
        raise ValueError(
            "MemTransformerLM needs an `attn_type` of 0 (Transformer-XL), 1 (learned distances), 2 (sinusoids) or 3 "
            f"(learned places); got {attn_type!r}. The published models have 0."
        )
    if attn_type in (1, 3) and (max_len is None or max_len < 1):
        raise ValueError(
            f"attn_type={attn_type} learns one vector per distance, and needs `max_len` of at least 1; got {max_len}. "
            "Published: the longest segment and memory in training, together."
        )
    if attn_type == 1 and not causal:
        raise ValueError(
            "attn_type=1 learns distances back alone, and needs causal=True; got causal=False. "
            "Use attn_type=0, whose distances go both ways."
        )
