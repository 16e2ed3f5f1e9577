"""ALiBi: a penalty per step, at a rate per head."""

from __future__ import annotations

import math

from locant.positions.slopes import ALiBi
from schemes.scheme import CLIP, HEADS, LINE, PLANE, Place, Scheme

OF = ALiBi
SCHEMES = (
    Scheme("alibi-1d", LINE, lambda: ALiBi(HEADS), blind=True),
    Scheme("alibi-2d-euclidean", PLANE, lambda: ALiBi(HEADS, distance="euclidean"), blind=True),
    Scheme("alibi-3d-manhattan", CLIP, lambda: ALiBi(HEADS, distance="manhattan"), blind=True),
)


def bias(position: ALiBi, head: int, query: Place, key: Place) -> float:
    if query is None or key is None:
        return 0.0
    steps = [abs(a - b) for a, b in zip(query, key, strict=True)]
    distance = sum(steps) if position.distance == "manhattan" else math.hypot(*steps)
    return -slope(position.heads, head) * distance


def slope(heads: int, head: int) -> float:
    """The published recipe: 2^(-8(h+1)/n); beyond a power of two, every second one of the next larger power."""
    power = 1
    while power * 2 <= heads:
        power *= 2
    return 2 ** (-8 * (head + 1) / power) if head < power else 2 ** (-8 * (2 * (head - power) + 1) / (2 * power))
