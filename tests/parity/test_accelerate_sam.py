"""Encoders of Segment Anything and their kin, accelerated: windows that are filled, tables that are stretched."""

from __future__ import annotations

import copy
import importlib
from types import ModuleType
from typing import Any

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.integrations.sam import FAMILIES

TIMM = {
    "img_size": 96, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "window_size": 5,
    "global_attn_indexes": (1,), "neck_chans": 8, "num_classes": 0,
}  # fmt: skip
HIDDEN = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 96, "patch_size": 8,
    "window_size": 5, "global_attn_indexes": [1], "output_channels": 8, "mlp_dim": 48,
    "initializer_range": 0.2,
}  # fmt: skip
COPIES = {
    "Sam": "sam", "SamHQ": "sam_hq", "GotOcr2": "got_ocr2", "SLANeXt": "slanext", "PPFormulaNet": "pp_formulanet",
    "DeepseekOcr2Sam": "deepseek_ocr2", "UnlimitedOcrSam": "unlimited_ocr",
}  # fmt: skip


def _timm(timm: ModuleType, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {**TIMM, "use_rel_pos": True, **more}
    return accelerated.randomised(timm.models.vision_transformer_sam.VisionTransformerSAM(**options))


def _copy(transformers: ModuleType, name: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    library = importlib.import_module(f"transformers.models.{COPIES[name]}.modeling_{COPIES[name]}")
    whole = "VisionModel" if hasattr(library, f"{name}VisionModel") else "VisionEncoder"
    behind = {f"post_conv_{part}_channels": 8 for part in ("in", "mid", "out")} if name == "PPFormulaNet" else {}
    config = getattr(library, f"{name}VisionConfig")(**{**HIDDEN, **behind, **more})
    return accelerated.randomised(getattr(library, f"{name}{whole}")(config))


@pytest.mark.parametrize("sides", [(96, 96), (72, 120), (40, 32)])  # maps of 12 × 12, 9 × 15 and 5 × 4
def test_timm(timm, sides: tuple[int, int]) -> None:
    """Global blocks stretch their tables to the map; windows of 5 do not divide it."""
    accelerated.check(_timm(timm), torch.randn(3, 3, *sides), accelerated.CONTENT, count=3)


@pytest.mark.parametrize("more", [{}, {"qk_norm": True, "init_values": 0.5}, {"use_rel_pos": False}])
@pytest.mark.row(60)
def test_timm_in_float64(timm, parity, more: dict) -> None:
    accelerated.check_exact(_timm(timm, **more), torch.randn(2, 3, 72, 104), parity, 60)


def test_timm_that_turns_its_queries_is_left_alone(timm) -> None:
    report = locant.accelerate(_timm(timm, use_rel_pos=False, use_rope=True))
    assert {row.kernel for row in report.rows if row.kind == "attention"} == {None}
    assert "rotary" in str(report)


def test_drop_path_is_drawn_as_timm_draws_it(timm) -> None:
    """Window by window: the same seed gives the same numbers."""
    model = _timm(timm, drop_path_rate=0.5).double().train()
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 72, 104, dtype=torch.float64)
    locant.accelerate(model, strict=True)
    torch.manual_seed(3)
    wanted = plain(x)
    torch.manual_seed(3)
    assert (model(x) - wanted).abs().max() <= 1e-10 * wanted.abs().max()
    assert (plain(x) - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("window", [5, 4])
def test_transformers(transformers, name: str, window: int) -> None:
    model = _copy(transformers, name, window_size=window)
    accelerated.check(model, torch.randn(2, 3, 96, 96), accelerated.CONTENT, count=3)


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.row(60)
def test_transformers_in_float64(transformers, monkeypatch, parity, name: str) -> None:
    """Classes that make weights round their softmax to float32 whatever comes: but for that."""
    softmax = nn.functional.softmax
    monkeypatch.setattr(nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))
    accelerated.check_exact(_copy(transformers, name), torch.randn(2, 3, 96, 96), parity, 60)


@pytest.mark.parametrize("name", COPIES)
def test_weights_that_are_asked_for_are_handed_out(transformers, monkeypatch, name: str) -> None:
    model = _copy(transformers, name, attn_implementation="eager")
    plain, x = copy.deepcopy(model), torch.randn(1, 3, 96, 96)
    locant.accelerate(model, strict=True)
    with torch.no_grad():
        model(x)
        ours, theirs = (m(x, output_attentions=True).attentions for m in (model, plain))
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    layer = next(m for m in model.modules() if type(m).__name__.endswith("VisionLayer"))
    monkeypatch.setattr(type(layer), "forward", None)  # afterwards it is not needed again
    with torch.no_grad():
        model(x)
    handle = layer.attn.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="NoneType"):
        layer(torch.randn(1, 12, 12, 32))
    handle.remove()


def test_dropout_is_drawn_where_the_class_draws_it(transformers) -> None:
    """The class that makes weights drops some in training; the fused one drops none."""
    for implementation, drawn in (("eager", True), ("sdpa", False)):
        model = _copy(transformers, "Sam", attention_dropout=0.5, attn_implementation=implementation).train()
        x = torch.randn(1, 3, 96, 96)
        plain = copy.deepcopy(model)
        locant.accelerate(model, strict=True)
        for m in (plain, model):
            one, other = m(x)[0], m(x)[0]
            assert ((one - other).abs().max() > 0.01 * one.abs().max()) == drawn


VITDET = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 96, "pretrain_image_size": 96,
    "patch_size": 8, "window_size": 5, "window_block_indices": [0, 2], "residual_block_indices": [1],
    "use_relative_position_embeddings": True, "mlp_ratio": 2, "initializer_range": 0.2,
}  # fmt: skip


def _vitdet(transformers: ModuleType, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return accelerated.randomised(transformers.VitDetModel(transformers.VitDetConfig(**{**VITDET, **more})))


@pytest.mark.parametrize("sides", [(96, 96), (72, 120)])
@pytest.mark.row(60)
def test_vitdet(transformers, parity, sides: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *sides)
    accelerated.check(_vitdet(transformers), x, accelerated.CONTENT, count=3)
    accelerated.check_exact(_vitdet(transformers), x, parity, 60)


def test_vitdet_hands_out_its_weights(transformers) -> None:
    model = _vitdet(transformers)
    plain, x = copy.deepcopy(model), torch.randn(1, 3, 96, 96)
    locant.accelerate(model, strict=True)
    ours, theirs = (m(x, output_attentions=True).attentions for m in (model, plain))
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(ours, theirs, strict=True))


def _seggpt(transformers: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    library = importlib.import_module("transformers.models.seggpt.modeling_seggpt")
    config = transformers.SegGptConfig(hidden_size=32, num_attention_heads=2, image_size=[96, 48], patch_size=8)
    return accelerated.randomised(library.SegGptAttention(config))


@pytest.mark.row(60)
def test_seggpt(transformers, monkeypatch, parity) -> None:
    """Its softmax is in float32 too."""
    x, softmax = torch.randn(2, 12, 6, 32), nn.functional.softmax
    accelerated.check(_seggpt(transformers), x, accelerated.CONTENT, count=1)
    monkeypatch.setattr(nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))
    accelerated.check_exact(_seggpt(transformers), x, parity, 60)


def _segment_anything() -> nn.Module:
    encoder = pytest.importorskip("segment_anything.modeling.image_encoder")
    torch.manual_seed(0)
    options = {"img_size": 96, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "out_chans": 8}
    model = encoder.ImageEncoderViT(**options, use_rel_pos=True, window_size=5, global_attn_indexes=(1,))
    return accelerated.randomised(model)


@pytest.mark.row(60)
def test_segment_anything(parity) -> None:
    x = torch.randn(2, 3, 96, 96)
    accelerated.check(_segment_anything(), x, accelerated.CONTENT, count=3)
    accelerated.check_exact(_segment_anything(), x, parity, 60)


class Attention(nn.Module):
    """Another writing of segment-anything's: a vector for each pair at once."""

    def __init__(self, dim: int, heads: int, side: int, sign: float = 1.0) -> None:
        super().__init__()
        self.num_heads, self.scale, self.use_rel_pos, self.sign = heads, (dim // heads) ** -0.5, True, sign
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rel_pos_h, self.rel_pos_w = (nn.Parameter(torch.randn(2 * side - 1, dim // heads)) for _ in "hw")

    def forward(self, x):
        rows, columns = x.shape[1:3]
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        row, column = (c.flatten() for c in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
        high, wide = (
            nn.functional.interpolate(table.T[None], 2 * side - 1, mode="linear")[0].T
            for table, side in ((self.rel_pos_h, rows), (self.rel_pos_w, columns))
        )
        vectors = high[row[:, None] - row + rows - 1] + wide[column[:, None] - column + columns - 1]
        logits = self.scale * q @ k.mT + self.sign * torch.einsum("bhid,ijd->bhij", q, vectors)
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2)).unflatten(1, (rows, columns))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, side: int, window: int, sign: float = 1.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, window or side, sign)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.window_size = window

    def forward(self, x):
        return self.after(x + self.inside(self.norm1(x)))

    def inside(self, x):
        if not self.window_size:
            return self.attn(x)
        (_, rows, columns, _), w = x.shape, self.window_size
        x = nn.functional.pad(x, (0, 0, 0, -columns % w, 0, -rows % w))
        bands = [torch.cat([self.attn(y) for y in band.split(w, 2)], 2) for band in x.split(w, 1)]
        return torch.cat(bands, 1)[:, :rows, :columns]

    def after(self, x):
        return x + self.mlp(self.norm2(x))


@pytest.mark.parametrize("window", [0, 4])
def test_an_unknown_copy_that_agrees_is_replaced(window: int) -> None:
    report = accelerated.check(nn.Sequential(Block(32, 2, 9, window)), torch.randn(2, 9, 9, 32), accelerated.CONTENT)
    assert report.rows[0].what.startswith("a vector per offset and axis")


@pytest.mark.parametrize("window", [0, 4])
def test_an_unknown_copy_with_another_sign_is_not(window: int) -> None:
    model = nn.Sequential(Block(32, 2, 9, window, sign=-1.0))
    report = locant.accelerate(model)
    assert report.rows[0].kernel is None
    assert "on random input it differs" in report.rows[0].why


@pytest.mark.compiled
def test_graphs(timm, transformers) -> None:
    accelerated.check_graphs(_timm(timm), [torch.randn(2, 3, 96, 96)])
    accelerated.check_graphs(_copy(transformers, "GotOcr2"), [torch.randn(2, 3, 96, 96)])


def test_unknown_sources_are_tried(timm, transformers, monkeypatch) -> None:
    for model in (_timm(timm), _vitdet(transformers), nn.Sequential(_seggpt(transformers))):
        accelerated.check_tried(model, monkeypatch)
    for name in COPIES:
        accelerated.check_tried(_copy(transformers, name), monkeypatch)


def test_the_classes_are_known_by_source(timm, transformers) -> None:
    there = [f for f in FAMILIES if "segment_anything" not in f.classes[0]]
    accelerated.check_known(there)


def test_segment_anything_is_known_by_source() -> None:
    pytest.importorskip("segment_anything")
    accelerated.check_known([f for f in FAMILIES if "segment_anything" in f.classes[0]])
