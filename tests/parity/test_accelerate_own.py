"""Locant's own models, accelerated: norms, gammas and sums go with products, in every kind of block."""

from __future__ import annotations

import accelerated
import pytest
import torch
from torch import nn

import locant
from locant import Sinusoid
from locant.integrations import own, patches
from locant.integrations.family import digest
from locant.models import ConViT, SAMEncoder, Swin, SwinV2, ViT
from locant.models.swin_v2 import ResPostNormBlock

PYRAMID = {"dim": 64, "depths": (2, 2), "heads": (2, 4), "window": 8, "num_classes": 10, "img_size": 160}
COLUMN = {"img_size": 64, "patch": 8, "dim": 96, "depth": 2, "heads": 2}
MODELS = {
    "vit": lambda: ViT(**COLUMN, num_classes=10, layer_scale=0.5, position="relative"),
    "vit, mean": lambda: ViT(**COLUMN, num_classes=10, pooling="mean", registers=2),
    "convit": lambda: ConViT(**COLUMN, num_classes=10, local_up_to_layer=1),
    "swin": lambda: Swin(**PYRAMID),
    "swin, filled": lambda: Swin(like="timm", **PYRAMID),
    "swin v2": lambda: SwinV2(**PYRAMID),
    "swin v2, filled": lambda: SwinV2(like="timm", **PYRAMID),
    "sam": lambda: SAMEncoder(**COLUMN, window=3, global_blocks=(1,), out_chans=16),
}  # fmt: skip
# norms that stand alone: the last one, the neck's, and where windows do not divide a map (8 of 20, 3 of 8)
APART = {"swin, filled": ["norm", "norm1", "norm1"], "sam": ["blocks.0.norm1", "neck.1", "neck.3"]}


def _built(name: str) -> tuple[nn.Module, torch.Tensor, str]:
    torch.manual_seed(0)
    side, block = (160, "layers.1.blocks.1") if name.startswith("swin") else (64, "blocks.1")
    return MODELS[name]().eval(), torch.randn(8, 3, side, side), block


@pytest.mark.parametrize("part", ["norm1", "norm2", "attention", "attention.proj", "mlp.activation", "mlp", None])
@pytest.mark.parametrize("name", MODELS)
def test_norms_gammas_and_sums_are_joined_unless_a_hook_wants_a_part(name: str, part: str | None) -> None:
    model, x, block = _built(name)
    path = None if part is None else f"{block}.{part}"
    accelerated.check_halves(model, [x], path, APART.get(name, ["norm"]))


@pytest.mark.parametrize("name", MODELS)
def test_they_are_exact_in_float64(name: str) -> None:
    model, x, _ = _built(name)
    accelerated.check_exact(model, x[:2].double())


@pytest.mark.parametrize("part", ["attention", "mlp", "norm1"])
def test_a_forward_that_came_later_is_called(part: str) -> None:
    model, x, block = _built("swin")
    accelerated.check_a_later_forward(model, x, f"{block}.{part}")


def test_what_is_added_to_queries_and_keys_alone_is_not_joined() -> None:
    """An embedding among the positions makes q and k of other tokens than v."""
    grid = locant.Grid(48)
    attention = locant.nn.Attention(64, 2, grid=grid, position=Sinusoid(64))
    model, x = locant.nn.Block(64, 2, attention=attention).eval(), torch.randn(16, 48, 64)
    accelerated.check_halves(model, [x], None, ["norm1", "norm2"])


@pytest.mark.parametrize("grid", [None, locant.Grid(50)])
def test_zeros_that_fill_a_line_come_behind_the_norm(grid: locant.Grid | None) -> None:
    """Windows of 8 do not divide 50 tokens, whether anyone says where they are or not."""
    attention = locant.nn.WindowAttention(64, 2, (8,), shift=4, border="pad-roll", grid=grid)
    model, x = locant.nn.Block(64, 2, attention=attention).eval(), torch.randn(16, 50, 64)
    accelerated.check_halves(model, [x], None, ["norm1"])


def test_own_classes_are_known_by_source() -> None:
    """Whoever changes a forward of these has to look at what takes its place."""
    for family in (*own.FAMILIES, *patches.FAMILIES[1:3]):
        (name,) = family.classes
        module, _, cls = name.rpartition(".")
        assert {digest(getattr(__import__(module, fromlist=[cls]), cls), family.methods)} == family.known, name


@pytest.mark.parametrize("block", [locant.nn.Block, ResPostNormBlock])
@pytest.mark.parametrize("wrong", [torch.zeros(2, 9), torch.zeros(2, 9, 64, dtype=torch.int64), torch.zeros(2, 9, 32)])
def test_bad_input_gets_the_same_sentence(block: type[nn.Module], wrong: torch.Tensor) -> None:
    model = block(64, 2).eval()
    sentences = []
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=r"\[") as caught, torch.no_grad():
            model(wrong)
        sentences.append(str(caught.value))
        locant.accelerate(model)
    assert sentences[0] == sentences[1]
