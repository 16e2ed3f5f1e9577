"""Everything is a place: for kernels on GPUs a bias, its masks and the ends of tiles are one vector per head.

bias(i, j) = vector[head, query[i] - key[j]], without a condition. The vector holds the table, -inf at the offsets that
an order forbids, and behind it stretches of one number each, as long as places reach apart: the bias of prefix queries,
of prefix keys, of both, and -inf. A prefix query lies so far up, and a prefix key so far down, that the difference
falls into its stretch; a key that nobody may see (padding, the empty end of a tile) lies lower still. All of it is
about 3.5 tables long, and all but the numbers is made once per layout.

Also here, from the same layout: tiles and the range of columns that they meet, pairs of tiles with equal offsets, and
the vector as 8-byte words, which hold the biases of two neighbouring tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from locant.cells import reach
from locant.layout import Int32s, Int64s, Layout, described, layout, read
from locant.masks import Structure

NOWHERE = -(2**40)  # of tokens without a place, where tiles are compared: no difference of places


@dataclass(frozen=True)
class Places:
    """Where each token reads, and how the vector is cut: [table | query prefix | key prefix | both | nothing]."""

    query: Int32s  # [queries]
    key: Int32s  # [keys]
    size: int  # of the vector
    key_prefix: int  # where the stretch starts, as the next two
    both: int
    nothing: int
    absent: int  # the place of a query that is not there
    hidden: int  # the place of a key that nobody sees
    forbidden: np.ndarray | None  # bool [offsets], by an order: prefix queries then see the prefix alone
    entries: int  # of the table

    @property
    def stretches(self) -> tuple[int, int, int, int, int]:
        """The lengths of the vector's parts."""
        behind = (self.key_prefix - self.entries, self.both - self.key_prefix, 1, self.size - self.nothing)
        return (self.entries, *behind)


def _needed(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The reach of the table; an order without a table needs one to forbid offsets in."""
    grid, key_grid, windows, causal, needed, _ = read(numbers)
    return needed or (reach(grid, key_grid, windows) if causal else ())


@lru_cache(maxsize=64)
def both_ways(numbers: tuple[int, ...]) -> tuple[Layout, Layout]:
    """The layout, and the one with queries and keys exchanged: there a prefix key, though in all cells, is one row."""
    grid, key_grid, windows, causal, *_ = read(numbers)
    structure, needed = Structure(causal=causal, windows=windows), _needed(numbers)
    return tuple(layout(described(*grids, structure, needed)) for grids in ((grid, key_grid), (key_grid, grid)))  # type: ignore[return-value]


@lru_cache(maxsize=64)
def places(numbers: tuple[int, ...]) -> Places:
    """The places of a described layout, remembered. Passes: from 0 up; the stretches; tokens without a place."""
    own, needed = both_ways(numbers)[0], _needed(numbers)
    entries = int(np.prod([2 * r + 1 for r in needed], dtype=np.int64))
    middle = (entries - 1) // 2
    # 1 places of both from 0 up; without a table every offset reads the same number
    query, key = own.query_place.astype(np.int64) - middle, own.key_place.astype(np.int64)
    if not needed:
        query, key = np.zeros_like(query), np.zeros_like(key)
    low = min(0, query.min(initial=0), key.min(initial=0))
    query, key = query - low, key - low
    span = int(max(query.max(initial=0), key.max(initial=0)))
    # 2 stretches of span + 1: `absent - key`, `query + middle + down`, and so on, never reach into another
    absent = entries + span
    key_prefix = absent + 1
    down = key_prefix - middle
    both = absent + down
    nothing = both + 1
    hidden = nothing - middle
    size = absent + hidden + 1
    # 3 the prefix
    query, key = query + middle, key.copy()
    query[: own.query_prefix], key[: own.key_prefix] = absent, -down
    if size >= 2**31:
        raise ValueError(
            f"the vector of biases needs {size:,} numbers per head, and places are 32-bit. Use a smaller grid, or "
            'kernel="sdpa".'
        )
    return Places(
        query.astype(np.int32), key.astype(np.int32), size, key_prefix, both, nothing, absent, -hidden,
        _forbidden(numbers, needed), entries,
    )  # fmt: skip


def _forbidden(numbers: tuple[int, ...], needed: tuple[int, ...]) -> np.ndarray | None:
    """Which offsets an order forbids: those before 0 on its axis, or the first of them that is not 0."""
    *_, causal, _, _ = read(numbers)
    if not causal:
        return None
    lines = np.meshgrid(*(np.arange(-r, r + 1) for r in needed), indexing="ij")
    out = np.zeros([2 * r + 1 for r in needed], dtype=bool)
    for order in causal:
        rank = np.zeros(out.shape, dtype=np.int64)
        for axis in range(len(needed)) if order.axis is None else (order.axis,):
            rank = rank * (2 * needed[axis] + 1) + lines[axis]
        out |= rank < 0
    return out.ravel()


def vector(
    stretches: tuple[int, ...], forbidden: Tensor | None, table: Tensor | None, rows: Tensor | None, like: Tensor
) -> Tensor:
    """[heads, *offsets] and [3, heads] → [heads, size] (one head without a table), float32 or float64.

    `stretches` and `forbidden` are those of the places; `like` has the device, and the dtype where there is no table.
    Gradients pass through.
    """
    if table is None:
        flat = torch.zeros(1, stretches[0], dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    else:
        flat = table.to(torch.promote_types(table.dtype, torch.float32)).flatten(1)
    heads, zero = flat.shape[0], flat.new_zeros(flat.shape[0])
    query, key, between = (zero, zero, zero) if rows is None else rows.to(flat.dtype).unbind(0)
    if forbidden is not None:
        flat, query = flat.masked_fill(forbidden, -torch.inf), torch.full_like(query, -torch.inf)
    filled = (query, key, between, torch.full_like(zero, -torch.inf))
    behind = [x[:, None].expand(heads, n) for x, n in zip(filled, stretches[1:], strict=True)]
    return torch.cat([flat, *behind], 1)


def split_gradient(own: Places, dvector: Tensor) -> tuple[Tensor, Tensor]:
    """[heads, size] → of the table, flat [heads, offsets], and of its rows [3, heads]: the transpose of `vector`."""
    ends = (own.entries, own.key_prefix, own.both, own.nothing)
    table = dvector[:, : own.entries]
    rows = [dvector[:, start:end].sum(1) for start, end in pairwise(ends)]
    return table, torch.stack(rows)


def seen(hidden: int, key: Tensor, valid: Tensor | None) -> Tensor:
    """Key places [1, keys], or [batch or 1, keys] where padding hides some."""
    return key[None] if valid is None else torch.where(valid, key, hidden)


def lives(own: Layout) -> np.ndarray | None:
    """bool [keys], false for keys that are in no cell and are never read; None where all are in one."""
    if not own.shared_keys:
        return None
    there = np.zeros(own.keys, dtype=bool)
    there[own.key] = True
    return None if there.all() else there


def tiles(own: Layout, rows: int, columns: int, *, key_major: bool = False) -> Int32s:
    """[tiles, 4]: first row, last row of its cell, first and last column that an order lets it meet.

    Rows are cut cell by cell; columns start at a multiple of `columns` from the start of the cell. With `key_major`
    the layout is the exchanged one.
    """
    found = []
    for cell in range(own.cells):
        first, last = own.query_start[cell : cell + 2].tolist()
        begin, end = own.key_start[cell : cell + 2].tolist()
        of_rows, of_columns = (
            _ranks_of(own.query_rank, own.query[first:last]),
            _ranks_of(own.key_rank, own.key[begin:end]),
        )
        for start in range(first, last, rows):
            low, high = begin, end
            if own.orders and low < high:
                met = of_rows[:, start - first : start - first + rows]
                seen = met.min(1)[:, None] <= of_columns if key_major else of_columns <= met.max(1)[:, None]
                there = np.flatnonzero(seen.all(0))
                low, high = (
                    (begin + there[0] // columns * columns, begin + there[-1] + 1) if len(there) else (begin,) * 2
                )
            found.append((start, last, low, high))
    return np.array(found, dtype=np.int32).reshape(-1, 4)


def _ranks_of(rank: Int64s, tokens: Int32s) -> Int64s:
    """[orders, tokens]"""
    return rank.reshape(-1, rank.shape[-1])[:, tokens] if rank.size else np.empty((0, len(tokens)), np.int64)


def alike(own: Layout, rows: int, columns: int, *, whole: bool) -> Int32s:
    """[groups, 8]: row, rows, column, columns (counted in a cell), cell, how many, step of rows, step of columns.

    The pairs of tiles in a group have the same offsets, number by number, so that gradients of the table may be summed
    over them before they leave. They are the cells of a kind, or, where the grid is not cut (`whole`), pairs of tiles
    along a diagonal of it. Every visible pair of tokens is in one pair of tiles.
    """
    if whole:
        return _diagonals(own, rows, columns)
    found = []
    for kind in np.unique(own.kind):
        cells = np.flatnonzero(own.kind == kind)
        first = int(cells[0])
        queries, keys = (int(x[first + 1] - x[first]) for x in (own.query_start, own.key_start))
        found += [
            (r, min(rows, queries - r), c, min(columns, keys - c), first, len(cells), 0, 0)
            for r in range(0, queries, rows)
            for c in range(0, keys, columns)
        ]
    return np.array(found, dtype=np.int32).reshape(-1, 8)


def _diagonals(own: Layout, rows: int, columns: int) -> Int32s:
    """Passes: tiles by the shape of their places; pairs by shapes and distance; runs of equal steps."""
    # 1 a tile is its places from the first on, and where that one lies
    sides, shapes = [], dict[bytes, int]()
    for tokens, place, prefix, size in (
        (own.query, own.query_place, own.query_prefix, rows), (own.key, own.key_place, own.key_prefix, columns),
    ):  # fmt: skip
        at = place[tokens].astype(np.int64)
        at[:prefix] = NOWHERE
        cuts = [(start, at[start : start + size]) for start in range(0, len(at), size)]
        sides.append(
            [(start, len(x), shapes.setdefault((x - x[0]).tobytes(), len(shapes)), int(x[0])) for start, x in cuts]
        )
    # 2 pairs in which an order lets something be seen
    least = [_ranks_of(own.key_rank, own.key[c : c + n]).min(1) for c, n, *_ in sides[1]]
    groups: dict[tuple[int, int, int], list[tuple[int, int, int, int]]] = {}
    for r, nr, shape, at_r in sides[0]:
        most = _ranks_of(own.query_rank, own.query[r : r + nr]).max(1)
        for (c, nc, other, at_c), low in zip(sides[1], least, strict=True):
            if (low <= most).all():
                groups.setdefault((shape, other, at_r - at_c), []).append((r, nr, c, nc))
    # 3 along a diagonal both starts move by the same steps
    found = []
    for same in groups.values():
        while same:
            r, _, c, _ = same[0]
            step = (same[1][0] - r, same[1][2] - c) if len(same) > 1 else (0, 0)
            count = 1
            while count < len(same) and same[count][::2] == (r + count * step[0], c + count * step[1]):
                count += 1
            found.append((*same[0], 0, count, *step))
            same = same[count:]
    return np.array(found, dtype=np.int32).reshape(-1, 8)


def cut_groups(groups: Int32s, longest: int) -> Int32s:
    """Groups of at most `longest` pairs of tiles each, so that programs are alike in length."""
    found = []
    for row, rows, column, columns, cell, count, down, right in groups.tolist():
        if (down, right) == (0, 0):  # cells of a kind are walked by number
            found += [
                (row, rows, column, columns, cell + n, min(longest, count - n), 0, 0) for n in range(0, count, longest)
            ]
        else:
            found += [
                (row + n * down, rows, column + n * right, columns, cell, min(longest, count - n), down, right)
                for n in range(0, count, longest)
            ]
    return np.array(found, dtype=np.int32).reshape(-1, 8)


def words(own: Places, place: Int32s, block: int, *, key_major: bool = False) -> tuple[Int32s, Int64s]:
    """Two neighbouring tokens as one: the places of pairs [tokens / 2], and where a word's second number lies [words].

    A word holds vector[x] and the vector at the second token of the pair. How far the two tokens of a pair lie apart
    takes few values (1 in a row, a jump at its end, another at the end of a plane, of the prefix, of the tokens): each
    has a stretch as long as the vector, and the place of a pair says which. Tokens are filled up to a multiple of
    `block`. The tokens are keys, or with `key_major` queries.
    """
    sign, filler = (1, own.absent) if key_major else (-1, own.hidden)
    filled = np.full(-(-len(place) // block) * block, filler, dtype=np.int64)
    filled[: len(place)] = place
    first, second = filled[::2], filled[1::2]
    jumps, which = np.unique(second - first, return_inverse=True)
    at = np.arange(own.size)
    others = [(at + sign * jump).clip(0, own.size - 1) for jump in jumps]
    return (first + sign * which * own.size).astype(np.int32), np.concatenate([np.empty(0, np.int64), *others])
