"""What a run saves: tensors and their JSON in one safetensors file, written atomically (`atomic.py`).

Nothing is pickled, and a kill at any moment leaves the last good file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from locant import atomic
from locant.tasks.task import Refusal


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and what is said about them."""
    plain, seen = {}, set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        if plain[name].untyped_storage().data_ptr() in seen:  # tied weights, which safetensors refuses
            plain[name] = plain[name].clone()
        seen.add(plain[name].untyped_storage().data_ptr())
    write_bytes(path, save(plain, {"about": json.dumps(about)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote. Raises Refusal if the file is none of ours."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Refusal(
            f"a checkpoint of locant compare was needed; {str(path)!r} is not one, or is damaged: {error}. "
            "Remove it, and --resume trains that trial again."
        ) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. A full disk or a read-only folder is said in one sentence."""
    try:
        atomic.write_bytes(path, content)
    except OSError as error:
        raise Refusal(
            f"{str(path)!r} must be writable; it is not: {error.strerror}. Free space or choose another --out; "
            "what was saved before is whole, and --resume goes on from it."
        ) from None


def sweep(folder: Path) -> None:
    """Remove what a kill left half-written."""
    for leftover in folder.glob(".tmp-*"):
        leftover.unlink(missing_ok=True)
