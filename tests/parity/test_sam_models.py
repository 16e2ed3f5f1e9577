"""Segment Anything's encoder on the weights of timm, transformers and segment-anything, and back again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import pytest
import torch
from near import apart_by_size
from redrawing import redraw
from torch import Tensor, nn

from locant import checkpoints
from locant.models import SAMEncoder

MOST = 1e-10
SIZES = {"img_size": 96, "patch": 8, "dim": 32, "depth": 3, "heads": 2, "window": 5, "global_blocks": (1,)}


def of_timm(**given) -> nn.Module:
    timm = pytest.importorskip("timm.models.vision_transformer_sam")
    return timm.VisionTransformerSAM(
        img_size=96, patch_size=8, embed_dim=32, depth=3, num_heads=2, window_size=5, global_attn_indexes=(1,),
        neck_chans=6, num_classes=0, use_rel_pos=True, global_pool="", **given,
    )  # fmt: skip


def of_transformers() -> nn.Module:
    sam = pytest.importorskip("transformers.models.sam.modeling_sam")
    config = sam.SamVisionConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=96, patch_size=8, window_size=5,
        global_attn_indexes=[1], output_channels=6, mlp_dim=128,
    )  # fmt: skip
    return sam.SamVisionModel(config)


def of_segment_anything() -> nn.Module:
    encoder = pytest.importorskip("segment_anything.modeling.image_encoder")
    model = encoder.ImageEncoderViT(
        img_size=96, patch_size=8, embed_dim=32, depth=3, num_heads=2, out_chans=6, use_rel_pos=True, window_size=5,
        global_attn_indexes=(1,), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    return nn.Sequential(OrderedDict(image_encoder=model))  # as files of the whole model have it


MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "timm 1.0.31 VisionTransformerSAM": ("timm", of_timm),
    "transformers 5.24 SamVisionModel": ("transformers", of_transformers),
    "segment-anything 1.0 ImageEncoderViT": ("official", of_segment_anything),
}
EVERY = pytest.mark.parametrize("name", MODELS)
pytestmark = pytest.mark.usefixtures("_peers_load")


def pair(name: str) -> tuple[nn.Module, SAMEncoder]:
    """The library's model in float64, and ours with its weights."""
    library, make = MODELS[name]
    theirs, ours = redraw(make()).double().eval(), SAMEncoder(**SIZES, out_chans=6, like=library).double().eval()
    report = checkpoints.load(ours, theirs.state_dict(), layout=library)
    assert report.exact
    assert report.resized == report.dropped == report.left == report.notes == []
    return theirs, ours


def features(model: nn.Module, images: Tensor) -> Tensor:
    found = model(images)
    return getattr(found, "last_hidden_state", found)


@pytest.mark.row(59)
@EVERY
def test_features_and_gradients(parity, name: str) -> None:
    theirs, ours = pair(name)
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    found, wanted = features(ours, images), features(theirs, images)
    parity(59, name, apart_by_size(found, wanted), MOST)
    weights = torch.randn_like(wanted)
    for out in (found, wanted):
        (out * weights).sum().backward()
    library = MODELS[name][0]
    grads = {n: p.grad for n, p in ours.named_parameters()}
    goldens = {n: p.grad for n, p in theirs.named_parameters()}
    renamed = checkpoints.export(ours, library).keys()
    assert renamed == goldens.keys()
    gradients = SAMEncoder(**SIZES, out_chans=6).double()
    gradients.load_state_dict(grads)
    worst = max(
        float((g - goldens[n]).abs().max() / max(float(goldens[n].abs().max()), 1.0))
        for n, g in checkpoints.export(gradients, library).items()
    )
    parity(59, f"{name}, every gradient", worst, MOST)


@pytest.mark.row(59)
@pytest.mark.parametrize("size", [(72, 120), (128, 128), (40, 32)])
def test_pictures_of_other_sizes_are_timms(parity, size: tuple[int, int]) -> None:
    """timm stretches its embedding and tables at every call."""
    theirs, ours = pair("timm 1.0.31 VisionTransformerSAM")
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = ours.resized(img_size=size)(images), theirs(images)
    error = apart_by_size(found, wanted)
    # timm resamples the embedding in float32
    parity(59, "timm 1.0.31 VisionTransformerSAM, other sizes", error, 1e-5)


@pytest.mark.row(59)
@EVERY
def test_ours_loads_strictly_there(name: str) -> None:
    library, make = MODELS[name]
    ours = redraw(SAMEncoder(**SIZES, out_chans=6, like=library)).double().eval()
    theirs = make().double().eval()
    theirs.load_state_dict(checkpoints.export(ours, library))
    images = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = features(ours, images), features(theirs, images)
    assert (found - wanted).abs().max() <= MOST * wanted.abs().max()
