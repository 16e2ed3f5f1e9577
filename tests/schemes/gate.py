"""GatedPosition: ConViT's own map of probabilities, mixed in by a share per head."""

from __future__ import annotations

from torch import Tensor

from locant.positions.gate import GatedPosition
from schemes.scheme import CLIP, HEADS, LINE, PLACED, PLANE, Place, Scheme

OF = GatedPosition
SCHEMES = (
    Scheme("gate-1d", LINE, lambda: GatedPosition(HEADS, axes=1)),
    Scheme("gate-2d", PLANE, lambda: GatedPosition(HEADS)),
    Scheme("gate-3d", CLIP, lambda: GatedPosition(HEADS, axes=3)),
    Scheme("gate-2d-prefix", PLACED, lambda: GatedPosition(HEADS)),
)


def logit(position: GatedPosition, head: int, query: Place, key: Place) -> Tensor:
    if query is None or key is None:
        return position.spread[head] * 0
    steps = [a - b for a, b in zip(query, key, strict=True)]
    linear = sum(position.direction[head, axis] * step for axis, step in enumerate(steps))
    return linear + position.spread[head] * sum(step**2 for step in steps)
