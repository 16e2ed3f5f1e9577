"""Positions whose numbers belong to a module of another library, and are read where they lie at every call.

Nothing is copied: whatever trains, loads, moves, shards or replaces the owner's tensors is seen at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

from locant.cells import check_reach
from locant.forms import SeparableValues
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Bias, Gate, PrefixRows


@final
class BorrowedTable(Bias):
    """A flat table [(2T-1)(2H-1)(2W-1) (+ 3), heads], row-major over query - key, of a module that owns it.

    Three more rows at the end are those of a class token: to it, from it, with itself (BEiT).

    Args:
        owner: the module; it is not registered here, so that no state dict changes.
        table: the name of its parameter, or of the module in it that `rows` reads the table off.
        window: the name of its attribute that holds the cells per axis; it is read anew at each call.
        heads: columns of the table.
        prefix: tokens without a place.
        prefix_rows: whether the three rows are there; else such tokens have bias 0.
        rows: the table from the owner, where it is made at each call (Swin v2); None: it is a parameter.
    """

    def __init__(
        self, owner: nn.Module, table: str, window: str, heads: int, *, prefix: int = 0, prefix_rows: bool = False,
        rows: Callable[[Any], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.__dict__["owner"] = owner
        self.table, self.window, self.heads, self.rows = table, window, heads, rows
        self.prefix, self.has_prefix_rows = prefix, prefix_rows

    @property
    def grid(self) -> Grid:
        sides = getattr(self.owner, self.window)
        sides = (sides, sides) if isinstance(sides, int) else tuple(int(side) for side in sides)
        return Grid(*sides, prefix=self.prefix)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        learned = getattr(self.owner, self.table)
        yield from learned.parameters() if isinstance(learned, nn.Module) else (learned,)

    def at(self, offset: Tensor) -> Tensor:
        rows = self._rows()
        index = torch.zeros((), dtype=torch.int64, device=rows.device)
        for axis, size in enumerate(self.grid.shape):
            index = index * (2 * size - 1) + offset[..., axis] + size - 1
        return rows.index_select(0, index.flatten()).T.reshape(-1, *index.shape)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        check_reach(type(self).__name__, self.grid, grid, reach, mask, stretches=False)

    def prefix_rows(self) -> PrefixRows | None:
        if not self.has_prefix_rows:
            return None
        to_token, from_token, both = self._rows()[-3:].unbind(0)
        return to_token, from_token, both

    def within(self, reach: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        rows = self._rows()
        sizes = [2 * size - 1 for size in self.grid.shape]
        table = (rows[:-3] if self.has_prefix_rows else rows).T.unflatten(1, sizes)
        for axis, (size, needed) in enumerate(zip(self.grid.shape, reach, strict=True), start=1):
            if needed < size - 1:
                table = table.narrow(axis, size - 1 - needed, 2 * needed + 1)
        return table

    def _rows(self) -> Tensor:
        return getattr(self.owner, self.table) if self.rows is None else self.rows(self.owner)


@final
class BorrowedBuckets(Bias):
    """T5's bias per bucket of offsets, of a module with `relative_attention_bias`.

    `bucket` is the owner's own, of key - query.
    """

    def __init__(self, owner: nn.Module, heads: int, bucket: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.__dict__["owner"] = owner
        self.heads, self.bucket = heads, bucket

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        owner: Any = self.owner
        yield owner.relative_attention_bias.weight

    def at(self, offset: Tensor) -> Tensor:
        owner: Any = self.owner
        return owner.relative_attention_bias(self.bucket(owner, -offset[..., 0])).movedim(-1, 0)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        """There is a bucket for every offset in a sequence."""


@final
class BorrowedSlopes(Bias):
    """ALiBi for what comes before: bias = -slope · (query - key), the slopes from the library that made them.

    `slopes` makes them, [heads], of a number of heads and a device.
    """

    def __init__(self, heads: int, slopes: Callable[[int, torch.device], Tensor]) -> None:
        super().__init__()
        self.heads, self.slopes = heads, slopes

    def at(self, offset: Tensor) -> Tensor:
        rate = self.slopes(self.heads, offset.device)
        return -rate.reshape(-1, *(1,) * (offset.ndim - 1)) * offset[..., 0]

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        """It has an answer for every offset in a sequence."""


@final
class BorrowedGate(Gate):
    """ConViT's map from position alone, of a module with `pos_proj` and `gating_param`; as `GatedPosition`."""

    def __init__(self, owner: nn.Module, heads: int) -> None:
        super().__init__()
        self.__dict__["owner"] = owner
        self.heads = heads

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        owner: Any = self.owner
        yield from (owner.pos_proj.weight, owner.pos_proj.bias, owner.gating_param)

    def values(self, grid: Grid, key_grid: Grid) -> SeparableValues:
        owner: Any = self.owner
        kind = torch.promote_types(owner.gating_param.dtype, torch.float32)
        column, row, spread = owner.pos_proj.weight.to(kind)[..., None, None].unbind(1)  # of key - query
        logits = []
        for axis, direction in enumerate((row, column)):
            q, k = (torch.tensor(g.along(axis), dtype=kind, device=spread.device) for g in (grid, key_grid))
            apart = k - q[:, None]
            logits.append(direction * apart + spread * apart**2)
        logits[0] = logits[0] + owner.pos_proj.bias.to(kind)[:, None, None]  # cancels: its gradient is 0, not missing
        return SeparableValues(tuple(logits), torch.sigmoid(owner.gating_param.to(kind)))
