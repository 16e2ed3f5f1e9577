"""Embeddings of positions that a model adds to its tokens: how alike one place is to all others."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.explain.data import Embedded, Waves
from locant.grid import Grid
from locant.positions.position import Embedding
from locant.positions.sinusoid import Sinusoid

# what libraries call a tensor of them: the last part of its name
NAMES = {"pos_embed", "position_embeddings", "position_embedding", "absolute_pos_embed", "positional_embedding",
         "pos_embedding", "position_embeddings.weight", "embed_positions.weight", "wpe.weight"}  # fmt: skip
LATTICE = 5  # places a side


def embeddings_of(model: nn.Module, grid: Grid) -> Iterator[Embedded]:
    """Those of a model whose first layer's tokens lie on `grid`; of a tensor that does not fit, its own line."""
    for name, module in model.named_modules():
        if isinstance(module, Embedding):
            try:
                rows = module(grid).detach()
            except ValueError:  # of other tokens than the first layer's
                continue
            rows = rows[0] if rows.ndim == 3 else rows
            yield embedded(name or type(module).__name__, rows, grid, waves_of(module, grid))
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if any(name == known or name.endswith(f".{known}") for known in NAMES) and parameter.is_floating_point():
            rows = parameter.detach().flatten(0, -2)
            own = grid_of(len(rows), grid)
            yield embedded(name, rows, own)


def grid_of(count: int, grid: Grid) -> Grid:
    """The grid of so many rows, where tokens lie on `grid`: that one, with at most four rows of a prefix; of pictures a
    square behind at most two tokens; or a line."""
    if count == grid.tokens:
        return grid
    if 0 <= count - grid.cells <= 4:
        return Grid(*grid.shape, prefix=count - grid.cells)
    for prefix in range(3) if grid.axes > 1 else ():
        side = math.isqrt(max(count - prefix, 0))
        if side > 3 and side * side + prefix == count:
            return Grid(side, side, prefix=prefix)
    return Grid(count)


def embedded(name: str, rows: Float[Tensor, "tokens dim"], grid: Grid, waves: Waves | None = None) -> Embedded:
    """Cosines of chosen places with all others: corners, middles of sides and between."""
    cells = rows[grid.prefix :].float()
    places = lattice(grid.shape)
    chosen = [int(np.ravel_multi_index(place, grid.shape)) for place in places]
    unit = torch.nn.functional.normalize(cells, dim=-1)
    similarity = (unit[chosen] @ unit.T).unflatten(-1, grid.shape)
    similarity = torch.where(similarity.isfinite(), similarity, torch.nan)
    return Embedded(
        name, grid.shape, places, similarity.cpu().numpy(), rows[: grid.prefix].float().norm(dim=-1).cpu().numpy(),
        cells.norm(dim=-1).unflatten(0, grid.shape).cpu().numpy(), waves,
    )  # fmt: skip


def lattice(shape: tuple[int, ...], side: int = LATTICE) -> tuple[tuple[int, ...], ...]:
    """Places on a grid, evenly from its first to its last on each axis."""
    lines = [sorted({round(x) for x in np.linspace(0, size - 1, min(size, side))}) for size in shape]
    return tuple(
        tuple(int(c) for c in place)
        for place in np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(shape))
    )


def waves_of(position: Embedding, grid: Grid) -> Waves | None:
    """The frequencies of a sinusoid, per axis."""
    if not isinstance(position, Sinusoid):
        return None
    found = position._frequencies(grid.axes)
    axes = tuple(axis for axis in range(grid.axes) for _ in found)
    return Waves("sinusoid", axes, np.array(found * grid.axes, np.float32))
