"""torchao's int8: linears whose weights are tensors of another class are called, and left alone by accelerate.

torchao is no dependency; tests are left out, with the reason, where it is not installed.
"""

from __future__ import annotations

import copy

import pytest
import torch
from near import apart_by_size
from redrawing import redraw
from small import swin
from test_wrapped import Called
from torch import Tensor, nn

import locant
from locant import Grid, Learned, RelativeTable
from locant.nn import Attention

quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
pytestmark = pytest.mark.plain

GRID = Grid(4, 6)
CONFIGS = {
    "weights": quantization.Int8WeightOnlyConfig,
    "weights and activations": quantization.Int8DynamicActivationInt8WeightConfig,
}


TOLERANCE = 64 * torch.finfo(torch.float32).eps  # of a few layers in another order


def cases() -> dict[str, tuple[nn.Module, Tensor]]:
    table, learned = RelativeTable(GRID, 2), Learned(GRID, 32)
    return {
        "attention": (Attention(32, 2, grid=GRID, position=table), torch.randn(2, GRID.tokens, 32)),
        "attention, an embedding": (Attention(32, 2, grid=GRID, position=learned), torch.randn(2, GRID.tokens, 32)),
        "swin": (swin(img_size=64), torch.randn(2, 3, 64, 64)),
    }


def quantise(module: nn.Module, config: str) -> nn.Module:
    quantization.quantize_(module, CONFIGS[config]())
    return module


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", cases())
def test_int8(name: str, config: str) -> None:
    """Every linear is called, in int8: the same as behind a call, and not the plain one's numbers."""
    module, x = cases()[name]
    plain = redraw(module).eval()
    found = quantise(copy.deepcopy(plain), config)
    behind = copy.deepcopy(found)
    linears = [path for path, part in found.named_modules() if isinstance(part, nn.Linear)]
    assert all(hasattr(type(found.get_submodule(path).weight), "__tensor_flatten__") for path in linears)
    for path in linears:
        behind.set_submodule(path, Called(behind.get_submodule(path)))
    with torch.no_grad():
        assert torch.equal(found(x), behind(x))
        assert 0 < apart_by_size(found(x), plain(x)) < 0.1  # as near as eight bits are


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_accelerated(when: str, config: str) -> None:
    """Attention is replaced; quantised linears go on being called, those that were replaced before included."""
    plain, x = redraw(swin(img_size=64)).eval(), torch.randn(2, 3, 64, 64)
    wanted, model = quantise(copy.deepcopy(plain), config), copy.deepcopy(plain)
    if when == "before":
        locant.accelerate(model)
    quantise(model, config)
    if when == "after":
        report = str(locant.accelerate(model))
        assert "3 of 3 attention, 0 of 3 perceptrons, 0 of 14 linears replaced" in report
        assert "a weight of its layers is no plain tensor (Int8Tensor): they go on being called" in report
        assert "its weight is no plain tensor" in report
    with torch.no_grad():
        found, own = model(x), apart_by_size(wanted(x), plain(x))
        assert 1e-4 < apart_by_size(found, plain(x)) <= 2 * own
        # activations are rounded to eight bits at each layer, so that an input moved by 2e-7 gives as much as 2 * own
        allowed = TOLERANCE if config == "weights" else 2 * own
        assert apart_by_size(found, wanted(x)) <= allowed
