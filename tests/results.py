"""Results of a comparison that never ran: what the report's tests draw."""

from __future__ import annotations

from typing import Any

import numpy as np

from locant.compare import finding, recommendation
from locant.compare.statistics import interval
from locant.compare.summary import compare_schemes

KINDS = {"none": "none", "learned": "embedding", "relative": "bias", "rotary": "rotation", "gated": "gate"}
TRUTH = {"none": 0.79, "learned": 0.972, "relative": 0.968, "alibi": 0.93, "gated": 0.95, "space": 0.66}


def make_results(
    tasks: dict[str, tuple[str, ...]] | None = None,
    seeds: int = 3,
    layers: int = 2,
    heads: int = 2,
    examples: int = 120,
    truth: float | None = None,
) -> dict[str, Any]:
    """Plausible results: `tasks` maps a kind to the names of its schemes; `truth`, if given, is what all can."""
    tasks = tasks or {"images": ("none", "learned", "relative", "alibi"), "clips": ("none", "space", "relative")}
    rng = np.random.default_rng(7)
    made = [_task(rng, kind, names, seeds, layers, heads, examples, truth) for kind, names in tasks.items()]
    measured = {kind: {name: _cost(rng, i) for i, name in enumerate(names)} for kind, names in tasks.items()}
    if truth is not None:
        for task in made:
            task["finding"] = finding.of_task(task)
    for task in made:
        task |= recommendation.of_task(task, measured[task["kind"]], "reach")
    return {
        "format": 1,
        "finding": [task["finding"][0] for task in made] if truth is not None else [
            "On these images every scheme that can tell a direction beats no position by at least 14 points.",
            "Among the schemes that can, no difference is shown: choose by cost and by what must be extrapolated.",
        ],
        "limits": ["A model of 80,000 parameters says little about one of 80 million.", "One kind of data was tried."],
        "settings": {"task": list(tasks), "seeds": list(range(seeds)), "quick": False, "images": {"batch": 64}},
        "versions": {"locant": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.6"},
        "tasks": made,
        "best": None if all(task["recommendation"] is None for task in made) else {
            "task": "images", "scheme": "learned", "seed": 1, "file": "best.safetensors",
            "snippet": "import locant.compare\n\nmodel = locant.compare.load('best.safetensors')",
        },
        "measured": {"seconds": 271.4, "created": "2026-11-20T12:00:00Z", "machine": "a machine, 2 cores", "threads": 2,
                     "tasks": measured},
    }  # fmt: skip


def _task(
    rng: np.random.Generator, kind: str, names: tuple[str, ...], seeds: int, layers: int, heads: int, examples: int,
    truth: float | None,
) -> dict[str, Any]:  # fmt: skip
    grid = {"images": [4, 4], "clips": [4, 4, 4], "sequences": [64]}[kind]
    hard = 0.7 * rng.standard_normal(examples)
    correct = {}
    for name in names:
        level = TRUTH.get(name, 0.96) if truth is None else truth
        lift = np.quantile(rng.standard_normal(20_000), level) + 0.06 * rng.standard_normal((seeds, 1))
        correct[name] = lift + hard + 0.7 * rng.standard_normal((seeds, examples)) > 0
    classes = [str(i) for i in range(10)]
    if kind == "clips":
        classes = [f"{i} {way}" for i in range(5) for way in ("left", "right")]
    shifts = {"images": ["larger canvas", "off centre"], "clips": ["longer clips"], "sequences": ["longer"]}[kind]
    rows = [_scheme(rng, name, kind, grid, correct[name], shifts, layers, heads) for name in names]
    far = {
        name: {shift: right & (rng.random(right.shape) < 0.9) for shift in shifts} for name, right in correct.items()
    }
    answers = {name: {"test": right, **far[name]} for name, right in correct.items()}
    return {
        "kind": kind, "source": "scikit-learn digits (1,797 scanned digits)",
        "question": {"images": "Which digit is it?", "clips": "Which digit moves, and in which direction?"}.get(
            kind, "Which digit was scanned, row by row?"),
        "classes": classes, "class_counts": {"train": [126] * 10, "validation": [18] * 10, "test": [36] * 10},
        "sizes": {"train": 1257, "validation": 180, "test": examples}, "grid": grid, "tokens": int(np.prod(grid)),
        "patch": [2, 2] if kind != "sequences" else [1], "fingerprint": "9f2c" * 16,
        "notes": ["The split is stratified by class, and no scan stands in two parts."], "skipped": [],
        "finding": [f"On these {kind} no position is clearly below every scheme that can tell a direction."],
        "shifts": [{"name": name, "sentence": f"The same test set with {name}", "grid": [2 * n for n in grid],
                    "tokens": int(np.prod([2 * n for n in grid]))} for name in shifts],
        "schemes": rows, **compare_schemes(rows, answers, {"uniform": 0.1, "majority": 0.1, "level": 0.1}),
    }  # fmt: skip


def _scheme(
    rng: np.random.Generator, name: str, kind: str, grid: list[int], correct: np.ndarray, shifts: list[str],
    layers: int, heads: int,
) -> dict[str, Any]:  # fmt: skip
    accuracy = vars(interval(correct))
    fall = {"none": 0.02, "learned": 0.3, "relative": 0.12}.get(name, 0.08)
    moved = {}
    for shift in shifts:
        moved[shift] = {
            "mean": accuracy["mean"] - fall, "spread": accuracy["spread"],
            "low": None if accuracy["low"] is None else accuracy["low"] - fall,
            "high": None if accuracy["high"] is None else accuracy["high"] - fall,
            "how": "table resized (linear)" if name == "learned" else "its own reach", "why_not": None,
        }  # fmt: skip
    if name == "gated":
        moved[shifts[-1]] = {"mean": None, "how": None, "why_not": "its map is defined on the trained grid alone"}
    curve = 1 - np.exp(-np.arange(1, 31) / 6)
    trials = [
        {"seed": s, "learning_rate": 0.003, "best_epoch": 28, "validation": float(row.mean()),
         "test": float(row.mean()), "weights": "ab" * 32, "shifts": {shift: float(row.mean()) for shift in shifts},
         "curve": [{"epoch": e + 1, "loss": float(2.3 * (1 - c)),
                    "validation": float(np.clip(row.mean() * c + 0.015 * rng.standard_normal(), 0, 1))}
                   for e, c in enumerate(curve)]}
        for s, row in enumerate(correct)
    ]  # fmt: skip
    position = {"none": 0, "learned": 768, "relative": 588, "gated": 32}.get(name, 0)
    return {
        "name": name, "label": {"none": "no position", "relative": "relative table", "alibi": "ALiBi"}.get(name, name),
        "sentence": {"none": "nothing says where a token is", "relative": "a learned bias per head and offset (Swin)",
                     "alibi": "a fixed penalty for distance"}.get(name, "a vector per place, added to the tokens"),
        "tells_direction": name not in ("none", "alibi"),
        "tells_time": None if kind != "clips" else name not in ("none", "space"),
        "learning_rate": 0.003, "sweep": [{"learning_rate": 0.003, "validation": 0.95}],
        "trials": trials, "accuracy": accuracy, "shifts": moved,
        "parameters": {"total": 58_000 + position, "position": position}, "flops": {"forward": 1_843_200 + position},
        "picture": _picture(rng, name, grid, layers, heads),
    }  # fmt: skip


def _picture(rng: np.random.Generator, name: str, grid: list[int], layers: int, heads: int) -> dict[str, Any]:
    kind = KINDS.get(name, "bias")
    if kind == "none":
        return {
            "kind": "none",
            "what": "Nothing in this model depends on where a token is.",
            "grid": grid,
            "layers": [],
        }
    at = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, len(grid))
    offset = (at[:, None] - at[None]) / np.array(grid)
    drawn = []
    for layer in range(1 if kind == "embedding" else layers):
        maps = []
        for _ in range(1 if kind == "embedding" else heads):
            pull, wide = rng.standard_normal(len(grid)), 1 + 5 * rng.random()
            value = 1.5 * np.exp(-wide * ((offset - 0.4 * np.tanh(pull)) ** 2).sum(-1) * 3) - 0.5
            if kind == "gate":
                value = np.exp(3 * value) / np.exp(3 * value).sum(-1, keepdims=True)
            maps.append(value.round(4).tolist())
        changed = None if name in ("alibi", "rotary") else [(0.1 * np.array(m)).round(4).tolist() for m in maps]
        drawn.append({"layer": layer + 1, "heads": maps, "changed": changed})
    what = {"bias": "The bias that each head adds to the logit of a key, seen from the chosen query."}
    alike = None if name in ("alibi", "rotary") else 0.98
    return {"kind": kind, "what": what.get(kind, "How alike a key and the chosen query are."), "grid": grid,
            "query": [n // 2 for n in grid], "layers": drawn, "alike": alike}  # fmt: skip


def _cost(rng: np.random.Generator, index: int) -> dict[str, Any]:
    growth: list[dict[str, Any]] = []
    for tokens in (16, 64, 256, 1024, 4096):
        slower = (1 + 0.2 * index) * (0.02 * tokens + 4e-5 * tokens**2)
        if tokens == 4096 and index % 3 == 2:
            growth.append({"tokens": tokens, "stopped": "stopped: a step would hold 2.1 GB of scores"})
            continue
        growth.append({"tokens": tokens, "forward_ms": slower, "step_ms": 2.9 * slower, "stopped": None,
                       "forward_bytes": 9_000 * tokens + 16 * index * tokens**2,
                       "step_bytes": 30_000 * tokens + 50 * index * tokens**2})  # fmt: skip
    took = 3 + index + rng.random()
    return {"forward_ms": {"median": took, "low": 0.9 * took, "high": 1.3 * took, "quiet": True},
            "step_ms": {"median": 3 * took, "low": 2.8 * took, "high": 3.6 * took, "quiet": True},
            "forward_bytes": 4_200_000, "step_bytes": 17_300_000, "growth": growth}  # fmt: skip
