"""What products keep of a weight is never that of a weight that has moved, and goes with it."""

from __future__ import annotations

import gc

import pytest
import torch
from test_products import ROUNDING, _apart, _drawn
from torch import nn
from torch.nn import functional as F

from locant import dispatch, products
from locant.products import packed

pytestmark = pytest.mark.skipif(not dispatch.packs_linear(), reason="torch without oneDNN's packed products")


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
    before = len(packed._KEPT)
    with torch.no_grad():
        products.linear(x, w, None, True)
    there, size = len(packed._KEPT) - before, products.kept_bytes(w)
    assert (there, size) == (1, 4 * 288 * 96)
    del w, weight
    gc.collect()
    assert len(packed._KEPT) == before


def test_inference_tensors_and_training_keep_nothing() -> None:
    x, weight, _ = _drawn()
    gc.collect()  # models of other tests
    before = len(packed._KEPT)
    with torch.inference_mode():
        w = torch.randn(288, 96)
        assert _apart(products.linear(x, w, None, True), F.linear(x, w)) <= ROUNDING
    with torch.no_grad():
        products.linear(x, nn.Parameter(weight), None, False)
    assert len(packed._KEPT) == before
