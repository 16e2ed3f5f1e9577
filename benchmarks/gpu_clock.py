"""How benchmarks/gpu.py takes times: CUDA events behind a flush of the cache, CUDA graphs, failures as reasons."""

from __future__ import annotations

import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gpu_problems import DEVICE, DRY

Call = Callable[[], object]


def clocks() -> str:
    """Clocks, temperature and driver as the card's own tool says them."""
    asked = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,driver_version"
    try:
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "--id=0"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "not told"


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors are full of NaN: what a kernel does not write is seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def able(calls: dict[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """The calls that run, each tried once, and why the others do not."""
    found, refused = {}, {}
    for name, call in calls.items():
        try:
            call()
            found[name] = call
        except Exception as error:
            refused[name] = reason(error)
    return found, refused


def measured(calls: dict[str, Call], rounds: int) -> dict[str, Any]:
    """Milliseconds of each call as a CUDA graph, and as it is; what can't be captured is named."""
    graphs, refused = ({}, dict[str, str]()) if DRY else graphed(calls)
    found: dict[str, Any] = {"eager ms": {k: 1e3 * t for k, t in timed(calls, rounds).items()}}
    found["ms"] = {**found["eager ms"], **{k: 1e3 * t for k, t in timed(graphs, rounds).items()}}
    return found | {"not captured": refused}


def graphed(calls: dict[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """Each call as a CUDA graph, after three calls that fill caches on a stream of their own."""
    found, refused = dict[str, Call](), dict[str, str]()
    for name, call in calls.items():
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                call()
            found[name] = graph.replay
        except Exception as error:
            refused[name] = reason(error)
    return found, refused


def timed(calls: dict[str, Call], rounds: int = 3) -> dict[str, float]:
    """The median seconds of each, all in turn; by CUDA events on a device, each call after a flush of its cache."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    flush = None if DRY else torch.empty(1 << 28, dtype=torch.uint8, device=DEVICE)
    for number in range(1 if DRY else rounds + 1):
        for name, call in calls.items():
            if flush is None:
                start = time.perf_counter()
                call()
                found[name].append(time.perf_counter() - start)
                continue
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            if number:  # the first round compiles
                found[name].append(begin.elapsed_time(end) / 1e3)
    return {name: sorted(times)[len(times) // 2] for name, times in found.items()}


def seconds(call: Call) -> float | str:
    """Milliseconds of one call, or why it did not run: too many registers, too much shared memory."""
    try:
        return 1e3 * timed({"": call}, rounds=5)[""]
    except Exception as error:
        return reason(error)


def reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[-1][:120]}"
