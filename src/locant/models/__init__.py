"""Models by their published names, each built from the parts of `locant.nn`.

Swin, SwinV2     windows; v2 by angles, its bias a function of log-spaced offsets
ViT, DeiT        one grid from the first block to the last; a token for a teacher, LayerScale
ConViT           gated positions first, the class token late
MViTv2           pictures and clips at four scales, attention that pools
SAMEncoder       windows and whole maps, queries that meet a vector per offset and axis
AIMSwin, AIMViT  image models adapted to clips
DETR             boxes and classes from a feature map and its padding
MemTransformerLM Transformer-XL, its four types of attention, with memory
Transformer      encoder and decoder, causal always, decoding with a cache
Bahdanau         recurrent encoder and decoder, additive attention between them
BertEmbeddings   words, types and learned positions

Which models there are stands in `locant.registry`.
"""

from __future__ import annotations

from locant.models.aim_swin import AIMSwin, aim_swin_base
from locant.models.aim_vit import AIMViT, aim_vit_base, aim_vit_large
from locant.models.bahdanau import Bahdanau
from locant.models.bert import BertEmbeddings
from locant.models.convit import ConViT, convit_base, convit_small, convit_tiny
from locant.models.deit import DeiT, deit3_base, deit3_small, deit_base, deit_small, deit_tiny
from locant.models.detr import DETR, detr
from locant.models.mvit_v2 import (
    MViTv2,
    mvitv2_base,
    mvitv2_huge,
    mvitv2_large,
    mvitv2_small,
    mvitv2_small_clips,
    mvitv2_tiny,
)
from locant.models.nonlocality import attention_map, non_locality
from locant.models.sam_encoder import SAMEncoder, sam_encoder_base, sam_encoder_huge, sam_encoder_large
from locant.models.saved import from_file
from locant.models.swin import Swin, swin_base, swin_large, swin_small, swin_tiny
from locant.models.swin_v2 import SwinV2, swinv2_base, swinv2_large, swinv2_small, swinv2_tiny
from locant.models.tokens import greedy
from locant.models.transformer import Transformer, TransformerDecoder, TransformerEncoder
from locant.models.transformer_xl import (
    MemTransformerLM,
    transformer_xl_enwik8_base,
    transformer_xl_enwik8_large,
    transformer_xl_wt103_base,
)
from locant.models.vit import ViT, vit_base, vit_large, vit_small, vit_tiny

__all__ = [
    "DETR",
    "AIMSwin",
    "AIMViT",
    "Bahdanau",
    "BertEmbeddings",
    "ConViT",
    "DeiT",
    "MViTv2",
    "MemTransformerLM",
    "SAMEncoder",
    "Swin",
    "SwinV2",
    "Transformer",
    "TransformerDecoder",
    "TransformerEncoder",
    "ViT",
    "aim_swin_base",
    "aim_vit_base",
    "aim_vit_large",
    "attention_map",
    "convit_base",
    "convit_small",
    "convit_tiny",
    "deit3_base",
    "deit3_small",
    "deit_base",
    "deit_small",
    "deit_tiny",
    "detr",
    "from_file",
    "greedy",
    "mvitv2_base",
    "mvitv2_huge",
    "mvitv2_large",
    "mvitv2_small",
    "mvitv2_small_clips",
    "mvitv2_tiny",
    "non_locality",
    "sam_encoder_base",
    "sam_encoder_huge",
    "sam_encoder_large",
    "swin_base",
    "swin_large",
    "swin_small",
    "swin_tiny",
    "swinv2_base",
    "swinv2_large",
    "swinv2_small",
    "swinv2_tiny",
    "transformer_xl_enwik8_base",
    "transformer_xl_enwik8_large",
    "transformer_xl_wt103_base",
    "vit_base",
    "vit_large",
    "vit_small",
    "vit_tiny",
]
