"""Which scheme to take, by a rule that is stated beforehand. Every step keeps all that are not shown to be worse: a
difference that is not shown decides nothing.

`docs/compare.md` prints `RULE`. What a clock says decides only where it was asked to (`prefer` speed or memory).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from locant.page.markup import join_words, share

Json = Mapping[str, Any]

PREFERENCES = {
    "reach": ("reach", "cost"),
    "accuracy": ("accuracy", "reach", "cost"),
    "speed": ("speed", "reach", "cost"),
    "memory": ("memory", "reach", "cost"),
}
RULE = (
    "Ruled out is a scheme that is not shown to be above chance; one that is shown to be below the best; and, where a "
    "scheme that tells directions (and, on clips, the order of frames) is shown to be above one that does not, every "
    "one that does not.",
    "Of the rest, each step keeps those that are not shown to be worse than its best. --prefer says which steps, in "
    "which order: reach (the default), then cost; accuracy, reach, cost; speed, reach, cost; memory, reach, cost.",
    "accuracy: who is shown to be above most others on the test set. reach: who is not shown to be below the best "
    "mean on what was not trained for. speed: whose time of a training step, lowest to highest, meets the fastest's. "
    "memory: whose peak memory of a training step is within 5 % of the least. cost: within 1 % of the least FLOPs, "
    "then the fewest parameters on position, then the first named.",
)
SAME_WORK, SAME_MEMORY = 1.01, 1.05
NEAR = 196  # tokens at which a price is most often asked for: 14 × 14


def of_task(task: Json, costs: Json, prefer: str) -> dict[str, Any]:
    """`recommendation` of one task, and beside it `why_none` where there is none.

    Args:
        task: its part of results.json, with `comparisons`, `reach` and schemes.
        costs: what was measured of it, scheme by scheme; may be empty.
        prefer: a key of `PREFERENCES`.
    """
    why = _why_none(task)
    if why is not None:
        return {"recommendation": None, "why_none": why}
    # 1 who is left, and why the others are not
    ruled_out = rule_out(task)
    out = {row["scheme"] for row in ruled_out}
    left = [s["name"] for s in task["schemes"] if s["name"] not in out]
    # 2 step by step, until one is left
    kept, decided = list(left), []
    for step in PREFERENCES[prefer]:
        fewer = STEPS[step](kept, task, costs)
        decided += [step] if len(fewer) < len(kept) else []
        kept = fewer
    chosen = {"scheme": kept[0], "prefer": prefer, "left": left, "decided_by": decided, "ruled_out": ruled_out}
    sentences = [_take(task, chosen, costs), _leave(task, chosen)]
    return {"recommendation": {**chosen, "sentences": sentences, "rule": " ".join(RULE)}, "why_none": None}


def told(task: Json, costs: Json) -> list[str]:
    """The two sentences with the price by the clock, or the one that says why there is none."""
    if not task.get("recommendation"):
        return [task["why_none"]] if task.get("why_none") else []
    take, leave = task["recommendation"]["sentences"]
    by_clock = price(task, costs)
    return [f"{take.removesuffix('.')}, {by_clock} (measured here)." if by_clock else take, leave]


def price(task: Json, costs: Json) -> str | None:
    """What the recommended scheme costs by the clock, beside the model without position, at the size nearest to 196
    tokens; None if that was not measured, or not while the machine was quiet: such a time is no price."""
    name = task["recommendation"]["scheme"]
    mine, bare = ({s["tokens"]: s for s in (costs.get(n) or {}).get("growth") or []} for n in (name, "none"))
    sizes = [t for t in mine if t in bare and mine[t].get("step_ms") and bare[t].get("step_ms")]
    if name == "none" or not sizes:
        return None
    tokens = min(sizes, key=lambda t: abs(math.log(t / NEAR)))
    if any(of[tokens].get("quiet") is False for of in (mine, bare)):
        return None
    more = round(100 * mine[tokens]["step_ms"] / bare[tokens]["step_ms"]) - 100
    return f"{'+' if more >= 0 else '−'}{abs(more)}\u00a0% of a training step at {tokens:,} tokens"


def rule_out(task: Json) -> list[dict[str, str]]:
    """Who is ruled out, and why, in the order of the run."""
    rows = task["schemes"]
    best = best_of(task)
    under = below(best, task["comparisons"])
    why: dict[str, list[str]] = {s["name"]: [] for s in rows}
    for s in rows:
        if s["name"] in under:
            why[s["name"]].append(f"below by at least {_points(under[s['name']])}")
        if not shown_above(s):
            why[s["name"]].append("not shown to be above chance")
    blind = {s["name"]: what for s in rows if (what := _blindness(s))}
    matters = any(
        (c["verdict"] == "higher" and c["b"] in blind and c["a"] not in blind)
        or (c["verdict"] == "lower" and c["a"] in blind and c["b"] not in blind)
        for c in task["comparisons"]
    )
    seeing = [name for name, reasons in why.items() if not reasons and name not in blind]
    if matters and seeing:
        for name, what in blind.items():
            if name != "none":
                why[name].append(what)
            elif not why[name]:
                why[name].append("it cannot tell where anything is, which is shown to matter")
    return [{"scheme": name, "why": ", ".join(reasons)} for name, reasons in why.items() if reasons]


def best_of(task: Json) -> str:
    """The scheme with the highest mean accuracy on the test set; of equals the first."""
    return str(max(task["schemes"], key=lambda s: s["accuracy"]["mean"])["name"])


def shown_above(scheme: Json) -> bool:
    """Whether it is shown to be above chance; where chance is not known, nothing speaks against it."""
    return (scheme.get("above_chance") or {}).get("shown") is not False


def below(best: str, comparisons: Sequence[Json]) -> dict[str, float]:
    """Who is shown to be below `best`, and by how much at least."""
    return {
        **{c["b"]: c["low"] for c in comparisons if c["a"] == best and c["verdict"] == "higher"},
        **{c["a"]: -c["high"] for c in comparisons if c["b"] == best and c["verdict"] == "lower"},
    }


def _why_none(task: Json) -> str | None:
    rows = task["schemes"]
    if not any(shown_above(s) for s in rows):
        return "No scheme is shown to be above chance, so none is recommended."
    if not task["comparisons"]:
        one_seed = len(rows) > 1
        why = "one seed ranks nothing. Try --seeds 3" if one_seed else "there was one scheme. Name more in --positions"
        return f"None is recommended: {why}."
    return None


def _blindness(scheme: Json) -> str:
    if scheme.get("tells_time") is False and scheme["name"] != "none":
        return "blind to the order of frames"
    return "" if scheme["tells_direction"] else "mirror-blind"


# --- steps: names in, fewer names out -----------------------------------------------------------------------------


def _by_accuracy(names: list[str], task: Json, costs: Json) -> list[str]:
    """Those that are shown to be above most of the other schemes."""
    wins = dict.fromkeys(names, 0)
    for c in task["comparisons"]:
        winner = {"higher": c["a"], "lower": c["b"]}.get(c["verdict"])
        if winner in wins:
            wins[winner] += 1
    return [name for name in names if wins[name] == max(wins.values())]


def _by_reach(names: list[str], task: Json, costs: Json) -> list[str]:
    """Those that are not shown to be below the best mean on what was not trained for."""
    means = {s["name"]: (s.get("reach") or {}).get("mean") for s in task["schemes"] if s["name"] in names}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if not known or not task.get("reach"):
        return names
    under = below(max(known, key=lambda name: known[name]), task["reach"])
    return [name for name in names if name not in under]


def _by_speed(names: list[str], task: Json, costs: Json) -> list[str]:
    """Those whose times of a step meet the fastest's; all, where not all were measured."""
    took = {name: (costs.get(name) or {}).get("step_ms") for name in names}
    known = {name: t for name, t in took.items() if t}
    if len(known) < len(names):
        return names
    fastest = min(known.values(), key=lambda t: t["median"])
    return [name for name in names if known[name]["low"] <= fastest["high"]]


def _by_memory(names: list[str], task: Json, costs: Json) -> list[str]:
    held = {name: (costs.get(name) or {}).get("step_bytes") for name in names}
    known = {name: b for name, b in held.items() if b is not None}
    if len(known) < len(names):
        return names
    return [name for name in names if known[name] <= SAME_MEMORY * min(known.values())]


def _by_cost(names: list[str], task: Json, costs: Json) -> list[str]:
    """One: counted work, then parameters on position, then the order of the run. Nothing of it is measured."""
    rows = {s["name"]: s for s in task["schemes"]}
    least = min(rows[name]["flops"]["forward"] for name in names)
    cheap = [name for name in names if rows[name]["flops"]["forward"] <= SAME_WORK * least]
    return [min(cheap, key=lambda name: rows[name]["parameters"]["position"])]


STEPS: dict[str, Callable[[list[str], Json, Json], list[str]]] = {
    "accuracy": _by_accuracy, "reach": _by_reach, "speed": _by_speed, "memory": _by_memory, "cost": _by_cost,
}  # fmt: skip


# --- sentences ---------------------------------------------------------------------------------------------------


def _take(task: Json, chosen: Json, costs: Json) -> str:
    rows = {s["name"]: s for s in task["schemes"]}
    row, best = rows[chosen["scheme"]], rows[best_of(task)]
    clauses = [
        _accuracy_clause(task, row, best),
        _reach_clause(task, row, chosen),
        *_measured_clauses(row, chosen, costs),
        _parameters_clause(row),
    ]
    beside = " (a design that differs by more than position)" if row.get("beside") else ""
    unfair = " with these weights, which are no fair start for all" if _unfair(task) else ""
    return f"Take {row['label']}{beside}{unfair}: {', '.join(clause for clause in clauses if clause)}."


def _unfair(task: Json) -> bool:
    """Whether schemes start from a file that holds what some of them learned and not what others would need."""
    return (task.get("weights") or {}).get("fair") is False


def _accuracy_clause(task: Json, row: Json, best: Json) -> str:
    mean = share(row["accuracy"]["mean"])
    if row["name"] != best["name"]:
        return f"{mean}, not shown to be below the best ({best['label']}, {share(best['accuracy']['mean'])})"
    if len(below(best["name"], task["comparisons"])) == len(task["schemes"]) - 1:
        return f"{mean}, shown to be above every other"
    return f"{mean}, and none is shown to be above it"


def _reach_clause(task: Json, row: Json, chosen: Json) -> str:
    shifts = [(shift["name"], (row["shifts"].get(shift["name"]) or {}).get("mean")) for shift in task["shifts"]]
    known = [f"{name} {share(mean)}" for name, mean in shifts if mean is not None]
    if not known or not task.get("reach"):
        return ""
    there = f"on what it was not trained for ({join_words(known)})"
    labels, means = ({s["name"]: s[key] for s in task["schemes"]} for key in ("label", "reach"))
    top = max(means, key=lambda name: means[name]["mean"])
    if row["name"] in below(top, task["reach"]):
        return f"but shown to be below {labels[top]} {there}"
    if len(chosen["left"]) > 1 and _by_reach(chosen["left"], task, {}) == [row["name"]]:
        return f"shown to be the best of those left {there}"
    return f"not shown to be below any {there}"


def _measured_clauses(row: Json, chosen: Json, costs: Json) -> list[str]:
    mine = costs.get(row["name"]) or {}
    if chosen["prefer"] == "speed" and mine.get("step_ms"):
        return [f"a training step in {mine['step_ms']['median']:.3g}\u00a0ms"]
    if chosen["prefer"] == "memory" and mine.get("step_bytes") is not None:
        return [f"{mine['step_bytes'] / 1e6:.3g}\u00a0MB at the peak of a training step"]
    return []


def _parameters_clause(row: Json) -> str:
    spent = row["parameters"]["position"]
    return f"{spent:,} parameters on position" if spent else "no parameters on position"


def _leave(task: Json, chosen: Json) -> str:
    labels = {s["name"]: s["label"] for s in task["schemes"]}
    because: dict[str, list[str]] = {}
    for row in chosen["ruled_out"]:
        because.setdefault(row["why"], []).append(labels[row["scheme"]])
    out = "; ".join(f"{join_words(names)} ({why})" for why, names in because.items())
    others = [labels[name] for name in chosen["left"] if name != chosen["scheme"]]
    still = f"{join_words(others)} {'is' if len(others) == 1 else 'are'} not ruled out" if others else ""
    if not out:
        return f"Nothing is ruled out: {still}." if still else "Nothing is ruled out."
    return f"Ruled out: {out}" + (f"; {still}." if still else ".")


def _points(least: float) -> str:
    """A least difference, never rounded up."""
    whole = math.floor(100 * least)
    if whole < 1:
        return f"{max(0.1, math.floor(1000 * least) / 10):.1f} points"
    return f"{whole} point{'s' * (whole != 1)}"
