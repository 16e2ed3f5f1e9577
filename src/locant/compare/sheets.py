"""results.csv and trials.csv: results.json laid out in rows, for spreadsheets and data frames.

A row per scheme and a row per trial. Columns follow from what there is: every number and word of a row of results.json
bears its path there, `accuracy.mean`; what one row lacks is left empty in it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from locant.compare import checkpoint

Row = dict[str, Any]
LONG = {"curve", "picture", "trials", "sweep", "sentence", "learned"}  # what a cell can't hold, or no sheet needs


def write(results: dict[str, Any], folder: Path) -> None:
    """Write both files into the folder of a run."""
    for name, rows in (("results.csv", schemes(results)), ("trials.csv", trials(results))):
        checkpoint.write_bytes(folder / name, _csv(rows).encode())


def schemes(results: dict[str, Any]) -> list[Row]:
    """One row per task and scheme, with its times and memory at the trained size."""
    rows = []
    for task in results["tasks"]:
        measured = results["measured"]["tasks"].get(task["kind"], {})
        for scheme in task["schemes"]:
            cost = {name: value for name, value in measured.get(scheme["name"], {}).items() if name != "growth"}
            rows.append({"task": task["kind"], **_flat(scheme), **_flat(cost)})
    return rows


def trials(results: dict[str, Any]) -> list[Row]:
    """One row per trial: those whose tests count, and those of the search, whose test nobody looked at."""
    rows = []
    for task in results["tasks"]:
        for scheme in task["schemes"]:
            head = {"task": task["kind"], "scheme": scheme["name"]}
            taken = (scheme["learning_rate"], (scheme.get("start") or {}).get("taken"))
            rows += [{**head, "counts": True, "start": taken[1], **_flat(trial)} for trial in scheme["trials"]]
            searched = [tried for tried in scheme["sweep"] if (tried["learning_rate"], tried.get("start")) != taken]
            seed = scheme["trials"][0]["seed"]
            rows += [{**head, "counts": False, "seed": seed, **_flat(tried)} for tried in searched]
    return rows


def _flat(values: dict[str, Any]) -> Row:
    return dict(_cells("", values))


def _cells(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every number and word below a value, with its path; lists are left out, but for words, which are joined."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name not in LONG:
                yield from _cells(f"{path}.{name}" if path else name, one)
    elif isinstance(value, list):
        if all(isinstance(one, str) for one in value):
            yield path, " ".join(value)
    else:
        yield path, value


def _csv(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return out.getvalue()
