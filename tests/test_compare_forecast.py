"""What a run is said to take, and what --minutes makes of it."""

import tomllib
from dataclasses import replace

import pytest

from locant import compare
from locant.compare import forecast, settings
from locant.compare.forecast import Forecast, cut
from locant.compare.opening import open_tasks, settle
from locant.compare.run import _schemes
from locant.compare.settings import resolve
from locant.tasks.task import Refusal

SMALL = {"task": "images", "positions": ("none", "relative"), "seeds": 2, "dim": 8, "depth": 1, "heads": 2}


def test_every_budget_is_cut_by_one_factor() -> None:
    chosen = resolve({"minutes": 2.0}, None)
    whole = {kind: recipe.steps for kind, recipe in chosen.recipes.items()}
    found = cut(chosen, Forecast(training=200.0, other=20.0, trials=8, workers=2))
    assert {kind: recipe.steps for kind, recipe in found.recipes.items()} == {k: n // 2 for k, n in whole.items()}
    assert replace(found, recipes=chosen.recipes) == chosen  # nothing else
    assert found.cut
    enough = cut(chosen, Forecast(training=90.0, other=20.0, trials=8, workers=2))
    assert {kind: recipe.steps for kind, recipe in enough.recipes.items()} == whole


@pytest.mark.parametrize("other", [115.0, 300.0])
def test_too_few_minutes_are_refused_with_how_many_would_do(other) -> None:
    chosen = resolve({"minutes": 2.0, "steps": 200}, None)
    with pytest.raises(
        Refusal, match=r"minutes needs enough for 20 steps in each of 8 trials; 2 leave (5|0)\. Write"
    ) as caught:
        cut(chosen, Forecast(training=200.0, other=other, trials=8, workers=2))
    minutes = int(str(caught.value).split("--minutes ")[1].split(",")[0])
    assert 60 * (minutes - 1) < other + 20 <= 60 * minutes  # a tenth of the training


def test_a_file_that_names_steps_and_minutes_was_cut_already(tmp_path) -> None:
    chosen = cut(resolve({"minutes": 2.0}, None), Forecast(training=200.0, other=20.0, trials=8, workers=2))
    path = tmp_path / "settings.toml"
    path.write_text(settings.toml(chosen))
    again = resolve({}, path)
    assert again == chosen
    assert again.cut
    assert not resolve({"minutes": 1.0}, path).cut  # asked for anew
    (tmp_path / "own.toml").write_text("minutes = 3\n")
    assert not resolve({}, tmp_path / "own.toml").cut


def test_the_forecast_counts_every_trial_and_grows_with_the_steps() -> None:
    for sensitivity, trials in ((False, 2 * (4 + 1)), (True, 2 * (4 + 1) + 2 + 4)):
        found = []
        for steps in (100, 1000):
            chosen = resolve({**SMALL, "steps": steps, "sensitivity": sensitivity, "threads": 2}, None)
            tasks = open_tasks(chosen)
            chosen = settle(chosen, tasks)
            found.append(forecast.predict(tasks, {"images": _schemes("images", chosen, several=False)}, chosen))
        assert [one.trials for one in found] == [trials, trials]
        assert [one.workers for one in found] == [2, 2]
        assert found[0].training < found[1].training
        two = forecast.predict(tasks, {"images": _schemes("images", chosen, several=False)}, chosen, 2)
        assert (two.trials, two.workers) == (trials, 1)  # under torchrun both train one trial
        assert found[0].sentence.startswith(f"{trials} trials on 2 workers: about ")


def test_a_busy_machine_is_told_and_does_not_stretch_the_forecast(monkeypatch) -> None:
    now = [0.0, 0.0]  # processor, wall
    monkeypatch.setattr(forecast.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: now[1])
    clock = forecast.Clock("cpu")

    def call() -> None:
        now[0] += 0.25
        now[1] += 1.0

    assert clock.fastest(call) == 0.25
    assert clock.busy == 4.0
    told = Forecast(training=60.0, other=20.0, trials=8, workers=2, busy=4.0).sentence
    assert told.startswith("8 trials on 2 workers: about 80 seconds, less where")
    assert told.endswith("; up to 4 times as long while others use the machine")
    assert "machine" not in Forecast(training=60.0, other=20.0, trials=8, workers=2, busy=1.2).sentence


def test_a_run_within_minutes_says_so_and_is_repeated_by_its_settings(tmp_path, monkeypatch) -> None:
    predict = forecast.predict
    monkeypatch.setattr(forecast, "predict", lambda *run: replace(predict(*run), training=300.0, other=15.0))
    result = compare.run(**SMALL, starts=1, minutes=1.0, share=0.1, out=tmp_path / "run", quiet=True, threads=1)
    (task,) = result.data["tasks"]
    assert task["budget"]["steps"] == 51  # of 340: (60 - 15) / 300
    assert task["budget"]["minutes"] == 1.0
    assert task["budget"]["rule"].endswith(
        "cut from 340, for every scheme alike, so that the run takes about 1 minute."
    )
    assert tomllib.loads((tmp_path / "run" / "settings.toml").read_text())["images"]["steps"] == 51
    monkeypatch.setattr(forecast, "predict", lambda *run: replace(predict(*run), training=3000.0, other=15.0))
    again = compare.run(config=tmp_path / "run" / "settings.toml", out=tmp_path / "again", quiet=True)
    assert again.data["tasks"] == result.data["tasks"]
