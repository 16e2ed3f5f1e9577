"""Who multiplies, and what is predicted: from constants of this kind of processor, or of this very machine."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import locant
from locant import bench, dispatch, processor
from locant.bench import products as measured
from locant.cli import app
from locant.nn import Block
from locant.products import compiled, constants, costs, operators, speed

KIND = "AMD avx512"
HERE: dict[constants.Key, tuple[float, ...]] = {
    (operation, library, "float32"): (0.0, slow * 1e-11, 0.0, 0.0, 0.0)
    for operation in speed.OPERATIONS
    for library, slow in (("torch", 3.0), ("onednn", 1.0), ("compiled", 2.0))
}


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of a Zen 4, on a machine without a file of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "kind", lambda: KIND)
    constants.forget()
    yield tmp_path / "locant" / "costs.json"
    constants.forget()


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    constants.forget()


def test_the_parts_of_a_product_by_hand() -> None:
    assert speed.parts("linear", "onednn", 4, 10, (3, 5), 2) == [1.0, 150.0, 7.5, 40.0, 0.0]
    assert speed.parts("training", "torch", 4, 10, (3, 5, 2), 1) == [1.0, 1500.0, 25.0, 100.0, 0.0]
    big = 40000  # rows whose hidden layer of 384 numbers is 61 MB: torch maps it twice
    assert speed.parts("perceptron", "torch", 4, big, (96, 384, 96), 1)[-1] == 2 * big * 384 * 4
    assert speed.parts("perceptron", "compiled", 4, big, (96, 384, 96), 1)[-1] == 0
    assert speed.parts("linear", "compiled", 4, big, (96, 384), 1)[-1] == big * 384 * 4


@pytest.mark.usefixtures("kind")
def test_the_committed_constants_choose_and_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    both = "onednn", "compiled"
    assert speed.chosen("half", "float32", both) == "compiled"
    assert speed.fastest("repacked", "float32", 1, (768, 768), both) == "onednn"
    monkeypatch.setattr(constants, "kind", lambda: "AMD avx2")
    assert speed.chosen("linear", "float32", both) == "onednn"
    monkeypatch.setattr(constants, "kind", lambda: "Intel avx512")  # measured by another maker
    assert constants.here().said == f"measured on {costs.PROCESSORS[KIND]}"
    monkeypatch.setattr(constants, "kind", lambda: "Intel amx")  # whose bfloat16 has units of its own
    assert speed.seconds("linear", "torch", "float32", 1, (2, 3), 1) is not None
    assert speed.seconds("linear", "torch", "bfloat16", 1, (2, 3), 1) is None
    monkeypatch.setattr(constants, "kind", lambda: "other neon")
    assert (constants.here().said, speed.chosen("linear", "float32", both)) == ("", "onednn")
    assert operators.able(torch.float32) == ("onednn",) * dispatch.packs_linear()


def test_a_written_file_is_read(kind: Path) -> None:
    _put(kind, constants.content(HERE, 2, "2026-11-28"))
    assert constants.here().said == "measured here, on 2026-11-28"
    assert constants.here().seconds == HERE
    assert speed.chosen("half", "float32", ("onednn", "compiled")) == "onednn"
    assert speed.seconds("linear", "torch", "float32", 10, (3, 5), 1) == pytest.approx(300 * 3e-11)


DAMAGED = {
    "cut off": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "\x00" + text,
    "another format": lambda text: text.replace('"format": 1', '"format": 2'),
    "a list": lambda text: "[]",
    "a NaN": lambda text: text.replace("3e-11", "NaN"),
    "below 0": lambda text: text.replace("3e-11", "-1.0"),
    "a word": lambda text: text.replace("3e-11", '"3e-11"'),
    "a row too short": lambda text: text.replace("3e-11,", ""),
}
FOREIGN = {
    "another processor": lambda text: text.replace(json.dumps(processor.NAME), '"Xeon"'),
    "another instruction set": lambda text: text.replace(KIND, "AMD avx2"),
    "another torch": lambda text: text.replace(torch.__version__, "1.0"),
}


@pytest.mark.parametrize("change", [*DAMAGED, *FOREIGN])
def test_another_file_is_one_sentence_and_the_committed_constants(kind: Path, change: str) -> None:
    _put(kind, (DAMAGED | FOREIGN)[change](constants.content(HERE, 2, "2026-11-28")))
    said = "it is of" if change in FOREIGN else "it can't be read as constants"
    with pytest.warns(UserWarning, match=said) as seen:
        assert constants.here().seconds == costs.SECONDS[KIND]
    assert len(seen) == 1
    assert str(kind) in str(seen[0].message)
    assert "locant bench --write-costs" in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constants.here()  # said once


def test_a_folder_in_its_place(kind: Path) -> None:
    kind.mkdir(parents=True)
    with pytest.warns(UserWarning, match="can't be read"):
        assert constants.here().seconds == costs.SECONDS[KIND]


def test_bench_writes_what_is_read(kind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On few and small sizes; the numbers are a clock's, that they hold is not."""
    monkeypatch.setattr(measured, "LINEAR", ((4, 8, 8), (64, 16, 32), (128, 8, 16)))
    monkeypatch.setattr(measured, "LAYERS", ((4, 8, 16, 8), (64, 8, 32, 8)))
    monkeypatch.setattr(measured, "TURNS", 1)
    done = CliRunner().invoke(app, ["bench", "--write-costs", "--threads", "1"])
    assert (done.exit_code, done.stdout) == (0, f"{kind}\n")
    assert constants.here().said.startswith("measured here")
    assert ("linear", "torch", "float32") in constants.here().seconds
    assert ("training", "torch", "bfloat16") in constants.here().seconds
    assert json.loads(kind.read_text())["threads"] == 1
    assert [path.name for path in kind.parent.iterdir()] == [kind.name]
    with pytest.raises(ValueError, match="threads needs a whole number"):
        bench.write_costs(0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--write-costs", "--grid", "4"], "and nothing else; --grid came"), ([], "bench needs --grid")],
)
def test_slips(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert sentence in done.stderr


# --- in the report ----------------------------------------------------------------------------------------------------


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(96, 4), nn.Linear(96, 2)).eval()


def test_the_report_predicts_for_the_example_and_for_a_number_of_rows(kind: Path) -> None:
    _put(kind, constants.content(HERE, 2, "2026-11-28"))
    model = _model()
    with locant.accelerate(model) as report:
        ratios = {row.path: row.predicted for row in report.rows}
        assert ratios["0.mlp"] == pytest.approx(3.0 if dispatch.packs_linear() else 1.5)
        assert ratios["0.mlp.fc1"] == pytest.approx(ratios["0.mlp"])
        assert "for 1,568 rows on" in str(report)
        assert "by constants measured here, on 2026-11-28." in str(report)
        assert "measured here, on 2026-11-28" in report._repr_html_()
    report = locant.accelerate(model, example=torch.randn(1, 49, 96), dry_run=True)
    ratios = {row.path: row.predicted for row in report.rows}
    assert "for the example on" in str(report)
    assert ratios["0.mlp"] is not None
    assert ratios["0.mlp"] > 2
    assert ratios["1"] == 1.0  # so few numbers are torch's own
    assert report.checked is None
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.usefixtures("kind")
def test_training_other_dtypes_and_kinds_without_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    if not dispatch.packs_linear():
        pytest.skip("torch without oneDNN's packed products")
    forward, training = (
        {row.path: row.predicted for row in locant.accelerate(_model(), training=training, dry_run=True).rows}
        for training in (False, True)
    )
    for path in ("0.mlp", "0.attention.qkv"):
        assert forward[path] is not None
        assert training[path] is not None
        assert forward[path] != training[path]
    double = locant.accelerate(_model().double(), dry_run=True)
    assert [row.predicted for row in double.rows] == [None] * len(double.rows)
    assert "×  of" not in str(double)
    monkeypatch.setattr(constants, "kind", lambda: "other neon")
    assert "predicted for" not in str(locant.accelerate(_model(), dry_run=True))


def test_the_report_says_its_memory() -> None:
    model = _model()
    report = locant.accelerate(model)
    most = sum(4 * layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    assert f"Packed copies of weights: 0.0 MB now, at most {most / 1e6:.1f} MB." in str(report)
    with torch.no_grad():
        model(torch.randn(8, 49, 96))
    assert 0 < report.packed_bytes <= most
    assert f"weights: {report.packed_bytes / 1e6:.1f} MB now" in str(report)
    assert report.as_dict()["packed_bytes"] == report.packed_bytes
    report.undo()
    assert report.packed_bytes == 0


def test_bfloat16_without_its_instructions_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises from packing there."""
    monkeypatch.setattr(dispatch, "_multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(compiled, "available", lambda dtype: dtype == torch.float32)
    assert operators.able(torch.bfloat16) == ()
    x, weight = torch.randn(700, 96).bfloat16(), torch.randn(288, 96).bfloat16()
    assert torch.equal(operators.linear(x, weight, None, True), nn.functional.linear(x, weight))
