"""A task kind is one value: a throw-away kind, added to a temporary copy of the package, runs from a flag to a page."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from extended import environment

SOURCE = Path(__file__).parents[1] / "src" / "locant"

# Spectra [rows, columns, channels]: two axes of tokens, the channels last, as no kind that is built in has them.
KIND = '''

def _spectrum_layouts(item: Item, asked: bool) -> tuple[str, ...]:
    return ("HW",) if len(item) == 2 and asked else ()


def _edges(recipe: Recipe) -> Task:
    """In which half does the bright line lie? Without position the answer cannot be known."""
    import numpy as np

    from locant.tasks.splits import divide
    from locant.tasks.task import ArrayExamples, Task, fingerprint

    labels = np.arange(60) % 2
    rng = np.random.default_rng(0)
    x = rng.random((60, 4, 8, 1), np.float32) / 4
    x[np.arange(60), :, 4 * labels + rng.integers(0, 4, 60)] = 1
    parts = divide(labels, ("early", "late"), seed=0)
    train, validation, test = (ArrayExamples(x[i], labels[i]) for i in parts.values())
    return Task(
        "spectra", "a test", "Early or late?", ("early", "late"), train, validation, test, (), (), (),
        fingerprint({"kind": "spectra"}, x),
    )


_SPECTRA = Recipe(steps=6, lr=(0.01,), batch=12, dim=8, depth=1, heads=2)
SPECTRA = Kind(
    name="spectra", axes=(0, 1), channel=2, recipe=_SPECTRA, quick=replace(_SPECTRA, steps=3),
    schemes=("none", "relative", "swin"), quick_schemes=("none", "relative"),
    patch=lambda item, given: (2, 2) if given is None else _sides("patch", given),
    shifts=lambda test, patch: (), question="Which of {} classes is it?", shapes="[n, bands, steps]",
    letters="HWC", layouts=_spectrum_layouts, built_in=_edges,
)
KINDS[SPECTRA.name] = SPECTRA
'''


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one more value at the end of one file."""
    home = tmp_path_factory.mktemp("extended")
    shutil.copytree(SOURCE, home / "locant", ignore=shutil.ignore_patterns("__pycache__"))
    with (home / "locant" / "tasks" / "kinds.py").open("a") as file:
        file.write(KIND)
    return home


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**environment(home, home), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "locant", "compare", *arguments],
        cwd=home, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_one_value_is_a_flag_a_config_table_a_run_a_model_and_a_page(extended: Path) -> None:
    config = extended / "a.toml"
    config.write_text('task = ["spectra"]\n[spectra]\nsteps = 3\n')
    done = command(extended, "--config", str(config), "--seeds", "1", "--out", "run", "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    assert (task["kind"], task["grid"], task["patch"]) == ("spectra", [2, 4], [2, 2])
    assert [scheme["name"] for scheme in task["schemes"]] == ["none", "relative", "swin"]
    assert {scheme["tells_time"] for scheme in task["schemes"]} == {None}
    assert len(task["schemes"][0]["trials"][0]["curve"]) == 1  # the table of the config file was read
    assert "[spectra]" in (extended / "run" / "settings.toml").read_text()
    assert "Early or late?" in (extended / "run" / "report.html").read_text()
    growth = json.loads(done.stdout)["measured"]["tasks"]["spectra"]["none"]["growth"]
    assert [row["tokens"] for row in growth] == [8, 32, 128, 512]
    assert not list((extended / "run").glob("best-*"))  # three steps teach nothing: no model is named the best
    code = "from locant.compare import load; m, about = load('run/trials/' + input()); print(m.grid)"
    (trial, *_) = (path.name for path in (extended / "run" / "trials").glob("spectra-none-*.safetensors"))
    env = environment(extended, extended)
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=extended, env=env, capture_output=True, text=True, check=True, input=trial
    )
    assert loaded.stdout == "Grid(2, 4)\n"


def test_a_users_arrays_are_of_the_kind_that_is_asked_for(extended: Path) -> None:
    np.savez(extended / "x.npz", x=np.random.default_rng(0).random((20, 4, 6), np.float32), y=np.arange(20) % 2)
    asked = "--task spectra --quick --positions none --out arrays --json".split()
    done = command(extended, "x.npz", *asked)
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    assert (task["kind"], task["grid"], task["question"]) == ("spectra", [2, 3], "Which of 2 classes is it?")
    assert "x is read as grey spectra [n, H, W]" in task["notes"]


def test_what_the_kind_cannot_be_is_refused_by_name(extended: Path) -> None:
    (extended / "folder" / "a").mkdir(parents=True)
    done = command(extended, "folder", "--task", "spectra", "--out", "none")
    assert done.returncode == 2
    assert "spectra need an .npz file; DATA is a folder. Save x [n, bands, steps] and y." in done.stderr
