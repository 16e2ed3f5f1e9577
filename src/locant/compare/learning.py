"""How schemes learned: what all were given alike, whether the order hangs on it, and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locant.page import charts, markup
from locant.page.charts import Line
from locant.page.markup import join_words, text

Json = Mapping[str, Any]


def seeds_of(task: Json) -> int:
    """How many seeds were trained."""
    return max((len(scheme.get("trials") or []) for scheme in task["schemes"]), default=0)


def given(task: Json) -> str:
    """What all schemes were given alike, and whether the order hangs on it."""
    metric = task.get("metric", "accuracy")
    said = [
        (task.get("model") or {}).get("sentence"),
        None if metric == "accuracy" else f"Every percentage of what they answer is a mean score of {metric}.",
        *((task.get("budget") or {}).get(k) for k in ("rule", "plateau")),
    ]
    if task.get("augmentation") is not None:
        varied = join_words(list(task["augmentation"]))
        said.append(f"Training examples are varied, for every scheme alike: {varied}." if varied else
                    "Training examples are shown as they are.")  # fmt: skip
    said += _starts(task)
    known = task.get("sensitivity")
    if known is None:
        said.append("Whether the order would change with half or double the start or the rate was not checked.")
    body = "".join(f"<p>{text(sentence)}</p>" for sentence in said if sentence)
    hangs = f"<p{' class=heed' * known['changes_order']}>{text(known['sentence'])}</p>" if known else ""
    return f"<h3>What they were given to learn</h3>{hangs}{body}"


def _starts(task: Json) -> list[str]:
    """Where a scheme's start was searched on validation, as rates are: what was tried, and what was taken."""
    said = []
    for scheme in task["schemes"]:
        known = scheme.get("start")
        if known:
            tried = join_words([f"{value:g}" for value in known["tried"]])
            published = "" if known["taken"] == known["published"] else f" (published: {known['published']:g})"
            said.append(f"{scheme['label']} starts at {known['taken']:g}{published}, of {tried} tried on validation.")
    return said


def curves(task: Json, styles: Mapping[str, str]) -> str:
    lines, seeds = [], []
    for scheme in task["schemes"]:
        runs = [
            [(float(p["epoch"]), p["validation"]) for p in trial.get("curve") or [] if p.get("validation") is not None]
            for trial in scheme.get("trials") or []
        ]
        runs = [run for run in runs if run]
        if runs:
            lines.append(Line(styles[scheme["name"]], scheme["label"], _mean(runs)))
            seeds.append(runs if len(runs) > 1 else [])
    if not lines:
        return ""
    seeds_said = (
        "Strong: the mean; thin: each seed; grey: other schemes." if seeds_of(task) > 1 else "Grey: other schemes."
    )
    words = f"Accuracy on the validation set while training. {seeds_said}"
    return f"<h3>Learning curves, percent</h3>{charts.figure(charts.curves(lines, seeds), words)}"


def _mean(runs: Sequence[Sequence[charts.Point]]) -> tuple[charts.Point, ...]:
    """The mean of all seeds at every look; one that ended early stays where it ended."""
    every = sorted({epoch for run in runs for epoch, _ in run})
    return tuple((epoch, sum(_at(run, epoch) for run in runs) / len(runs)) for epoch in every)


def _at(run: Sequence[charts.Point], epoch: markup.Number) -> markup.Number:
    return [value for at, value in run if at <= epoch or at == run[0][0]][-1]
