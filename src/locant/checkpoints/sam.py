"""Names of Segment Anything's encoder: timm, segment-anything, transformers.

Files of the whole model hold a decoder of masks and an encoder of prompts beside it, which are left alone. timm's may
have a head.
"""

from __future__ import annotations

import torch

from locant.checkpoints.names import Layout, Rule
from locant.checkpoints.turns import Turn

BLOCK = "blocks.{}"

MAP = Turn(
    lambda parts, shapes: (parts[0].reshape(-1, parts[0].shape[-1]),), lambda parts, count: (_squared(parts[0]),)
)
"""An embedding [1, rows, columns, dim] of a map ↔ ours [cells, dim]; ours do not say their sides."""


def _squared(rows: torch.Tensor) -> torch.Tensor:
    side = round(len(rows) ** 0.5)
    if side * side != len(rows):
        raise ValueError(
            f"this layout needs an embedding of a square map, whose sides it can tell; got {len(rows)} rows. Export "
            "model.resized(img_size=side), or save the model in Locant's own layout."
        )
    return rows.view(1, side, side, -1)


def _blocks(block: str, norms: tuple[str, str], layers: tuple[str, str], attn: str = "attn") -> tuple[Rule, ...]:
    pairs = {
        "norm1.*": f"{norms[0]}.*", "norm2.*": f"{norms[1]}.*", "mlp.fc1.*": f"mlp.{layers[0]}.*",
        "mlp.fc2.*": f"mlp.{layers[1]}.*", "attention.qkv.*": f"{attn}.qkv.*", "attention.proj.*": f"{attn}.proj.*",
        "attention.position.tables.0": f"{attn}.rel_pos_h", "attention.position.tables.1": f"{attn}.rel_pos_w",
    }  # fmt: skip
    return tuple(Rule(f"{BLOCK}.{ours}", f"{block}.{theirs}") for ours, theirs in pairs.items())


def _layout(
    name: str, stem: str, projection: str, neck: tuple[Rule, ...], blocks: tuple[Rule, ...], *elsewhere: str
) -> Layout:
    rules = (
        Rule("patch_embed.proj.*", f"{stem}patch_embed.{projection}.*"),
        Rule("pos_embed.table", f"{stem}pos_embed", MAP),
        *neck,
        *blocks,
    )
    return Layout(
        name, rules, elsewhere=elsewhere, prefix=stem, table_method="bilinear",
        rows_method="antialiased" if name == "timm" else "bicubic",
    )  # fmt: skip


OTHERS = ("prompt_encoder.*", "mask_decoder.*", "shared_image_embedding.*")
NORMS, FC, LIN = ("norm1", "norm2"), ("fc1", "fc2"), ("lin1", "lin2")
IMAGE, VISION = "image_encoder.", "vision_encoder."

LAYOUTS = (
    _layout("timm", "", "proj", (Rule("neck.*", "neck.*"),), _blocks(BLOCK, NORMS, FC), "head.*"),
    _layout(
        "official", IMAGE, "proj", (Rule("neck.*", f"{IMAGE}neck.*"),), _blocks(f"{IMAGE}{BLOCK}", NORMS, LIN), *OTHERS
    ),
    _layout(
        "transformers",
        VISION,
        "projection",
        tuple(
            Rule(f"neck.{i}.*", f"{VISION}neck.{part}.*")
            for i, part in enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2"))
        ),
        _blocks(f"{VISION}layers.{{}}", ("layer_norm1", "layer_norm2"), LIN),
        *OTHERS,
    ),
)
