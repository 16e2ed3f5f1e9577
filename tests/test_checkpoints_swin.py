"""Swin's files of detectors and of pretraining: other names, norms per stage, vectors per place, other channels."""

from __future__ import annotations

from pathlib import Path

import published
import pytest
import torch
from near import apart, close
from redrawing import refill
from small import same
from torch import Tensor, nn
from torch.nn import functional as F

from locant import Grid
from locant.checkpoints import convert, export, load, read, write
from locant.checkpoints.sizes import adapt_channels
from locant.models import AIMSwin, ConViT
from locant.models.swin import Swin
from locant.models.swin_v2 import SwinV2
from locant.nn import PatchMerging

State = dict[str, Tensor]
SIZES = {"dim": 8, "depths": (2, 1), "heads": (2, 4), "window": 4, "img_size": 32}
BACKBONE = SIZES | {"num_classes": 0, "stage_norms": True}
NORMS = {f"norm{s}.{part}": torch.randn(8 * 2**s) for s in (0, 1) for part in ("weight", "bias")}
OTHERS = {"neck.fpn_convs.0.conv.weight": torch.randn(4), "rpn_head.rpn_cls.weight": torch.randn(3)}


def backbone_of(state: State) -> State:
    """What the original detector keeps: no head, a norm per stage."""
    return {n: t for n, t in state.items() if not n.startswith(("norm", "head"))} | NORMS


def rooted(root: str, state: State) -> State:
    return {f"{root}{name}": tensor for name, tensor in state.items()}


def unfolded(state: State) -> State:
    """mmdetection's names, said here by words; its merging reads what nn.Unfold gives, so the order is its own."""
    words = {"layers.": "stages.", "patch_embed.proj": "patch_embed.projection", "mlp.fc1": "ffn.layers.0.0",
             "mlp.fc2": "ffn.layers.1", "attn.": "attn.w_msa."}  # fmt: skip
    found = {}
    order = F.unfold(torch.arange(32.0).reshape(4, 8).T.reshape(1, 8, 2, 2), 2, stride=2).long().flatten()
    # at (row, column) that map holds 8 numbers of quadrant 2 · row + column; ours come down the columns
    ours = torch.tensor([0, 2, 1, 3])[order // 8] * 8 + order % 8
    for name, tensor in state.items():
        if "attn_mask" in name:
            continue
        whole = tensor[..., ours] if "downsample" in name else tensor
        for word, theirs in words.items():
            name = name.replace(word, theirs)
        found[name] = whole
    return found


def early_v2(state: State) -> State:
    return {name.replace("cpb_mlp", "rpe_mlp"): tensor for name, tensor in state.items()}


def v2() -> State:
    return export(refill(SwinV2(**SIZES, num_classes=5)), "official")


FILES = {
    "detection": (Swin, BACKBONE, lambda: rooted("backbone.", backbone_of(published.swin())) | OTHERS),
    "detection, bare": (Swin, BACKBONE, lambda: backbone_of(published.swin())),
    "detection, v2": (SwinV2, BACKBONE, lambda: rooted("backbone.", backbone_of(early_v2(v2())))),
    "mmdet": (Swin, BACKBONE, lambda: rooted("backbone.", unfolded(backbone_of(published.swin()))) | OTHERS),
    "simmim": (
        Swin, SIZES | {"num_classes": 0},
        lambda: rooted("encoder.", {n: t for n, t in published.swin().items() if "head" not in n})
        | {"encoder.mask_token": torch.randn(1, 1, 8), "decoder.0.weight": torch.randn(3)},
    ),
    "simmim, v2": (
        SwinV2, SIZES | {"num_classes": 0},
        lambda: rooted("encoder.", {n: t for n, t in early_v2(v2()).items() if "head" not in n})
        | {"encoder.mask_token": torch.randn(1, 1, 8)},
    ),
    "official, v2": (SwinV2, SIZES | {"num_classes": 5}, lambda: early_v2(v2())),
}  # fmt: skip


@pytest.mark.row(16)
@pytest.mark.row(54)
@pytest.mark.parametrize("source", FILES)
def test_a_file_loads_whole_and_comes_out_again(source: str) -> None:
    kind, sizes, make = FILES[source]
    state, model = make(), refill(kind(**sizes))
    report = load(model, state)
    layout = source.split(",")[0]
    assert (report.layout, report.exact, report.resized) == (layout, True, [])
    out = export(model, layout)
    gone = {*report.dropped, *report.left}
    wanted = {n.replace("rpe_mlp", "cpb_mlp"): t for n, t in state.items() if n not in gone}
    if source == "detection, bare":
        wanted = rooted("backbone.", wanted)
    assert same(out, wanted)


def test_the_head_of_pretraining_stays() -> None:
    model = Swin(**SIZES, num_classes=5)
    before = model.head.weight.clone()
    state = rooted("encoder.", {n: t for n, t in published.swin().items() if "head" not in n})
    report = load(model, state)
    assert report.exact
    assert {"head.weight", "head.bias"} <= set(report.left)
    assert torch.equal(model.head.weight, before)


def test_mmdetections_merging_computes_the_same() -> None:
    """Theirs is said here by nn.Unfold; ours has the numbers that came through its file."""
    state = rooted("backbone.", unfolded(backbone_of(published.swin())))
    model = Swin(**BACKBONE)
    load(model, state)
    merging, x = model.layers[0].downsample, torch.randn(2, 24, 8)
    assert isinstance(merging, PatchMerging)
    theirs = {n.removeprefix("backbone.stages.0.downsample."): t for n, t in state.items() if "downsample" in n}
    tokens = F.unfold(x.mT.unflatten(2, (4, 6)), 2, stride=2).mT
    wanted = F.layer_norm(tokens, (32,), theirs["norm.weight"], theirs["norm.bias"]) @ theirs["reduction.weight"].T
    with torch.no_grad():
        found, grid = merging(x, Grid(4, 6))
    assert grid == Grid(2, 3)
    close(found, wanted, 1e-5 * float(wanted.abs().max()))


@pytest.mark.row(16)
@pytest.mark.parametrize("kind", [Swin, SwinV2])
@pytest.mark.parametrize("source", ["official", "detection", "mmdet"])
def test_vectors_per_place_come_to_other_pictures_as_published(kind: type[Swin | SwinV2], source: str) -> None:
    """From 8 × 8 to 12 × 12 cells, bicubic in two dimensions at once; of the detector [1, dim, rows, columns]."""
    if kind is SwinV2 and source == "mmdet":
        return
    square = torch.randn(1, 8, 8, 8)
    rows = square if source == "detection" else square.flatten(2).mT
    state = published.swin() if kind is Swin else v2()
    if source != "official":
        state = rooted("backbone.", unfolded(backbone_of(state)) if source == "mmdet" else backbone_of(state))
    state["absolute_pos_embed" if source == "official" else "backbone.absolute_pos_embed"] = rows
    sizes = (SIZES | {"num_classes": 5}) if source == "official" else BACKBONE
    model = kind(**sizes, absolute=True)
    assert load(model, state).exact
    assert torch.equal(model.absolute_pos_embed.table, square.flatten(2)[0].T)
    larger = kind(**(sizes | {"img_size": 48}), absolute=True)
    report = load(larger, state)
    wanted = F.interpolate(square, size=(12, 12), mode="bicubic").flatten(2)[0].T
    assert report.exact
    assert ("absolute_pos_embed.table", (8, 8), (12, 12), "bicubic") in {
        (r.name, r.old, r.new, r.method) for r in report.resized
    }
    close(larger.absolute_pos_embed.table, wanted, 1e-5 * float(wanted.abs().max()))


MODELS = {
    "Swin": lambda channels: Swin(**SIZES, num_classes=5, in_chans=channels),
    "SwinV2": lambda channels: SwinV2(**SIZES, num_classes=5, in_chans=channels),
    "ConViT": lambda channels: ConViT(
        img_size=16, patch=8, dim=8, depth=2, heads=2, local_up_to_layer=1, num_classes=3, in_chans=channels
    ),
    "AIMSwin": lambda channels: AIMSwin(
        frames=4, dim=8, depths=(2, 1), heads=(2, 4), window=4, num_classes=3, in_chans=channels
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_grey_model_of_colours_sees_grey_as_before(name: str) -> None:
    """Kernels are summed: a grey picture gives what the same grey in every channel gave."""
    colours, grey = refill(MODELS[name](3)).double().eval(), MODELS[name](1).double().eval()
    report = load(grey, colours.state_dict())
    assert [(r.name, r.old, r.new, r.method) for r in report.resized] == [
        ("patch_embed.proj.weight", (3,), (1,), "summed")
    ]
    x = torch.randn(2, 1, *((4,) if name == "AIMSwin" else ()), *((16, 16) if name == "ConViT" else (32, 32))).double()
    with torch.no_grad():
        found, wanted = grey(x), colours(x.expand(-1, 3, *x.shape[2:]))
    assert apart(found, wanted) <= 1e-9 * float(wanted.abs().max())


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_more_or_fewer_channels_repeat_the_kernels(channels: int) -> None:
    kernel = torch.randn(8, 3, 4, 4)
    found = adapt_channels(kernel, channels)
    assert found.shape == (8, channels, 4, 4)
    for channel in range(channels):
        close(found[:, channel], kernel[:, channel % 3] * 3 / channels, 1e-6)
    half = adapt_channels(kernel.half(), 1)
    assert half.dtype is torch.float16
    assert torch.equal(half, kernel.half().float().sum(1, keepdim=True).half())


def test_convert_to_one_channel(tmp_path: Path) -> None:
    state = published.swin()
    write(tmp_path / "in.safetensors", {n: t for n, t in state.items() if "attn_mask" not in n})
    settings = {k: v for k, v in SIZES.items() if k not in ("window", "img_size")}
    report = convert(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", model="Swin", image_size=32, window=4, classes=5,
        settings={**settings, "in_chans": 1},
    )  # fmt: skip
    assert [r.method for r in report.resized] == ["summed"]
    kernel = read(tmp_path / "out.safetensors")["patch_embed.proj.weight"]
    close(kernel, state["patch_embed.proj.weight"].sum(1, keepdim=True), 1e-6)


def test_a_norm_layer_is_not_a_norm_of_a_stage() -> None:
    """A file of the classifier does not fit a backbone, and the message names what lacks."""
    with pytest.raises(ValueError, match=r"norm0\.weight|norm\.weight"):
        load(Swin(**BACKBONE), published.swin())
    assert isinstance(Swin(**BACKBONE).get_submodule("norm1"), nn.LayerNorm)
