"""transformers' models, accelerated: the same numbers forward and backward, and calls that want more go on working."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.dispatch import tree_leaves
from locant.integrations.transformers import FAMILIES

SWIN = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}


def _build(transformers: ModuleType, name: str, size: int = 64, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    if name == "Swin2SR":
        more = {"num_heads": [2, 2], "upsampler": "pixelshuffledirect", "patch_size": 1, **more}
    config = getattr(transformers, f"{name}Config")(**{**SWIN, "image_size": size, **more})
    return getattr(transformers, f"{name}Model")(config)


def _clap(transformers: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ClapAudioConfig(
        window_size=4, num_mel_bins=16, spec_size=64, patch_size=4, patch_stride=[4, 4], num_classes=4, hidden_size=64,
        projection_dim=16, depths=[2, 2], num_attention_heads=[2, 4], num_hidden_layers=2, enable_fusion=False,
        patch_embeds_hidden_size=32, aff_block_r=1,
    )  # fmt: skip
    return transformers.ClapAudioModel(config)


@pytest.mark.parametrize("name", ["Swin", "DonutSwin", "MaskFormerSwin", "Swinv2"])
@pytest.mark.parametrize("size", [64, 72, 28])  # maps of 16, 18 and 7: the last one's second is as large as a window
def test_swin(transformers, name: str, size: int) -> None:
    accelerated.check(_build(transformers, name, size), torch.randn(2, 3, size, size), count=4)


@pytest.mark.parametrize("name", ["MaskFormerSwin", "Swinv2"])
def test_a_map_smaller_than_a_window(transformers, name: str) -> None:
    accelerated.check(_build(transformers, name, 16), torch.randn(2, 3, 16, 16), count=4)


def test_restoration(transformers) -> None:
    """Its pictures are whole windows: the model fills them up before."""
    accelerated.check(_build(transformers, "Swin2SR", 16), torch.randn(1, 3, 16, 12), count=4)


def test_sounds(transformers) -> None:
    accelerated.check(_clap(transformers), {"input_features": torch.randn(2, 1, 250, 16)}, count=4)


@pytest.mark.parametrize("name", ["Swin", "DonutSwin", "MaskFormerSwin", "Swinv2"])
def test_weights_that_are_asked_for_are_handed_out(transformers, name: str) -> None:
    """A call with output_attentions goes to the class's own forward, before and after others."""
    model = accelerated.randomised(_build(transformers, name))
    plain, x = copy.deepcopy(model), torch.randn(1, 3, 64, 64)
    locant.accelerate(model, strict=True)
    for m in (model, plain):
        if name == "Swin":
            m.set_attn_implementation("eager")
    with torch.no_grad():
        model(x)
        ours, theirs = (m(x, output_attentions=True, output_hidden_states=True) for m in (model, plain))
    found, golden = (tree_leaves([y.attentions, y.hidden_states]) for y in (ours, theirs))
    assert len(found) == len(golden)
    assert len(theirs.attentions) > 0
    for one, other in zip(found, golden, strict=True):
        assert torch.as_tensor(one - other).abs().max() <= 1e-5 * torch.as_tensor(other).abs().max()


def test_an_implementation_that_hands_out_weights_is_left_alone(transformers) -> None:
    report = locant.accelerate(_build(transformers, "Swin", attn_implementation="eager"))
    assert {row.kernel for row in report.rows if row.kind == "attention"} == {None}
    assert "set_attn_implementation" in str(report)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["Swin", "Swinv2"])
def test_graphs(transformers, name: str) -> None:
    accelerated.check_graphs(_build(transformers, name, 40), [torch.randn(2, 3, 40, 40)])


@pytest.mark.parametrize("name", ["Swin", "DonutSwin", "MaskFormerSwin", "Swinv2", "Swin2SR"])
def test_unknown_sources_are_tried(transformers, monkeypatch, name: str) -> None:
    accelerated.check_tried(_build(transformers, name), monkeypatch)


def test_the_classes_are_known_by_source(transformers) -> None:
    accelerated.check_known(FAMILIES)
