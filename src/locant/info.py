"""What is installed and what it runs on: what a report of a fault begins with. `locant info` prints it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from locant import __version__, dispatch, operators, processor
from locant.measuring import machine

# by extra of pyproject.toml: the packages that it installs
EXTRAS = {
    "compare": ("scikit-learn", "pillow", "matplotlib"),
    "video": ("av",),
    "deploy": ("onnxruntime", "onnx", "onnxscript", "openvino"),
}


@dataclass(frozen=True)
class Info:
    """`core` says whether the compiled kernels are there, and `reason` why they are not.

    `instructions` are the core's instruction sets that run on this processor, the one in use first. `commit` is that of
    a checkout, "none" for an installed copy. `extras` maps each extra to its packages' versions, None where one is not
    installed. `missing` are the private names of torch that public ways stand in for (locant.dispatch).
    """

    locant: str
    commit: str
    core: bool
    reason: str | None
    instructions: tuple[str, ...]
    torch: str
    threads: int
    devices: tuple[str, ...]
    missing: tuple[str, ...]
    python: str
    system: str
    processor: str
    cores: int | None
    extras: dict[str, dict[str, str | None]]

    def json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        absent = "" if not self.missing else f", without {', '.join(self.missing)}"
        core = f"compiled, {self.instructions[0]} in use" if self.core else f"none: {self.reason}"
        others = f" (also here: {', '.join(self.instructions[1:])})" if self.instructions[1:] else ""
        rows = [
            ("locant", self.locant if self.commit == "none" else f"{self.locant}, commit {self.commit}"),
            ("core", core + others),
            ("torch", f"{self.torch}, {self.threads} thread{'s' * (self.threads != 1)}{absent}"),
            ("devices", ", ".join(self.devices)),
            ("python", self.python),
            ("machine", f"{self.processor}, {self.cores} cores, {self.system}"),
        ]
        for extra, packages in self.extras.items():
            there = ", ".join(f"{name} {number or 'not installed'}" for name, number in packages.items())
            rows.append((f"[{extra}]", there))
        return "\n".join(f"{name:<10}{value}" for name, value in rows)


def info() -> Info:
    """Everything, looked up now. Imports torch, allocates nothing on any device, and warns of nothing."""
    built = operators.built()
    return Info(
        locant=__version__,
        commit=machine.commit(),
        core=not isinstance(built, str),
        reason=built if isinstance(built, str) else None,
        instructions=() if isinstance(built, str) else tuple(dict.fromkeys((built.isa(), *built.isas()))),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        devices=tuple(_devices()),
        missing=tuple(dispatch.MISSING),
        python=platform.python_version(),
        system=platform.platform(),
        processor=processor.NAME,
        cores=os.cpu_count(),
        extras={extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
    )


def _devices() -> list[str]:
    found = ["cpu"]
    found += [f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    return found + [f"xpu:{number}" for number in range(torch.xpu.device_count())]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
