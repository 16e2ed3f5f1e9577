"""Swin's parts on published code: indices, windows, masks, attention of both versions, merging, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from near import apart
from sharpened import sharpened
from torch import nn

from locant import Grid, Pairs, RelativeTable, Windows, checkpoints
from locant.checkpoints import swin as names
from locant.checkpoints import swin_v2 as names_v2
from locant.models.swin import Swin
from locant.models.swin_v2 import SwinV2
from locant.nn import Attention
from locant.nn.cosine import CosineWindowAttention
from locant.nn.patches import PatchMerging
from locant.nn.window import _merged, _partitioned

DIM, HEADS, EXACT = 24, 3, 1e-10
Parity = Callable[[int, str, float, float], None]


@pytest.fixture(scope="module")
def torchvision(timm: ModuleType) -> ModuleType:
    """Mended by timm's fixture."""
    pytest.importorskip("torchvision.models")
    return import_module("torchvision.models.swin_transformer")


def drawn(module: nn.Module) -> nn.Module:
    """In float64, all numbers large enough to show."""
    with torch.no_grad():
        for name, parameter in sharpened(module).named_parameters():
            parameter.normal_(2.0 if "logit_scale" in name else 0.0, 0.5)
    return module.eval()


@pytest.mark.row(2)
@pytest.mark.parametrize("window", [(2, 2), (2, 3), (3, 2), (7, 7)])
def test_index(timm: ModuleType, transformers: ModuleType, window: tuple[int, int], parity: Parity) -> None:
    table = RelativeTable(Grid(*window), 1)
    with torch.no_grad():
        table.table.copy_(torch.arange(table.table.numel()).reshape(table.table.shape))
    index = table(Grid(*window))[0]
    golden = import_module("timm.models.swin_transformer").get_relative_position_index(*window)
    parity(2, "timm get_relative_position_index", apart(index, golden), 0)
    theirs = import_module("transformers.models.swin.modeling_swin").SwinRelativePositionBias(1, window)
    flat = theirs.relative_position_index.reshape(golden.shape)
    parity(2, "transformers SwinRelativePositionBias", apart(index, flat), 0)


@pytest.mark.row(9)
@pytest.mark.parametrize(("sizes", "window"), [((14, 21), (7, 7)), ((4, 6), (2, 3))])
def test_partition_and_reverse(
    timm: ModuleType, sizes: tuple[int, int], window: tuple[int, int], parity: Parity
) -> None:
    swin, x = import_module("timm.models.swin_transformer"), torch.randn(2, *sizes, 5)
    cut = _partitioned(x, window)
    parity(9, "timm window_partition", apart(cut, swin.window_partition(x, window).flatten(1, 2)), 0)
    found = _merged(cut, 2, window, sizes)
    parity(9, "timm window_reverse", apart(found, swin.window_reverse(cut.unflatten(1, window), window, *sizes)), 0)


@pytest.mark.row(10)
@pytest.mark.parametrize(("sizes", "window", "shift"), [((4, 4), 2, 1), ((14, 14), 7, 3), ((14, 21), 7, 3)])
def test_shift_mask(
    timm: ModuleType, transformers: ModuleType, sizes: tuple[int, int], window: int, shift: int, parity: Parity
) -> None:
    """Ours speaks of the plain map, theirs of windows of the rolled one: token by token the same pairs."""
    places = torch.arange(sizes[0] * sizes[1]).reshape(1, *sizes, 1).roll((-shift, -shift), (1, 2))
    order = _partitioned(places, (window, window))[..., 0]
    cells = Windows((window, window), shift=(shift, shift)).allowed(Grid(*sizes))[0, 0]
    ours = torch.where(cells[order[:, :, None], order[:, None]], 0.0, -100.0)
    outside = cells.clone()
    for members in order:
        outside[members[:, None], members] = False
    assert not outside.any()
    block = import_module("timm.models.swin_transformer").SwinTransformerBlock(
        8, sizes, 2, window_size=window, shift_size=shift
    )
    parity(10, "timm attn_mask", apart(ours, block.attn_mask), 0)
    swin = import_module("transformers.models.swin.modeling_swin")
    layer = swin.SwinLayer(transformers.SwinConfig(window_size=window), 8, sizes, 2, shift_size=shift)
    golden = layer.get_attn_mask(*sizes, dtype=torch.float32, device=torch.device("cpu"))
    parity(10, "transformers get_attn_mask", apart(ours, golden), 0)


@pytest.mark.row(3)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [(3, 4), (4, 4)])
def test_window_attention_with_a_mask(
    timm: ModuleType, transformers: ModuleType, window: tuple[int, int], masked: bool, parity: Parity
) -> None:
    """AIM's and Swin's attention as it is called there: windows in the batch, a mask of -100 per window."""
    tokens = window[0] * window[1]
    x = torch.randn(6, tokens, DIM, dtype=torch.float64)
    blocked = (torch.rand(3, tokens, tokens) < 0.4) & ~torch.eye(tokens, dtype=torch.bool)
    added = blocked * -100.0 if masked else None
    mask = Pairs.from_window_mask(added, batch=2) if masked else None
    ours = Attention(DIM, HEADS, grid=Grid(*window), position=RelativeTable(Grid(*window), HEADS)).double()
    theirs = drawn(import_module("timm.models.swin_transformer").WindowAttention(DIM, HEADS, window_size=window))
    state = theirs.state_dict()
    table = state.pop("relative_position_bias_table").T.reshape(ours.position.table.shape)
    ours.load_state_dict({**state, "position.table": table})
    added = None if added is None else added.double()
    parity(3, "timm WindowAttention, float64", apart(ours(x, mask=mask), theirs(x, mask=added)), EXACT)
    if window[0] == window[1]:
        config = transformers.SwinConfig()
        config._attn_implementation = "eager"
        other = drawn(import_module("transformers.models.swin.modeling_swin").SwinAttention(config, DIM, HEADS, 4))
        parts, state = ("q_proj", "k_proj", "v_proj"), other.state_dict()
        qkv = {f"qkv.{kind}": torch.cat([state[f"{part}.{kind}"] for part in parts]) for kind in ("weight", "bias")}
        table = state["relative_position_bias.relative_position_bias_table"].T.reshape(ours.position.table.shape)
        ours.load_state_dict(
            qkv | {f"proj.{kind}": state[f"o_proj.{kind}"] for kind in ("weight", "bias")} | {"position.table": table}
        )
        # its softmax rounds to float32
        parity(3, "transformers SwinAttention", apart(ours(x, mask=mask), other(x, added)[0]), 1e-5)


@pytest.mark.row(13)
@pytest.mark.parametrize("sizes", [(4, 6), (5, 7)])
def test_merging(timm: ModuleType, transformers: ModuleType, sizes: tuple[int, int], parity: Parity) -> None:
    x = torch.randn(2, *sizes, 6, dtype=torch.float64)
    for module, norm_first in (("swin_transformer", True), ("swin_transformer_v2", False)):
        theirs = drawn(import_module(f"timm.models.{module}").PatchMerging(6))
        ours = PatchMerging(6, norm_first=norm_first).double()
        ours.load_state_dict(theirs.state_dict())
        found, grid = ours(x.flatten(1, 2), Grid(*sizes))
        parity(13, f"timm {module} PatchMerging", apart(found.unflatten(1, grid.shape), theirs(x)), EXACT)
    theirs = drawn(import_module("transformers.models.swin.modeling_swin").SwinPatchMerging(6))
    ours = PatchMerging(6).double()
    ours.load_state_dict(theirs.state_dict())
    error = apart(ours(x.flatten(1, 2), Grid(*sizes))[0], theirs(x.flatten(1, 2), sizes))
    parity(13, "transformers SwinPatchMerging", error, EXACT)


def cosine(theirs: nn.Module, window: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> CosineWindowAttention:
    """A published attention of Swin v2 as ours."""
    state = {}
    for name, tensor in theirs.state_dict().items():
        name = name.removeprefix("self.").replace("continuous_position_bias_mlp", "cpb_mlp")
        state[name.replace("cpb_mlp.0", "position.mlp.fc1").replace("cpb_mlp.2", "position.mlp.fc2")] = tensor
    if "query.weight" in state:  # transformers
        state["qkv.weight"] = torch.cat([state.pop(f"{part}.weight") for part in ("query", "key", "value")])
        state["q_bias"], state["v_bias"] = state.pop("query.bias"), state.pop("value.bias")
        state |= {f"proj.{kind}": state.pop(f"output.dense.{kind}") for kind in ("weight", "bias")}
    if "qkv.bias" in state:  # torchvision: the middle third counts for nothing
        state["q_bias"], _, state["v_bias"] = state.pop("qkv.bias").chunk(3)
    known = {name: tensor for name, tensor in state.items() if not name.startswith("relative_")}
    dim, heads = len(state["q_bias"]), len(state["logit_scale"])
    ours = CosineWindowAttention(dim, heads, window, shift=shift, border="pad-roll", small="pad").double()
    ours.load_state_dict(known)
    return ours


@pytest.mark.row(14)
def test_cosine_attention(timm: ModuleType, transformers: ModuleType, torchvision: ModuleType, parity: Parity) -> None:
    """Scales at and above the cap as well."""
    x, grid = torch.randn(6, 16, DIM, dtype=torch.float64), Grid(4, 4)
    theirs = drawn(import_module("timm.models.swin_transformer_v2").WindowAttention(DIM, (4, 4), HEADS))
    with torch.no_grad():
        theirs.logit_scale[1:, 0, 0] = torch.tensor([math.log(100), 7.0])
    parity(14, "timm v2 WindowAttention", apart(cosine(theirs, (4, 4))(x, grid=grid), theirs(x)), EXACT)
    swin = import_module("transformers.models.swinv2.modeling_swinv2")
    theirs = drawn(swin.Swinv2Attention(transformers.Swinv2Config(), DIM, HEADS, 4))
    parity(14, "transformers Swinv2Attention", apart(cosine(theirs, (4, 4))(x, grid=grid), theirs(x)[0]), EXACT)
    theirs = drawn(torchvision.ShiftedWindowAttentionV2(DIM, [3, 4], [1, 2], HEADS))
    picture = torch.randn(2, 7, 10, DIM, dtype=torch.float64)
    found = cosine(theirs, (3, 4), (1, 2))(picture.flatten(1, 2), grid=Grid(7, 10)).unflatten(1, (7, 10))
    parity(14, "torchvision ShiftedWindowAttentionV2, 7 × 10", apart(found, theirs(picture)), EXACT)


@pytest.mark.row(14)
def test_a_finite_mask_leaks_at_the_cap(timm: ModuleType, transformers: ModuleType) -> None:
    """Two tokens, each of which may see itself alone. Its own key is opposite, a logit of -100, the other one's alike.

    Blocked with -100 the other one has 100 - 100 and takes all the weight. transformers adds its mask twice: with
    100 - 200 it still takes half.
    """
    x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    mask = torch.tensor([[[0.0, -100.0], [-100.0, 0.0]]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    theirs = drawn(import_module("timm.models.swin_transformer_v2").WindowAttention(2, (1, 2), 1))
    twice = import_module("transformers.models.swinv2.modeling_swinv2").Swinv2SelfAttention
    twice = drawn(twice(transformers.Swinv2Config(), 2, 1, (1, 2)))
    with torch.no_grad():
        for parameter in (*theirs.parameters(), *twice.parameters()):
            parameter.zero_()
        theirs.qkv.weight.copy_(torch.cat([-eye, eye, eye]))
        theirs.proj.weight.copy_(eye)
        for part, sign in ((twice.query, -1), (twice.key, 1), (twice.value, 1)):
            part.weight.copy_(sign * eye)
        for module in (theirs, twice):
            module.logit_scale.fill_(7.0)
    assert apart(theirs(x, mask=mask), -x) < 1e-12  # the other one's value
    assert apart(twice(x, mask)[0], 0 * x) < 1e-12  # the mean of both
    one = Pairs.from_window_mask(mask, batch=1)
    assert apart(Attention.forward(cosine(theirs, (1, 2)), x, grid=Grid(1, 2), mask=one), x) < 1e-12


@pytest.mark.row(15)
@pytest.mark.parametrize("window", [(2, 3), (4, 4)])
def test_class_token(timm: ModuleType, transformers: ModuleType, window: tuple[int, int], parity: Parity) -> None:
    """BEiT: three more rows, class to token, token to class, class to class; the class token comes first."""
    grid = Grid(*window, prefix=1)
    table = RelativeTable(grid, HEADS)
    flat = torch.randn((2 * window[0] - 1) * (2 * window[1] - 1) + 3, HEADS)
    rows = {name: flat[row - 3] for row, name in enumerate(("query_prefix", "key_prefix", "both"))}
    table.load_state_dict({"table": flat[:-3].T.reshape(table.table.shape), **rows})
    index = import_module("timm.layers.pos_embed_rel").gen_relative_position_index(window, class_token=True)
    parity(15, "timm gen_relative_position_index", apart(table(grid), flat[index].permute(2, 0, 1)), 0)
    if window[0] == window[1]:  # theirs swaps the sides of a rectangle
        config = transformers.BeitConfig(image_size=64, patch_size=16, hidden_size=DIM, num_attention_heads=HEADS)
        theirs = import_module("transformers.models.beit.modeling_beit").BeitRelativePositionBias(config)
        with torch.no_grad():
            theirs.relative_position_bias_table.copy_(flat)
        golden = theirs(window).reshape(table(grid).shape)
        parity(15, "transformers BeitRelativePositionBias", apart(table(grid), golden), 1e-6)


KINDS = pytest.mark.parametrize("kind", [Swin, SwinV2])
SMALL = {"dim": 8, "depths": (1, 2, 1), "heads": (1, 2, 4), "window": 4, "img_size": None, "num_classes": 5}


def by_name(kind: type[Swin]) -> dict[str, checkpoints.Layout]:
    return {layout.name: layout for layout in (names if kind is Swin else names_v2).LAYOUTS}


@KINDS
@pytest.mark.row(16)
@pytest.mark.row(54)
def test_every_layout_there_and_back(kind: type[Swin]) -> None:
    backbone = {**SMALL, "num_classes": 0}
    built = {
        "detection": {**backbone, "stage_norms": True},
        "mmdet": {**backbone, "stage_norms": True},
        "simmim": backbone,
    }
    for layout in by_name(kind).values():
        sizes = built.get(layout.name, SMALL)
        model = drawn(kind(**sizes))
        other, state = kind(**sizes).double(), checkpoints.export(model, layout)
        assert checkpoints.load(other, state, layout=layout).exact
        for name, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor)


@KINDS
@pytest.mark.row(16)
def test_exports_have_the_names_that_others_read(
    timm: ModuleType, transformers: ModuleType, torchvision: ModuleType, kind: type[Swin]
) -> None:
    """Nothing that they do not know; nothing missing but what they compute."""
    two, given = kind is SwinV2, {"depths": (1, 2, 1), "num_heads": (1, 2, 4), "embed_dim": 8, "window_size": 4}
    module = import_module("timm.models.swin_transformer" + ("_v2" if two else ""))
    published = module.SwinTransformerV2 if two else module.SwinTransformer
    config = (transformers.Swinv2Config if two else transformers.SwinConfig)(**given, num_labels=5)
    readers = {
        "timm": published(**given, num_classes=5, img_size=128),
        "transformers": (transformers.Swinv2ForImageClassification if two else transformers.SwinForImageClassification)(
            config
        ),
        "torchvision": torchvision.SwinTransformer(
            [4, 4], 8, [1, 2, 1], [1, 2, 4], [4, 4], num_classes=5,
            block=torchvision.SwinTransformerBlockV2 if two else torchvision.SwinTransformerBlock,
            downsample_layer=torchvision.PatchMergingV2 if two else torchvision.PatchMerging,
        ),
    }  # fmt: skip
    for name, reader in readers.items():
        found = reader.load_state_dict(checkpoints.export(kind(**SMALL), by_name(kind)[name]), strict=False)
        assert found.unexpected_keys == []
        assert all("relative_" in key for key in found.missing_keys)
        assert name == "torchvision" or found.missing_keys == []


@pytest.mark.row(16)
@pytest.mark.row(54)
def test_both_generations_of_transformers(transformers: ModuleType) -> None:
    """Files on disk have the older names, with an index; a bare backbone has them without the model's own name."""
    config = transformers.SwinConfig(
        embed_dim=8, depths=(1, 2, 1), num_heads=(1, 2, 4), window_size=4, num_labels=5, image_size=128
    )
    theirs = transformers.SwinForImageClassification(config)
    older = {}
    for name, tensor in theirs.state_dict().items():
        for new, old in (
            ("attention.q_proj", "attention.self.query"), ("attention.k_proj", "attention.self.key"),
            ("attention.v_proj", "attention.self.value"), ("attention.o_proj", "attention.output.dense"),
            ("attention.relative_position_bias.", "attention.self."), ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):  # fmt: skip
            name = name.replace(new, old)
        older[name] = tensor
    older["swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(16, 16).long()
    assert any("attention.self.query" in name for name in older)
    found = []
    for state in (theirs.state_dict(), older):
        model = Swin(**SMALL)
        report = checkpoints.load(model, state)  # the layout is found
        assert report.exact
        found.append(model.state_dict())
    assert report.layout == "transformers 4"
    assert len(report.dropped) == 1
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    bare = {name.removeprefix("swin."): t for name, t in older.items() if not name.startswith("classifier")}
    model = Swin(**{**SMALL, "num_classes": 0})
    assert checkpoints.load(model, bare).exact
    assert torch.equal(model.norm.weight, found[0]["norm.weight"])


@pytest.mark.row(16)
@pytest.mark.row(54)
def test_an_official_file(tmp_path: Path) -> None:
    """What it holds of what is recomputed is dropped; what is missing or too many is an error that names it."""
    model, layout = drawn(Swin(**SMALL)).float(), by_name(Swin)["official"]
    state = checkpoints.export(model, layout)
    held = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16).long(),
        "layers.1.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }
    file = tmp_path / "swin.pth"
    torch.save({"model": state | held}, file)
    other = Swin(**SMALL)
    report = checkpoints.load(other, file, layout=layout)
    assert report.exact
    assert sorted(report.dropped) == sorted(held)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())
    lacking = {name: tensor for name, tensor in state.items() if name != "layers.0.downsample.norm.bias"}
    with pytest.raises(ValueError, match=r"layers\.0\.downsample\.norm\.bias"):
        checkpoints.load(other, lacking, layout=layout)
    with pytest.raises(ValueError, match=r"absolute_pos_embed"):
        checkpoints.load(other, {**state, "absolute_pos_embed": torch.zeros(1, 64, 8)}, layout=layout)
    report = checkpoints.load(other, lacking, layout=layout, strict=False)
    assert report.missing == ["layers.0.downsample.norm.bias"]
