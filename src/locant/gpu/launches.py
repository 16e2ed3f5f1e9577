"""How each kernel is launched, by chip, pass and channels: tiles of rows and columns, warps, stages.

Nothing is tuned on the machines of users, where it would take minutes and other tiles would give other bits. These
launches were chosen by a compiler's counts of registers and instructions, and were not measured on a device yet.
"""

from __future__ import annotations

from typing import NamedTuple


class Launch(NamedTuple):
    queries: int  # of a tile
    keys: int
    warps: int
    stages: int


CHANNELS = (32, 64, 128)  # a launch serves heads of at most so many
LAUNCHES: dict[tuple[str, str, int], Launch] = {
    ("sm80", "forward", 32): Launch(128, 64, 4, 2),
    ("sm80", "forward", 64): Launch(128, 64, 4, 2),
    ("sm80", "forward", 128): Launch(128, 64, 8, 2),
    ("sm80", "keys", 32): Launch(64, 128, 8, 2),
    ("sm80", "keys", 64): Launch(64, 128, 8, 2),
    ("sm80", "keys", 128): Launch(64, 64, 8, 2),
    ("sm80", "queries", 32): Launch(128, 64, 8, 2),
    ("sm80", "queries", 64): Launch(128, 64, 8, 2),
    ("sm80", "queries", 128): Launch(128, 64, 8, 2),
    ("sm80", "table", 32): Launch(128, 64, 8, 2),
    ("sm80", "table", 64): Launch(128, 64, 8, 2),
    ("sm80", "table", 128): Launch(64, 64, 8, 2),
    ("sm90", "forward", 32): Launch(128, 64, 4, 2),
    ("sm90", "forward", 64): Launch(128, 64, 4, 2),
    ("sm90", "forward", 128): Launch(128, 128, 8, 2),
    ("sm90", "keys", 32): Launch(64, 128, 8, 2),
    ("sm90", "keys", 64): Launch(64, 128, 8, 2),
    ("sm90", "keys", 128): Launch(64, 128, 8, 2),
    ("sm90", "queries", 32): Launch(128, 64, 8, 2),
    ("sm90", "queries", 64): Launch(128, 64, 8, 2),
    ("sm90", "queries", 128): Launch(128, 64, 8, 2),
    ("sm90", "table", 32): Launch(128, 64, 8, 2),
    ("sm90", "table", 64): Launch(128, 64, 8, 2),
    ("sm90", "table", 128): Launch(128, 64, 8, 2),
}
INTERPRETED = Launch(16, 16, 4, 2)
WINDOWS = (4, 2)  # warps and stages: one tile of 64 × 64, which 8 warps would compute twice


def launch(chip: str, kernel: str, channels: int) -> Launch:
    """Newer chips than the newest here are launched as that one; "" is the interpreter."""
    if not chip:
        return INTERPRETED
    rows = sorted({name for name, *_ in LAUNCHES}, key=lambda name: int(name[2:]))
    own = [name for name in rows if int(name[2:]) <= int(chip[2:])][-1]
    return LAUNCHES[own, kernel, next(size for size in CHANNELS if channels <= size)]
