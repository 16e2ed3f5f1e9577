"""The rule of the recommendation on synthetic results: what is shown decides, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from locant.compare import finding, recommendation
from locant.compare.recommendation import PREFERENCES, RULE
from locant.compare.statistics import interval
from locant.compare.summary import compare_schemes

EXAMPLES, SEEDS = 300, 3
CHANCE = {"uniform": 0.1, "majority": 0.1, "level": 0.1}
LABELS = {"none": "no position", "learned": "learned embedding", "relative": "relative table", "alibi": "ALiBi"}


def right(count: int, seeds: int = SEEDS, luck: int = 0) -> np.ndarray:
    """Every seed answers the first `count` examples. With `luck`, two of them are others: nothing that is shown."""
    table = np.zeros((seeds, EXAMPLES), dtype=bool)
    table[:, :count] = True
    if luck:
        table[:, [10 * luck, 10 * luck + 1]] = False
    return table


def task_of(
    test: dict[str, np.ndarray],
    far: dict[str, np.ndarray] | None = None,
    blind: dict[str, str] | None = None,
    parameters: dict[str, int] | None = None,
    flops: dict[str, int] | None = None,
) -> dict[str, Any]:
    """One task's part of results.json, as far as the rule reads it. `blind` says to what: "mirror" or "time"."""
    blind = {"none": "mirror", "alibi": "mirror", **(blind or {})}
    rows = [
        {
            "name": name, "label": LABELS.get(name, name), "beside": None, "accuracy": vars(interval(table)),
            "tells_direction": blind.get(name) != "mirror", "tells_time": blind.get(name) != "time",
            "shifts": {} if far is None else {"larger canvas": {"mean": float(far[name].mean())}},
            "parameters": {"position": (parameters or {}).get(name, 0)},
            "flops": {"forward": (flops or {}).get(name, 1_000_000)},
        }
        for name, table in test.items()
    ]  # fmt: skip
    answers = {name: {"test": t} | ({} if far is None else {"larger canvas": far[name]}) for name, t in test.items()}
    return {
        "kind": "images", "schemes": rows, "sizes": {"train": 900, "test": EXAMPLES},
        "shifts": [] if far is None else [{"name": "larger canvas"}], **compare_schemes(rows, answers, CHANCE),
    }  # fmt: skip


def recommend(task: dict[str, Any], prefer: str = "reach", costs: dict[str, Any] | None = None) -> dict[str, Any]:
    return recommendation.of_task(task, costs or {}, prefer)


def step(low: float, median: float, high: float, held: int = 1_000) -> dict[str, Any]:
    return {"step_ms": {"low": low, "median": median, "high": high}, "step_bytes": held}


def test_1_the_only_one_that_is_not_below_is_taken_with_what_the_others_lack() -> None:
    said = recommend(task_of({"none": right(200), "learned": right(285), "relative": right(240)}))
    assert said["recommendation"]["scheme"] == "learned"
    assert said["recommendation"]["left"] == ["learned"]
    take, leave = said["recommendation"]["sentences"]
    assert take == "Take learned embedding: 95.0\u00a0%, shown to be above every other, no parameters on position."
    assert re.fullmatch(
        r"Ruled out: no position \(below by at least (2\d) points\); "
        r"relative table \(below by at least (1\d) points\)\.", leave
    )  # fmt: skip


def test_2_among_equals_on_the_test_set_reach_decides_and_not_the_mean() -> None:
    """learned has the highest mean on the test set, relative is shown to be the best on a larger canvas."""
    task = task_of(
        {"none": right(200), "learned": right(285), "relative": right(284)},
        {"none": right(120), "learned": right(90), "relative": right(170)},
    )
    chosen = recommend(task)["recommendation"]
    assert (chosen["scheme"], chosen["decided_by"]) == ("relative", ["reach"])
    assert chosen["sentences"] == [
        "Take relative table: 94.7\u00a0%, not shown to be below the best (learned embedding, 95.0\u00a0%), shown "
        "to be the best of those left on what it was not trained for (larger canvas 56.7\u00a0%), no parameters on "
        "position.",
        f"Ruled out: no position ({chosen['ruled_out'][0]['why']}); learned embedding is not ruled out.",
    ]


def test_3_among_equals_there_too_the_fewest_parameters_decide() -> None:
    tables = {"learned": right(285), "relative": right(285, luck=1), "rotary": right(285, luck=2)}
    task = task_of(tables, tables, parameters={"learned": 768, "relative": 392, "rotary": 64})
    chosen = recommend(task)["recommendation"]
    assert (chosen["scheme"], chosen["decided_by"]) == ("rotary", ["cost"])
    assert "not shown to be below any on what it was not trained for" in chosen["sentences"][0]
    assert "64 parameters on position" in chosen["sentences"][0]
    assert chosen["sentences"][1] == "Nothing is ruled out: learned embedding and relative table are not ruled out."


def test_4_less_work_decides_before_parameters_and_within_one_percent_it_does_not() -> None:
    tables = {"learned": right(285), "relative": right(285, luck=1)}
    spent = {"learned": 768, "relative": 392}
    more = task_of(tables, parameters=spent, flops={"learned": 1_000_000, "relative": 1_020_000})
    same = task_of(tables, parameters=spent, flops={"learned": 1_000_000, "relative": 1_009_000})
    assert recommend(more)["recommendation"]["scheme"] == "learned"
    assert recommend(same)["recommendation"]["scheme"] == "relative"


def test_5_accuracy_first_takes_who_is_shown_to_be_above_most() -> None:
    """rotary and relative tie; only rotary is shown to be above gated, which ties with relative as well."""
    tables = {"relative": right(281), "rotary": right(284), "gated": right(278), "none": right(150)}
    far = {"relative": right(200), "rotary": right(120), "gated": right(150), "none": right(90)}
    task = task_of(tables, far)
    verdicts = {(c["a"], c["b"]): c["verdict"] for c in task["comparisons"]}
    assert verdicts["relative", "rotary"] == verdicts["relative", "gated"] == "no difference shown"
    assert verdicts["rotary", "gated"] == "higher"
    assert recommend(task, "accuracy")["recommendation"]["scheme"] == "rotary"
    assert recommend(task, "reach")["recommendation"]["scheme"] == "relative"
    take = recommend(task, "accuracy")["recommendation"]["sentences"][0]
    assert "but shown to be below relative table on what it was not trained for (larger canvas 40.0\u00a0%)" in take


def test_6_speed_first_takes_the_fastest_unless_their_times_meet() -> None:
    tables = {"learned": right(285), "relative": right(285, luck=1)}
    task = task_of(tables, parameters={"learned": 768, "relative": 392})
    apart = {"learned": step(4.0, 4.1, 4.3), "relative": step(4.4, 4.6, 5.0)}
    meeting = {"learned": step(4.0, 4.1, 4.3), "relative": step(4.2, 4.6, 5.0)}
    chosen = recommend(task, "speed", apart)["recommendation"]
    assert (chosen["scheme"], chosen["decided_by"]) == ("learned", ["speed"])
    assert "a training step in 4.1\u00a0ms" in chosen["sentences"][0]
    assert recommend(task, "speed", meeting)["recommendation"]["decided_by"] == ["cost"]
    assert recommend(task, "speed", {"learned": step(1, 1, 1)})["recommendation"]["decided_by"] == ["cost"]
    assert recommend(task, "reach", apart)["recommendation"]["scheme"] == "relative"


def test_7_memory_first_takes_the_least_unless_within_five_percent() -> None:
    tables = {"learned": right(285), "relative": right(285, luck=1)}
    task = task_of(tables, parameters={"learned": 768, "relative": 392})
    apart = {"learned": step(1, 1, 1, 1_000), "relative": step(1, 1, 1, 1_060)}
    near = {"learned": step(1, 1, 1, 1_000), "relative": step(1, 1, 1, 1_040)}
    assert recommend(task, "memory", apart)["recommendation"]["scheme"] == "learned"
    assert recommend(task, "memory", near)["recommendation"]["scheme"] == "relative"


def test_8_who_cannot_tell_what_is_shown_to_matter_is_ruled_out() -> None:
    """ALiBi ties with the best and costs nothing, but cannot tell left from right, which is shown to matter."""
    tables = {"none": right(200), "alibi": right(285, luck=1), "relative": right(285), "space": right(285, luck=2)}
    task = task_of(tables, parameters={"relative": 392}, blind={"space": "time"})
    chosen = recommend(task)["recommendation"]
    assert chosen["scheme"] == "relative"
    why = {row["scheme"]: row["why"] for row in chosen["ruled_out"]}
    assert why["alibi"] == "mirror-blind"
    assert why["space"] == "blind to the order of frames"
    assert why["none"].startswith("below by at least ")


def test_9_where_position_is_not_shown_to_matter_none_is_the_cheapest() -> None:
    tables = {"none": right(284), "learned": right(285), "relative": right(285, luck=1)}
    chosen = recommend(task_of(tables, parameters={"learned": 768, "relative": 392}))["recommendation"]
    assert (chosen["scheme"], chosen["ruled_out"]) == ("none", [])


def test_10_where_none_is_above_chance_none_is_taken_and_the_finding_says_that_alone() -> None:
    rng = np.random.default_rng(0)
    task = task_of({name: rng.random((SEEDS, EXAMPLES)) < 0.1 for name in ("none", "learned", "relative")})
    assert recommend(task) == {
        "recommendation": None, "why_none": "No scheme is shown to be above chance, so none is recommended.",
    }  # fmt: skip
    assert finding.of_task(task) == [
        "Images: no scheme is shown to be above chance (10.0\u00a0%), so nothing can be said of position here. Try "
        "four times the --steps, more examples (it trained on 900), or larger ones (--size, --patch)."
    ]
    longer = {**task, "budget": {"steps": 600}}
    assert "Try --steps 2400, more examples" in finding.of_task(longer)[0]


def test_11_one_seed_recommends_nothing() -> None:
    task = task_of({"none": right(200, seeds=1), "learned": right(285, seeds=1)})
    assert recommend(task)["recommendation"] is None
    assert recommend(task)["why_none"] == "None is recommended: one seed ranks nothing. Try --seeds 3."
    alone = task_of({"learned": right(285)})
    assert recommend(alone)["why_none"].endswith("there was one scheme. Name more in --positions.")


def test_12_who_is_not_above_chance_is_ruled_out_even_if_it_is_not_below_the_best() -> None:
    rng = np.random.default_rng(1)
    guesses = np.stack([rng.permutation(right(300 * share // 100)[0]) for share in (5, 20, 5)])
    weak = right(48)
    task = task_of({"learned": weak, "rotary": guesses})
    assert [s["above_chance"]["shown"] for s in task["schemes"]] == [True, False]
    chosen = recommend(task)["recommendation"]
    assert chosen["scheme"] == "learned"
    assert "not shown to be above chance" in chosen["ruled_out"][0]["why"]
    assert "Not shown to be above chance (10.0\u00a0%): rotary." in finding.of_task(task)


def test_13_a_scheme_that_cannot_go_there_has_no_reach() -> None:
    tables = {"gated": right(285), "relative": right(284)}
    far = {"gated": np.zeros((SEEDS, EXAMPLES), dtype=bool), "relative": right(100)}
    chosen = recommend(task_of(tables, far, parameters={"relative": 392}))["recommendation"]
    assert (chosen["scheme"], chosen["decided_by"]) == ("relative", ["reach"])


def test_14_weights_that_not_all_could_start_with_are_no_fair_fight_and_it_says_so() -> None:
    task = task_of({"none": right(200), "learned": right(285)})
    start = "Take learned embedding with these weights, which are no fair start for all: 95.0\u00a0%"
    assert recommend({**task, "weights": {"fair": False}})["recommendation"]["sentences"][0].startswith(start)
    assert recommend({**task, "weights": {"fair": True}})["recommendation"]["sentences"][0].startswith(
        "Take learned embedding: 95.0\u00a0%"
    )


@pytest.mark.parametrize("prefer", list(PREFERENCES))
def test_equals_are_never_ranked_by_their_means(prefer: str) -> None:
    """Whoever of three equals has the luckiest test set, the same one is taken: the cheapest."""
    spent = {"learned": 768, "relative": 392, "rotary": 64}
    for luckiest in spent:
        tables = {name: right(286 if name == luckiest else 285) for name in spent}
        assert recommend(task_of(tables, tables, parameters=spent), prefer)["recommendation"]["scheme"] == "rotary"


def test_the_price_is_that_of_the_size_nearest_to_196_tokens_and_none_where_the_machine_was_busy() -> None:
    tables = {"none": right(200), "relative": right(285)}
    task = task_of(tables)
    task |= recommend(task)
    grown = {
        name: {"growth": [{"tokens": t, "step_ms": t * more, "stopped": None} for t in (16, 64, 256, 1024)]}
        for name, more in (("none", 1.0), ("relative", 1.04))
    }
    assert recommendation.price(task, grown) == "+4\u00a0% of a training step at 256 tokens"
    grown["none"]["growth"][2]["quiet"] = False
    assert recommendation.price(task, grown) is None
    assert recommendation.price(task, {}) is None


def test_the_rule_is_in_the_results_and_in_the_documentation() -> None:
    tables = {"none": right(200), "relative": right(285)}
    assert recommend(task_of(tables))["recommendation"]["rule"] == " ".join(RULE)
    page = " ".join(Path("docs/compare.md").read_text(encoding="utf-8").split())
    for sentence in RULE:
        assert sentence in page.replace("`", ""), sentence
