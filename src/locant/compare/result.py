"""What a comparison found, as a value: numbers, a table, a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True)
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
        """The findings and a table per task, for a terminal (rich)."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = []
        for task in self.data["tasks"]:
            parts += [Text(), _table(task, self.data["measured"]["tasks"].get(task["kind"], {}))]
            parts += [Text(sentence) for sentence in task["finding"]]
        return Group(*parts)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(task['kind'])}</td><td>{escape(s['label'])}</td><td>{_accuracy(s['accuracy'])}</td></tr>"
            for task in self.data["tasks"]
            for s in task["schemes"]
        )
        return f"<table><tr><th>task</th><th>scheme</th><th>accuracy, %</th></tr>{rows}</table>"


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
    table.add_column("accuracy, %\n(95 % interval)", justify="right", no_wrap=True)
    for shift in task["shifts"]:
        table.add_column(escape(shift["name"].replace(" ", "\n", 1)), justify="right", min_width=6)
    table.add_column("step,\nms", justify="right", min_width=5)
    for s in task["schemes"]:
        cost = measured.get(s["name"])
        table.add_row(
            escape(s["label"]),
            _accuracy(s["accuracy"]),
            *(_share(s["shifts"].get(shift["name"], {}).get("mean")) for shift in task["shifts"]),
            f"{cost['step_ms']['median']:.1f}" if cost else "–",
        )
    return table


def _accuracy(accuracy: dict[str, Any]) -> str:
    if accuracy["low"] is None:
        return _share(accuracy["mean"])
    return f"{_share(accuracy['mean'])} ({100 * accuracy['low']:.0f} to {100 * accuracy['high']:.0f})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
