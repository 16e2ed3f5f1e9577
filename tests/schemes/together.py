"""Several schemes in one call: biases add up, and others act through entrances of their own."""

from __future__ import annotations

from locant.positions.gate import GatedPosition
from locant.positions.rotary import Rotary
from locant.positions.shaw import Shaw
from locant.positions.slopes import ALiBi
from locant.positions.table import RelativeTable
from schemes.scheme import HEAD_DIM, HEADS, LINE, PLANE, Scheme

SCHEMES = (
    Scheme(
        "table+alibi+rotary",
        PLANE,
        lambda: (RelativeTable(PLANE, HEADS), ALiBi(HEADS, distance="manhattan"), Rotary(HEAD_DIM, axes=2)),
    ),
    Scheme("table+rotary+shaw", LINE, lambda: (RelativeTable(LINE, HEADS), Rotary(HEAD_DIM), Shaw(HEADS, HEAD_DIM, 3))),
    Scheme("table+gate", PLANE, lambda: (RelativeTable(PLANE, HEADS), GatedPosition(HEADS))),
)
