"""Rotary: every pair of channels turned by its own angle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from locant.positions.rotary import Rotary
from schemes.scheme import CLIP, HEAD_DIM, LINE, PLACED, Place, Scheme

OF = Rotary
SCHEMES = (
    Scheme("rotary-1d", LINE, lambda: Rotary(HEAD_DIM)),
    Scheme("rotary-1d-halves", LINE, lambda: Rotary(HEAD_DIM, layout="halves")),
    Scheme("rotary-2d-prefix", PLACED, lambda: Rotary(HEAD_DIM, axes=2)),
    Scheme("rotary-3d", CLIP, lambda: Rotary(HEAD_DIM, axes=3, pairs=(1, 1, 2))),
)


def turned(position: Rotary, x: Tensor, place: Place) -> Tensor:
    if place is None:
        return x
    out, pair = list(x), 0
    for coordinate, count in zip(place, position.pairs, strict=True):
        for i in range(count):
            angle = coordinate / position.base ** (i / count)
            halves = position.layout == "halves"
            one, two = (pair, pair + len(x) // 2) if halves else (2 * pair, 2 * pair + 1)
            out[one] = x[one] * math.cos(angle) - x[two] * math.sin(angle)
            out[two] = x[one] * math.sin(angle) + x[two] * math.cos(angle)
            pair += 1
    return torch.stack(out)
