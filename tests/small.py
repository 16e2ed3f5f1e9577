"""One small model of each family that has published checkpoints, in the sizes of `published.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from locant.models.aim_swin import AIMSwin
from locant.models.aim_vit import AIMViT
from locant.models.bahdanau import Bahdanau
from locant.models.bert import BertEmbeddings
from locant.models.convit import ConViT
from locant.models.deit import DeiT
from locant.models.detr import detr
from locant.models.mvit_v2 import MViTv2
from locant.models.sam_encoder import SAMEncoder
from locant.models.swin import Swin
from locant.models.swin_v2 import SwinV2
from locant.models.transformer import Transformer
from locant.models.transformer_xl import MemTransformerLM
from locant.models.vit import ViT
from locant.nn import MultiHeadAttention
from locant.nn.temporal import TemporalModel


def swin(window: int | tuple[int, int] = 4, img_size: int | tuple[int, int] = 32, num_classes: int = 5) -> Swin:
    return Swin(dim=8, depths=(2, 1), heads=(2, 4), window=window, img_size=img_size, num_classes=num_classes)


def convit(img_size: int | tuple[int, int] = 32) -> ConViT:
    return ConViT(img_size=img_size, patch=8, dim=16, depth=3, heads=4, local_up_to_layer=2, num_classes=5)


def vit(img_size: int | tuple[int, int] = 32) -> ViT:
    return ViT(img_size=img_size, patch=8, dim=16, depth=2, heads=4, num_classes=5)


def mvit_v2(img_size: int | tuple[int, int] = 32, **more) -> MViTv2:
    return MViTv2(**{"img_size": img_size, "dim": 8, "depths": (1, 2), "num_classes": 5, **more})


def sam_encoder(img_size: int | tuple[int, int] = 48) -> SAMEncoder:
    return SAMEncoder(
        img_size=img_size, patch=8, dim=16, depth=2, heads=2, window=4, global_blocks=(1,), out_chans=6
    )  # fmt: skip


def deit(img_size: int | tuple[int, int] = 32) -> DeiT:
    return DeiT(img_size=img_size, patch=8, dim=16, depth=2, heads=4, num_classes=5, distilled=True)


def small_detr() -> nn.Module:
    return detr(
        dim=8, heads=2, hidden=16, encoder_layers=1, decoder_layers=1, channels=6, num_classes=3, num_queries=5,
        position="learned",
    )  # fmt: skip


def aim_vit() -> AIMViT:
    return AIMViT(img_size=16, patch=8, frames=4, dim=8, depth=1, heads=2, num_classes=3)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "models.aim_swin.AIMSwin": lambda: AIMSwin(
        frames=4, dim=8, depths=(2, 1), heads=(2, 4), window=4, num_classes=3
    ),
    "models.aim_vit.AIMViT": aim_vit,
    "models.bahdanau.Bahdanau": lambda: Bahdanau(7, 9, embed=4, hidden=6),
    "models.bert.BertEmbeddings": lambda: BertEmbeddings(11, 8, tokens=6),
    "models.convit.ConViT": convit,
    "models.deit.DeiT": deit,
    "models.detr.DETR": small_detr,
    "models.mvit_v2.MViTv2": mvit_v2,
    "models.sam_encoder.SAMEncoder": sam_encoder,
    "models.swin.Swin": swin,
    "models.swin_v2.SwinV2": lambda: SwinV2(
        dim=8, depths=(2, 1), heads=(2, 4), window=4, img_size=32, num_classes=5
    ),
    "models.transformer.Transformer": lambda: Transformer(7, 9, dim=8, heads=2, hidden=12, depth=2),
    "models.transformer_xl.MemTransformerLM": lambda: MemTransformerLM(11, 8, 2, 2, 12, tie_weight=False),
    "models.vit.ViT": vit,
    "nn.multihead.MultiHeadAttention": lambda: MultiHeadAttention(8, 2),
    "nn.temporal.TemporalModel": lambda: TemporalModel(10, 3, (4, 4), start_out_channels=8),
}  # fmt: skip


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
