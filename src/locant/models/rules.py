"""What libraries do beyond their weights, as data: maps that windows do not divide, small maps, how much is dropped.

The same weights give other numbers by other rules, on maps that windows do not divide or that are as small as one, and
by another epsilon in the norms. Where a library refuses a size, its record holds what its other code does there (Swin's
detector for its classifier).
Read at: microsoft/Swin-Transformer, facebookresearch/deit, timm 1.0.31, torchvision 0.28, transformers 5.24,
mmdetection 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar


@dataclass(frozen=True)
class Record:
    """What a library does beside its weights, field by field.

    `WORDS` says for reports where a field shows, `ARGUMENTS` which of a model's arguments name them one by one.
    """

    WORDS: ClassVar[Mapping[str, str]] = {}
    ARGUMENTS: ClassVar[str] = ""

    def differences(self, other: Record) -> dict[str, tuple[Any, Any]]:
        """What is not alike: (here, there) by name."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return {name: (here, there) for name, (here, there) in pairs.items() if here != there}


@dataclass(frozen=True)
class Rules(Record):
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
    ARGUMENTS: ClassVar[str] = "border=, small=, patch_border="
    WORDS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("border", "small", "patch_border", "fixed"),
            "on maps that windows do not divide or that are no larger than one",
        ),
        "drop_path": "in training",
    }


@dataclass(frozen=True)
class ViTRules(Record):
    """How a ViT treats sizes, and what else its numbers hang on.

    Args:
        patch_border: as `PatchEmbedding` takes it.
        norm_eps: of every norm.
    """

    patch_border: str = "refuse"
    norm_eps: float = 1e-6
    ARGUMENTS: ClassVar[str] = "patch_border=, norm_eps="
    WORDS: ClassVar[Mapping[str, str]] = {
        "patch_border": "on pictures that patches do not divide",
        "norm_eps": "a little everywhere",
    }

    def differences(self, other: Record) -> dict[str, tuple[Any, Any]]:
        """What is not alike; pictures that one of them refuses give no other numbers."""
        found = super().differences(other)
        if "refuse" in found.get("patch_border", ()):
            del found["patch_border"]
        return found


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


VIT = {
    "official": ViTRules("cut"),
    "timm": ViTRules("cut"),
    "transformers": ViTRules("cut", norm_eps=1e-12),
    "torchvision": ViTRules(),
}
"""ViT and DeiT by library; "official" is facebookresearch/deit."""

SAM = {"official": ViTRules("cut"), "timm": ViTRules("cut", norm_eps=1e-5), "transformers": ViTRules("cut")}
"""Segment Anything's encoder by library; "official" is facebookresearch/segment-anything."""

R = TypeVar("R", bound=Record)


def chosen(model: str, libraries: Mapping[str, R], like: str | None, base: R, **given: Any) -> R:
    """The rules of a library, or `base`, but for what is given besides (None is not).

    Raises:
        ValueError: for a library without a record.
    """
    if like is not None and like not in libraries:
        raise ValueError(
            f"{model} needs `like` out of {', '.join(map(repr, libraries))}; got {like!r}. "
            f"Leave it out for the rules that take any size, or name them one by one: {base.ARGUMENTS}."
        )
    named = {name: value for name, value in given.items() if value is not None}
    return replace(base if like is None else libraries[like], **named)
