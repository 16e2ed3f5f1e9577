"""Who meets whom, as lists of tokens: what a kernel needs to know of grids, windows and order, and nothing else.

A layout is made from whole numbers alone (`described`), so that an operator can carry it through a graph, and it is
made once per description. All of it is O(N).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from locant.cells import cells, offsets_kind
from locant.grid import Grid
from locant.masks import Causal, Structure, Windows

FIRST = -(2**62)  # the rank of prefix tokens: all see these keys, and these queries see nothing else


Int32s = np.ndarray  # of dtype int32
Int64s = np.ndarray


@dataclass(frozen=True)
class Layout:
    """Cell c holds the queries `query[query_start[c]:query_start[c + 1]]`, and the keys likewise.

    bias(i, j) = table[query_place[i] - key_place[j]], the table flat, for tokens with a place; those below the prefix
    have none. Key j is visible to i if key_rank[o, j] <= query_rank[o, i] for every order o.

    These are the operands LAYOUT of csrc/fields.h, name by name (locant.operands).
    """

    cells: int
    queries: int
    keys: int
    query_prefix: int
    key_prefix: int
    longest: int  # of the cells: how many queries, and keys
    longest_keys: int
    orders: int
    shared_keys: bool  # a key may be in several cells, or in none
    query: Int32s
    query_start: Int32s
    key: Int32s
    key_start: Int32s
    kind: Int32s  # cells of one kind are translates of each other and are stored consecutively
    query_place: Int32s
    key_place: Int32s
    query_rank: Int64s
    key_rank: Int64s
    axes: int  # along which content has vectors; 0 without
    query_at: Int32s  # coordinates, axis by axis
    key_at: Int32s
    axis: Int32s  # of each axis, in the order of csrc/attention.h, AxisNumber

    @property
    def scores(self) -> int:
        """Pairs of a query and a key that lie in one cell."""
        return int(np.dot(np.diff(self.query_start.astype(np.int64)), np.diff(self.key_start.astype(np.int64))))


Ranges = tuple[tuple[int, int], ...]  # the lowest and the highest offset along each axis


def described(
    grid: Grid, key_grid: Grid, mask: Structure, reach: Sequence[int], ranges: Ranges = ()
) -> tuple[int, ...]:
    """All that a layout depends on, as whole numbers. `reach` is the table's, `ranges` are content's; empty without."""
    numbers = [grid.axes]
    for g in (grid, key_grid):
        numbers += [*g.shape, g.prefix, *g.origin, *g.stride]
    numbers += [len(mask.windows), *(n for w in mask.windows for n in (*w.size, *w.shift))]
    numbers += [len(mask.causal), *(-1 if c.axis is None else c.axis for c in mask.causal)]
    return (*numbers, len(reach), *reach, *itertools.chain.from_iterable(ranges))


def read(
    numbers: tuple[int, ...],
) -> tuple[Grid, Grid, tuple[Windows, ...], tuple[Causal, ...], tuple[int, ...], Ranges]:
    """The inverse of `described`."""
    rest: Iterator[int] = iter(numbers)

    def take(count: int) -> tuple[int, ...]:
        return tuple(itertools.islice(rest, count))

    axes = next(rest)
    shapes = [(take(axes), next(rest), take(axes), take(axes)) for _ in range(2)]
    grid, key_grid = (Grid(*shape, prefix=p, origin=o, stride=s) for shape, p, o, s in shapes)
    windows = tuple(Windows(take(axes), take(axes)) for _ in range(next(rest)))
    causal = tuple(Causal(None if axis < 0 else axis) for axis in take(next(rest)))
    reach, bounds = take(next(rest)), tuple(rest)
    return grid, key_grid, windows, causal, reach, tuple(zip(bounds[::2], bounds[1::2], strict=True))


@lru_cache(maxsize=64)
def layout(numbers: tuple[int, ...]) -> Layout:
    """The layout of a description, remembered: modules ask for few, again and again."""
    grid, key_grid, windows, causal, needed, ranges = read(numbers)
    queries, keys, kind = _lists(windows, grid, key_grid)
    query, query_start = _joined(queries)
    key, key_start = _joined(keys)
    needed = needed or (0,) * grid.axes
    ranks = [_ranks(order, grid, key_grid) for order in causal]
    origin = key_grid.origin  # coordinates count from here: only their differences matter, and these are small
    steps = [math.prod(2 * r + 1 for r in needed[axis + 1 :]) for axis in range(grid.axes)]
    middle = sum(r * step for r, step in zip(needed, steps, strict=True))
    return Layout(
        cells=len(kind), queries=grid.tokens, keys=key_grid.tokens,
        query_prefix=grid.prefix, key_prefix=key_grid.prefix,
        longest=int(np.diff(query_start).max(initial=0)), longest_keys=int(np.diff(key_start).max(initial=0)),
        orders=len(ranks), shared_keys=_shares_keys(len(kind), len(key), grid, key_grid),
        query=query, query_start=query_start, key=key, key_start=key_start, kind=np.array(kind, dtype=np.int32),
        query_place=(_places(grid, origin, steps) + middle).astype(np.int32),
        key_place=_places(key_grid, origin, steps).astype(np.int32),
        query_rank=np.array([q for q, _ in ranks], dtype=np.int64),
        key_rank=np.array([k for _, k in ranks], dtype=np.int64),
        **_axes(grid, key_grid, ranges, (query, query_start), (key, key_start)),
    )  # fmt: skip


def _shares_keys(count: int, entries: int, grid: Grid, key_grid: Grid) -> bool:
    """Whether a key may be in several of `count` cells, whose lists hold so many entries, or in none."""
    return entries != key_grid.tokens or (count != 1 and key_grid.prefix + grid.prefix > 0)


def _lists(
    windows: tuple[Windows, ...], grid: Grid, key_grid: Grid
) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """The queries and keys of each cell, and its kind, kind by kind; prefix queries are a cell that sees everything."""
    everything = np.arange(key_grid.tokens), np.arange(grid.tokens)
    if not windows:
        return ([everything[1]], [everything[0]], [0]) if grid.tokens else ([], [], [])
    prefix = np.arange(key_grid.prefix)
    index = [np.arange(g.cells).reshape(g.shape) + g.prefix for g in (grid, key_grid)]
    found: dict[tuple[tuple[int, ...], ...], list[tuple[np.ndarray, np.ndarray]]] = {}
    for cell in itertools.product(*(cells(windows, axis, grid, key_grid) for axis in range(grid.axes))):
        queries = index[0][tuple(slice(*line.queries) for line in cell)].ravel()
        keys = index[1][tuple(slice(*line.keys) for line in cell)].ravel()
        kind = tuple(offsets_kind(line, axis, grid, key_grid) for axis, line in enumerate(cell))
        found.setdefault(kind, []).append((queries, np.concatenate([prefix, keys])))
    lists = [(*pair, number) for number, alike in enumerate(found.values()) for pair in alike]
    if grid.prefix:
        lists.append((np.arange(grid.prefix), everything[0], len(found)))
    return [q for q, _, _ in lists], [k for _, k, _ in lists], [number for _, _, number in lists]


def _joined(lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.cumsum([0, *(len(tokens) for tokens in lists)])
    return np.concatenate([np.empty(0, int), *lists]).astype(np.int32), counts.astype(np.int32)


def _coordinates(grid: Grid) -> list[np.ndarray]:
    """Per axis, the coordinate of every token; prefix tokens have 0 without meaning."""
    ranges = [grid.along(axis) for axis in range(grid.axes)]  # not np.array(range): that walks it number by number
    lines = np.meshgrid(*(np.arange(r.start, r.stop, r.step, dtype=np.int64) for r in ranges), indexing="ij")
    return [np.concatenate([np.zeros(grid.prefix, np.int64), line.ravel()]) for line in lines]


def _places(grid: Grid, origin: tuple[int, ...], steps: list[int]) -> np.ndarray:
    lines = zip(_coordinates(grid), origin, steps, strict=True)
    places = sum(((line - start) * step for line, start, step in lines), np.zeros(grid.tokens, np.int64))
    places[: grid.prefix] = 0
    return places


def _axes(
    grid: Grid, key_grid: Grid, ranges: Ranges, queries: tuple[Int32s, Int32s], keys: tuple[Int32s, Int32s]
) -> dict[str, Any]:
    """What content needs to know of its axes: coordinates, from where keys begin, and how far these lie apart."""
    at, key_at, numbers = [], [], []
    lines = zip(_coordinates(grid), _coordinates(key_grid), key_grid.origin, ranges, strict=True) if ranges else ()
    for line, key_line, start, (low, high) in lines:
        at.append((line - start).astype(np.int32))
        key_at.append((key_line - start).astype(np.int32))
        spans = (_span(at[-1], *queries, grid.prefix, 64), _span(key_at[-1], *keys, key_grid.prefix, 64))
        numbers.append((low, high, *spans, _span(key_at[-1], *keys, key_grid.prefix, key_grid.tokens) + 1))
    joined = (np.array(x, dtype=np.int32).reshape(-1) for x in (at, key_at, numbers))
    return dict(zip(("query_at", "key_at", "axis"), joined, strict=True), axes=len(ranges))


def _span(line: Int32s, tokens: Int32s, starts: Int32s, prefix: int, count: int) -> int:
    """How far apart coordinates lie among `count` tokens, at the most, that follow each other in a cell."""
    own, cell = line[tokens], np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    placed = tokens >= prefix  # prefix tokens, which lie nowhere, come first in their cells
    own, cell = own[placed], cell[placed]
    if not len(own):
        return 0
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    sizes = np.diff(first, append=len(own))
    whole = np.maximum.reduceat(own, first) - np.minimum.reduceat(own, first)
    found = int(whole[sizes <= count].max(initial=0))
    if (sizes > count).any():
        runs = np.lib.stride_tricks.sliding_window_view(own, count)
        inside = cell[: len(runs)] == cell[count - 1 :]
        found = max(found, int((runs.max(1) - runs.min(1))[inside].max(initial=0)))
    return found


def _ranks(causal: Causal, grid: Grid, key_grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Numbers that are ordered as `Causal` orders tokens, for queries and keys."""
    queries, keys = _coordinates(grid), _coordinates(key_grid)
    q, k = np.zeros(grid.tokens, np.int64), np.zeros(key_grid.tokens, np.int64)
    for axis in range(grid.axes) if causal.axis is None else (causal.axis,):
        both = np.concatenate([queries[axis], keys[axis]])
        low, size = (int(both.min()), int(both.max() - both.min()) + 1) if len(both) else (0, 1)
        q, k = q * size + queries[axis] - low, k * size + keys[axis] - low
    q[: grid.prefix] = k[: key_grid.prefix] = FIRST
    return q, k
