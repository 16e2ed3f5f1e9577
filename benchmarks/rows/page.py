"""How rows are shown: a line each while they come, a page of the docs in the end. Reads JSON alone."""

from __future__ import annotations

from typing import Any

HEAD = """# Performance

Written by `python benchmarks/attention.py --read RUN.json ... --write docs/performance.md`; not edited by hand.

Each figure is the median of ratios over rounds, quartiles in brackets: in a round every contender is timed once, in
turn, in one process. Of several runs, apart in time, the figure is that of the middle one, and the brackets hold the
quartiles of all. A sample counts only if a small matrix product just before and just after it ran at full speed;
figures of a machine that was not quiet bear a star. A contender is timed after its results were compared: ours with the
dense definition in float64, the others with ours. All calls go through the public verbs and allocate what they return.
Operands are as the other contenders left the caches, mostly cold. q, k and v lie in memory as a projection leaves them,
token by token; "heads apart" means that each head is contiguous. N is the number of tokens, d channels per head.
Targets were set for two threads. Why one is not met on this machine, by profile, and what was tried:
[LOG.md](../LOG.md).

What a user gains is the share of a model's time that is attention with position in it, and it differs by machine.
Windows gain most, whole models of few windows least. On an AMD EPYC with AVX-512 (torch 2.14, commit 99e6202) a whole
forward pass of swin_tiny, batch 8, was 1.11 times as fast as timm's on one thread and 1.05 on two, where the Xeon below
has 1.49 and 1.43; BEiT-B 1.01, its training step 1.08. `locant bench` measures your problem on your machine.

"""


def combined(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs on as many threads of one processor as one: of each row the middle figure, and the quartiles of all."""
    found = []
    for place in dict.fromkeys(map(_place, runs)):
        alike = [run for run in runs if _place(run) == place]
        rows: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        for run in alike:
            works = [(row["family"], row["work"]) for row in run["rows"]]
            for i, row in enumerate(run["rows"]):
                rows.setdefault((*works[i], works[:i].count(works[i])), []).append(row)
        failed = [name for run in alike for name in run["failed"]]
        middle = [_middle(same) for same in rows.values()]
        found.append({**alike[-1], "rows": middle, "failed": failed, "runs": len(alike)})
    return found


def _place(run: dict[str, Any]) -> tuple[int, str]:
    return run["threads"], run.get("machine", {}).get("processor", "")


def _middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    middle = sorted(rows, key=lambda row: row["value"])[(len(rows) - 1) // 2]
    lows, highs = ([row[end] for row in rows if row[end] is not None] for end in ("low", "high"))
    quiet = all(row["quiet"] for row in rows)
    return {**middle, "low": min(lows, default=None), "high": max(highs, default=None), "quiet": quiet}


def value(row: dict[str, Any]) -> str:
    digits = 1 if row["unit"] == "%" or row["value"] >= 20 else 2
    star = "" if row["quiet"] else " *"
    unit = "" if row["unit"] == "×" else f" {row['unit']}"
    if row["low"] is None:
        return f"{row['value']:.{digits}f}{unit}{star}"
    return f"{row['value']:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f}){unit}{star}"


def target(row: dict[str, Any]) -> str:
    if row["target"] is None:
        return ""
    return f"{'≤' if row['most'] else '≥'} {row['target']:g}"


def verdict(row: dict[str, Any]) -> str:
    return {None: "", True: "met", False: "not met"}[row["met"]]


def plain(row: dict[str, Any]) -> str:
    aims = f"{target(row)} {verdict(row)}".strip()
    times = ", ".join(f"{name} {ms:.4g} ms" for name, ms in row["ms"].items())
    return f"{row['work']} | {row['against']} | {value(row)} | {aims} | {times} {row['note']}".rstrip(" |")


def markdown(runs: list[dict[str, Any]], page: str = "") -> str:
    """The page of these runs. What `page` shows of other processors, or other numbers of threads, stands as it is."""
    parts = [HEAD, *_kept(runs, page)]
    for run in runs:
        machine = run.get("machine", {})
        parts.append(_heading(run))
        parts.append(
            f"{machine.get('processor')}, {machine.get('instructions')}, {machine.get('cores')} cores; "
            f"torch {machine.get('torch')}, timm {machine.get('timm')}, Python {machine.get('python')}; "
            f"commit {machine.get('commit')}, {machine.get('date')}; runs: {run.get('runs', 1)}.\n\n"
        )
        parts.append("| work | against | ratio | target | |\n| --- | --- | --- | --- | --- |\n")
        for row in run["rows"]:
            note = f" ({row['note']})" if row["note"] else ""
            cells = (row["work"], row["against"] + note, value(row), target(row), verdict(row))
            parts.append(f"| {' | '.join(cells)} |\n")
        if run["failed"]:
            parts.append(f"\nRED, without figures: {', '.join(run['failed'])}.\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def _heading(run: dict[str, Any]) -> str:
    threads, processor = _place(run)
    return f"## {threads} thread{'s' * (threads > 1)}{', ' * bool(processor)}{processor}\n\n"


def _kept(runs: list[dict[str, Any]], page: str) -> list[str]:
    sections = [f"## {section.strip()}\n\n" for section in page.split("\n## ")[1:]]
    return [section for section in sections if not any(section.startswith(_heading(run)) for run in runs)]
