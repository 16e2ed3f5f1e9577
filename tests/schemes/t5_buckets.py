"""T5Buckets: near distances one by one, far ones by their logarithm, keys to the right in the second half."""

from __future__ import annotations

import math

from torch import Tensor

from locant.positions.buckets import T5Buckets
from schemes.scheme import HEADS, LINE, Place, Scheme

OF = T5Buckets
SCHEMES = (Scheme("t5-1d", LINE, lambda: T5Buckets(HEADS, buckets=8, max_distance=6)),)


def bias(position: T5Buckets, head: int, query: Place, key: Place) -> Tensor | float:
    return 0.0 if query is None or key is None else position.table[head, bucket(position, query[0] - key[0])]


def bucket(position: T5Buckets, offset: int) -> int:
    side = position.buckets // 2 if position.bidirectional else position.buckets
    exact, distance = side // 2, abs(offset)
    found = distance
    if distance >= exact:
        part = math.log(distance / exact) / math.log(position.max_distance / exact)
        found = min(side - 1, exact + int(part * (side - exact)))
    return found + side * (offset < 0)
