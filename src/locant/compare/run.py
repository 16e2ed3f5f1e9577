"""The whole comparison: trials, statistics, costs, pictures, report. Killed at any time, it goes on from there."""

from __future__ import annotations

import json
import platform
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from locant import __version__
from locant.compare import (
    checkpoint,
    finding,
    forecast,
    measure,
    recommendation,
    report,
    search,
    sensitivity,
    settings,
    sheets,
    source,
    summary,
)
from locant.compare import folder as home
from locant.compare.builders import check
from locant.compare.opening import open_tasks, settle, with_shifts
from locant.compare.placement import Placement
from locant.compare.result import Result
from locant.compare.schemes import SCHEMES, Scheme, find
from locant.compare.settings import Settings
from locant.compare.terminal import Progress
from locant.compare.trial import Job, build, train
from locant.compare.worker import Pool
from locant.compare.world import World, autocast
from locant.flags import KEPT
from locant.measuring import machine
from locant.tasks.kinds import KINDS
from locant.tasks.task import Refusal, Task

Tell = Callable[[dict[str, Any]], None]
Data = Dataset[Any] | DataLoader[Any] | Sequence[Any] | tuple[Any, ...]


def run(
    data: str | Path | Data | None = None,
    *,
    task: str | Sequence[str] | None = None,
    axes: str | None = None,
    positions: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    lr: float | Sequence[float] | None = None,
    starts: int | None = None,
    sensitivity: bool | None = None,
    augment: str | Sequence[str] | None = None,
    batch: int | None = None,
    share: float | None = None,
    recipe: str | Path | Callable[[nn.Module, float, int], Any] | None = None,
    metric: str | Path | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    autocast: str | None = None,
    model: str | Path | Callable[[Placement], nn.Module] | None = None,
    weights: str | Path | None = None,
    freeze: bool | None = None,
    dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    size: int | tuple[int, ...] | None = None,
    patch: int | tuple[int, ...] | None = None,
    frames: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    add_seeds: int | Sequence[int] | None = None,
    quick: bool = False,
    strict: bool = False,
    prefer: str | None = None,
    config: str | Path | None = None,
    quiet: bool = False,
    progress: Tell | None = None,
) -> Result:
    """Train the same small transformer with each position scheme, and say what may be said of the differences.

    Args:
        data: a folder of class folders of images or clips, or an .npz with `x` and `y`; or a torch Dataset of (x, y),
            a DataLoader, arrays (x, y), or (train, test) or (train, validation, test) of data sets or loaders
            (`locant.compare.datasets`); None is the built-in digits.
        task: "images", "clips", "sequences", or several; guessed from `data`.
        axes: what the axes of `x` are after the first, such as "CTHW"; by their sizes, where these leave one way.
        positions: schemes by name; default those of the task's kind (`locant.tasks.kinds`).
        seeds: a count, or the seeds themselves. One seed gives no ranking.
        steps, lr, starts, augment, batch, dim, depth, heads, size, patch, frames: the recipe, the same for every
            scheme. The rate (of those in `lr`), the start of what schemes learn (of `starts`) and the step whose
            weights are kept are chosen on validation data. `steps` follows from the number of examples unless it is
            given; so does `augment` from what can't change the labels of the task.
        model: "small" or "base", the built-in transformer, which grows with the data; a published design such as
            "vit_tiny" or "swin_tiny"; or a builder of your own, a
            function that is handed a `locant.compare.Placement` and returns a model, or the file that holds it:
            "my_vit.py:build". A function that no file holds trains in this process, one trial after the other.
        recipe: your own optimiser and schedule: a function that is called with (model, lr, steps) and returns an
            optimizer, or an optimizer and a schedule (`locant.compare.optimizer`).
        metric: your own score: a function of outputs [batch, classes] and labels [batch] that gives each example a
            score from 0 to 1, higher is better (`locant.compare.metric`).
        autocast: "bfloat16" or "off"; default bfloat16 on an accelerator that has it.
        epochs: the budget as passes over the training examples, in place of `steps`.
        minutes: about how long the run may take: the steps are cut equally for all schemes.
        sensitivity: whether to try half and double the start and the rate; default from five seeds on.
        share: part of the training examples that each seed draws for itself, the same for every scheme; 1 is all.
        device, threads: where; on a CPU, `threads` trials run side by side with one thread each.
        out: folder for results; default `runs/<time>`. It must be new.
        resume: the folder of a run to go on with. All its settings are read from there; beside it may stand
            `threads`, `prefer` and `sensitivity`, and objects that no file can hold. It ends with the same weights as
            a run in one go.
        add_seeds: with `resume`: so many seeds more, or the seeds themselves.
        quick: one seed, few schemes, few steps: a first look.
        strict: refuse a data folder with unusable files instead of listing them.
        prefer: "reach", "accuracy", "speed" or "memory": what the recommendation looks at first; default reach.
        config: a TOML file with these names; arguments win over it.
        quiet: no live progress.
        progress: called with a dictionary whenever a trial looks at its validation data: `key` of the trial, `step` of
            `steps`, `epoch` (passes, a fraction), `loss` since the last look, `validation`.

    Raises:
        Refusal: a ValueError with one sentence, for data, settings or folders that can't be used.
    """
    arguments = locals()
    given = {name: arguments[name] for name in KEPT}
    return _compare(given, config, out, resume, add_seeds, quiet, progress)


def _compare(
    given: dict[str, Any],
    config: str | Path | None,
    out: str | Path | None,
    resume: str | Path | None,
    add_seeds: int | Sequence[int] | None,
    quiet: bool,
    progress: Tell | None,
) -> Result:
    """What `run` does, in three passes."""
    started = time.monotonic()
    source.refuse_nested()
    # 1 what is compared; what does not fit is said before anything is written
    if resume is not None:
        chosen = home.read_again(resume, given, out, config, add_seeds)
    elif add_seeds is None:
        chosen = settings.resolve(given, config)
    else:
        raise Refusal("--add-seeds needs --resume; it came alone. Write --resume FOLDER --add-seeds 3, or --seeds.")
    world = World.join(chosen.device)
    folder = Path(world.agree(str(resume or out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"))))
    tasks = open_tasks(chosen)
    home.refuse_other_data(chosen, {kind: task.fingerprint for kind, task in tasks.items()}, resume, config)
    chosen = settle(chosen, tasks)
    tasks = with_shifts(tasks, chosen)
    schemes = {kind: _schemes(kind, chosen, several=len(tasks) > 1) for kind in tasks}
    for kind, opened in tasks.items():
        for scheme in schemes[kind]:
            check(build(Job(kind, scheme.name, 0, 0.0), opened, chosen.recipes[kind]))
    if chosen.minutes and not chosen.cut:
        chosen = _cut(chosen, forecast.predict(tasks, schemes, chosen, world.size) if world.leads else None, world)
    chosen = settings.complete(chosen, tasks, {kind: tuple(s.name for s in some) for kind, some in schemes.items()})
    # 2 the folder, new or gone on with
    if world.leads:
        home.open_folder(folder, chosen, bool(resume))
    world.wait()
    # 3 trials, statistics, costs and what is written of them; whoever stops it is told how to go on
    try:
        with Progress(quiet or not world.leads, progress) as shown:
            if world.leads and not quiet:
                shown.announce(f"{folder}: the folder of this run")
                shown.announce(forecast.predict(tasks, schemes, chosen, world.size).sentence)
            return _run(tasks, schemes, chosen, folder, world, shown, started)
    except KeyboardInterrupt as stop:
        stop.add_note(f"go on with: {home.command(folder)}")
        raise


def _run(
    tasks: dict[str, Task],
    schemes: dict[str, tuple[Scheme, ...]],
    chosen: Settings,
    folder: Path,
    world: World,
    shown: Progress,
    started: float,
) -> Result:
    """Everything after the folder is open: trials, results.json, and what is made of it alone."""
    trials = _train_all(tasks, schemes, chosen, folder, world, shown)
    if not world.leads:
        world.wait()
        return Result(json.loads((folder / "results.json").read_text()), folder)
    results = _assemble(tasks, schemes, chosen, trials, folder, shown)
    results["measured"]["seconds"] = time.monotonic() - started
    written = json.dumps(results, indent=1)
    checkpoint.write_bytes(folder / "results.json", written.encode())
    results = json.loads(written)  # what is returned is what was written
    report.write(results, folder / "report.html")
    sheets.write(results, folder)
    world.wait()
    return Result(results, folder)


def _cut(chosen: Settings, expected: forecast.Forecast | None, world: World) -> Settings:
    """The settings cut to `minutes`: as the leading process finds its machine."""
    cut = forecast.cut(chosen, expected) if expected is not None else chosen
    steps = json.loads(world.agree(json.dumps({kind: recipe.steps for kind, recipe in cut.recipes.items()})))
    return replace(chosen, cut=True, recipes={k: replace(r, steps=steps[k]) for k, r in chosen.recipes.items()})


def _schemes(kind: str, chosen: Settings, several: bool) -> tuple[Scheme, ...]:
    """The schemes of a task. Of several tasks, each takes those that fit it; one alone refuses those that don't."""
    asked = chosen.asked(kind)
    usual = KINDS[kind].quick_schemes if chosen.quick else KINDS[kind].schemes
    names = usual if asked is None else asked
    if several:
        elsewhere = {scheme.name for scheme in SCHEMES if not scheme.fits(KINDS[kind])}
        names = tuple(name for name in names if name not in elsewhere)
    if not names:
        raise Refusal(
            f"{kind} need a scheme that fits them; got {asked}. Name one more, or leave {kind} out of --task."
        )
    try:
        return find(kind, names)
    except ValueError as error:
        raise Refusal(str(error)) from None


def _train_all(
    tasks: dict[str, Task],
    schemes: dict[str, tuple[Scheme, ...]],
    chosen: Settings,
    folder: Path,
    world: World,
    shown: Progress,
) -> dict[str, dict[str, Any]]:
    """Every trial, by key. The first seed tries rates and starts; the other seeds take what validates best."""
    # 1 the first seed's trials wait; when a scheme's rate and start are known, the other seeds join them, and what
    #   is varied to see whether the order hangs on them
    first, *others = chosen.seeds
    searched = {
        (kind, scheme.name): search.jobs(kind, scheme, chosen.recipes[kind], first)
        for kind in tasks
        for scheme in schemes[kind]
    }
    waiting = deque(job for jobs in searched.values() for job in jobs)
    known = {job.key for job in waiting}
    shown.start(len(known) + len(searched) * len(others))
    trials: dict[str, dict[str, Any]] = {}

    def ended(about: dict[str, Any]) -> None:
        job = Job(**about["job"])
        trials[job.key] = about
        shown.ended(job.key, about)
        tried = [trials.get(one.key) for one in searched.get((job.kind, job.scheme), ())]
        if tried and all(t is not None for t in tried):
            del searched[job.kind, job.scheme]
            taken = Job(job.kind, job.scheme, first, *search.best([t for t in tried if t is not None]))
            varied = sensitivity.variations(taken) if chosen.sensitivity else ()
            joining = [*(replace(taken, seed=seed) for seed in others), *(one.job for one in varied)]
            waiting.extend(one for one in joining if one.key not in known)
            known.update(one.key for one in joining)
            shown.expect(len(known) + len(searched) * len(others))

    # 2 on a GPU, under torchrun, or with Python that no file holds: one after the other
    if world.size > 1 or world.device != "cpu" or chosen.lives_here:
        while waiting:
            job = waiting.popleft()
            ended(train(job, tasks[job.kind], chosen.recipes[job.kind], folder / "trials", world, shown.tell))
        return trials
    # 3 on a CPU: side by side in worker processes
    fingerprints = {kind: task.fingerprint for kind, task in tasks.items()}
    pool = Pool(min(chosen.threads, len(waiting)), chosen, folder / "trials", fingerprints)
    try:
        while len(trials) < len(known):
            while waiting and pool.idle:
                pool.submit(asdict(waiting.popleft()))
            ended(pool.wait(shown.tell))
    finally:
        pool.close()
    return trials


def _assemble(
    tasks: dict[str, Task],
    schemes: dict[str, tuple[Scheme, ...]],
    chosen: Settings,
    trials: dict[str, dict[str, Any]],
    folder: Path,
    shown: Progress,
) -> dict[str, Any]:
    """results.json: what was found, and in a block of its own what was measured."""
    results, costs = [], {}
    for kind, task in tasks.items():
        results.append(summary.of_task(task, chosen, schemes[kind], trials, folder))
        shown.say(f"measuring the cost of {kind}")
        names = tuple(scheme.name for scheme in schemes[kind])
        with autocast(chosen.device, chosen.recipes[kind].autocast):
            costs[kind] = measure.measure(kind, task, chosen.recipes[kind], names, chosen.device)
        results[-1] |= recommendation.of_task(results[-1], costs[kind], chosen.prefer)
    return {
        "format": 1,
        "finding": finding.of_all(results),
        "limits": list(finding.LIMITS),
        "settings": {name: value for name, value in chosen.flags().items() if name != "threads"},
        "versions": {
            "locant": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "tasks": results,
        "best": summary.best(results),
        "measured": {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.summary(),
            "threads": chosen.threads,
            "tasks": costs,
        },
    }
