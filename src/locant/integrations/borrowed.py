"""Positions whose numbers belong to a module of another library, and are read where they lie at every call.

Nothing is copied: whatever trains, loads, moves, shards or replaces the owner's tensors is seen at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn

from locant.cells import check_reach
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Bias, PrefixRows


@final
class BorrowedTable(Bias):
    """A flat table [(2T-1)(2H-1)(2W-1) (+ 3), heads], row-major over query - key, of a module that owns it.

    Three more rows at the end are those of a class token: to it, from it, with itself (BEiT).

    Args:
        owner: the module; it is not registered here, so that no state dict changes.
        table: the name of its parameter.
        window: the name of its attribute that holds the cells per axis; it is read anew at each call.
        heads: columns of the table.
        prefix: whether the three rows are there.
    """

    def __init__(self, owner: nn.Module, table: str, window: str, heads: int, *, prefix: bool = False) -> None:
        super().__init__()
        self.__dict__["owner"] = owner
        self.table, self.window, self.heads, self.prefix = table, window, heads, prefix

    @property
    def grid(self) -> Grid:
        sides = getattr(self.owner, self.window)
        sides = (sides, sides) if isinstance(sides, int) else tuple(int(side) for side in sides)
        return Grid(*sides, prefix=int(self.prefix))

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield getattr(self.owner, self.table)

    def at(self, offset: Tensor) -> Tensor:
        rows: Tensor = getattr(self.owner, self.table)
        index = torch.zeros((), dtype=torch.int64, device=rows.device)
        for axis, size in enumerate(self.grid.shape):
            index = index * (2 * size - 1) + offset[..., axis] + size - 1
        return rows.index_select(0, index.flatten()).T.reshape(-1, *index.shape)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        check_reach(type(self).__name__, self.grid, grid, reach, mask, stretches=False)

    def prefix_rows(self) -> PrefixRows | None:
        if not self.prefix:
            return None
        to_token, from_token, both = getattr(self.owner, self.table)[-3:].unbind(0)
        return to_token, from_token, both

    def within(self, reach: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        rows: Tensor = getattr(self.owner, self.table)
        sizes = [2 * size - 1 for size in self.grid.shape]
        table = (rows[:-3] if self.prefix else rows).T.unflatten(1, sizes)
        for axis, (size, needed) in enumerate(zip(self.grid.shape, reach, strict=True), start=1):
            if needed < size - 1:
                table = table.narrow(axis, size - 1 - needed, 2 * needed + 1)
        return table
