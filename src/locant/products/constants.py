"""Which constants hold here: the user's own of this very machine, else the committed ones of its kind of processor."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from locant import processor
from locant.operators import built
from locant.products import costs

FORMAT = 1
WIDTH = 5  # constants of an operation
Key = tuple[str, str, str]  # operation, library, dtype


@dataclass(frozen=True, eq=False)  # a key of caches by its identity
class Constants:
    """Seconds per part of an operation's work (locant.products.speed).

    Attributes:
        seconds: by operation, library and dtype.
        said: where they were measured, as the end of a sentence; "" where there are none.
    """

    seconds: Mapping[Key, tuple[float, ...]]
    said: str


def instructions() -> str:
    """The instruction set that products run on."""
    module = built()
    return str(module.isa()) if isinstance(module, ModuleType) else torch.backends.cpu.get_cpu_capability().lower()


def kind() -> str:
    """The kind of processor: its maker and the instruction set in use."""
    return f"{processor.MAKER} {instructions()}"


def file() -> Path:
    """Where `locant bench --write-costs` puts the constants of this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "locant" / "costs.json"


def here() -> Constants:
    """The constants that hold under the instruction set in use."""
    return _of(kind())


@lru_cache(maxsize=16)
def _of(kind: str) -> Constants:
    own = _own_constants(kind, file())
    return _committed_constants(kind) if own is None else own


def forget() -> None:
    """Read the file anew, as after it was written."""
    _of.cache_clear()


def _committed_constants(kind: str) -> Constants:
    """Of this kind, else of the same instruction set by another maker."""
    for other, table in sorted(costs.SECONDS.items(), key=lambda item: item[0] != kind):
        same = other.split()[-1] == kind.split()[-1]
        if same or (kind.endswith(" amx") and other.endswith(" avx512")):  # whose float32 kernels it has
            kept = {key: row for key, row in table.items() if same or key[2] == "float32"}
            return Constants(kept, f"measured on {costs.PROCESSORS[other]}")
    return Constants({}, "")


def _own_constants(kind: str, path: Path) -> Constants | None:
    """The user's own, if there is a file and it is of this machine; else one sentence says what holds instead."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        seconds = _read(found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        _warn(path, "it can't be read as constants of this version of Locant")
        return None
    about = found["processor"], found["kind"], found["torch"]
    if about != (processor.NAME, kind, torch.__version__):
        _warn(path, f"it is of {', '.join(map(str, about))}, and this is {processor.NAME}, {kind}, {torch.__version__}")
        return None
    return Constants(seconds, f"measured here, on {found['date']}")


def _read(found: Any) -> dict[Key, tuple[float, ...]]:
    """Raises what a damaged file raises."""
    if found["format"] != FORMAT or not all(isinstance(found[name], str) for name in ("kind", "torch", "date")):
        raise ValueError("another format")
    seconds = {}
    for name, row in found["products"].items():
        operation, library, dtype = name.split()
        if len(row) != WIDTH or not all(isinstance(x, float | int) and 0 <= x < math.inf for x in row) or not any(row):
            raise ValueError("no constants")
        seconds[operation, library, dtype] = tuple(map(float, row))
    return seconds


def _warn(path: Path, why: str) -> None:
    warnings.warn(
        f"{path} needs the constants of this machine; {why}. The committed ones hold: run locant bench --write-costs "
        "to measure anew, or delete the file.",
        stacklevel=2,
    )


def content(seconds: Mapping[Key, tuple[float, ...]], threads: int, date: str) -> str:
    """The text of a file that `here` reads."""
    about = {
        "format": FORMAT, "processor": processor.NAME, "kind": kind(), "torch": torch.__version__, "threads": threads,
        "date": date,
    }  # fmt: skip
    return json.dumps({**about, "products": {" ".join(key): list(row) for key, row in seconds.items()}}, indent=1)
