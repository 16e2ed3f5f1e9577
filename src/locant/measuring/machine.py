"""The machine, the versions and the commit that a measurement belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from locant import __version__, processor


def description(*packages: str) -> dict[str, object]:
    """What a figure means nothing without. `packages` are named beside torch."""
    return {
        "processor": processor.NAME, "instructions": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__, **{name: _version(name) for name in packages},
        "locant": __version__, "commit": commit(), "date": date.today().isoformat(),
    }  # fmt: skip


def summary() -> str:
    """The processor, its cores and the system in words."""
    return f"{processor.NAME}, {os.cpu_count()} cores, {platform.system()}"


def check_device(name: str) -> str:
    """The name of a device that tensors can be made on, and read from.

    Raises:
        ValueError: if there is none of that name, or torch was built without it.
    """
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"--device needs a device that works here; {name!r} does not: {first}. Try --device cpu."
        ) from None
    return name


def device_name(name: str) -> str:
    """Of a GPU what it calls itself, of a CPU its processor."""
    return torch.cuda.get_device_name(name) if name.startswith("cuda") else processor.NAME


def commit() -> str:
    """Of the checkout that this file lies in; an installed copy has none."""
    source = Path(__file__).parents[3]
    if not (source / "pyproject.toml").exists():
        return "none"
    try:
        command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=10"]
        revision = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        revision = ""
    return revision or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
