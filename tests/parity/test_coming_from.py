"""What docs/coming-from.md says of other libraries stands in their sources."""

from __future__ import annotations

import inspect

import pytest
import torch


def default(function: object, argument: str) -> object:
    return inspect.signature(function).parameters[argument].default  # type: ignore[arg-type]


def test_timm(timm) -> None:
    from timm.layers import Attention, resample_abs_pos_embed
    from timm.models import swin_transformer

    assert default(Attention, "qkv_bias") is False
    assert callable(resample_abs_pos_embed)
    attend = swin_transformer.WindowAttention(8, 2, window_size=(3, 4))
    assert attend.relative_position_bias_table.shape == (5 * 7, 2)
    assert "relative_position_index" not in attend.state_dict()
    source = inspect.getsource(swin_transformer)
    assert "torch.roll" in source
    assert "-100.0" in source


def test_transformers(transformers) -> None:
    from transformers.models.bloom import modeling_bloom
    from transformers.models.detr import modeling_detr
    from transformers.models.llama import modeling_llama
    from transformers.models.t5 import modeling_t5

    buckets = inspect.getsource(modeling_t5.T5Attention)
    assert "memory_position - context_position" in buckets
    assert "head_dim**-0.5" not in buckets
    assert "sqrt(" not in buckets
    x = torch.arange(4.0)[None]
    assert modeling_llama.rotate_half(x).tolist() == [[-2.0, -3.0, 0.0, 1.0]]
    kept = torch.ones(1, 3)
    alibi = modeling_bloom.build_alibi_tensor(kept, 1, torch.float32)
    assert alibi.flatten().tolist() == [0.0, alibi.flatten()[1].item(), 2 * alibi.flatten()[1].item()]
    assert hasattr(modeling_detr, "DetrSinePositionEmbedding")


def test_torchvision() -> None:
    pytest.importorskip("torchvision")
    from torchvision.models import swin_transformer
    from torchvision.models.video import mvit
    from torchvision.models.video import swin_transformer as clips

    assert "F.pad" in inspect.getsource(swin_transformer.shifted_window_attention)
    assert hasattr(mvit, "MultiscaleAttention")
    assert "rel_pos_h" in inspect.getsource(mvit.MultiscaleAttention)
    assert hasattr(clips, "ShiftedWindowAttention3d")


def test_torch() -> None:
    assert default(torch.nn.MultiheadAttention, "batch_first") is False
    assert default(torch.nn.MultiheadAttention.forward, "need_weights") is True
    attend = torch.nn.MultiheadAttention(4, 1)
    x, blocked = torch.randn(2, 1, 4), torch.tensor([[False, True], [False, False]])
    _, weights = attend(x, x, x, attn_mask=blocked)
    assert weights[0, 0].tolist() == [1.0, 0.0]

    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    assert {"score_mod", "enable_gqa", "return_lse"} <= set(inspect.signature(flex_attention).parameters)
    assert default(create_block_mask, "BLOCK_SIZE") == 128


def test_x_transformers() -> None:
    pytest.importorskip("x_transformers")
    from x_transformers import x_transformers as other

    assert default(other.Attention, "dim_head") == 64
    assert "kv_heads" in inspect.signature(other.Attention).parameters
    assert other.Attention(8).to_q.bias is None
    assert {"AlibiPositionalBias", "RelativePositionBias", "RotaryEmbedding"} <= set(dir(other))
    pairs = other.rotate_half(torch.arange(4.0)[None, None])
    assert pairs.flatten().tolist() == [-1.0, 0.0, -3.0, 2.0]  # neighbours
