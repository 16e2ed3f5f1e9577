"""MViT of timm and torchvision, accelerated: pooled queries and keys, a class token, pictures and clips."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.integrations.mvit import FAMILIES

TIMM = {"depths": (1, 2, 1), "embed_dim": 16, "num_heads": 1, "stride_q": ((1, 1), (2, 2), (2, 2)), "mlp_ratio": 2.0}


def _timm(timm: ModuleType, size: int = 64, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    library = timm.models.mvitv2
    model = library.MultiScaleVit(library.MultiScaleVitCfg(**{**TIMM, **more}), img_size=size, num_classes=5)
    return accelerated.randomised(_widened(model))


def _widened(model: nn.Module) -> nn.Module:
    """Weights that start small would leave attention nearly uniform."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "qkv.weight" in name:
                p.normal_(std=0.3)
    return model


VARIANTS = [
    {}, {"use_cls_token": True}, {"residual_pooling": False, "mode": "max"}, {"mode": "conv_unshared"},
    {"rel_pos_type": "none", "use_abs_pos": True}, {"stride_kv_adaptive": (2, 2)}, {"expand_attn": False},
]  # fmt: skip


@pytest.mark.parametrize("more", VARIANTS)
@pytest.mark.row(61)
def test_timm(timm, parity, more: dict) -> None:
    x = torch.randn(2, 3, 64, 64)
    if more.get("mode") != "conv_unshared":  # which timm can't run: its norm is as wide as all heads
        accelerated.check(_timm(timm, **more), x, accelerated.CONTENT, count=4)
        accelerated.check_exact(_timm(timm, **more), x, parity, 61)


def test_timm_on_a_picture_that_strides_do_not_divide(timm) -> None:
    """Its offsets are rounded fractions: the class's own forward."""
    x = torch.randn(2, 3, 72, 72)  # 18, 9 and 5
    accelerated.check_exact(_timm(timm, 72, stride_kv_adaptive=(4, 4)), x)


def test_timm_on_a_smaller_picture_than_its_tables(timm) -> None:
    """timm reads them from their first row."""
    accelerated.check_exact(_timm(timm), torch.randn(2, 3, 32, 32))


def _torchvision(**more: Any) -> nn.Module:
    mvit = pytest.importorskip("torchvision.models.video.mvit")
    torch.manual_seed(0)
    settings = [
        mvit.MSBlockConfig(1, 16, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 4, 4]),
        mvit.MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
        mvit.MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        mvit.MSBlockConfig(4, 32, 64, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    options = {
        "residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True,
        "stochastic_depth_prob": 0.0, "attention_dropout": 0.0, "num_classes": 5, **more,
    }  # fmt: skip
    model = mvit.MViT((64, 64), 8, settings, **options)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return accelerated.randomised(_widened(model))


@pytest.mark.parametrize(
    "more",
    [
        {}, {"residual_with_cls_embed": True}, {"rel_pos_embed": False, "residual_pool": False},
        {"proj_after_attn": False},
    ],
)  # fmt: skip
@pytest.mark.row(61)
def test_torchvision(parity, more: dict) -> None:
    x = torch.randn(2, 3, 8, 64, 64)
    accelerated.check(_torchvision(**more), x, accelerated.CONTENT, count=4)
    accelerated.check_exact(_torchvision(**more), x, parity, 61)


@pytest.mark.parametrize("shape", [(4, 64, 64), (8, 32, 96), (6, 48, 40)])
def test_torchvision_on_clips_of_other_sizes(shape: tuple[int, ...]) -> None:
    """Tables are stretched; the last one's maps are not divided by every stride."""
    attn = _torchvision().blocks[1].attn
    size = (shape[0] // 2, shape[1] // 4, shape[2] // 4)
    x = torch.randn(2, 1 + size[0] * size[1] * size[2], 16)
    accelerated.check_exact(nn.ModuleDict({"attn": attn})["attn"], {"x": x, "thw": size})


def test_published_sizes_are_replaced_whole(timm) -> None:
    for model in (timm.create_model("mvitv2_tiny"), timm.create_model("mvitv2_small_cls", img_size=64)):
        report = locant.accelerate(copy.deepcopy(model), strict=True, dry_run=True)
        assert sum(row.kind == "attention" for row in report.replaced) in (10, 16)
    mvit = pytest.importorskip("torchvision.models.video.mvit")
    for build in (mvit.mvit_v1_b, mvit.mvit_v2_s):
        assert len([r for r in locant.accelerate(build(), strict=True).replaced if r.kind == "attention"]) == 16


@pytest.mark.compiled
def test_graphs(timm) -> None:
    accelerated.check_graphs(_timm(timm), [torch.randn(2, 3, 64, 64)])


def test_unknown_sources_are_tried(timm, monkeypatch) -> None:
    for model in (_timm(timm), _timm(timm, use_cls_token=True), _torchvision()):
        accelerated.check_tried(model, monkeypatch)


def test_another_zero_offset_is_not_taken_for_it(timm, monkeypatch) -> None:
    """A copy whose keys lie at the first of their pooled cells differs, and says so."""
    library = timm.models.mvitv2
    own = library.cal_rel_pos_type

    def shifted(attn, q, token, q_size, k_size, high, wide):
        return own(attn, q, token, q_size, k_size, high.roll(1, 0), wide)

    monkeypatch.setattr(library, "cal_rel_pos_type", shifted)
    monkeypatch.setattr("locant.integrations.model.digest", lambda *_: "another")
    report = locant.accelerate(_timm(timm))
    rows = [row for row in report.rows if row.kind == "attention"]
    assert all(row.kernel is None and "on random input it differs" in row.why for row in rows)


def test_the_classes_are_known_by_source(timm) -> None:
    pytest.importorskip("torchvision.models.video.mvit")
    accelerated.check_known(FAMILIES)
