"""How windows cut a grid: the cells on each axis, and how far apart a query and its key can be.

Plain integers, no tensors: what a planner may read, and a table asks before it answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from locant.grid import Grid
from locant.masks import Mask, Structure, Windows


@dataclass(frozen=True)
class Cell:
    """One cell on one axis: which queries and which keys lie in it, as half-open index ranges."""

    queries: tuple[int, int]
    keys: tuple[int, int]


def cells(windows: tuple[Windows, ...], axis: int, grid: Grid, key_grid: Grid) -> tuple[Cell, ...]:
    """The cells on one axis that hold a query, in order; without windows there is one."""
    keys = _runs(windows, axis, key_grid)
    return tuple(Cell(run, keys.get(label, (0, 0))) for label, run in _runs(windows, axis, grid).items())


def _runs(windows: tuple[Windows, ...], axis: int, grid: Grid) -> dict[tuple[int, ...], tuple[int, int]]:
    """Which indices lie in each cell of one axis: coordinates rise, so that a cell is one run."""
    runs: dict[tuple[int, ...], tuple[int, int]] = {}
    for index, coordinate in enumerate(grid.along(axis)):
        label = tuple(w.cell_of(axis, coordinate) for w in windows)
        runs[label] = (runs[label][0] if label in runs else index, index + 1)
    return runs


def reach(grid: Grid, key_grid: Grid, mask: Mask | None) -> tuple[int, ...]:
    """The largest |query - key| per axis over the pairs that windows allow: what a table must hold."""
    windows = Structure.of(mask).windows
    compiling = torch.compiler.is_compiling()  # a graph is traced once, and its tracer warns of caches
    return _reach(grid, key_grid, windows) if compiling else _remembered(grid, key_grid, windows)


def reach_of(scheme: str, own: Grid, grid: Grid, key_grid: Grid, mask: Mask | None) -> tuple[int, ...]:
    """What `reach` says, of a scheme that knows the offsets on its `own` grid alone.

    Raises:
        ValueError: if the attention's grid has other axes, or its offsets go beyond.
    """
    if grid.axes != own.axes:
        raise ValueError(
            f"{scheme} on {own} needs a grid of {own.axes} axes; got {grid}. "
            f"Add axes of size 1, or build the {scheme} for this kind of grid."
        )
    needed = reach(grid, key_grid, mask)
    if any(n >= size for n, size in zip(needed, own.shape, strict=True)):
        raise ValueError(
            f"this attention needs offsets up to {needed}; the {scheme} on {own} reaches "
            f"{tuple(size - 1 for size in own.shape)}. "
            f"Use position.resized(Grid({', '.join(str(n + 1) for n in needed)})), or a smaller window."
        )
    return needed


def _reach(grid: Grid, key_grid: Grid, windows: tuple[Windows, ...]) -> tuple[int, ...]:
    found = []
    for axis in range(grid.axes):
        queries, keys = grid.along(axis), key_grid.along(axis)
        furthest = 0
        for cell in cells(windows, axis, grid, key_grid):
            q, k = queries[slice(*cell.queries)], keys[slice(*cell.keys)]
            furthest = max(furthest, abs(q[-1] - k[0]), abs(k[-1] - q[0])) if q and k else furthest
        found.append(furthest)
    return tuple(found)


_remembered = lru_cache(maxsize=256)(_reach)
