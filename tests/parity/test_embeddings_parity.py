"""The same numbers as the published code: embeddings, rotations and resizing, on random weights."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from locant.grid import Grid
from locant.masks import Padding
from locant.positions.masked_sine import MaskedSine
from locant.positions.rotary import Rotary
from locant.positions.sinusoid import Sinusoid
from locant.resizing import resize_embedding, resize_table

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def padded() -> Tensor:
    valid = torch.zeros(2, 6, 9, dtype=torch.bool)
    valid[0, :5, :7] = True
    valid[1, :6, :4] = True
    return valid


@pytest.mark.row(40)
def test_marian_is_halves(transformers, parity):
    marian = import_module("transformers.models.marian.modeling_marian")
    peer = marian.MarianSinusoidalPositionalEmbedding(64, 32)
    peer.weight = nn.Parameter(peer.create_weight())
    position = Sinusoid(32, layout="halves")
    name = "transformers MarianSinusoidalPositionalEmbedding"
    parity(40, name, (position(Grid(64)) - peer.weight).detach().abs().max(), 1e-6)
    behind = peer(torch.Size((2, 5)), 40)  # by place: 5.24 calls the cached length `cache_length`, versions before not
    parity(40, f"{name}, behind 40 others", (position(Grid(64)[40:45]) - behind).detach().abs().max(), 1e-6)


@pytest.mark.parametrize("shape", [(7, 7), (3, 5)])
def test_timm_build_sincos2d_is_timm(timm, shape):
    layers = timm.layers
    peer = layers.build_sincos2d_pos_embed(list(shape), dim=32)
    torch.testing.assert_close(Sinusoid(32, layout="timm")(Grid(*shape)), peer, **CLOSE)
    assert not torch.allclose(Sinusoid(32, layout="mae")(Grid(*shape)), peer), "MAE's own order is another"


def test_omdet_turbo_joins_blocks_as_mae(transformers):
    """sin and cos of the column, then of the row, as in MAE; this peer runs over columns first, so cells are turned."""
    omdet = import_module("transformers.models.omdet_turbo.modeling_omdet_turbo")
    peer = omdet.OmDetTurboHybridEncoder.build_2d_sincos_position_embedding(5, 3, embed_dim=32)
    found = Sinusoid(32, layout="mae")(Grid(3, 5)).unflatten(0, (3, 5)).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(found, peer[0], **CLOSE)


@pytest.mark.row(24)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("model", "offset"), [("detr", 0.0), ("deformable_detr", -0.5)])
def test_detr_sine(transformers, parity, model, offset, normalize):
    """Its mask is 1 = valid in transformers, as ours; that of the original repository is the inverse."""
    module = import_module(f"transformers.models.{model}.modeling_{model}")
    name = {"detr": "DetrSinePositionEmbedding", "deformable_detr": "DeformableDetrSinePositionEmbedding"}[model]
    peer = getattr(module, name)(16, normalize=normalize)
    valid = padded()
    theirs = peer(shape=torch.Size((2, 3, 6, 9)), device="cpu", dtype=torch.float32, mask=valid)
    # where an axis has no real cell, Deformable DETR divides -1/2 by 1e-6: noise on both sides
    counted = valid.any(1, keepdim=True) & valid.any(2, keepdim=True) if offset else torch.ones_like(valid)
    ours = MaskedSine(32, normalize=normalize, offset=offset if normalize else 0.0)
    found, theirs = ours.encode(valid), theirs.permute(0, 2, 3, 1)
    error = float((found - theirs)[counted].abs().max())
    parity(24, f"transformers {name}, {'' if normalize else 'not '}normalised", error, 1e-5)
    tokens = ours(Grid(6, 9), Padding(valid))
    assert torch.equal(tokens, found.flatten(1, 2))


def test_llama_is_halves(transformers):
    llama = import_module("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=128)
    q, k = torch.randn(2, 2, 50, 32), torch.randn(2, 2, 50, 32)
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, torch.arange(50)[None])
    position = Rotary(32, layout="halves")
    for ours, theirs in zip((q, k), llama.apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(position(ours, Grid(50)), theirs, **CLOSE)


def test_gptj_is_interleaved(transformers):
    gptj = import_module("transformers.models.gptj.modeling_gptj")
    x = torch.randn(2, 3, 40, 16)
    sin, cos = gptj.create_sinusoidal_positions(40, 16)[None].chunk(2, dim=-1)
    theirs = gptj.apply_rotary_pos_emb(x.transpose(1, 2), sin, cos).transpose(1, 2)
    torch.testing.assert_close(Rotary(16)(x, Grid(40)), theirs, **CLOSE)


def test_vit_positions_are_resized_bicubically(timm, transformers):
    """DeiT's, MAE's and transformers' recipe; timm's is the same once its antialiasing is off."""
    layers = timm.layers
    vit = import_module("transformers.models.vit.modeling_vit")
    config = vit.ViTConfig(hidden_size=12, image_size=14, patch_size=2, num_attention_heads=2)
    peer = vit.ViTEmbeddings(config)
    nn.init.normal_(peer.position_embeddings)
    theirs = peer.interpolate_pos_encoding(torch.zeros(1, 1 + 5 * 9, 12), 10, 18)
    rows = peer.position_embeddings[0, 1:]
    ours = resize_embedding(rows, (7, 7), (5, 9), "bicubic")
    torch.testing.assert_close(ours, theirs[0, 1:], **CLOSE)
    plain = layers.resample_abs_pos_embed(rows[None], [5, 9], [7, 7], num_prefix_tokens=0, antialias=False)
    torch.testing.assert_close(ours, plain[0], **CLOSE)


def test_swin_tables_are_resized_bicubically(timm):
    """timm's simple form of the official loader: `[(2 h - 1)(2 w - 1), heads]`, rows first."""
    layers = timm.layers
    table = torch.randn(13 * 13, 4)
    theirs = layers.resize_rel_pos_bias_table_simple(table, (12, 12), (23 * 23, 4))
    ours = resize_table(table.T.reshape(4, 13, 13), (23, 23), "bicubic")
    torch.testing.assert_close(ours.flatten(1).T, theirs, **CLOSE)
