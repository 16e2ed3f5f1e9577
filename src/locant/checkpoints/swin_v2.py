"""Swin v2's names: those of Swin, with a scale per head, two biases, and a perceptron in place of the table.

Early files, SimMIM's among them, call that perceptron `rpe_mlp`, later ones `cpb_mlp`: both are read, the later one is
written.

torchvision has one qkv.bias and sets the keys' third of it to 0 at every call: that third is dropped, and written as 0.
Nothing here depends on the window, so a file does not tell which one it was made for: build the model as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from locant.checkpoints.names import Buffer, Layout, Rule
from locant.checkpoints.swin import (
    BACKBONE,
    BLOCK,
    DETECTOR,
    ENCODER,
    OFFICIAL,
    PRETRAINING,
    RECOMPUTED,
    TRANSFORMERS_4,
    backbone,
    flat_index,
    frame,
    index_of,
    masks,
    places,
    rooted,
    torchvision_frame,
    transformers_frame,
)
from locant.checkpoints.turns import JOINED, Turn
from locant.positions.field import LogCPB

WITHOUT_KEYS = Turn(
    lambda parts, shapes: tuple(part.clone() for part in parts[0].chunk(3)[::2]),
    lambda parts, count: (torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]]),),
)
"""One bias of q, k and v, whose middle third counts for nothing ↔ (q_bias, v_bias)."""

OURS = f"{BLOCK}.attention"


def _bias(attention: str, mlp: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{OURS}.logit_scale", f"{attention}.logit_scale"),
        Rule(f"{OURS}.position.mlp.fc1.*", f"{attention}.{mlp}.0.*"),
        Rule(f"{OURS}.position.mlp.fc2.weight", f"{attention}.{mlp}.2.weight"),
    )


def _official(root: str = "") -> tuple[Rule, ...]:
    names, theirs = ("qkv.weight", "q_bias", "v_bias"), f"{root}{BLOCK}.attn"
    projections = tuple(Rule(f"{OURS}.{name}", f"{theirs}.{name}") for name in names)
    return (*projections, *_bias(theirs, "cpb_mlp"), *_bias(theirs, "rpe_mlp")[1:])


def _transformers() -> tuple[Rule, ...]:
    theirs = f"swinv2.encoder.{BLOCK}.attention.self"
    return (
        Rule(f"{OURS}.qkv.weight", tuple(f"{theirs}.{part}.weight" for part in ("query", "key", "value")), JOINED),
        Rule(f"{OURS}.q_bias", f"{theirs}.query.bias"),
        Rule(f"{OURS}.v_bias", f"{theirs}.value.bias"),
        *_bias(theirs, "continuous_position_bias_mlp"),
    )


def _torchvision() -> tuple[Rule, ...]:
    theirs = "features.{2i+1}.{}.attn"
    return (
        Rule(f"{OURS}.qkv.weight", f"{theirs}.qkv.weight"),
        Rule((f"{OURS}.q_bias", f"{OURS}.v_bias"), f"{theirs}.qkv.bias", WITHOUT_KEYS),
        *_bias(theirs, "cpb_mlp"),
    )


def coordinates(attention: Any, *_: Any) -> Tensor | None:
    """The offsets that the perceptron is given, sign(o) log2(1 + 8 |o| / (size - 1)) / 3, [1, 2 H - 1, 2 W - 1, 2]."""
    position, lines = attention.position, []
    if not isinstance(position, LogCPB):
        return None
    for side, size in zip(position.grid.shape, position.pretrained.shape, strict=True):
        offset = torch.arange(1 - side, side, dtype=torch.float32, device="cpu") / max(size - 1, 1) * 8
        lines.append(offset.sign() * torch.log2(offset.abs() + 1) / 3)
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)[None]


def coordinates_of(block: str) -> Buffer:
    """The coordinates of each block."""
    return Buffer(OURS, f"{block}.attn.relative_coords_table", coordinates)


LAYOUTS = (
    Layout(
        "official",
        (*frame(OFFICIAL), *places(), *_official()),
        recomputed=RECOMPUTED,
        buffers=(index_of(BLOCK), coordinates_of(BLOCK), Buffer(BLOCK, f"{BLOCK}.attn_mask", masks)),
    ),
    Layout(
        "detection",
        (*backbone(), *_official("backbone.")),
        recomputed=RECOMPUTED,
        elsewhere=DETECTOR,
        prefix="backbone.",
        buffers=(index_of(BACKBONE), coordinates_of(BACKBONE)),
    ),
    Layout(
        "simmim",
        (*rooted("encoder.", ends=("encoder.norm",)), *places("encoder."), *_official("encoder.")),
        recomputed=RECOMPUTED,
        elsewhere=("*mask_token", "decoder.*"),
        fresh=("head.*",),
        buffers=(index_of(ENCODER), coordinates_of(ENCODER), Buffer(BLOCK, f"{ENCODER}.attn_mask", masks)),
    ),
    Layout(
        "timm",
        (*frame(OFFICIAL, merging="layers.{i+1}.downsample", ends=("norm", "head.fc")), *_official()),
        recomputed=RECOMPUTED,
    ),
    Layout(
        "transformers",
        (*transformers_frame(TRANSFORMERS_4, "swinv2"), *_transformers()),
        recomputed=RECOMPUTED,
        elsewhere=PRETRAINING,
        prefix="swinv2.",
    ),
    Layout(
        "torchvision",
        (*torchvision_frame(), *_torchvision()),
        recomputed=RECOMPUTED,
        buffers=(index_of("features.{2i+1}.{}", flat_index), coordinates_of("features.{2i+1}.{}")),
    ),
)
