"""The clock of `locant bench`, and what is said of its ratios. Probes and samples are made up: no time is looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from locant.bench.result import Entry, Mode
from locant.measuring import clock
from locant.measuring.clock import Gate, Sample, Times

QUIET, LOUD = 1.0, 2.0  # what a probe takes


def gate(*probes: float) -> Gate:
    """A gate whose probes are these, the last one for ever."""
    series = itertools.chain(probes, itertools.repeat(probes[-1]))
    return Gate(lambda: next(series))


def sample(seconds: float, before: float = QUIET, after: float = QUIET) -> Sample:
    return Sample(seconds, before, after)


def times(**samples: list[Sample]) -> Times:
    settled = gate(QUIET)
    settled.calibrate(1)
    return Times(samples, settled)


def test_quiet_is_measured_by_the_best_probe_of_the_run() -> None:
    found = gate(LOUD, LOUD, QUIET)
    found.calibrate(2)
    early = sample(1e-3, LOUD, LOUD)
    assert found.accepts(early)  # as far as is known
    found.probe()
    assert not found.accepts(early)
    assert found.accepts(sample(1e-3, clock.SLACK * QUIET, QUIET))
    assert not found.accepts(sample(1e-3, QUIET, 1.01 * clock.SLACK * QUIET))
    assert (found.probes, found.quiet_probes) == (3, 3)


def test_over_a_long_call_only_the_probe_before_counts() -> None:
    found = gate(QUIET)
    found.calibrate(1)
    assert found.accepts(sample(2 * clock.LONG, QUIET, LOUD))
    assert not found.accepts(sample(2 * clock.LONG, LOUD, QUIET))


def test_a_disturbed_sample_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "PAUSE", 0.0)
    calls: list[int] = []
    #            settle | waits, then quiet | disturbed after | quiet before, quiet after
    found = gate(QUIET, LOUD, LOUD, QUIET, LOUD, QUIET, QUIET)
    found.calibrate(1)
    taken = found.sample(lambda: calls.append(1))
    assert (len(calls), taken.before, taken.after) == (2, QUIET, QUIET)


def test_a_machine_that_is_never_quiet_gives_the_least_disturbed_sample() -> None:
    calls: list[int] = []
    found = gate(QUIET, QUIET, 3.0, QUIET, 2.5, QUIET, 2.0, QUIET, 4.0)
    found.calibrate(1)
    taken = found.sample(lambda: calls.append(1))
    assert (len(calls), taken.after) == (clock.ATTEMPTS, 2.0)
    assert not found.accepts(taken)


def test_after_its_time_nothing_is_waited_for() -> None:
    calls: list[int] = []
    found = gate(QUIET, LOUD)
    found.calibrate(1)
    assert found.sample(lambda: calls.append(1), until=0.0).before == LOUD
    assert len(calls) == 1


def test_only_quiet_rounds_count() -> None:
    a = [sample(2.0), sample(4.0), sample(6.0), sample(90.0, before=LOUD)]
    ratio = times(a=a, b=[sample(1.0)] * 4).ratio("a", "b")
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds, ratio.quiet) == (4.0, 3.0, 5.0, 3, True)
    assert str(ratio) == "4.00 (3.00 to 5.00)"


def test_without_three_quiet_rounds_all_count_and_bear_a_star() -> None:
    a = [sample(2.0), sample(4.0), sample(90.0, before=LOUD), sample(8.0, before=LOUD)]
    found = times(a=a, b=[sample(2.0)] * 4)
    ratio = found.ratio("a", "b")
    assert (ratio.median, ratio.rounds, ratio.quiet) == (3.0, 4, False)
    assert str(ratio).endswith(" *")
    assert (found.quiet("a"), found.least("a"), found.fastest("a", "b")) == (2, 2.0, "b")


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "SHORT", 0.0)
    said: list[str] = []
    calls: dict[str, Callable[[], object]] = {name: (lambda name=name: said.append(name)) for name in "abc"}
    found = clock.time_in_turn(calls, 0.0, gate(QUIET), rounds=3)
    assert "".join(said) == "aabbcc" + "abc" + "bca" + "cab"  # each warms up twice
    assert {name: len(s) for name, s in found.samples.items()} == {"a": 3, "b": 3, "c": 3}


def mode(native: list[float], other: list[float]) -> Mode:
    found = times(native=[sample(t) for t in native], sdpa=[sample(t) for t in other])
    entries = tuple(Entry(name, (), samples, None) for name, samples in found.samples.items())
    return Mode("forward", "native", entries, found, 1.0)


def verdicts() -> Iterator[tuple[Mode, str]]:
    yield mode([1.0] * 4, [2.0] * 4), "the plan picked the fastest here, native; sdpa took 2.00 times as long"
    yield mode([2.0] * 4, [1.0] * 4), "the plan picked native, and sdpa was faster here: 0.50 of its time"
    yield mode([1.0] * 4, [0.8, 0.9, 1.1, 1.2]), "native, and sdpa are about equally fast here"


@pytest.mark.parametrize(("found", "said"), tuple(verdicts()))
def test_the_verdict(found: Mode, said: str) -> None:
    assert said in found.verdict()
