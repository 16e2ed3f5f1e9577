"""DETR's transformer: positions are added to queries and keys in every layer, and never to values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.checks import check_types
from locant.masks import Padding
from locant.nn import MultiHeadAttention
from locant.nn.arguments import check_probabilities
from locant.nn.perceptron import Perceptron


class Layer(nn.Module):
    """What both layers are made of: self-attention, a perceptron, and a residual branch f with its norm.

        x ← norm(x + dropout(f(x)))            as published
        x ← x + dropout(f(norm(x)))            `pre_norm`: what f adds positions to is then normalised already

    Args:
        dim: channels of a token; `heads` divides it.
        heads: of every attention.
        hidden: channels inside the perceptron fc2 ∘ dropout ∘ ReLU ∘ fc1.
        dropout: on the weights of attention, inside the perceptron and on every branch, in training only.
        pre_norm: whether norms come before the branches.

    Raises:
        ValueError: for heads that do not divide dim, no hidden channel, or a dropout out of range.
    """

    def __init__(
        self, dim: int, heads: int, *, hidden: int = 2048, dropout: float = 0.1, pre_norm: bool = False
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_probabilities(name, dropout=dropout)
        if hidden < 1:
            raise ValueError(f"{name} needs a `hidden` of at least 1; got {hidden}. DETR uses 2048, 8 times its dim.")
        self.dropout, self.pre_norm = dropout, pre_norm
        self.self_attn = MultiHeadAttention(dim, heads, dropout=dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = Perceptron(dim, hidden, activation=nn.ReLU(), dropout=dropout)

    def _attend(self, x: Tensor, pos: Tensor | None, mask: Padding | None) -> Tensor:
        placed = _added(x, pos)
        return self.self_attn(placed, placed, x, mask=mask)[0]

    def _residual(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + F.dropout(branch(norm(x)), self.dropout, self.training)
        return norm(x + F.dropout(branch(x), self.dropout, self.training))

    def extra_repr(self) -> str:
        parts = [f"dropout={self.dropout}"] if self.dropout else []
        return ", ".join([*parts, "pre_norm=True"] if self.pre_norm else parts)


class EncoderLayer(Layer):
    """x [batch, tokens, dim]: self-attention with q, k from x + pos and v from x, then the perceptron."""

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        pos: Float[Tensor, "*batch tokens dim"] | None = None,
        mask: Padding | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """`mask` says which tokens are real. The rows of padding are computed, and mean nothing."""
        x = self._residual(x, self.norm1, lambda y: self._attend(y, pos, mask))
        return self._residual(x, self.norm2, self.mlp)


class DecoderLayer(Layer):
    """x [batch, queries, dim] attends to itself, then to memory [batch, tokens, dim], then the perceptron.

        self-attention      q, k from x + query_pos          v from x
        multihead_attn      q from x + query_pos             k from memory + pos, v from memory

    Args and Raises are those of `Layer`.
    """

    def __init__(
        self, dim: int, heads: int, *, hidden: int = 2048, dropout: float = 0.1, pre_norm: bool = False
    ) -> None:
        super().__init__(dim, heads, hidden=hidden, dropout=dropout, pre_norm=pre_norm)
        self.multihead_attn = MultiHeadAttention(dim, heads, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        memory: Float[Tensor, "batch tokens dim"],
        query_pos: Float[Tensor, "*batch queries dim"] | None = None,
        pos: Float[Tensor, "*batch tokens dim"] | None = None,
        mask: Padding | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """`mask` says which tokens of `memory` are real."""

        def look(y: Tensor) -> Tensor:
            return self.multihead_attn(_added(y, query_pos), _added(memory, pos), memory, mask=mask)[0]

        x = self._residual(x, self.norm1, lambda y: self._attend(y, query_pos, None))
        x = self._residual(x, self.norm2, look)
        return self._residual(x, self.norm3, self.mlp)


class Encoder(nn.Module):
    """Layers one after the other, or none; `norm` at the end where layers are pre-norm, else None."""

    def __init__(self, layers: Sequence[EncoderLayer], norm: nn.LayerNorm | None = None) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        pos: Float[Tensor, "*batch tokens dim"] | None = None,
        mask: Padding | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """The memory that the decoder reads."""
        for layer in self.layers:
            x = layer(x, pos, mask)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """Layers one after the other; the state after each of them is returned, behind one `norm`.

    The norm looks on: the state that goes to the next layer is not normalised by it. transformers 5.23 feeds the
    normalised state on when its `auxiliary_loss` is set, and so computes another function.
    """

    def __init__(self, layers: Sequence[DecoderLayer], norm: nn.LayerNorm) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        memory: Float[Tensor, "batch tokens dim"],
        query_pos: Float[Tensor, "*batch queries dim"] | None = None,
        pos: Float[Tensor, "*batch tokens dim"] | None = None,
        mask: Padding | None = None,
    ) -> Float[Tensor, "layers batch queries dim"]:
        """The normalised state after each layer, the last one last."""
        states = []
        for layer in self.layers:
            x = layer(x, memory, query_pos, pos, mask)
            states.append(self.norm(x))
        return torch.stack(states)


class Transformer(nn.Module):
    """Encoder over the cells of a feature map, decoder over object queries that start from zeros.

    Matrices start Xavier-uniform, and biases of attention from zeros. As published, the three input projections of
    an attention are drawn as one matrix [3 dim, dim], each within √(6 / (dim + 3 dim)).

    Where it differs: transformers' DETR also drops entries of what enters the encoder, and none of the attention
    weights. Neither plays a part in evaluation.
    Source: DETR (arXiv 2005.12872, section 3.2, figure 10); facebookresearch/detr `models/transformer.py`.

    Args:
        dim, heads, hidden, dropout, pre_norm: of every layer.
        encoder_layers: how many; 0 leaves the encoder out.
        decoder_layers: how many, at least 1.

    Raises:
        ValueError: for sizes out of range, and what a layer refuses.
    """

    @check_types
    def __init__(
        self,
        dim: int = 256,
        heads: int = 8,
        *,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        if encoder_layers < 0 or decoder_layers < 1:
            raise ValueError(
                "Transformer needs `encoder_layers` of at least 0 and `decoder_layers` of at least 1; got "
                f"encoder_layers={encoder_layers}, decoder_layers={decoder_layers}. DETR uses 6 and 6."
            )
        self.dim = dim
        encoder = partial(EncoderLayer, dim, heads, hidden=hidden, dropout=dropout, pre_norm=pre_norm)
        self.encoder = Encoder([encoder() for _ in range(encoder_layers)], nn.LayerNorm(dim) if pre_norm else None)
        decoder = partial(DecoderLayer, dim, heads, hidden=hidden, dropout=dropout, pre_norm=pre_norm)
        self.decoder = Decoder([decoder() for _ in range(decoder_layers)], nn.LayerNorm(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the matrices again."""
        for matrix in (p for p in self.parameters() if p.ndim > 1):
            nn.init.xavier_uniform_(matrix)
        for attention in (m for m in self.modules() if isinstance(m, MultiHeadAttention)):
            for projection in (attention.q, attention.k, attention.v, attention.out):
                nn.init.zeros_(projection.bias)
            for projection in (attention.q, attention.k, attention.v):
                nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)  # √(6 / (dim + 3 dim)) = √½ √(6 / 2 dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        query_pos: Float[Tensor, "queries dim"],
        pos: Float[Tensor, "*batch tokens dim"] | None = None,
        mask: Padding | None = None,
    ) -> tuple[Float[Tensor, "layers batch queries dim"], Float[Tensor, "batch tokens dim"]]:
        """The states of the decoder, one per layer, and the memory that it read.

        Args:
            x: the cells of a feature map, row-major.
            query_pos: a vector per object query.
            pos: a vector per cell, the same for all samples or of each.
            mask: which cells are real, `[batch, tokens]`.
        """
        memory = self.encoder(x, pos, mask)
        start = query_pos.to(memory.dtype).expand(memory.shape[0], *query_pos.shape)
        return self.decoder(torch.zeros_like(start), memory, start, pos, mask), memory


def _added(x: Tensor, pos: Tensor | None) -> Tensor:
    return x if pos is None else x + pos
