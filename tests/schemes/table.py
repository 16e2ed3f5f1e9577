"""RelativeTable: a number per head and offset, and rows for tokens without a place."""

from __future__ import annotations

from torch import Tensor

from locant.positions.table import RelativeTable
from schemes.scheme import CLIP, HEADS, LINE, PLACED, PLANE, Place, Scheme

OF = RelativeTable
SCHEMES = (
    Scheme("table-1d", LINE, lambda: RelativeTable(LINE, HEADS)),
    Scheme("table-2d", PLANE, lambda: RelativeTable(PLANE, HEADS)),
    Scheme("table-3d", CLIP, lambda: RelativeTable(CLIP, HEADS)),
    Scheme("table-2d-prefix", PLACED, lambda: RelativeTable(PLACED, HEADS)),
    Scheme("table-2d-under-prefix", PLACED, lambda: RelativeTable(PLANE, HEADS)),
)


def bias(position: RelativeTable, head: int, query: Place, key: Place) -> Tensor | float:
    if query is None or key is None:
        rows = {(True, False): "query_prefix", (False, True): "key_prefix", (True, True): "both"}
        row = getattr(position, rows[query is None, key is None])
        return 0.0 if row is None else row[head]
    centre = [size - 1 for size in position.grid.shape]
    return position.table[(head, *(a - b + c for a, b, c in zip(query, key, centre, strict=True)))]
