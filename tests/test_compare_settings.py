"""Settings: flags over config over defaults, each wrong value refused in one sentence."""

import inspect
import json
import tomllib
from dataclasses import fields

import pytest
from datasets import plain_folder

from locant import flags
from locant.compare import opening, run, settings
from locant.compare.settings import Settings, resolve
from locant.tasks import sources
from locant.tasks.kind import Recipe
from locant.tasks.kinds import CLIPS, IMAGES, KINDS
from locant.tasks.task import Refusal


def test_defaults_are_both_picture_tasks_with_three_seeds() -> None:
    chosen = resolve({}, None)
    assert chosen.task == ("images", "clips")
    assert chosen.seeds == (0, 1, 2)
    assert chosen.recipes["images"] == IMAGES.recipe


def test_quick_is_one_seed_and_no_ranking() -> None:
    chosen = resolve({"quick": True}, None)
    assert chosen.seeds == (0,)
    assert chosen.recipes["clips"].steps < CLIPS.recipe.steps


def test_flags_win_over_the_config_file_and_its_tables(tmp_path) -> None:
    config = tmp_path / "a.toml"
    config.write_text('task = ["images", "clips"]\nepochs = 7\nheads = 2\n[clips]\nepochs = 9\ndim = 24\n')
    chosen = resolve({"heads": 6}, config)
    assert (chosen.recipes["images"].epochs, chosen.recipes["clips"].epochs) == (7, 9)
    assert (chosen.recipes["images"].dim, chosen.recipes["clips"].dim) == (IMAGES.recipe.dim, 24)
    assert {chosen.recipes[k].heads for k in chosen.task} == {6}
    assert resolve({"epochs": 3}, config).recipes["clips"].epochs == 3
    steps = resolve({"steps": 50}, config).recipes["clips"]  # one budget in place of another
    assert (steps.steps, steps.epochs) == (50, None)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"quick": True},
        {"task": "clips", "lr": 0.1, "seeds": (5, 7), "patch": (4, 8), "share": 0.05},
        {"epochs": 7, "minutes": 2.5, "sensitivity": False, "seeds": 6, "augment": "none", "starts": 1},
    ],
)
def test_the_resolved_form_is_a_config_that_resolves_to_the_same(given, tmp_path) -> None:
    chosen = resolve(given, None)
    path = tmp_path / "settings.toml"
    path.write_text(settings.toml(chosen))
    assert resolve({}, path) == chosen
    assert Settings.of_flags(json.loads(json.dumps(chosen.flags()))) == chosen


def test_the_complete_form_is_all_that_a_run_is_and_reads_back_the_same(tmp_path) -> None:
    """Whatever fields the records have: what is not None is written, and what is None stands for itself."""
    chosen = resolve({"quick": True}, None)
    tasks = opening.open_tasks(chosen)
    schemes = {"images": ("none", "swin"), "clips": ("none", "time")}
    whole = settings.complete(chosen, tasks, schemes)
    assert (whole.positions, set(whole.fingerprints or ())) == (schemes, {"images", "clips"})
    assert (whole.recipes["images"].size, whole.recipes["images"].patch, whole.recipes["images"].frames) == (8, 2, None)
    assert (whole.recipes["clips"].size, whole.recipes["clips"].patch, whole.recipes["clips"].frames) == (24, 8, 3)
    path = tmp_path / "settings.toml"
    path.write_text(settings.toml(whole))
    written = tomllib.loads(path.read_text())
    assert {name for name, value in whole.flags().items() if value is not None} == set(written)
    assert resolve({}, path) == whole
    assert Settings.of_flags(json.loads(json.dumps(whole.flags()))) == whole
    again = opening.open_tasks(whole)
    assert settings.complete(whole, again, schemes) == whole
    assert {k: t.fingerprint for k, t in again.items()} == {k: t.fingerprint for k, t in tasks.items()}
    assert resolve({"size": 16}, path).fingerprints is None


@pytest.mark.parametrize("task", ["images", "sequences", ("images", "sequences")])
def test_frames_of_what_has_none_are_refused(task) -> None:
    with pytest.raises(Refusal, match="--frames is for clips; the data are (images|sequences).*, and 5 came. Leave it"):
        opening.open_tasks(resolve({"task": task, "frames": 5}, None))
    assert opening.open_tasks(resolve({"task": ("images", "clips"), "frames": 2}, None))["clips"].train.shape[0] == 2


def test_frames_of_own_pictures_are_refused(tmp_path) -> None:
    with pytest.raises(Refusal, match="--frames is for clips; the data are images, and 5 came"):
        opening.open_tasks(resolve({"data": plain_folder(tmp_path), "frames": 5}, None))


def test_a_path_to_data_is_kept_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve({"data": "photos"}, None).data == str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"seeds": 0}, "seeds needs a whole number of at least 1"),
        ({"seeds": (1, 1)}, "seeds needs a count, or different whole numbers"),
        ({"lr": (0.1, -1.0)}, "lr needs one or more rates between 0 and 10"),
        ({"steps": 0}, "steps needs a whole number of at least 1; got 0"),
        ({"steps": 100, "epochs": 3}, "a budget is --steps or --epochs; both came: 100 and 3. Leave one out"),
        ({"minutes": 0}, "minutes needs a number above 0; got 0. Write --minutes 10"),
        ({"augment": "rotate"}, "augment must be among none, shift, brightness, flip; got"),
        ({"augment": ("none", "flip")}, "augment needs none, or ways to vary examples; got both: none, flip"),
        ({"task": "sequences", "augment": "flip"}, "augment for sequences may name nothing; got flip"),
        ({"epochs": 0}, "epochs needs a whole number of at least 1; got 0"),
        ({"dim": 50, "heads": 4}, "dim must be an even multiple of heads; got dim=50, heads=4. Use --dim 48"),
        ({"task": "pictures"}, r"task must be among images, clips, sequences; got \['pictures'\]"),
        ({"device": "abacus"}, "--device needs a device that works here; 'abacus' does not"),
        ({"data": "photos", "task": ("images", "clips")}, "your own data are one task; --task names images, clips"),
        ({"patch": 0}, "patch needs a whole number of at least 1; got 0"),
        ({"share": 0.0}, "share needs a part of the training examples, above 0 and at most 1; got 0.0. Write --share"),
        ({"share": 5}, "share needs a part of the training examples, above 0 and at most 1; got 5"),
        ({"share": True}, "at most 1; got True"),
    ],
)
def test_a_wrong_value_is_refused(given, sentence) -> None:
    with pytest.raises(Refusal, match=sentence):
        resolve(given, None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch = 3", "names epoch"),
        ("[images]\ntokens = 3", "names images.tokens"),
        ("epochs", "not: Expected"),
        ('[positions]\npictures = ["none"]', "names positions.pictures"),
    ],
)
def test_a_wrong_config_file_is_refused(text, sentence, tmp_path) -> None:
    config = tmp_path / "a.toml"
    config.write_text(text)
    with pytest.raises(Refusal, match=sentence):
        resolve({}, config)


def test_a_missing_config_file_is_refused(tmp_path) -> None:
    with pytest.raises(Refusal, match="--config needs a readable TOML file"):
        resolve({}, tmp_path / "none.toml")


def test_what_is_resolved_is_what_is_declared() -> None:
    """A flag is declared in flags.py alone; the typed records and the keywords of run bear the same names."""
    keywords = set(inspect.signature(run).parameters)
    assert keywords == {flag.name for flag in flags.COMPARE} - {"json", "beside"} | {"progress"}
    recipe, resolved = ({f.name for f in fields(record)} for record in (Recipe, Settings))
    assert recipe == set(flags.RECIPE)
    assert resolved - {"recipes", "cut", "fingerprints", "left"} | recipe == flags.KEPT


def test_the_defaults_in_help_are_those_that_are_used() -> None:
    said = {flag.name: flag.help for flag in flags.COMPARE}
    chosen = resolve({}, None)
    assert f"default {len(chosen.seeds)}." in said["seeds"]
    assert f"default {','.join(chosen.task)}." in said["task"]
    assert said["device"].endswith(f"default {chosen.device}.")
    steps = {kind: KINDS[kind].recipe.steps for kind in ("clips", "sequences")}
    assert f"(clips {steps['clips']}, sequences {steps['sequences']}), your data" in said["steps"]
    for name in ("steps", "starts", "batch", "dim", "depth", "heads", "share", "patch"):
        assert f" {getattr(IMAGES.recipe, name):g}" in said[name]
    assert f"default {sources.SIZE}," in said["size"]
    moving = CLIPS.built_in(CLIPS.recipe)
    assert f"default {sources.FRAMES}, digits {moving.train.shape[0]}." in said["frames"]
