"""What a report says beyond names: by whose rules the weights were trained, and sizes that look like a slip."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from locant.checkpoints.names import Layout
from locant.checkpoints.sizes import places
from locant.checkpoints.wording import setting


def library(model: Any, layout: Layout) -> str:
    """The library of a layout by the name that the model has its rules under (`LIBRARIES`), "" where it has none."""
    name = layout.name.partition(" ")[0]  # an older generation of names is the same library
    return name if name in getattr(model, "LIBRARIES", {}) else ""


def rules_note(model: Any, layout: Layout) -> str:
    """What the library that the names are of does otherwise than the model, in a sentence; "" where all is alike."""
    name = library(model, layout)
    if not name:
        return ""
    told: dict[str, list[str]] = {}
    for key, (there, here) in model.LIBRARIES[name].differences(model.rules).items():
        if there is not None:
            told.setdefault(model.rules.WORDS[key], []).append(f"{key}={there!r} (here {here!r})")
    if not told:
        return ""
    parts = "; and ".join(f"{where}: {', '.join(words)}" for where, words in told.items())
    return f"by the rules of {name!r} numbers differ {parts}. For them build the model with {setting('like', name)}."


def window_note(turned: Mapping[str, Tensor], model: nn.Module) -> str:
    """What is odd about the tables of a file for a model of one window; "" where they may be of one.

    Maps halve from stage to stage, and a window with them once it has reached the map. So its tables never grow, and
    once they are smaller than the first they halve.
    """
    first: dict[str, tuple[int, ...]] = {}
    before: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, place in places(model).items():
        stage = re.search(r"\d+", name)
        if place.kind != "table" or name not in turned or stage is None:
            continue
        kind, window = re.sub(r"\d+", "", name), tuple((side + 1) // 2 for side in turned[name].shape[1:])
        whole = first.setdefault(kind, window)
        number, last = before.get(kind, (stage[0], window))
        limits = (
            last if number == stage[0] else tuple(n if n == w else -(-n // 2) for n, w in zip(last, whole, strict=True))
        )
        if any(n > limit for n, limit in zip(window, limits, strict=True)):
            return (
                f"a {type(model).__name__} needs tables for one window, which shrinks with the map alone; got "
                f"{_sides(last)} and then {_sides(window)} in {name}: stages with windows of their own, as Swin S3 has."
            )
        before[kind] = (stage[0], window)
    return ""


def size_notes(model: Any) -> list[str]:
    """Sizes of a pyramid of windows that it runs at, and that are seldom meant."""
    if not hasattr(model, "LIBRARIES"):
        return []
    found: list[str] = []
    window, reach = (model.window, model.reach(0).shape) if hasattr(model, "reach") else ((), ())
    if any(n < wanted for n, wanted in zip(reach, window, strict=True)):
        found.append(f"windows of {_sides(window)} are wider than the first map, where they are {_sides(reach)}.")
    if model.img_size is not None:
        pairs = tuple(zip(model.img_size, model.patch_embed.patch, strict=True))
        if any(side % patch for side, patch in pairs):
            filled = _sides(tuple(-(-side // patch) * patch for side, patch in pairs))
            what = "the rest is cut off" if model.rules.patch_border == "cut" else f"zeros fill them up to {filled}"
            patch = _sides(model.patch_embed.patch)
            found.append(f"patches of {patch} do not divide {_sides(model.img_size)} pixels: {what}.")
    return found


def _sides(sizes: tuple[int, ...]) -> str:
    return " × ".join(map(str, sizes))
