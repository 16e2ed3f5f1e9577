"""ViT and DeiT on the weights of timm, transformers and torchvision, every parameter drawn anew, and back again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from redrawing import redraw
from torch import Tensor, nn

from locant import checkpoints
from locant.checkpoints import convert, write
from locant.checkpoints.families import layouts
from locant.checkpoints.names import turned_in
from locant.compare import Placement
from locant.compare.builders import find_builder
from locant.compare.schemes import find
from locant.models import ViT, deit3_small, deit_small, deit_tiny, from_file, vit_base, vit_small, vit_tiny
from locant.models.deit import DeiT
from locant.nn import Block
from locant.tasks.kinds import KINDS

MOST = 1e-5
SMALL: dict[str, Any] = {"img_size": 64, "num_classes": 5, "dim": 48, "depth": 3, "heads": 3}


def of_timm(name: str, **given: Any) -> Callable[[], nn.Module]:
    return lambda: __import__("timm").create_model(name, num_classes=10, **given)


def plain_timm(**given: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=64, num_classes=5, embed_dim=48, depth=3, num_heads=3, **given)


def of_transformers(kind: str, config: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
        return getattr(transformers, kind)(getattr(transformers, config)(**sizes, image_size=64, num_labels=5))

    return make


def of_torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, 3, 3, 48, 192, num_classes=5)


# (whose, its model, ours, the side of the pictures)
MODELS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], ViT], int]] = {
    "vit_tiny_patch16": ("timm", of_timm("vit_tiny_patch16_224"), lambda: vit_tiny(num_classes=10, like="timm"), 224),
    "vit_small_patch32": (
        "timm", of_timm("vit_small_patch32_224", img_size=96),
        lambda: vit_small(num_classes=10, img_size=96, patch=32, like="timm"), 96,
    ),
    "vit_base_patch16": (
        "timm", of_timm("vit_base_patch16_224", img_size=(32, 64)),
        lambda: vit_base(num_classes=10, img_size=(32, 64), like="timm"), 0,
    ),
    "deit_tiny": ("timm", of_timm("deit_tiny_patch16_224"), lambda: deit_tiny(num_classes=10, like="timm"), 224),
    "deit_small_distilled": (
        "timm", of_timm("deit_small_distilled_patch16_224", img_size=64),
        lambda: deit_small(num_classes=10, img_size=64, distilled=True, like="timm"), 64,
    ),
    "deit3_small": (
        "timm", of_timm("deit3_small_patch16_224", img_size=64),
        lambda: deit3_small(num_classes=10, img_size=64, like="timm"), 64,
    ),
    "ViT with registers": (
        "timm", lambda: plain_timm(reg_tokens=4), lambda: ViT(**SMALL, registers=4, like="timm"), 64,
    ),
    "ViT of a mean": (
        "timm",
        lambda: plain_timm(reg_tokens=2, class_token=False, no_embed_class=True, global_pool="avg"),
        lambda: ViT(**SMALL, registers=2, pooling="mean", prefix_position=False, like="timm"), 64,
    ),
    "ViT without positions": (
        "timm", lambda: plain_timm(pos_embed="none", qkv_bias=False),
        lambda: ViT(**SMALL, position=None, qkv_bias=False, like="timm"), 64,
    ),
    "ViTForImageClassification": (
        "transformers", of_transformers("ViTForImageClassification", "ViTConfig"),
        lambda: ViT(**SMALL, like="transformers"), 64,
    ),
    "DeiTForImageClassification": (
        "transformers", of_transformers("DeiTForImageClassification", "DeiTConfig"),
        lambda: DeiT(**SMALL, distilled=True, head_dist=False, like="transformers"), 64,
    ),
    "DeiTForImageClassificationWithTeacher": (
        "transformers", of_transformers("DeiTForImageClassificationWithTeacher", "DeiTConfig"),
        lambda: DeiT(**SMALL, distilled=True, like="transformers"), 64,
    ),
    "VisionTransformer": ("torchvision", of_torchvision, lambda: ViT(**SMALL, like="torchvision"), 64),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", MODELS)


def pair(name: str) -> tuple[str, nn.Module, ViT, Tensor]:
    """The library's model in float64, ours with its weights, and pictures."""
    library, make, build, side = MODELS[name]
    theirs, ours = redraw(make()).double().eval(), build().double().eval()
    report = checkpoints.load(ours, theirs.state_dict(), layout=library)
    assert report.exact
    assert report.resized == report.dropped == report.left == []
    assert report.notes == []
    return library, theirs, ours, torch.randn(2, 3, *((side, side) if side else (32, 64)), dtype=torch.float64)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    found = model(images)
    return getattr(found, "logits", found)


def of_its_size(found: Tensor, golden: Tensor) -> float:
    return float((found.detach().double() - golden.detach()).abs().max() / golden.detach().abs().max())


@pytest.mark.row(57)
@EVERY
def test_logits(name, timm, transformers, parity):
    """float32 against theirs in float64: at most 1e-5 of their size, or twice what theirs is off in float32."""
    library, theirs, ours, images = pair(name)
    with torch.no_grad():
        golden = logits(theirs, images)
        exact = of_its_size(ours(images), golden)
        low = of_its_size(logits(copy.deepcopy(theirs).float(), images.float()), golden)
        error = of_its_size(ours.float()(images.float()), golden)
    parity(57, f"{library} {name}, logits (float64, of their size)", exact, 1e-10)
    parity(57, f"{library} {name}, logits (of their size)", error, max(2 * low, MOST))


@pytest.mark.row(57)
@EVERY
def test_gradients_of_a_training_step(name, timm, transformers, parity):
    """Of all parameters, in float64, so that only mathematics can differ."""
    library, theirs, ours, images = pair(name)
    labels = torch.tensor([3, 1])
    for model in (theirs, ours):
        nn.functional.cross_entropy(logits(model, images), labels).backward()
    found = {key: p.grad for key, p in ours.named_parameters()}
    golden = {key: p.grad for key, p in theirs.named_parameters()}
    shapes = {key: tuple(grad.shape) for key, grad in found.items()}
    readings = (turned_in(golden, one, shapes) for one in layouts(ours) if one.name == library)
    wanted = max(readings, key=len)
    assert wanted.keys() == found.keys()
    worst = max(of_its_size(found[key], wanted[key]) for key in found)
    parity(57, f"{library} {name}, gradients (float64, of their size)", worst, 1e-10)


@pytest.mark.row(58)
@EVERY
def test_ours_loads_strictly_there(name, timm, transformers, parity):
    """`export` by the library's names, and no other word."""
    library, theirs, ours, images = pair(name)
    ours = redraw(ours)
    theirs.load_state_dict(checkpoints.export(ours, library), strict=True)
    with torch.no_grad():
        error = of_its_size(logits(theirs, images), ours(images))
    parity(58, f"{library} {name}, from ours (float64, of their size)", error, 1e-10)


@pytest.mark.row(58)
def test_a_folder_of_save_pretrained(transformers, tmp_path: Path, parity):
    """Version 5 writes the names of version 4."""
    theirs = redraw(of_transformers("ViTForImageClassification", "ViTConfig")()).eval()
    theirs.save_pretrained(tmp_path)
    ours = ViT(**SMALL, like="transformers").eval()
    assert checkpoints.load(ours, tmp_path).layout == "transformers 4"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        parity(
            58, "transformers ViT, save_pretrained", of_its_size(ours(images), logits(theirs, images).double()), MOST
        )


@pytest.mark.row(58)
@pytest.mark.parametrize("to", ["timm", "transformers", "torchvision"])
def test_convert_both_ways(to, timm, transformers, parity, tmp_path: Path):
    """timm's file to ours, to another size, and from ours to each library's, loaded strictly there."""
    theirs = redraw(plain_timm()).eval()
    write(tmp_path / "timm.safetensors", theirs.state_dict())
    settings = {key: value for key, value in SMALL.items() if key not in ("img_size", "num_classes")}
    wanted: dict[str, Any] = {"model": "ViT", "image_size": 64, "classes": 5}
    convert(
        tmp_path / "timm.safetensors", tmp_path / "ours.safetensors", settings={**settings, "like": "timm"}, **wanted
    )
    ours, images = from_file(tmp_path / "ours.safetensors").eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        parity(58, "timm ViT, converted and from_file", of_its_size(ours(images), theirs(images).double()), MOST)
    convert(tmp_path / "ours.safetensors", tmp_path / "out.safetensors", settings=settings, to=to, **wanted)
    peers = {
        "timm": plain_timm, "torchvision": of_torchvision,
        "transformers": of_transformers("ViTForImageClassification", "ViTConfig"),
    }  # fmt: skip
    peer = peers[to]().eval()
    peer.load_state_dict(checkpoints.read(tmp_path / "out.safetensors"), strict=True)
    with torch.no_grad():
        parity(58, f"ViT to {to}, converted", of_its_size(logits(peer, images), ours(images).double()), MOST)


@pytest.mark.row(58)
@pytest.mark.parametrize(("library", "side"), [("timm", (96, 48)), ("transformers", (96, 48))])
def test_another_size_is_resized_as_the_library_does(library, side, timm, transformers, parity):
    """timm's `set_input_size`, antialiased; transformers' `interpolate_pos_encoding`, bicubic."""
    name = "ViT with registers" if library == "timm" else "ViTForImageClassification"
    _, theirs, ours, _ = pair(name)
    larger = ViT(**{**SMALL, "img_size": side}, registers=ours.grid.prefix - 1, like=library).double().eval()
    report = checkpoints.load(larger, theirs.state_dict(), layout=library)
    assert [line.method for line in report.resized] == ["antialiased" if library == "timm" else "bicubic"]
    images = torch.randn(2, 3, *side, dtype=torch.float64)
    with torch.no_grad():
        if library == "timm":
            theirs.set_input_size(side)
            golden = theirs(images)
        else:
            golden = theirs(images, interpolate_pos_encoding=True).logits
        error = of_its_size(larger(images), golden)
    parity(58, f"{library} ViT, at {side[0]} × {side[1]} (of their size)", error, MOST)


@pytest.mark.row(57)
def test_pictures_that_patches_do_not_divide(timm, parity):
    """timm cuts what is left over, and so does ours by its rules."""
    from timm.models.vision_transformer import VisionTransformer

    theirs = redraw(VisionTransformer(img_size=(70, 50), num_classes=5, embed_dim=48, depth=3, num_heads=3)).eval()
    ours = ViT(**{**SMALL, "img_size": (70, 50)}, like="timm").eval()
    checkpoints.load(ours, theirs.state_dict(), grid=(4, 3))
    images = torch.randn(2, 3, 70, 50)
    with torch.no_grad():
        parity(57, "timm ViT, 70 × 50 pixels", of_its_size(ours(images), theirs(images).double()), MOST)


@pytest.mark.row(57)
def test_layer_scale(timm, parity):
    """timm's block with LayerScale, and drop path on what it leaves."""
    from timm.models.vision_transformer import Block as Theirs

    theirs, ours = (
        redraw(Theirs(48, 3, qkv_bias=True, init_values=1e-2)).double(),
        Block(48, 3, layer_scale=1.0).double(),
    )
    words = {"attn.": "attention.", "ls1.gamma": "gamma1", "ls2.gamma": "gamma2"}
    state = theirs.state_dict()
    for old, new in words.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    ours.load_state_dict(state, strict=True)
    x = torch.randn(2, 7, 48, dtype=torch.float64)
    parity(57, "timm Block with LayerScale (float64, of its size)", of_its_size(ours(x), theirs(x)), 1e-10)


@pytest.mark.row(58)
@pytest.mark.parametrize("name", ["vit_tiny", "deit3_small"])
def test_compare_starts_where_timm_is(name, timm, parity, tmp_path: Path):
    """`compare --model NAME --weights FILE --size 64` before its first step: timm's file for 224, read for 64."""
    theirs = redraw(of_timm(f"{name}_patch16_224")()).eval()
    write(tmp_path / "timm.safetensors", theirs.state_dict())
    kind = KINDS["images"]
    recipe = replace(kind.recipe, model=name, weights=str(tmp_path / "timm.safetensors"))
    placement = Placement(kind, find("images", ("learned",))[0], (3, 64, 64), (16, 16), 10)
    ours, images = find_builder(recipe)(placement).eval(), torch.randn(2, 3, 64, 64)
    theirs.set_input_size(64)
    with torch.no_grad():
        error = of_its_size(ours(images), theirs(images).double())
    parity(58, f"timm {name}, in compare at 64 pixels (of their size)", error, MOST)
