"""What may be said of the results, in plain words: differences that are shown, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from locant.compare.power import APART, Power
from locant.compare.recommendation import best_of, shown_above
from locant.compare.statistics import seeds_dominate
from locant.page.markup import join_words, share

UNEVEN = 1.2  # times an even share: a class that is commoner is named, not chance
LIMITS = (
    "These models are small: some ten thousands of parameters, a thousand examples. Large models learn from data what "
    "small ones need to be told, so differences usually shrink with scale, and may change sign.",
    "Each scheme got the same budget, data order and number of rates and starts to try. With more time, other rates or "
    "other sizes the order may be another.",
    "Intervals speak of new test examples of the same kind and of new seeds. They say nothing of other data.",
    "Three seeds bound what luck of the start can do only roughly; --seeds 5 or more narrows it.",
)  # fmt: skip


def of_task(task: dict[str, Any]) -> list[str]:
    """The sentences of one task, the most useful first. Where no scheme is shown to be above chance, that alone."""
    schemes = task["schemes"]
    labels = {s["name"]: s["label"] for s in schemes}
    means = {s["name"]: s["accuracy"]["mean"] for s in schemes}
    if not any(map(shown_above, schemes)):
        return [_nothing_learned(task)]
    unlearned = [labels[s["name"]] for s in schemes if not shown_above(s)]
    doubt = [f"Not shown to be above {chance_words(task)}: {join_words(unlearned)}."] if unlearned else []
    if not task["comparisons"]:
        return [
            f"{_kind(task)}: one seed, so no ranking. Accuracies run from {share(min(means.values()))} "
            f"to {share(max(means.values()))}.",
            *doubt,
        ]
    # 1 the best, and what it is shown to differ from
    best = best_of(task)
    level = [c for c in task["comparisons"] if best in (c["a"], c["b"])]
    tied = [_other(c, best) for c in level if c["verdict"] == "no difference shown"]
    beaten = [_other(c, best) for c in level if c["verdict"] != "no difference shown"]
    sentences = [_lead(task, best, tied, labels, means)]
    if beaten:
        sentences.append(f"Shown to be below {labels[best]}: {join_words([labels[n] for n in beaten])}.")
    sentences += doubt
    # 2 what position is worth, and what holds beyond what was trained for
    sentences += _against_none(task, labels)
    sentences += _on_shifts(task, labels)
    # 3 what must be known beside
    if (task.get("sensitivity") or {}).get("changes_order"):
        sentences.append(task["sensitivity"]["sentence"])
    blind = [s["label"] for s in schemes if not s["tells_direction"] and s["name"] != "none"]
    if blind:
        sentences.append(f"{join_words(blind)} is mirror-blind: to it, left is right and before is after.")
    designs = [s["label"] for s in schemes if s.get("beside")]
    if designs:
        sentences.append(
            f"{join_words(designs)} differ{'s' * (len(designs) == 1)} from the rest by more than position."
        )
    wide = [
        s["label"]
        for s in schemes
        if seeds_dominate(s["accuracy"]["mean"], s["accuracy"]["spread"], task["sizes"]["test"])
    ]
    if wide:
        sentences.append(
            f"Seeds differ by more than the test examples explain for {join_words(wide)}: use more seeds there."
        )
    return sentences


def of_all(tasks: list[dict[str, Any]]) -> list[str]:
    """The first thing a reader sees: one sentence per task."""
    return [sentence for task in tasks for sentence in task["finding"][:1]]


def of_power(power: Power, shape: tuple[int, int]) -> dict[str, Any]:
    """What could have been shown with these (seeds, examples), and the price of `APART`, as numbers and a sentence."""
    seeds, examples = shape
    apart = f"{100 * APART:.0f} points"
    least = f"a difference of {100 * power.shown:.1f} points" if power.shown < 1 else "no difference at all"
    told = f"{seeds} seeds and {examples:,} test examples show {least} in four of five runs"
    more = [f"{power.seeds:,} seeds"] if power.seeds is not None else []
    more += [f"{power.examples:,} test examples"] if power.examples is not None else []
    if power.shown <= APART:
        sentence = f"{told}."
    elif more:
        sentence = f"{told}; {apart} need {join_words(more, 'or')}."
    elif seeds < 3:
        sentence = f"{told}; three seeds would tell what {apart} need."
    else:
        sentence = f"{told}; {apart} need more of both: neither more seeds nor more examples alone would do."
    return {"shown": power.shown, "seeds": power.seeds, "examples": power.examples, "sentence": sentence}


def _nothing_learned(task: dict[str, Any]) -> str:
    """That, and what to try."""
    budget = task.get("budget") or {}
    longer = f"--steps {4 * budget['steps']}" if budget.get("steps") else "four times the --steps"
    train = task["sizes"]["train"]
    return (
        f"{_kind(task)}: no scheme is shown to be above {chance_words(task)}, so nothing can be said of position here. "
        f"Try {longer}, more examples (it trained on {train:,}), or larger ones (--size, --patch)."
    )


def chance_words(task: Mapping[str, Any]) -> str:
    """What has to be beaten, with its share."""
    known = task["chance"]
    if known["majority"] > UNEVEN * known["uniform"]:
        return f"what the commonest class alone gives ({share(known['majority'])})"
    return f"chance ({share(known['level'])})"


def _lead(task: dict[str, Any], best: str, tied: list[str], labels: dict[str, str], means: dict[str, float]) -> str:
    start = f"{_kind(task)}: {labels[best]} answers {share(means[best])} of the test examples"
    if not tied:
        return f"{start}, shown to be more than every other scheme."
    return f"{start}; no difference is shown to {join_words([f'{labels[n]} ({share(means[n])})' for n in tied])}."


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
        names = join_words([labels[name] for _, name in sorted(gains, reverse=True)])
        sentences.append(
            f"Saying where tokens are is worth at least {100 * low:.0f} points here for {names} "
            "(corrected interval, against no position)."
        )
    if unshown:
        sentences.append(f"No gain over no position is shown for {join_words(unshown)}.")
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
                f"Not trained for, {shift['name']}: from {share(scored[worst])} ({labels[worst]}) "
                f"to {share(scored[top])} ({labels[top]})."
            )
    return sentences


def _other(comparison: dict[str, Any], name: str) -> str:
    return str(comparison["a"] if comparison["b"] == name else comparison["b"])


def _kind(task: dict[str, Any]) -> str:
    return str(task["kind"]).capitalize()
