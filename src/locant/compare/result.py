"""What a comparison found, as a value: numbers, a table, a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from locant.compare import recommendation
from locant.compare.glance import chance

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


WIDTH = 100  # columns of what `print` shows


@dataclass(frozen=True, repr=False)
class Result:
    """`data` is results.json; everything that a clock or an allocator said stands under `data["measured"]`."""

    data: dict[str, Any]
    folder: Path

    @property
    def report(self) -> Path:
        """The page with charts and pictures."""
        return self.folder / "report.html"

    def json(self) -> str:
        return json.dumps(self.data, indent=1)

    def table(self) -> Group:
        """For a terminal, by rich or `print`: per task the recommendation, a table, and the finding."""
        from rich.text import Text

        parts: list[Any] = []
        for task in self.data["tasks"]:
            costs = self.data["measured"]["tasks"].get(task["kind"], {})
            learned = any(map(recommendation.shown_above, task["schemes"]))
            first = recommendation.told(task, costs) if learned else task["finding"]
            last = [*task["finding"], *([task["power"]["sentence"]] if task.get("power") else [])] if learned else []
            if not all(cost["step_ms"].get("quiet", True) for cost in costs.values()):
                last.append("* The machine was not quiet while these times were taken: read them with care.")
            taken = [Text(sentence, style="bold") for sentence in first]
            parts += [Text(), *taken, *([Text()] if taken else []), _table(task, costs), *map(Text, last)]
        return _printable(parts)

    def __repr__(self) -> str:
        return f"{self.table()}\nReport: {self.report}"

    def _repr_html_(self) -> str:
        from locant.compare import report

        return report.excerpt(self.data, _address(self.report))


def _printable(parts: list[Any]) -> Group:
    from io import StringIO

    from rich.console import Console, Group

    class Printable(Group):
        """A group whose text is what it shows."""

        def __str__(self) -> str:
            console = Console(file=StringIO(), width=WIDTH, color_system=None)
            with console.capture() as shown:
                console.print(self)
            return "\n".join(line.rstrip() for line in shown.get().splitlines())

        __repr__ = __str__

    return Printable(*parts)


def _address(path: Path) -> str:
    """Where a browser finds a file: from here, if it lies below; a notebook's server shows nothing else."""
    whole = path.absolute()
    below = whole.is_relative_to(Path.cwd())
    return quote(whole.relative_to(Path.cwd()).as_posix()) if below else whole.as_uri()


def _table(task: dict[str, Any], measured: dict[str, Any]) -> Table:
    """What fits a terminal of 80 columns; the report has the rest."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    size = " × ".join(map(str, task["grid"]))
    about = f"{task['source']}, {size} tokens"
    title = f"{task['kind'].capitalize()}: {escape(task['question'])}\n[dim]{escape(about)}[/dim]"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("scheme")
    table.add_column(f"{escape(task.get('metric', 'accuracy'))}, %\n(95 % interval)", justify="right", no_wrap=True)
    for shift in task["shifts"]:
        table.add_column(escape(shift["name"].replace(" ", "\n", 1)), justify="right", min_width=6)
    table.add_column("step,\nms", justify="right", min_width=5)
    for s in task["schemes"]:
        cost = measured.get(s["name"])
        table.add_row(
            escape(s["label"]),
            _accuracy(s["accuracy"]) + ("" if recommendation.shown_above(s) else " †"),
            *(_share(s["shifts"].get(shift["name"], {}).get("mean")) for shift in task["shifts"]),
            _time(cost["step_ms"]) if cost else "–",
        )
    for name, level in chance(task):
        table.add_row(f"[dim]{name}[/dim]", f"[dim]{_share(level)}[/dim]")
    if not all(map(recommendation.shown_above, task["schemes"])):
        table.caption, table.caption_justify = "† not shown to be above chance", "left"
    return table


def _time(taken: dict[str, Any]) -> str:
    return f"{taken['median']:.1f}" + ("" if taken.get("quiet", True) else " *")


def _accuracy(accuracy: dict[str, Any]) -> str:
    if accuracy["low"] is None:
        return _share(accuracy["mean"])
    return f"{_share(accuracy['mean'])} ({100 * accuracy['low']:.0f} to {100 * accuracy['high']:.0f})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
