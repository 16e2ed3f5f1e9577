"""Where tokens are: integer coordinates on a grid of one, two or three dimensions.

A grid is a value: frozen integers, hashable, safe inside `torch.compile` and `torch.export`.
Token order is prefix tokens first, then the cells in row-major order; axes are (time, row, column),
so a sequence is `Grid(196)`, an image `Grid(14, 14)` and a clip `Grid(8, 14, 14)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from locant.checks import ADVICE, advice_for_tracers, check_type, description, is_whole
from locant.dispatch import is_open, register_constant
from locant.tokens import Tokens

AXES = {1: ("token",), 2: ("row", "column"), 3: ("time", "row", "column")}


@dataclass(frozen=True, init=False, repr=False)
class Grid:
    """Tokens at integer coordinates `origin + index * stride`, after `prefix` tokens without a place.

    Args:
        *shape: one to three sizes, in the order time, row, column. A size may be 0.
        prefix: how many tokens without a place (class tokens, registers) come first.
        origin: coordinate of the first cell, per axis; a slice of a grid has one. Default zeros.
        stride: distance between neighbouring cells, per axis; pooled keys have one. Default ones.

    Raises:
        ValueError: if a size, prefix, origin or stride is not a whole number in range.

    >>> Grid(14, 14)[2:4]                    # two rows of an image, which know that they are rows 2 and 3
    Grid(2, 14, origin=(2, 0))
    >>> Grid(1024)[1023:1024].tokens         # one new query against a cache of 1,024 keys
    1
    >>> Grid(14, 14).pooled(2)               # keys pooled two by two
    Grid(7, 7, stride=(2, 2))
    """

    shape: tuple[int, ...]
    prefix: int
    origin: tuple[int, ...]
    stride: tuple[int, ...]

    def __init__(
        self,
        *shape: int,
        prefix: int = 0,
        origin: tuple[int, ...] | None = None,
        stride: tuple[int, ...] | None = None,
    ) -> None:
        axes = len(shape)
        if axes == 1 and isinstance(shape[0], tuple | list):
            raise ValueError(
                f"Grid needs its sizes one by one; got {description(shape[0])}. Write Grid(*sizes), as in Grid(14, 14)."
            )
        if axes not in AXES:
            raise ValueError(
                f"Grid needs one, two or three sizes (time, row, column); it got {axes}: {description(shape)}. "
                "Write Grid(196), Grid(14, 14) or Grid(8, 14, 14)."
            )
        origin = (0,) * axes if origin is None else tuple(origin) if isinstance(origin, list) else origin
        stride = (1,) * axes if stride is None else tuple(stride) if isinstance(stride, list) else stride
        _check("sizes", shape, axes, 0)
        _check("prefix", (prefix,), 1, 0)
        _check("origin", origin, axes, None)
        _check("stride", stride, axes, 1)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "prefix", prefix)
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "stride", stride)

    @property
    def axes(self) -> int:
        """Number of dimensions: 1, 2 or 3."""
        return len(self.shape)

    @property
    def cells(self) -> int:
        """Number of tokens that have a place."""
        return math.prod(self.shape)

    @property
    def tokens(self) -> int:
        """Number of tokens, the prefix included."""
        return self.prefix + self.cells

    def along(self, axis: int) -> range:
        """The coordinates on one axis, as a range."""
        first, step = self.origin[axis], self.stride[axis]
        return range(first, first + self.shape[axis] * step, step)

    def line(
        self, axis: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Shaped[Tensor, " size"]:
        """The same as a tensor, by default of int64; its size may be one that a graph leaves open."""
        first, step = self.origin[axis], self.stride[axis]
        return torch.arange(first, first + self.shape[axis] * step, step, dtype=dtype, device=device)

    @property
    def is_open(self) -> bool:
        """Whether a program that is being exported leaves one of the sizes open."""
        return any(map(is_open, self.shape))

    def coordinates(self, device: torch.device | str | None = None) -> Int[Tensor, "cells axes"]:
        """Coordinates of every cell (the prefix has none), row-major, as int64."""
        index = torch.arange(self.cells, device=device)
        steps = [math.prod(self.shape[axis + 1 :]) for axis in range(self.axes)]
        lines = [
            index // max(step, 1) % max(size, 1) * stride + origin
            for step, size, stride, origin in zip(steps, self.shape, self.stride, self.origin, strict=True)
        ]
        return torch.stack(lines, dim=-1)

    def select(
        self, index: Int[Tensor, "groups count"] | None = None, device: torch.device | str | None = None
    ) -> Tokens:
        """The tokens at `index` (prefix included in the count), by default all of them as one group."""
        index = torch.arange(self.tokens, device=device)[None] if index is None else index
        places = self.coordinates(index.device)
        if self.prefix:  # an empty one would stay in exported graphs, and OpenVINO's converter divides by its size
            places = torch.cat([places.new_zeros(self.prefix, self.axes), places])
        return Tokens(index, places[index], index >= self.prefix)

    def pooled(self, stride: int | tuple[int, ...]) -> Grid:
        """The grid of every `stride`-th coordinate per axis, as pooled keys have it. The prefix stays."""
        steps = tuple(stride) if isinstance(stride, (tuple, list)) else (stride,) * self.axes
        _check("stride", steps, self.axes, 1)
        shape = tuple(-(-n // s) for n, s in zip(self.shape, steps, strict=True))
        stride = tuple(a * b for a, b in zip(self.stride, steps, strict=True))
        return Grid(*shape, prefix=self.prefix, origin=self.origin, stride=stride)

    def without_prefix(self) -> Grid:
        """The same cells without the prefix tokens."""
        return Grid(*self.shape, origin=self.origin, stride=self.stride)

    def __getitem__(self, cut: slice) -> Grid:
        """Cut the first axis. The slice remembers its origin, and keeps the prefix only if it starts at 0."""
        if not isinstance(cut, slice):
            raise ValueError(
                f"a grid is cut by a slice of its first axis; it got {cut!r}. Write grid[{cut!r}:{cut!r} + 1]."
            )
        start, stop, step = self._indices(cut)
        if step < 1:
            raise ValueError(f"a grid is cut in rising order; it got step {step}. Use a step of 1 or more.")
        return Grid(
            max(0, -(-(stop - start) // step)),
            *self.shape[1:],
            prefix=self.prefix if start == 0 else 0,
            origin=(self.origin[0] + start * self.stride[0], *self.origin[1:]),
            stride=(self.stride[0] * step, *self.stride[1:]),
        )

    def _indices(self, cut: slice) -> tuple[int, int, int]:
        """As `slice.indices` says them, which takes no symbols: there cuts begin at a row and reach to the end."""
        if not (self.is_open or is_open(cut.start or 0)):
            return cut.indices(self.shape[0])
        if cut.stop is not None or cut.step is not None:
            raise ValueError(
                f"a grid of a size that an exported program leaves open is cut from a row to the end; it got {cut!r}. "
                "Write grid[first:], or export for one size."
            )
        return cut.start or 0, self.shape[0], 1

    def __len__(self) -> int:
        return self.tokens

    def __repr__(self) -> str:
        parts = [str(n) for n in self.shape]
        parts += [f"prefix={self.prefix}"] if self.prefix else []
        parts += [f"origin={self.origin}"] if any(self.origin) else []
        parts += [f"stride={self.stride}"] if any(s != 1 for s in self.stride) else []
        return f"Grid({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Its name, and its cells in the order of their tokens, from light to dark."""
        from locant.page.notebook import cell, maps_html

        sentences = [f"{self.tokens:,} tokens: {self.prefix} without a place, then {math.prod(self.shape):,} cells"]
        if not 0 < self.tokens - self.prefix <= 4096:
            return cell(repr(self), sentences)
        order = torch.arange(self.prefix, self.tokens, dtype=torch.float64).reshape(self.shape)
        return cell(repr(self), sentences, maps_html(order[None].numpy(), kind="token", signed=False))


def check_grid(owner: str, name: str, value: object, needed: bool = True) -> None:
    """A Grid, or None unless it is `needed`. Raises a ValueError that writes the one that was meant."""
    if not isinstance(value, Grid) and (needed or value is not None):
        check_type(owner, name, value, Grid if needed else Grid | None)


def check_cell(owner: str, query: object, grid: Grid) -> tuple[int, ...]:
    """The indices of a cell of `grid`, or a ValueError."""
    fits = isinstance(query, tuple) and len(query) == grid.axes and all(map(is_whole, query))
    if fits and all(0 <= at < size for at, size in zip(query, grid.shape, strict=True)):  # type: ignore[call-overload]
        return query  # type: ignore[return-value]
    raise ValueError(
        f"{owner} needs `query` as the indices of a cell of {grid}, from 0; got {description(query)}. "
        f"Write query={tuple(size // 2 for size in grid.shape)}."
    )


def _meant(value: object) -> str:
    """The grid to write instead of sizes."""
    sizes = value if isinstance(value, tuple | list) else (value,)
    fit = all(map(is_whole, sizes)) and len(sizes) in AXES
    return f"Write Grid({', '.join(map(str, sizes))})." if fit else "Write Grid(196), Grid(14, 14) or Grid(8, 14, 14)."


def _check(what: str, values: tuple[int, ...], count: int, least: int | None) -> None:
    whole = isinstance(values, tuple) and all(map(is_whole, values))
    if whole and len(values) == count and (least is None or all(v >= least for v in values)):
        return
    bound = "" if least is None else f" of at least {least}"
    traced = next(filter(None, map(advice_for_tracers, values if isinstance(values, tuple) else ())), None)
    raise ValueError(
        f"the {what} of a Grid must be {count} whole number{'s' * (count > 1)}{bound}; "
        f"got {description(values)}. {traced or 'Pass plain ints, in the order time, row, column.'}"
    )


register_constant(Grid)
ADVICE[Grid] = _meant
