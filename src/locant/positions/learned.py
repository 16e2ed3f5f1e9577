"""A learned vector per cell: the embedding of BERT and ViT, on the axes that are named.

    E[token] = table[row of the token's coordinate]           table  [cells of the axes, dim]
    E[i]     = prefix[i]  for the i-th prefix token            prefix [prefix, dim]

Rows are read by coordinate, so a slice of a grid reads its own rows and a pooled grid every second one. `axes` names
the axes that have rows of their own, row-major; tokens that differ along the others alone share a row: `axes=(1, 2)` on
a clip is ViT's spatial embedding for every frame, `axes=(0,)` the time embedding that AIM adds to it.

Where it differs: BERT and ViT store the class token's row as row 0 of one table; here it is a parameter of its own, so
that only cells are resized.

Sources: BERT, arXiv 1810.04805; ViT, arXiv 2010.11929, equation 1; AIM, arXiv 2302.03024.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.checks import check_types
from locant.dispatch import is_exporting, is_open
from locant.grid import AXES, Grid, check_grid
from locant.masks import Mask, check_mask
from locant.positions.position import Comparison, Embedding
from locant.resizing import Place, resize_embedding


class Learned(Embedding):
    """A trained vector per cell of `grid`, and per prefix token.

    Args:
        grid: where there are rows: its shape, origin, stride and prefix.
        dim: length of a vector.
        axes: the axes embedded, in rising order; None is all of them.
        init_std: standard deviation of the truncated normal that rows start from; 0 starts from zeros.

    Raises:
        ValueError: for axes that the grid does not have, a dim below 1 or a negative init_std.
    """

    compared = Comparison(
        "learned", "learned embedding", "a learned vector per place, added to the tokens (ViT, BERT)",
        build=lambda grid, dim, heads, start: Learned(grid, dim, init_std=start), starts=(0.02, 0.3),
    )  # fmt: skip

    @check_types
    def __init__(self, grid: Grid, dim: int, *, axes: tuple[int, ...] | None = None, init_std: float = 0.02) -> None:
        super().__init__()
        axes = tuple(range(grid.axes)) if axes is None else tuple(axes)
        if not axes or sorted(set(axes)) != list(axes) or not set(axes) <= set(range(grid.axes)):
            raise ValueError(
                f"Learned needs `axes` of {grid} in rising order, out of {tuple(range(grid.axes))} "
                f"({', '.join(AXES[grid.axes])}); got {axes}. Leave it out to embed them all."
            )
        if dim < 1 or init_std < 0:
            raise ValueError(
                f"Learned needs a `dim` of at least 1 and an `init_std` of at least 0; got dim={dim}, "
                f"init_std={init_std}. Give the width of the tokens; init_std=0.0 starts from zeros."
            )
        self.grid, self.dim, self.axes, self.init_std = grid, dim, axes, init_std
        self.table = nn.Parameter(torch.empty(math.prod(self._sizes(grid)), dim))
        self.prefix = nn.Parameter(torch.empty(grid.prefix, dim)) if grid.prefix else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the rows again."""
        for rows in self.parameters():
            if self.init_std:
                nn.init.trunc_normal_(rows, std=self.init_std)
            else:
                nn.init.zeros_(rows)

    def forward(self, grid: Grid | None = None, mask: Mask | None = None) -> Float[Tensor, "tokens dim"]:
        """The rows of the tokens of `grid`, by default the grid it was built on. The mask plays no part.

        Raises:
            ValueError: if a coordinate has no row, or the prefix is neither none nor the one it was built with.
        """
        grid = self.grid if grid is None else grid
        check_grid("Learned", "grid", grid)
        check_mask("Learned", "mask", mask)
        if grid.axes != self.grid.axes or grid.prefix not in (0, self.grid.prefix):
            raise ValueError(
                f"this Learned needs a grid of {self.grid.axes} axes with prefix={self.grid.prefix} or none, as "
                f"{self.grid} it was built on; got {grid}. Build it on a grid with that many axes and that prefix."
            )
        cut = self.table.unflatten(0, self._sizes(self.grid))
        for at, axis in enumerate(self.axes):
            taken = self._cut(axis, grid)
            if is_open(grid.shape[axis]):  # a copy: whether a view of it is whole would be a question about the symbol
                cut = cut.index_select(at, torch.arange(taken.start, taken.stop, device=cut.device))
            else:
                cut = cut[(slice(None),) * at + (taken,)]
        shared = [axis for axis in range(grid.axes) if axis not in self.axes]
        for axis in shared:
            cut = cut.unsqueeze(axis)
        rows = cut.expand(*grid.shape, self.dim).reshape(grid.cells, self.dim)
        return rows if self.prefix is None or not grid.prefix else torch.cat([self.prefix, rows])

    @check_types
    def places(self) -> dict[str, Place]:
        return {"table": Place("rows", tuple(self.grid.shape[axis] for axis in self.axes))}

    @check_types
    def resized(self, grid: Grid, *, method: str = "linear") -> Learned:
        """A new module for `grid` with the trained values carried over, by a method of `locant.resizing`.

        First and last row of an embedded axis go to first and last row; sizes of the other axes play no part.

        Raises:
            ValueError: if the number of axes or the prefix changes, or the method does not fit.
        """
        if grid.axes != self.grid.axes or grid.prefix != self.grid.prefix:
            raise ValueError(
                f"resized needs a grid of {self.grid.axes} axes with prefix={self.grid.prefix}, as {self.grid} has; "
                f"got {grid}. The prefix rows are carried over unchanged: give the same prefix."
            )
        new = Learned(grid, self.dim, axes=self.axes, init_std=self.init_std).to(self.table).train(self.training)
        values = {"table": resize_embedding(self.table.detach(), self._sizes(self.grid), self._sizes(grid), method)}
        if self.prefix is not None:
            values["prefix"] = self.prefix.detach()
        new.load_state_dict(values)
        for name, rows in new.named_parameters():
            rows.requires_grad_(self.get_parameter(name).requires_grad)
        return new

    def extra_repr(self) -> str:
        shared = "" if len(self.axes) == self.grid.axes else f", axes={self.axes}"
        return f"{self.grid}, dim={self.dim}{shared}"

    def _sizes(self, grid: Grid) -> tuple[int, ...]:
        return tuple(grid.shape[axis] for axis in self.axes)

    def _cut(self, axis: int, grid: Grid) -> slice:
        """Which rows of one axis `grid` asks for: its coordinates are a range, and so are the rows."""
        if is_open(grid.shape[axis]) and (is_exporting() or self._has_rows(axis, grid)):
            return self._open_cut(axis, grid)
        own, asked = self.grid.along(axis), grid.along(axis)
        if not asked:
            return slice(0, 0)
        if asked[0] not in own or asked[-1] not in own or (len(asked) > 1 and asked.step % own.step):
            raise ValueError(
                f"Learned has rows for the {AXES[grid.axes][axis]}s {_said(own)} of {self.grid}; {grid} asks for "
                f"{_said(asked)}. Use `resized(grid)` to carry the trained rows over to another grid."
            )
        return slice(own.index(asked[0]), own.index(asked[-1]) + 1, max(1, asked.step // own.step))

    def _begins_at_a_row(self, axis: int, grid: Grid) -> bool:
        first, step = self.grid.origin[axis], self.grid.stride[axis]
        return grid.stride[axis] == step and grid.origin[axis] >= first and (grid.origin[axis] - first) % step == 0

    def _has_rows(self, axis: int, grid: Grid) -> bool:
        last, own = (g.origin[axis] + g.shape[axis] * g.stride[axis] for g in (grid, self.grid))
        return self._begins_at_a_row(axis, grid) and last <= own

    def _open_cut(self, axis: int, grid: Grid) -> slice:
        """The same for a size that a graph leaves open: it has a bound, the rows that there are."""
        if not self._begins_at_a_row(axis, grid):
            raise ValueError(
                f"Learned on {self.grid} has no rows for places from {grid.origin[axis]} in steps of "
                f"{grid.stride[axis]}. Export with a grid that begins at one of its rows."
            )
        start = (grid.origin[axis] - self.grid.origin[axis]) // self.grid.stride[axis]
        torch._check(start + grid.shape[axis] <= self.grid.shape[axis])
        return slice(start, start + grid.shape[axis])


def _said(places: range) -> str:
    if not places:
        return "none"
    step = f" in steps of {places.step}" if places.step > 1 else ""
    return f"{places[0]} to {places[-1]}{step}"
