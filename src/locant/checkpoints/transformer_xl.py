"""Transformer-XL: the names of kimiyoung/transformer-xl `mem_transformer.py`, by `attn_type`, head tied or not.

Type 0 has u and v (r_w_bias, r_r_bias) once for all layers, type 1 stacks r_emb, r_bias and r_w_bias over layers and
begins its rows with the farthest distance, where ours begin with 0. Types 2 and 3 project queries apart from keys and
values. A tied head is in a file twice. Files with an adaptive softmax (more than one out_layers, cluster_weight) have
no counterpart here, nor has the separate q of types 2 and 3 with norms in front: see `models/transformer_xl.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from locant.checkpoints.names import Buffer, Layout, Rule
from locant.checkpoints.turns import SHARED, Parts, Shape, Turn

EMBEDDING, HEAD = "word_emb.emb_layers.0.weight", "crit.out_layers.0.weight"


def _tied(parts: Parts, shapes: tuple[Shape, ...]) -> Parts:
    if not torch.equal(*parts):
        raise ValueError(
            f"a model with a tied head needs {EMBEDDING} and {HEAD} to be equal; got two that differ. "
            "Build it with tie_weight=False."
        )
    return parts[:1]


def _nearest_first(row: Tensor) -> Tensor:
    """[distances, heads, ...] from the farthest to 0 → [heads, distances, ...] from 0 on."""
    return row.flip(0).transpose(0, 1).contiguous()


def _no_heads(parts: Parts, count: int) -> Parts:
    raise ValueError(
        "the original's r_emb of attn_type 3 is parted into heads, [layers, distances, heads, head_dim]; got tables "
        "[distances, dim], which do not say how. Save the model in Locant's own layout."
    )


TIED = Turn(_tied, lambda parts, count: (parts[0], parts[0].clone()))
PAIR = Turn(lambda parts, shapes: parts, lambda parts, count: parts)
QUERY_FIRST = Turn(
    lambda parts, shapes: (torch.cat(parts),),
    lambda parts, count: tuple(part.clone() for part in parts[0].split([len(parts[0]) // 3, len(parts[0]) // 3 * 2])),
)
BY_LAYER = Turn(
    lambda parts, shapes: tuple(row.clone() for row in parts[0].unbind(0)),
    lambda parts, count: (torch.stack(parts),),
)
DISTANCES = Turn(
    lambda parts, shapes: tuple(_nearest_first(row) for row in parts[0].unbind(0)),
    lambda parts, count: (torch.stack([part.transpose(0, 1).flip(0) for part in parts]),),
)
PLACES = Turn(lambda parts, shapes: tuple(row.flatten(1) for row in parts[0].unbind(0)), _no_heads)

OURS, THEIRS = "layers.{}.attention", "layers.{}.dec_attn"
SCHEME = f"{OURS}.position"
LAYERS = (
    Rule(f"{OURS}.proj.weight", f"{THEIRS}.o_net.weight"),
    Rule("layers.{}.norm1.*", f"{THEIRS}.layer_norm.*"),
    Rule("layers.{}.norm2.*", "layers.{}.pos_ff.layer_norm.*"),
    Rule("layers.{}.mlp.fc1.*", "layers.{}.pos_ff.CoreNet.0.*"),
    Rule("layers.{}.mlp.fc2.*", "layers.{}.pos_ff.CoreNet.3.*"),
)
JOINT = Rule(f"{OURS}.qkv.weight", f"{THEIRS}.qkv_net.weight")
APART = Rule(f"{OURS}.qkv.weight", (f"{THEIRS}.q_net.weight", f"{THEIRS}.kv_net.weight"), QUERY_FIRST)
POSITIONS = (
    (
        JOINT,
        Rule(f"{SCHEME}.r_net.weight", f"{THEIRS}.r_net.weight"),
        Rule(f"{SCHEME}.u", "r_w_bias", SHARED),
        Rule(f"{SCHEME}.v", "r_r_bias", SHARED),
    ),
    (
        JOINT,
        Rule(f"{SCHEME}.u", "r_w_bias", BY_LAYER),
        Rule(f"{SCHEME}.table", "r_emb", DISTANCES),
        Rule(f"{SCHEME}.bias", "r_bias", DISTANCES),
    ),
    (APART,),
    (APART, Rule("positions.{}.table", "r_emb", PLACES)),
)
HEADS = (
    (Rule(("word_emb.weight", "head.weight"), (EMBEDDING, HEAD), PAIR),),
    (Rule("word_emb.weight", (EMBEDDING, HEAD), TIED),),  # the usual one last: its complaints are those that are shown
)

FREQUENCIES = Buffer(
    "word_emb",
    "pos_emb.inv_freq",
    lambda words, *_: 1 / 10000 ** (torch.arange(0.0, words.embedding_dim, 2, device="cpu") / words.embedding_dim),
)

LAYOUTS = tuple(
    Layout(
        "official" if number == 0 else f"official {number}",
        rules=(*head, Rule("head_bias", "crit.out_layers.0.bias"), *LAYERS, *position),
        recomputed=("pos_emb.inv_freq",),
        buffers=(FREQUENCIES,) if number in (0, 2) else (),
        rows_method="clip",
    )
    for number, position in enumerate(POSITIONS)
    for head in HEADS
)
