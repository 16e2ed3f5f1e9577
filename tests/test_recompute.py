"""Hidden layers of perceptrons that backward computes anew: the same gradients, in less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import locant
from locant import dispatch, operators, products
from locant.nn import Block
from locant.products import operators as product_operators

ROUNDING = 2e-6  # float32, sums of at most 1,024 terms of size 1 relative to the largest result: sqrt(1,024) eps


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def _kept(call) -> tuple[torch.Tensor, int]:
    """What a call returns, and the bytes of all that autograd saved of it, each storage once."""
    kept: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        return call(), sum(kept.values())


@pytest.mark.parametrize("library", ["compiled", "onednn"])
def test_gradients_are_the_same_and_the_hidden_layer_is_not_kept(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks of 1,024 rows of 1,024 hidden numbers, and one that is left over; kept is the input alone."""
    there = not isinstance(operators.built(), str) if library == "compiled" else dispatch.packs_linear()
    if not there:
        pytest.skip(f"{library} is not there")
    monkeypatch.setattr(product_operators, "able", lambda dtype: (library,))
    torch.manual_seed(0)
    shapes = (3137, 32), (1024, 32), (1024,), (48, 1024), (48,)
    inputs = [(torch.randn(shape) / shape[-1] ** 0.5).requires_grad_() for shape in shapes]
    dy, own, found = torch.randn(3137, 48), sum(4 * t.numel() for t in inputs), []
    for recompute in (False, True):
        y, kept = _kept(lambda recompute=recompute: products.perceptron(*inputs, "gelu", False, recompute=recompute))
        found.append((y.detach(), torch.autograd.grad(y, inputs, dy), kept - own))
    (y, gradients, before), (again, recomputed, after) = found
    assert _apart(again, y) <= ROUNDING
    for name, one, other in zip("x w1 b1 w2 b2".split(), recomputed, gradients, strict=True):
        assert _apart(one, other) <= 4 * ROUNDING, name  # sums over 3,137 rows
    assert before >= 4 * 3137 * 1024
    assert after <= 0


def test_it_is_done_only_if_asked() -> None:
    """Of two blocks [rows, hidden] less is saved; gradients are the same; nothing stays behind."""
    torch.manual_seed(0)
    model, x, found = nn.Sequential(Block(96, 4), Block(96, 4)), torch.randn(8, 200, 96), []
    for recompute in (False, True):
        with locant.accelerate(model, recompute=recompute):
            y, kept = _kept(lambda: model(x))
            found.append((torch.autograd.grad(y.square().sum(), [*model.parameters()]), kept))
        assert not any("_locant" in vars(module) for module in model.modules())
    (gradients, before), (recomputed, after) = found
    assert before - after >= 2 * 4 * 1600 * 384
    for one, other in zip(recomputed, gradients, strict=True):
        assert _apart(one, other) <= 8 * ROUNDING
    with pytest.raises(ValueError, match="got recompute=True with pack=False. Leave pack out"):
        locant.accelerate(model, recompute=True, pack=False)


def test_training_drops_the_packed_copies_of_a_perceptron() -> None:
    torch.manual_seed(0)
    model, x = Block(96, 4).eval(), torch.randn(4, 200, 96)
    report = locant.accelerate(model)
    with torch.no_grad():
        model(x)
    if dispatch.packs_linear() or not isinstance(operators.built(), str):
        assert report.packed_bytes > 0
    model.train()(x).sum().backward()
    assert report.packed_bytes == 0
