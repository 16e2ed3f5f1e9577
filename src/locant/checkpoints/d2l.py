"""Attention, the Transformer and Bahdanau's model: d2l's two editions, torch's modules, the plain Wq, Wk, Wv and fc.

One layout serves `nn.MultiHeadAttention` by itself and the models that hold it; their names do not meet. Additive
attention and Nadaraya–Watson bear d2l's names here too, and need no layout.
"""

from __future__ import annotations

from locant.checkpoints.names import Layout, Rule
from locant.checkpoints.turns import JOINED, Parts, Turn


def _attention(ours: str, theirs: str, names: tuple[str, str, str, str]) -> tuple[Rule, ...]:
    pairs = zip(("q", "k", "v", "out"), names, strict=True)
    return tuple(Rule(f"{ours}{own}.*", f"{theirs}{name}.*") for own, name in pairs)


def _joined(parts: Parts, count: int) -> Parts:
    if len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(
            "torch packs q, k and v of one size into in_proj_weight; got inputs of "
            f"{', '.join(str(part.shape[-1]) for part in parts)} channels. Export them apart: q_proj_weight and others."
        )
    return JOINED.theirs(parts, count)


PACKED = Turn(JOINED.ours, _joined)


def _packed(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        Rule((f"{ours}q.*", f"{ours}k.*", f"{ours}v.*"), f"{theirs}in_proj_*", PACKED),
        Rule(f"{ours}out.*", f"{theirs}out_proj.*"),
    )


HALVES = ("encoder", "decoder")
W = ("W_q", "W_k", "W_v", "W_o")
D2L = (
    *_attention("", "", W),
    *_attention("encoder.blocks.{}.attention.", "encoder.blks.block{}.attention.", W),
    *_attention("decoder.blocks.{}.attention.", "decoder.blks.block{}.attention1.", W),
    *_attention("decoder.blocks.{}.cross_attention.", "decoder.blks.block{}.attention2.", W),
    *(Rule(f"{half}.blocks.{{}}.norm{{}}.*", f"{half}.blks.block{{}}.addnorm{{}}.ln.*") for half in HALVES),
    *(Rule(f"{half}.blocks.{{}}.mlp.fc{{}}.*", f"{half}.blks.block{{}}.ffn.dense{{}}.*") for half in HALVES),
    Rule("encoder.embedding.*", "encoder.embedding.*"),
    Rule("decoder.embedding.*", "decoder.embedding.*"),
    Rule("decoder.attention.*", "decoder.attention.*"),
    Rule("decoder.rnn.*", "decoder.rnn.*"),
    Rule("head.*", "decoder.dense.*"),
)

# `nn.Transformer`: neither embeddings nor a head, and the norms behind all blocks that `pre_norm` has.
TORCH = (
    *_packed("", ""),
    *_packed("encoder.blocks.{}.attention.", "encoder.layers.{}.self_attn."),
    *_packed("decoder.blocks.{}.attention.", "decoder.layers.{}.self_attn."),
    *_packed("decoder.blocks.{}.cross_attention.", "decoder.layers.{}.multihead_attn."),
    *(Rule(f"{half}.blocks.{{}}.norm{{}}.*", f"{half}.layers.{{}}.norm{{}}.*") for half in HALVES),
    *(Rule(f"{half}.blocks.{{}}.mlp.fc{{}}.*", f"{half}.layers.{{}}.linear{{}}.*") for half in HALVES),
    Rule("encoder.norm.*", "encoder.norm.*"),
    Rule("decoder.norm.*", "decoder.norm.*"),
)

# Attention by itself whose inputs differ in size: the biases alone are packed then.
TORCH_APART = (
    *(Rule(f"{name}.weight", f"{name}_proj_weight") for name in "qkv"),
    Rule(("q.bias", "k.bias", "v.bias"), "in_proj_bias", JOINED),
    Rule("out.*", "out_proj.*"),
)

LAYOUTS = (
    Layout("d2l", (Rule("encoder.rnn.*", "encoder.rnn.rnn.*"), *D2L)),  # the English edition wraps this GRU once more
    Layout("d2l-zh", (Rule("encoder.rnn.*", "encoder.rnn.*"), *D2L)),
    Layout("plain", _attention("", "", ("Wq", "Wk", "Wv", "fc"))),
    Layout("torch", TORCH),
    Layout("torch", TORCH_APART),
)
