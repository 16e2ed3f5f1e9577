"""The whole comparison, small: the same results again, killed and resumed, refused with one sentence."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from locant import compare
from locant.compare import Refusal

SMALL = {"task": "images", "positions": ("none", "relative"), "seeds": 2, "steps": 68, "lr": (0.003, 0.01), "dim": 16}
FLAGS = "--task images --positions none,relative --seeds 2 --steps 68 --lr 0.003,0.01 --dim 16".split()


def unmeasured(results: dict) -> dict:
    return {name: value for name, value in results.items() if name != "measured"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one go, and every look at validation that it told of."""
    heard: list[dict] = []
    folder = tmp_path_factory.mktemp("whole") / "run"
    return compare.run(**SMALL, out=folder, quiet=True, threads=2, progress=heard.append), heard


def test_a_run_leaves_everything_that_it_promises(whole) -> None:
    result, heard = whole
    files = {path.name for path in result.folder.iterdir()}
    assert files == {
        "best-images.safetensors", "identity.json", "report.html", "results.csv", "results.json", "settings.toml",
        "trials", "trials.csv",
    }  # fmt: skip
    assert len(list((result.folder / "trials").iterdir())) == 2 * (4 + 1)  # tries of the first seed, then one each
    assert json.loads((result.folder / "results.json").read_text()) == result.data
    assert len(heard) == 10 * 7  # every 10 steps, and at the end
    (task,) = result.data["tasks"]
    for scheme in task["schemes"]:
        tests = [trial["test"] for trial in scheme["trials"]]
        assert scheme["accuracy"]["mean"] == pytest.approx(np.mean(tests))
        best = max(scheme["sweep"], key=lambda s: (s["validation"], -s["learning_rate"]))
        assert scheme["learning_rate"] == best["learning_rate"]
        assert len(scheme["sweep"]) == 4  # as many for every scheme
        assert (scheme["start"] or {}).get("taken") == best["start"]
        assert scheme["parameters"]["position"] == (0 if scheme["name"] == "none" else 2 * 4 * 49)
        assert scheme["shifts"]["larger canvas"]["mean"] is not None
    measured = result.data["measured"]["tasks"]["images"]
    assert [row["tokens"] for row in measured["relative"]["growth"]] == [16, 64, 256, 1024]
    assert measured["relative"]["step_ms"]["median"] > 0


def test_the_best_model_is_rebuilt_and_answers_as_it_did(whole) -> None:
    result, _ = whole
    best = result.data["best"]
    model, about = compare.load(result.folder / best["file"])
    assert (about["job"]["scheme"], about["job"]["seed"]) == (best["scheme"], best["seed"])
    task = compare.opening.open_tasks(compare.settings.resolve(SMALL, None))["images"]
    x = torch.from_numpy(task.test.read(np.arange(len(task.test))))
    with torch.no_grad():
        right = (model(x).argmax(1).numpy() == task.test.labels).mean()
    assert right == pytest.approx(about["test"])
    lines = best["snippet"].replace('"best', f'"{result.folder}/best')
    exec(lines, space := {})
    assert torch.equal(space["images"].head.weight, model.head.weight)


@pytest.mark.timeout(600)
def test_killed_five_times_at_random_it_ends_with_the_same_results(whole, tmp_path) -> None:
    """SIGKILL to the command alone: its workers must notice and leave."""
    folder, draw = tmp_path / "run", random.Random(0)
    command = [sys.executable, "-m", "locant", "compare", *FLAGS, "--out", str(folder), "--threads", "1", "-q"]
    again = [*command[:4], "--resume", str(folder), "--threads", "1", "-q"]
    kills, trials = 0, folder / "trials"

    def saved() -> dict[str, int]:
        found = {}
        for path in trials.glob("[!.]*.safetensors"):
            with suppress(FileNotFoundError):  # a trial that ends removes its part
                found[path.name] = path.stat().st_mtime_ns
        return found

    while kills < 5:
        before = saved()
        process = subprocess.Popen(command if not kills else again, stdout=subprocess.DEVNULL)
        while process.poll() is None and saved() == before:  # a kill before anything is saved would show nothing
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, 1.0))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    done = subprocess.run(again, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html")
    assert unmeasured(json.loads((folder / "results.json").read_text())) == unmeasured(whole[0].data)
    assert not list(folder.rglob(".tmp-*"))
    assert kills >= 3


def test_one_worker_or_two_and_again_from_the_files_the_results_are_the_same(whole) -> None:
    again = compare.run(resume=whole[0].folder, quiet=True, threads=1)
    assert unmeasured(again.data) == unmeasured(whole[0].data)


@pytest.fixture
def own(tmp_path, monkeypatch) -> dict[str, Any]:
    """The settings of a small run on own data, named as they lie in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("locant.compare.measure.PATIENCE", 0.0)
    monkeypatch.setattr("locant.compare.measure.MOST_TOKENS", 16)
    labels = np.arange(60) % 2
    pictures = np.random.default_rng(0).random((60, 8, 8)) / 2
    pictures[labels == 1, :, 4:] += 0.5
    np.savez("own.npz", x=pictures, y=labels)
    return {"data": "own.npz", "positions": ("none", "relative"), "steps": 6, "lr": (0.003, 0.01), "dim": 8,
            "starts": 1, "quiet": True, "threads": 1}  # fmt: skip


def hashes(result: compare.Result) -> dict[tuple[str, int], str]:
    return {
        (scheme["name"], trial["seed"]): trial["weights"]
        for task in result.data["tasks"]
        for scheme in task["schemes"]
        for trial in scheme["trials"]
    }


def test_settings_toml_is_complete_and_repeats_the_run_from_any_directory(own, tmp_path, monkeypatch) -> None:
    first = compare.run(**own, seeds=2, out="first")
    written = tomllib.loads((tmp_path / "first" / "settings.toml").read_text())
    (task,) = first.data["tasks"]
    assert (written["data"], written["task"], written["seeds"]) == (str(tmp_path / "own.npz"), ["images"], [0, 1])
    assert (written["positions"], written["fingerprints"]) == (
        {"images": ["none", "relative"]}, {"images": task["fingerprint"]},
    )  # fmt: skip
    known = {name for name, value in first.data["settings"]["images"].items() if value is not None}
    assert (
        known == set(written["images"]) >= {"steps", "lr", "batch", "dim", "depth", "heads", "size", "patch", "model"}
    )
    assert (written["images"]["size"], written["images"]["patch"]) == (8, 2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = compare.run(config="../first/settings.toml", out="again", quiet=True)
    assert unmeasured(again.data) == unmeasured(first.data)
    kept = (tmp_path / "first" / "settings.toml").read_text()
    assert (tmp_path / "elsewhere" / "again" / "settings.toml").read_text() == kept
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(1).random((60, 8, 8)), y=np.arange(60) % 2)
    for beside, sentence in (
        ({"config": "../first/settings.toml", "out": "third"}, "--config needs the data .* those of images have"),
        ({"resume": "../first"}, "--resume needs the data that '../first' was started with; they have changed"),
    ):
        with pytest.raises(Refusal, match=sentence):
            compare.run(**beside, quiet=True)
    assert compare.run(tmp_path / "own.npz", config="../first/settings.toml", out="third", quiet=True, seeds=1)


def test_added_seeds_give_what_a_run_with_all_of_them_gives(own, tmp_path, monkeypatch) -> None:
    whole = compare.run(**own, seeds=3, out="whole")
    compare.run(**own, seeds=2, out="part")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    more = compare.run(resume="../part", add_seeds=1, quiet=True)
    assert hashes(more) == hashes(whole)
    assert unmeasured(more.data) == unmeasured(whole.data)
    assert tomllib.loads((tmp_path / "part" / "settings.toml").read_text())["seeds"] == [0, 1, 2]
    for beside, sentence in (
        ({"add_seeds": 2}, "--add-seeds needs --resume; it came alone"),
        ({"add_seeds": (9, 2), "resume": "../part"}, "--add-seeds needs seeds .* it has 2. Name others, or a count"),
        (
            {"add_seeds": 0, "resume": "../part"},
            "add_seeds needs a whole number of at least 1; got 0. Write --add-seeds",
        ),
    ):
        with pytest.raises(Refusal, match=sentence):
            compare.run(**beside, quiet=True)


@pytest.mark.plain
def test_the_old_way_to_go_on_gets_a_sentence() -> None:
    with pytest.raises(Refusal, match="resume needs the folder of a run; got True. Write --resume runs/x, in Python"):
        compare.run(out="runs/x", resume=True)  # type: ignore[arg-type]


def test_what_cannot_be_gone_on_with_is_refused(whole, tmp_path) -> None:
    folder = whole[0].folder
    for beside, sentence in (
        ({"resume": tmp_path}, "--resume needs the folder of a run, which holds settings.toml; .* does not. Name the"),
        ({"resume": folder.parent}, f"the newest near there is '{folder}'"),
        ({"resume": folder, "out": "x"}, "--resume takes every setting from .*; --out came beside it. Leave that out"),
        ({"resume": folder, "steps": 4, "lr": (0.1,)}, "--lr, --steps came beside it.* --config .*settings.toml"),
        ({"resume": folder, "data": "photos"}, "; DATA came beside it"),
        ({**SMALL, "out": folder}, "--out needs a new folder; .* holds a comparison. Go on with it by --resume"),
    ):
        with pytest.raises(Refusal, match=sentence):
            compare.run(**beside, quiet=True)
    path = folder / "settings.toml"
    kept = path.read_text()
    path.write_text(kept.replace("steps = 68", "steps = 85"))
    with pytest.raises(Refusal, match="--resume needs settings.toml .*; images.steps was 68 and is 85. Put that back"):
        compare.run(resume=folder, quiet=True)
    path.write_text(kept)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"positions": ("none", "shared")}, "positions for images must be among none, learned"),
        ({"positions": ("shared",), "task": ("images", "clips")}, "images need a scheme that fits them; got .'shared'"),
        ({"patch": 3}, "patches of .3, 3. must divide examples of .8, 8."),
        ({"dim": 18, "heads": 3, "positions": ("sinusoid",)}, "Sinusoid"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_written(change, sentence, tmp_path) -> None:
    with pytest.raises(ValueError, match=sentence):
        compare.run(**{**SMALL, **change}, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_scheme_that_does_not_fit_own_data_of_a_guessed_kind_is_refused_not_dropped(tmp_path) -> None:
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).random((60, 8, 8)), y=np.arange(60) % 2)
    with pytest.raises(Refusal, match="positions for images must be among .* got shared"):
        compare.run(tmp_path / "own.npz", positions=("none", "shared"), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="--out needs a folder that can be written; .* can't: Not a directory"):
        compare.run(**SMALL, out=tmp_path / "file" / "run", quiet=True)


def test_the_command_refuses_in_one_line_with_exit_code_two(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "locant", "compare", str(tmp_path / "nowhere")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("locant: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_with_one_line_and_it_can_go_on(number, tmp_path) -> None:
    command = [sys.executable, "-m", "locant", "compare", *FLAGS, "--steps", "8000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"},
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # what runs in the background may ignore SIGINT
    )  # fmt: skip
    while not list((tmp_path).glob("run/trials/*.part.safetensors")):
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    first, *_, last = said.strip().splitlines()
    folder = tmp_path / "run"
    assert first == f"{folder}: the folder of this run"
    assert last == f"locant: stopped; go on with: locant compare --resume {folder}"
    assert "Traceback" not in said


def test_whoever_interrupts_it_from_python_is_told_how_to_go_on(tmp_path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        compare.run(**SMALL, out=tmp_path / "a run", threads=1, quiet=True, progress=interrupt)
    assert stopped.value.__notes__ == [f"go on with: locant compare --resume '{tmp_path / 'a run'}'"]
