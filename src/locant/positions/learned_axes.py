"""A learned vector per row and per column: DETR's learned positions, an axial embedding.

With N = dim / axes channels per axis, and a table [size of the axis, N] for each:

    E[token] = [column[c] | row[r] | time[t]]       the last axis first: DETR's [x, y] on images, [x, y, t] on clips

So an image of H × W cells costs (H + W) N numbers, where `Learned` costs H W dim. Rows are read by coordinate, as in
`Learned`: a slice of a grid reads its own. Every cell has its vector, whether it is padding or not.

Where it differs: the published tables have 50 entries, and a larger map is an index error; here sizes are those of the
grid, and `resized` carries trained entries over. DETR's sine vectors go the other way round: rows first.

Sources: DETR (arXiv 2005.12872), facebookresearch/detr `models/position_encoding.py`; joined axes of this kind:
Reformer (arXiv 2001.04451), "axial positional embeddings".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.checks import check_types
from locant.dispatch import is_exporting, is_open
from locant.grid import AXES, Grid, check_grid
from locant.masks import Mask, check_mask
from locant.positions.position import Embedding
from locant.resizing import Place, resize_embedding


class LearnedAxial(Embedding):
    """A trained vector per coordinate of each axis, joined; zeros for the prefix.

    The tables are the parameters `row` and `column`, with `time` on clips, and `token` on a sequence.

    Args:
        grid: which coordinates have entries; `Grid(50, 50)` in DETR.
        dim: length of a joined vector, a multiple of the number of axes.

    Raises:
        ValueError: if dim does not divide over the axes.
    """

    @check_types
    def __init__(self, grid: Grid, dim: int) -> None:
        super().__init__()
        per_axis, rest = divmod(dim, grid.axes)
        if rest or per_axis < 1:
            near = f"{per_axis * grid.axes} or {(per_axis + 1) * grid.axes}" if per_axis else f"{grid.axes}"
            raise ValueError(
                f"LearnedAxial shares `dim` out to {grid.axes} axes, so it needs a multiple of {grid.axes}; got {dim}. "
                f"Use {near}: dim counts all channels, DETR's num_pos_feats those of one axis."
            )
        self.grid, self.dim = grid, dim
        for name, size in zip(AXES[grid.axes], grid.shape, strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(size, per_axis)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the entries again, uniform from 0 to 1 as published."""
        for table in self.parameters():
            nn.init.uniform_(table)

    def forward(self, grid: Grid | None = None, mask: Mask | None = None) -> Float[Tensor, "tokens dim"]:
        """The vectors of the tokens of `grid`, by default the grid it was built on. The mask plays no part.

        Raises:
            ValueError: if a coordinate has no entry, or the grid has another number of axes.
        """
        grid = self.grid if grid is None else grid
        check_grid("LearnedAxial", "grid", grid)
        check_mask("LearnedAxial", "mask", mask)
        if grid.axes != self.grid.axes:
            raise ValueError(
                f"this LearnedAxial needs a grid of {self.grid.axes} axes, as {self.grid} it was built on; got {grid}. "
                "Build it on a grid with that many axes."
            )
        parts = []
        for axis in reversed(range(grid.axes)):
            entries = self._entries(axis, grid)
            around = [grid.shape[axis] if a == axis else 1 for a in range(grid.axes)]
            parts.append(entries.reshape(*around, entries.shape[1]).expand(*grid.shape, entries.shape[1]))
        rows = torch.cat(parts, dim=-1).reshape(grid.cells, self.dim)
        return nn.functional.pad(rows, (0, 0, grid.prefix, 0))

    @check_types
    def places(self) -> dict[str, Place]:
        return {name: Place("rows", (size,)) for name, size in zip(AXES[self.grid.axes], self.grid.shape, strict=True)}

    @check_types
    def resized(self, grid: Grid, *, method: str = "linear") -> LearnedAxial:
        """A new module for `grid`, each axis carried over by itself by a method of `locant.resizing`.

        Raises:
            ValueError: if the number of axes changes, or the method is unknown or none for embeddings.
        """
        if grid.axes != self.grid.axes:
            raise ValueError(
                f"resized needs a grid of {self.grid.axes} axes, as {self.grid} has; got {grid}. "
                "Each axis is carried over by itself: give a size for each."
            )
        new = LearnedAxial(grid, self.dim).train(self.training)
        sizes = zip(AXES[grid.axes], self.grid.shape, grid.shape, strict=True)
        for name, before, after in sizes:
            old = self.get_parameter(name)
            entries = resize_embedding(old.detach(), (before,), (after,), method)
            new.register_parameter(name, nn.Parameter(entries, requires_grad=old.requires_grad))
        return new

    def extra_repr(self) -> str:
        return f"{self.grid}, dim={self.dim}"

    def _entries(self, axis: int, grid: Grid) -> Float[Tensor, "size per_axis"]:
        """The part of one table that `grid` asks for: its coordinates are a range, and so are the entries."""
        places = [(g.origin[axis], g.stride[axis]) for g in (grid, self.grid)]
        there = places[0] == places[1] and grid.shape[axis] <= self.grid.shape[axis]
        if is_open(grid.shape[axis]) and (is_exporting() or there):
            return self._open_entries(axis, grid)
        name, own, asked = AXES[grid.axes][axis], self.grid.along(axis), grid.along(axis)
        lacking = [place for place in asked if place not in own]
        if lacking:
            raise ValueError(
                f"LearnedAxial has {len(own)} entries for the {name}s of {self.grid}; {grid} asks for {len(asked)}, "
                f"and {name} {lacking[0]} has none. Use `resized(grid)` to carry the trained entries over."
            )
        first = own.index(asked[0]) if asked else 0
        return self.get_parameter(name)[first :: max(1, asked.step // own.step)][: len(asked)]

    def _open_entries(self, axis: int, grid: Grid) -> Float[Tensor, "size per_axis"]:
        """The same for a size that a graph leaves open: it has a bound, the entries that there are."""
        place, own = (grid.origin[axis], grid.stride[axis]), (self.grid.origin[axis], self.grid.stride[axis])
        if place != own:
            raise ValueError(
                f"LearnedAxial on {self.grid} is exported for grids that begin where it does, in its steps; got origin "
                f"and stride {place} for {own}. Export with such a grid."
            )
        torch._check(grid.shape[axis] <= self.grid.shape[axis])
        return self.get_parameter(AXES[grid.axes][axis])[: grid.shape[axis]]
