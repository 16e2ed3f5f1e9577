"""Attention as modules: projections around the one verb, on tokens `[batch, tokens, dim]` of a grid.

Attention             self-attention with one qkv projection; position and mask may change from call to call
WindowAttention       the same inside windows (Swin), with the published rules for maps that they do not divide
GatedAttention        content and position mixed by a gate per head (ConViT)
MultiHeadAttention    queries, keys and values of their own, the weights on request
Block                 attention and a perceptron, each behind a norm, both residual
"""

from __future__ import annotations

from locant.nn.block import Block
from locant.nn.gated import GatedAttention
from locant.nn.multihead import MultiHeadAttention
from locant.nn.self_attention import Attention
from locant.nn.window import WindowAttention

__all__ = ["Attention", "Block", "GatedAttention", "MultiHeadAttention", "WindowAttention"]
