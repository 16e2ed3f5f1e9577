"""A map from position alone, mixed with the content's by a gate per head (ConViT)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import nn

from locant.checks import check_number, check_types, check_whole
from locant.forms import SeparableValues
from locant.grid import Grid
from locant.positions.position import Comparison, Gate


@final
class GatedPosition(Gate):
    """A = (1 - g) · softmax_j(content) + g · softmax_j(R),  g = sigmoid(gate) per head.

    R[head, i, j] = Σ_axis direction[head, axis] · o_axis + spread[head] · |o|², with o = i - j (query - key). R has no
    term that mixes two axes, so its softmax is a product of one small softmax per axis: cost O(N·(H + W)), once for
    the whole batch. It works on any rectangle, and under `Windows`. The published code takes sqrt(N) for both sides
    and expands R to batch × N × N.

    With `local_init`, head h starts looking at the offset Δ (key - query) of a k × k neighbourhood,
    k = ⌊heads^(1/axes)⌋, the first axis changing fastest: R = -α·(|j - i - Δ|² - |Δ|²), so spread = -α and
    direction = -2αΔ. Heads past k^axes keep a random start scaled by α. The gate starts at 1, a share of
    sigmoid(1) = 0.7311.

    The published `pos_proj.weight [heads, 3]` acts on (dx, dy, dx² + dy²) of key - query: direction is
    -pos_proj.weight[:, (1, 0)], spread is pos_proj.weight[:, 2]; its bias cancels in the softmax, so that it has no
    counterpart.
    Source: ConViT (arXiv 2103.10697, eqs. 5 to 8).

    Args:
        heads: one direction, spread and gate each.
        axes: dimension of the grids that it will meet.
        locality: α, how narrow the local start is.
        local_init: whether to start local; else all of direction and spread start as a normal of `init_std`.
        init_std: of the random start.
    """

    compared = Comparison(
        "gated", "gated position", "a map from position alone, mixed with the content's by a gate (ConViT)",
        build=lambda grid, dim, heads, start: GatedPosition(heads, axes=grid.axes, locality=start), starts=(1.0, 2.0),
    )  # fmt: skip

    @check_types
    def __init__(
        self, heads: int, *, axes: int = 2, locality: float = 1.0, local_init: bool = True, init_std: float = 0.02
    ) -> None:
        super().__init__()
        check_whole("GatedPosition", "heads", heads)
        check_whole("GatedPosition", "axes", axes, most=3, advice="A sequence has 1, an image 2, a clip 3.")
        check_number("GatedPosition", "init_std", init_std, least=0.0)
        self.heads, self.axes = heads, axes
        self.direction = nn.Parameter(torch.empty(heads, axes))
        self.spread = nn.Parameter(torch.empty(heads))
        self.gate = nn.Parameter(torch.ones(heads))
        nn.init.trunc_normal_(self.direction, std=init_std)
        nn.init.trunc_normal_(self.spread, std=init_std)
        if local_init:
            self._look_nearby(locality)

    def _look_nearby(self, locality: float) -> None:
        side = math.floor(self.heads ** (1 / self.axes) + 1e-9)
        centre = (side - 1) / 2 if side % 2 == 0 else side // 2
        with torch.no_grad():
            self.direction.mul_(locality)
            self.spread.mul_(locality)
            for head in range(side**self.axes):
                offset = [head // side**axis % side - centre for axis in range(self.axes)]
                self.direction[head] = torch.tensor([-2 * locality * o for o in offset])
                self.spread[head] = -locality

    def check(self, grid: Grid) -> None:
        if grid.axes != self.axes:
            raise ValueError(
                f"GatedPosition was built for grids of {self.axes} axes; got {grid}. Build it with axes={grid.axes}."
            )

    def values(self, grid: Grid, key_grid: Grid) -> SeparableValues:
        for own in (grid, key_grid):
            self.check(own)
        kind = torch.promote_types(self.spread.dtype, torch.float32)  # bfloat16 is exact only to 256
        direction, spread = self.direction.to(kind), self.spread.to(kind)[:, None, None]
        logits = []
        for axis in range(self.axes):
            q, k = (g.line(axis, kind, spread.device) for g in (grid, key_grid))
            offset = q[:, None] - k
            logits.append(direction[:, axis, None, None] * offset + spread * offset**2)
        return SeparableValues(tuple(logits), torch.sigmoid(self.gate.to(kind)))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, axes={self.axes}"
