"""Which chip there is, and whether Triton can be had; asked without importing it."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch

from locant.dispatch import constant_to_graphs

OLDEST = 80  # compute capability 8.0: the first with bfloat16 products and asynchronous copies


@lru_cache(maxsize=1)
def has_triton() -> bool:
    return find_spec("triton") is not None


@constant_to_graphs
def interpreted() -> bool:
    """Whether the operators run Triton's kernels on CPU tensors, under its interpreter: for tests, and slow."""
    return os.environ.get("TRITON_INTERPRET") == "1" and has_triton()


@constant_to_graphs
def chip_of(device: str) -> str:
    """ "sm90", "sm80", "gfx942"; nothing for devices that are no GPU of NVIDIA's or AMD's, or are not there."""
    return _chip(device) if device.startswith("cuda") else ""


@lru_cache(maxsize=16)
def _chip(device: str) -> str:
    if not torch.cuda.is_available():  # a fake tensor that only claims to be on a GPU
        return ""
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


@lru_cache(maxsize=16)
def processors(device: str) -> int:
    """How many multiprocessors a GPU has; 2 under the interpreter, so that sums have several parts there as well."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.startswith("cuda") else 2
