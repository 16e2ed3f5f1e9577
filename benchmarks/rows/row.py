"""What a row of the table is, and what every family of rows is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from locant.measuring.clock import Gate, Ratio, Times, time_in_turn
from locant.measuring.exactness import Truth
from locant.measuring.workload import Workload

SEED = 0


@dataclass(frozen=True)
class Row:
    """One figure, and what it was set to be."""

    family: str
    work: str
    against: str
    value: float
    low: float | None = None  # quartiles over rounds
    high: float | None = None
    rounds: int | None = None
    quiet: bool = True
    target: float | None = None
    most: bool = False  # the target is a limit from above
    unit: str = "×"
    ms: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.most else self.value >= self.target


@dataclass(frozen=True)
class Setting:
    """How a process measures."""

    seconds: float  # per set of contenders
    gate: Gate

    def times(self, calls: dict[str, Callable[[], object]]) -> Times:
        return time_in_turn(calls, self.seconds, self.gate)


def of_ratio(family: str, work: str, against: str, ratio: Ratio, times: Times, **more: Any) -> Row:
    ms = {name: round(1e3 * times.seconds(name), 4) for name in times.samples}
    return Row(family, work, against, ratio.median, ratio.low, ratio.high, ratio.rounds, ratio.quiet, ms=ms, **more)


def exact(work: Workload, *, train: bool, kernel: str = "native") -> None:
    """No speed for a kernel that is wrong."""
    red = [f for f in Truth(work, train=train).check(kernel) if f.red]
    if red:
        said = ", ".join(f"{f.what} is off by {f.error:.1e} (at most {f.limit:.1e})" for f in red)
        raise SystemExit(f"{kernel} is RED on {work.grid}: {said}. No speed is given.")


def near(what: str, x: Tensor, y: Tensor, most: float = 1e-4) -> None:
    """Two contenders compute the same, relative to the largest number."""
    error = float((x - y).abs().max() / y.abs().max())
    if not error <= most:
        raise SystemExit(f"{what}: the contenders differ by {error:.1e} of the largest number. No speed is given.")


def fresh() -> None:
    torch.manual_seed(SEED)
