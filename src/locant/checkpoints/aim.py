"""AIM: mmaction's names, and those of the image models that it starts from, Swin and CLIP.

An image model has neither adapters nor anything of time nor the head for clips. These stay as they start, which leaves
the image model's features as they are; `FRESH` names them, for the layouts of image models:

    load(aim_swin_base(), "swin_base_patch4_window7_224.pth")
    load(aim_vit_base(frames=8), clip.load("ViT-B/16")[0].state_dict())

A kernel on pictures is repeated over the frames of a token and divided by their number, two in Swin, so that a still
clip gets the features of its picture.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from locant.checkpoints import swin
from locant.checkpoints.names import Layout, Rule
from locant.checkpoints.swin import BLOCK, OFFICIAL, frame
from locant.checkpoints.turns import FIRST, JOINED, TABLE, Turn

FRESH = ("*Adapter*", "*temporal*", "cls_head.*", "head.*")  # the last one is the picture's, of which we have none

OVER_TIME = Turn(
    lambda parts, shapes: (parts[0].unsqueeze(2).repeat(1, 1, shapes[0][2], 1, 1) / shapes[0][2],),
    lambda parts, count: (parts[0].sum(2),),
)
"""A kernel on pictures [dim, channels, rows, columns] ↔ ours on clips, with an axis of time."""

ROWS = Turn(
    lambda parts, shapes: tuple(rows.clone() for rows in parts[0].tensor_split([shapes[0][0]])),
    lambda parts, count: (torch.cat(parts),),
)
"""An embedding [1 + cells, dim], the class token's row first ↔ (prefix [1, dim], table [cells, dim])."""


def _on_clips(layout: Layout) -> Layout:
    """A layout of Swin, its kernel brought to clips."""
    patches = next(rule for rule in layout.rules if rule.ours[0].text == "patch_embed.proj.*")
    theirs = patches.theirs[0].text.removesuffix("*")
    kernel = Rule("patch_embed.proj.weight", f"{theirs}weight", OVER_TIME)
    return replace(layout, rules=(kernel, *layout.rules), fresh=FRESH)


def _clip(root: str) -> tuple[Rule, ...]:
    """What the vision half of CLIP's files has; `root` begins their names."""
    block, theirs = "blocks.{}", f"{root}transformer.resblocks.{{}}"
    norms = {"norm1": "ln_1", "norm2": "ln_2"}
    names = {**norms, "attention.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    return (
        Rule("conv1.proj.weight", f"{root}conv1.weight", OVER_TIME),
        Rule("class_embedding", f"{root}class_embedding"),
        Rule(("positional_embedding.prefix", "positional_embedding.table"), f"{root}positional_embedding", ROWS),
        *(Rule(name, f"{root}{name}") for name in ("ln_pre.*", "ln_post.*")),
        Rule(f"{block}.attention.qkv.*", f"{theirs}.attn.in_proj_*"),
        *(Rule(f"{block}.{ours}.*", f"{theirs}.{name}.*") for ours, name in names.items()),
    )


def _mmaction() -> tuple[Rule, ...]:
    """Both models with their adapters; in Swin's files S_Adapter2 follows the attention, S_Adapter the perceptron."""
    block, theirs, vit = f"backbone.{BLOCK}", "backbone.transformer.resblocks.{}", "blocks.{}"
    inside = {"S_Adapter": "S_Adapter2", "MLP_Adapter": "S_Adapter", "T_Adapter": "T_Adapter"}
    tables = {"position": "relative_position_bias_table", "temporal": "temporal_position_bias_table"}
    return (
        *frame(
            OFFICIAL,
            block,
            stem=("backbone.patch_embed.proj", "backbone.patch_embed.norm"),
            merging="backbone.layers.{}.downsample",
            ends=("backbone.norm", "backbone.head"),
        ),
        Rule(f"{BLOCK}.attention.qkv.*", f"{block}.attn.qkv.*"),
        *(Rule(f"{BLOCK}.attention.{ours}.table", f"{block}.attn.{name}", TABLE) for ours, name in tables.items()),
        *(Rule(f"{BLOCK}.{ours}.*", f"{block}.{name}.*") for ours, name in inside.items()),
        *_clip("backbone."),
        *(Rule(f"{vit}.{name}.*", f"{theirs}.{name}.*") for name in (*inside, "T_Adapter_in")),
        Rule("temporal_embedding.table", "backbone.temporal_embedding", FIRST),
        Rule("cls_head.fc_cls.*", "cls_head.fc_cls.*"),
    )


def _transformers() -> tuple[Rule, ...]:
    """CLIP's vision half in transformers."""
    ours, theirs = "blocks.{}", "vision_model.encoder.layers.{}"
    qkv = tuple(f"{theirs}.self_attn.{name}_proj.*" for name in "qkv")
    rows = ("positional_embedding.prefix", "positional_embedding.table")
    return (
        Rule("conv1.proj.weight", "vision_model.embeddings.patch_embedding.weight", OVER_TIME),
        Rule("class_embedding", "vision_model.embeddings.class_embedding"),
        Rule(rows, "vision_model.embeddings.position_embedding.weight", ROWS),
        Rule("ln_pre.*", "vision_model.pre_layrnorm.*"),
        Rule("ln_post.*", "vision_model.post_layernorm.*"),
        Rule(f"{ours}.attention.qkv.*", qkv, JOINED),
        Rule(f"{ours}.attention.proj.*", f"{theirs}.self_attn.out_proj.*"),
        Rule(f"{ours}.norm{{}}.*", f"{theirs}.layer_norm{{}}.*"),
        Rule(f"{ours}.mlp.fc{{}}.*", f"{theirs}.mlp.fc{{}}.*"),
    )


WORDS = ("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection", "logit_scale")
SIZES = ("input_resolution", "context_length", "vocab_size")

# A bare backbone without adapters is an image model's: the layouts of those come first.
LAYOUTS = (
    *(_on_clips(layout) for layout in swin.LAYOUTS),
    Layout("official", _clip("visual."), elsewhere=("visual.proj", *WORDS, *SIZES), fresh=FRESH),
    Layout("official", _clip(""), elsewhere=("proj",), fresh=FRESH),
    Layout(
        "transformers",
        _transformers(),
        recomputed=("*.position_ids",),
        elsewhere=("text_model.*", "logit_scale", "visual_projection.*", "text_projection.*"),
        fresh=FRESH,
        prefix="vision_model.",
    ),
    Layout(
        "mmaction",
        _mmaction(),
        recomputed=("*.relative_position_index", "*.t_relative_coords", "*.attn_mask"),
        prefix="backbone.",
        top=("state_dict", "model"),
        table_method="linear",
        rows_method="linear",
    ),
)
