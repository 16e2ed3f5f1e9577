"""The problems of benchmarks/gpu.py: what has to be exact, what the goals are about, what costs are fitted to.

Everything is drawn on the device that `DEVICE` names; `DRY` makes all of it tiny, for Triton's interpreter.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from locant import Causal, Grid, Padding, RelativeTable, Segments, Windows
from locant.cells import reach
from locant.frames import frames
from locant.layout import described
from locant.masks import Mask, Structure
from locant.measuring.workload import Workload

DRY = "--dry" in sys.argv
DEVICE = "cpu" if DRY else "cuda"
Make = Callable[[torch.dtype], Workload]


def workload(
    grid: Grid, batch: int, heads: int, head_dim: int, mask: Mask | None = None, key_grid: Grid | None = None,
    kv_heads: int | None = None, dtype: torch.dtype = torch.bfloat16, table: bool = True,
) -> Workload:  # fmt: skip
    """A problem on the device, its table learned in float32."""
    key_grid = grid if key_grid is None else key_grid
    needed = reach(grid, key_grid, Structure.of(mask).windows)
    position = RelativeTable(Grid(*(n + 1 for n in needed), prefix=grid.prefix), heads, init_std=0.5) if table else None
    with torch.device(DEVICE):
        work = Workload.draw(batch, heads, head_dim, grid, key_grid=key_grid, kv_heads=kv_heads, mask=mask, dtype=dtype)
    return replace(
        work, position=None if position is None else position.to(DEVICE),
        mask=None if mask is None else mask.to(torch.device(DEVICE)),
    )  # fmt: skip


def route(work: Workload) -> str:
    """Which kernels a problem runs in: "windows", of at most 64 tokens and alone, or "general" ones."""
    structure = Structure.of(work.mask)
    alone = not (structure.padding or structure.segments) and work.q.shape[1] == work.k.shape[1]
    numbers = described(work.grid, work.key_grid, structure, reach(work.grid, work.key_grid, structure.windows))
    return "windows" if alone and frames(numbers) is not None else "general"


def lengths(batch: int, tokens: int) -> Padding:
    return Padding.from_lengths(torch.linspace(tokens // 2, tokens, batch).long(), tokens)


def families() -> dict[str, Make]:
    """What has to be exact: global, prefix, order, padding, windows, grouped heads, slices; ragged to all tiles."""

    def of(grid: Grid, *sizes: int, **options: Any) -> Make:
        return lambda dtype: workload(grid, *sizes, dtype=dtype, **options)

    if DRY:
        return {
            "line with a prefix": of(Grid(17, prefix=1), 1, 2, 16),
            "plane": of(Grid(3, 7), 2, 1, 16),
            "causal": of(Grid(18), 1, 1, 16, mask=Causal()),
            "padding": of(Grid(18), 2, 1, 16, mask=lengths(2, 18)),
            "windows of 9": of(Grid(5, 6), 1, 2, 16, mask=Windows((3, 3), (1, 1))),
            "windows beyond 64": of(Grid(9, 8), 1, 1, 16, mask=Windows((9, 8))),
            "grouped heads": of(Grid(10), 1, 2, 16, kv_heads=1),
            "a slice of the keys": of(Grid(20)[15:], 1, 1, 16, key_grid=Grid(20), mask=Causal()),
        }
    return {
        "line with a prefix": of(Grid(196, prefix=1), 2, 2, 64),
        "line of 785": of(Grid(785), 2, 2, 64),
        "plane": of(Grid(28, 28), 2, 2, 64),
        "clip": of(Grid(3, 12, 15), 2, 2, 32),
        "causal": of(Grid(197), 2, 2, 64, mask=Causal()),
        "padding": of(Grid(197), 2, 2, 64, mask=lengths(2, 197)),
        "segments": of(Grid(197), 2, 2, 64, mask=Segments(torch.arange(394).view(2, 197) // 60)),
        "windows of 49": of(Grid(28, 28), 2, 2, 32, mask=Windows((7, 7), (3, 3))),
        "windows of 64, ragged": of(Grid(21, 30), 2, 2, 64, mask=Windows((8, 8), (4, 4))),
        "windows beyond 64": of(Grid(24, 36), 1, 2, 32, mask=Windows((12, 12), (6, 6))),
        "windows of a clip": of(Grid(16, 14, 14), 1, 2, 32, mask=Windows((8, 7, 7), (0, 3, 3))),
        "windows with a prefix": of(Grid(14, 17, prefix=1), 2, 2, 32, mask=Windows((7, 7), (1, 2))),
        "grouped heads": of(Grid(200), 2, 4, 64, kv_heads=2),
        "a slice of the keys": of(Grid(300)[250:], 2, 2, 64, key_grid=Grid(300), mask=Causal()),
        "pooled keys": of(Grid(28, 28), 2, 2, 32, key_grid=Grid(28, 28).pooled(2)),
        "wide heads": of(Grid(333), 1, 2, 128),
    }


def dtypes() -> tuple[torch.dtype, ...]:
    """What is tried of a family; all three on a device."""
    if DRY:
        return torch.float32, torch.bfloat16
    return torch.bfloat16, torch.float16, torch.float32


def small(count: int, seed: int = 0) -> Iterator[tuple[str, Workload]]:
    """Random small problems by a name of what they are compiled for: few, for each one costs seconds."""
    dice = random.Random(seed)
    for _ in range(count):
        axes, most = dice.choice((1, 2, 3)), 20 if DRY else 150
        side = {1: most, 2: int(most**0.5), 3: int(most ** (1 / 3))}[axes]
        grid = Grid(*(dice.randint(1, side) for _ in range(axes)), prefix=dice.choice((0, 0, 1, 3)))
        batch, group = dice.randint(1, 3), dice.choice((1, 2))
        kind = dice.choice(("none", "causal", "padding", "segments", "windows", "windows, padding"))
        windows = Windows(
            tuple(dice.randint(1, n + 1) for n in grid.shape), tuple(dice.randint(0, 3) for _ in grid.shape)
        )
        ids = torch.randint(0, 3, (batch, grid.tokens))
        mask = {
            "none": None, "causal": Causal(), "padding": lengths(batch, grid.tokens), "segments": Segments(ids),
            "windows": windows, "windows, padding": windows & lengths(batch, grid.tokens),
        }[kind]  # fmt: skip
        dtype = dice.choice((torch.float32, torch.bfloat16) if DRY else (torch.bfloat16, torch.float16))
        work = workload(grid, batch, group, 16 if DRY else 32, mask, kv_heads=1, dtype=dtype, table=dice.random() < 0.8)
        yield f"{kind}, {group} to a key head, table {work.position is not None}, {str(dtype)[6:]}", work


def shapes() -> dict[str, Callable[[], Workload]]:
    """The problems of the goals."""

    def of(grid: Grid, *sizes: int, **options: Any) -> Callable[[], Workload]:
        return lambda: workload(grid, *sizes, **options)

    if DRY:
        return {
            "14²": of(Grid(4, 4), 1, 1, 16), "28²": of(Grid(4, 5), 1, 1, 16),
            "7×7 windows": of(Grid(4, 4), 1, 1, 16, mask=Windows((2, 2))),
            "7×7 windows, shifted": of(Grid(4, 4), 1, 1, 16, mask=Windows((2, 2), (1, 1))),
        }  # fmt: skip
    return {
        "14²": of(Grid(14, 14), 128, 12, 64), "28²": of(Grid(28, 28), 32, 12, 64), "64²": of(Grid(64, 64), 4, 12, 64),
        "7×7 windows": of(Grid(56, 56), 64, 3, 32, mask=Windows((7, 7))),
        "7×7 windows, shifted": of(Grid(56, 56), 64, 3, 32, mask=Windows((7, 7), (3, 3))),
        "7×7 windows, stage 2": of(Grid(28, 28), 64, 6, 32, mask=Windows((7, 7), (3, 3))),
        "8×8 windows": of(Grid(64, 64), 64, 4, 32, mask=Windows((8, 8), (4, 4))),
        "12×12 windows": of(Grid(96, 96), 16, 4, 32, mask=Windows((12, 12), (6, 6))),
        "8×7×7 windows": of(Grid(16, 56, 56), 8, 3, 32, mask=Windows((8, 7, 7), (0, 3, 3))),
    }  # fmt: skip


def fitted() -> tuple[Make, ...]:
    """What constants are fitted to."""
    if DRY:
        return (_of(Grid(4, 4), None, 1, 1, 16), _of(Grid(6), Causal(), 1, 1, 16))
    grids = (
        (Grid(14, 14), None), (Grid(28, 28), None), (Grid(64, 64), None), (Grid(197), None), (Grid(1024), Causal()),
        (Grid(56, 56), Windows((7, 7))), (Grid(64, 64), Windows((8, 8), (4, 4))), (Grid(48, 48), Windows((12, 12))),
        (Grid(16, 28, 28), Windows((8, 7, 7))), (Grid(49), None),
    )  # fmt: skip
    return tuple(_of(*of, *sizes) for of in grids for sizes in ((1, 4, 32), (8, 12, 64), (16, 3, 32)))


def checked() -> dict[str, Make]:
    """Problems that nothing was fitted to."""
    if DRY:
        return {"5 × 3": _of(Grid(5, 3), None, 1, 1, 16)}
    return {
        "16², batch 16": _of(Grid(16, 16), None, 16, 12, 64), "24², batch 4": _of(Grid(24, 24), None, 4, 8, 64),
        "32², batch 2": _of(Grid(32, 32), None, 2, 6, 64), "48², batch 1": _of(Grid(48, 48), None, 1, 12, 64),
        "2,048 tokens, causal": _of(Grid(2048), Causal(), 1, 8, 64), "512 tokens": _of(Grid(512), None, 8, 8, 64),
        "28², windows of 7": _of(Grid(28, 28), Windows((7, 7), (3, 3)), 32, 6, 32),
        "14², windows of 7": _of(Grid(14, 14), Windows((7, 7), (3, 3)), 64, 12, 32),
        "32², windows of 8": _of(Grid(32, 32), Windows((8, 8), (4, 4)), 8, 8, 32),
        "24², windows of 12": _of(Grid(24, 24), Windows((12, 12), (6, 6)), 16, 8, 32),
        "8 × 14², windows in time": _of(Grid(8, 14, 14), Windows((8, 1, 1)), 2, 12, 64),
        "100 tokens, batch 1": _of(Grid(100), None, 1, 4, 32),
    }  # fmt: skip


def _of(grid: Grid, mask: Mask | None, *sizes: int) -> Make:
    return lambda dtype: workload(grid, *sizes, mask=mask, dtype=dtype)
