"""What may be said of the results, in plain words: differences that are shown, and nothing else."""

from __future__ import annotations

from typing import Any

from locant.compare.statistics import seeds_dominate

LIMITS = (
    "These models are small: some ten thousands of parameters, a thousand examples. Large models learn from data what "
    "small ones need to be told, so differences usually shrink with scale, and may change sign.",
    "Each scheme got the same budget, data order and learning rates to choose from. With more time, other rates or "
    "other sizes the order may be another.",
    "Intervals speak of new test examples of the same kind and of new seeds. They say nothing of other data.",
    "Three seeds bound what luck of the start can do only roughly; --seeds 5 or more narrows it.",
)  # fmt: skip


def of_task(task: dict[str, Any]) -> list[str]:
    """The sentences of one task, the most useful first."""
    schemes = task["schemes"]
    labels = {s["name"]: s["label"] for s in schemes}
    means = {s["name"]: s["accuracy"]["mean"] for s in schemes}
    if not task["comparisons"]:
        return [
            (
                f"{_kind(task)}: one seed, so no ranking. Accuracies run from {_percent(min(means.values()))} "
                f"to {_percent(max(means.values()))}."
            )
        ]
    # 1 the best, and what it is shown to differ from
    best = max(means, key=lambda name: means[name])
    level = [c for c in task["comparisons"] if best in (c["a"], c["b"])]
    tied = [_other(c, best) for c in level if c["verdict"] == "no difference shown"]
    beaten = [_other(c, best) for c in level if c["verdict"] != "no difference shown"]
    sentences = [_lead(task, best, tied, labels, means)]
    if beaten:
        sentences.append(f"Shown to be below {labels[best]}: {_join([labels[n] for n in beaten])}.")
    # 2 what position is worth, and what holds beyond what was trained for
    sentences += _against_none(task, labels)
    sentences += _on_shifts(task, labels)
    # 3 what must be known beside
    blind = [s["label"] for s in schemes if not s["tells_direction"] and s["name"] != "none"]
    if blind:
        sentences.append(f"{_join(blind)} is mirror-blind: to it, left is right and before is after.")
    designs = [s["label"] for s in schemes if s.get("beside")]
    if designs:
        sentences.append(f"{_join(designs)} differ{'s' * (len(designs) == 1)} from the rest by more than position.")
    wide = [
        s["label"]
        for s in schemes
        if seeds_dominate(s["accuracy"]["mean"], s["accuracy"]["spread"], task["sizes"]["test"])
    ]
    if wide:
        sentences.append(
            f"Seeds differ by more than the test examples explain for {_join(wide)}: use more seeds there."
        )
    return sentences


def of_all(tasks: list[dict[str, Any]]) -> list[str]:
    """The first thing a reader sees: one sentence per task."""
    return [sentence for task in tasks for sentence in task["finding"][:1]]


def _lead(task: dict[str, Any], best: str, tied: list[str], labels: dict[str, str], means: dict[str, float]) -> str:
    start = f"{_kind(task)}: {labels[best]} answers {_percent(means[best])} of the test examples"
    if not tied:
        return f"{start}, shown to be more than every other scheme."
    return f"{start}; no difference is shown to {_join([f'{labels[n]} ({_percent(means[n])})' for n in tied])}."


def _against_none(task: dict[str, Any], labels: dict[str, str]) -> list[str]:
    gains, unshown = [], []
    for c in task["comparisons"]:
        if "none" not in (c["a"], c["b"]):
            continue
        name = _other(c, "none")
        low = c["low"] if c["b"] == "none" else -c["high"]
        if low > 0:
            gains.append((low, name))
        else:
            unshown.append(labels[name])
    sentences = []
    if gains:
        low, _ = min(gains)
        sentences.append(
            f"Saying where tokens are is worth at least {100 * low:.0f} points here for "
            f"{_join([labels[n] for _, n in sorted(gains, reverse=True)])} (corrected interval, against no position)."
        )
    if unshown:
        sentences.append(f"No gain over no position is shown for {_join(unshown)}.")
    return sentences


def _on_shifts(task: dict[str, Any], labels: dict[str, str]) -> list[str]:
    sentences = []
    for shift in task["shifts"]:
        scored = {
            s["name"]: s["shifts"][shift["name"]]["mean"]
            for s in task["schemes"]
            if s["shifts"].get(shift["name"], {}).get("mean") is not None
        }
        if len(scored) > 1:
            top = max(scored, key=lambda name: scored[name])
            worst = min(scored, key=lambda name: scored[name])
            sentences.append(
                f"Not trained for, {shift['name']}: from {_percent(scored[worst])} ({labels[worst]}) "
                f"to {_percent(scored[top])} ({labels[top]})."
            )
    return sentences


def _other(comparison: dict[str, Any], name: str) -> str:
    return str(comparison["a"] if comparison["b"] == name else comparison["b"])


def _kind(task: dict[str, Any]) -> str:
    return str(task["kind"]).capitalize()


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"  # no line breaks before the sign


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
