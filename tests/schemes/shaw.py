"""Shaw: queries meet a vector per clipped offset."""

from __future__ import annotations

from torch import Tensor

from locant.positions.shaw import Shaw
from schemes.scheme import HEAD_DIM, HEADS, LINE, Place, Scheme

OF = Shaw
SCHEMES = (Scheme("shaw-1d", LINE, lambda: Shaw(HEADS, HEAD_DIM, 3)),)


def term(position: Shaw, head: int, q: Tensor, scale: float, query: Place, key: Place) -> Tensor | float:
    if query is None or key is None:
        return 0.0
    step = query[0] - key[0]
    far, own = position.distance, head if len(position.table) > 1 else 0
    row = min(step, far) if position.causal else max(-far, min(step, far)) + far
    extra = 0.0 if position.bias is None else position.bias[own, row]
    return scale * (q @ position.table[own, row] + extra)


def met(position: Shaw, q: Tensor) -> Tensor:
    return q if position.u is None else q + position.u[None, :, None]
