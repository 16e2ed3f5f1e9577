"""Attention as modules: projections around the one verb, on tokens `[batch, tokens, dim]` of a grid.

Attention                self-attention with one qkv projection; position and mask may change from call to call
WindowAttention          the same inside windows (Swin), with the published rules for maps that they do not divide
CosineWindowAttention    the same by angles, its temperature learned (Swin v2)
GatedAttention           content and position mixed by a gate per head (ConViT)
MultiHeadAttention       queries, keys and values of their own, the weights on request
RelativeAttention        along one axis, a bias per offset, with projections or without (AIM)
SpaceTimeAttention       one set of weights for windows of space and for time (AIM)
DotProductAttention, AdditiveAttention, NadarayaWatson   one softmax, three ways to score (d2l)
Block                    attention and a perceptron, each behind a norm, both residual
SpaceTimeBlock           the block that adapts an image model to clips, with an Adapter behind each of its parts
TemporalModel            position by order: causal convolutions over the frames of a clip (FIERY)
PatchEmbedding, PatchMerging   pictures and clips to tokens, and tokens to fewer of them
"""

from __future__ import annotations

from locant.nn.adapter import Adapter
from locant.nn.block import Block
from locant.nn.cosine import CosineWindowAttention
from locant.nn.gated import GatedAttention
from locant.nn.multihead import MultiHeadAttention
from locant.nn.nadaraya_watson import NadarayaWatson
from locant.nn.patches import PatchEmbedding, PatchMerging
from locant.nn.relative import RelativeAttention
from locant.nn.scoring import AdditiveAttention, DotProductAttention, masked_softmax, masked_softmax_d2l
from locant.nn.self_attention import Attention
from locant.nn.space_time import SpaceTimeAttention, SpaceTimeBlock
from locant.nn.temporal import TemporalModel
from locant.nn.window import WindowAttention

__all__ = [
    "Adapter",
    "AdditiveAttention",
    "Attention",
    "Block",
    "CosineWindowAttention",
    "DotProductAttention",
    "GatedAttention",
    "MultiHeadAttention",
    "NadarayaWatson",
    "PatchEmbedding",
    "PatchMerging",
    "RelativeAttention",
    "SpaceTimeAttention",
    "SpaceTimeBlock",
    "TemporalModel",
    "WindowAttention",
    "masked_softmax",
    "masked_softmax_d2l",
]
