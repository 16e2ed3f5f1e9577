"""What a file holds beside its weights: which of several dictionaries is read, what lies beside it, what is skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from locant.checkpoints.files import check_name, refused
from locant.checkpoints.pickles import Damage, Skipped
from locant.checkpoints.shards import opened
from locant.checkpoints.wording import option


@dataclass(frozen=True)
class Contents:
    """The weights of a file, and what else is there.

    tensors: by their names.
    key: under which torch.save's dictionary holds them, "" if it is them.
    others: keys of other dictionaries of tensors, such as an average of the weights (EMA).
    skipped: objects that are no tensors and were not made: "args (argparse.Namespace)".
    """

    tensors: dict[str, Tensor]
    key: str = ""
    others: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def read(path: str | Path, top: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names, on the CPU, read from disk when they are used.

    Args:
        path: a .safetensors, .pt, .pth or .bin file, the index of several (`...index.json`), or a folder with either,
            as `save_pretrained` leaves it.
        top: keys under which torch.save's dictionary may hold them, the most wanted first.

    Raises:
        ValueError: if the file is no such thing, or damaged, or would run something.
        OSError: if it cannot be opened.
    """
    try:
        return unwrapped(opened(path), top).tensors
    except Damage as damage:
        raise refused(Path(path), damage) from None


def unwrapped(found: Any, top: tuple[str, ...] = ()) -> Contents:
    """The tensors of a dictionary, or of the one inside it that `top` names first.

    Raises:
        Damage: if there is none, or several and `top` names none of them.
    """
    if not isinstance(found, Mapping):
        kind = found.kind if isinstance(found, Skipped) else type(found).__name__
        raise Damage(f"it holds a {kind}, not a dictionary of tensors", "Save model.state_dict().")
    inside = [key for key, value in found.items() if isinstance(value, Mapping) and _holds(value)]
    chosen = next((key for key in top if key in inside), None)
    if chosen is None and not _holds(found):
        if len(inside) != 1:
            named = f"several: {', '.join(map(repr, inside))}" if inside else f"none under {list(found)[:8]}"
            raise Damage(
                f"it needs one dictionary of tensors, and has {named}",
                f"Say which with {option('top')}, or save it alone.",
            )
        chosen = inside[0]
    skipped = tuple(_skipped(found))
    if chosen is None:
        return Contents(_checked(found), "", tuple(map(str, inside)), skipped)
    deeper = unwrapped(found[chosen])
    others = tuple(str(key) for key in inside if key != chosen)
    return Contents(deeper.tensors, ".".join(filter(None, (str(chosen), deeper.key))), others, skipped)


def _checked(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise Damage(f"a tensor has the name {name!r}, which is no text")
        check_name(name)
        if value.layout is not torch.strided or value.is_quantized:
            raise Damage(f"{name!r} is sparse or quantized", "Save it dense, in floating point.")
    return tensors


def _holds(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(inner, Tensor) for inner in value.values())


def _skipped(found: Any) -> Iterator[str]:
    """Where objects were that no tensors are, and of what kind."""
    todo, seen = [("", found)], set[int]()
    while todo:
        where, value = todo.pop()
        kind: Any = value if isinstance(value, type) else type(value)  # a class may stand there itself
        if issubclass(kind, Skipped):
            yield f"{where} ({kind.kind})"
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            inner = value.items() if isinstance(value, Mapping) else enumerate(value)
            todo += [(f"{where}.{key}" if where else str(key), member) for key, member in reversed(list(inner))]
