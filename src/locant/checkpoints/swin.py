"""Swin's names: microsoft/Swin-Transformer, its detector, SimMIM, timm, transformers, torchvision, mmdetection.

Published tables are flat, [(2H-1)(2W-1), heads]. timm merges at the start of a stage instead of at the end of the one
before, torchvision gives merging a place of its own in one list with the stages. The order of the four quadrants is the
same in all of them but mmdetection's (mmpretrain's, mmsegmentation's), which unfolds: channel by channel, by rows.

A detector's backbone has a norm per stage and no head: build the model with `stage_norms=True, num_classes=0`. Vectors
per place (`ape`) lie [1, cells, dim], in the detector [1, dim, rows, columns]: build it with `absolute=True`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from locant.checkpoints.names import Buffer, Layout, Rule
from locant.checkpoints.turns import JOINED, TABLE, Turn
from locant.positions.field import LogCPB
from locant.positions.table import RelativeTable

STAGE, BLOCK = "layers.{}", "layers.{}.blocks.{}"
PARTS = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attention.proj")  # of a block, in the order of the tuples below

OFFICIAL = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj")
TRANSFORMERS = ("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2", "attention.o_proj")
TRANSFORMERS_4 = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense", "attention.output.dense")
TORCHVISION = ("norm1", "norm2", "mlp.0", "mlp.3", "attn.proj")
MMDET = ("norm1", "norm2", "ffn.layers.0.0", "ffn.layers.1", "attn.w_msa.proj")

RECOMPUTED = ("*.relative_position_index", "*.relative_coords_table", "*.attn_mask", "*.k_bias")
DETECTOR = ("neck.*", "rpn_head.*", "roi_head.*", "bbox_head.*", "mask_head.*", "*decode_head.*", "*auxiliary_head.*")
PRETRAINING = ("*.embeddings.mask_token", "embeddings.mask_token", "decoder.*", "*hidden_states_norms.*")

PLACES = Turn(
    lambda parts, shapes: ((parts[0].flatten(2).mT if parts[0].ndim == 4 else parts[0]).squeeze(0).contiguous(),),
    lambda parts, count: (parts[0][None],),
)
"""Theirs [1, cells, dim], or [1, dim, rows, columns] from a detector; ours [cells, dim]. Outwards the first."""


def _unfolded(x: Tensor) -> Tensor:
    """[..., 4 dim] from quadrant after quadrant, down the columns, to channel after channel, its quadrants by rows."""
    return x.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].mT.flatten(-2)


def _folded(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 4)).mT[..., [0, 2, 1, 3], :].flatten(-2)


UNFOLDED = Turn(lambda parts, shapes: (_folded(parts[0]),), lambda parts, count: (_unfolded(parts[0]),))
"""What a merging does to four tokens, in the order of `nn.Unfold` ↔ in ours."""

QKV = ("q_proj", "k_proj", "v_proj")
QKV_4 = ("self.query", "self.key", "self.value")


def frame(
    parts: tuple[str, ...],
    block: str = BLOCK,
    *,
    stem: tuple[str, str] = ("patch_embed.proj", "patch_embed.norm"),
    merging: str = "layers.{}.downsample",
    ends: tuple[str, ...] = ("norm", "head"),
) -> tuple[Rule, ...]:
    """All but queries, keys, values and the bias, which differ between the two versions of Swin.

    `ends` are their names of the last norm and of the head; a backbone has neither.
    """
    return (
        *(Rule(f"patch_embed.{ours}.*", f"{theirs}.*") for ours, theirs in zip(("proj", "norm"), stem, strict=True)),
        *(Rule(f"{BLOCK}.{ours}.*", f"{block}.{theirs}.*") for ours, theirs in zip(PARTS, parts, strict=True)),
        Rule(f"{STAGE}.downsample.*", f"{merging}.*"),
        *(Rule(f"{ours}.*", f"{theirs}.*") for ours, theirs in zip(("norm", "head"), ends, strict=False)),
    )


def rooted(root: str, *, ends: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """The original names behind a root, such as that of a backbone."""
    stem = (f"{root}patch_embed.proj", f"{root}patch_embed.norm")
    return frame(OFFICIAL, f"{root}{BLOCK}", stem=stem, merging=f"{root}{STAGE}.downsample", ends=ends)


def places(root: str = "") -> tuple[Rule, ...]:
    """Vectors per place, which a model has if it is built with them."""
    return (Rule("absolute_pos_embed.table", f"{root}absolute_pos_embed", PLACES),)


def backbone() -> tuple[Rule, ...]:
    """The original names of a detector's backbone: no head, a norm per stage."""
    return (*rooted("backbone."), *places("backbone."), Rule("norm{}.*", "backbone.norm{}.*"))


def transformers_frame(parts: tuple[str, ...], model: str) -> tuple[Rule, ...]:
    """The same for transformers, whose names begin with that of the bare model."""
    return frame(
        parts,
        f"{model}.encoder.{BLOCK}",
        stem=(f"{model}.embeddings.patch_embeddings.projection", f"{model}.embeddings.norm"),
        merging=f"{model}.encoder.{STAGE}.downsample",
        ends=(f"{model}.layernorm", "classifier"),
    )


def torchvision_frame() -> tuple[Rule, ...]:
    """The same for torchvision: stages are every second of `features`, mergings lie between."""
    return frame(TORCHVISION, "features.{2i+1}.{}", stem=("features.0.0", "features.0.2"), merging="features.{2i+2}")


def _attention(block: str, qkv: str | tuple[str, ...], table: str) -> tuple[Rule, ...]:
    ours = f"{BLOCK}.attention"
    if isinstance(qkv, str):
        projection = Rule(f"{ours}.qkv.*", f"{block}.{qkv}.*")
    else:
        projection = Rule(f"{ours}.qkv.*", tuple(f"{block}.{part}.*" for part in qkv), JOINED)
    return projection, Rule(f"{ours}.position.table", f"{block}.{table}", TABLE)


def _transformers(name: str, parts: tuple[str, ...], qkv: tuple[str, ...], table: str) -> Layout:
    rules = _attention(f"swin.encoder.{BLOCK}.attention", qkv, f"{table}.relative_position_bias_table")
    return Layout(
        name, (*transformers_frame(parts, "swin"), *rules),
        recomputed=RECOMPUTED, elsewhere=PRETRAINING, prefix="swin.",
    )  # fmt: skip


def index(attention: Any, *_: Any) -> Tensor | None:
    """Where in a flat table the bias of each pair of a window's cells stands, [cells, cells]; None for another bias."""
    if not isinstance(attention.position, RelativeTable | LogCPB):
        return None
    rows, columns = attention.position.grid.shape
    line = torch.cartesian_prod(torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu"))
    offset = line[:, None] - line + torch.tensor([rows - 1, columns - 1], device="cpu")  # query - key, from 0 on
    return offset[..., 0] * (2 * columns - 1) + offset[..., 1]


def masks(block: Any, model: Any, numbers: tuple[int, ...]) -> Tensor | None:
    """Microsoft's attn_mask [windows, cells, cells] of a shifted block: -100 between cells that were no neighbours."""
    window, shift = model.reach(numbers[0]).shape, block.attention.shift
    if model.img_size is None:
        return None
    pixels = zip(model.img_size, model.patch_embed.patch, strict=True)
    sides = [-(-side // patch // 2 ** numbers[0]) for side, patch in pixels]
    if min(sides) <= min(window) or not any(shift) or any(side % n for side, n in zip(sides, window, strict=True)):
        return None  # one window is not shifted, and of other maps their code makes no model
    # 1. Each axis in three areas, whose borders are where the last window begins and where the shift cuts it.
    rows, columns = (
        (torch.arange(side, device="cpu") >= side - n).int() + (torch.arange(side, device="cpu") >= side - s)
        for side, n, s in zip(sides, window, shift, strict=True)
    )
    # 2. The area of each cell, window by window; cells of different areas do not meet.
    areas = (3 * rows[:, None] + columns).unfold(0, window[0], window[0]).unfold(1, window[1], window[1])
    areas = areas.reshape(-1, window[0] * window[1])
    return (areas[:, :, None] != areas[:, None]) * -100.0


def index_of(block: str, make: Callable[..., Tensor | None] = index) -> Buffer:
    """The index of each block, by the name that the library gives to its attention."""
    return Buffer(f"{BLOCK}.attention", f"{block}.attn.relative_position_index", make)


def flat_index(attention: Any, *_: Any) -> Tensor | None:
    """torchvision keeps it as one row."""
    found = index(attention)
    return None if found is None else found.flatten()


def mmdet_frame() -> tuple[Rule, ...]:
    """mmdetection's: stages, windows and perceptrons by their own names, mergings in the order of `nn.Unfold`."""
    stage = "backbone.stages.{}"
    return (
        Rule(f"{STAGE}.downsample.reduction.weight", f"{stage}.downsample.reduction.weight", UNFOLDED),
        Rule(f"{STAGE}.downsample.norm.*", f"{stage}.downsample.norm.*", UNFOLDED),
        *frame(
            MMDET,
            f"{stage}.blocks.{{}}",
            stem=("backbone.patch_embed.projection", "backbone.patch_embed.norm"),
            merging=f"{stage}.downsample",
            ends=(),
        ),
        Rule("head.*", "head.fc.*"),  # mmpretrain's classifiers
        *places("backbone."),
        Rule("norm{}.*", "backbone.norm{}.*"),
    )


FLAT, MMDET_TABLE = "attn.relative_position_bias_table", "attn.w_msa.relative_position_bias_table"
BACKBONE, ENCODER = f"backbone.{BLOCK}", f"encoder.{BLOCK}"

LAYOUTS = (
    Layout(
        "official",
        (*frame(OFFICIAL), *places(), *_attention(BLOCK, "attn.qkv", FLAT)),
        recomputed=RECOMPUTED,
        buffers=(index_of(BLOCK), Buffer(BLOCK, f"{BLOCK}.attn_mask", masks)),
    ),
    Layout(
        "detection",
        (*backbone(), *_attention(BACKBONE, "attn.qkv", FLAT)),
        recomputed=RECOMPUTED,
        elsewhere=DETECTOR,
        prefix="backbone.",
        buffers=(index_of(BACKBONE),),
    ),
    Layout(
        "simmim",
        (*rooted("encoder.", ends=("encoder.norm",)), *places("encoder."), *_attention(ENCODER, "attn.qkv", FLAT)),
        recomputed=RECOMPUTED,
        elsewhere=("*mask_token", "decoder.*"),
        fresh=("head.*",),
        buffers=(index_of(ENCODER), Buffer(BLOCK, f"{ENCODER}.attn_mask", masks)),
    ),
    Layout(
        "mmdet",
        (*mmdet_frame(), *_attention("backbone.stages.{}.blocks.{}", "attn.w_msa.qkv", MMDET_TABLE)),
        recomputed=RECOMPUTED,
        elsewhere=DETECTOR,
        prefix="backbone.",
        buffers=(
            Buffer(f"{BLOCK}.attention", "backbone.stages.{}.blocks.{}.attn.w_msa.relative_position_index", index),
        ),
    ),
    Layout(
        "timm",
        (
            *frame(OFFICIAL, merging="layers.{i+1}.downsample", ends=("norm", "head.fc")),
            *_attention(BLOCK, "attn.qkv", FLAT),
        ),
        recomputed=RECOMPUTED,
        table_method="geometric",
    ),
    _transformers("transformers", TRANSFORMERS, QKV, "relative_position_bias"),
    _transformers("transformers 4", TRANSFORMERS_4, QKV_4, "self"),
    Layout(
        "torchvision",
        (*torchvision_frame(), *_attention("features.{2i+1}.{}", "attn.qkv", FLAT)),
        recomputed=RECOMPUTED,
        buffers=(index_of("features.{2i+1}.{}", flat_index),),
    ),
)
