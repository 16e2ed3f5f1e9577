"""How long a run will take, before it starts: from a few steps of every scheme, as the workers will take them.

On a CPU it is the processor's time that counts, which others on the machine do not stretch: what is told is how long
the run takes on a quiet one, and how much longer where it is not quiet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from locant.compare import budget, search
from locant.compare.schemes import Scheme
from locant.compare.settings import Settings
from locant.compare.trial import EVALUATED, Job, build, load
from locant.compare.world import autocast
from locant.tasks import splits
from locant.tasks.task import Refusal, Task

SAMPLES = 3  # steps that are timed, of which the fastest counts: the others met what else the machine was doing
ENOUGH = 1.0  # seconds after which no further one is timed
BUSY = 1.5  # times the processor's time: from here on the machine is called busy
BESIDE = 1.25  # a step takes this much longer beside other workers, by the memory that they share
MEASURING = 15.0  # seconds per task for costs and report, roughly
STARTING = 4.0  # seconds until workers stand
FEWEST = 20  # steps: below that nothing is learned, and nothing said


@dataclass(frozen=True)
class Forecast:
    """Seconds of training, if every trial uses its whole budget, and of all else; trials, how many side by side, and
    how many times as long what was timed took as on a quiet machine."""

    training: float
    other: float
    trials: int
    workers: int
    busy: float = 1.0

    @property
    def sentence(self) -> str:
        """What is printed before the start."""
        side_by_side = f"{self.workers} worker{'s' * (self.workers > 1)}"
        whole = spell_duration(self.training + self.other)
        told = f"{self.trials} trials on {side_by_side}: about {whole}, less where validation comes to a plateau early"
        return told if self.busy < BUSY else f"{told}; up to {self.busy:.0f} times as long while others use the machine"


def predict(
    tasks: dict[str, Task], schemes: dict[str, tuple[Scheme, ...]], chosen: Settings, processes: int = 1
) -> Forecast:
    """Time a few steps and looks at validation of every scheme. `processes` train each trial together."""
    seconds, trials, clock = 0.0, 0, Clock(chosen.device)
    for kind, task in tasks.items():
        for scheme in schemes[kind]:
            count = search.count(scheme, chosen.recipes[kind], chosen)
            seconds += count * _seconds_of_trial(kind, scheme, task, chosen, clock)
            trials += count
    in_turn = processes > 1 or chosen.device != "cpu" or chosen.lives_here
    workers = 1 if in_turn else min(chosen.threads, trials)
    beside = BESIDE if workers * processes > 1 else 1.0
    return Forecast(
        beside * seconds / (workers * processes), STARTING + MEASURING * len(tasks), trials, workers, clock.busy
    )


def cut(chosen: Settings, forecast: Forecast) -> Settings:
    """The settings with every budget cut by one factor, so that the run takes about `minutes`.

    Raises:
        Refusal: if too little would be left to learn anything.
    """
    assert chosen.minutes is not None
    budgets = [recipe.steps for recipe in chosen.recipes.values() if recipe.steps is not None]
    factor = (60 * chosen.minutes - forecast.other) / forecast.training
    if factor >= 1:
        return replace(chosen, cut=True)
    if min(budgets) * factor < FEWEST:
        enough = math.ceil((forecast.other + forecast.training * FEWEST / min(budgets)) / 60)
        raise Refusal(
            f"minutes needs enough for {FEWEST} steps in each of {forecast.trials} trials; {chosen.minutes:g} leave "
            f"{max(0, int(min(budgets) * factor))}. Write --minutes {enough}, or take fewer --positions or --seeds."
        )
    recipes = {k: replace(r, steps=r.steps and int(r.steps * factor)) for k, r in chosen.recipes.items()}
    return replace(chosen, recipes=recipes, cut=True)


def _seconds_of_trial(kind: str, scheme: Scheme, task: Task, chosen: Settings, clock: Clock) -> float:
    """Of a trial that uses its whole budget: steps, looks at validation, and the test with what was not trained for."""
    recipe = chosen.recipes[kind]
    train = splits.share(task.train, recipe.share, chosen.seeds[0])
    model = build(Job(kind, scheme.name, 0, 0.0), task, recipe).net.to(chosen.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step() -> None:
        x, y = load(train, np.arange(min(recipe.batch, len(train))), chosen.device)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        loss.item()  # waits for a device

    @torch.no_grad()
    def look() -> None:
        x, _ = load(task.validation, np.arange(min(EVALUATED, len(task.validation))), chosen.device)
        model(x).sum().item()

    alone = chosen.device != "cpu" or chosen.lives_here
    with _threads(None if alone else 1), autocast(chosen.device, recipe.autocast):
        per_step, per_look = clock.fastest(step), clock.fastest(look) / min(EVALUATED, len(task.validation))
    steps = budget.count_steps(recipe, len(train))
    looks = steps / budget.steps_between_checks(steps)
    tested = len(task.test) * (1 + len(task.shifts))
    return steps * per_step + per_look * (looks * len(task.validation) + tested)


class Clock:
    """Times calls, and knows how much of the time the processor was there for them."""

    def __init__(self, device: str) -> None:
        self.now = time.thread_time if device == "cpu" else time.perf_counter
        self.counted, self.passed = 0.0, 0.0

    def fastest(self, call: Callable[[], None]) -> float:
        """Seconds of the fastest of a few calls, after one that warms up."""
        call()
        times: list[float] = []
        while len(times) < SAMPLES and sum(times) < ENOUGH:
            began, start = time.perf_counter(), self.now()
            call()
            times.append(self.now() - start)
            self.passed += time.perf_counter() - began
        self.counted += sum(times)
        return min(times)

    @property
    def busy(self) -> float:
        """Seconds that passed, over those that counted."""
        return self.passed / self.counted if self.counted > 0 else 1.0


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """As many threads as a worker has."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


def spell_duration(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
