"""What position costs: time and peak memory of a forward pass and of a training step, and how they grow.

A pass of its own, in one process: every scheme in turn, round after round, so that a slow minute of the machine hits
all alike. Times are medians over rounds; memory is what a call takes beyond what there was before it, output included.
These figures are the only ones that differ from run to run, and stand in a block of their own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from locant.compare.candidate import Candidate
from locant.compare.placement import grid_of
from locant.compare.trial import Job, build
from locant.measuring import memory
from locant.tasks.kind import Kind, Recipe
from locant.tasks.kinds import KINDS
from locant.tasks.task import Task

ROUNDS = 5  # at the trained size
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
    at_size = _measure_in_turn(models, item, recipe.batch, device, ROUNDS)
    costs: dict[str, Any] = {name: {**figures, "growth": []} for name, figures in at_size.items()}
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
        figures = _measure_in_turn(fitting, larger, batch, device, GROWING)
        for name in schemes:
            row = _per_example(figures[name], batch) if name in figures else {}
            costs[name]["growth"].append({"tokens": tokens, "stopped": stopped.get(name), **row})
    return costs


def _measure_in_turn(
    models: dict[str, Candidate], item: tuple[int, ...], batch: int, device: str, rounds: int
) -> dict[str, Any]:
    x = torch.rand(batch, *item, device=device)
    calls = {name: (_forward(model, x), _step(model, x)) for name, model in models.items()}
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in models}
    # the first call of each, which warms up too: later ones reuse its memory and would show less
    bytes_ = {name: tuple(memory.extra(call, device) for call in calls[name]) for name in models}
    for _ in range(rounds):
        for name in models:
            for call, seen in zip(calls[name], times[name], strict=True):
                seen.append(_milliseconds(call, device))
    return {
        name: {
            "forward_ms": _summary(times[name][0]),
            "step_ms": _summary(times[name][1]),
            "forward_bytes": bytes_[name][0],
            "step_bytes": bytes_[name][1],
        }
        for name in models
    }


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


def _milliseconds(call: Callable[[], None], device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _summary(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "low": min(times), "high": max(times)}


def _per_example(figures: dict[str, Any], batch: int) -> dict[str, Any]:
    """One example's share of a call."""
    share: dict[str, Any] = {name: figures[name]["median"] / batch for name in ("forward_ms", "step_ms")}
    for name in ("forward_bytes", "step_bytes"):
        share[name] = None if figures[name] is None else figures[name] // batch
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
