"""A learned bias per offset: one class for sequences, pictures and clips."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from locant.cells import check_reach
from locant.checks import check_number, check_types, check_whole
from locant.dispatch import is_open
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Bias, Comparison, PrefixRows
from locant.resizing import Place, resize_table


@final
class RelativeTable(Bias):
    """bias[head, i, j] = table[head, (i - j) + reach], `table [heads, 2T-1, 2H-1, 2W-1]`, i the query, j the key.

    `RelativeTable(Grid(16), heads)` is AIM's temporal table, `RelativeTable(Grid(7, 7), heads)` Swin's, and
    `RelativeTable(Grid(8, 7, 7), heads)` Video Swin's. Its grid is its reach: when the attention's grid, key grid and
    mask need less, the centre is read; when they need more, the error names `resized`. It starts as a normal of
    standard deviation `init_std`. If the grid has a prefix, three learned rows per head say what holds between prefix
    tokens and the others (BEiT); without, their bias is 0.

    Published tables are flat, `[(2H-1)(2W-1), heads]`, row-major over the same offset: `table.flatten(1).T`.
    Source: Swin (arXiv 2103.14030, eq. 4), AIM (arXiv 2302.03024, `temporal_position_bias_table`), BEiT (2106.08254).

    Args:
        grid: how far it reaches: offsets of up to size - 1 along each axis; `prefix > 0` adds the prefix rows.
        heads: one table each.
        init_std: of the normal that it starts from.
    """

    compared = Comparison(
        "relative", "relative table", "a learned bias per head and offset (Swin; Video Swin on clips)",
        build=lambda grid, dim, heads, start: RelativeTable(grid, heads, init_std=start),
        starts=(0.02, 1.5),  # a few hundred steps grow little of a bias
    )  # fmt: skip

    query_prefix: nn.Parameter | None
    key_prefix: nn.Parameter | None
    both: nn.Parameter | None

    @check_types
    def __init__(self, grid: Grid, heads: int, *, init_std: float = 0.02) -> None:
        super().__init__()
        check_whole("RelativeTable", "heads", heads)
        check_number("RelativeTable", "init_std", init_std, least=0.0)
        if 0 in grid.shape:
            raise ValueError(f"RelativeTable needs a grid with at least one cell; got {grid}. Give sizes of 1 or more.")
        self.grid, self.heads = grid, heads
        self.table = nn.Parameter(torch.empty(heads, *(2 * size - 1 for size in grid.shape)))
        rows = ("query_prefix", "key_prefix", "both")
        for row in rows:
            self.register_parameter(row, nn.Parameter(torch.empty(heads)) if grid.prefix else None)
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=init_std) if init_std > 0 else nn.init.zeros_(parameter)

    def at(self, offset: Int[Tensor, "*pairs axes"]) -> Float[Tensor, "heads *pairs"]:
        index = torch.zeros((), dtype=torch.int64, device=self.table.device)
        for axis, size in enumerate(self.grid.shape):
            index = index * (2 * size - 1) + offset[..., axis] + size - 1
        return self.table.flatten(1).index_select(1, index.flatten()).reshape(-1, *index.shape)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        check_reach("RelativeTable", self.grid, grid, reach, mask, stretches=True)

    def prefix_rows(self) -> PrefixRows | None:
        if self.query_prefix is None or self.key_prefix is None or self.both is None:
            return None
        return self.query_prefix, self.key_prefix, self.both

    def within(self, reach: tuple[int, ...], device: torch.device | None = None) -> Float[Tensor, "heads *offsets"]:
        centre: Tensor = self.table  # a view: kernels read the table where it lies
        for axis, (size, needed) in enumerate(zip(self.grid.shape, reach, strict=True), start=1):
            if is_open(needed):  # a copy: whether a view of it is whole would be a question about the symbol
                offsets = torch.arange(-needed, needed + 1, device=centre.device)
                centre = centre.index_select(axis, offsets + (size - 1))
            elif needed < size - 1:
                centre = centre.narrow(axis, size - 1 - needed, 2 * needed + 1)
        return centre

    @check_types
    def places(self) -> dict[str, Place]:
        return {"table": Place("table", self.grid.shape)}

    @check_types
    def resized(self, grid: Grid, *, method: str = "linear") -> RelativeTable:
        """A new module that reaches over `grid`: its table interpolated, its prefix rows kept (locant.resizing)."""
        if bool(grid.prefix) != bool(self.grid.prefix):
            raise ValueError(
                f"a table is resized to a grid with prefix rows exactly if it has them; it is on {self.grid} and "
                f"got {grid}. Give the new grid prefix={self.grid.prefix}."
            )
        new = RelativeTable(grid, self.heads).to(self.table)
        sizes = tuple(2 * size - 1 for size in grid.shape)
        with torch.no_grad():
            new.table.copy_(resize_table(self.table, sizes, method))
            for row in ("query_prefix", "key_prefix", "both"):
                if getattr(self, row) is not None:
                    getattr(new, row).copy_(getattr(self, row))
        return new

    def extra_repr(self) -> str:
        return f"{self.grid}, heads={self.heads}"
