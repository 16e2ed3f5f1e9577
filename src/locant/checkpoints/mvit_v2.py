"""MViT v2's names: timm, facebookresearch/mvit and SlowFast, torchvision.

timm counts blocks stage by stage, and calls the map of a widening block by where it is; so its names are written out
for the stages of a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from locant.checkpoints.names import Layout, Rule
from locant.checkpoints.turns import SAME, Turn

TOKEN = Turn(lambda parts, shapes: (parts[0].reshape(shapes[0]),), lambda parts, count: (parts[0].flatten(),))
"""Ours [1, 1, dim], theirs [dim]."""

PICTURES, CLIPS = ("rel_pos_h", "rel_pos_w"), ("rel_pos_t", "rel_pos_h", "rel_pos_w")
ORIGINAL = {
    "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "attention.qkv": "attn.qkv",
    "attention.proj": "attn.proj", **{f"attention.pool_{x}": f"attn.pool_{x}" for x in "qkv"},
    **{f"attention.norm_{x}": f"attn.norm_{x}" for x in "qkv"},
}  # fmt: skip
TORCHVISION = {
    **ORIGINAL, "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3", "attention.proj": "attn.project.0",
    **{f"attention.pool_{x}": f"attn.pool_{x}.pool" for x in "qkv"},
    **{f"attention.norm_{x}": f"attn.pool_{x}.norm_act.0" for x in "qkv"},
}  # fmt: skip


def _block(ours: str, theirs: str, names: dict[str, str], tables: Iterable[str], shortcut: str) -> tuple[Rule, ...]:
    return (
        *(Rule(f"{ours}.{mine}.*", f"{theirs}.{name}.*") for mine, name in names.items()),
        *(Rule(f"{ours}.attention.position.tables.{i}", f"{theirs}.attn.{t}") for i, t in enumerate(tables)),
        Rule(f"{ours}.shortcut.*", f"{theirs}.{shortcut}.*"),
    )


def _layout(name: str, blocks: tuple[Rule, ...], patches: str, token: str, head: str, turn: Turn = SAME) -> Layout:
    rest = (
        Rule("patch_embed.proj.*", f"{patches}.*"), Rule("norm.*", "norm.*"), Rule("head.*", f"{head}.*"),
        Rule("cls_token", token, turn),
    )  # fmt: skip
    return Layout(name, (*rest, *blocks), top=("model_state", "model", "state_dict"), table_method="bilinear")


def layouts_of(model: Any) -> tuple[Layout, ...]:
    """timm's, for the stages of a model."""
    rules, index = list[Rule](), 0
    for stage, depth in enumerate(model.depths):
        for block in range(depth):
            attention = model.blocks[index].attention
            shortcut = "shortcut_proj_attn" if attention.dim != attention.out_dim else "shortcut_proj_mlp"
            rules += _block(f"blocks.{index}", f"stages.{stage}.blocks.{block}", ORIGINAL, PICTURES, shortcut)
            index += 1
    return (_layout("timm", tuple(rules), "patch_embed.proj", "cls_token", "head.fc"),)


LAYOUTS = (
    *(
        _layout("official", _block("blocks.{}", "blocks.{}", ORIGINAL, tables, "proj"), "patch_embed.proj", "cls_token",
                "head.projection")
        for tables in (PICTURES, CLIPS)
    ),
    _layout(
        "torchvision", _block("blocks.{}", "blocks.{}", TORCHVISION, CLIPS, "project"), "conv_proj",
        "pos_encoding.class_token", "head.1", TOKEN,
    ),
)  # fmt: skip
