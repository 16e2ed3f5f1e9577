"""Means by a kernel of distance: the published numbers, every kernel one number at a time, widths that are learned."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from near import close
from torch import Tensor

from locant import Pairs
from locant.nn.nadaraya_watson import KERNELS, NadarayaWatson

DOUBLE = torch.float64


@pytest.mark.row(37)
def test_the_golden_of_nadaraya_and_watson(parity: Callable) -> None:
    key = torch.arange(4.0, dtype=DOUBLE)[None, :, None]
    value = torch.tensor([1.0, 3, 2, 5], dtype=DOUBLE)[None, :, None]
    out, p = NadarayaWatson()(torch.full((1, 1, 1), 1.5, dtype=DOUBLE), key, value, need_weights=True)
    close(p.flatten(), torch.tensor([0.13447, 0.36553, 0.36553, 0.13447], dtype=DOUBLE), 5e-6)
    parity(37, "Nadaraya–Watson of 1.5 over 0, 1, 2, 3: 2.63447", abs(out.item() - 2.63447), 5e-6)


def kernel(name: str, d: float) -> float:
    return {
        "gaussian": math.exp(-(d**2) / 2),
        "boxcar": float(abs(d) < 1),
        "constant": 1.0,
        "triangular": max(1 - abs(d), 0.0),
    }[name]


@pytest.mark.row(37)
@pytest.mark.parametrize("w", [1.0, 0.4, -2.5])
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_a_mean_by_its_formula(name: str, w: float, parity: Callable) -> None:
    query, key, value = (torch.randn(2, n, d, dtype=DOUBLE) for n, d in ((4, 2), (6, 2), (6, 3)))
    query[1, 3] = 50.0  # out of everyone's reach
    allowed = torch.rand(2, 4, 6) > 0.3
    allowed[0, 1] = False
    golden = torch.zeros(2, 4, 6, dtype=DOUBLE)
    for b in range(2):
        for i in range(4):
            k = [kernel(name, w * math.dist(query[b, i], key[b, j])) * bool(allowed[b, i, j]) for j in range(6)]
            if math.fsum(k) > 0:
                golden[b, i] = torch.tensor([x / math.fsum(k) for x in k], dtype=DOUBLE)
    out, p = NadarayaWatson(name, w=w)(query, key, value, mask=Pairs(allowed), need_weights=True)
    far = name == "gaussian"  # exp(-50²) is 0 in the formula; its share of a sum is not
    error = max(
        float((found - wanted)[b, : 3 if far and b else 4].abs().max())
        for found, wanted in ((p, golden), (out, golden @ value))
        for b in range(2)
    )
    parity(37, f"Σ K(d) v / Σ K(d), {name}", error, 1e-10)
    if far:
        assert abs(float(p[1, 3].sum()) - 1) < 1e-12
        nearest = max((j for j in range(6) if allowed[1, 3, j]), key=lambda j: -math.dist(query[1, 3], key[1, j]))
        assert p[1, 3].argmax() == nearest
    if name in ("boxcar", "triangular"):
        assert not p[1, 3].any()
        assert not out[1, 3].any()


@pytest.mark.row(37)
@pytest.mark.row(53)
@pytest.mark.parametrize("name", ["gaussian", "triangular"])
def test_a_learned_width_has_its_gradient_and_no_nan_where_nothing_is_near(name: str) -> None:
    module = NadarayaWatson(name, w=None).double()
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {"w": (1,)}
    assert 0 <= module.w.item() < 1
    query = torch.tensor([[[0.0], [0.5], [40.0]]], dtype=DOUBLE)
    key, value = torch.tensor([[[0.0], [0.3], [1.2], [2.0]]], dtype=DOUBLE), torch.randn(1, 4, 2, dtype=DOUBLE)

    def call(w: Tensor, value: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"w": w}, (query, key, value))[0]

    w = torch.tensor([0.7], dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(call, (w, value.requires_grad_()))
    (gradient,) = torch.autograd.grad(call(w, value).sum(), w)
    assert abs(gradient.item()) > 1e-3
    starts = torch.cat([NadarayaWatson(w=None).w.detach() for _ in range(200)])
    assert 0.35 < starts.mean() < 0.65  # uniform from 0 to 1: five standard errors are 0.1


@pytest.mark.row(37)
def test_a_sample_may_be_left_out_of_its_own_mean() -> None:
    """d2l trains the width on keys without the sample itself; with it, the narrowest kernel always wins."""
    x = torch.sort(5 * torch.rand(1, 20, 1, dtype=DOUBLE), 1).values
    y = 2 * torch.sin(x) + x
    module = NadarayaWatson("gaussian", w=3.0)
    out, p = module(x, x, y, exclude_self=True, need_weights=True)
    for i in range(20):
        others = [j for j in range(20) if j != i]
        close(out[:, i], module(x[:, i : i + 1], x[:, others], y[:, others])[0][:, 0])
    assert not p[0].diagonal().any()
    own, _ = NadarayaWatson("gaussian", w=1e4)(x, x, y)
    close(own, y)
    alone, _ = module(x[:, :1], x[:, :1], y[:, :1], exclude_self=True)
    assert not alone.any()
    blocked = torch.ones(20, 20, dtype=torch.bool)
    blocked[:, 7] = False
    both = module(x, x, y, mask=Pairs(blocked), exclude_self=True, need_weights=True)[1]
    assert not both[0, :, 7].any()
    assert not both[0].diagonal().any()
