"""The parts that schemes are tried in: the layer that all have, and the end that one has.

x ← x + attention(norm₁ x)     once per pass: same norm, same qkv, same projection
x ← x + MLP(norm₂ x)
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

import locant.nn
from locant.compare.placement import Placement
from locant.grid import Grid
from locant.nn.adapter import Adapter
from locant.nn.temporal import TemporalModel

MLP_RATIO = 2
ADAPTED = 0.5  # of the adapter beside the perceptron, as AIM has it
FRAMES = 3  # that an output of the convolutions over time depends on, as FIERY has it


class Layer(nn.Module):
    """A pre-norm layer whose attention runs once per pass; all passes share norm, qkv and projection (AIM).

    An adapted layer is `locant.nn.space_time.SpaceTimeBlock`: an adapter behind the pass over time, one that keeps its
    input behind the pass over space, one beside the perceptron.
    """

    def __init__(self, position: Placement, index: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = locant.nn.Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, MLP_RATIO * dim), nn.GELU(), nn.Linear(MLP_RATIO * dim, dim))
        self.positions = position.layer(index, dim, heads, depth=depth)
        skips = {"time": False, "space": True, "mlp": False} if position.design.adapted else {}
        self.adapters = nn.ModuleDict({where: Adapter(dim, skip=skip) for where, skip in skips.items()})

    def forward(self, x: Float[Tensor, "batch tokens dim"], grid: Grid) -> Float[Tensor, "batch tokens dim"]:
        for reach, at in zip(self.positions.reaches, self.positions(grid), strict=True):
            y = self.attention(self.norm1(x), **at)
            x = x + (self.adapters[str(reach)](y) if self.adapters else y)
        y = self.norm2(x)
        x = x + self.mlp(y)
        return x + ADAPTED * self.adapters["mlp"](y) if self.adapters else x


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
