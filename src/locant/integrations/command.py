"""`locant accelerate NAME`: a named model, accelerated, checked, and held against what else one could pick."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from locant.integrations import contest, named
from locant.integrations.contest import RIVALS, Contest
from locant.integrations.report import Report
from locant.measuring import machine

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Found:
    """What was replaced, what came of it, and the machine that it was measured on."""

    report: Report
    contest: Contest
    machine: dict[str, object]

    @property
    def wrong(self) -> bool:
        """Whether the accelerated model's numbers are no rounding of the right ones."""
        return bool(self.contest.wrong)

    def __str__(self) -> str:
        about = "{processor}, {threads} threads, torch {torch}".format(**self.machine)
        return (
            f"{self.report}\n\n{self.contest}\n\n{about}. Ratios are of times taken in turn; * where it was not quiet."
        )

    def json(self) -> str:
        found: dict[str, Any] = {"report": self.report.as_dict(), "contest": self.contest.as_dict()}
        return json.dumps({**found, "machine": self.machine}, indent=1)


def run(
    name: str,
    *,
    weights: Path | None = None,
    batch: int | None = None,
    size: int | tuple[int, ...] | None = None,
    dtype: str | None = None,
    train: bool = False,
    against: tuple[str, ...] | None = None,
    threads: int | None = None,
    seconds: float | None = None,
    tell: Callable[[str], None] | None = None,
) -> Found:
    """Build the model, accelerate it, and hold the contest.

    Raises:
        ValueError: for names, sizes, dtypes and rivals that there are not.
    """
    # 1 what was asked for
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype needs one of {', '.join(DTYPES)}; got {dtype!r}. Name one.")
    rivals = tuple(word for word in (RIVALS if against is None else against) if word != "none")
    unknown = ", ".join(word for word in rivals if word not in RIVALS)
    if unknown:
        raise ValueError(f"--against needs names out of {', '.join(RIVALS)}, or none; got {unknown}. Name some.")
    for flag, value in (("--batch", batch), ("--threads", threads), ("--seconds", seconds)):
        if value is not None and not 0 < value < 2**31:  # a NaN is refused, and seconds without an end
            raise ValueError(f"{flag} needs more than 0; got {value}. Leave it out for its default.")
    if threads is not None:
        torch.set_num_threads(threads)
    # 2 the model, and what comes of it
    model = named.build(name, batch=batch or 1, size=size, weights=weights)
    found, report = contest.hold(
        model, against=rivals, dtype=DTYPES[dtype or "float32"], training=train, seconds=seconds or 10.0,
        tell=tell or (lambda _: None),
    )  # fmt: skip
    return Found(report, found, machine.description())
