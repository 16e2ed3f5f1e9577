"""`locant accelerate NAME`: a model built by name, its report, its times, its exit code."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from locant.cli import app
from locant.integrations import contest, named

pytestmark = pytest.mark.plain
SMALL = ["accelerate", "locant:swin_tiny", "--size", "32", "--against", "none", "--seconds", "0.1"]


def _run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_it_shows_the_report_and_the_times(tmp_path) -> None:
    path = tmp_path / "found.json"
    done = _run(*SMALL, "--json", str(path))
    assert done.exit_code == 0, done.output
    assert "12 of 12 attention, 12 of 12 perceptrons, 52 of 52 linears replaced" in done.stdout
    found = json.loads(path.read_text())
    rows = {row["name"]: row for row in found["contest"]["contenders"]}
    assert list(rows) == ["as it comes", "locant"]
    assert rows["locant"]["ratio"]["median"] == 1.0
    assert rows["as it comes"]["ratio"]["median"] == pytest.approx(
        rows["as it comes"]["seconds"] / rows["locant"]["seconds"], rel=0.5
    )
    assert 0 < rows["locant"]["error"] <= 2 * rows["as it comes"]["error"] + 1e-5
    assert found["machine"]["torch"] == torch.__version__
    alone = _run(*SMALL, "--json", "-", "--quiet", "--train")
    assert json.loads(alone.stdout)["contest"]["training"] is True


def test_wrong_numbers_are_exit_code_1(monkeypatch) -> None:
    """A forward that is a hundredth off is no rounding."""

    def spoilt(model: torch.nn.Module, **_: object):
        forward = model.forward
        model.forward = lambda *inputs: 1.01 * forward(*inputs)
        return contest.Report((), model)

    monkeypatch.setattr(contest, "accelerate", spoilt)
    done = _run(*SMALL)
    assert done.exit_code == 1
    assert "wrong: the largest error is" in done.stdout


def test_a_rival_that_fails_is_a_line(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(contest, "_onnxruntime", fail)
    done = _run(*SMALL[:4], "--against", "onnxruntime", "--seconds", "0.1")
    assert done.exit_code == 0
    assert "onnxruntime     RuntimeError: no such luck\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["swin_tiny"], "NAME needs a library before it"),
        (["locant:swim"], "locant has no model 'swim'"),
        (["locant:swin_tny"], "It has swin_tiny"),
        (["hf:nowhere"], "hf: needs a folder with a config.json"),
        (["locant:swin_tiny", "--against", "tvm"], "--against needs names out of"),
        (["locant:swin_tiny", "--dtype", "int8"], "--dtype needs one of float32, bfloat16"),
        (["locant:swin_tiny", "--batch", "0"], "--batch needs more than 0"),
        (["locant:swin_tiny", "--weights", "nothing.pth"], "nothing.pth"),
    ],
)
def test_refusals_are_one_sentence(words: list[str], sentence: str) -> None:
    done = _run("accelerate", *words)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_library_that_does_not_load(monkeypatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(named.importlib, "import_module", fail)
    with pytest.raises(ValueError, match=r"does not load beside torch .*torchvision::nms.*belong together"):
        named.library("torchvision")


def test_weights_of_a_file_are_used(tmp_path) -> None:
    torch.manual_seed(1)
    weights = named.build("locant:swin_tiny", size=32).model.state_dict()
    weights = {name: t + 1 for name, t in weights.items()}
    torch.save(weights, tmp_path / "w.pt")
    model = named.build("locant:swin_tiny", size=32, weights=tmp_path / "w.pt").model
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    torch.save({"head.weight": weights["head.weight"]}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"part.pt has \d+ missing"):
        named.build("locant:swin_tiny", size=32, weights=tmp_path / "part.pt")


class Part(torch.nn.Module):
    """A layer and a dropout, as a module or by a function."""

    def __init__(self, function: bool, outputs: int = 2) -> None:
        super().__init__()
        self.layer, self.drop = torch.nn.Linear(64, 64), torch.nn.Dropout(0.5)
        self.function, self.outputs = function, outputs

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.layer(x)
        y = torch.nn.functional.dropout(y, 0.5, self.training) if self.function else self.drop(y)
        return (y, 2 * y)[: self.outputs]


def test_what_is_drawn_is_left_out_or_refused() -> None:
    """Beside random numbers nobody could be shown to be wrong."""
    drawn = [named.Named("part", Part(function), (torch.randn(8, 64),)) for function in (False, True)]
    found, _ = contest.hold(drawn[0], against=(), training=True, seconds=0.1)
    assert found.own_error <= 1e-5
    with pytest.raises(ValueError, match="needs a model that gives the same numbers twice; part is"):
        contest.hold(drawn[1], against=(), training=True, seconds=0.1)


def test_an_output_that_is_missing_is_wrong(monkeypatch) -> None:
    def shortened(model: Part, **_: object):
        model.outputs = 1
        return contest.Report((), model)

    monkeypatch.setattr(contest, "accelerate", shortened)
    found, _ = contest.hold(named.Named("part", Part(False), (torch.randn(8, 64),)), against=(), seconds=0.1)
    assert found.wrong == ["locant"]
