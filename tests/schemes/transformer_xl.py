"""TransformerXL: queries and v meet a sinusoid of the distance, and u meets the keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from locant.positions.transformer_xl import TransformerXL
from schemes.scheme import HEAD_DIM, HEADS, LINE, Place, Scheme

OF = TransformerXL
SCHEMES = (Scheme("xl-1d", LINE, lambda: TransformerXL(6, HEADS, HEAD_DIM, clamp=3)),)


def term(position: TransformerXL, head: int, q: Tensor, scale: float, query: Place, key: Place) -> Tensor | float:
    if query is None or key is None:
        return 0.0
    step = query[0] - key[0]
    if position.clamp is not None:
        step = max(-position.clamp, min(step, position.clamp))
    rates = [10000.0 ** (-2 * m / position.dim) for m in range(position.dim // 2)]
    wave = [math.sin(step * rate) for rate in rates] + [math.cos(step * rate) for rate in rates]
    told = position.r_net.weight @ torch.tensor(wave, dtype=q.dtype)
    return scale * ((q + position.biases()[1][head]) @ told.unflatten(0, (position.heads, -1))[head])


def met(position: TransformerXL, q: Tensor) -> Tensor:
    return q + position.biases()[0][None, :, None]
