"""Timing on a machine that others use too: contenders in turn, samples only while it was quiet, ratios of one round.

A probe, a small matrix product on all threads, runs just before and just after each sample. The machine was quiet if
both took at most `SLACK` times the best probe of the same run. A sample that was not is taken again, `ATTEMPTS` times
in all. Contenders take turns within a round, and a round starts with another one each time; what is reported is the
median of the ratios of rounds, so that slow minutes divide out.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

SLACK = 1.2  # quiet probes spread by 6 %; a neighbour on one of two cores costs 40 % and more
ATTEMPTS = 4
PAUSE = 0.002  # seconds between two probes while waiting for a quiet moment
LONG = 0.15  # seconds: over longer calls something always happens, and only the probe before counts
SHORT = 0.0005  # seconds: shorter calls are repeated within a sample
ROUNDS = 5  # at least
QUIET = 3  # quiet samples, from which on they alone count
SIDE = 256  # of the probe's matrices: a third of a millisecond, within a level 2 cache


@dataclass(frozen=True)
class Sample:
    """Seconds of one call, and of the probes around it."""

    seconds: float
    before: float
    after: float


class Gate:
    """Says whether the machine is quiet, by the best probe so far."""

    def __init__(self, probe: Callable[[], float] | None = None, slack: float = SLACK) -> None:
        self._probe = product() if probe is None else probe
        self.slack = slack
        self.best = float("inf")
        self.probes = self.quiet_probes = 0

    def calibrate(self, probes: int = 200) -> None:
        """Find the best probe before anything is measured."""
        for _ in range(probes):
            self.probe()

    def probe(self) -> float:
        seconds = self._probe()
        self.best = min(self.best, seconds)
        self.probes += 1
        self.quiet_probes += self.quiet(seconds)
        return seconds

    def quiet(self, seconds: float) -> bool:
        return seconds <= self.slack * self.best

    def accepts(self, sample: Sample) -> bool:
        """By the best probe known now: a sample that passed early on may fall later."""
        return self.quiet(sample.before) and (sample.seconds > LONG or self.quiet(sample.after))

    def sample(self, call: Callable[[], object], repeats: int = 1, until: float = math.inf) -> Sample:
        """One sample, taken again while the machine is not quiet; the least disturbed of them if it never is.

        After the time `until` nothing is waited for and nothing is repeated.
        """
        samples: list[Sample] = []
        for _ in range(ATTEMPTS):
            before = self._wait(until)
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            seconds = (time.perf_counter() - start) / repeats
            samples.append(Sample(seconds, before, self.probe()))
            if self.accepts(samples[-1]) or time.perf_counter() > until:
                break
        return min(samples, key=lambda s: max(s.before, s.after))

    def _wait(self, until: float) -> float:
        """The probe of the first quiet moment."""
        seconds = self.probe()
        while not self.quiet(seconds) and time.perf_counter() < until:
            time.sleep(PAUSE)
            seconds = self.probe()
        return seconds


def product(device: str = "cpu") -> Callable[[], float]:
    """The probe: seconds of two small matrix products on a device, by the threads that torch has."""
    a, b = torch.rand(2, SIDE, SIDE, device=device).unbind(0)
    out = torch.empty(SIDE, SIDE, device=device)

    def probe() -> float:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        torch.mm(a, b, out=out)
        synchronize(device)
        return time.perf_counter() - start

    return probe


def synchronize(device: str) -> None:
    """Wait until a device has done what it was given; a CPU has when the call returns."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()


def call_and_wait(call: Callable[[], object], device: str) -> Callable[[], None]:
    """The call, and a wait until its device has done it."""

    def whole() -> None:
        call()
        synchronize(device)

    return whole


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """So many threads of torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Ratio:
    """How many times as long one takes as the other: the median over rounds, and quartiles."""

    median: float
    low: float
    high: float
    rounds: int
    quiet: bool  # every round that counts was quiet

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f}){'' if self.quiet else ' *'}"


@dataclass(frozen=True)
class Times:
    """Samples by contender, round by round."""

    samples: Mapping[str, Sequence[Sample]]
    gate: Gate

    def ratio(self, over: str, under: str) -> Ratio:
        """Time of `over` / time of `under`. Only rounds that were quiet for both count, if there are at least three."""
        pairs = list(zip(self.samples[over], self.samples[under], strict=True))
        quiet = [pair for pair in pairs if all(self.gate.accepts(s) for s in pair)]
        kept = quiet if len(quiet) >= QUIET else pairs
        low, median, high = quartiles([a.seconds / b.seconds for a, b in kept])
        return Ratio(median, low, high, len(kept), kept is quiet)

    def seconds(self, name: str) -> float:
        """The median of what counts."""
        return statistics.median(self.counted(name))

    def counted(self, name: str) -> list[float]:
        """The samples that count: the quiet ones if there are three, else all."""
        quiet = [s.seconds for s in self.samples[name] if self.gate.accepts(s)]
        return quiet if len(quiet) >= QUIET else [s.seconds for s in self.samples[name]]

    def least(self, name: str) -> float:
        """The shortest sample: of a time by itself, what comes closest to a quiet machine's."""
        return min(s.seconds for s in self.samples[name])

    def quiet(self, name: str) -> int:
        """How many samples were quiet."""
        return sum(map(self.gate.accepts, self.samples[name]))

    def fastest(self, *names: str) -> str:
        return min(names, key=self.seconds)


def time_in_turn(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    gate: Gate,
    rounds: int = ROUNDS,
    patience: float | None = None,
) -> Times:
    """Time all calls in turn until `seconds` are spent, waiting for quiet included, but `rounds` times at least.

    With `patience`, so many seconds may be spent waiting and repeating, though `seconds` are fewer: on a quiet machine
    it ends after `rounds`.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    names, samples = list(calls), {name: list[Sample]() for name in calls}
    start, turn = time.perf_counter(), 0
    end, until = start + seconds, start + (seconds if patience is None else patience)
    while turn < rounds or time.perf_counter() < end:
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            samples[name].append(gate.sample(calls[name], repeats[name], until))
        turn += 1
    return Times(samples, gate)


def _repeats(call: Callable[[], object]) -> int:
    """How often a call is made within a sample; it warms up meanwhile."""
    call()
    start = time.perf_counter()
    call()
    return max(1, round(SHORT / max(time.perf_counter() - start, 1e-7)))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high
