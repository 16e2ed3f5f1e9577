"""A learned vector per offset and axis, which the query meets: relative positions of images, decomposed by axis."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.cells import check_reach
from locant.checks import check_number, check_types
from locant.forms import AxialValues, AxialVectors
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Content
from locant.resizing import Place, resize_table


@final
class Decomposed(Content):
    """logit[h, i, j] = s · q_i · k_j + Σ_axis q_i · R_axis[(i - j)_axis + reach_axis].

    R_axis (`tables.0`, `tables.1`, ..: time, row, column) [2 size - 1, head_dim], its centre the zero offset, shared
    by all heads. Unlike Shaw's and Transformer-XL's, the term is not scaled: it meets q as it is. Pairs with a prefix
    token get 0. Pooled keys are a grid with a stride (`key_grid=grid.pooled(2)`), and offsets count cells of the finer
    grid. Like a `RelativeTable` it reaches as far as its grid, and reads the centre where less is needed.

    Where it differs: published code finds coordinates by the ratio of the two sizes, and lets the offset of the *last*
    key be zero in its index. Keys pooled by p therefore have their zero offset p - 1 rows before the centre of the
    table: `rel_pos.roll(p - 1, 0)` is ours. Without pooling the tables are the same. SAM resizes tables that do not fit
    at every call, by torch's linear interpolation without aligned ends; here `resized` does it once.
    Source: MViTv2 (arXiv 2112.01526, section 4.1) `rel_pos_h`, `rel_pos_w`, `rel_pos_t`; ViTDet; SAM (2304.02643).

    Args:
        grid: how far it reaches: offsets of up to size - 1 along each axis.
        heads: of the attention.
        head_dim: channels of a head.
        init_std: of the normal that the tables start from (0.02 as MViTv2's; SAM's start from 0).

    Raises:
        ValueError: for a grid with a prefix or without cells, and sizes below 1.
    """

    @check_types
    def __init__(self, grid: Grid, heads: int, head_dim: int, *, init_std: float = 0.02) -> None:
        super().__init__()
        if 0 in grid.shape or grid.prefix or min(heads, head_dim) < 1:
            raise ValueError(
                "Decomposed needs a grid of at least one cell without prefix, and heads and head_dim of at least 1; "
                f"got {grid}, {heads} and {head_dim}. Prefix tokens belong to the attention's grid, and get 0."
            )
        check_number("Decomposed", "init_std", init_std, least=0.0)
        self.grid, self.heads, self.head_dim = grid, heads, head_dim
        self.tables = nn.ParameterList(torch.empty(2 * size - 1, head_dim) for size in grid.shape)
        for table in self.tables:
            nn.init.trunc_normal_(table, std=init_std) if init_std > 0 else nn.init.zeros_(table)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        check_reach("Decomposed", self.grid, grid, reach, mask, stretches=True)

    def values(
        self, form: AxialVectors, q: Float[Tensor, "batch heads queries head_dim"], scale: float | Tensor
    ) -> AxialValues:
        lines = zip(self.tables, self.grid.shape, form.ranges, strict=True)
        met = tuple(table.narrow(0, size - 1 + low, high - low + 1)[None] for table, size, (low, high) in lines)
        return AxialValues(q, met, form.ranges)  # not scaled

    @check_types
    def places(self) -> dict[str, Place]:
        return {f"tables.{i}": Place("line", (size,)) for i, size in enumerate(self.grid.shape)}

    @check_types
    def resized(self, grid: Grid, *, method: str = "linear") -> Decomposed:
        """A new module that reaches over `grid`: its tables interpolated, axis by axis (locant.resizing)."""
        new = Decomposed(grid, self.heads, self.head_dim).to(self.tables[0])
        with torch.no_grad():
            for ours, old, size in zip(new.tables, self.tables, grid.shape, strict=True):
                ours.copy_(resize_table(old.T, (2 * size - 1,), method).T)
        return new

    def extra_repr(self) -> str:
        return f"{self.grid}, heads={self.heads}, head_dim={self.head_dim}"
