"""Whether the order hangs on rates and starts: on answers whose truth is known, and in a run."""

from itertools import product

import numpy as np
import pytest

from locant import compare
from locant.compare.schemes import find
from locant.compare.search import best, tries
from locant.compare.sensitivity import Variation, chance, check, variations
from locant.compare.trial import Job
from locant.tasks.kinds import IMAGES, KINDS

EXAMPLES = 200


def right(count: int) -> np.ndarray:
    return np.arange(EXAMPLES) < count


def checked(moved: dict[str, int]) -> dict:
    """`relative` answers 180 of 200, `rotary` 160, `none` 100; `moved` says what variations answer instead."""
    published = Job("images", "relative", 0, 0.008, 0.02)
    taken = {
        "none": Job("images", "none", 0, 0.004), "rotary": Job("images", "rotary", 0, 0.004),
        "relative": Job("images", "relative", 0, 0.004, 1.0),
    }  # fmt: skip
    usual = {"none": 100, "rotary": 160, "relative": 180}
    answers = {job.key: right(usual[scheme]) for scheme, job in taken.items()}
    tried = {scheme: variations(job) for scheme, job in taken.items()}
    tried["relative"] = (Variation("published start", 0.02, published), *tried["relative"])
    for scheme, own in tried.items():
        for one in own:
            answers[one.job.key] = right(moved.get(one.job.key, usual[scheme]))
    trials = {key: {"validation": 0.5, "test": float(hit.mean())} for key, hit in answers.items()}
    names = {"none": "no position", "rotary": "rotary", "relative": "relative table"}
    return check(names, taken, tried, trials, answers)


def test_rates_and_starts_are_halved_and_doubled_of_every_scheme() -> None:
    found = checked({})
    rows = [(row["scheme"], row["what"], row["factor"], row["value"]) for row in found["rows"]]
    assert rows == [
        ("none", "rate", 0.5, 0.002), ("none", "rate", 2.0, 0.008),
        ("rotary", "rate", 0.5, 0.002), ("rotary", "rate", 2.0, 0.008),
        ("relative", "published start", 0.02, 0.02),
        ("relative", "start", 0.5, 0.5), ("relative", "start", 2.0, 2.0),
        ("relative", "rate", 0.5, 0.002), ("relative", "rate", 2.0, 0.008),
    ]  # fmt: skip
    assert not found["changes_order"]
    assert found["sentence"].startswith("Half and double the start and the rate, on the first seed, would not change")


def test_a_scheme_that_falls_below_another_changes_the_order_and_is_named() -> None:
    found = checked({"images-relative-seed0-lr0.004-start0.5": 140})
    (row,) = (row for row in found["rows"] if row["passes"])
    assert (row["scheme"], row["what"], row["factor"], row["passes"]) == ("relative", "start", 0.5, ["rotary"])
    assert row["p_holm"] < 1e-6
    assert found["changes_order"]
    assert found["sentence"] == (
        "The order hangs on how schemes are trained: with half the start, relative table answers 70.0 % instead of "
        "90.0 % (first seed) and changes places with rotary."
    )
    start = checked({"images-relative-seed0-lr0.008-start0.02": 120})["sentence"]
    assert "with the published start of 0.02, relative table answers 60.0 % instead of 90.0 %" in start
    two = checked({"images-relative-seed0-lr0.004-start0.5": 90, "images-none-seed0-lr0.008": 170})
    assert "70.0" not in two["sentence"]
    assert two["sentence"].endswith("changes places with no position, rotary. So would 1 other of these changes.")


@pytest.mark.parametrize(
    ("moved", "why"),
    [
        ({"images-relative-seed0-lr0.004-start0.5": 165}, "less, but still above rotary"),
        ({"images-rotary-seed0-lr0.002": 190}, None),
        ({"images-none-seed0-lr0.008": 159}, "much more, but still below rotary"),
    ],
)
def test_only_what_passes_another_changes_the_order(moved, why) -> None:
    assert checked(moved)["changes_order"] == (why is None)


def test_a_change_within_chance_is_none() -> None:
    one = np.zeros(EXAMPLES, bool)
    one[:100] = True
    other = one.copy()
    other[[0, 1]], other[[150, 151, 152, 153, 154, 155]] = False, True  # 2 lost, 6 gained
    # the tail of 8 throws of a coin: 2 · (1 + 8 + 28) / 256
    assert chance(one, other) == chance(other, one) == pytest.approx(2 * 37 / 256)
    assert chance(one, one) == 1.0


@pytest.mark.parametrize("starts", [1, 2, 3])
@pytest.mark.parametrize("rates", [(0.004,), (0.003, 0.006)])
def test_every_scheme_has_as_many_tries_and_all_rates_that_were_asked_for(starts, rates) -> None:
    recipe = KINDS["images"].recipe
    recipe = type(recipe)(lr=rates, batch=8, dim=16, depth=1, heads=2, starts=starts)
    for scheme in find("images", IMAGES.schemes):
        found = tries(scheme, recipe)
        assert len(set(found)) == len(found) == len(rates) * starts
        assert set(product(rates, scheme.starts[:starts] or (None,))) <= set(found)
        assert [rate for rate, _ in found] == sorted(rate for rate, _ in found)


def test_of_equals_the_smaller_rate_and_the_published_start_win() -> None:
    relative = find("images", ("relative",))[0]
    recipe = KINDS["images"].recipe
    sweep = [{"job": {"lr": rate, "start": start}, "validation": 0.5} for rate, start in tries(relative, recipe)]
    assert best(sweep) == (recipe.lr[0], relative.starts[0])
    sweep[-1]["validation"] = 0.6
    assert best(sweep) == (recipe.lr[-1], relative.starts[-1])


def test_a_run_checks_what_it_was_asked_to_and_says_its_budget(tmp_path) -> None:
    result = compare.run(
        task="images", positions=("none", "relative"), seeds=1, steps=30, lr=(0.004, 0.008), dim=8, depth=1, heads=2,
        sensitivity=True, starts=2, share=0.3, out=tmp_path / "run", quiet=True, threads=1,
    )  # fmt: skip
    (task,) = result.data["tasks"]
    rows = task["sensitivity"]["rows"]
    (relative,) = (one for one in task["schemes"] if one["name"] == "relative")
    published, varied = ([r for r in rows if (r["what"] == "published start") == wanted] for wanted in (True, False))
    assert [(row["scheme"], row["what"], row["factor"]) for row in varied] == [
        ("none", "rate", 0.5), ("none", "rate", 2.0), ("relative", "start", 0.5), ("relative", "start", 2.0),
        ("relative", "rate", 0.5), ("relative", "rate", 2.0),
    ]  # fmt: skip
    assert [row["value"] for row in published] == [0.02] * (relative["start"]["taken"] != 0.02)
    for row in published:
        assert row["validation"] == max(s["validation"] for s in relative["sweep"] if s["start"] == 0.02)
    for row in varied:
        scheme = next(one for one in task["schemes"] if one["name"] == row["scheme"])
        usual = scheme["start"]["taken"] if row["what"] == "start" else scheme["learning_rate"]
        assert row["value"] == pytest.approx(row["factor"] * usual)
    budget = task["budget"]
    assert (budget["steps"], budget["batch"], budget["epochs"], budget["minutes"]) == (30, 64, 5.0, None)
    assert (
        budget["rule"] == "At most 30 steps of 64 examples, 5 passes over 324: as asked for; unasked it would be 340."
    )
    assert task["augmentation"] == ["brightness"]
    trials = list((tmp_path / "run" / "trials").glob("*.safetensors"))
    keys = {path.name.removesuffix(".safetensors") for path in trials}
    assert len(keys) <= 2 * 4 + 2 + 4  # what was tried before is not trained again
    assert "images-relative-seed0-lr0.004-start0.02" in keys
