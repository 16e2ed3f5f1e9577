"""Two runs beside each other, and a run as rows: what differed, what is paired, and what is not claimed."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from results import make_results
from typer.testing import CliRunner

from locant.cli import app
from locant.compare import Refusal, checkpoint, lay_beside, sheets, statistics
from locant.compare.trial import Job


def written(folder: Path, results: dict[str, Any], correct: dict[str, np.ndarray]) -> Path:
    """A run's folder as it is left behind: results.json, and the answers of each trial."""
    (folder / "trials").mkdir(parents=True)
    results = copy.deepcopy(results)
    for task in results["tasks"]:
        for row in task["schemes"]:
            for trial in row["trials"]:
                table = correct[row["name"]][trial["seed"]]
                job = Job(task["kind"], row["name"], trial["seed"], row["learning_rate"])
                answers = {"correct.test": torch.from_numpy(table.astype(np.uint8))}
                checkpoint.write(folder / "trials" / f"{job.key}.safetensors", answers, {})
                trial["test"], trial["weights"] = float(table.mean()), f"{hash(table.tobytes()):x}"
            row["accuracy"]["mean"] = float(correct[row["name"]][[t["seed"] for t in row["trials"]]].mean())
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path, dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two runs on the same data: in the second, twice as many steps, the table is right where it was wrong."""
    results = make_results({"images": ("none", "relative")}, seeds=4, examples=200)
    results["settings"]["images"] = {"steps": 100, "batch": 64}
    rng = np.random.default_rng(1)
    before = {"none": rng.random((4, 200)) < 0.5, "relative": rng.random((4, 200)) < 0.6}
    after = {"none": before["none"], "relative": before["relative"] | (rng.random((4, 200)) < 0.5)}
    a = written(tmp_path / "a", results, before)
    results["settings"]["images"] = {"steps": 200, "batch": 64}
    return a, written(tmp_path / "b", results, after), results, before, after


def test_two_runs_are_paired_over_seeds_and_examples(runs: Any) -> None:
    a, b, _, before, after = runs
    found = lay_beside(a, b).data
    assert found["settings"] == [{"name": "images.steps", "values": [100, 200]}]
    assert found["versions"] == []
    (task,) = found["tasks"]
    assert (task["paired"], task["seeds"]) == (True, [0, 1, 2, 3])
    none, relative = task["schemes"]
    assert relative["difference"] == pytest.approx(after["relative"].mean() - before["relative"].mean())
    assert relative["accuracy"] == [before["relative"].mean(), after["relative"].mean()]
    low, high, p = statistics.difference(after["relative"], before["relative"], 0.05 / 2)
    assert (relative["low"], relative["high"], relative["p_holm"]) == (low, high, 2 * p)
    assert (none["difference"], none["low"], none["high"]) == (0, 0, 0)
    assert (none["verdict"], relative["verdict"]) == ("no difference shown", "higher")
    assert (none["same_weights"], relative["same_weights"]) == ([4, 4], [0, 4])
    assert found["sentences"] == [
        "Images: 4 of 8 trials in common have the same weights, to the last bit.",
        f"Images: relative table is higher in B, by {100 * low:.1f} to {100 * high:.1f} points "
        "(corrected for 2 schemes, 4 seeds).",
        "Images: no difference is shown for no position.",
    ]
    assert lay_beside(b, a).data["tasks"][0]["schemes"][1]["verdict"] == "lower"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"fingerprint": "0" * 64}, "the data or their split differ"),
        ({"seeds": [7, 8]}, "no seeds in common, and one says nothing of another"),
        ({"seeds": [3, 8]}, "1 seed in common, and one says nothing of another"),
    ],
)
def test_what_cannot_be_paired_claims_nothing(runs: Any, tmp_path: Path, change: dict[str, Any], why: str) -> None:
    a, _, results, _, after = runs
    results = copy.deepcopy(results)
    results["tasks"][0]["fingerprint"] = change.get("fingerprint", results["tasks"][0]["fingerprint"])
    correct = {name: np.concatenate([table, table, table[:1]]) for name, table in after.items()}
    for row in results["tasks"][0]["schemes"]:
        for trial, seed in zip(row["trials"], change.get("seeds", ()), strict=False):
            trial["seed"] = seed
        row["trials"] = row["trials"][: len(change.get("seeds", range(4)))]
    found = lay_beside(a, written(tmp_path / "c", results, correct)).data
    assert (found["tasks"][0]["paired"], found["tasks"][0]["why_not"]) == (False, why)
    assert all("difference" not in row for row in found["tasks"][0]["schemes"])
    assert f"Images: {why}, so no difference is claimed." in found["sentences"]


def test_only_shared_seeds_are_paired(runs: Any, tmp_path: Path) -> None:
    a, _, results, before, after = runs
    fewer = copy.deepcopy(results)
    for row in fewer["tasks"][0]["schemes"]:
        row["trials"] = row["trials"][1:3]
    (task,) = lay_beside(a, written(tmp_path / "c", fewer, after)).data["tasks"]
    assert task["seeds"] == [1, 2]
    expected = after["relative"][1:3].mean() - before["relative"][1:3].mean()
    assert task["schemes"][1]["difference"] == pytest.approx(expected)


def test_what_is_not_a_finished_run_is_refused(runs: Any, tmp_path: Path) -> None:
    a, _, _, before, _ = runs
    (tmp_path / "begun").mkdir()
    with pytest.raises(
        Refusal, match="--beside needs two finished runs; .*begun' has no results.json.* Name the folder"
    ):
        lay_beside(a, tmp_path / "begun")
    (tmp_path / "begun" / "settings.toml").write_text("")
    with pytest.raises(Refusal, match=f"Finish it: locant compare --resume {tmp_path / 'begun'}"):
        lay_beside(tmp_path / "begun", a)
    with pytest.raises(Refusal, match="came twice"):
        lay_beside(a, a.parent / "begun" / ".." / "a")
    clips = make_results({"clips": ("none", "relative")}, seeds=4)
    with pytest.raises(Refusal, match="a task in common; these have images, and clips"):
        lay_beside(a, written(tmp_path / "clips", clips, before))


def test_the_command_prints_a_table_sentences_or_json(runs: Any) -> None:
    a, b, *_ = runs
    plain = CliRunner().invoke(app, ["compare", "--beside", str(a), str(b)], env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert plain.exit_code == 0, plain.output
    assert f"A: {a}" in plain.stdout.replace("\n", "") or str(a) in plain.stdout.replace("\n", "")
    assert ["images.steps", "100", "200"] in [line.split() for line in plain.stdout.splitlines()]
    assert "no position" in plain.stdout
    assert str(lay_beside(a, b)).splitlines()[0].startswith("A: ")
    asked = CliRunner().invoke(app, ["compare", "--beside", str(a), str(b), "--json"])
    assert json.loads(asked.stdout) == lay_beside(a, b).data
    quiet = CliRunner().invoke(app, ["compare", "-q", "--beside", str(a), str(b)])
    assert quiet.stdout.splitlines() == lay_beside(a, b).data["sentences"]
    mixed = CliRunner().invoke(app, ["compare", "photos", "--beside", str(a), str(b), "--seeds", "3"])
    assert mixed.exit_code == 2
    assert "--beside takes two folders, and nothing else but --json and --quiet; data, seeds came" in mixed.stderr


def test_a_run_is_rows(tmp_path: Path) -> None:
    results = make_results({"images": ("none", "relative"), "clips": ("space",)}, seeds=3)
    none = results["tasks"][0]["schemes"][0]
    none["sweep"] = [{"learning_rate": 0.003, "start": None, "validation": 0.7},
                     {"learning_rate": 0.006, "start": None, "validation": 0.6}]  # fmt: skip
    sheets.write(results, tmp_path)
    schemes, trials = (list(csv.DictReader((tmp_path / name).open())) for name in ("results.csv", "trials.csv"))
    assert [(row["task"], row["name"]) for row in schemes] == [
        ("images", "none"), ("images", "relative"), ("clips", "space"),
    ]  # fmt: skip
    assert float(schemes[0]["accuracy.mean"]) == none["accuracy"]["mean"]
    assert float(schemes[0]["shifts.off centre.low"]) == none["shifts"]["off centre"]["low"]
    assert schemes[2]["shifts.off centre.low"] == ""
    cost = results["measured"]["tasks"]["images"]["none"]
    assert float(schemes[0]["step_ms.median"]) == cost["step_ms"]["median"]
    counted = [row for row in trials if row["counts"] == "True"]
    assert [(row["task"], row["scheme"], row["seed"]) for row in counted] == [
        (task["kind"], scheme["name"], str(trial["seed"]))
        for task in results["tasks"]
        for scheme in task["schemes"]
        for trial in scheme["trials"]
    ]
    assert [float(row["test"]) for row in counted[:3]] == [trial["test"] for trial in none["trials"]]
    searched = [row for row in trials if row["counts"] == "False"]
    assert [(row["scheme"], row["learning_rate"], row["validation"], row["test"]) for row in searched] == [
        ("none", "0.006", "0.6", "")
    ]
    assert "curve" not in " ".join(trials[0])
