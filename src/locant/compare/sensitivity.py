"""Whether the order of schemes hangs on how they were trained: half and double the start and the rate, on one seed.

Where another start than the published one was taken, the published one, at the rate that was best with it, is looked at
as well: it was tried in the search. Each variation changes one scheme alone. It counts if the scheme then answers other
test examples rightly, by more than chance (an exact test on the examples that one of the two gets right and the other
does not, corrected by Holm for the number of variations), and so passes another scheme, or is passed by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from locant.compare import checkpoint
from locant.compare.statistics import holm
from locant.compare.trial import Job

FACTORS = (0.5, 2.0)
LEVEL = 0.05
What = Literal["start", "rate", "published start"]
Right = Shaped[np.ndarray, " examples"]  # right or wrong, or scores


@dataclass(frozen=True)
class Variation:
    """One scheme, trained a little otherwise."""

    what: What
    factor: float
    job: Job


def variations(taken: Job) -> tuple[Variation, ...]:
    """Of the trial that was taken: its start, if it has one, and its rate, each halved and doubled."""
    starts = [Variation("start", f, replace(taken, start=f * taken.start)) for f in FACTORS if taken.start is not None]
    return (*starts, *(Variation("rate", f, replace(taken, lr=f * taken.lr)) for f in FACTORS))


def of_task(
    task: str, seed: int, rows: list[dict[str, Any]], trials: Mapping[str, dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """What is said of one task, from its rows of results and the answers that trials left in `folder`."""
    by_name = {row["name"]: row for row in rows}
    taken = {
        name: Job(task, name, seed, row["learning_rate"], row["start"] and row["start"]["taken"])
        for name, row in by_name.items()
    }
    tried = {name: (*_published(row, taken[name]), *variations(taken[name])) for name, row in by_name.items()}
    every = [*taken.values(), *(one.job for own in tried.values() for one in own)]
    answers = {job.key: checkpoint.read(folder / f"{job.key}.safetensors")[0]["correct.test"].numpy() for job in every}
    return check({name: row["label"] for name, row in by_name.items()}, taken, tried, trials, answers)


def _published(row: dict[str, Any], taken: Job) -> tuple[Variation, ...]:
    """The best try from the published start, if another start was taken."""
    start = row["start"]
    if start is None or taken.start is None or start["taken"] == start["published"]:
        return ()
    own = [tried for tried in row["sweep"] if tried["start"] == start["published"]]
    best = max(own, key=lambda tried: tried["validation"])
    job = replace(taken, lr=best["learning_rate"], start=start["published"])
    return (Variation("published start", start["published"] / taken.start, job),)


def check(
    names: Mapping[str, str],
    taken: Mapping[str, Job],
    tried: Mapping[str, tuple[Variation, ...]],
    trials: Mapping[str, dict[str, Any]],
    answers: Mapping[str, Right],
) -> dict[str, Any]:
    """What is said of one task.

    Args:
        names: the label of each scheme, by its name.
        taken: the trial of the first seed that was taken, by scheme.
        tried: the variations of each scheme.
        trials: what is said about each trial, by key.
        answers: which test examples each trial got right, by key.
    """
    pairs = [(scheme, one) for scheme, own in tried.items() for one in own]
    p = np.array([chance(answers[taken[scheme].key], answers[one.job.key]) for scheme, one in pairs])
    corrected = holm(p)[0]
    usual = {scheme: float(answers[job.key].mean()) for scheme, job in taken.items()}
    rows, passed = [], []
    for (scheme, one), p_holm in zip(pairs, corrected, strict=True):
        about = trials[one.job.key]
        others = _passed(usual, scheme, about["test"]) if p_holm <= LEVEL else []
        value = one.job.lr if one.what == "rate" else one.job.start
        rows.append({"scheme": scheme, "what": one.what, "factor": one.factor, "value": value,
                     "validation": about["validation"], "test": about["test"], "usual": usual[scheme],
                     "p_holm": float(p_holm), "passes": others})  # fmt: skip
        if others:
            passed.append(rows[-1])
    return {"rows": rows, "changes_order": bool(passed), "sentence": _sentence(passed, names)}


def chance(one: Right, other: Right) -> float:
    """The probability that answers which are equally good differ at least so unevenly (McNemar's test, exact; of the
    scores of a metric it is the sign test)."""
    gained, lost = int((other > one).sum()), int((one > other).sum())
    count = gained + lost
    tail = sum(comb(count, k) for k in range(min(gained, lost) + 1)) / 2**count
    return min(1.0, 2 * tail)


def _passed(usual: dict[str, float], scheme: str, accuracy: float) -> list[str]:
    """The schemes that it stood below and stands above now, or the other way round."""
    own = usual[scheme]
    return [name for name, other in usual.items() if name != scheme and (own - other) * (accuracy - other) < 0]


def _sentence(passed: list[dict[str, Any]], names: Mapping[str, str]) -> str:
    if not passed:
        return (
            "Half and double the start and the rate, on the first seed, would not change the order: no scheme passes "
            "another by more than chance."
        )
    row = max(passed, key=lambda one: (len(one["passes"]), abs(one["test"] - one["usual"])))
    changed = f"the {row['what']} of {row['value']:g}"
    if row["what"] != "published start":
        changed = f"{'half' if row['factor'] < 1 else 'double'} the {row['what']}"
    others = [names[name] for name in row["passes"]]
    more = f" So would {len(passed) - 1} other of these changes." if len(passed) > 1 else ""
    return (
        f"The order hangs on how schemes are trained: with {changed}, {names[row['scheme']]} answers "
        f"{100 * row['test']:.1f} % instead of {100 * row['usual']:.1f} % (first seed) and changes places with "
        f"{', '.join(others)}.{more}"
    )
