"""LogCPB: Swin V2's perceptron of the offset, unit by unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from locant.positions.field import LogCPB
from schemes.scheme import HEADS, PLANE, Place, Scheme

OF = LogCPB
SCHEMES = (Scheme("cpb-2d", PLANE, lambda: LogCPB(PLANE, HEADS, hidden=3)),)


def bias(position: LogCPB, head: int, query: Place, key: Place) -> Tensor | float:
    if query is None or key is None:
        return 0.0
    coordinates = []
    for a, b, size in zip(query, key, position.pretrained.shape, strict=True):
        part = 8 * (a - b) / max(1, size - 1)
        coordinates.append(math.copysign(math.log2(abs(part) + 1) / 3, part))
    first, second = position.mlp.fc1, position.mlp.fc2
    total = second.weight[head, 0] * 0
    for unit in range(len(first.weight)):
        inside = first.bias[unit] + sum(w * c for w, c in zip(first.weight[unit], coordinates, strict=True))
        total = total + second.weight[head, unit] * torch.relu(inside)
    return 16 / (1 + torch.exp(-total))
