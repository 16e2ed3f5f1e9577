"""Own metric, own optimiser and schedule, and autocast: the same bits after a stop, and refused with a sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from locant import compare
from locant.compare import Refusal, source, statistics
from locant.compare.metric import find_metric, score_of_constant
from locant.compare.optimizer import Learner
from locant.compare.trial import Job, _Run, train
from locant.compare.world import World, autocast, in_bfloat16
from locant.tasks.kinds import IMAGES
from locant.tasks.task import ArrayExamples, Task

RECIPE = replace(IMAGES.recipe, steps=12, dim=16, depth=1, heads=2, lr=(0.01,))


def sgd(model: nn.Module, lr: float, steps: int):
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 10 * lr, total_steps=steps + 1)


def adam(model: nn.Module, lr: float, steps: int):
    return torch.optim.Adam(model.parameters(), lr)


def likelihood(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.softmax(outputs, 1).gather(1, labels[:, None])[:, 0]


def top2(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs.topk(2).indices == labels[:, None]).any(1)


def named(function) -> str:
    return source.reference("metric", function, "metric")


@pytest.fixture
def task() -> Task:
    draw = np.random.default_rng(0)
    parts = [ArrayExamples(draw.random((96, 1, 8, 8), np.float32), np.arange(96) % 3) for _ in range(3)]
    return Task("images", "noise", "which?", ("a", "b", "c"), *parts, (), (), (), "0")


def ignore(event: object) -> None:
    pass


@pytest.mark.parametrize("own", [sgd, adam])
def test_an_optimiser_of_ones_own_goes_on_with_the_same_bits(own, task, tmp_path, monkeypatch) -> None:
    recipe, job = replace(RECIPE, recipe=named(own)), Job("images", "relative", 0, 0.01)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = train(job, task, recipe, tmp_path / "whole", World(), ignore)
    monkeypatch.setattr("locant.compare.trial.SAVE_EVERY", 1)
    advance = _Run.advance

    def stopping(run: _Run) -> bool:
        if run.step == 5:
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(_Run, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(job, task, recipe, tmp_path / "parts", World(), ignore)
    monkeypatch.setattr(_Run, "advance", advance)
    assert train(job, task, recipe, tmp_path / "parts", World(), ignore) == whole
    plain = train(job, task, RECIPE, tmp_path, World(), ignore)
    assert plain["weights"] != whole["weights"]


def test_a_step_of_ones_own_is_the_optimisers_step() -> None:
    """SGD without momentum by hand: w - lr g, nothing clipped; AdamW clips the norm to 1."""

    def plain(model: nn.Module, lr: float, steps: int):
        return torch.optim.SGD(model.parameters(), lr)

    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    learner = Learner(model, 0.5, 10, source.reference("recipe", plain, "recipe"))
    model(torch.tensor([[300.0, 400.0, 0.0]])).sum().backward()
    learner.step(0.1)
    assert torch.equal(model.weight, before - 0.5 * torch.tensor([[300.0, 400.0, 0.0]]))
    learner = Learner(model, 0.5, 10, None)
    learner.step(0.1)
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.grad.norm(), torch.tensor(1.0), atol=1e-5)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.05, 0.05]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (lambda model, lr, steps: model, "returns an optimizer, or an optimizer and a schedule; .* returned"),
        (lambda model, lr: None, r"works on \(model, lr, steps\); <lambda> can't be called so: too many positional"),
        (lambda model, lr, steps: 1 / 0, r"test_compare_training\.py, line \d+, in <lambda>: ZeroDivisionError"),
    ],
)
def test_a_recipe_that_is_none_is_refused(own, said) -> None:
    with pytest.raises(Refusal, match=said):
        Learner(nn.Linear(2, 2), 0.1, 10, source.reference("recipe", own, "recipe"))


def test_a_metric_of_ones_own_is_what_is_chosen_by_and_reported(task, tmp_path) -> None:
    recipe, job = replace(RECIPE, metric=named(likelihood)), Job("images", "learned", 0, 0.01)
    about = train(job, task, recipe, tmp_path, World(), ignore)
    model, _ = compare.load(tmp_path / f"{job.key}.safetensors")
    with torch.no_grad():
        outputs = model(torch.from_numpy(task.test.read(np.arange(96))))
    expected = likelihood(outputs, torch.from_numpy(task.test.labels)).double().mean().item()
    assert about["test"] == pytest.approx(expected, abs=1e-6)  # batches of 256: one here, in float32
    assert max(point["validation"] for point in about["curve"]) == about["validation"]


@pytest.mark.parametrize(
    ("metric", "came"),
    [
        (lambda outputs, labels: (outputs.argmax(1) == labels).float().mean(), "tensor of shape"),
        (lambda outputs, labels: -likelihood(outputs, labels), "scores from -"),
        (lambda outputs, labels: likelihood(outputs, labels) * float("nan"), "scores from nan"),
    ],
)
def test_a_metric_without_a_score_per_example_is_refused(metric, came) -> None:
    scored = find_metric(named(metric))
    with pytest.raises(Refusal, match=rf"one score from 0 to 1 per example, \[4\].*{came}"):
        scored(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))


def test_what_constant_answers_score() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 2])
    examples = ArrayExamples(np.zeros((8, 1), np.float32), labels)
    assert score_of_constant(None, examples, 3, None) == pytest.approx(1 / 3)
    assert score_of_constant(None, examples, 3, 2) == 0.5
    assert score_of_constant(named(likelihood), examples, 3, None) == pytest.approx(1 / 3)
    assert score_of_constant(named(top2), examples, 3, 0) in (4 / 8, 7 / 8)  # the second of equals is open


def test_statistics_of_scores_are_those_of_answers_where_scores_are_0_and_1() -> None:
    draw = np.random.default_rng(0)
    answers = {name: draw.random((3, 200)) < p for name, p in (("a", 0.9), ("b", 0.7), ("c", 0.7))}
    scores = {name: table.astype(np.float64) for name, table in answers.items()}
    assert statistics.compare(scores) == statistics.compare(answers)
    assert statistics.interval(scores["a"]) == statistics.interval(answers["a"])
    alike = draw.random((3, 200))
    same = statistics.compare({"a": alike, "b": alike.copy(), "c": np.clip(alike + 0.2, 0, 1)})
    assert (same[0].low, same[0].high, same[0].verdict) == (0.0, 0.0, "no difference shown")
    assert [c.verdict for c in same[1:]] == ["lower", "lower"]


def test_autocast_is_off_on_cpus_unless_asked() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    for asked, dtype in ((None, torch.float32), ("off", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast("cpu", asked):
            assert layer(x).dtype == dtype


@pytest.mark.parametrize("has_it", [False, True])
def test_accelerators_use_bfloat16_where_they_have_it(has_it, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_it or including_emulation)
    monkeypatch.setattr("torch.backends.mps.is_macos_or_newer", lambda major, minor: has_it)
    for device in ("cuda", "cuda:1", "mps"):
        assert in_bfloat16(device, None) == has_it
        assert in_bfloat16(device, "bfloat16")
        assert not in_bfloat16(device, "off")
    assert not in_bfloat16("cpu", None)


def test_autocast_reaches_every_scheme_of_the_default_run(task, tmp_path) -> None:
    for scheme in IMAGES.schemes:
        losses = []
        for asked in (None, "bfloat16"):
            run = _Run(Job("images", scheme, 0, 0.01), task, replace(RECIPE, autocast=asked), World())
            loss = run.losses(np.arange(64))
            assert loss.dtype == torch.float32
            losses.append(loss.mean().item())
            loss.mean().backward()
        assert losses[0] != losses[1]
        assert losses[0] == pytest.approx(losses[1], rel=0.05)  # bfloat16 has 8 bits: 0.4 % per product


def test_a_whole_run_says_its_metric(tmp_path) -> None:
    file = Path(__file__).resolve()
    result = compare.run(task="images", positions=("none", "learned"), steps=3, share=0.1, seeds=2, lr=0.01, starts=1,
                         metric=f"{file}:top2", recipe=f"{file}:sgd", out=tmp_path / "run", quiet=True)  # fmt: skip
    assert result.data["tasks"][0]["metric"] == "top2"
    assert "metric" in (tmp_path / "run" / "settings.toml").read_text()
    with pytest.raises(Refusal, match="autocast needs bfloat16 or off; got 'float8'"):
        compare.run(task="images", autocast="float8", quiet=True)
