"""Swin's names: microsoft/Swin-Transformer, timm, both generations of transformers, torchvision.

Published tables are flat, [(2H-1)(2W-1), heads]. timm merges at the start of a stage instead of at the end of the one
before, torchvision gives merging a place of its own in one list with the stages. The order of the four quadrants is the
same in all of them.
"""

from __future__ import annotations

from locant.checkpoints.names import Layout, Rule
from locant.checkpoints.turns import JOINED, TABLE

STAGE, BLOCK = "layers.{}", "layers.{}.blocks.{}"
PARTS = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attention.proj")  # of a block, in the order of the tuples below

OFFICIAL = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj")
TRANSFORMERS = ("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2", "attention.o_proj")
TRANSFORMERS_4 = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense", "attention.output.dense")
TORCHVISION = ("norm1", "norm2", "mlp.0", "mlp.3", "attn.proj")

RECOMPUTED = ("*.relative_position_index", "*.relative_coords_table", "*.attn_mask", "*.k_bias")
PRETRAINING = ("*.embeddings.mask_token", "embeddings.mask_token", "decoder.*", "*hidden_states_norms.*")

QKV = ("q_proj", "k_proj", "v_proj")
QKV_4 = ("self.query", "self.key", "self.value")


def frame(
    parts: tuple[str, ...],
    block: str = BLOCK,
    *,
    stem: tuple[str, str] = ("patch_embed.proj", "patch_embed.norm"),
    merging: str = "layers.{}.downsample",
    ends: tuple[str, str] = ("norm", "head"),
) -> tuple[Rule, ...]:
    """All but queries, keys, values and the bias, which differ between the two versions of Swin."""
    return (
        *(Rule(f"patch_embed.{ours}.*", f"{theirs}.*") for ours, theirs in zip(("proj", "norm"), stem, strict=True)),
        *(Rule(f"{BLOCK}.{ours}.*", f"{block}.{theirs}.*") for ours, theirs in zip(PARTS, parts, strict=True)),
        Rule(f"{STAGE}.downsample.*", f"{merging}.*"),
        *(Rule(f"{ours}.*", f"{theirs}.*") for ours, theirs in zip(("norm", "head"), ends, strict=True)),
    )


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


FLAT = "attn.relative_position_bias_table"

LAYOUTS = (
    Layout("official", (*frame(OFFICIAL), *_attention(BLOCK, "attn.qkv", FLAT)), recomputed=RECOMPUTED),
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
    ),
)
