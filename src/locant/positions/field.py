"""A bias that a small perceptron reads off the offset: continuous, so that it fits windows of any size."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from locant.cells import check_reach
from locant.checks import check_number, check_types, check_whole
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Bias


@final
class LogCPB(Bias):
    """bias[head, i, j] = 16 · sigmoid(mlp(c(i - j)))_head,  c_axis = sign(o) · log2(1 + 8 |o| / (size - 1)) / log2(8).

    mlp: fc1 [hidden, axes] with bias, ReLU, fc2 [heads, hidden] without. o is query - key in cells; size is that of
    the pretrained window, so that a larger window goes beyond ±1 on a logarithmic scale. Each offset is computed once,
    whatever the number of windows. Tokens without a place have bias 0.

    Where it differs: the paper does not say what a window of size 1 is divided by; its code divides 0 by 0. Here the
    one offset there has the coordinate 0. Where a window is wider than the map, published code shrinks it and
    measures offsets by the shrunken one, which changes every bias; here the grid of the scheme stays the measure.
    Source: Swin V2 (arXiv 2111.09883, section 3.3, eqs. 3 and 4), `cpb_mlp`, `relative_coords_table`.

    Args:
        grid: the window: how far it reaches.
        heads: one output each.
        hidden: of the perceptron.
        pretrained: the window that it was trained for, if another; None is `grid`.
        init_std: of the truncated normal that the weights start from.

    Raises:
        ValueError: for grids without cells, or of different numbers of axes.
    """

    @check_types
    def __init__(
        self, grid: Grid, heads: int, *, hidden: int = 512, pretrained: Grid | None = None, init_std: float = 0.02
    ) -> None:
        super().__init__()
        check_whole("LogCPB", "heads", heads)
        check_whole("LogCPB", "hidden", hidden, advice="Swin v2 uses 512.")
        check_number("LogCPB", "init_std", init_std, least=0.0)
        pretrained = grid if pretrained is None else pretrained
        if 0 in (*grid.shape, *pretrained.shape) or pretrained.axes != grid.axes:
            raise ValueError(
                "LogCPB needs a grid with at least one cell, and a `pretrained` one of as many axes; "
                f"got {grid} and {pretrained}. Give the sizes of the two windows."
            )
        self.grid, self.heads, self.hidden, self.pretrained = grid, heads, hidden, pretrained
        fc1, fc2 = nn.Linear(grid.axes, hidden), nn.Linear(hidden, heads, bias=False)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, relu=nn.ReLU(), fc2=fc2))
        nn.init.zeros_(fc1.bias)
        for layer in (fc1, fc2):
            nn.init.trunc_normal_(layer.weight, std=init_std)

    def at(self, offset: Int[Tensor, "*pairs axes"]) -> Float[Tensor, "heads *pairs"]:
        # a perceptron whose linears were quantised has no parameters, and takes float32
        kind = next((p.dtype for p in self.mlp.parameters() if p.is_floating_point()), torch.float32)
        widths = [max(size - 1, 1) for size in self.pretrained.shape]
        line = offset.double() * 8 / torch.tensor(widths, dtype=torch.float64, device=offset.device)
        line = line.sign() * torch.log2(line.abs() + 1) / math.log2(8)
        return 16 * torch.sigmoid(self.mlp(line.to(kind)).movedim(-1, 0))

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        check_reach("LogCPB", self.grid, grid, reach, mask)

    @check_types
    def resized(self, grid: Grid) -> LogCPB:
        """A new module with the same weights that reaches over `grid`; offsets are still measured by `pretrained`."""
        new = LogCPB(grid, self.heads, hidden=self.hidden, pretrained=self.pretrained).to(next(self.mlp.parameters()))
        new.load_state_dict(self.state_dict())
        return new

    def extra_repr(self) -> str:
        pretrained = "" if self.pretrained == self.grid else f", pretrained={self.pretrained}"
        return f"{self.grid}, heads={self.heads}{pretrained}"
