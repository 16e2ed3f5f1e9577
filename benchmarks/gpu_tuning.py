"""The stages of benchmarks/gpu.py that try what the kernels might do instead: ablations, other launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

from gpu_clock import seconds
from gpu_problems import DEVICE, DRY, shapes, workload

from locant import Grid
from locant.gpu import chips, launch, launches
from locant.measuring.workload import Workload

Results = dict[str, Any]
Rows = Iterator[dict[str, Any]]
PASSES = ("forward", "keys", "queries", "table")
TRIED = ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 2), (64, 128, 8, 2),
         (128, 128, 8, 2))  # fmt: skip
WINDOWS = ((4, 1), (4, 2), (4, 3), (8, 2))  # warps and stages


def ablations(_: Results) -> Rows:
    """Each with its prediction beside it: how biases are read, what the table's gradient costs, tiles of windows."""
    # 1 one forward with biases loaded by Triton, by one PTX load each, by two at a time, and without any
    ways = {
        "two at a time": ({}, 10.8), "one by one": ({"HOW": "single"}, 13.0),
        "loaded by Triton": ({"HOW": "single", "ASM": False}, 15.4), "no bias": ({"HOW": "none"}, 8.5),
    }  # fmt: skip
    work = shapes()["28²"]()
    for name, (changes, instructions) in ways.items():
        with changed_constants(changes):
            took = seconds(partial(work.forward, "triton"))
        yield {"of": "reading biases", "way": name, "ms": took, "predicted": instructions / 10.8,
               "predicted is": "instructions per score over those of two at a time"}  # fmt: skip
    # 2 a gradient of the table: by a pass of ours, by flex_attention's atomic additions
    for name, made in shapes().items():
        if name not in (("14²",) if DRY else ("14²", "28²", "64²")):
            continue
        for kernel in ("triton", "flex") if name in ("28²", "64²") else ("triton",):
            work, times = made(), {}
            fixed = frozen(work)
            for way, one in (("learned", work), ("fixed", fixed)):
                times[way] = seconds(partial(one.gradients, kernel))
            microseconds = {"14²": 51, "28²": 120, "64²": 336}[name] if kernel == "triton" else None
            yield {"of": f"gradient of a table, {name}", "way": kernel, "ms": times, "predicted": microseconds,
                   "predicted is": "floor of the pass on an H100, in µs; none for atomic additions"}  # fmt: skip
    # 3 warps and stages of small windows
    work = shapes()["7×7 windows, shifted"]()
    for warps, stages in WINDOWS[:2] if DRY else WINDOWS:
        kept, launches.WINDOWS = launches.WINDOWS, (warps, stages)
        try:
            times = {what: seconds(partial(call, "triton")) for what, call in
                     (("forward", work.forward), ("train", work.gradients))}  # fmt: skip
        finally:
            launches.WINDOWS = kept
        yield {"of": "windows", "way": f"{warps} warps, {stages} stages", "ms": times,
               "predicted": 1.0 if warps == 4 else 2.0, "predicted is": "arithmetic over that of 4 warps"}  # fmt: skip


@contextmanager
def changed_constants(changes: dict[str, Any]) -> Iterator[None]:
    """The general kernels compiled for other constants than theirs."""
    kept = launch._given

    def given(*arguments: Any) -> launch.Given:
        found = kept(*arguments)
        return found._replace(constants={**found.constants, **changes})

    launch._given = given
    try:
        yield
    finally:
        launch._given = kept


def frozen(work: Workload) -> Workload:
    """The same with a table that is not learned."""
    assert work.position is not None
    return replace(work, position=deepcopy(work.position).requires_grad_(False))


def tuning(_: Results) -> Rows:
    """Each pass with other tiles and warps, all else as in the table."""
    found: dict[tuple[int, str], dict[str, float | str]] = {}
    for channels, kernel, one in launches_tried():
        work = tuned(channels)
        call = work.forward if kernel == "forward" else work.gradients
        times = found.setdefault((channels, kernel), {})
        times[str(tuple(one))] = with_launch(kernel, one, lambda call=call: seconds(partial(call, "triton")))
        if len(times) == (1 if DRY else len(TRIED)):
            yield {"chip": chips.chip_of(DEVICE), "kernel": kernel, "channels": channels, "ms": times}


def launches_tried() -> Iterator[tuple[int, str, launches.Launch]]:
    for channels in (16,) if DRY else (64, 32, 128):
        for kernel in PASSES:
            for shape in ((16, 32, 4, 2),) if DRY else TRIED:
                yield channels, kernel, launches.Launch(*shape)


def tuned(channels: int) -> Workload:
    return workload(Grid(4, 5), 1, 1, channels) if DRY else workload(Grid(28, 28), 16, 12, channels)


def with_launch(kernel: str, one: launches.Launch, call: Callable[..., Any]) -> Any:
    """The call with one pass launched otherwise."""
    kept = launches.launch
    launches.launch = lambda chip, name, channels: one if name == kernel else kept(chip, name, channels)
    try:
        return call("triton") if isinstance(getattr(call, "__self__", None), Workload) else call()
    finally:
        launches.launch = kept
