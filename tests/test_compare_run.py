"""The whole comparison, small: the same results again, killed and resumed, refused with one sentence."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

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
        "best-images.safetensors", "identity.json", "report.html", "results.json", "settings.toml", "trials",
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
    kills, trials = 0, folder / "trials"

    def saved() -> dict[str, int]:
        found = {}
        for path in trials.glob("[!.]*.safetensors"):
            with suppress(FileNotFoundError):  # a trial that ends removes its part
                found[path.name] = path.stat().st_mtime_ns
        return found

    while kills < 5:
        before = saved()
        process = subprocess.Popen(command if not kills else [*command, "--resume"], stdout=subprocess.DEVNULL)
        while process.poll() is None and saved() == before:  # a kill before anything is saved would show nothing
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, 1.0))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html")
    assert unmeasured(json.loads((folder / "results.json").read_text())) == unmeasured(whole[0].data)
    assert not list(folder.rglob(".tmp-*"))
    assert kills >= 3


def test_one_worker_or_two_and_again_from_the_files_the_results_are_the_same(whole, tmp_path) -> None:
    again = compare.run(**SMALL, out=whole[0].folder, resume=True, quiet=True, threads=1)
    assert unmeasured(again.data) == unmeasured(whole[0].data)


def test_other_settings_or_data_are_refused_on_resume(whole, monkeypatch) -> None:
    folder = whole[0].folder
    with pytest.raises(Refusal, match=r"--resume needs the settings.*images was .*Give the same again"):
        compare.run(**{**SMALL, "steps": 85}, out=folder, resume=True, quiet=True)
    with pytest.raises(Refusal, match="--out needs a new folder; .* holds a comparison. Add --resume"):
        compare.run(**SMALL, out=folder, quiet=True)
    identity = json.loads((folder / "identity.json").read_text())
    identity["fingerprints"]["images"] = "0" * 64
    kept = (folder / "identity.json").read_text()
    (folder / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(Refusal, match="--resume needs the data .* they have changed"):
        compare.run(**SMALL, out=folder, resume=True, quiet=True)
    (folder / "identity.json").write_text(kept)


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
    assert said.strip().splitlines()[-1] == "locant: stopped; go on with --resume"
    assert "Traceback" not in said
