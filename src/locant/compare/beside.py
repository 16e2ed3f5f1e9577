"""Two finished runs beside each other: what differed between them, and what that did to each scheme.

Where the data are the same (fingerprints) and seeds are shared, differences are paired over seeds and test examples, as
those of schemes within a run are. Elsewhere accuracies stand side by side and no difference is claimed.
"""

from __future__ import annotations

import html
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from locant.compare import checkpoint, statistics
from locant.compare.trial import Job
from locant.tasks.task import Refusal

if TYPE_CHECKING:
    from rich.console import Group

Json = dict[str, Any]


@dataclass(frozen=True)
class Beside:
    """`data` holds `runs`, `settings` and `versions` that differ, `tasks` with a row per scheme, and `sentences`."""

    data: Json

    def json(self) -> str:
        return json.dumps(self.data, indent=1)

    def table(self) -> Group:
        """What differed, a table per task, and the sentences, for a terminal (rich)."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        first, second = (run["folder"] for run in self.data["runs"])
        parts: list[Any] = [Text(f"A: {first}\nB: {second}")]
        changed = Table(
            title="What differed", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
        )
        for column in ("", "A", "B"):
            changed.add_column(column)
        for row in self.data["settings"] + self.data["versions"]:
            changed.add_row(row["name"], *(escape(_spell(value)) for value in row["values"]))
        parts += [changed] if changed.rows else []
        for task in self.data["tasks"]:
            over = f", differences over {len(task['seeds'])} seeds in common" if task["paired"] else ""
            title = task["kind"].capitalize() + over
            table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
            table.add_column("scheme")
            for column in ("A, %", "B, %", "B - A, points"):
                table.add_column(column, justify="right", no_wrap=True)
            for row in task["schemes"]:
                table.add_row(escape(row["label"]), *map(_percent, row["accuracy"]), _apart(row))
            parts += [table]
        return Group(*parts, *map(Text, self.data["sentences"]))

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get().rstrip()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def lay_beside(first: str | Path, second: str | Path) -> Beside:
    """Two finished runs by their folders, the first as A, the second as B.

    Raises:
        Refusal: a folder without the results of a run, or one folder twice.
    """
    folders = (Path(first), Path(second))
    a, b = map(_read, folders)
    if folders[0].resolve() == folders[1].resolve():
        raise Refusal(f"two runs are laid beside each other; {str(first)!r} came twice. Name another folder.")
    settings = [_known(results["settings"]) for results in (a, b)]
    versions = [results["versions"] for results in (a, b)]
    known = {task["kind"]: task for task in b["tasks"]}
    pairs = [(task, known[task["kind"]]) for task in a["tasks"] if task["kind"] in known]
    if not pairs:
        kinds = [", ".join(task["kind"] for task in results["tasks"]) for results in (a, b)]
        raise Refusal(f"two runs need a task in common; these have {kinds[0]}, and {kinds[1]}. Name another folder.")
    tasks = [_of_task(one, other, folders) for one, other in pairs]
    data: Json = {
        "format": 1,
        "runs": [{"folder": str(folder)} for folder in folders],
        "settings": _different(*settings),
        "versions": _different(*versions),
        "tasks": tasks,
    }
    return Beside({**data, "sentences": _sentences(data)})


def _read(folder: Path) -> Json:
    try:
        return dict(json.loads((folder / "results.json").read_text()))
    except (OSError, ValueError):
        begun = (folder / "settings.toml").is_file()
        way = f"Finish it: locant compare --resume {shlex.quote(str(folder))}" if begun else "Name the folder of a run"
        raise Refusal(
            f"--beside needs two finished runs; {str(folder)!r} has no results.json that can be read. {way}."
        ) from None


def _known(settings: Json) -> Json:
    """Settings by dotted names, as a config file has them."""
    flat: Json = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _different(a: Json, b: Json) -> list[Json]:
    names = list(dict.fromkeys([*a, *b]))
    return [{"name": name, "values": [a.get(name), b.get(name)]} for name in names if a.get(name) != b.get(name)]


def _of_task(a: Json, b: Json, folders: tuple[Path, Path]) -> Json:
    """The schemes of both, and how far those that both have are apart."""
    # 1 whether there is something to pair
    mine, others = ({row["name"]: row for row in task["schemes"]} for task in (a, b))
    seeds = [seed for seed in _seeds(a) if seed in _seeds(b)]
    why = None
    if a["fingerprint"] != b["fingerprint"]:
        why = "the data or their split differ"
    elif len(seeds) < 2:
        why = f"{len(seeds) or 'no'} seed{'s' * (not seeds)} in common, and one says nothing of another"
    shared = [name for name in mine if name in others] if why is None else []
    # 2 differences, corrected for the number of schemes
    tables = {name: [_answers(task["kind"], row[name], seeds, folder) for task, row, folder in
                     zip((a, b), (mine, others), folders, strict=True)] for name in shared}  # fmt: skip
    p = np.array([statistics.difference(second, first)[2] for first, second in tables.values()])
    corrected, levels = statistics.holm(p) if shared else (p, p)
    apart: Json = {}
    for (name, (first, second)), one, level in zip(tables.items(), corrected, levels, strict=True):
        low, high, _ = statistics.difference(second, first, float(level))
        verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
        apart[name] = {"difference": float(second.mean() - first.mean()), "low": low, "high": high,
                       "p_holm": float(one), "verdict": verdict}  # fmt: skip
    # 3 a row for each scheme of either
    rows = [
        {
            "scheme": name, "label": (mine.get(name) or others[name])["label"],
            "accuracy": [rows[name]["accuracy"]["mean"] if name in rows else None for rows in (mine, others)],
            "same_weights": _same_weights(mine.get(name), others.get(name)), **apart.get(name, {}),
        }
        for name in dict.fromkeys([*mine, *others])
    ]  # fmt: skip
    return {"kind": a["kind"], "paired": why is None, "why_not": why, "seeds": seeds, "schemes": rows}


def _seeds(task: Json) -> list[int]:
    return [trial["seed"] for trial in task["schemes"][0]["trials"]]


def _answers(kind: str, row: Json, seeds: list[int], folder: Path) -> np.ndarray:
    """Which test examples each seed got right, `bool [seeds, examples]`."""
    start = (row.get("start") or {}).get("taken")
    keys = [Job(kind, row["name"], seed, row["learning_rate"], start).key for seed in seeds]
    saved = [checkpoint.read(folder / "trials" / f"{key}.safetensors")[0]["correct.test"] for key in keys]
    return np.stack([table.numpy().astype(bool) for table in saved])


def _same_weights(a: Json | None, b: Json | None) -> list[int]:
    """How many seeds of both have the same weights to the last bit, and how many seeds both have."""
    mine, others = ({t["seed"]: t["weights"] for t in row["trials"]} if row else {} for row in (a, b))
    shared = [seed for seed in mine if seed in others]
    return [sum(mine[seed] == others[seed] for seed in shared), len(shared)]


def _sentences(data: Json) -> list[str]:
    said = [] if data["settings"] else ["All settings are the same."]
    for task in data["tasks"]:
        kind = task["kind"].capitalize()
        equal, count = (sum(row["same_weights"][i] for row in task["schemes"]) for i in (0, 1))
        if equal:
            said.append(f"{kind}: {equal} of {count} trials in common have the same weights, to the last bit.")
        if not task["paired"]:
            said.append(f"{kind}: {task['why_not']}, so no difference is claimed.")
            continue
        found = [row for row in task["schemes"] if row.get("verdict") in ("higher", "lower")]
        for row in found:
            low, high = sorted((abs(row["low"]), abs(row["high"])))
            said.append(
                f"{kind}: {row['label']} is {row['verdict']} in B, by {100 * low:.1f} to {100 * high:.1f} points "
                f"(corrected for {sum('verdict' in r for r in task['schemes'])} schemes, {len(task['seeds'])} seeds)."
            )
        silent = [row["label"] for row in task["schemes"] if row.get("verdict") == "no difference shown"]
        if silent:
            said.append(f"{kind}: no difference is shown for {', '.join(silent)}.")
    return said


def _spell(value: Any) -> str:
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _apart(row: Json) -> str:
    if "difference" not in row:
        return "–"
    return f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
