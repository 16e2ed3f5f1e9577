"""`locant.accelerate`: what it replaces, what it leaves, and that the model stays the model."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import pickle
from types import MethodType

import pytest
import small
import torch
from mixing import WIDTH, Mixing, Part
from torch import nn

import locant
from locant import products
from locant.integrations import model as whole
from locant.integrations.family import Attended, Family, Offer, digest
from locant.integrations.replacing import Replacement, State, is_replaced
from locant.nn.perceptron import Perceptron


def _family(wrong: float = 0.0, known: bool = False) -> Family:
    def forward(self: Mixing, x: torch.Tensor) -> torch.Tensor:
        bias = self._locant.owner.relative_position_bias_table
        return self.proj((bias + wrong * torch.eye(16)).softmax(-1) @ x)

    def offer(module: Mixing) -> Offer:
        return Offer(
            Replacement({"forward": forward}, State(owner=module)), "a bias per pair",
            lambda _: (torch.randn(2, 16, WIDTH, dtype=torch.float64),), Attended(1, WIDTH),
        )  # fmt: skip

    forward.__module__ = "locant.integrations.some"
    name = f"{Mixing.__module__}.{Mixing.__qualname__}"
    sources = frozenset({digest(Mixing, ("forward",))}) if known else frozenset()
    return Family("attention", (name,), ("forward",), offer, sources)


@pytest.fixture
def known(monkeypatch) -> None:
    monkeypatch.setattr(whole, "FAMILIES", (_family(), *whole.FAMILIES))


def _model() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(Part(), Part()).eval(), torch.randn(32, 16, WIDTH)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 2e-6 * other.abs().max())


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("example", [False, True])
def test_the_next_random_numbers_are_the_same(example: bool) -> None:
    """Replacements are tried on random input, and a caller's seed holds all the same."""
    model, x = _model()
    before = torch.get_rng_state()
    report = locant.accelerate(model, example=x if example else None, training=example)
    assert report.rows[0].kernel is not None, "the part that is tried"
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("known")
def test_it_replaces_says_so_and_undoes_all_of_it() -> None:
    model, x = _model()
    state, plain = {k: v.clone() for k, v in model.state_dict().items()}, [dict(vars(m)) for m in model.modules()]
    before = model(x)
    report = locant.accelerate(model, example=x)
    assert [(row.path, row.kind, row.kernel) for row in report.rows] == [
        (f"{n}.{path}", kind, kernel)
        for n in (0, 1)
        for path, kind, kernel in (
            ("mixing", "attention", "planned at the call"), ("mixing.proj", "linear", "packed"),
            ("fc1", "linear", "packed"), ("fc2", "linear", "packed"),
        )
    ]  # fmt: skip
    assert _same(model(x), before)
    assert report.checked is not None
    assert report.checked.error <= 2 * report.checked.own_error + 1e-5
    assert report.packed_bytes == 2 * 4 * (WIDTH * WIDTH + 2 * 384 * WIDTH)
    assert "2 of 2 attention, 6 of 6 linears replaced" in str(report)
    assert "0.mixing" not in str(report)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert len(state) == len(model.state_dict())
    report.undo()
    assert [dict(vars(m)) for m in model.modules()] == plain
    assert report.packed_bytes == 0
    assert torch.equal(model(x), before)
    report.undo()


@pytest.mark.usefixtures("known")
def test_it_is_a_context_and_a_dry_run_does_nothing() -> None:
    model, _ = _model()
    assert "would be replaced" in str(locant.accelerate(model, dry_run=True))
    assert not any(is_replaced(m) for m in model.modules())
    with contextlib.suppress(KeyError), locant.accelerate(model):
        assert is_replaced(model[0].mixing)
        raise KeyError
    assert not any(is_replaced(m) for m in model.modules())


def test_a_replacement_that_differs_is_a_row_with_the_reason(monkeypatch) -> None:
    monkeypatch.setattr(whole, "FAMILIES", (_family(wrong=1e-3),))
    model, x = _model()
    before = model(x)
    report = locant.accelerate(model)
    why = {row.why for row in report.rows if row.kind == "attention"}
    assert len(why) == 1
    assert "differs from its class's own forward" in why.pop()
    assert _same(model(x), before)
    with pytest.raises(ValueError, match="strict=True needs every attention"):
        locant.accelerate(model, strict=True)


def test_a_known_source_is_not_tried_and_the_example_notices(monkeypatch) -> None:
    """Trust in a source is checked by the user's own example, and everything is undone."""
    monkeypatch.setattr(whole, "FAMILIES", (_family(wrong=1e-1, known=True),))
    model, x = _model()
    before = model(x)
    with pytest.raises(ValueError, match="differ by rounding alone"):
        locant.accelerate(model, example=x)
    assert torch.equal(model(x), before)
    assert not any(is_replaced(m) for m in model.modules())
    monkeypatch.setattr(whole, "FAMILIES", (_family(known=True),))
    locant.accelerate(model, example=x, training=True)


def test_a_subclass_that_changes_what_is_replaced_is_left_alone(monkeypatch) -> None:
    class Kept(Mixing):
        extra = 1

    class Changed(Mixing):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    monkeypatch.setattr(whole, "FAMILIES", (_family(),))
    kept, changed = locant.accelerate(Kept()).rows[0], locant.accelerate(Changed()).rows[0]
    assert kept.kernel is not None
    assert changed.kernel is None
    assert "does not know its class" in changed.why


@pytest.mark.usefixtures("known")
def test_signatures_stay() -> None:
    """Libraries ask a forward what it takes, and hand it nothing else."""
    model, _ = _model()
    before = [inspect.signature(m.forward) for m in model.modules()]
    locant.accelerate(model)
    assert [inspect.signature(m.forward) for m in model.modules()] == before


@pytest.mark.usefixtures("known")
def test_copies_and_pickles() -> None:
    """A copy works on its own weights and stays accelerated; a pickle is the plain model."""
    model, x = _model()
    locant.accelerate(model)
    before = model(x)
    other = copy.deepcopy(model)
    assert is_replaced(other[0].mixing)
    assert other[0].mixing.forward.__self__ is other[0].mixing
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    assert not _same(other(x), before)
    assert _same(model(x), before)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for plain in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert not any(is_replaced(m) for m in plain.modules())
        assert _same(plain(x), before)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("write", ["trace", "script", "script a part", "fx"])
def test_tracers_get_the_class_s_own_methods(write: str) -> None:
    """What they write down runs without Locant, at other sizes, and the model stays as it is."""
    model, x = _model()
    before = model(x)
    locant.accelerate(model)
    if write == "script a part":
        pair = copy.deepcopy(model)
        written: nn.Module = nn.Sequential(torch.jit.script(pair[0]), torch.jit.script(pair[1]))
    else:
        writers = {
            "trace": lambda m: torch.jit.trace(m, x[:3]),
            "script": torch.jit.script,
            "fx": torch.fx.symbolic_trace,
        }
        written = writers[write](model)
    assert _same(written(x), before)
    if write in ("trace", "script"):
        assert "locant" not in str(written.inlined_graph)
    assert [is_replaced(model[0].mixing), is_replaced(model[0].fc1)] == [True, True]
    assert _same(pickle.loads(pickle.dumps(model))(x), before)
    assert _same(torch.jit.script(pickle.loads(pickle.dumps(model)))(x), before)


@pytest.mark.parametrize("watched", [False, True])
def test_what_follows_may_write_into_the_product(watched: bool) -> None:
    """A product that torch takes for a view refuses ReLU(inplace=True) behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 384), nn.ReLU(inplace=True), nn.Linear(384, WIDTH))
    x = torch.randn(2, 300, WIDTH)
    out = []
    for _ in range(2):
        model.zero_grad()
        with torch.profiler.profile() if watched else contextlib.nullcontext():
            model(x).square().sum().backward()
        out.append([p.grad.clone() for p in model.parameters()])
        locant.accelerate(model)
    assert all((a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in zip(*out, strict=True))


def test_dtypes_that_the_library_mixes() -> None:
    """T5 keeps the second layer of a perceptron in float32; where torch refuses a mixture, it still does."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 384).bfloat16(), nn.GELU(), nn.Linear(384, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(self.act(self.fc1(x)).to(self.fc2.weight.dtype))

    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(300, WIDTH).bfloat16()
    with torch.no_grad():
        before = model(x)
        assert "perceptron" in str(locant.accelerate(model))
        assert (model(x) - before).abs().max() <= 2e-2 * before.abs().max()
        with pytest.raises(RuntimeError, match="dtype"):
            model.fc1(x.float())


def test_wrappers_and_hooks_that_come_later_are_called() -> None:
    """An adapter put around a layer after the perceptron was replaced takes part, and learns."""

    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.a = base, nn.Parameter(torch.randn(base.in_features))

        @property
        def weight(self) -> torch.Tensor:
            return self.base.weight

        @property
        def bias(self) -> torch.Tensor:
            return self.base.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + (x * self.a).sum(-1, keepdim=True)

    perceptron = locant.nn.perceptron.Perceptron(WIDTH, 384).eval()
    x = torch.randn(4, 200, WIDTH)
    report = locant.accelerate(perceptron)
    assert [row.kind for row in report.replaced] == ["perceptron", "linear", "linear"]
    seen: list[int] = []
    with torch.no_grad():
        perceptron.fc2.register_forward_hook(lambda *_: seen.append(1))
        before = perceptron(x)
        assert seen == [1]
        perceptron.fc1 = Adapted(perceptron.fc1)
        assert not _same(perceptron(x), before)
    perceptron(x).sum().backward()
    assert float(perceptron.fc1.a.grad.abs().sum()) > 0


def test_locants_own_models_gain_and_stay_exact() -> None:
    torch.manual_seed(0)
    model = locant.nn.Block(WIDTH, 4, grid=locant.Grid(16), position=locant.ALiBi(4)).eval()
    x = torch.randn(40, 16, WIDTH)
    before = model(x)
    report = locant.accelerate(model, example=x, strict=True)
    assert [row.kernel for row in report.rows if row.kind == "attention"] == ["Locant's own"]
    assert _same(model(x), before)


def test_moved_weights_are_seen() -> None:
    model, x = _model()
    locant.accelerate(model)
    with torch.no_grad():
        model(x)
    state = {k: 2 * v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    plain, _ = _model()
    plain.load_state_dict(state)
    with torch.no_grad():
        assert _same(model(x), plain(x))
    assert _same(model.double()(x.double()), plain.double()(x.double()))
    ours, theirs = (m.bfloat16()(x.bfloat16()).double() for m in (model, plain))
    exact = plain.double()(x.bfloat16().double())
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


def test_refresh_and_training_drop_packed_copies() -> None:
    layer = nn.Sequential(nn.Linear(WIDTH, 384)).eval()
    x = torch.randn(300, WIDTH)
    report = locant.accelerate(layer)
    with torch.no_grad():
        layer(x)
        assert products.kept_bytes(layer[0].weight) == 4 * 384 * WIDTH
        layer[0].weight.data.mul_(2)
        report.refresh()
        assert _same(layer(x), nn.functional.linear(x, layer[0].weight, layer[0].bias))
    assert products.kept_bytes(layer[0].weight) == report.packed_bytes == 4 * 384 * WIDTH
    layer.train()(x).sum().backward()
    assert layer[0].weight.grad is not None
    assert report.packed_bytes == 0
    layer.eval()
    with torch.no_grad():
        layer(x)
        assert report.packed_bytes == 4 * 384 * WIDTH
    report.undo()
    assert report.packed_bytes == 0


def test_what_is_left_says_why() -> None:
    class Wider(nn.Linear):
        pass

    model = nn.Sequential(Wider(8, 8), nn.Linear(8, 8), Mixing())
    model[1].forward = MethodType(lambda self, x: x, model[1])
    rows = {row.path: row.why for row in locant.accelerate(model).rows}
    assert "only a plain nn.Linear" in rows["0"]
    assert "replaced by others" in rows["1"]
    assert "does not know its class" in rows["2"]
    assert "nothing to replace" in str(locant.accelerate(nn.Sequential(nn.ReLU())))
    again = locant.accelerate(model)
    assert next(row.why for row in again.rows if row.path == "2.proj").startswith("it is replaced already")


@pytest.mark.plain
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": torch.ones(2)}, "needs `model` as"),
        ({"only": "layers.*"}, "needs `only` to fit modules of the model; 'layers.*' fits none"),
        ({"only": 3}, "needs `only` as a path or several"),
        ({"pack": "always"}, 'needs `pack` out of "auto", True, False'),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match="accelerate") as error:
        locant.accelerate(**{"model": nn.Sequential(nn.Linear(8, 8)), **arguments})
    assert sentence in str(error.value)


def test_our_own_models_of_content() -> None:
    """Transformer-XL, SAM's encoder, MViT v2: their attention is Locant's own, their linear layers are packed."""
    words = torch.arange(24).reshape(2, 12) % 11
    for model, example in (
        (small.MODELS["models.transformer_xl.MemTransformerLM"](), words),
        (small.sam_encoder(), torch.randn(2, 3, 48, 48)),
        (small.mvit_v2(), torch.randn(2, 3, 32, 32)),
    ):
        report = locant.accelerate(model.eval(), example=example, strict=True, training=True)
        kernels = {row.kernel for row in report.rows if row.kind == "attention"}
        assert kernels == {"Locant's own"}
        assert any(row.kernel == "packed" for row in report.rows)


def test_a_hook_on_all_modules_is_called_for_the_parts_of_a_perceptron() -> None:
    """torch tells only that there is one: what may want each part gets each part."""
    torch.manual_seed(0)
    mlp = Perceptron(96, 384).eval()
    x, called = torch.randn(2, 300, 96), []
    with torch.no_grad():
        right = mlp(x)
        locant.accelerate(mlp)
        hook = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
        try:
            found = mlp(x)
        finally:
            hook.remove()
    assert [module for module in called if module is not mlp] == [*mlp.children()]
    assert (found - right).abs().max() <= 1e-5 * right.abs().max()
