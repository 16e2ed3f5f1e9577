"""A learned vector per clipped offset, which the query meets."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.checks import check_number, check_types
from locant.forms import AxialValues, AxialVectors
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Content


@final
class Shaw(Content):
    """logit[h, i, j] = s · (q_i · k_j + q_i · a[clip(i - j, -K, K)]),  s the attention's scale.

    a (`table`) [1 or heads, 2K + 1, head_dim], its centre the zero offset; K is `distance`. The scale multiplies the
    position's term, too. With `causal`, offsets are distances back, 0 .. K, and a has K + 1 rows. With `biases`:

        logit[h, i, j] = s · [(q_i + u_h) · k_j + q_i · a_h[δ] + c_h[δ]],  δ = min(i - j, K)

    u [heads, head_dim], c (`bias`) [1 or heads, rows]: Transformer-XL's `attn_type` 1, whose layers have vectors per
    head, no W_r R, and clip distances at the longest one they were built for. Pairs with a prefix token get 0.

    Where it differs: the paper's index is key - query, so its table is ours with the rows turned round. Its second
    table, which adds a vector to the values, is left out: by the paper's own ablation (table 3) it brings nothing
    beside the first. Published r_emb and r_bias of `attn_type` 1 begin with the farthest distance and end with 0.
    Source: Shaw et al., arXiv 1803.02155, eqs. 3 and 4; kimiyoung/transformer-xl `mem_transformer.py`,
    `RelLearnableMultiHeadAttn`.

    Args:
        heads: how many heads.
        head_dim: channels of a head.
        distance: K, the largest distance that is told apart.
        per_head: whether each head has vectors of its own; in the paper they share them.
        causal: whether only distances back are learned; it then needs a mask with `Causal`.
        biases: whether there are u and c.
        clamp: distances beyond are taken for this one, though more were learned; None is K.
        init_std: of the normal that all of them start from.

    Raises:
        ValueError: for distances below 0 or sizes below 1.
    """

    u: nn.Parameter | None
    bias: nn.Parameter | None

    @check_types
    def __init__(
        self,
        heads: int,
        head_dim: int,
        distance: int,
        *,
        per_head: bool = False,
        causal: bool = False,
        biases: bool = False,
        clamp: int | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if min(heads, head_dim) < 1 or distance < 0 or (clamp is not None and clamp < 0):
            raise ValueError(
                "Shaw needs `heads` and `head_dim` of at least 1, `distance` and `clamp` of at least 0; "
                f"got {heads}, {head_dim}, {distance} and {clamp}. The paper uses distances of 2 to 64 and no clamp."
            )
        check_number("Shaw", "init_std", init_std, least=0.0)
        self.heads, self.head_dim, self.distance, self.causal, self.clamp = heads, head_dim, distance, causal, clamp
        tables, rows = heads if per_head else 1, distance + 1 if causal else 2 * distance + 1
        self.table = nn.Parameter(torch.empty(tables, rows, head_dim))
        self.register_parameter("bias", nn.Parameter(torch.empty(tables, rows)) if biases else None)
        self.register_parameter("u", nn.Parameter(torch.empty(heads, head_dim)) if biases else None)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=init_std)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        if grid.axes != 1:
            raise ValueError(
                f"Shaw knows offsets in a sequence, a grid of one axis; got {grid}. "
                "On images and clips use Decomposed or RelativeTable."
            )
        if self.causal and not mask.causal:
            raise ValueError(
                "Shaw(causal=True) has learned nothing of keys after their query, and needs a mask that hides them; "
                f"got {mask.names()}. Pass mask=Causal(), or build it with causal=False."
            )

    def ranges(self, reach: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Those that its table has a row for, and the clamp leaves."""
        near = min(reach[0], self.distance, *(() if self.clamp is None else (self.clamp,)))
        return ((0 if self.causal else -near, near),)

    def values(
        self, form: AxialVectors, q: Float[Tensor, "batch heads queries head_dim"], scale: float | Tensor
    ) -> AxialValues:
        ((low, high),) = form.ranges
        rows = ((0 if self.causal else self.distance) + low, high - low + 1)
        told, bias = self.table.narrow(1, *rows), None if self.bias is None else (self.bias.narrow(1, *rows),)
        return AxialValues(q, (told,), form.ranges, bias, factor=scale)

    def queries(
        self, q: Float[Tensor, "batch heads queries head_dim"]
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """q, or q + u."""
        return q if self.u is None else q + self.u[:, None].to(q.dtype)

    def extra_repr(self) -> str:
        parts = [f"{self.heads}, {self.head_dim}, distance={self.distance}"]
        parts += ["per_head=True"] * (len(self.table) > 1) + ["causal=True"] * self.causal
        parts += ["biases=True"] * (self.u is not None)
        return ", ".join(parts + ([] if self.clamp is None else [f"clamp={self.clamp}"]))
