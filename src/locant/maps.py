"""What a scheme does to each query and key, as arrays: for looking at it and for tests. Attention never calls this.

| entrance | map [heads, queries, keys] |
| --- | --- |
| embed | the cosine between the vectors of query and key, one map for all heads |
| rotate | the mean cosine of the angles between the turns of query and key, one map for all heads |
| bias | what is added to the logit |
| content | what is added to the logit of these queries |
| gate | the share of attention that position alone gives |

Pages, pictures and explanations draw from here, so that a scheme looks the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from locant.grid import Grid
from locant.masks import Mask
from locant.positions.position import Bias, Content, Embedding, Entrance, Gate, Position, Rotation

Maps = Float[Tensor, "heads queries keys"]
Queries = Float[Tensor, "1 heads queries head_dim"]


def position_map(position: Position, grid: Grid, mask: Mask | None = None, q: Queries | None = None) -> Maps:
    """The map of one scheme over all tokens of `grid`, the prefix first.

    Args:
        position: any scheme.
        grid: of the queries and the keys.
        mask: bounds how far a bias or a content scheme must reach. Pairs that it forbids are not left out.
        q: queries of one sample, which a content scheme acts through; the others do without.

    Raises:
        ValueError: for a content scheme without `q`.
    """
    return BY_ENTRANCE[position.entrance](position, grid, mask, q)


def query_row(matrix: Float[Tensor, "*heads queries keys"], grid: Grid, query: tuple[int, ...]) -> Tensor:
    """What the query at these coordinates meets: `[*heads, *grid.shape]`, the prefix left out."""
    place = 0
    for size, at in zip(grid.shape, query, strict=True):
        place = place * size + at
    return matrix[..., grid.prefix + place, grid.prefix :].unflatten(-1, grid.shape)


def likeness(vectors: Float[Tensor, "tokens dim"]) -> Float[Tensor, "1 tokens tokens"]:
    """The cosine between every two vectors, in float32 at least."""
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    unit = torch.nn.functional.normalize(wide, dim=-1)
    return (unit @ unit.T)[None]


def _embedding_map(position: Embedding, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    return likeness(position(grid))


def _rotation_map(position: Rotation, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    ones = torch.ones(1, 1, grid.tokens, position.head_dim)  # every pair of channels alike: the mean over pairs
    turned = position(ones, grid)[0]
    return turned @ turned.transpose(-1, -2) / position.head_dim


def _bias_map(position: Bias, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    maps: Maps = position(grid, mask=mask)
    return maps


def _content_map(position: Content, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    if q is None:
        raise ValueError(
            f"{type(position).__name__} acts through the queries, so its map needs q "
            f"[1, {position.heads}, {grid.tokens}, {position.head_dim}]; got None. Pass q=."
        )
    maps: Maps = position(q, grid, mask=mask, scale=q.shape[-1] ** -0.5)[0]
    return maps


def _gate_map(position: Gate, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    return torch.softmax(position.values(grid, grid).dense(grid, grid), -1)


BY_ENTRANCE: dict[Entrance, Callable[[Any, Grid, Mask | None, Queries | None], Maps]] = {
    "embed": _embedding_map,
    "rotate": _rotation_map,
    "bias": _bias_map,
    "content": _content_map,
    "gate": _gate_map,
}
