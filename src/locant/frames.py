"""Small windows as frames: boxes of slots that all have the same offsets, so that one tile of biases serves them all.

A frame is a cell of the shifted plane, its tokens at the slots (coordinate - shift) mod size of each axis. The first
and the last cell of an axis are smaller where a shift cuts them, and share a frame if their slots are disjoint; a
number per slot, its region, keeps them apart. Frames whose slots are filled alike are of one kind: what may be seen in
them is the same, and is part of the tile of biases.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from locant.cells import reach
from locant.grid import Grid
from locant.layout import Int32s, Int64s, read
from locant.masks import Windows

WIDEST = 64  # slots: one tile of products


@dataclass(frozen=True)
class Frames:
    """-1 is a slot without a token. `width` is a power of two, at least 16; slots beyond the window's are empty."""

    width: int
    tokens: Int32s  # [frames, width], kind by kind
    region: Int32s  # [kinds, width]: slots of one region see each other
    start: Int32s  # [kinds + 1]: the frames of each kind
    place: Int32s  # [width]: the table's number of two slots is place - place + its middle
    pairs: Int64s  # [offsets, most]: the pairs of slots of each offset, filled up by width², which stands for none


@lru_cache(maxsize=64)
def frames(numbers: tuple[int, ...]) -> Frames | None:
    """The frames of a described layout; None where it is none of windows alone, or a window has too many slots.

    Passes: cells of each axis; frames by kind; places and the pairs of each offset.
    """
    grid, key_grid, windows, causal, needed, _ = read(numbers)
    if grid != key_grid or len(windows) != 1 or causal or grid.prefix or not grid.cells:
        return None
    # 1 the slots that are ever filled, and the frames, of each axis
    lines = [_of_axis(grid, windows[0], axis) for axis in range(grid.axes)]
    slots = [len(slot) for slot, _ in lines]
    if np.prod(slots) > WIDEST:
        return None
    # 2 frames are products over axes
    groups: dict[tuple[int, ...], list[np.ndarray]] = {}
    for parts in itertools.product(*(found for _, found in lines)):
        token, region = _product(grid, parts)
        groups.setdefault(tuple(region.tolist()), []).append(token)
    width = max(16, 1 << (int(np.prod(slots)) - 1).bit_length())
    # 3 places, and which pairs share an offset
    needed = needed or reach(grid, key_grid, windows)
    place = np.zeros([1] * grid.axes, dtype=np.int64)
    for axis, (slot, _) in enumerate(lines):
        along = slot * int(np.prod([2 * r + 1 for r in needed[axis + 1 :]]))
        place = place + along.reshape([-1 if a == axis else 1 for a in range(grid.axes)])
    regions = np.array(list(groups), dtype=np.int64)
    return Frames(
        width, _filled(np.concatenate([np.stack(x) for x in groups.values()]), width), _filled(regions, width),
        np.cumsum([0, *map(len, groups.values())]).astype(np.int32), _filled(place.reshape(1, -1), width, 0)[0],
        _pairs_by_offset(place.ravel(), regions, needed, width),
    )  # fmt: skip


def _of_axis(grid: Grid, windows: Windows, axis: int) -> tuple[Int64s, list[Int64s]]:
    """The slots of one axis, and its frames [slots, 2]: the index (-1: none) and the region of each slot."""
    size, shift = windows.size[axis], windows.shift[axis]
    slot = np.array([(c - shift) % size for c in grid.along(axis)])
    used, at = np.unique(slot, return_inverse=True)
    cell = np.array([(c - shift) // size for c in grid.along(axis)])
    cells = [np.flatnonzero(cell == number) for number in np.unique(cell)]
    members = [[(index, 0) for index in found] for found in cells]
    if len(members) > 1 and not {*at[cells[0]]} & {*at[cells[-1]]}:
        members[-1] += [(index, 1) for index, _ in members.pop(0)]
    found = []
    for frame in members:
        made = np.full((len(used), 2), -1, dtype=np.int64)
        made[:, 1] = 0
        for index, region in frame:
            made[at[index]] = index, region
        found.append(made)
    return used, found


def _product(grid: Grid, parts: tuple[Int64s, ...]) -> tuple[Int64s, Int64s]:
    """Token and region of every slot, flat, of one frame per axis."""
    token, region, there = (np.zeros([1] * len(parts), dtype=np.int64) for _ in range(3))
    for axis, part in enumerate(parts):
        shape = [-1 if a == axis else 1 for a in range(len(parts))]
        index, side = (part[:, n].reshape(shape) for n in range(2))
        token, region, there = token * grid.shape[axis] + index, 2 * region + side, there | (index < 0)
    return tuple(np.where(there, -1, x).ravel() for x in (token, region))  # type: ignore[return-value]


def _filled(x: np.ndarray, width: int, value: int = -1) -> Int32s:
    return np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=value).astype(np.int32)


def _pairs_by_offset(place: Int64s, regions: Int64s, needed: tuple[int, ...], width: int) -> Int64s:
    entries = int(np.prod([2 * r + 1 for r in needed]))
    meet = np.zeros((len(place), len(place)), dtype=bool)
    for region in regions:
        meet |= (region[:, None] == region) & (region >= 0)
    found: list[list[int]] = [[] for _ in range(entries)]
    for i, j in np.argwhere(meet):
        found[place[i] - place[j] + entries // 2].append(i * width + j)
    most = max(map(len, found))
    return np.array([[*x, *[width * width] * (most - len(x))] for x in found], dtype=np.int64)
