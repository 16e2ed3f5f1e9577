"""`locant.accelerate` on models that are not as it would have them: a row or a sentence, and the model as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixing import WIDTH, Mixing, Part
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import locant
from locant.integrations import family as families
from locant.integrations import model as whole
from locant.integrations.family import Attended, Family, Offer, digest
from locant.integrations.replacing import Replacement, State, is_replaced


def _joined(self: Part, x: torch.Tensor) -> torch.Tensor:
    """A block that reads its attention's tensors, and does not call it."""
    mixing = self.mixing
    x = x + mixing.proj(mixing.relative_position_bias_table.softmax(-1) @ x)
    return x + self.fc2(self.act(self.fc1(x)))


_joined.__name__ = "forward"
_joined.__module__ = "locant.integrations.some"


def _mixed(self: Mixing, x: torch.Tensor) -> torch.Tensor:
    return self.proj(self.relative_position_bias_table.softmax(-1) @ x)


_mixed.__name__ = "forward"
_mixed.__module__ = "locant.integrations.some"


def _family(cls: type, forward: Callable[..., Any], inside: tuple[str, ...] = ()) -> Family:
    replacement = Replacement({"forward": forward}, State())
    offer = Offer(
        replacement, "a bias per pair", lambda _: (torch.randn(2, 16, WIDTH, dtype=torch.float64),),
        Attended(1, WIDTH), inside,
    )  # fmt: skip
    name = f"{cls.__module__}.{cls.__qualname__}"
    return Family("attention", (name,), ("forward",), lambda _: offer, frozenset({digest(cls, ("forward",))}))


@pytest.fixture
def blocks(monkeypatch) -> None:
    monkeypatch.setattr(whole, "FAMILIES", (_family(Part, _joined, ("mixing",)), *whole.FAMILIES))


@pytest.fixture
def parts(monkeypatch) -> None:
    monkeypatch.setattr(whole, "FAMILIES", (_family(Mixing, _mixed), *whole.FAMILIES))


def _model() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(Part(), Part()).eval(), torch.randn(8, 16, WIDTH)


def _held(model: nn.Module) -> list[Any]:
    """What its modules are and hold, by identity; tensors that hooks make are another one at each call."""
    found: list[Any] = []
    for module in model.modules():
        own = {k: v for k, v in vars(module).items() if not isinstance(v, torch.Tensor)}
        found += [
            type(module),
            {k: {n: id(x) for n, x in v.items()} if isinstance(v, dict) else v for k, v in own.items()},
        ]
    return found


def _numbers(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradient of every parameter."""
    model.zero_grad()
    out = model(x)
    out.square().sum().backward()
    return [out.detach().clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def _same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    pairs = [*zip(ours, theirs, strict=True)]
    return all(bool((a - b).abs().max() <= 2e-5 * b.abs().max()) for a, b in pairs)


def _learn(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)


WAYS = {
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.ln_structured(
        prune.random_unstructured(layer, "weight", 0.2), "weight", 0.5, 2, 0
    ),
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "parametrised": parametrizations.weight_norm,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("parts")
def test_weights_that_are_made_at_each_call(way: str) -> None:
    """Nothing is packed that the next call makes anew: a row says so, and values and gradients follow the weights."""
    model, x = _model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of weight_norm's first form
        for layer in (model[0].fc1, model[1].mixing.proj):
            WAYS[way](layer)
    before = _numbers(model, x)
    held = _held(model)
    report = locant.accelerate(model)
    why = {row.path: row.why for row in report.rows if row.kernel is None}
    assert why.keys() == {"0.fc1", "1.mixing.proj"}
    sentence = "only a plain nn.Linear" if way == "parametrised" else "made anew before each call"
    assert all(sentence in text for text in why.values())
    assert _same(_numbers(model, x), before)
    _learn(model)
    ours = _numbers(model, x)
    report.undo()
    assert _held(model) == held
    assert _same(ours, _numbers(model, x))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("pruned", [True, False])
def test_a_part_whose_hook_makes_its_table_goes_on_being_called(pruned: bool) -> None:
    model, x = _model()
    if pruned:
        prune.random_unstructured(model[1].mixing, "relative_position_bias_table", 0.3)
    report = locant.accelerate(model)
    rows = {row.path: row for row in report.rows if row.kind == "attention"}
    assert rows["0"].kernel is not None
    assert (rows["1"].kernel is None) == pruned
    assert ("its mixing has a relative_position_bias_table that is made anew" in rows["1"].why) == pruned
    _numbers(model, x)
    _learn(model)
    ours = _numbers(model, x)
    report.undo()
    assert _same(ours, _numbers(model, x))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("training", [False, True])
def test_an_example_of_a_pruned_model(training: bool) -> None:
    """copy.deepcopy refuses a pruned weight, which autograd made; comparing takes copies."""
    model, x = _model()
    prune.l1_unstructured(model[0].fc2, "weight", 0.5)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    before = _numbers(model, x)
    report = locant.accelerate(model, example=x, training=training)
    assert report.checked is not None
    assert report.checked.error <= 2 * report.checked.own_error + 1e-5
    assert _same(_numbers(model, x), before)


@pytest.mark.usefixtures("parts")
def test_a_model_on_two_devices() -> None:
    """Here the second is meta: what lies there is planned for, and runs once it has its numbers."""
    plain, x = _model()
    state = copy.deepcopy(plain.state_dict())
    model = nn.Sequential(copy.deepcopy(plain[0]), copy.deepcopy(plain[1]).to("meta"))
    held = _held(model)
    with pytest.raises(
        ValueError, match=r"needs an `example` (that Sequential takes|on which Sequential gives numbers)"
    ):
        locant.accelerate(model, example=x)
    assert _held(model) == held
    report = locant.accelerate(model)
    assert all(row.kernel is not None for row in report.rows)
    model[1].to_empty(device="cpu")
    model.load_state_dict(state)
    assert _same(_numbers(model, x), _numbers(plain, x))


@pytest.mark.usefixtures("parts")
def test_a_model_on_meta() -> None:
    plain, x = _model()
    model = copy.deepcopy(plain).to("meta")
    held = _held(model)
    with pytest.raises(ValueError, match="on which Sequential gives numbers; on the meta device there are none. Leave"):
        locant.accelerate(model, example=x.to("meta"))
    assert _held(model) == held
    sizes = locant.accelerate(model, example=x.to("meta"), dry_run=True)
    assert all(row.predicted is not None for row in sizes.rows if row.kind == "linear")
    locant.accelerate(model)
    model.load_state_dict(plain.state_dict(), assign=True)
    assert _same(_numbers(model, x), _numbers(plain, x))


@pytest.mark.usefixtures("parts")
def test_a_model_that_is_accelerated_already() -> None:
    model, x = _model()
    before = _numbers(model, x)
    first = locant.accelerate(model)
    held = _held(model)
    again = locant.accelerate(model)
    assert not again.replaced
    assert all(row.why.startswith("it is replaced already") for row in again.rows)
    with pytest.raises(ValueError, match="strict=True needs every attention.*it is replaced already.*Leave strict out"):
        locant.accelerate(model, strict=True)
    again.undo()
    assert _held(model) == held
    assert is_replaced(model[0].mixing)
    first.undo()
    assert not any(is_replaced(m) for m in model.modules())
    assert _same(_numbers(model, x), before)


@pytest.mark.usefixtures("parts")
def test_scripted_models_and_scripted_parts() -> None:
    model, x = _model()
    before = model(x)
    for written in (torch.jit.script(model), torch.jit.trace(model, x)):
        with pytest.raises(
            ValueError, match="needs `model`, an nn.Module that Python runs; got .*. Pass the model before"
        ):
            locant.accelerate(written)
        assert torch.equal(written(x), before)
    mixed = nn.Sequential(torch.jit.script(model[0]), model[1])
    report = locant.accelerate(mixed)
    assert {row.path.partition(".")[0] for row in report.replaced} == {"1"}
    assert [(row.path, row.why) for row in report.rows if row.kernel is None] == [("0", whole.SCRIPTED)]
    assert _same([mixed(x)], [before])


def test_a_model_without_sizes_yet() -> None:
    model = nn.Sequential(nn.LazyLinear(96), nn.Linear(96, 96))
    held = _held(model)
    for example in (None, torch.randn(2, 8)):
        with pytest.raises(
            ValueError, match=r"parameters that have sizes; those of Sequential .*0\.weight.* Call it once"
        ):
            locant.accelerate(model, example=example)
        assert _held(model) == held
        assert type(model[0]) is nn.LazyLinear
    model(torch.randn(2, 8))
    assert len(locant.accelerate(model).replaced) == 2


class Narrow(nn.Module):
    """Brings what comes in to float32, whatever its weights are."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x.float())


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("training", [False, True])
def test_an_example_that_fails_in_the_model(training: bool) -> None:
    part, x = _model()
    model = Narrow(part).train(training)
    held, drawn, before = _held(model), torch.get_rng_state(), _numbers(model, x)
    for wrong in (x[..., :5], {"y": x}, (x, x), "words"):
        with pytest.raises(
            ValueError, match="that Narrow takes.*the model raised .*Error on it.*Call model.example. first"
        ):
            locant.accelerate(model, example=wrong)
    with pytest.raises(ValueError, match="that Narrow takes in float64 too.*it raised RuntimeError.*Leave example out"):
        locant.accelerate(model, example=x)
    assert _held(model) == held
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(map(torch.equal, _numbers(model, x), before))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("changed", [True, False])
def test_a_class_whose_source_has_changed(monkeypatch, changed: bool) -> None:
    """As a newer version of a library may have it, under the same name: it has to agree with itself first."""
    model, x = _model()

    def forward(self: Mixing, x: torch.Tensor) -> torch.Tensor:
        bias = self.relative_position_bias_table
        return self.proj((1.01 * bias if changed else bias).softmax(-1) @ x)

    monkeypatch.setattr(Mixing, "forward", forward)
    families.digest.cache_clear()
    try:
        before, held = _numbers(model, x), _held(model)
        report = locant.accelerate(model)
        rows = [row for row in report.rows if row.kind == "attention"]
        assert all((row.kernel is None) == changed for row in rows)
        assert all(("on random input it differs from its class's own forward" in row.why) == changed for row in rows)
        assert _same(_numbers(model, x), before)
        report.undo()
        assert _held(model) == held
        assert all(map(torch.equal, _numbers(model, x), before))
    finally:
        families.digest.cache_clear()
