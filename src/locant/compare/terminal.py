"""What a run says while it works: one line per trial under way, the time that remains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Tell = Callable[[dict[str, Any]], None]


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
        self.console.print(sentence, soft_wrap=True)  # a path stays one word, to be copied

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

    def expect(self, count: int) -> None:
        """Another number of trials than was thought."""
        self.count = count
        self.live.update(self.lines["all"], total=count)

    def ended(self, key: str, about: dict[str, Any]) -> None:
        self.done += 1
        if key in self.lines:
            self.live.remove_task(self.lines.pop(key))
        self.live.update(self.lines["all"], completed=self.done, said=f"trial {self.done}/{self.count}")
        if not self.console.is_terminal:  # a log keeps one line per trial
            self.console.print(f"{self.done}/{self.count} {key} validation {about['validation']:.3f}")
