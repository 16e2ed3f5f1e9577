"""Swin and Swin v2 whole, on random weights carried over by `locant.checkpoints`: logits, gradients, a step of SGD.

Every number is drawn anew, tables and biases wide, so that a wrong one shows. Logits are compared in float32 and may
be 1e-5 of the largest apart; gradients and the weights after a step in float64, 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType

import pytest
import torch
from sharpened import sharpened
from torch import Tensor, nn
from torch.nn import functional as F

from locant import checkpoints
from locant.checkpoints import swin as names
from locant.checkpoints import swin_v2 as names_v2
from locant.checkpoints.names import Layout, turned_in
from locant.models import swin as builders
from locant.models import swin_v2 as builders_v2
from locant.models.swin import Swin, swin_tiny
from locant.models.swin_v2 import SwinV2, swinv2_base

LAYOUTS = {
    kind: {layout.name: layout for layout in module.LAYOUTS} for kind, module in ((Swin, names), (SwinV2, names_v2))
}
SIZES = {"dim": 24, "depths": (2, 2), "heads": (2, 3), "num_classes": 10}
EXACT, SINGLE = 1e-10, 1e-5
Parity = Callable[[int, str, float, float], None]
KINDS = pytest.mark.parametrize("kind", [Swin, SwinV2])


def rows(test: Callable[..., None]) -> Callable[..., None]:
    """Blocks and merging, sizes that windows do not divide, small maps, Swin v2."""
    for row in (11, 12, 13, 14):
        test = pytest.mark.row(row)(test)
    return test


@pytest.fixture(scope="module")
def torchvision(timm: ModuleType) -> ModuleType:
    """Mended by timm's fixture."""
    pytest.importorskip("torchvision.models")
    return import_module("torchvision.models.swin_transformer")


def redrawn(module: nn.Module) -> nn.Module:
    """Random weights at which everything shows, and nothing explodes."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.normal_(1, 0.2)
            elif "logit_scale" in name:
                parameter.normal_(2.3, 0.5)
            elif "table" in name or "mlp.0" in name or "mlp.2" in name:
                parameter.normal_(std=0.5)
            else:
                parameter.normal_(std=0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return module.eval()


def relative(found: Tensor, golden: Tensor) -> float:
    assert found.shape == golden.shape
    return float((found - golden).detach().abs().max() / golden.detach().abs().max())


def logits(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits, the gradients of a loss, and the weights after a step of SGD."""
    labels = torch.arange(len(x)) % 10
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    out = logits(model, x)
    F.cross_entropy(out, labels).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimiser.step()
    return out, gradients, dict(model.state_dict())


def worst(found: Mapping[str, Tensor], theirs: Mapping[str, Tensor], layout: Layout) -> float:
    """Tensor by tensor over its largest number, theirs by our names."""
    turned = turned_in(theirs, layout, {name: tuple(t.shape) for name, t in found.items()})
    assert turned.keys() == found.keys()
    return max(relative(tensor, turned[name]) for name, tensor in found.items())


def agree(model: Swin, theirs: nn.Module, layout: str, x: Tensor, parity: Parity) -> None:
    """Their weights in our model, strictly; then forward in float32, one training step in float64."""
    known = LAYOUTS[type(model)][layout]
    assert checkpoints.load(model, theirs.state_dict(), layout=known).exact
    model.eval()
    with torch.no_grad():
        error = relative(model(x), logits(theirs, x))
    version, own = ("Swin v2", 14) if isinstance(model, SwinV2) else ("Swin", 13)
    for row in (11, 12, own):
        parity(row, f"{layout} {version}, logits", error, SINGLE)
    found, golden = step(model.double(), x.double()), step(sharpened(theirs), x.double())
    where = f"{layout} {version}, float64"
    parity(own, f"{where}, logits", relative(found[0], golden[0]), EXACT)
    parity(own, f"{where}, gradients", worst(found[1], golden[1], known), EXACT)
    parity(own, f"{where}, weights after a step", worst(found[2], golden[2], known), EXACT)


def of_timm(kind: type[Swin], size: tuple[int, int], window: int | tuple[int, int], **rules: object) -> nn.Module:
    name = "swin_transformer" if kind is Swin else "swin_transformer_v2"
    module = import_module(f"timm.models.{name}")
    published = module.SwinTransformer if kind is Swin else module.SwinTransformerV2
    given = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3), "num_classes": 10}
    return redrawn(published(img_size=size, window_size=window, **(given | rules)))


@pytest.mark.row(13)
@pytest.mark.row(16)
def test_timm_swin_tiny_at_224(timm: ModuleType, parity: Parity) -> None:
    """Twelve blocks, 28 million parameters; the step in float32, whose gradients may be 3e-5 apart."""
    theirs, model = redrawn(timm.create_model("swin_tiny_patch4_window7_224")), swin_tiny()
    known = LAYOUTS[Swin]["timm"]
    assert checkpoints.load(model, theirs.state_dict(), layout=known).exact
    x = torch.randn(1, 3, 224, 224)
    found, golden = step(model.eval(), x), step(theirs, x)
    parity(13, "timm swin_tiny, 224, logits", relative(found[0], golden[0]), SINGLE)
    parity(16, "timm swin_tiny, 224, gradients", worst(found[1], golden[1], known), 3 * SINGLE)
    parity(16, "timm swin_tiny, 224, weights after a step", worst(found[2], golden[2], known), SINGLE)


@KINDS
@rows
@pytest.mark.parametrize(
    ("size", "window", "border"),
    [
        ((64, 32), 4, "cells"),  # windows divide: any border
        ((80, 112), 5, "roll-pad"),  # 20 × 28, 10 × 14
        ((72, 104), (4, 3), "roll-pad"),  # 18 × 26, 9 × 13
        ((40, 132), 7, "roll-pad"),  # 10 × 33, 5 × 17: odd, and smaller than the window on one axis
    ],
)
def test_timm(
    timm: ModuleType,
    kind: type[Swin],
    size: tuple[int, int],
    window: int | tuple[int, int],
    border: str,
    parity: Parity,
) -> None:
    theirs = of_timm(kind, size, window)
    model = kind(**SIZES, window=window, img_size=size, border=border, small="per-axis")
    agree(model, theirs, "timm", torch.randn(2, 3, *size), parity)


@KINDS
@rows
@pytest.mark.parametrize(
    ("size", "window"),
    [((80, 112), 5), ((70, 101), 4), ((56, 112), 7)],  # the last: 14 × 28 and 7 × 14, where no axis is shifted
)
def test_transformers(
    transformers: ModuleType, kind: type[Swin], size: tuple[int, int], window: int, parity: Parity
) -> None:
    config, published = (
        (transformers.SwinConfig, transformers.SwinForImageClassification)
        if kind is Swin
        else (transformers.Swinv2Config, transformers.Swinv2ForImageClassification)
    )
    given = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 3], "num_labels": 10}
    theirs = redrawn(published(config(image_size=size, window_size=window, **given)))
    model = kind(**SIZES, window=window, img_size=size, border="pad-roll", small="joint")
    agree(model, theirs, "transformers", torch.randn(2, 3, *size), parity)


@KINDS
@rows
@pytest.mark.parametrize(
    ("size", "window"),
    [((80, 112), (5, 5)), ((70, 101), (4, 3)), ((20, 60), (7, 7))],  # the last: 5 × 15 and 3 × 8
)
def test_torchvision(
    torchvision: ModuleType, kind: type[Swin], size: tuple[int, int], window: tuple[int, int], parity: Parity
) -> None:
    block, merging = ("", "") if kind is Swin else ("V2", "V2")
    theirs = torchvision.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 3], window_size=list(window), num_classes=10,
        block=getattr(torchvision, f"SwinTransformerBlock{block}"),
        downsample_layer=getattr(torchvision, f"PatchMerging{merging}"),
    )  # fmt: skip
    model = kind(**SIZES, window=window, img_size=size, border="pad-roll", small="pad", patch_border="cut")
    agree(model, redrawn(theirs), "torchvision", torch.randn(2, 3, *size), parity)


@KINDS
@pytest.mark.row(13)
def test_timm_features(timm: ModuleType, kind: type[Swin], parity: Parity) -> None:
    """One map per stage, before merging."""
    theirs, x = of_timm(kind, (72, 40), 5), torch.randn(2, 3, 72, 40)
    model = kind(**SIZES, window=5, img_size=(72, 40), border="roll-pad", small="per-axis").eval()
    checkpoints.load(model, theirs.state_dict())
    with torch.no_grad():
        found, golden = model.features(x), theirs.forward_intermediates(x, intermediates_only=True)
        for stage, (a, b) in enumerate(zip(found, golden, strict=True)):
            parity(13, f"timm forward_intermediates, stage {stage}", relative(a, b), SINGLE)
        last = theirs.forward_features(x).permute(0, 3, 1, 2)
        parity(13, "timm forward_features", relative(model.forward_features(x), last), SINGLE)


@KINDS
@pytest.mark.row(11)
def test_timm_rolls_what_the_others_fill_first(timm: ModuleType, kind: type[Swin]) -> None:
    """On sizes that windows do not divide the published orders differ, and the model's rule must be the library's."""
    theirs, x = of_timm(kind, (72, 72), 7), torch.randn(1, 3, 72, 72)
    for border in ("cells", "pad-roll"):
        model = kind(**SIZES, img_size=72, border=border, small="per-axis").eval()
        checkpoints.load(model, theirs.state_dict(), layout=LAYOUTS[kind]["timm"])
        assert relative(model(x), theirs(x)) > 1e-3


@KINDS
@pytest.mark.row(13)
def test_timm_in_training_drops_the_same(timm: ModuleType, kind: type[Swin], parity: Parity) -> None:
    """Drop path and dropout at the same places, in the same order, from the same random numbers."""
    rates = {"drop_path_rate": 0.6, "proj_drop_rate": 0.2}
    theirs = of_timm(kind, (64, 32), 4, **rates).train()
    model = kind(**SIZES, **rates, window=4, img_size=(64, 32), small="per-axis").train()
    checkpoints.load(model, theirs.state_dict(), layout=LAYOUTS[kind]["timm"])
    assert [b.drop_path for s in model.layers for b in s.blocks] == pytest.approx([0, 0.2, 0.4, 0.6])
    x, found = torch.randn(8, 3, 64, 32), []
    for one in (model, theirs):
        torch.manual_seed(3)
        # dropout draws by memory order, which equals ours where windows are not regrouped: leave it on the perceptron
        for block in (module for module in one.modules() if hasattr(module, "proj_drop")):
            block.proj_drop = nn.Identity()
        for attention in (module for module in one.modules() if hasattr(module, "proj_dropout")):
            attention.proj_dropout = 0.0
        found.append(one(x))
    parity(13, "timm, training with drop path and dropout", relative(*found), SINGLE)


@pytest.mark.row(13)
def test_transformers_never_drops_the_perceptron(transformers: ModuleType) -> None:
    """What we do not repeat."""
    swin = import_module("transformers.models.swin.modeling_swin")
    config = transformers.SwinConfig(embed_dim=24, num_heads=[3], depths=[1], window_size=4)
    layer = redrawn(swin.SwinLayer(config, 24, (8, 8), 3))

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    layer.drop_path = Nothing()
    x = torch.randn(1, 64, 24)
    assert torch.allclose(layer(x, (8, 8))[0], x + layer.mlp(layer.layernorm_after(x)), atol=1e-6)


@pytest.mark.row(12)
def test_transformers_remembers_small_maps(transformers: ModuleType) -> None:
    """A layer keeps what one small map made of its shift and window. Ours looks at each map alone."""
    config = transformers.SwinConfig(embed_dim=24, depths=[2, 2], num_heads=[2, 3], num_labels=10, window_size=4)
    theirs = redrawn(transformers.SwinForImageClassification(config))
    model = Swin(**SIZES, window=4, img_size=None, border="pad-roll").eval()
    checkpoints.load(model, theirs.state_dict(), layout=LAYOUTS[Swin]["transformers"])
    large, medium, small = (torch.randn(1, 3, *size) for size in ((64, 64), (32, 32), (16, 32)))
    with torch.no_grad():
        before, ours = theirs(large).logits, model(large)
        assert relative(ours, before) <= SINGLE
        assert relative(model(medium), theirs(medium).logits) <= SINGLE  # the second stage has one window
        assert relative(theirs(large).logits, before) > 1e-3
        with pytest.raises(RuntimeError):
            theirs(small)  # 2 × 4 cells there, and a table for windows of 4
        with pytest.raises(RuntimeError):
            theirs(large)  # from now on
        assert bool(model(small).isfinite().all())
        assert torch.equal(model(large), ours)


@KINDS
@pytest.mark.row(13)
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_as_many_parameters_as_published(timm: ModuleType, kind: type[Swin], size: str, parity: Parity) -> None:
    """The papers round: 28, 50, 88 and 197 million."""
    counts = {
        "swin_tiny": 28_288_354, "swin_small": 49_606_258, "swin_base": 87_768_224, "swin_large": 196_532_476,
        "swinv2_tiny": 28_347_154, "swinv2_small": 49_728_418, "swinv2_base": 87_918_816, "swinv2_large": 196_739_932,
    }  # fmt: skip
    v1 = {"tiny": "7_224", "small": "7_224", "base": "7_224", "large": "7_224"}
    v2 = {"tiny": "8_256", "small": "8_256", "base": "8_256", "large": "12_192"}
    name = f"swin_{size}" if kind is Swin else f"swinv2_{size}"
    published = f"{name}_patch4_window{v1[size]}" if kind is Swin else f"{name}_window{v2[size]}"
    with torch.device("meta"):
        model = getattr(builders if kind is Swin else builders_v2, name)()
        theirs = timm.create_model(published, num_classes=1000)
    found, golden = (sum(p.numel() for p in m.parameters()) for m in (model, theirs))
    parity(13, f"timm {published}, parameters", abs(found - golden), 0)
    assert found == counts[name]


@pytest.mark.row(14)
def test_swinv2_from_smaller_pictures(timm: ModuleType, parity: Parity) -> None:
    """`pretrained_window_sizes`: offsets are measured by the windows of the first training, 12, 12, 12 and 6."""
    theirs = of_timm(SwinV2, (64, 64), 8, pretrained_window_sizes=(6, 3))
    model = SwinV2(**SIZES, window=6, img_size=24).resized(window=8, img_size=64).eval()
    assert checkpoints.load(model, theirs.state_dict(), layout=LAYOUTS[SwinV2]["timm"]).exact
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        parity(14, "timm swinv2 6 to 8, logits", relative(model(x), theirs(x)), SINGLE)
    with torch.device("meta"):
        full = swinv2_base(window=12, img_size=192).resized(window=16, img_size=256)
    assert [s.blocks[0].attention.position.pretrained.shape[0] for s in full.layers] == [12, 12, 12, 6]
    assert [s.blocks[0].attention.position.grid.shape[0] for s in full.layers] == [16, 16, 16, 8]
