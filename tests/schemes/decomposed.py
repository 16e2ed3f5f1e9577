"""Decomposed: queries meet a vector per offset, axis by axis; nothing is scaled."""

from __future__ import annotations

from torch import Tensor

from locant.positions.decomposed import Decomposed
from schemes.scheme import CLIP, HEAD_DIM, HEADS, PLACED, PLANE, Place, Scheme

OF = Decomposed
SCHEMES = (
    Scheme("decomposed-2d-prefix", PLACED, lambda: Decomposed(PLANE, HEADS, HEAD_DIM)),
    Scheme("decomposed-3d", CLIP, lambda: Decomposed(CLIP, HEADS, HEAD_DIM)),
)


def term(position: Decomposed, head: int, q: Tensor, scale: float, query: Place, key: Place) -> Tensor | float:
    if query is None or key is None:
        return 0.0
    steps = [a - b + size - 1 for a, b, size in zip(query, key, position.grid.shape, strict=True)]
    return sum(q @ table[step] for table, step in zip(position.tables, steps, strict=True))
