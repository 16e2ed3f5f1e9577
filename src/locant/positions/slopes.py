"""A bias that falls with distance, at a fixed rate per head."""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locant.checks import check_types, check_whole
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Bias, Comparison

Distance = Literal["euclidean", "manhattan"]


@final
class ALiBi(Bias):
    """bias[head, i, j] = -slope[head] · |i - j|, nothing learned.

    On sequences |i - j| is the distance; on pictures and clips its name must be given: "euclidean", the root of the
    summed squares, or "manhattan", the sum over axes. The slopes are 2^(-8/n), 2^(-16/n), ... for n heads; if n is no
    power of two, those of the next smaller power and then every second one of the next larger.

    Without `Causal` the bias is the same for a key before and after the query: it is mirror-blind, it cannot tell left
    from right nor past from future. Tokens without a place have bias 0.

    Source: Press et al. (arXiv 2108.12409, section 3), which defines the causal 1-D case; the distance in more
    dimensions is that of 2-D ALiBi as in CROMA (arXiv 2311.00566).

    Args:
        heads: one slope each.
        distance: "euclidean" or "manhattan"; may be left out on sequences only, where both are the same.
    """

    compared = Comparison(
        "alibi", "ALiBi", "a fixed penalty for distance, the same on both sides: mirror-blind",
        build=lambda grid, dim, heads: ALiBi(heads, distance="euclidean"), direction=False,
    )  # fmt: skip

    @check_types
    def __init__(self, heads: int, *, distance: Distance | None = None) -> None:
        super().__init__()
        check_whole("ALiBi", "heads", heads)
        if distance not in (None, "euclidean", "manhattan"):
            raise ValueError(f'ALiBi needs distance="euclidean" or "manhattan"; got {distance!r}. Name one of them.')
        self.heads, self.distance = heads, distance
        self.register_buffer("slopes", torch.tensor(slopes(heads)), persistent=False)
        self.slopes: Tensor

    def at(self, offset: Int[Tensor, "*pairs axes"]) -> Float[Tensor, "heads *pairs"]:
        kind = torch.promote_types(self.slopes.dtype, torch.float32)  # a half would round distances past 256
        apart = offset.abs().to(kind)
        distance = apart.sum(-1) if self.distance != "euclidean" else (apart**2).sum(-1).sqrt()
        rate = torch.tensor(slopes(self.heads), dtype=kind, device=offset.device)
        return -rate.reshape(-1, *(1,) * distance.ndim) * distance

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        if grid.axes > 1 and self.distance is None:
            raise ValueError(
                f'ALiBi on {grid} needs to know which distance: "euclidean" or "manhattan"; got none. '
                'Write ALiBi(heads, distance="euclidean").'
            )

    def extra_repr(self) -> str:
        return f"heads={self.heads}, distance={self.distance!r}"


def slopes(heads: int) -> list[float]:
    """ALiBi's slope per head."""
    power = 2 ** math.floor(math.log2(heads)) if heads else 0

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8 * (i + 1) / n) for i in range(n)]

    return geometric(power) + (geometric(2 * power)[::2][: heads - power] if heads > power else [])
