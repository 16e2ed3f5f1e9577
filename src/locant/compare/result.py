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
            parts += [Text(f"  {sentence}") for sentence in task["finding"]]
        return Group(*parts)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(task['kind'])}</td><td>{escape(s['label'])}</td><td>{_accuracy(s['accuracy'])}</td></tr>"
            for task in self.data["tasks"]
            for s in task["schemes"]
        )
        return f"<table><tr><th>task</th><th>scheme</th><th>accuracy</th></tr>{rows}</table>"


def _table(task: dict[str, Any], measured: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    size = "×".join(map(str, task["grid"]))
    table = Table(
        title=f"{task['kind']}: {escape(task['question'])} [dim]({escape(task['source'])}, {size} tokens)[/dim]",
        title_justify="left",
    )
    table.add_column("scheme")
    table.add_column("accuracy", justify="right")
    for shift in task["shifts"]:
        table.add_column(escape(shift["name"]), justify="right")
    for name in ("position\nparameters", "forward\nMFLOP", "step\nms", "step\nMB"):
        table.add_column(name, justify="right")
    for s in task["schemes"]:
        cost = measured.get(s["name"], {})
        bytes_ = cost.get("step_bytes")
        table.add_row(
            escape(s["label"]),
            _accuracy(s["accuracy"]),
            *(_share(s["shifts"].get(shift["name"], {}).get("mean")) for shift in task["shifts"]),
            f"{s['parameters']['position']:,}",
            f"{s['flops']['forward'] / 1e6:.2f}",
            f"{cost['step_ms']['median']:.1f}" if cost else "",
            "" if bytes_ is None else f"{bytes_ / 1e6:.1f}",
        )
    return table


def _accuracy(accuracy: dict[str, Any]) -> str:
    if accuracy["low"] is None:
        return _share(accuracy["mean"])
    return f"{_share(accuracy['mean'])} ({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
