"""ViT's and DeiT's names: timm, facebookresearch/deit, transformers, torchvision.

Their position embedding [1, prefix + cells, dim] begins with the rows of the tokens in front, where these have rows:
DeiT III and timm's models with `no_embed_class` have none (`prefix_position=False`). The original repository calls
LayerScale gamma_1 and gamma_2. transformers has a class for DeiT with its distillation token, the names of whose heads
say whether both are there; DeiT without that token is a ViT to it.
"""

from __future__ import annotations

from locant.checkpoints.names import Layout, Rule
from locant.checkpoints.turns import FIRST, JOINED, ROWS_WITH_PREFIX

BLOCK = "blocks.{}"
PARTS = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attention.proj")  # of a block, in the order of the tuples below

TIMM = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj")
TRANSFORMERS = ("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2", "attention.o_proj")
TRANSFORMERS_4 = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense", "attention.output.dense")
TORCHVISION = ("ln_1", "ln_2", "mlp.0", "mlp.3", "self_attention.out_proj")

QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
QKV_4 = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
PRETRAINING = ("*mask_token", "*pooler.dense.*", "decoder.*")


def _rows(theirs: str, prefix: bool) -> Rule:
    """The embedding, with rows of the tokens in front or without."""
    if prefix:
        return Rule(("pos_embed.prefix", "pos_embed.table"), theirs, ROWS_WITH_PREFIX)
    return Rule("pos_embed.table", theirs, FIRST)


def _blocks(block: str, parts: tuple[str, ...]) -> tuple[Rule, ...]:
    return tuple(Rule(f"{BLOCK}.{ours}.*", f"{block}.{name}.*") for ours, name in zip(PARTS, parts, strict=True))


def _timm(name: str, gamma: str, rows_method: str) -> tuple[Layout, ...]:
    """timm's, and the original DeiT's, which differ in LayerScale: with rows of the tokens in front, and without."""
    same = ("cls_token", "reg_token", "dist_token", *(f"{n}.*" for n in ("norm", "fc_norm", "head", "head_dist")))
    shared = (
        *(Rule(part, part) for part in (*same, "patch_embed.proj.*")),
        *_blocks(BLOCK, TIMM),
        Rule(f"{BLOCK}.attention.qkv.*", f"{BLOCK}.attn.qkv.*"),
        *(Rule(f"{BLOCK}.gamma{i}", f"{BLOCK}.{gamma.format(i)}") for i in (1, 2)),
    )
    both = ((*shared, _rows("pos_embed", prefix)) for prefix in (True, False))
    return tuple(Layout(name, rules, rows_method=rows_method) for rules in both)


def _transformers(name: str, layers: str, parts: tuple[str, ...], qkv: tuple[str, ...]) -> tuple[Layout, ...]:
    """Of ViT, of DeiT with one head, and of DeiT with both."""

    def layout(model: str, *more: tuple[str, str]) -> Layout:
        block, stem = f"{model}.{layers}.{{}}", f"{model}.embeddings"
        names = (
            ("cls_token", f"{stem}.cls_token"),
            ("patch_embed.proj.*", f"{stem}.patch_embeddings.projection.*"),
            ("norm.*", f"{model}.layernorm.*"),
            *more,
        )
        rules = (
            *(Rule(ours, theirs) for ours, theirs in names),
            _rows(f"{stem}.position_embeddings", True),
            *_blocks(block, parts),
            Rule(f"{BLOCK}.attention.qkv.*", tuple(f"{block}.{part}.*" for part in qkv), JOINED),
        )
        return Layout(name, rules, elsewhere=PRETRAINING, prefix=f"{model}.")

    token = ("dist_token", "deit.embeddings.distillation_token")
    heads = (("head.*", "cls_classifier.*"), ("head_dist.*", "distillation_classifier.*"))
    one = ("head.*", "classifier.*")
    return layout("vit", one), layout("deit", token, one), layout("deit", token, *heads)


def _torchvision() -> Layout:
    block = "encoder.layers.encoder_layer_{}"
    names = {
        "cls_token": "class_token", "patch_embed.proj.*": "conv_proj.*", "norm.*": "encoder.ln.*",
        "head.*": "heads.head.*", f"{BLOCK}.attention.qkv.*": f"{block}.self_attention.in_proj_*",
    }  # fmt: skip
    rules = (Rule(ours, theirs) for ours, theirs in names.items())
    return Layout("torchvision", (*rules, _rows("encoder.pos_embedding", True), *_blocks(block, TORCHVISION)))


LAYOUTS = (
    *_timm("timm", "ls{}.gamma", "antialiased"),
    *_timm("official", "gamma_{}", "bicubic"),
    *_transformers("transformers", "layers", TRANSFORMERS, QKV),
    *_transformers("transformers 4", "encoder.layer", TRANSFORMERS_4, QKV_4),
    _torchvision(),
)
