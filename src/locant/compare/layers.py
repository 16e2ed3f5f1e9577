"""The parts that schemes are tried in: the layer that all have, and the end that one has.

x ← x + attention(norm₁ x)     once per pass: same norm, same qkv, same projection
x ← x + MLP(norm₂ x)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

import locant.nn
from locant.compare.schemes import LayerSpec, Reach, Scheme, mask_of
from locant.grid import Grid
from locant.masks import Windows
from locant.nn.adapter import Adapter
from locant.nn.temporal import TemporalModel
from locant.positions.position import Position

MLP_RATIO = 2
ADAPTED = 0.5  # of the adapter beside the perceptron, as AIM has it
FRAMES = 3  # that an output of the convolutions over time depends on, as FIERY has it


class Layer(nn.Module):
    """A pre-norm layer whose attention runs once per pass; all passes share norm, qkv and projection (AIM).

    An adapted layer is `locant.nn.space_time.SpaceTimeBlock`: an adapter behind the pass over time, one that keeps its
    input behind the pass over space, one beside the perceptron.
    """

    def __init__(self, scheme: Scheme, shape: LayerSpec) -> None:
        super().__init__()
        passes = scheme.passes(shape)
        self.norm1 = nn.LayerNorm(shape.dim)
        self.attention = locant.nn.Attention(shape.dim, shape.heads)
        self.norm2 = nn.LayerNorm(shape.dim)
        self.mlp = nn.Sequential(
            nn.Linear(shape.dim, MLP_RATIO * shape.dim), nn.GELU(), nn.Linear(MLP_RATIO * shape.dim, shape.dim)
        )
        self.reaches: tuple[Reach, ...] = tuple(reach for reach, _ in passes)
        self.positions = nn.ModuleList([nn.Identity() if p is None else p for _, p in passes])
        skips = {"time": False, "space": True, "mlp": False} if scheme.adapted else {}
        with torch.random.fork_rng(devices=()):  # drawn anew with the rest: the tables of later layers stay as they are
            self.adapters = nn.ModuleDict({where: Adapter(shape.dim, skip=skip) for where, skip in skips.items()})

    def forward(self, x: Float[Tensor, "batch tokens dim"], grid: Grid) -> Float[Tensor, "batch tokens dim"]:
        for reach, position in self.passes():
            y = self.attention(self.norm1(x), grid=grid, position=position, mask=mask_of(reach, grid))
            x = x + (self.adapters[str(reach)](y) if self.adapters else y)
        y = self.norm2(x)
        x = x + self.mlp(y)
        return x + ADAPTED * self.adapters["mlp"](y) if self.adapters else x

    def passes(self) -> list[tuple[Reach, Position | None]]:
        return [
            (reach, p if isinstance(p, Position) else None)
            for reach, p in zip(self.reaches, self.positions, strict=True)
        ]

    def windowed(self) -> tuple[int, ...]:
        """The passes inside windows, which stay as wide on larger grids."""
        return tuple(index for index, reach in enumerate(self.reaches) if isinstance(reach, Windows))


class OverTime(nn.Module):
    """y = TemporalModel(squeeze(x)),  x [batch, T·H·W, dim] → y [batch, (T - rf + 1)·H·W, dim],  rf = min(T, 3).

    squeeze halves the channels, so that the convolutions add about as much as another layer would. The pyramid takes
    one mean over any map.

    Args:
        dim: channels of a token.
        shape: of the grid of clips that it is trained on.
    """

    def __init__(self, dim: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        frames, rows, columns = shape
        narrow, reach = max(4, 2 * (dim // 4)), min(frames, FRAMES)
        self.squeeze = nn.Linear(dim, narrow)
        first = dim if reach == 2 else narrow  # the last block widens again
        self.model = TemporalModel(
            narrow, reach, (rows, columns), start_out_channels=first, extra_in_channels=dim - first, pool="whole"
        )

    def forward(self, x: Float[Tensor, "batch tokens dim"], grid: Grid) -> Float[Tensor, "batch kept dim"]:
        y = self.squeeze(x).unflatten(1, grid.shape).movedim(-1, 2)
        return self.model(y).movedim(2, -1).flatten(1, 3)
