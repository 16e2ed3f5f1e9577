"""DETR: the original repository, and both generations of names in transformers.

The backbone is not part of our model: what a file holds of it is left alone. transformers' Table Transformer is DETR
with `pre_norm` under names of the older generation.
"""

from __future__ import annotations

from locant.checkpoints.names import Layout, Rule
from locant.checkpoints.turns import JOINED

OFFICIAL_ATTENTIONS = ("encoder.layers.{}.self_attn", "decoder.layers.{}.self_attn", "decoder.layers.{}.multihead_attn")


def _official() -> tuple[Rule, ...]:
    rules = []
    for where in (f"transformer.{name}" for name in OFFICIAL_ATTENTIONS):
        # [3 dim, dim] and [3 dim], in the order q, k, v
        rules.append(Rule((f"{where}.q.*", f"{where}.k.*", f"{where}.v.*"), f"{where}.in_proj_*", JOINED))
        rules.append(Rule(f"{where}.out.*", f"{where}.out_proj.*"))
    for layers in ("transformer.encoder.layers.{}", "transformer.decoder.layers.{}"):
        rules.append(Rule(f"{layers}.mlp.fc{{}}.*", f"{layers}.linear{{}}.*"))
        rules.append(Rule(f"{layers}.norm{{}}.*", f"{layers}.norm{{}}.*"))
    alike = ("transformer.encoder.norm.*", "transformer.decoder.norm.*", "query_embed.*", "input_proj.*")
    rules += [Rule(name, name) for name in (*alike, "class_embed.*", "bbox_embed.layers.{}.*")]
    rules.append(Rule("position.row", "backbone.1.row_embed.weight"))
    rules.append(Rule("position.column", "backbone.1.col_embed.weight"))
    return tuple(rules)


def _transformers(out: str, mlp: str, position: str) -> tuple[Rule, ...]:
    """The generations call the output projection, the perceptron and the place of the positions otherwise."""
    rules = []
    attentions = zip(OFFICIAL_ATTENTIONS, (*OFFICIAL_ATTENTIONS[:2], "decoder.layers.{}.encoder_attn"), strict=True)
    for ours, theirs in attentions:
        for part, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", out)):
            rules.append(Rule(f"transformer.{ours}.{part}.*", f"model.{theirs}.{name}.*"))
    norms = {
        "encoder": ("self_attn_layer_norm", "final_layer_norm"),
        "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    }
    for half, names in norms.items():
        ours, theirs = f"transformer.{half}.layers.{{}}", f"model.{half}.layers.{{}}"
        rules.append(Rule(f"{ours}.mlp.fc{{}}.*", f"{theirs}.{mlp}{{}}.*"))
        rules += [Rule(f"{ours}.norm{i}.*", f"{theirs}.{name}.*") for i, name in enumerate(names, start=1)]
        rules.append(Rule(f"transformer.{half}.norm.*", f"model.{half}.layernorm.*"))
    return (
        *rules,
        Rule("query_embed.*", "model.query_position_embeddings.*"),
        Rule("input_proj.*", "model.input_projection.*"),
        Rule("class_embed.*", "class_labels_classifier.*"),
        Rule("bbox_embed.layers.{}.*", "bbox_predictor.layers.{}.*"),
        Rule("position.row", f"{position}.row_embeddings.weight"),
        Rule("position.column", f"{position}.column_embeddings.weight"),
    )


LAYOUTS = (
    Layout("official", _official(), elsewhere=("backbone.0.*",)),
    Layout(
        "transformers",
        _transformers("o_proj", "mlp.fc", "model.position_embedding"),
        elsewhere=("model.backbone.model.*", "backbone.model.*"),
        prefix="model.",
    ),
    Layout(
        "transformers 4",
        _transformers("out_proj", "fc", "model.backbone.position_embedding"),
        elsewhere=("model.backbone.conv_encoder.*", "backbone.conv_encoder.*"),
        prefix="model.",
    ),
)
