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

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from locant.grid import Grid
from locant.masks import Mask

Maps = Float[Tensor, "heads queries keys"]
Queries = Float[Tensor, "1 heads queries head_dim"]
MOST_TOKENS = 2500  # of a grid that is chosen for a scheme without being asked for: 25 MB per head
LARGEST = {1: (49,), 2: (15, 15), 3: (4, 9, 9)}  # cells of a picture of a table, by its axes
MEASURES = {
    "embed": "cosine between the vectors of query and key",
    "rotate": "mean cosine of the angles between query and key",
    "bias": "added to the logit",
    "content": "the most that a query of length 1 adds to the logit",
    "gate": "weight that position alone gives",
}


@runtime_checkable
class Scheme(Protocol):
    """A position (`positions/position.py`), of which nothing but its entrance is asked here."""

    @property
    def entrance(self) -> str: ...


def position_map(position: Scheme, grid: Grid, mask: Mask | None = None, q: Queries | None = None) -> Maps:
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


def one_query(
    position: Scheme, grid: Grid, query: tuple[int, ...], mask: Mask | None = None, q: Queries | None = None
) -> Float[Tensor, "heads *grid"]:
    """What position does to the keys of one query, the prefix left out, in units of `MEASURES`.

    Of a content scheme without `q` it is the length of the term: the most that a query of length 1 can add.
    """
    if position.entrance == "content" and q is None:
        return query_row(_term_lengths(position, grid, mask), grid, query)
    return query_row(position_map(position, grid, mask, q), grid, query)


def measure(position: Scheme, q: Queries | None = None) -> str:
    """What the numbers of `one_query` are."""
    return "added to the logit" if position.entrance == "content" and q is not None else MEASURES[position.entrance]


def has_sign(position: Scheme, q: Queries | None = None) -> bool:
    """Whether they may be negative."""
    return position.entrance != "gate" and (position.entrance != "content" or q is not None)


def example(position: Scheme, mask: Mask | None = None) -> tuple[Grid, Float[Tensor, "heads *grid"]] | None:
    """A grid that the scheme takes, and what the query in its middle meets; None where there is none to be had.

    Its own grid, or the part of it that a table of offsets has in the middle; else a picture, a line, a clip.
    """
    for grid in _grids(position):
        if grid.tokens <= MOST_TOKENS and all(grid.shape):
            try:
                return grid, one_query(position, grid, middle(grid), mask)
            except ValueError:
                continue
    return None


def middle(grid: Grid) -> tuple[int, ...]:
    """The indices of the cell in the middle."""
    return tuple(size // 2 for size in grid.shape)


def _grids(position: Any) -> Iterator[Grid]:
    own = getattr(position, "grid", None)
    if isinstance(own, Grid):
        yield Grid(*(min(size, most) for size, most in zip(own.shape, LARGEST[own.axes], strict=True)))
        yield own
    axes = getattr(position, "axes", None)  # of those that are made for a number of them
    yield from (grid for grid in (Grid(13, 13), Grid(33), Grid(4, 9, 9)) if axes in (None, grid.axes))


def _term_lengths(position: Any, grid: Grid, mask: Mask | None) -> Maps:
    """Terms are linear in the query but for a constant: of each unit vector, without it, and their Euclidean length."""
    size = position.head_dim
    at = next((x for x in position.parameters()), torch.ones(()))
    units = torch.eye(size, dtype=at.dtype, device=at.device)[:, None, None].expand(-1, position.heads, grid.tokens, -1)
    constant = position(torch.zeros_like(units[:1]), grid, mask=mask)
    square = torch.zeros_like(constant[0])
    for unit in units.split(1):  # one channel at a time: no more than one map is held
        square += (position(unit, grid, mask=mask) - constant)[0] ** 2
    return square.sqrt()


def _embedding_map(position: Any, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    return likeness(position(grid))


def _rotation_map(position: Any, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    ones = torch.ones(1, 1, grid.tokens, position.head_dim)  # every pair of channels alike: the mean over pairs
    turned = position(ones, grid)[0]
    return turned @ turned.transpose(-1, -2) / position.head_dim


def _bias_map(position: Any, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    maps: Maps = position(grid, mask=mask)
    return maps


def _content_map(position: Any, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    if q is None:
        raise ValueError(
            f"{type(position).__name__} acts through the queries, so its map needs q "
            f"[1, {position.heads}, {grid.tokens}, {position.head_dim}]; got None. Pass q=."
        )
    maps: Maps = position(q, grid, mask=mask, scale=q.shape[-1] ** -0.5)[0]
    return maps


def _gate_map(position: Any, grid: Grid, mask: Mask | None, q: Queries | None) -> Maps:
    return torch.softmax(position.values(grid, grid).dense(grid, grid), -1)


BY_ENTRANCE: dict[str, Callable[[Any, Grid, Mask | None, Queries | None], Maps]] = {
    "embed": _embedding_map,
    "rotate": _rotation_map,
    "bias": _bias_map,
    "content": _content_map,
    "gate": _gate_map,
}
