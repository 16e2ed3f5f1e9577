"""timm's models, accelerated: the same numbers forward and backward, on maps that windows divide and on others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import locant
from locant.integrations.model import family_of


def _errors(model: nn.Module, x: torch.Tensor, training: bool = True) -> locant.integrations.report.Report:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bias_table" in name:
                p.normal_()
    return locant.accelerate(model, example=x, strict=True, training=training)


@pytest.mark.parametrize(
    ("size", "more"),
    [
        (64, {}),  # 16 × 16: windows of 4 divide the map
        (72, {"strict_img_size": False}),  # 18, 9, ... do not
        (40, {}),  # the last maps are smaller than a window
        (64, {"always_partition": True}),
        (72, {"strict_img_size": False, "always_partition": True}),
    ],
)
def test_swin(timm, size: int, more: dict) -> None:
    torch.manual_seed(0)
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=size, window_size=4, embed_dim=32, depths=(2, 2, 2), num_heads=(2, 4, 8), num_classes=10, **more
    ).eval()  # fmt: skip
    report = _errors(model, torch.randn(2, 3, size, size))
    attention = [row for row in report.rows if row.kind == "attention"]
    assert len(attention) == 6
    assert {row.kernel for row in attention} == {"native"}


def test_swin_resized_afterwards(timm) -> None:
    """Window, table and mask are read at each call: timm's own resizing is followed."""
    torch.manual_seed(0)
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=64, window_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4), num_classes=10
    ).eval()  # fmt: skip
    plain = copy.deepcopy(model)
    locant.accelerate(model)
    x = torch.randn(2, 3, 96, 96)
    for m in (model, plain):
        torch.manual_seed(1)
        m.set_input_size(img_size=96, window_size=6)
    with torch.no_grad():
        ours, theirs = model(x), plain(x)
    assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_the_classes_are_known_by_source(timm) -> None:
    """A new timm whose source differs is tried on random input; this says that the pinned one is not."""
    from locant.integrations.family import digest
    from locant.integrations.timm import FAMILIES

    for family in FAMILIES:
        for name in family.classes:
            module, _, cls = name.rpartition(".")
            found = getattr(__import__(module, fromlist=[cls]), cls)
            assert digest(found, family.methods) in family.known, name
            assert family_of(found) is family
