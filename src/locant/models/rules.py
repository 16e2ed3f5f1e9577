"""What libraries do beyond their weights, as data: maps that windows do not divide, small maps, how much is dropped.

The same weights give other numbers by other rules, on maps that windows do not divide or that are as small as one.
Where a library refuses a size, its record holds what its other code does there (Swin's detector for its classifier).
Read at: microsoft/Swin-Transformer, timm 1.0.31, torchvision 0.28, transformers 5.24, mmdetection 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Rules:
    """How a model of windows treats sizes, and how much it drops in training.

    Args:
        border, small: as `WindowAttention` takes them.
        patch_border: as `PatchEmbedding` takes it.
        fixed: whether windows and shifts are chosen once, by the maps of pictures of `img_size`, and stay what they are
            on other maps; else every map chooses its own.
        drop_path: of the last block; None is the model's own.
    """

    border: str = "cells"
    small: str = "joint"
    patch_border: str = "pad"
    fixed: bool = False
    drop_path: float | None = None

    def differences(self, other: Rules) -> dict[str, tuple[Any, Any]]:
        """What is not alike: (here, there) by name."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return {name: (here, there) for name, (here, there) in pairs.items() if here != there}


SWIN = {
    "official": Rules("pad-roll", "joint", fixed=True),
    "detection": Rules("pad-roll", "keep"),
    "simmim": Rules("pad-roll", "joint", fixed=True),
    "mmdet": Rules("pad-roll", "keep", drop_path=0.1),
    "timm": Rules("roll-pad", "per-axis", fixed=True, drop_path=0.1),
    "transformers": Rules("pad-roll", "joint", drop_path=0.1),
    "torchvision": Rules("pad-roll", "pad", patch_border="cut"),
}
"""Swin by library. A drop path that is not named is that of each size, as its authors publish it."""

SWIN_V2 = {
    **{name: SWIN[name] for name in ("official", "detection", "simmim", "timm", "torchvision")},
    "transformers": Rules("pad-roll", "rows", fixed=True, drop_path=0.1),
}
"""Swin v2 by library."""


def chosen(model: str, libraries: Mapping[str, Rules], like: str | None, **given: Any) -> Rules:
    """The rules of a library, or the defaults, but for what is given besides (None is not).

    Raises:
        ValueError: for a library without a record.
    """
    if like is not None and like not in libraries:
        raise ValueError(
            f"{model} needs `like` out of {', '.join(map(repr, libraries))}; got {like!r}. "
            "Leave it out for the rules that take any size, or name them one by one: border=, small=, patch_border=."
        )
    base = Rules() if like is None else libraries[like]
    return replace(base, **{name: value for name, value in given.items() if value is not None})
