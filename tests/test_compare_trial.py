"""A trial gives the same bits again: in one go, stopped and resumed, and nearly so over two processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from locant.compare import budget, checkpoint
from locant.compare.trial import Job, _Run, digest, train
from locant.compare.world import World
from locant.tasks import digits, splits
from locant.tasks.kinds import IMAGES
from locant.tasks.task import ArrayExamples, Refusal, Task

RECIPE = replace(IMAGES.recipe, steps=51, dim=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def task():
    return digits.images()


def ignore(event) -> None:
    pass


@pytest.mark.parametrize("scheme", ["learned", "relative"])
def test_the_same_trial_gives_the_same_bits(scheme, task, tmp_path) -> None:
    job = Job("images", scheme, 3, 0.003)
    one, two = (train(job, task, RECIPE, _made(tmp_path / name), World(), ignore) for name in "ab")
    assert one == two
    other = train(Job("images", scheme, 4, 0.003), task, RECIPE, _made(tmp_path / "c"), World(), ignore)
    assert other["weights"] != one["weights"]


@pytest.mark.parametrize("stops", [(5,), (17, 18, 40), (18, 36)])
def test_a_trial_that_is_stopped_anywhere_ends_with_the_same_bits(stops, task, tmp_path, monkeypatch) -> None:
    """Stopped after a number of steps, saved or not: what was not saved is done again."""
    job = Job("images", "relative", 0, 0.003)
    whole = train(job, task, RECIPE, _made(tmp_path / "whole"), World(), ignore)
    monkeypatch.setattr("locant.compare.trial.SAVE_EVERY", 4)
    folder, advance = _made(tmp_path / "parts"), _Run.advance

    for stop in stops:

        def stopping(run, stop=stop):
            if run.step == stop:
                raise KeyboardInterrupt
            return advance(run)

        monkeypatch.setattr(_Run, "advance", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(job, task, RECIPE, folder, World(), ignore)
        assert list(folder.glob("*.part.safetensors"))
    monkeypatch.setattr(_Run, "advance", advance)
    assert train(job, task, RECIPE, folder, World(), ignore) == whole
    assert not list(folder.glob("*.part.safetensors"))


def test_a_plateau_ends_a_trial_early_by_the_same_rule_and_survives_stops(task, tmp_path, monkeypatch) -> None:
    """Labels that nothing tells: validation soon has no better look, and the rate falls from there."""
    draw = np.random.default_rng(0)
    noise = replace(task, train=ArrayExamples(task.train.x, draw.permutation(task.train.labels)))
    recipe, job = replace(RECIPE, steps=200), Job("images", "learned", 0, 0.01)
    whole = train(job, noise, recipe, _made(tmp_path / "whole"), World(), ignore)
    looks = [point["validation"] for point in whole["curve"]]
    first = next(n for n in range(10, len(looks)) if max(looks[n - 5 : n]) <= max(looks[: n - 5]))
    fall = whole["curve"][first - 1]["step"]
    assert fall >= 100  # half of the budget
    assert whole["steps"] == fall + 60 < 200  # over as many steps as at the end of a budget
    assert whole["stopped"] == f"validation was no better for 5 looks at step {fall}, and the rate fell from there"
    assert whole["finite"]
    advance = _Run.advance

    def stopping(run):
        if run.step == fall + 15:
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(_Run, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(job, noise, recipe, _made(tmp_path / "parts"), World(), ignore)
    monkeypatch.setattr(_Run, "advance", advance)
    assert train(job, noise, recipe, tmp_path / "parts", World(), ignore) == whole


def test_a_plateau_is_a_look_without_error_or_a_late_one() -> None:
    flat = [0.3, 0.2, 0.3, 0.3, 0.1, 0.3]
    assert not budget.on_plateau(flat, 60, 200)
    assert budget.on_plateau(flat, 100, 200)
    assert not budget.on_plateau([0.3, 0.2, 0.3, 0.3, 0.1, 0.4], 180, 200)  # the last is better
    assert not budget.on_plateau([0.3] * 5, 180, 200)  # nothing came before
    assert budget.on_plateau([0.2, 1.0], 20, 200)


def test_examples_are_varied_alike_for_every_scheme_and_after_a_stop(task, tmp_path, monkeypatch) -> None:
    seen: dict[tuple[str, int], bytes] = {}
    recipe, inner = replace(RECIPE, augment=("brightness", "flip"), steps=20), _Run.losses

    def losses(run, index):
        x = run.varied.read(index)
        assert seen.setdefault((run.job.scheme, run.step), x.tobytes()) == x.tobytes()
        return inner(run, index)

    monkeypatch.setattr(_Run, "losses", losses)
    for scheme in ("none", "learned"):
        train(Job("images", scheme, 0, 0.003), task, recipe, tmp_path, World(), ignore)
    assert all(seen["none", step] == seen["learned", step] for step in range(20))
    assert len(set(seen.values())) == 20
    again = _Run(Job("images", "none", 0, 0.003), task, recipe, World())
    for _ in range(7):
        again.advance()
    later = _Run(Job("images", "none", 0, 0.003), task, recipe, World())
    later.restore(*again.saved())
    for _ in range(13):
        later.advance()


@pytest.mark.parametrize(("kind", "scheme"), [("images", "convit"), ("clips", "aim"), ("clips", "temporal")])
def test_whole_designs_go_on_with_the_same_bits(kind, scheme, tmp_path, monkeypatch) -> None:
    """What else they carry, such as the statistics of BatchNorm, is saved as well."""
    draw = np.random.default_rng(0)
    shape = {"images": (1, 8, 8), "clips": (3, 1, 8, 8)}[kind]
    parts = [ArrayExamples(draw.random((96, *shape), np.float32), np.arange(96) % 3) for _ in range(3)]
    small = Task(kind, "noise", "which?", ("a", "b", "c"), *parts, (), (), (), "0")
    recipe, job = replace(RECIPE, steps=4, depth=2, patch=2), Job(kind, scheme, 0, 0.003)
    whole = train(job, small, recipe, _made(tmp_path / "whole"), World(), ignore)
    monkeypatch.setattr("locant.compare.trial.SAVE_EVERY", 1)
    advance = _Run.advance

    def stopping(run):
        if run.step == 3:
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(_Run, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(job, small, recipe, _made(tmp_path / "parts"), World(), ignore)
    monkeypatch.setattr(_Run, "advance", advance)
    assert train(job, small, recipe, tmp_path / "parts", World(), ignore) == whole
    tensors, _ = checkpoint.read(tmp_path / "parts" / f"{job.key}.safetensors")
    assert any("running_var" in name for name in tensors) == (scheme == "temporal")


def test_it_learns_and_keeps_the_weights_that_validates_best(task, tmp_path) -> None:
    about = train(Job("images", "learned", 0, 0.01), task, replace(RECIPE, steps=102), tmp_path, World(), ignore)
    validations = [point["validation"] for point in about["curve"]]
    assert about["validation"] == max(validations) > 0.5
    assert about["best_step"] == about["curve"][validations.index(max(validations))]["step"]
    assert about["best_epoch"] == pytest.approx(about["best_step"] / 17, abs=0.005)
    tensors, _ = checkpoint.read(tmp_path / "images-learned-seed0-lr0.01.safetensors")
    assert tensors["correct.test"].float().mean().item() == pytest.approx(about["test"])
    kept = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    assert digest(kept) == about["weights"]


def test_a_share_of_the_examples_is_all_that_a_trial_sees(task, tmp_path) -> None:
    """The same weights as from a task that holds nothing else; every seed draws its own."""
    recipe = replace(RECIPE, share=0.1, steps=6)
    job = Job("images", "learned", 3, 0.003)
    about = train(job, task, recipe, _made(tmp_path / "share"), World(), ignore)
    part = splits.share(task.train, 0.1, 3)
    assert len(part) == 109  # of 1,079: a tenth of each digit, rounded
    only = replace(task, train=ArrayExamples(part.read(np.arange(len(part))), part.labels))
    assert (
        train(job, only, replace(RECIPE, steps=6), _made(tmp_path / "only"), World(), ignore)["weights"]
        == about["weights"]
    )
    assert about["recipe"]["share"] == 0.1


def test_a_loss_that_is_no_number_ends_the_trial_and_is_said(task, tmp_path) -> None:
    x = task.train.x.copy()
    x[5] = np.nan
    broken = replace(task, train=ArrayExamples(x, task.train.labels))
    about = train(Job("images", "none", 0, 0.003), broken, RECIPE, tmp_path, World(), ignore)
    assert about["finite"] is False
    assert about["validation"] == 0.0


@pytest.mark.parametrize("end", [100, 60])
def test_the_rate_warms_up_stays_and_ends_at_nothing(end) -> None:
    paces = [budget.rate_factor(step, 100, end) for step in range(end)]
    assert paces[0] == 0.1
    assert paces[9 : end - 29] == [1.0] * (end - 38)  # a fall of 30 steps starts from the peak
    assert paces[end - 30 :] == sorted(paces[end - 30 :], reverse=True)
    assert 0 < paces[-1] < 0.003


def test_a_checkpoint_that_is_damaged_is_refused_and_nothing_is_run(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, {"w": torch.ones(3)}, {"n": 1})
    good = path.read_bytes()
    for bad in (good[:20], good[:-2], b"", os.urandom(200), good.replace(b'"about"', b'"abuot"')):
        path.write_bytes(bad)
        with pytest.raises(Refusal, match="is not one, or is damaged"):
            checkpoint.read(path)


def test_a_full_disk_leaves_the_last_good_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, {"w": torch.ones(3)}, {"n": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refusal, match=r"must be writable; it is not: No space left on device\. Free space"):
        checkpoint.write(path, {"w": torch.zeros(3)}, {"n": 2})
    monkeypatch.undo()
    tensors, about = checkpoint.read(path)
    assert (about, tensors["w"].tolist()) == ({"n": 1}, [1.0, 1.0, 1.0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


SHARDED = """
import json, sys
from dataclasses import replace
import torch
from locant.tasks import digits
from locant.tasks.kinds import IMAGES
from locant.compare.metric import find_metric
from locant.compare.trial import Job, _Run, score
from locant.compare.world import World

torch.set_num_threads(1)
world = World.join("cpu")
# a batch of 63 makes shares of 32 and 31, and the last batch of the epoch is odd too
recipe = replace(IMAGES.recipe, batch=63, steps=18)
run = _Run(Job("images", "relative", 0, 0.003), digits.images(), recipe, world)
clip, gradients, losses = torch.nn.utils.clip_grad_norm_, [], []

def spy(parameters, limit, foreach):
    parameters = list(parameters)
    gradients.append(torch.cat([p.grad.flatten() for p in parameters]).tolist())
    return clip(parameters, limit, foreach=foreach)

torch.nn.utils.clip_grad_norm_ = spy
for _ in range(10):
    before = run.loss
    assert run.advance()
    losses.append((run.loss - before) / 63)
hits = score(run.model, run.task.test, world, find_metric(None)).astype(int).tolist()
if world.leads:
    json.dump({"losses": losses, "gradients": gradients[0], "hits": hits}, open(sys.argv[1], "w"))
"""


def test_two_processes_train_as_one(tmp_path) -> None:
    """First-step gradients agree to 1e-6 relative, the first ten losses to 1e-4; each test example counts once."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    found = []
    for name, command in (
        ("one", [sys.executable]),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        out = tmp_path / f"{name}.json"
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        for _ in range(2):  # the port that torchrun finds free may be taken by others before its processes bind it
            done = subprocess.run(
                [*command, str(script), str(out)], env=env, capture_output=True, text=True, timeout=120
            )
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr[-4000:]
        found.append(json.loads(out.read_text()))
    one, two = found
    g1, g2 = (torch.tensor(f["gradients"], dtype=torch.float64) for f in found)
    assert ((g1 - g2).norm() / g1.norm()).item() <= 1e-6
    assert np.allclose(one["losses"], two["losses"], rtol=1e-4, atol=0)
    assert len(two["hits"]) == len(digits.images().test)
    assert set(two["hits"]) == {0, 1}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
