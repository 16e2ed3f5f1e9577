"""Checkpoints with the names and shapes that the original repositories write, and random values.

Written from their sources, one by one, and not from our tables of names: these are what the tables are held against.
Small numbers of channels stand for the published ones; what is recomputed by the originals is there as they save it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

State = dict[str, Tensor]


def drawn(shapes: dict[str, tuple[int, ...]]) -> State:
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def linear(name: str, out: int, into: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def swin(dim: int = 8, depths: tuple[int, ...] = (2, 1), heads: tuple[int, ...] = (2, 4), window: int = 4) -> State:
    """microsoft/Swin-Transformer: indices and masks are in the file; merging belongs to the stage before it."""
    shapes = {
        "patch_embed.proj.weight": (dim, 3, 4, 4),
        "patch_embed.proj.bias": (dim,),
        **norm("patch_embed.norm", dim),
    }
    buffers: State = {}
    for s, (depth, many) in enumerate(zip(depths, heads, strict=True)):
        d = dim * 2**s
        for b in range(depth):
            block = f"layers.{s}.blocks.{b}"
            shapes |= norm(f"{block}.norm1", d) | norm(f"{block}.norm2", d)
            shapes |= {f"{block}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, many)}
            shapes |= linear(f"{block}.attn.qkv", 3 * d, d) | linear(f"{block}.attn.proj", d, d)
            shapes |= linear(f"{block}.mlp.fc1", 4 * d, d) | linear(f"{block}.mlp.fc2", d, 4 * d)
            buffers[f"{block}.attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.int64)
            if b % 2 and s + 1 < len(depths):  # the last map is one window: not shifted, no mask
                buffers[f"{block}.attn_mask"] = torch.zeros(4, window**2, window**2)
        if s + 1 < len(depths):
            shapes |= norm(f"layers.{s}.downsample.norm", 4 * d)
            shapes |= linear(f"layers.{s}.downsample.reduction", 2 * d, 4 * d, bias=False)
    return drawn(shapes | norm("norm", d) | linear("head", 5, d)) | buffers


def swin_timm() -> State:
    """timm: merging at the start of the next stage, `head.fc`, no buffers."""
    found = {}
    for name, tensor in swin().items():
        if "index" not in name and "attn_mask" not in name:
            name = name.replace("layers.0.downsample", "layers.1.downsample").replace("head.", "head.fc.")
            found[name] = tensor
    return found


def swin_torchvision() -> State:
    """torchvision: one list of stages and mergings, perceptrons by their places, the index one long row."""
    words = {
        "patch_embed.proj": "features.0.0", "patch_embed.norm": "features.0.2", "layers.0.downsample": "features.2",
        "layers.0.blocks": "features.1", "layers.1.blocks": "features.3", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3",
    }  # fmt: skip
    found = {}
    for name, tensor in swin().items():
        if "attn_mask" not in name:
            for ours, theirs in words.items():
                name = name.replace(ours, theirs)
            found[name] = tensor.flatten() if "index" in name else tensor
    return found


def _separate(state: State, qkv: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        if ".qkv." in name:
            for part, word in zip(tensor.chunk(3), ("query", "key", "value"), strict=True):
                yield name.replace("attn.qkv", qkv[word]), part
        else:
            yield name, tensor


def swin_transformers(*, old: bool) -> State:
    """transformers, both generations of names; indices were saved by the first."""
    qkv = {word: f"attention.self.{word}" if old else f"attention.{word[0]}_proj" for word in ("query", "key", "value")}
    words = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "patch_embed.norm": "embeddings.norm",
        "layers.": "encoder.layers.", "norm1": "layernorm_before", "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense" if old else "attention.o_proj",
        "attn.relative_position_": f"attention.{'self' if old else 'relative_position_bias'}.relative_position_",
        "mlp.fc1": "intermediate.dense" if old else "mlp.fc1", "mlp.fc2": "output.dense" if old else "mlp.fc2",
    }  # fmt: skip
    found = {}
    for name, tensor in _separate(swin(), qkv):
        if "attn_mask" in name or ("index" in name and not old):
            continue
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        name = "layernorm" + name.removeprefix("norm") if name.startswith("norm.") else name
        found["classifier" + name.removeprefix("head") if name.startswith("head") else f"swin.{name}"] = tensor
    return found


def convit(dim: int = 16, heads: int = 4, local: int = 2, depth: int = 3) -> State:
    """facebookresearch/convit: gated blocks first; pos_proj has a bias that counts for nothing."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 16, dim), "patch_embed.proj.weight": (dim, 3, 8, 8)}
    shapes |= {"patch_embed.proj.bias": (dim,)} | norm("norm", dim) | linear("head", 5, dim)
    for b in range(depth):
        block = f"blocks.{b}"
        shapes |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim) | linear(f"{block}.attn.proj", dim, dim)
        shapes |= linear(f"{block}.mlp.fc1", 4 * dim, dim) | linear(f"{block}.mlp.fc2", dim, 4 * dim)
        if b < local:
            shapes |= linear(f"{block}.attn.qk", 2 * dim, dim, bias=False) | linear(
                f"{block}.attn.v", dim, dim, bias=False
            )
            shapes |= linear(f"{block}.attn.pos_proj", heads, 3) | {f"{block}.attn.gating_param": (heads,)}
        else:
            shapes |= linear(f"{block}.attn.qkv", 3 * dim, dim, bias=False)
    return drawn(shapes)


def vit(dim: int = 16, depth: int = 2, front: tuple[str, ...] = ("cls_token",), gamma: str = "") -> State:
    """timm, and facebookresearch/deit: the embedding begins with rows for the tokens in front."""
    shapes = dict.fromkeys(front, (1, 1, dim)) | {"pos_embed": (1, len(front) + 16, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, 8, 8), "patch_embed.proj.bias": (dim,)}
    for b in range(depth):
        block = f"blocks.{b}"
        shapes |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim) | linear(f"{block}.attn.qkv", 3 * dim, dim)
        shapes |= linear(f"{block}.attn.proj", dim, dim) | linear(f"{block}.mlp.fc1", 4 * dim, dim)
        shapes |= linear(f"{block}.mlp.fc2", dim, 4 * dim)
        shapes |= {f"{block}.{gamma.format(i)}": (dim,) for i in (1, 2) if gamma}
    return drawn(shapes | norm("norm", dim) | linear("head", 5, dim))


def deit() -> State:
    """facebookresearch/deit: a distillation token, and a head that reads it."""
    return vit(front=("cls_token", "dist_token")) | drawn(linear("head_dist", 5, 16))


def vit_transformers(*, old: bool) -> State:
    """transformers, both generations of names; version 5 writes the old ones."""
    attention = "attention.attention." if old else "attention."
    qkv = {word: f"{attention}{word if old else word[0] + '_proj'}" for word in ("query", "key", "value")}
    words = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "encoder.layer." if old else "layers.", "norm1": "layernorm_before", "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense" if old else "attention.o_proj",
        "mlp.fc1": "intermediate.dense" if old else "mlp.fc1", "mlp.fc2": "output.dense" if old else "mlp.fc2",
    }  # fmt: skip
    found = {}
    for name, tensor in _separate(vit(), qkv):
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        name = "layernorm" + name.removeprefix("norm") if name.startswith("norm.") else name
        found["classifier" + name.removeprefix("head") if name.startswith("head") else f"vit.{name}"] = tensor
    return found


def vit_torchvision() -> State:
    """torchvision: packed projections, perceptrons by their places."""
    words = {
        "cls_token": "class_token", "pos_embed": "encoder.pos_embedding", "patch_embed.proj": "conv_proj",
        "blocks.": "encoder.layers.encoder_layer_", "norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3", "attn.qkv.": "self_attention.in_proj_", "attn.proj": "self_attention.out_proj",
        "head.": "heads.head.",
    }  # fmt: skip
    found = {}
    for name, tensor in vit().items():
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        found["encoder.ln." + name.removeprefix("norm.") if name.startswith("norm.") else name] = tensor
    return found


def detr(dim: int = 8, hidden: int = 16, queries: int = 5) -> State:
    """facebookresearch/detr: torch's packed projections, and a backbone that is not ours."""
    shapes = {"query_embed.weight": (queries, dim), "input_proj.weight": (dim, 6, 1, 1), "input_proj.bias": (dim,)}
    shapes |= {"backbone.0.body.conv1.weight": (4, 3, 7, 7), "backbone.0.body.layer4.2.bn3.running_var": (6,)}
    shapes |= {f"backbone.1.{name}_embed.weight": (50, dim // 2) for name in ("row", "col")}
    shapes |= norm("transformer.decoder.norm", dim) | linear("class_embed", 4, dim)
    for i, out in enumerate((dim, dim, 4)):
        shapes |= linear(f"bbox_embed.layers.{i}", out, dim)
    for half, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "multihead_attn"))):
        layer = f"transformer.{half}.layers.0"
        for attention in attentions:
            shapes |= {
                f"{layer}.{attention}.in_proj_weight": (3 * dim, dim),
                f"{layer}.{attention}.in_proj_bias": (3 * dim,),
            }
            shapes |= linear(f"{layer}.{attention}.out_proj", dim, dim)
        shapes |= linear(f"{layer}.linear1", hidden, dim) | linear(f"{layer}.linear2", dim, hidden)
        for i in range(len(attentions) + 1):
            shapes |= norm(f"{layer}.norm{i + 1}", dim)
    return drawn(shapes)


def _adapter(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return linear(f"{name}.D_fc1", dim // 4, dim) | linear(f"{name}.D_fc2", dim, dim // 4)


def aim_swin(frames: int = 4) -> State:
    """taoyang1122/adapt-image-models: Swin over clips, in mmaction's container."""
    found = {f"backbone.{name}": tensor for name, tensor in swin().items() if not name.startswith("head")}
    found["backbone.patch_embed.proj.weight"] = torch.randn(8, 3, 2, 4, 4)
    steps = frames // 2
    for (s, b), (dim, heads) in {(0, 0): (8, 2), (0, 1): (8, 2), (1, 0): (16, 4)}.items():
        block, shapes = f"backbone.layers.{s}.blocks.{b}", {}
        for name in ("S_Adapter", "S_Adapter2", *(() if b else ("T_Adapter",))):
            shapes |= _adapter(f"{block}.{name}", dim)
        if not b:
            shapes |= {f"{block}.attn.temporal_position_bias_table": (2 * steps - 1, heads)}
            found[f"{block}.attn.t_relative_coords"] = torch.zeros(steps**2, dtype=torch.int64)
        found |= drawn(shapes)
    return found | drawn(linear("cls_head.fc_cls", 3, 16))


def aim_vit(dim: int = 8, frames: int = 4, cells: int = 4) -> State:
    """The same on CLIP's ViT."""
    shapes = {"conv1.weight": (dim, 3, 8, 8), "class_embedding": (dim,), "positional_embedding": (cells + 1, dim)}
    shapes |= {"temporal_embedding": (1, frames, dim)} | norm("ln_pre", dim) | norm("ln_post", dim)
    block = "transformer.resblocks.0"
    shapes |= {f"{block}.attn.in_proj_weight": (3 * dim, dim), f"{block}.attn.in_proj_bias": (3 * dim,)}
    shapes |= linear(f"{block}.attn.out_proj", dim, dim) | norm(f"{block}.ln_1", dim) | norm(f"{block}.ln_2", dim)
    shapes |= linear(f"{block}.mlp.c_fc", 4 * dim, dim) | linear(f"{block}.mlp.c_proj", dim, 4 * dim)
    for name in ("MLP_Adapter", "S_Adapter", "T_Adapter"):
        shapes |= _adapter(f"{block}.{name}", dim)
    found = {f"backbone.{name}": tensor for name, tensor in drawn(shapes).items()}
    return found | drawn(linear("cls_head.fc_cls", 3, dim))


def _convolution(name: str, *shape: int, batch_norm: str = "norm") -> State:
    bn = f"{name}.{batch_norm}"
    found = drawn({f"{name}.conv.weight": shape, **norm(bn, shape[0]), f"{bn}.running_mean": (shape[0],)})
    return found | {f"{bn}.running_var": torch.rand(shape[0]) + 0.5, f"{bn}.num_batches_tracked": torch.tensor(7)}


def fiery(channels: int = 10, start: int = 8) -> State:
    """wayveai/fiery: a Lightning file of the whole system, of which the temporal model is a part."""
    found: State = {
        "model.frustum": torch.zeros(2, 3),
        "model.encoder.backbone._conv_stem.weight": torch.zeros(4, 3, 3, 3),
    }
    for i, into in enumerate((channels, start)):
        block, half = f"model.temporal_model.model.{i}", into // 2
        for path, time in ((0, 2), (1, 1)):
            found |= _convolution(f"{block}.convolution_paths.{path}.0", half, into, 1, 1, 1)
            found |= _convolution(f"{block}.convolution_paths.{path}.1", half, half, time, 3, 3)
        found |= _convolution(f"{block}.convolution_paths.2", half, into, 1, 1, 1)
        found |= _convolution(f"{block}.pyramid_pooling.features.0.conv_bn_relu", into // 3, into, 1, 1, 1)
        found |= _convolution(f"{block}.aggregation.0", start, 3 * half + into // 3, 1, 1, 1)
        if into != start:
            skip = _convolution(f"{block}.projection", start, into, 1, 1, 1, batch_norm="1")
            found |= {name.replace("projection.conv", "projection.0"): tensor for name, tensor in skip.items()}
    return found | {"model.decoder.first_conv.weight": torch.zeros(4, 8, 7, 7)}


def transformer_xl(dim: int = 8, heads: int = 2, layers: int = 2, hidden: int = 12, vocabulary: int = 11) -> State:
    """kimiyoung/transformer-xl, `attn_type` 0 with a plain softmax."""
    shapes = {"r_w_bias": (heads, dim // heads), "r_r_bias": (heads, dim // heads), "pos_emb.inv_freq": (dim // 2,)}
    shapes |= {"word_emb.emb_layers.0.weight": (vocabulary, dim)}
    shapes |= linear("crit.out_layers.0", vocabulary, dim)
    for i in range(layers):
        attention, forward = f"layers.{i}.dec_attn", f"layers.{i}.pos_ff"
        shapes |= linear(f"{attention}.qkv_net", 3 * dim, dim, bias=False)
        shapes |= linear(f"{attention}.r_net", dim, dim, bias=False) | linear(
            f"{attention}.o_net", dim, dim, bias=False
        )
        shapes |= norm(f"{attention}.layer_norm", dim) | norm(f"{forward}.layer_norm", dim)
        shapes |= linear(f"{forward}.CoreNet.0", hidden, dim) | linear(f"{forward}.CoreNet.3", dim, hidden)
    return drawn(shapes)


def bert(dim: int = 8) -> State:
    """google-research/bert in transformers: the embeddings, and a bit of the rest."""
    shapes = {f"bert.embeddings.{n}_embeddings.weight": (k, dim) for n, k in (("word", 11), ("position", 6))}
    shapes |= {"bert.embeddings.token_type_embeddings.weight": (2, dim)} | norm("bert.embeddings.LayerNorm", dim)
    shapes |= linear("bert.encoder.layer.0.attention.self.query", dim, dim) | linear("cls.seq_relationship", 2, dim)
    return drawn(shapes) | {"bert.embeddings.position_ids": torch.arange(6)[None]}


def plain(dim: int = 8) -> State:
    """The attention of the tutorials, Wq, Wk, Wv and fc."""
    return drawn({name: shape for part in ("Wq", "Wk", "Wv", "fc") for name, shape in linear(part, dim, dim).items()})
