"""MONAI's SwinUNETR, accelerated: the same numbers forward and backward, in two and three dimensions."""

from __future__ import annotations

from types import ModuleType

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant.integrations.layers import PERCEPTRONS
from locant.integrations.monai import FAMILIES


@pytest.fixture
def swin_unetr(_peers_load: None) -> ModuleType:
    return pytest.importorskip("monai.networks.nets.swin_unetr")


def _build(swin_unetr: ModuleType, axes: int, window: int | tuple[int, ...], **more) -> nn.Module:
    torch.manual_seed(0)
    window = (window,) * axes if isinstance(window, int) else window
    return swin_unetr.SwinTransformer(
        in_chans=1, embed_dim=16, window_size=window, patch_size=(2,) * axes, depths=(2, 2, 1, 1),
        num_heads=(2, 2, 4, 4), spatial_dims=axes, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "window", "sides"),
    [
        (3, 4, (32, 32, 32)),  # 16, 8, 4 and 2: windows divide the first two, the last is smaller
        (3, (4, 3, 3), (14, 22, 26)),  # 7 × 11 × 13: they do not
        (2, 4, (64, 64)),
        (2, 5, (36, 52)),
    ],
)
def test_unetr(swin_unetr, axes: int, window: int, sides: tuple[int, ...]) -> None:
    accelerated.check(_build(swin_unetr, axes, window), torch.randn(2, 1, *sides), count=6)


@pytest.mark.parametrize("part", ["norm1", "norm2", "attn.proj_drop", "mlp.linear1", None])
def test_halves_of_blocks_are_joined(swin_unetr, part: str | None) -> None:
    model = _build(swin_unetr, 3, 4)
    path = part and f"layers1.0.blocks.1.{part}"
    # the last map is smaller than a window: its block runs by the library's own forward
    apart = ["merging"] * 4 + ["output"] * 5 + ["norm1", "norm2"]
    accelerated.check_halves(model, [torch.randn(4, 1, 32, 32, 32)], path, apart)


def test_checkpoints_and_the_fused_path_of_its_own(swin_unetr) -> None:
    accelerated.check(
        _build(swin_unetr, 3, 4, use_checkpoint=True, use_flash_attention=True), torch.randn(1, 1, 32, 32, 32)
    )


def test_the_whole_model(swin_unetr) -> None:
    torch.manual_seed(0)
    model = swin_unetr.SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(2, 1, 1, 1))
    report = accelerated.check(model, torch.randn(1, 1, 32, 64, 32))
    assert {row.kernel for row in report.rows if row.kind == "perceptron"} == {"packed"}


def _block(**more) -> nn.Module:
    torch.manual_seed(0)
    block = pytest.importorskip("monai.networks.blocks.selfattention").SABlock(32, 2, qkv_bias=True, **more)
    return accelerated.randomised(block)


TABLES = {"rel_pos_embedding": "decomposed", "input_size": (7, 5)}
SEEN = (torch.arange(35) < torch.tensor([[35], [20]])).long()


@pytest.mark.parametrize("mask", [None, SEEN])
@pytest.mark.parametrize(
    "more", [{}, TABLES, {**TABLES, "dim_head": 24, "include_fc": False}, {"use_combined_linear": False, **TABLES}]
)
@pytest.mark.usefixtures("_peers_load")
@pytest.mark.row(62)
def test_attention_of_the_vit(parity, more: dict, mask: torch.Tensor | None) -> None:
    """Padding too, but where nothing is padded."""
    example = {"x": torch.randn(2, 35, 32), "attn_mask": mask}
    accelerated.check(_block(**more), example, accelerated.CONTENT if more else "native", count=1)
    accelerated.check_exact(_block(**more), example, parity, 62)


@pytest.mark.usefixtures("_peers_load")
def test_causal_attention_and_what_stays_its_own() -> None:
    x = torch.randn(2, 35, 32)
    accelerated.check_exact(_block(causal=True, sequence_length=40, **TABLES), x)
    kept = _block(save_attn=True, **TABLES)
    locant.accelerate(kept, strict=True)
    kept(x)
    assert kept.att_mat.shape == (2, 2, 35, 35)


@pytest.mark.usefixtures("_peers_load")
def test_three_axes_are_no_offsets() -> None:
    """MONAI 1.6.1 adds them along other axes: equal queries at equal offsets get other numbers."""
    block = _block(rel_pos_embedding="decomposed", input_size=(2, 2, 2))
    assert "mixes up the axes" in locant.accelerate(block).rows[0].why
    q = torch.randn(1, 2, 1, 16).expand(-1, -1, 8, -1)
    bias = block.rel_positional_embedding(torch.zeros(1, 8, 32), torch.zeros(1, 2, 8, 8), q)
    assert (bias[..., 0, 0] - bias[..., 1, 1]).abs().min() > 1e-2


@pytest.mark.compiled
def test_graphs(swin_unetr) -> None:
    accelerated.check_graphs(_build(swin_unetr, 2, 4), [torch.randn(1, 1, 72, 64)])


@pytest.mark.parametrize("axes", [2, 3])
def test_unknown_sources_are_tried(swin_unetr, monkeypatch, axes: int) -> None:
    accelerated.check_tried(_build(swin_unetr, axes, 4), monkeypatch)


def test_the_classes_are_known_by_source(swin_unetr) -> None:
    accelerated.check_known([*FAMILIES, *(f for f in PERCEPTRONS if "monai" in f.classes[0])])


def test_it_is_replaced_for_what_it_is(swin_unetr) -> None:
    assert "table, windows of 4 × 4 × 4, shifted" in str(locant.accelerate(_build(swin_unetr, 3, 4)))
