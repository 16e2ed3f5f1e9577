"""How windows cut a grid: the cells on each axis, and how far apart a query and its key can be.

Plain integers, no tensors: what a planner may read, and a table asks before it answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from locant.caching import remember
from locant.grid import Grid
from locant.masks import Causal, Structure, Windows


@dataclass(frozen=True)
class Cell:
    """One cell on one axis: which queries and which keys lie in it, as half-open index ranges."""

    queries: tuple[int, int]
    keys: tuple[int, int]


def cells(windows: tuple[Windows, ...], axis: int, grid: Grid, key_grid: Grid) -> tuple[Cell, ...]:
    """The cells on one axis that hold a query, in order; without windows there is one."""
    if not windows:
        return (Cell((0, grid.shape[axis]), (0, key_grid.shape[axis])),) if grid.shape[axis] else ()
    keys = _runs(windows, axis, key_grid)
    return tuple(Cell(run, keys.get(label, (0, 0))) for label, run in _runs(windows, axis, grid).items())


def offsets_kind(cell: Cell, axis: int, grid: Grid, key_grid: Grid) -> tuple[int, int, int]:
    """How many queries and keys a cell has on this axis, and how far its first query lies from its first key.

    Cells that agree in it are translates of each other: pair by pair they have the same offsets, so the same bias.
    """
    (q0, q1), (k0, k1) = cell.queries, cell.keys
    return q1 - q0, k1 - k0, grid.along(axis)[q0] - key_grid.along(axis)[k0] if k1 > k0 else 0


def _runs(windows: tuple[Windows, ...], axis: int, grid: Grid) -> dict[tuple[int, ...], tuple[int, int]]:
    """Which indices lie in each cell of one axis: coordinates rise, so that a cell is one run."""
    runs: dict[tuple[int, ...], tuple[int, int]] = {}
    for index, coordinate in enumerate(grid.along(axis)):
        label = tuple(w.cell_of(axis, coordinate) for w in windows)
        runs[label] = (runs[label][0] if label in runs else index, index + 1)
    return runs


def count(windows: tuple[Windows, ...], grid: Grid, key_grid: Grid) -> tuple[int, int]:
    """How many cells hold a query, and how many pairs of a query and a key lie in one cell.

    Prefix keys belong to every cell; prefix queries are one more cell, which sees everything.
    """
    lines = [cells(windows, axis, grid, key_grid) for axis in range(grid.axes)]
    pairs = [sum((c.queries[1] - c.queries[0]) * (c.keys[1] - c.keys[0]) for c in line) for line in lines]
    total = math.prod(pairs) + grid.cells * key_grid.prefix + grid.prefix * key_grid.tokens
    if not windows:
        return int(grid.tokens > 0), total
    return math.prod(map(len, lines)) + (grid.prefix > 0), total


def visible_share(causal: tuple[Causal, ...], grid: Grid, key_grid: Grid) -> float:
    """The share of pairs that an order leaves, on its first axis: one half of a square, all of one new query."""
    if not causal or not grid.cells or not key_grid.cells:
        return 1.0
    axis = causal[0].axis or 0
    queries, keys = grid.along(axis), key_grid.along(axis)
    seen = (np.arange(queries.start, queries.stop, queries.step) - keys.start) // keys.step + 1
    return float(seen.clip(0, len(keys)).mean() / len(keys))


def check_reach(
    scheme: str, own: Grid, grid: Grid, needed: tuple[int, ...], mask: Structure, *, stretches: bool = False
) -> None:
    """Whether a scheme that knows the offsets on its `own` grid alone knows those that are `needed`.

    Segments and Pairs may allow nearer pairs alone, but only their numbers would tell.

    Args:
        scheme: its name, for the error.
        stretches: whether its `resized` stretches what was learned over more offsets unless told otherwise.

    Raises:
        ValueError: if the attention's grid has other axes, or its offsets go beyond.
    """
    if grid.axes != own.axes:
        raise ValueError(
            f"{scheme} on {own} needs a grid of {own.axes} axes; got {grid}. "
            f"Add axes of size 1, or build the {scheme} for this kind of grid."
        )
    if all(n < size for n, size in zip(needed, own.shape, strict=True)):
        return
    sizes = ", ".join(str(n + 1) for n in needed)
    if not stretches:
        advice = f"Use position.resized(Grid({sizes})), or a smaller window."
    elif mask.segments or mask.pairs or grid.axes == 1:
        advice = (
            f'Use position.resized(Grid({sizes}), method="clip"), which keeps the numbers of the offsets that it has '
            "(other methods stretch them), or a smaller window."
        )
    else:
        advice = (
            f"Use position.resized(Grid({sizes})), which stretches it over the larger picture "
            '(method="clip" keeps the numbers of the offsets that it has), or a smaller window.'
        )
    raise ValueError(
        f"this attention needs offsets up to {needed}; the {scheme} on {own} reaches "
        f"{tuple(size - 1 for size in own.shape)}. {advice}"
    )


@remember(256)
def reach(grid: Grid, key_grid: Grid, windows: tuple[Windows, ...]) -> tuple[int, ...]:
    """The largest |query - key| per axis over the pairs that windows allow: what a table must hold."""
    if not grid.cells or not key_grid.cells:
        return (0,) * grid.axes
    if grid.is_open or key_grid.is_open:
        return tuple(_open_reach(axis, grid, key_grid, windows) for axis in range(grid.axes))
    found = []
    for axis in range(grid.axes):
        queries, keys = grid.along(axis), key_grid.along(axis)
        furthest = 0
        for cell in cells(windows, axis, grid, key_grid):
            q, k = queries[slice(*cell.queries)], keys[slice(*cell.keys)]
            furthest = max(furthest, abs(q[-1] - k[0]), abs(k[-1] - q[0])) if q and k else furthest
        found.append(furthest)
    return tuple(found)


def _open_reach(axis: int, grid: Grid, key_grid: Grid, windows: tuple[Windows, ...]) -> int:
    """The same on one axis of sizes that a graph leaves open: as far as the windows reach, if there are any."""
    if len(windows) > 0:
        size = min([w.size[axis] for w in windows])
        if grid.shape[axis] >= size and key_grid.shape[axis] >= size:
            return size - 1
    last = [g.origin[axis] + (g.shape[axis] - 1) * g.stride[axis] for g in (grid, key_grid)]
    return torch.sym_max(last[0] - key_grid.origin[axis], last[1] - grid.origin[axis])
