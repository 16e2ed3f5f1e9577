"""What a scheme costs: behind the gate, on all threads and on one, and marked where the machine was busy."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from results import make_results

from locant.compare import measure, report, settings
from locant.compare.opening import open_tasks, settle
from locant.compare.result import Result
from locant.measuring import clock


def costs(monkeypatch: pytest.MonkeyPatch, probes: list[float]) -> dict[str, Any]:
    """What is measured of two schemes on the digits while probes take these seconds, over and over."""

    def probe(device: str) -> Any:
        taken = iter(probes * 100_000)
        return lambda: next(taken)

    monkeypatch.setattr(measure, "product", probe)
    monkeypatch.setattr(measure, "PATIENCE", 0.0)
    monkeypatch.setattr(measure, "MOST_TOKENS", 64)
    chosen = settings.resolve({"task": "images", "dim": 8, "depth": 1, "heads": 2, "batch": 4}, None)
    tasks = open_tasks(chosen)
    recipe = settle(chosen, tasks).recipes["images"]
    return measure.measure("images", tasks["images"], recipe, ("none", "relative"), "cpu")


def test_times_on_a_quiet_machine_are_marked_so(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    found = costs(monkeypatch, [1.0])
    assert torch.get_num_threads() == threads
    for cost in found.values():
        assert cost["threads"] == threads
        for times in (cost, cost["one_thread"]):
            for what in ("forward_ms", "step_ms"):
                taken = times[what]
                assert taken["quiet"]
                assert 0 < taken["low"] <= taken["median"] <= taken["high"]
        assert [row["tokens"] for row in cost["growth"]] == [16, 64]
        assert all(row["quiet"] for row in cost["growth"])


def test_times_on_a_busy_machine_are_marked_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second probe takes twice as long as the best: no sample lies between two quiet ones."""
    found = costs(monkeypatch, [1.0, 2.0])
    for cost in found.values():
        assert not any(
            times[what]["quiet"] for times in (cost, cost["one_thread"]) for what in ("forward_ms", "step_ms")
        )
        assert not any(row["quiet"] for row in cost["growth"])


def test_only_quiet_samples_count() -> None:
    """The machine is busy during every other sample, which takes ten times as long."""
    gate = clock.Gate(lambda: 1.0)
    gate.calibrate(1)
    samples = [clock.Sample(0.2 if busy else 0.02, 9.0 if busy else 1.0, 1.0) for busy in (True, False) * 4]
    times = clock.Times({"a": samples, "b": samples[:5]}, gate)
    assert times.counted("a") == [0.02] * 4
    assert times.counted("b") == [0.2, 0.02, 0.2, 0.02, 0.2]  # too few were quiet


def test_patience_ends_after_the_rounds_on_a_quiet_machine() -> None:
    calls: list[str] = []
    gate = clock.Gate(lambda: 1.0)
    clock.time_in_turn({"a": lambda: calls.append("a")}, 0.0, gate, rounds=3, patience=60.0)
    assert gate.probes == 2 * 3  # one before and one after each sample: none was taken again


def test_stars_stand_where_the_machine_was_not_quiet(tmp_path: Any) -> None:
    results = make_results()
    quiet = str_of(Result(results, tmp_path))
    assert "not quiet" not in quiet
    report.write(results, tmp_path / "quiet.html")
    results["measured"]["tasks"]["images"]["none"]["step_ms"]["quiet"] = False
    busy = str_of(Result(results, tmp_path))
    assert busy.count("not quiet") == 1
    assert re.search(r"no position .* [0-9.]+ \*", busy)
    report.write(results, tmp_path / "busy.html")
    pages = [(tmp_path / name).read_text() for name in ("quiet.html", "busy.html")]
    assert ["* The machine was not quiet" in page for page in pages] == [False, True]


def str_of(result: Result) -> str:
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as captured:
        console.print(result.table())
    return captured.get()
