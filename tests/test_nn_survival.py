"""What every module of `locant.nn` survives: copies, files, half precision, autocast, checkpointing, compilation."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from locant import ALiBi, Grid, Learned, MaskedSine, Padding, RelativeTable, Rotary, Sinusoid, Windows
from locant.nn import Attention, Block, GatedAttention, MultiHeadAttention, WindowAttention

DIM, HEADS, GRID = 8, 2, Grid(3, 5)

MODULES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Attention(DIM, HEADS, grid=GRID),
    "table": lambda: Attention(DIM, HEADS, grid=GRID, position=RelativeTable(GRID, HEADS), mask=Windows((2, 2))),
    "learned": lambda: Attention(DIM, HEADS, grid=GRID, position=Learned(GRID, DIM)),
    "sine": lambda: Attention(DIM, HEADS, grid=GRID, position=MaskedSine(DIM)),
    "several": lambda: Attention(
        DIM, HEADS, grid=GRID, position=(ALiBi(HEADS, distance="euclidean"), Rotary(4, axes=2), Sinusoid(DIM))
    ),
    "cells": lambda: WindowAttention(DIM, HEADS, (2, 2), grid=GRID, shift=1),
    "pad-roll": lambda: WindowAttention(DIM, HEADS, (2, 2), grid=GRID, shift=1, border="pad-roll"),
    "roll-pad": lambda: WindowAttention(DIM, HEADS, (2, 2), grid=GRID, shift=1, border="roll-pad", small="per-axis"),
    "gated": lambda: GatedAttention(DIM, HEADS, grid=GRID),
    "multihead": lambda: Twice(MultiHeadAttention(DIM, HEADS, grid=GRID, position=RelativeTable(GRID, HEADS))),
    "block": lambda: Block(DIM, HEADS, grid=GRID, position=RelativeTable(GRID, HEADS)),
}


class Twice(nn.Module):
    """Self-attention by a module of three inputs."""

    def __init__(self, inner: MultiHeadAttention) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, mask: Padding | None = None) -> Tensor:
        return self.inner(x, x, x, mask=mask)[0]


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> nn.Module:
    return MODULES[request.param]()


def tokens() -> Tensor:
    return torch.randn(2, GRID.tokens, DIM)


def test_copies_and_files_compute_the_same(module: nn.Module) -> None:
    x = tokens()
    expected = module(x)
    copied = copy.deepcopy(module)
    assert torch.equal(copied(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not torch.equal(copied(x), expected)
    copied.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(copied(x), expected)


def test_the_state_dict_holds_learned_tensors_only(module: nn.Module) -> None:
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_the_exact_result(module: nn.Module, dtype: torch.dtype) -> None:
    """The weights rounded to the dtype, computed in float64, against the same computed in the dtype."""
    rounded = copy.deepcopy(module).to(dtype)
    x = tokens().to(dtype)
    out = rounded(x)
    assert out.dtype == dtype
    exact = copy.deepcopy(rounded).double()(x.double())
    # a chain of at most 16 roundings of numbers no larger than a few: 32 units in the last place
    assert float((out.double() - exact).detach().abs().max()) <= 32 * torch.finfo(dtype).eps * max(
        1, float(exact.abs().max())
    )


def test_autocast_computes_in_its_dtype_and_trains(module: nn.Module) -> None:
    x = tokens().requires_grad_()
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    eps = torch.finfo(torch.bfloat16).eps
    assert float((out.float() - expected).detach().abs().max()) <= 32 * eps * max(1, float(expected.abs().max()))
    out.float().square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in (*module.parameters(), x))


def test_checkpointing_changes_no_gradient(module: nn.Module) -> None:
    x = tokens().requires_grad_()
    valued = list(module.parameters())
    target = torch.randn(2, GRID.tokens, DIM)
    expected = torch.autograd.grad((module(x) * target).sum(), [x, *valued])
    again = torch.autograd.grad((checkpoint(module, x, use_reentrant=False) * target).sum(), [x, *valued])
    for a, b in zip(again, expected, strict=True):
        assert torch.equal(a, b)


def test_checkpointing_repeats_dropout() -> None:
    module = Attention(DIM, HEADS, grid=GRID, dropout=0.5, proj_dropout=0.5)
    x = tokens().requires_grad_()
    torch.manual_seed(3)
    expected = torch.autograd.grad(module(x).square().sum(), x)[0]
    torch.manual_seed(3)
    again = torch.autograd.grad(checkpoint(module, x, use_reentrant=False).square().sum(), x)[0]
    assert torch.equal(again, expected)


def test_checkpointing_takes_masks() -> None:
    module = Attention(DIM, HEADS, grid=GRID, position=MaskedSine(DIM))
    mask = Padding.from_lengths(torch.tensor([4, 15]), 15)
    x = tokens().requires_grad_()
    expected = torch.autograd.grad(module(x, mask=mask).square().sum(), x)[0]
    out = checkpoint(module, x, mask=mask, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(out.square().sum(), x)[0], expected)


def test_a_batch_of_none_and_a_map_of_none(module: nn.Module) -> None:
    assert module(torch.zeros(0, GRID.tokens, DIM)).shape == (0, GRID.tokens, DIM)


@pytest.mark.compiled
@pytest.mark.parametrize("name", MODULES)
def test_compiled_whole_it_computes_and_trains_the_same(name: str) -> None:
    module = MODULES[name]()
    x = tokens().requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    target = torch.randn(2, GRID.tokens, DIM)
    leaves = [x, *module.parameters()]
    out, expected = compiled(x), module(x)
    low = float(expected.abs().max())
    assert float((out - expected).detach().abs().max()) <= 1e-5 * low
    found, wanted = (torch.autograd.grad((y * target).sum(), leaves) for y in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).detach().abs().max()) <= 3e-5 * max(1.0, float(b.abs().max()))


@pytest.mark.compiled
def test_compiled_code_takes_masks_and_positions_at_the_call() -> None:
    """AIM's two calls of one module, and a padding, in one graph."""
    clip = Grid(2, 3, 4)
    module = Attention(DIM, HEADS, grid=clip)
    spatial, temporal = RelativeTable(Grid(1, 3, 4), HEADS), RelativeTable(Grid(2, 1, 1), HEADS)

    def both(x: Tensor, valid: Tensor) -> Tensor:
        x = module(x, position=spatial, mask=Windows((1, 3, 4)) & Padding(valid))
        return module(x, position=temporal, mask=Windows((2, 1, 1)))

    x, valid = torch.randn(2, 24, DIM), torch.rand(2, 24) > 0.2
    out = torch.compile(both, fullgraph=True, backend="aot_eager")(x, valid)
    assert float((out - both(x, valid)).detach().abs().max()) <= 1e-5
