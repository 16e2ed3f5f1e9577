"""Plain attention is torch's: scaled_dot_product_attention and nn.MultiheadAttention, with masks of each sense."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from locant import Causal, Padding, Pairs, attention, weights

MOST = 1e-5
BATCH, HEADS, QUERIES, KEYS, DIM = 2, 4, 5, 7, 32


def agree(what: str, found: torch.Tensor, golden: torch.Tensor) -> None:
    error = (found - golden).abs().max().item()
    print(f"{what}: {error:.2e}")  # shown by `pytest -rP`
    assert error <= MOST, f"{what}: largest error {error:.3g}, allowed {MOST}"


def boolean() -> torch.Tensor:
    """Every row sees something."""
    allowed = torch.rand(BATCH, HEADS, QUERIES, KEYS) > 0.4
    allowed[..., 0] = True
    return allowed


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("sense", ["none", "bool", "float", "2-D", "per sample"])
def test_sdpa(sense, scale, kernel):
    q, k, v = (torch.randn(BATCH, HEADS, n, DIM, requires_grad=True) for n in (QUERIES, KEYS, KEYS))
    allowed = boolean()
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    theirs, ours = {
        "none": (None, None),
        "bool": (allowed, Pairs.from_kept(allowed)),
        "float": (additive, Pairs.from_additive(additive)),
        "2-D": (allowed[0, 0], Pairs.from_kept(allowed[0, 0])),
        "per sample": (allowed[:, :1], Pairs.from_kept(allowed[:, 0])),
    }[sense]
    golden = scaled_dot_product_attention(q, k, v, theirs, scale=scale)
    found = attention(q, k, v, mask=ours, scale=scale, kernel=kernel)
    agree(f"SDPA, {sense}", found, golden)
    weight = torch.randn_like(golden)
    both = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (found, golden)]
    for x, ref in zip(*both, strict=True):
        agree(f"SDPA, {sense}, gradients", x, ref)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_sdpa_causal_and_grouped(kernel):
    q = torch.randn(BATCH, HEADS, KEYS, DIM)
    k, v = torch.randn(2, BATCH, 2, KEYS, DIM).unbind(0)
    golden = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    agree("SDPA, causal, grouped heads", attention(q, k, v, mask=Causal(), kernel=kernel), golden)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("sense", ["none", "key_padding_mask", "attn_mask", "float attn_mask", "both"])
def test_multihead_attention(sense, kernel):
    peer = nn.MultiheadAttention(DIM, HEADS, batch_first=True).eval()
    nn.init.normal_(peer.in_proj_bias)
    x, memory = torch.randn(BATCH, QUERIES, DIM), torch.randn(BATCH, KEYS, DIM)
    ignore = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    ignore[0, -2:] = ignore[1, 3] = True
    blocked = ~boolean()[0, 0]
    blocked[:, 1] = False  # so that a row sees something under both
    additive = torch.zeros(QUERIES, KEYS).masked_fill(blocked, -torch.inf)
    theirs, ours = {
        "none": ({}, None),
        "key_padding_mask": ({"key_padding_mask": ignore}, Padding.from_key_padding_mask(ignore)),
        "attn_mask": ({"attn_mask": blocked}, Pairs.from_blocked(blocked)),
        "float attn_mask": ({"attn_mask": additive}, Pairs.from_additive(additive)),
        "both": (
            {"attn_mask": blocked, "key_padding_mask": ignore},
            Pairs.from_blocked(blocked) & Padding.from_key_padding_mask(ignore),
        ),
    }[sense]
    golden, map_ = peer(x, memory, memory, need_weights=True, average_attn_weights=False, **theirs)
    projections = zip((x, memory, memory), peer.in_proj_weight.chunk(3), peer.in_proj_bias.chunk(3), strict=True)
    q, k, v = (nn.functional.linear(*parts).unflatten(-1, (HEADS, -1)).transpose(1, 2) for parts in projections)
    out = attention(q, k, v, mask=ours, kernel=kernel)
    agree(f"MultiheadAttention, {sense}", peer.out_proj(out.transpose(1, 2).flatten(2)), golden)
    agree(f"MultiheadAttention, {sense}, weights", weights(q, k, mask=ours), map_)
