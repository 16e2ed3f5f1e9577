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
from locant.integrations.layers import PERCEPTRONS
from locant.integrations.transformers import FAMILIES
from locant.integrations.transformers_whole import FAMILIES as WHOLE_FAMILIES

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


@pytest.mark.parametrize("part", ["before", "after", "query", "first", "drop_path", None])
@pytest.mark.parametrize("name", ["Swin", "DonutSwin", "MaskFormerSwin", "Swinv2"])
@pytest.mark.parametrize("size", [64, 72])
def test_halves_of_layers_are_joined(transformers, name: str, size: int, part: str | None) -> None:
    swin = name == "Swin"
    names = {
        "before": "layernorm_before", "after": "layernorm_after", "drop_path": "drop_path",
        "query": "attention.q_proj" if swin else "attention.self.query",
        "first": "mlp.fc1" if swin else "intermediate.dense",
    }  # fmt: skip
    if name == "Swinv2" and part == "drop_path":
        pytest.skip("one drop path for both halves: called twice")
    model = _build(transformers, name, size, drop_path_rate=0.3)
    layer = next(path for path, _ in model.named_modules() if path.endswith("layers.0.blocks.1")) + "."
    apart = [
        "embeddings",
        "merging",
        *["norm"] * (name != "DonutSwin"),
        *["before"] * (4 if size == 72 and name != "Swinv2" else 0),
    ]
    accelerated.check_halves(model, [torch.randn(9, 3, size, size)], part and layer + names[part], apart)


def test_restoration(transformers) -> None:
    """Its pictures are whole windows: the model fills them up before."""
    accelerated.check(_build(transformers, "Swin2SR", 16), torch.randn(1, 3, 16, 12), count=4)


def test_sounds(transformers) -> None:
    accelerated.check(_clap(transformers), {"input_features": torch.randn(2, 1, 250, 16)}, count=4)


WHOLE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 16}
BEIT = {"use_relative_position_bias": True, "layer_scale_init_value": 0.5}


def _whole(transformers: ModuleType, name: str, size: int | tuple[int, int] = 64, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**WHOLE, "image_size": size, **more})
    return getattr(transformers, f"{name}Model")(config)


@pytest.mark.parametrize("name", ["Beit", "Data2VecVision"])
@pytest.mark.parametrize("size", [64, 96])
def test_beit(transformers, name: str, size: int) -> None:
    """On pictures of the table's size, and on larger ones, for which the library resizes the table at each call."""
    model = _whole(transformers, name, **BEIT)
    accelerated.check(model, torch.randn(2, 3, size, size), count=2)


def test_the_class_with_its_own_softmax(transformers) -> None:
    model = _whole(transformers, "Data2VecVision", attn_implementation="eager", **BEIT)
    x, plain = torch.randn(2, 3, 64, 64), accelerated.randomised(copy.deepcopy(model))
    accelerated.randomised(model)
    model.load_state_dict(plain.state_dict())
    locant.accelerate(model, example=x, strict=True)
    with torch.no_grad():
        ours, theirs = (m(x, output_attentions=True).attentions for m in (model, plain))
    assert len(ours) == 2
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["Beit", "Data2VecVision"])
def test_a_bias_that_is_shared_is_left_to_the_model(transformers, name: str) -> None:
    report = locant.accelerate(_whole(transformers, name, use_shared_relative_position_bias=True))
    assert {row.kernel for row in report.rows if row.kind == "attention"} <= {None}
    assert "which shares it among layers" in str(report)


@pytest.mark.parametrize("name", ["ViT", "DeiT", "Dinov2", "ViTMSN", "Beit"])
def test_plain_attention(transformers, name: str) -> None:
    model = accelerated.randomised(_whole(transformers, name, num_hidden_layers=1))
    report = locant.accelerate(model, example=torch.randn(2, 3, 64, 64), strict=True, training=True)
    assert sum(row.kind == "attention" for row in report.replaced) == 1


@pytest.mark.parametrize("part", ["norm1", "norm2", "attention", "attention.q_proj", "mlp", "mlp.fc1", None])
@pytest.mark.parametrize("name", ["ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "ViTMSN", "Beit", "BeitPlain"])
def test_halves_of_whole_layers_are_joined(transformers, name: str, part: str | None) -> None:
    """BEiT with its table and LayerScale, and without."""
    more = {"Beit": BEIT, "BeitPlain": {"layer_scale_init_value": 0.0}}.get(name, {})
    model = _whole(transformers, name.removesuffix("Plain"), **more)
    names = {} if name.startswith("Dino") else {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    layer = next(path for path, _ in model.named_modules() if path.endswith(("layers.1", "layer.1")))
    if part == "attention" and name.startswith("Beit"):
        part = "attention.o_proj"  # the layer does what its attention does: a hook on that is not called, says the row
    path = part and f"{layer}.{names.get(part, part)}"
    accelerated.check_halves(model, [torch.randn(40, 3, 64, 64)], path, ["norm"])


def test_a_mask_goes_the_class_s_own_way(transformers) -> None:
    attn = accelerated.randomised(_whole(transformers, "ViT")).layers[0].attention
    x, mask = torch.randn(2, 17, 32), torch.randn(2, 1, 17, 17)
    with torch.no_grad():
        wanted = attn(x, mask)[0]
        locant.accelerate(attn, only="")
        assert torch.equal(attn(x, mask)[0], wanted)


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
@pytest.mark.parametrize("name", ["Swin", "Swinv2", "Beit"])
def test_graphs(transformers, name: str) -> None:
    size = 64 if name == "Beit" else 40
    model = _whole(transformers, name, **BEIT) if name == "Beit" else _build(transformers, name, size)
    accelerated.check_graphs(model, [torch.randn(2, 3, size, size)])


@pytest.mark.parametrize(
    "name", ["Swin", "DonutSwin", "MaskFormerSwin", "Swinv2", "Swin2SR", "Beit", "Data2VecVision", "ViT"]
)
def test_unknown_sources_are_tried(transformers, monkeypatch, name: str) -> None:
    whole = {"Beit": BEIT, "Data2VecVision": BEIT, "ViT": {}}
    model = _whole(transformers, name, **whole[name]) if name in whole else _build(transformers, name)
    accelerated.check_tried(model, monkeypatch)


def test_the_classes_are_known_by_source(transformers) -> None:
    accelerated.check_known([*FAMILIES, *WHOLE_FAMILIES, *(f for f in PERCEPTRONS if "transformers" in f.classes[0])])


@pytest.mark.parametrize("first", [True, False], ids=["checkpointed first", "accelerated first"])
@pytest.mark.parametrize("name", ["Swin", "DonutSwin", "MaskFormerSwin", "Swinv2", "ViT", "Beit", "Dinov2"])
def test_gradient_checkpointing(transformers, name: str, first: bool) -> None:
    """Layers go through the library's checkpoint as often as without Locant, and gradients are those without both."""
    if name in ("ViT", "Beit", "Dinov2"):
        config = getattr(transformers, f"{name}Config")(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=16,
            image_size=64, use_relative_position_bias=True,
        )  # fmt: skip
        model = getattr(transformers, f"{name}Model")(config)
    else:
        model = _build(transformers, name, 64)
    accelerated.randomised(model).train()
    for module in model.modules():
        if "Drop" in type(module).__name__:
            module.eval()
    x, calls = torch.randn(2, 3, 64, 64), []

    def gradients(model: nn.Module) -> list[torch.Tensor]:
        model.zero_grad()
        out = accelerated._tensor(model(x))
        torch.autograd.backward(out, torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    def checkpoint(function, *inputs):
        calls.append(function)
        return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)

    def watch(model: nn.Module) -> None:
        for layer in model.modules():
            if isinstance(layer, transformers.modeling_layers.GradientCheckpointingLayer):
                layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, checkpoint

    plain = copy.deepcopy(model)
    wanted = gradients(plain)
    watch(plain)
    gradients(plain)
    count = len(calls)
    calls.clear()
    if first:
        watch(model)
    locant.accelerate(model)
    watch(model)
    found = gradients(model)
    assert len(calls) == count > 0
    largest = max(float(one.abs().max()) for one in wanted)  # some are 0 but for rounding: what a norm takes out again
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-5 * largest
