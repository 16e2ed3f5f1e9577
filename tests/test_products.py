"""Packed products: the numbers of torch's own linear, and never those of a weight that has moved."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from locant import dispatch, products

pytestmark = pytest.mark.skipif(not dispatch.packs_linear(), reason="torch without oneDNN's packed products")

ROUNDING = 2e-6  # float32, sums of at most 768 terms of size 1 relative to the largest result: sqrt(768) eps and more


def _drawn(rows: int = 700, width: int = 96, out: int = 288, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return torch.randn(rows, width, dtype=dtype), torch.randn(out, width, dtype=dtype), torch.randn(out, dtype=dtype)


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shape", [(700,), (7, 100), (2, 5, 70), (1,), (0,)])
def test_it_is_torchs_linear(keep: bool, shape: tuple[int, ...]) -> None:
    _, weight, bias = _drawn()
    x = torch.randn(*shape, 96)
    for b in (bias, None):
        ours, theirs = products.linear(x, weight, b, keep), F.linear(x, weight, b)
        assert ours.shape == theirs.shape
        assert x.numel() == 0 or _apart(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("activation", products.ACTIVATIONS)
@pytest.mark.parametrize("rows", [products.CHUNK - 1, products.CHUNK, 2 * products.CHUNK + 3])
def test_a_perceptron_is_its_two_layers(activation: str, rows: int) -> None:
    x, w1, b1 = _drawn(rows)
    w2, b2 = torch.randn(64, 288), torch.randn(64)
    with torch.no_grad():
        hidden = {
            "none": lambda h: h, "gelu": F.gelu, "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"), "relu": F.relu,
            "silu": F.silu,
        }[activation](F.linear(x, w1, b1))  # fmt: skip
        assert _apart(products.perceptron(x, w1, b1, w2, b2, activation, True), F.linear(hidden, w2, b2)) <= ROUNDING


@pytest.mark.parametrize("rows", [700, products.ONEDNN_ROWS + 5])
def test_gradients_are_those_of_torchs_linear(rows: int) -> None:
    x, weight, bias = (t.requires_grad_() for t in _drawn(rows))
    dy = torch.randn(rows, 288)
    for b in (bias, None):
        inputs = [t for t in (x, weight, b) if t is not None]
        ours = torch.autograd.grad(products.linear(x, weight, b, True), inputs, dy)
        theirs = torch.autograd.grad(F.linear(x, weight, b), inputs, dy)
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            assert _apart(one, other) <= 4 * ROUNDING  # sums over up to 8,000 rows
    perceptron = products.perceptron(x, weight, bias, torch.randn(64, 288), None, "gelu", True)
    assert perceptron.requires_grad


def test_a_gradient_of_a_gradient() -> None:
    x, weight, _ = _drawn()
    x.requires_grad_(), weight.requires_grad_()
    found = []
    for linear in (lambda: products.linear(x, weight, None, True), lambda: F.linear(x, weight)):
        (dx,) = torch.autograd.grad(linear().pow(2).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.pow(2).sum(), weight)[0])
    assert _apart(*found) <= 8 * ROUNDING


def _moves():
    def in_place(w: nn.Parameter) -> None:
        with torch.no_grad():
            w.mul_(2)

    def optimizer(w: nn.Parameter) -> None:
        w.grad = torch.ones_like(w)
        torch.optim.SGD([w], lr=0.5).step()

    def address(w: nn.Parameter) -> None:
        w.data = 3 * w.data.clone()

    def dtype(w: nn.Parameter) -> None:
        w.data = (5 * w.data).to(torch.bfloat16).float()

    return {"in place": in_place, "optimizer": optimizer, "address": address, "dtype": dtype}


@pytest.mark.parametrize("move", _moves())
def test_a_weight_that_moved_is_packed_anew(move: str) -> None:
    x, weight, _ = _drawn()
    w = nn.Parameter(weight)
    with torch.no_grad():
        before = products.linear(x, w, None, True)
    _moves()[move](w)
    with torch.no_grad():
        after = products.linear(x, w, None, True)
        assert _apart(after, F.linear(x, w)) <= ROUNDING
    assert _apart(after, before) > 0.01


def test_a_write_through_data_is_seen_after_forgetting() -> None:
    """No counter sees `.data`: the stale copy is used, which the docs say, until it is forgotten."""
    x, weight, _ = _drawn()
    w = nn.Parameter(weight)
    with torch.no_grad():
        products.linear(x, w, None, True)
        w.data.mul_(2)
        assert _apart(products.linear(x, w, None, True), F.linear(x, w)) > 0.1
        assert products.forget(w) == 4 * w.numel()
        assert _apart(products.linear(x, w, None, True), F.linear(x, w)) <= ROUNDING


def test_what_is_kept_goes_with_its_weight() -> None:
    x, weight, _ = _drawn()
    w = nn.Parameter(weight)
    gc.collect()  # models of other tests
    before = len(products._KEPT)
    with torch.no_grad():
        products.linear(x, w, None, True)
    there, size = len(products._KEPT) - before, products.kept_bytes(w)
    assert (there, size) == (1, 4 * 288 * 96)
    del w, weight
    gc.collect()
    assert len(products._KEPT) == before


def test_inference_tensors_and_training_keep_nothing() -> None:
    x, weight, _ = _drawn()
    gc.collect()  # models of other tests
    before = len(products._KEPT)
    with torch.inference_mode():
        w = torch.randn(288, 96)
        assert _apart(products.linear(x, w, None, True), F.linear(x, w)) <= ROUNDING
    with torch.no_grad():
        products.linear(x, nn.Parameter(weight), None, False)
    assert len(products._KEPT) == before


def test_autocast_gives_what_torch_gives() -> None:
    x, weight, bias = _drawn()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for keep in (True, False):
            ours, theirs = products.linear(x, nn.Parameter(weight), bias, keep), F.linear(x, weight, bias)
            assert ours.dtype == theirs.dtype == torch.bfloat16
            assert _apart(ours, theirs) <= 2**-7  # an ulp of bfloat16
    w = nn.Parameter(weight)
    with torch.autocast("cpu", torch.bfloat16):
        products.linear(x, w, bias, False).sum().backward()
    assert w.grad is not None
    assert w.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_torchs(dtype: torch.dtype) -> None:
    x, weight, bias = _drawn(dtype=dtype)
    assert torch.equal(products.linear(x, weight, bias, True), F.linear(x, weight, bias))


def test_copies_have_their_own() -> None:
    layer = nn.Linear(96, 288)
    x, _, _ = _drawn()
    with torch.no_grad():
        products.linear(x, layer.weight, None, True)
        other = copy.deepcopy(layer)
        other.weight.mul_(2)
        assert _apart(products.linear(x, other.weight, None, True), F.linear(x, other.weight)) <= ROUNDING
        assert _apart(products.linear(x, layer.weight, None, True), F.linear(x, layer.weight)) <= ROUNDING


def test_the_operators_are_sound() -> None:
    x, weight, bias = _drawn(40, 24, 32)
    torch.library.opcheck(torch.ops.locant.linear.default, (x.requires_grad_(), weight.requires_grad_(), bias, False))
    torch.library.opcheck(
        torch.ops.locant.perceptron.default,
        (x.detach(), weight.detach(), bias, torch.randn(8, 32), None, "gelu", False),
    )


@pytest.mark.compiled
def test_in_a_graph_it_is_one_node_and_sees_a_moved_weight() -> None:
    x, weight, bias = _drawn()
    w = nn.Parameter(weight)
    compiled = torch.compile(lambda x: products.linear(x, w, bias, True), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert _apart(compiled(x), F.linear(x, w, bias)) <= ROUNDING
        w.mul_(2)
        assert _apart(compiled(x), F.linear(x, w, bias)) <= ROUNDING
    compiled(x).sum().backward()
    assert _apart(w.grad, x.sum(0).expand(288, 96)) <= 4 * ROUNDING
