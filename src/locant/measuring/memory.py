"""How much memory a call takes on top of what was there before it, its results included."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def extra(call: Callable[[], object], device: str = "cpu") -> int | None:
    """Bytes that a call took at its peak: of resident memory, or on `device` of what torch's allocator handed out.

    None where the system does not tell (outside Linux). The first call of a function takes the most: later ones find
    memory that earlier ones freed.
    """
    if device.startswith("cuda"):
        return _extra_on_cuda(call)
    gc.collect()
    with suppress(OSError, AttributeError):  # what is free but kept would hide what is taken
        ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    if before is None or not _forget():
        return None
    result = call()
    peak = _resident("VmHWM")
    del result
    return None if peak is None else max(0, peak - before)


def _extra_on_cuda(call: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    peak = torch.cuda.max_memory_allocated()
    del result
    return int(peak - before)


def peak() -> int | None:
    """Bytes that were resident at most, since the process began or was last measured; None outside Linux."""
    return _resident("VmHWM")


def _forget() -> bool:
    """Let the high-water mark start again from where memory is now: it would only rise."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True


def _resident(line: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    sizes = [text.split()[1] for text in lines if text.startswith(line + ":")]
    return 1024 * int(sizes[0]) if sizes else None
