"""timm's models, accelerated: the same numbers forward and backward, on maps that windows divide and on others."""

from __future__ import annotations

import copy
from types import ModuleType

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.integrations.timm import FAMILIES

SMALL = {"embed_dim": 32, "num_classes": 10}
MAPS = pytest.mark.parametrize(
    ("size", "more"),
    [
        (64, {}),  # 16 × 16: windows of 4 divide the map
        (72, {"strict_img_size": False}),  # 18, 9, ... do not
        (40, {}),  # the last maps are smaller than a window
        (64, {"always_partition": True}),
        (72, {"strict_img_size": False, "always_partition": True}),
    ],
)


def _swin(timm: ModuleType, name: str, size: int, depth: int = 3, **more) -> nn.Module:
    torch.manual_seed(0)
    kind = {
        "v1": timm.models.swin_transformer.SwinTransformer,
        "v2": timm.models.swin_transformer_v2.SwinTransformerV2,
        "cr": timm.models.swin_transformer_v2_cr.SwinTransformerV2Cr,
    }[name]
    heads = (2, 4, 8)[:depth]
    return kind(img_size=size, window_size=4, depths=(2,) * depth, num_heads=heads, **SMALL, **more)


def _vit(timm: ModuleType, name: str) -> nn.Module:
    """The models whose attention takes all tokens: BEiT, ViT with a table or a perceptron of offsets, ConViT, ViT."""
    torch.manual_seed(0)
    models, vit = timm.models, {"img_size": 64, "patch_size": 16, "depth": 2, "num_heads": 2, **SMALL}
    relpos = models.vision_transformer_relpos.VisionTransformerRelPos
    build = {
        "beit": lambda: models.beit.Beit(use_rel_pos_bias=True, **vit),
        "beit, scaled": lambda: models.beit.Beit(use_rel_pos_bias=True, init_values=0.1, **vit),
        "table": lambda: relpos(rel_pos_type="bias", **vit),
        "table, class token": lambda: relpos(rel_pos_type="bias", class_token=True, global_pool="token", **vit),
        "field": lambda: relpos(rel_pos_type="mlp", qk_norm=True, **vit),
        "field, class token": lambda: relpos(rel_pos_type="mlp-swin", class_token=True, global_pool="token", **vit),
        "convit": lambda: models.convit.ConVit(local_up_to_layer=1, **vit),
        "vit": lambda: models.vision_transformer.VisionTransformer(**vit),
        "vit, norms": lambda: models.vision_transformer.VisionTransformer(qk_norm=True, scale_attn_norm=True, **vit),
        "deit": lambda: models.deit.VisionTransformerDistilled(**vit),
    }[name]
    return build()


WHOLE = (
    "beit", "beit, scaled", "table", "table, class token", "field", "field, class token", "convit", "vit",
    "vit, norms", "deit",
)  # fmt: skip


@MAPS
@pytest.mark.parametrize("name", ["v1", "v2", "cr"])
def test_swin(timm, name: str, size: int, more: dict) -> None:
    accelerated.check(_swin(timm, name, size, **more), torch.randn(2, 3, size, size), count=6)


@pytest.mark.parametrize("name", WHOLE)
def test_all_tokens(timm, name: str) -> None:
    model = accelerated.randomised(_vit(timm, name))
    report = locant.accelerate(model, example=torch.randn(3, 3, 64, 64), strict=True, training=True)
    assert sum(row.kind == "attention" for row in report.replaced) == 2


@pytest.mark.parametrize("name", ["v1", "v2", "cr"])
def test_swin_resized_afterwards(timm, name: str) -> None:
    """Window, table and mask are read at each call: timm's own resizing is followed."""
    model = accelerated.randomised(_swin(timm, name, 64, depth=2))
    plain = copy.deepcopy(model)
    locant.accelerate(model)
    x = torch.randn(2, 3, 96, 96)
    for m in (model, plain):
        torch.manual_seed(1)
        m.set_input_size(img_size=96, window_size=6)
    with torch.no_grad():
        ours, theirs = model(x), plain(x)
    assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_a_bias_that_is_shared_goes_the_library_s_way(timm) -> None:
    """It comes in whole: the row says so where there is no table, and a call that brings one has it."""
    vit = {"img_size": 64, "patch_size": 16, "depth": 2, "num_heads": 2, **SMALL}
    torch.manual_seed(0)
    model = accelerated.randomised(timm.models.beit.Beit(use_shared_rel_pos_bias=True, **vit))
    report = locant.accelerate(model)
    assert "handed in whole" in str(report)
    attn = accelerated.randomised(_vit(timm, "beit")).blocks[0].attn
    x, bias = torch.randn(2, 17, 32), torch.randn(1, 2, 17, 17)
    with torch.no_grad():
        wanted = attn(x, bias)
        locant.accelerate(attn)
        assert torch.equal(attn(x, bias), wanted)
    vit = accelerated.randomised(_vit(timm, "vit")).blocks[0].attn
    mask = torch.rand(17, 17) > 0.3
    mask.fill_diagonal_(True)
    with torch.no_grad():
        wanted = vit(x, attn_mask=mask), vit(x, is_causal=True)
        locant.accelerate(vit)
        assert torch.equal(vit(x, attn_mask=mask), wanted[0])
        assert torch.equal(vit(x, is_causal=True), wanted[1])


def test_another_attention_inside_is_noticed(timm) -> None:
    """A block is replaced for the attention that it was written for, not for whatever stands in its place."""
    model = _swin(timm, "v1", 64, depth=1)
    block = model.layers[0].blocks[0]
    block.attn = type("Other", (type(block.attn),), {})(32, 2, window_size=(4, 4))
    rows = [row for row in locant.accelerate(model).rows if row.kind == "attention"]
    assert rows[0].kernel is None
    assert "its attn is another than" in rows[0].why


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["v1", "v2", "cr", "beit", "table, class token", "convit", "vit"])
def test_graphs(timm, name: str) -> None:
    if name in ("v1", "v2", "cr"):
        model, size = _swin(timm, name, 40, depth=2), 40
    else:
        model, size = _vit(timm, name), 64
    accelerated.check_graphs(model, [torch.randn(2, 3, size, size)])


@pytest.mark.parametrize("name", ["v1", "v2", "cr", *WHOLE])
def test_perceptrons_of_every_model_are_replaced(timm, name: str) -> None:
    """timm has a GELU of its own, which Swin v2 takes."""
    report = locant.accelerate(_swin(timm, name, 64) if len(name) == 2 else _vit(timm, name))
    kernels = [row.kernel for row in report.rows if row.kind == "perceptron"]
    assert kernels
    assert set(kernels) == {"packed"}


@pytest.mark.parametrize("name", ["v1", "v2", "cr", *WHOLE])
def test_unknown_sources_are_tried(timm, monkeypatch, name: str) -> None:
    accelerated.check_tried(_swin(timm, name, 72, 2) if len(name) == 2 else _vit(timm, name), monkeypatch)


def test_the_classes_are_known_by_source(timm) -> None:
    accelerated.check_known(FAMILIES)


@pytest.mark.parametrize("part", ["norm1", "norm2", "mlp", "drop_path2", "attn.proj_drop", "attn.qkv", "mlp.act", None])
@pytest.mark.parametrize("side", [128, 160])  # windows of 8 do not divide 20 × 20, of the second stage
def test_norms_and_sums_are_joined_unless_a_hook_wants_a_part(timm, part: str | None, side: int) -> None:
    """Two stages of a Swin: joined where nothing is called, called where asked."""
    torch.manual_seed(0)
    more = {"img_size": side, "depths": (2, 2), "num_heads": (2, 4), "window_size": 8, "embed_dim": 64}
    model = timm.models.swin_transformer.SwinTransformer(num_classes=10, **more)
    path = None if part is None else f"layers.0.blocks.1.{part}"
    apart = ["norm"]
    apart += ["layers.1.blocks.*.norm1"] * 2 if side == 160 else []
    accelerated.check_halves(model, [torch.randn(3, 3, side, side)], path, apart)


@pytest.mark.parametrize("part", ["norm1", "norm2", "mlp", "drop_path2", "attn.qkv", "mlp.act", None])
@pytest.mark.parametrize("side", [128, 160])
def test_norms_behind_are_joined_unless_a_hook_wants_a_part(timm, part: str | None, side: int) -> None:
    torch.manual_seed(0)
    more = {"img_size": side, "depths": (2, 2), "num_heads": (2, 4), "window_size": 8, "embed_dim": 64}
    model = timm.models.swin_transformer_v2.SwinTransformerV2(num_classes=10, **more)
    path = None if part is None else f"layers.0.blocks.1.{part}"
    apart = ["norm"]
    accelerated.check_halves(model, [torch.randn(3, 3, side, side)], path, apart)


@pytest.mark.parametrize(
    "part", ["norm1", "norm2", "attn", "attn.proj", "attn.proj_drop", "ls1", "mlp.fc1", "mlp.drop1", None]
)
@pytest.mark.parametrize(
    "name", ["beit", "beit, scaled", "table", "table, class token", "convit", "vit", "vit, scaled", "vit, norms"]
)
def test_halves_of_blocks_are_joined_unless_a_hook_wants_a_part(timm, name: str, part: str | None) -> None:
    torch.manual_seed(0)
    if name == "vit, scaled":
        more = {"img_size": 64, "patch_size": 16, "depth": 2, "num_heads": 2, "init_values": 0.1}
        model = timm.models.vision_transformer.VisionTransformer(**more, **SMALL | {"embed_dim": 96})
    else:
        model = _vit(timm, name)
    if part == "ls1" and not hasattr(model.blocks[1], "ls1"):
        part = "drop_path" if name == "convit" else "drop_path1"
    path, apart = None if part is None else f"blocks.1.{part}", ["norm"]
    if name == "vit, norms":
        apart += ["q_norm", "k_norm", "attn.norm"] * 2
    if name == "convit" and part is not None and part.startswith("drop"):
        pytest.skip("one drop path for both halves: called twice")
    accelerated.check_halves(model, [torch.randn(40, 3, 64, 64)], path, apart)


@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_a_forward_that_came_later_is_called(timm, part: str) -> None:
    accelerated.check_a_later_forward(_vit(timm, "vit").eval(), torch.randn(4, 3, 64, 64), f"blocks.1.{part}")


def test_drop_path_and_copies_of_joined_blocks(timm) -> None:
    """Whole paths are dropped in training alone, and a copy's norms, LayerScales and biases are its own."""
    torch.manual_seed(0)
    more = {"img_size": 64, "patch_size": 16, "depth": 2, "num_heads": 2, "init_values": 0.5, "drop_path_rate": 0.5}
    model = timm.models.beit.Beit(use_rel_pos_bias=True, qkv_bias=True, **more, **SMALL)
    plain = accelerated.randomised(model)
    torch.nn.init.normal_(plain.head.weight)  # which starts so small that outputs would hardly depend on blocks
    model, x = copy.deepcopy(plain), torch.randn(32, 3, 64, 64)
    locant.accelerate(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        wanted = plain(x)
        for name in ("norm1.weight", "gamma_1", "attn.q_bias", "attn.v_bias", "attn.proj.bias"):
            model.blocks[0].get_parameter(name).add_(0.3)
            plain.blocks[0].get_parameter(name).add_(0.3)
        assert (other(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert (plain(x) - wanted).abs().max() > 1e-2 * wanted.abs().max()
        assert (model(x) - plain(x)).abs().max() <= 1e-5 * wanted.abs().max()
        drawn = []
        for m in (model.double(), plain.double()):
            torch.manual_seed(3)
            drawn.append(m.train()(x.double()))
        assert (drawn[0] - drawn[1]).abs().max() <= 1e-10 * wanted.abs().max()
        assert (drawn[0] - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("hooked", [None, "proj", "norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("patch", [4, (2, 3), 16])
def test_patches_of_a_picture(timm, patch, dtype: torch.dtype, hooked: str | None) -> None:
    """Cut and multiplied as a convolution does it; another size, a hook or a gradient is the class's own."""
    torch.manual_seed(0)
    embed = timm.layers.PatchEmbed(None, patch, embed_dim=96, norm_layer=nn.LayerNorm, flatten=True).to(dtype).eval()
    rows, columns = embed.proj.kernel_size
    pictures = [torch.randn(4, 3, 20 * rows, 24 * columns, dtype=dtype) for _ in range(2)]
    exact = copy.deepcopy(embed).double()
    called: list[int] = []
    if hooked:
        embed.get_submodule(hooked).register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        right = [exact(x.double()) for x in pictures]
        low = max(float((embed(x) - y).abs().max()) for x, y in zip(pictures, right, strict=True))
        called.clear()
        locant.accelerate(embed)
        for x, y in zip(pictures, right, strict=True):
            assert embed(x).shape == y.shape
            assert (embed(x) - y).abs().max() <= max(2 * low, 1e-5)
        assert len(called) == (4 if hooked else 0)
    x = pictures[0].requires_grad_()
    dy = torch.randn(right[0].shape, dtype=dtype)
    (found,) = torch.autograd.grad(embed(x), x, dy)
    (wanted,) = torch.autograd.grad(exact(x.double()), x, dy.double())
    assert (found - wanted).norm() <= (0.05 if dtype == torch.bfloat16 else 1e-5) * wanted.norm()


@pytest.mark.parametrize("version", ["swin_transformer", "swin_transformer_v2"])
def test_cells_are_merged_with_their_norm(timm, version: str) -> None:
    torch.manual_seed(0)
    merging = accelerated.randomised(getattr(timm.models, version).PatchMerging(64)).eval()
    for sides in ((20, 24), (19, 23), (1, 40)):
        accelerated.check_halves(copy.deepcopy(merging), [torch.randn(6, *sides, 64)], None, [])
