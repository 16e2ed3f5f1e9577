"""What a run says while it works: an estimate before, one line per trial under way, the time that remains."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from locant.compare.budget import count_steps
from locant.compare.schemes import Scheme
from locant.compare.settings import Settings
from locant.compare.trial import Job, build, load
from locant.tasks import splits
from locant.tasks.task import Task

Tell = Callable[[dict[str, Any]], None]
MEASURING = 15.0  # seconds per task for costs and report, roughly


def estimate(tasks: dict[str, Task], schemes: dict[str, tuple[Scheme, ...]], chosen: Settings) -> str:
    """A sentence on how long the whole will take, from two steps of every scheme."""
    seconds, trials = 0.0, 0
    for kind, task in tasks.items():
        recipe = chosen.recipes[kind]
        train = splits.share(task.train, recipe.share, chosen.seeds[0])
        index = torch.arange(min(recipe.batch, len(train))).numpy()
        steps = count_steps(recipe, len(train))
        count = len(recipe.lr) + len(chosen.seeds) - 1
        x, y = load(train, index, chosen.device)
        for scheme in schemes[kind]:
            model = build(Job(kind, scheme.name, 0, 0.0), task, recipe).net.to(chosen.device)
            for again in range(2):  # the first step warms up
                start = time.perf_counter()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                if again:
                    seconds += count * steps * (time.perf_counter() - start)
            trials += count
    workers = min(chosen.threads, trials) if chosen.device == "cpu" else 1
    whole = 1.2 * seconds / workers + MEASURING * len(tasks)
    return f"{trials} trials on {workers} worker{'s' * (workers > 1)}: about {spell_duration(whole)}"


def spell_duration(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


class Progress:
    """Live progress on standard error, by rich; silent when `quiet`. Every event also goes to `listener`."""

    def __init__(self, quiet: bool, listener: Tell | None) -> None:
        self.quiet, self.listener = quiet, listener
        self.lines: dict[str, Any] = {}
        self.done, self.count = 0, 0

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=self.quiet)
        self.live = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=self.console,
            disable=self.quiet, transient=True,
        )  # fmt: skip
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def announce(self, sentence: str) -> None:
        self.console.print(sentence)

    def say(self, sentence: str) -> None:
        if self.lines:
            self.live.update(self.lines["all"], said=sentence)

    def start(self, count: int) -> None:
        self.count = count
        self.lines["all"] = self.live.add_task("all trials", total=count, said="")

    def tell(self, event: dict[str, Any]) -> None:
        """A trial has looked at its validation data somewhere."""
        key = event["key"]
        if key not in self.lines:
            self.lines[key] = self.live.add_task(key, total=event["steps"], said="")
        said = f"step {event['step']}/{event['steps']} validation {event['validation']:.3f}"
        self.live.update(self.lines[key], completed=event["step"], total=event["steps"], said=said)
        under_way = sum(t.completed / (t.total or 1) for t in self.live.tasks if t.id != self.lines["all"])
        self.live.update(self.lines["all"], completed=self.done + under_way)
        if self.listener is not None:
            self.listener(event)

    def ended(self, key: str, about: dict[str, Any]) -> None:
        self.done += 1
        if key in self.lines:
            self.live.remove_task(self.lines.pop(key))
        self.live.update(self.lines["all"], completed=self.done, said=f"trial {self.done}/{self.count}")
        if not self.console.is_terminal:  # a log keeps one line per trial
            self.console.print(f"{self.done}/{self.count} {key} validation {about['validation']:.3f}")
