"""From trials to results: accuracies with their uncertainty, what each scheme looks like, and the best model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from locant.compare import (
    budget,
    checkpoint,
    finding,
    published,
    recommendation,
    search,
    sensitivity,
    source,
    statistics,
)
from locant.compare.candidate import Builder, Candidate
from locant.compare.looks import look
from locant.compare.metric import score_of_constant
from locant.compare.placement import grid_of
from locant.compare.power import power
from locant.compare.recommendation import shown_above
from locant.compare.schemes import Scheme
from locant.compare.settings import Settings
from locant.compare.sizes import DESIGNS, SIZES
from locant.compare.trial import Job, build, build_for
from locant.tasks import splits
from locant.tasks.kind import Recipe
from locant.tasks.kinds import KINDS
from locant.tasks.task import Examples, Task


def of_task(
    task: Task, chosen: Settings, schemes: tuple[Scheme, ...], trials: dict[str, dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """One task's part of results.json."""
    recipe, kind = chosen.recipes[task.kind], KINDS[task.kind]
    patch = kind.patch(task.train.shape, recipe.patch)
    parts = {
        "train": splits.share(task.train, recipe.share, chosen.seeds[0]),  # every seed's share is as large
        "validation": task.validation,
        "test": task.test,
    }
    # 1 scheme by scheme
    rows, answers = [], {}
    for scheme in schemes:
        row, answers[scheme.name] = _of_scheme(task, scheme, chosen, recipe, trials, folder)
        rows.append(row)
    # 2 what may be said: of each against chance, of each pair
    said = compare_schemes(rows, answers, _chance(task, recipe.metric))
    _keep_best(task, rows, folder)
    # 3 what the task is, and what the schemes have to do with each other
    results = {
        "kind": task.kind,
        "source": task.source,
        "question": task.question,
        "classes": list(task.classes),
        "class_counts": {name: _counts(part, task) for name, part in parts.items()},
        "sizes": {name: len(part) for name, part in parts.items()},
        "grid": list(grid_of(kind, task.train.shape, patch).shape),
        "tokens": grid_of(kind, task.train.shape, patch).tokens,
        "patch": list(patch),
        "metric": "accuracy" if recipe.metric is None else source.name_of(recipe.metric).rpartition(":")[2],
        "model": _of_model(task, chosen, schemes[0]),
        "weights": _of_weights(task, recipe, schemes),
        "fingerprint": task.fingerprint,
        "notes": list(task.notes),
        "skipped": [asdict(s) for s in task.skipped],
        "shifts": [
            {"name": s.name, "sentence": s.sentence, "grid": list((g := grid_of(kind, s.examples.shape, patch)).shape),
             "tokens": g.tokens}
            for s in task.shifts
        ],
        "budget": budget.of_task(task, recipe, chosen),
        "augmentation": list(recipe.augment or ()),
        "sensitivity": (
            sensitivity.of_task(task.kind, chosen.seeds[0], rows, trials, folder / "trials")
            if chosen.sensitivity else None
        ),
        "schemes": rows,
        **said,
    }  # fmt: skip
    return {**results, "finding": finding.of_task(results)}


def _of_model(task: Task, chosen: Settings, scheme: Scheme) -> dict[str, Any]:
    """Which model was compared, as the first scheme has it."""
    recipe = chosen.recipes[task.kind]
    model = build(Job(task.kind, scheme.name, chosen.seeds[0], 0.0), task, recipe)
    count, tokens = sum(p.numel() for p in model.net.parameters()), model.grid.tokens
    known = recipe.model in (*SIZES, *DESIGNS)
    name = recipe.model if known else source.name_of(recipe.model)
    what = f"the built-in transformer, {name}" if recipe.model in SIZES else f"a published design, {name}"
    what = what if known else f"your own, {name}"
    size = f"{count:,} parameters with {scheme.label} on {tokens} tokens"
    return {"name": name, "parameters": count, "tokens": tokens, "sentence": f"The model is {what}: {size}."}


def _of_weights(task: Task, recipe: Recipe, schemes: tuple[Scheme, ...]) -> dict[str, Any] | None:
    """What of a file each scheme's model starts with, and what not: schemes that start fresh had no fair chance."""
    if recipe.weights is None:
        return None
    models: dict[str, Any] = {s.name: build(Job(task.kind, s.name, 0, 0.0), task, recipe).net for s in schemes}
    return published.told({s.name: (s.label, models[s.name].carried) for s in schemes}, recipe)


def best(tasks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Where the best model of each task lies, and the lines that rebuild and load it. None is named of a task where no
    scheme is shown to be above chance."""
    tasks = [task for task in tasks if any(map(shown_above, task["schemes"]))]
    if not tasks:
        return None
    files = {task["kind"]: f"best-{task['kind']}.safetensors" for task in tasks}
    lines = ["from locant.compare import load", ""]
    lines += [f'{kind}, about = load("{file}")' for kind, file in files.items()]
    first = tasks[0]
    name, seed = _winner(first["schemes"])
    return {"task": first["kind"], "scheme": name, "seed": seed, "files": files, "file": files[first["kind"]],
            "snippet": "\n".join(lines)}  # fmt: skip


def load(path: str | Path, *, model: str | Path | Builder | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The model that a comparison saved, rebuilt and loaded, and what is known of it.

    Args:
        path: a `best-<task>.safetensors`, or one of `trials`.
        model: the builder, if its file lies elsewhere now or it never had one; None is the one of the run.

    Raises:
        Refusal: if it can't be read or built.
    """
    tensors, about = checkpoint.read(Path(path))
    if model is not None:
        about = {**about, "recipe": {**about["recipe"], "model": source.reference("model", model, "build")}}
    return _rebuild(tensors, about).net, about


def _rebuild(tensors: dict[str, Tensor], about: dict[str, Any]) -> Candidate:
    """The model of a trial with these weights; as it started, without any."""
    job, recipe = Job(**about["job"]), Recipe.of(about["recipe"])
    recipe = replace(recipe, weights=None) if tensors else recipe  # a file that it started from may be gone
    model = build_for(job, tuple(about["item"]), len(about["classes"]), recipe)
    if tensors:
        model.net.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    model.net.eval()
    return model


def compare_schemes(
    rows: list[dict[str, Any]], answers: dict[str, dict[str, np.ndarray]], chance: dict[str, float]
) -> dict[str, Any]:
    """The statistics of a task; what they say of a scheme alone is added to its row.

    `answers[scheme]["test"]`, and likewise of all that was not trained for: which example each seed got right.
    """
    test = {name: of["test"] for name, of in answers.items()}
    # 1 against chance
    above = statistics.above_chance(test, chance["level"])
    # 2 against each other on the test set, and on all that was not trained for, where a scheme that can't go is wrong
    far = {name: [right for part, right in of.items() if part != "test"] for name, of in answers.items()}
    reach = {name: np.stack(parts) for name, parts in far.items() if parts}
    for row in rows:
        row["above_chance"] = asdict(above[row["name"]])
        row["reach"] = asdict(statistics.interval_over(reach[row["name"]])) if reach else None
    pairs = [asdict(c) for c in statistics.compare(test)]
    # 3 what could have been shown of those that may yet be the best
    price = power(_near_best(rows, test, pairs), len(pairs)) if pairs else None
    return {
        "chance": chance,
        "comparisons": pairs,
        "reach": [asdict(c) for c in statistics.compare_over(reach)],
        "power": None if price is None else finding.of_power(price, next(iter(test.values())).shape),
    }


def _chance(task: Task, metric: str | None) -> dict[str, float]:
    """What answers score without a look at an example: each class alike, or always the commonest of training."""
    count = len(task.classes)
    common = int(np.bincount(np.asarray(task.train.labels), minlength=count).argmax())
    uniform, majority = (score_of_constant(metric, task.test, count, answer) for answer in (None, common))
    return {"uniform": uniform, "majority": majority, "level": max(uniform, majority)}


def _near_best(
    rows: list[dict[str, Any]], test: dict[str, np.ndarray], pairs: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """The answers of the best and of those not shown to be below it; where there are none, of the next in line."""
    ranked = sorted(rows, key=lambda row: -row["accuracy"]["mean"])
    below = set(recommendation.below(ranked[0]["name"], pairs))
    near = [row["name"] for row in ranked if row["name"] not in below]
    near = near if len(near) > 1 else [row["name"] for row in ranked[:2]]
    return {name: test[name] for name in near}


def _of_scheme(
    task: Task, scheme: Scheme, chosen: Settings, recipe: Recipe, trials: dict[str, dict[str, Any]], folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    first = chosen.seeds[0]
    sweep = [trials[job.key] for job in search.jobs(task.kind, scheme, recipe, first)]
    rate, start = search.best(sweep)
    jobs = [Job(task.kind, scheme.name, seed, rate, start) for seed in chosen.seeds]
    saved = [checkpoint.read(folder / "trials" / f"{job.key}.safetensors")[0] for job in jobs]
    model = _rebuild(saved[0], trials[jobs[0].key])
    right = _answers(saved, "test")
    answers = {"test": right}
    for shift in task.shifts:
        there = trials[jobs[0].key]["shifts"][shift.name]["why_not"] is None
        answers[shift.name] = _answers(saved, shift.name) if there else np.zeros_like(right)
    row = {
        "name": scheme.name,
        "label": scheme.label,
        "sentence": scheme.sentence,
        "beside": scheme.beside or None,
        "tells_direction": scheme.direction,
        "tells_time": scheme.time if KINDS[task.kind].timed else None,
        "learning_rate": rate,
        "start": search.start_of(scheme, recipe, start),
        "sweep": [
            {"learning_rate": tried["job"]["lr"], "start": tried["job"]["start"], "validation": tried["validation"]}
            for tried in sweep
        ],
        "trials": [_of_trial(trials[job.key]) for job in jobs],
        "accuracy": asdict(statistics.interval(right)),
        "shifts": {shift.name: _of_shift(shift.name, trials[jobs[0].key], saved) for shift in task.shifts},
        "parameters": {
            "total": sum(p.numel() for p in model.net.parameters()),
            "position": model.position_parameters(),
        },
        "flops": {"forward": model.flops()},
        "picture": look(model, _rebuild({}, trials[jobs[0].key])),
    }
    return row, answers


def _of_trial(about: dict[str, Any]) -> dict[str, Any]:
    kept = ("best_step", "best_epoch", "steps", "stopped", "validation", "test", "weights", "curve", "finite")
    return {
        "seed": about["job"]["seed"],
        "learning_rate": about["job"]["lr"],
        **{name: about[name] for name in kept},
        "shifts": {name: shift["accuracy"] for name, shift in about["shifts"].items()},
    }


def _of_shift(name: str, about: dict[str, Any], saved: list[dict[str, Tensor]]) -> dict[str, Any]:
    how = {key: about["shifts"][name][key] for key in ("how", "why_not")}
    if how["why_not"] is not None:
        return {"mean": None, "spread": None, "low": None, "high": None, **how}
    return {**asdict(statistics.interval(_answers(saved, name))), **how}


def _answers(saved: list[dict[str, Tensor]], name: str) -> np.ndarray:
    """Right or wrong, or the scores of a metric of the user's: [seeds, examples]."""
    tables = np.stack([tensors[f"correct.{name}"].numpy() for tensors in saved])
    return tables.astype(bool) if tables.dtype == np.uint8 else tables


def _counts(examples: Examples, task: Task) -> list[int]:
    return np.bincount(np.asarray(examples.labels), minlength=len(task.classes)).tolist()


def _winner(rows: list[dict[str, Any]]) -> tuple[str, int]:
    """The scheme that validates best on average, and its best seed: chosen without a look at the test."""
    row = max(rows, key=lambda r: float(np.mean([t["validation"] for t in r["trials"]])))
    trial = max(row["trials"], key=lambda t: t["validation"])
    return row["name"], trial["seed"]


def _keep_best(task: Task, rows: list[dict[str, Any]], folder: Path) -> None:
    if not any(map(shown_above, rows)):
        return
    name, seed = _winner(rows)
    row = next(row for row in rows if row["name"] == name)
    start = row["start"]["taken"] if row["start"] else None
    source = folder / "trials" / f"{Job(task.kind, name, seed, row['learning_rate'], start).key}.safetensors"
    checkpoint.write_bytes(folder / f"best-{task.kind}.safetensors", source.read_bytes())
