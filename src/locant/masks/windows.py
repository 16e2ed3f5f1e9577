"""Windows: the cells that a grid is cut into, shifted or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from locant.checks import description, is_whole
from locant.dispatch import register_constant
from locant.grid import Grid
from locant.masks.mask import Mask
from locant.tokens import Tokens


@dataclass(frozen=True, init=False)
class Windows(Mask):
    """A query sees the keys of its own cell; cells are cut at every multiple of `size`, moved by `shift`.

    Coordinate c lies in cell floor((c - shift) / size), per axis. On any grid the cells are literal: those at the
    border are smaller. For sizes that divide, this equals Swin's cyclic roll with its -100 mask
    (arXiv 2103.14030, section 3.2) without roll or mask. `Windows((T, 1, 1))` is AIM's temporal attention.

    Args:
        size: cells per axis (an int on a sequence), each at least 1.
        shift: per axis; None is no shift. Swin's shifted layers use size // 2.
    """

    size: tuple[int, ...]
    shift: tuple[int, ...]
    example = "Windows((7, 7))"

    def __init__(self, size: int | tuple[int, ...], shift: int | tuple[int, ...] | None = None) -> None:
        size = tuple(size) if isinstance(size, (tuple, list)) else (size,)
        shift = (0,) * len(size) if shift is None else tuple(shift) if isinstance(shift, (tuple, list)) else (shift,)
        if not all(is_whole(n) for n in (*size, *shift)) or len(size) != len(shift) or not size or min(size) < 1:
            raise ValueError(
                "Windows needs a size of at least 1 per axis and, if any, a shift per axis, all whole numbers; "
                f"got size={description(size)}, shift={description(shift)}. Write Windows((7, 7), shift=(3, 3))."
            )
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "shift", tuple(s % n for s, n in zip(shift, size, strict=True)))

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "1 1 groups queries keys"]:
        q, k = self._cell(queries.coordinates), self._cell(keys.coordinates)
        same = (q[..., :, None, :] == k[..., None, :, :]).all(-1)
        return (same | ~queries.placed[..., None] | ~keys.placed[..., None, :])[None, None]

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        if len(self.size) != grid.axes:
            raise ValueError(
                f"Windows needs a size per axis of {grid}, which has {grid.axes}; it got {len(self.size)}: "
                f"{self.size}. Give one number per axis, 1 for an axis that is not to mix."
            )
        return self

    def _cell(self, coordinates: Int[Tensor, "*groups count axes"]) -> Int[Tensor, "*groups count axes"]:
        moved = coordinates - coordinates.new_tensor(self.shift)
        return torch.div(moved, moved.new_tensor(self.size), rounding_mode="floor")

    def cell_of(self, axis: int, coordinate: int) -> int:
        """The same on one axis, in plain integers: what a planner needs."""
        return (coordinate - self.shift[axis]) // self.size[axis]


register_constant(Windows)
