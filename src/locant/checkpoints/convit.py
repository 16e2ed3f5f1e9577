"""ConViT's names: facebookresearch/convit, and timm, which took them over.

Their pos_proj.weight [heads, 3] acts on (dx, dy, dx² + dy²) of key - query, ours on (row, column) of query - key and on
the squared distance: direction = -pos_proj.weight[:, (1, 0)], spread = pos_proj.weight[:, 2]. pos_proj.bias cancels in
the softmax and is dropped; a file that is written for them has zeros there.
"""

from __future__ import annotations

import torch

from locant.checkpoints.names import Buffer, Layout, Rule
from locant.checkpoints.turns import FIRST, Turn

KEY_MINUS_QUERY = Turn(
    lambda parts, shapes: (-parts[0][:, [1, 0]], parts[0][:, 2].clone()),
    lambda parts, count: (torch.cat([-parts[0].flip(1), parts[1][:, None]], dim=1),),
)

RULES = (
    Rule("patch_embed.proj.*", "patch_embed.proj.*"),
    Rule("cls_token", "cls_token"),
    Rule("pos_embed.table", "pos_embed", FIRST),
    Rule(
        ("blocks.{}.attention.position.direction", "blocks.{}.attention.position.spread"),
        "blocks.{}.attn.pos_proj.weight",
        KEY_MINUS_QUERY,
    ),
    Rule("blocks.{}.attention.position.gate", "blocks.{}.attn.gating_param"),
    *(Rule(f"blocks.{{}}.attention.{name}.*", f"blocks.{{}}.attn.{name}.*") for name in ("qk", "v", "qkv", "proj")),
    *(Rule(f"blocks.{{}}.{name}.*", f"blocks.{{}}.{name}.*") for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")),
    Rule("norm.*", "norm.*"),
    Rule("head.*", "head.*"),
)

BIAS = Buffer(
    "blocks.{}.attention.position",
    "blocks.{}.attn.pos_proj.bias",
    lambda position, *_: torch.zeros(position.heads, device="cpu"),
)

LAYOUTS = tuple(
    Layout(name, rules=RULES, recomputed=("*.attn.pos_proj.bias", "*.attn.rel_indices"), buffers=(BIAS,))
    for name in ("official", "timm")
)
