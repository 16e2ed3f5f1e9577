"""What position costs: time and peak memory of a forward pass and of a training step, and how they grow.

A pass of its own, in one process: every scheme in turn, round after round, so that a slow minute of the machine hits
all alike, and behind the gate of `measuring/clock.py`, which waits a while for quiet. Times are medians over the quiet
samples, on all threads and on one; where there were too few, over all, and `quiet` is false. Memory is what a call
takes beyond what there was before it, output included: others' work does not change it. These figures are the only ones
that differ from run to run, and stand in a block of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from locant.compare.candidate import Candidate
from locant.compare.placement import grid_of
from locant.compare.trial import Job, build
from locant.measuring import memory
from locant.measuring.clock import QUIET, Gate, Times, call_and_wait, limit_threads, product, time_in_turn
from locant.tasks.kind import Kind, Recipe
from locant.tasks.kinds import KINDS
from locant.tasks.task import Task

ROUNDS = 5  # at the trained size
PATIENCE = 2.0  # seconds to wait for a quiet machine, on all threads and on one, and half of it at each larger size
GROWING = 3  # at larger ones
GROWTH = (1, 2, 4, 8)  # each axis of the grid this many times as long (sequences: squared, to match)
MOST_TOKENS = 1024  # growth ends here, so that its cost stays small beside the training's
TOKENS_AT_ONCE = 1024  # examples × tokens of one call while growing
CEILING = 1 << 30  # bytes: a call that would hold more scores than this is not made, and says so


def measure(kind: str, task: Task, recipe: Recipe, schemes: tuple[str, ...], device: str) -> dict[str, Any]:
    """Every scheme of one task: its time and memory at the trained size, and at larger ones."""
    models = {name: build(Job(kind, name, 0, 0.0), task, recipe) for name in schemes}
    for model in models.values():
        model.net.to(device)
    item = tuple(task.train.shape)
    # 1 at the trained size: memory at the first call, time on all threads and on one
    gate = _calibrated(device)
    x = torch.rand(recipe.batch, *item, device=device)
    costs = _measure_in_turn(models, x, device, gate, ROUNDS, PATIENCE)
    for name, times in _times_on_one_thread(models, x, device).items():
        costs[name] |= {"threads": torch.get_num_threads(), "one_thread": times, "growth": []}
    # 2 at larger ones
    for factor in GROWTH:
        larger = _enlarge(KINDS[kind], item, factor)
        tokens = grid_of(KINDS[kind], larger, models[schemes[0]].placement.patch).tokens
        if factor > 1 and tokens > MOST_TOKENS:
            break
        batch = max(1, TOKENS_AT_ONCE // tokens)
        fitting, stopped = {}, {}
        for name, model in models.items():
            try:
                moved, _ = model.moved_to(larger)
                moved(torch.zeros(1, *larger, device=device))
                why = _reason_to_stop(moved, batch)
            except ValueError as error:  # a builder of the user's that takes one size
                why = str(error)
            if why is None:
                fitting[name] = moved
            else:
                stopped[name] = why
        x = torch.rand(batch, *larger, device=device)
        figures = _measure_in_turn(fitting, x, device, gate, GROWING, PATIENCE / 2)
        for name in schemes:
            row = _per_example(figures[name], batch) if name in figures else {}
            costs[name]["growth"].append({"tokens": tokens, "stopped": stopped.get(name), **row})
    return costs


def _calibrated(device: str) -> Gate:
    gate = Gate(product(device))
    gate.calibrate()
    return gate


def _times_on_one_thread(models: dict[str, Candidate], x: torch.Tensor, device: str) -> dict[str, Any]:
    """As trials are trained on a CPU; None elsewhere, where the threads do not matter."""
    if device != "cpu":
        return dict.fromkeys(models)
    with limit_threads(1):
        return _time_in_turn(models, x, device, _calibrated(device), ROUNDS, PATIENCE)


def _measure_in_turn(
    models: dict[str, Candidate], x: torch.Tensor, device: str, gate: Gate, rounds: int, patience: float
) -> dict[str, dict[str, Any]]:
    """Memory and time of every model."""
    calls = {name: (_forward(model, x), _step(model, x)) for name, model in models.items()}
    # the first call of each, which warms up too: later ones reuse its memory and would show less
    bytes_ = {name: [memory.extra(call, device) for call in both] for name, both in calls.items()}
    times = _time_in_turn(models, x, device, gate, rounds, patience)
    return {
        name: {**times[name], "forward_bytes": forward, "step_bytes": step} for name, (forward, step) in bytes_.items()
    }


def _time_in_turn(
    models: dict[str, Candidate], x: torch.Tensor, device: str, gate: Gate, rounds: int, patience: float
) -> dict[str, dict[str, Any]]:
    """Milliseconds of a forward pass and of a step: median, range, and whether the machine was quiet."""
    calls = {}
    for name, model in models.items():
        calls[f"{name} forward_ms"] = call_and_wait(_forward(model, x), device)
        calls[f"{name} step_ms"] = call_and_wait(_step(model, x), device)
    times = time_in_turn(calls, 0.0, gate, rounds, patience) if calls else Times({}, gate)
    return {name: {what: _summary(times, f"{name} {what}") for what in ("forward_ms", "step_ms")} for name in models}


def _forward(model: Candidate, x: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            model(x)

    return call


def _step(model: Candidate, x: torch.Tensor) -> Callable[[], None]:
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def call() -> None:
        model.net.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), labels).backward()

    return call


def _summary(times: Times, name: str) -> dict[str, Any]:
    counted = times.counted(name)
    return {
        "median": 1e3 * times.seconds(name), "low": 1e3 * min(counted), "high": 1e3 * max(counted),
        "quiet": times.quiet(name) >= QUIET,
    }  # fmt: skip


def _per_example(figures: dict[str, Any], batch: int) -> dict[str, Any]:
    """One example's share of a call."""
    share: dict[str, Any] = {name: figures[name]["median"] / batch for name in ("forward_ms", "step_ms")}
    for name in ("forward_bytes", "step_bytes"):
        share[name] = None if figures[name] is None else figures[name] // batch
    share["quiet"] = all(figures[name]["quiet"] for name in ("forward_ms", "step_ms"))
    return share


def _enlarge(kind: Kind, item: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """A larger example: pictures and frames grow on both sides, sequences by the square of it."""
    growing = kind.axes[-2:]
    return tuple(size * factor ** (2 // len(growing)) if axis in growing else size for axis, size in enumerate(item))


def _reason_to_stop(model: Candidate, batch: int) -> str | None:
    """A sentence if a training step would hold too many scores."""
    held = sum(p.cost.held for p in model.plans(batch))
    if held <= CEILING:
        return None
    return (
        f"stopped: a step on {model.grid.tokens:,} tokens would hold {held / 2**30:.1f} GB of scores and expanded bias"
    )
