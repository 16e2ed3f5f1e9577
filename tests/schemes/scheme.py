"""What the cases of all schemes are made of: sizes, grids, and a scheme that is built the same every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from locant.grid import Grid
from locant.masks import Windows
from locant.positions.position import Position

Positions = Position | tuple[Position, ...] | None
Place = tuple[int, ...] | None  # the coordinate of a token; a prefix token has none

HEADS, HEAD_DIM, VALUE_DIM = 2, 8, 5
GRIDS = {1: Grid(8), 2: Grid(4, 6), 3: Grid(2, 4, 3)}
WHOLE = {1: Windows(4), 2: Windows((2, 3)), 3: Windows((1, 2, 3))}  # they divide the grids above
RAGGED = {1: Windows(3, 1), 2: Windows((3, 4), (2, 1)), 3: Windows((2, 3, 2), (1, 1, 1))}  # they don't
LINE, PLANE, CLIP = GRIDS[1], GRIDS[2], GRIDS[3]
PLACED = Grid(4, 6, prefix=2)


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
