"""MViT v2 on the weights of timm and torchvision, pictures and clips, every parameter drawn anew, and back again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from near import apart_by_size
from redrawing import redraw
from torch import Tensor, nn

from locant import checkpoints
from locant.models import MViTv2

MOST = 1e-10
SIZES: dict[str, Any] = {"img_size": 64, "dim": 16, "depths": (1, 2, 1), "num_classes": 5}


def of_timm(**given: Any) -> nn.Module:
    library = pytest.importorskip("timm.models.mvitv2")
    options = {"depths": (1, 2, 1), "embed_dim": 16, "num_heads": 1, "stride_q": ((1, 1), (2, 2), (2, 2)), **given}
    return library.MultiScaleVit(library.MultiScaleVitCfg(**options), img_size=64, num_classes=5)


def of_torchvision() -> nn.Module:
    mvit = pytest.importorskip("torchvision.models.video.mvit")
    settings = [
        mvit.MSBlockConfig(1, 16, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 8, 8]),
        mvit.MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 4, 4]),
        mvit.MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 4, 4]),
        mvit.MSBlockConfig(4, 32, 64, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
    ]
    return mvit.MViT(
        (64, 64), 8, settings, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True,
        proj_after_attn=True, num_classes=5,
    )  # fmt: skip


CLIPS = {"frames": 8, "stride_kv": 8, "class_token": True, "prefix_residual": False}
MODELS: dict[str, tuple[str, Callable[[], nn.Module], dict[str, Any]]] = {
    "timm 1.0.31 MultiScaleVit": ("timm", of_timm, {}),
    "timm 1.0.31 MultiScaleVit, class token": ("timm", lambda: of_timm(use_cls_token=True), {"class_token": True}),
    "timm 1.0.31 MultiScaleVit, as large": (
        "timm", lambda: of_timm(expand_attn=False, num_heads=2), {"expand": False, "heads": 2},
    ),
    "torchvision 0.28 MViT, clips": ("torchvision", of_torchvision, CLIPS),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", MODELS)
pytestmark = pytest.mark.usefixtures("_peers_load")


def pair(name: str) -> tuple[nn.Module, MViTv2, Tensor]:
    """The library's model in float64, ours with its weights, and what both take."""
    library, make, more = MODELS[name]
    theirs, ours = redraw(make()).double().eval(), MViTv2(**SIZES, **more).double().eval()
    report = checkpoints.load(ours, theirs.state_dict(), layout=library)
    assert report.exact
    assert report.resized == report.dropped == report.left == []
    return theirs, ours, torch.randn(2, 3, *([8] if more.get("frames") else []), 64, 64, dtype=torch.float64)


@pytest.mark.row(64)
@EVERY
def test_logits_and_gradients(parity, name: str) -> None:
    theirs, ours, images = pair(name)
    found, wanted = ours(images), theirs(images)
    parity(64, name, apart_by_size(found, wanted), MOST)
    weights = torch.randn_like(wanted)
    for out in (found, wanted):
        (out * weights).sum().backward()
    library, _, more = MODELS[name]
    gradients = MViTv2(**SIZES, **more).double()
    gradients.load_state_dict({n: p.grad for n, p in ours.named_parameters()})
    goldens = {n: p.grad for n, p in theirs.named_parameters()}
    renamed = checkpoints.export(gradients, library)
    assert renamed.keys() == goldens.keys()
    worst = max(float((g - goldens[n]).abs().max()) / max(float(goldens[n].abs().max()), 1) for n, g in renamed.items())
    parity(64, f"{name}, every gradient", worst, MOST)


@pytest.mark.row(64)
@EVERY
def test_ours_loads_strictly_there(name: str) -> None:
    library, make, more = MODELS[name]
    ours = redraw(MViTv2(**SIZES, **more)).double().eval()
    theirs = make().double().eval()
    theirs.load_state_dict(checkpoints.export(ours, library))
    images = torch.randn(1, 3, *([8] if more.get("frames") else []), 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert apart_by_size(ours(images), theirs(images)) <= MOST


@pytest.mark.row(64)
@pytest.mark.parametrize("token", [False, True])
def test_original_files_as_timm_reads_them(timm, token: bool) -> None:
    """facebookresearch/mvit counts blocks through all stages: timm's own loader turns its names into timm's."""
    ours = redraw(MViTv2(**SIZES, class_token=token))
    state = checkpoints.export(ours, "official")
    theirs = of_timm(use_cls_token=token)
    turned = timm.models.mvitv2.checkpoint_filter_fn({"model_state": state}, theirs)
    assert turned.keys() == checkpoints.export(ours, "timm").keys()
    theirs.load_state_dict(turned)
    again = MViTv2(**SIZES, class_token=token)
    assert checkpoints.load(again, {"model_state": state}).layout == "official"
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert apart_by_size(again.eval()(images), theirs.eval()(images)) <= 1e-5
