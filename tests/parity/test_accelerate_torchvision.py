"""torchvision's models, accelerated: the same numbers forward and backward, on maps that windows divide and others."""

from __future__ import annotations

from types import ModuleType

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.integrations.torchvision import FAMILIES


@pytest.fixture
def models(_peers_load: None) -> ModuleType:
    return pytest.importorskip("torchvision").models


def _pictures(models: ModuleType, v2: bool) -> nn.Module:
    torch.manual_seed(0)
    kind = models.swin_transformer
    more = {"block": kind.SwinTransformerBlockV2, "downsample_layer": kind.PatchMergingV2} if v2 else {}
    return kind.SwinTransformer(
        patch_size=[4, 4], embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=10, **more
    )


def _clips(models: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    return models.video.swin_transformer.SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=[4, 3, 3], num_classes=10
    )


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(64, 64), (72, 88), (24, 12)],  # windows of 4 divide 16 × 16 and 8 × 8; 18 × 22 they do not; 6 × 3 is too small
)
def test_pictures(models, v2: bool, rows: int, columns: int) -> None:
    accelerated.check(_pictures(models, v2), torch.randn(2, 3, rows, columns), count=4)


@pytest.mark.parametrize(
    ("frames", "rows", "columns"),
    [
        (8, 48, 24),  # 4 × 12 × 6
        (9, 44, 28),  # windows of 4 × 3 × 3 do not divide 5 × 11 × 7
        (4, 48, 24),  # two frames: the window shrinks in time
        (4, 8, 24),  # two rows: the library's bias is no function of the offset there, and its own method runs
    ],
)
def test_clips(models, frames: int, rows: int, columns: int) -> None:
    accelerated.check(_clips(models), torch.randn(2, 3, frames, rows, columns), count=4)


@pytest.mark.parametrize("part", ["norm1", "norm2", "attn", "attn.proj", "mlp.1", None])
@pytest.mark.parametrize(
    ("clips", "sides", "filled"),
    [
        (False, (64, 64), 0),
        (False, (72, 64), 4),  # windows of 4 divide neither 18 nor 9 rows
        (True, (8, 48, 24), 0),
        (True, (9, 48, 24), 4),  # nor windows of 4 five frames
        (True, (4, 48, 24), 0),  # two frames: the window shrinks in time
    ],
)
def test_halves_of_blocks_are_joined(models, clips: bool, sides: tuple, filled: int, part: str | None) -> None:
    model = _clips(models) if clips else _pictures(models, False)
    path = None if part is None else f"features.{0 if clips else 1}.1.{part}"
    apart = ["patches", "norm", *["norm1"] * filled]
    accelerated.check_halves(model, [torch.randn(8, 3, *sides)], path, apart)


@pytest.mark.parametrize("part", ["norm1", "norm2", "attn", "attn.qkv", "mlp.1", None])
@pytest.mark.parametrize("side", [64, 72])  # windows of 4 divide neither 18 nor 9 rows
def test_halves_with_their_norm_behind_are_joined(models, side: int, part: str | None) -> None:
    path = None if part is None else f"features.1.1.{part}"
    accelerated.check_halves(_pictures(models, True), [torch.randn(8, 3, side, side)], path, ["patches", "norm"])


def test_a_bias_of_keys_is_left_out_as_published(models) -> None:
    """Swin v2 takes the keys' share of qkv's bias for zero, whatever it holds, around an adapter as well."""
    model = _pictures(models, True)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "qkv"):
                module.qkv.bias.normal_()
    accelerated.check(model, torch.randn(2, 3, 32, 32))


def test_training_has_the_dropouts_of_the_library(models) -> None:
    """In training mode, dropouts off, gradients are the library's; on, they are drawn."""
    model = _pictures(models, False)
    locant.accelerate(model)
    x = torch.randn(2, 3, 64, 64)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.train()
        assert not torch.equal(model(x), model(x))


@pytest.mark.compiled
@pytest.mark.parametrize("build", ["pictures", "angles", "clips"])
def test_graphs(models, build: str) -> None:
    model = _clips(models) if build == "clips" else _pictures(models, build == "angles")
    accelerated.check_graphs(model, [torch.randn(2, 3, *((8, 44, 28) if build == "clips" else (72, 64)))])


@pytest.mark.parametrize("build", ["pictures", "angles", "clips"])
def test_unknown_sources_are_tried(models, monkeypatch, build: str) -> None:
    accelerated.check_tried(_clips(models) if build == "clips" else _pictures(models, build == "angles"), monkeypatch)


def test_the_classes_are_known_by_source(models) -> None:
    accelerated.check_known(FAMILIES)
