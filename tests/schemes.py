"""Every scheme that attention takes, made small and wide awake: the rows of the tables `laws x schemes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from locant.grid import Grid
from locant.masks import Windows
from locant.positions.buckets import T5Buckets
from locant.positions.decomposed import Decomposed
from locant.positions.field import LogCPB
from locant.positions.gate import GatedPosition
from locant.positions.position import Bias, Position
from locant.positions.rotary import Rotary
from locant.positions.shaw import Shaw
from locant.positions.slopes import ALiBi
from locant.positions.table import RelativeTable
from locant.positions.transformer_xl import TransformerXL

Positions = Position | tuple[Position, ...] | None

HEADS, HEAD_DIM, VALUE_DIM = 2, 8, 5
GRIDS = {1: Grid(8), 2: Grid(4, 6), 3: Grid(2, 4, 3)}
WHOLE = {1: Windows(4), 2: Windows((2, 3)), 3: Windows((1, 2, 3))}  # they divide the grids above
RAGGED = {1: Windows(3, 1), 2: Windows((3, 4), (2, 1)), 3: Windows((2, 3, 2), (1, 1, 1))}  # they don't


@dataclass(frozen=True)
class Scheme:
    """A position scheme (or a tuple), how to build it, and the grid that it is tried on."""

    name: str
    grid: Grid
    build: Callable[[], Positions]
    blind: bool = False  # to mirrors: same output for the mirrored arrangement of tokens

    def __str__(self) -> str:
        return self.name

    def make(self, dtype: torch.dtype = torch.float64) -> Positions:
        """The same numbers every time, large enough to matter."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            position = self.build()
            for part in parts(position):
                part.double()
                for parameter in part.parameters():
                    nn.init.normal_(parameter, std=0.5)
                part.to(dtype)
        return position


def parts(position: Positions) -> tuple[Position, ...]:
    return () if position is None else position if isinstance(position, tuple) else (position,)


def learned(position: Positions) -> list[nn.Parameter]:
    return [parameter for part in parts(position) for parameter in part.parameters()]


LINE, PLANE, CLIP = GRIDS[1], GRIDS[2], GRIDS[3]
PLACED = Grid(4, 6, prefix=2)
NONE = Scheme("none", PLANE, lambda: None, blind=True)
SCHEMES = (
    NONE,
    Scheme("table-1d", LINE, lambda: RelativeTable(LINE, HEADS)),
    Scheme("table-2d", PLANE, lambda: RelativeTable(PLANE, HEADS)),
    Scheme("table-3d", CLIP, lambda: RelativeTable(CLIP, HEADS)),
    Scheme("table-2d-prefix", PLACED, lambda: RelativeTable(PLACED, HEADS)),
    Scheme("table-2d-under-prefix", PLACED, lambda: RelativeTable(PLANE, HEADS)),
    Scheme("alibi-1d", LINE, lambda: ALiBi(HEADS), blind=True),
    Scheme("alibi-2d-euclidean", PLANE, lambda: ALiBi(HEADS, distance="euclidean"), blind=True),
    Scheme("alibi-3d-manhattan", CLIP, lambda: ALiBi(HEADS, distance="manhattan"), blind=True),
    Scheme("t5-1d", LINE, lambda: T5Buckets(HEADS, buckets=8, max_distance=6)),
    Scheme("cpb-2d", PLANE, lambda: LogCPB(PLANE, HEADS, hidden=3)),
    Scheme("rotary-1d", LINE, lambda: Rotary(HEAD_DIM)),
    Scheme("rotary-1d-halves", LINE, lambda: Rotary(HEAD_DIM, layout="halves")),
    Scheme("rotary-2d-prefix", PLACED, lambda: Rotary(HEAD_DIM, axes=2)),
    Scheme("rotary-3d", CLIP, lambda: Rotary(HEAD_DIM, axes=3, pairs=(1, 1, 2))),
    Scheme("xl-1d", LINE, lambda: TransformerXL(6, HEADS, HEAD_DIM, clamp=3)),
    Scheme("decomposed-2d-prefix", PLACED, lambda: Decomposed(PLANE, HEADS, HEAD_DIM)),
    Scheme("decomposed-3d", CLIP, lambda: Decomposed(CLIP, HEADS, HEAD_DIM)),
    Scheme("gate-1d", LINE, lambda: GatedPosition(HEADS, axes=1)),
    Scheme("gate-2d", PLANE, lambda: GatedPosition(HEADS)),
    Scheme("gate-3d", CLIP, lambda: GatedPosition(HEADS, axes=3)),
    Scheme("gate-2d-prefix", PLACED, lambda: GatedPosition(HEADS)),
    Scheme(
        "table+alibi+rotary",
        PLANE,
        lambda: (RelativeTable(PLANE, HEADS), ALiBi(HEADS, distance="manhattan"), Rotary(HEAD_DIM, axes=2)),
    ),
    Scheme("table+rotary+shaw", LINE, lambda: (RelativeTable(LINE, HEADS), Rotary(HEAD_DIM), Shaw(HEADS, HEAD_DIM, 3))),
    Scheme("table+gate", PLANE, lambda: (RelativeTable(PLANE, HEADS), GatedPosition(HEADS))),
)
BIASES = tuple(s for s in SCHEMES if any(isinstance(p, Bias) for p in parts(s.build())))
UNPLACED = tuple(s for s in SCHEMES if s.grid.prefix)
PURE = tuple(s for s in SCHEMES if not s.grid.prefix)


def heads(
    grid: Grid,
    key_grid: Grid | None = None,
    *,
    batch: int = 2,
    kv_heads: int = HEADS,
    dtype: torch.dtype = torch.float64,
    seed: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v for these grids, the same every time."""
    draw = torch.Generator().manual_seed(seed)
    keys = (grid if key_grid is None else key_grid).tokens
    shapes = ((HEADS, grid.tokens, HEAD_DIM), (kv_heads, keys, HEAD_DIM), (kv_heads, keys, VALUE_DIM))
    q, k, v = (torch.randn(batch, *shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v
