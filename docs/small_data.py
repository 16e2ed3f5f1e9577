"""Writes small-data.md: ConViT's claim at small data, on the digits. `python docs/small_data.py [folder of the runs]`.

Four runs of `locant compare`, one per share of the training set, which go on from where they were stopped. About a
quarter of an hour on one core; a page is then made of what they left.
"""

from __future__ import annotations

import math
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sheet import BLUE, GREEN, INK, ORANGE, SOFT, card, lines, words

from locant import compare
from locant.compare import checkpoint, statistics
from locant.compare.trial import Job

PAGE = Path(__file__).with_name("small-data.md")
SHARES = (0.05, 0.1, 0.3, 1.0)
PLAIN, OTHERS, SEEDS = "learned", ("gated", "convit"), 5
COLOURS = {PLAIN: BLUE, "gated": ORANGE, "convit": GREEN}


@dataclass(frozen=True)
class Pair:
    """A scheme against the plain one, on one share; the interval at the level that Holm gives it among all pairs."""

    share: float
    scheme: str
    difference: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> str:
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no difference shown"


def trained(folder: Path) -> dict[float, Any]:
    """The task's part of results.json, by share."""
    found = {}
    for share in SHARES:
        home = folder / said(share).replace(" %", "")
        if (home / "settings.toml").exists():
            result = compare.run(resume=home, quiet=True)
        else:
            result = compare.run(
                task="images", positions=(PLAIN, *OTHERS), seeds=SEEDS, share=share, sensitivity=False, threads=1,
                out=home, quiet=True,
            )  # fmt: skip
        found[share] = result.data["tasks"][0]
        print(f"{said(share)}: {result.folder}", file=sys.stderr, flush=True)
    return found


def answers(folder: Path, share: float, row: Any) -> np.ndarray:
    """Which test examples each seed got right."""
    trials = folder / said(share).replace(" %", "") / "trials"
    start = row["start"] and row["start"]["taken"]
    names = [Job("images", row["name"], seed, row["learning_rate"], start).key for seed in range(SEEDS)]
    saved = [checkpoint.read(trials / f"{name}.safetensors")[0]["correct.test"] for name in names]
    return np.stack([table.numpy().astype(bool) for table in saved])


def paired(folder: Path, tasks: dict[float, Any]) -> list[Pair]:
    """Every scheme against the plain one on every share, corrected for all of these together."""
    tables = {s: {row["name"]: answers(folder, s, row) for row in task["schemes"]} for s, task in tasks.items()}
    pairs = [(share, name) for share in tasks for name in OTHERS]
    p = np.array([statistics.difference(tables[s][name], tables[s][PLAIN])[2] for s, name in pairs])
    corrected, levels = statistics.holm(p)
    found = []
    for (share, name), one, level in zip(pairs, corrected, levels, strict=True):
        a, b = tables[share][name], tables[share][PLAIN]
        low, high, _ = statistics.difference(a, b, float(level))
        found.append(Pair(share, name, float(a.mean() - b.mean()), low, high, float(one)))
    return found


def said(share: float) -> str:
    return f"{100 * share:g} %"


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def accuracy(row: Any) -> str:
    known = row["accuracy"]
    return f"{100 * known['mean']:.1f} ± {100 * known['spread']:.1f}"


def table(tasks: dict[float, Any], pairs: list[Pair]) -> str:
    labels = [row["label"] for row in tasks[1.0]["schemes"]]
    rows = ["| share | examples | passes | " + " | ".join(f"{label}, %" for label in labels)]
    rows[0] += "".join(f" | {label} − {labels[0]}, points" for label in labels[1:]) + " |"
    rows.append("| --- " * rows[0].count(" | ") + "| --- |")
    for share, task in tasks.items():
        cells = [
            said(share),
            str(task["sizes"]["train"]),
            f"{task['budget']['epochs']:g}",
            *map(accuracy, task["schemes"]),
        ]
        for pair in (one for one in pairs if one.share == share):
            shown = "p < 0.001" if pair.p < 0.001 else f"p = {pair.p:.3f}"
            cells.append(f"{points(pair.difference)} ({points(pair.low)} to {points(pair.high)}), {shown}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def outcome(tasks: dict[float, Any], pairs: list[Pair]) -> str:
    """What may be said, in words."""
    labels = {row["name"]: row["label"] for row in tasks[1.0]["schemes"]}
    parts = []
    for name in OTHERS:
        own = [pair for pair in pairs if pair.scheme == name]
        by = {kind: [said(p.share) for p in own if p.verdict == kind] for kind in ("higher", "lower")}
        small = [pair.verdict for pair in own if pair.share <= 0.1]
        lead = (
            "is borne out here" if "higher" in small and "lower" not in small
            else "is not borne out here: the difference goes the other way" if "lower" in small
            else "is not shown here"
        )  # fmt: skip
        listed = [f"{kind} at {', '.join(shares)}" for kind, shares in by.items() if shares]
        open_ = [said(p.share) for p in own if p.verdict == "no difference shown"]
        where = f"at {', '.join(open_)}" if len(open_) < len(own) else "at any share"
        listed += [f"not shown to differ {where}"] if open_ else []
        first, last = own[0], own[-1]
        text = (
            f"**{labels[name][0].upper()}{labels[name][1:]}: the claim {lead}.** Against {labels[PLAIN]} it is "
            f"{'; '.join(listed)} of the training set. The gap goes from {points(first.difference)} points at "
            f"{said(first.share)} to {points(last.difference)} at {said(last.share)}."
        )
        ahead = {pair.difference > 0 for pair in own}
        if len(open_) == len(own) and len(ahead) == 1:
            text += f" On average it is {'ahead' if ahead == {True} else 'behind'} at every share, which may be luck."
        parts.append(textwrap.fill(text, 120))
    return "\n\n".join(parts)


def drawn(tasks: dict[float, Any]) -> Figure:
    """Accuracy over the number of training examples: mean, 95 % interval, and every seed as a dash."""
    fig = card(3.6)
    ax = fig.subplots()
    count = 1 + len(OTHERS)
    final = [row["accuracy"]["mean"] for row in tasks[1.0]["schemes"]]
    for place, name in enumerate((PLAIN, *OTHERS)):
        rows = [next(row for row in task["schemes"] if row["name"] == name) for task in tasks.values()]
        at = [task["sizes"]["train"] * 1.05 ** (place - (count - 1) / 2) for task in tasks.values()]
        means = [100 * row["accuracy"]["mean"] for row in rows]
        ends = [[100 * abs(row["accuracy"][e] - row["accuracy"]["mean"]) for row in rows] for e in ("low", "high")]
        colour = COLOURS[name]
        ax.errorbar(at, means, yerr=ends, color=colour, linewidth=1.6, marker="o", markersize=4, capsize=3, zorder=3)
        for x, row in zip(at, rows, strict=True):
            ax.plot([x] * SEEDS, [100 * trial["test"] for trial in row["trials"]], "_", color=colour, alpha=0.5)
        height = 100 * max(final) - 4.5 * sorted(final, reverse=True).index(rows[-1]["accuracy"]["mean"])
        ax.text(1.15 * tasks[1.0]["sizes"]["train"], height, rows[-1]["label"], color=colour, fontsize=9, weight="bold")
    sizes = [task["sizes"]["train"] for task in tasks.values()]
    ax.set_xscale("log")
    ax.set_xlim(sizes[0] * 0.85, sizes[-1] * 2.2)
    lowest = min(trial["test"] for task in tasks.values() for row in task["schemes"] for trial in row["trials"])
    lines(ax, tuple(range(10 * math.floor(10 * lowest), 101, 10)))
    ax.set_xticks(sizes, [f"{said(share)}\n{size}" for share, size in zip(tasks, sizes, strict=True)], color=INK)
    ax.set_xticks([], minor=True)
    words(ax, "Digits answered rightly, %", "share of the training set, examples; bars: 95 % intervals, dashes: seeds")
    ax.yaxis.label.set_color(SOFT)
    return fig


TEXT = """# ConViT's claim at small data, on the digits

ConViT says: attention that starts as a convolution learns from less data. On 5 % of ImageNet it answers 47.8 % where
plain attention with learned positions (DeiT-S) answers 34.8 %; on all of it 81.4 to 79.9 (arXiv 2103.10697, table 2).
Here is the same question on scikit-learn's digits, with the small transformer of [`locant compare`](compare.md).
Against `learned`, plain attention with a learned vector per place, stand two forms of GPSA:

- `gated`: the gate in every layer, started local, and nothing else that says where a token is;
- `convit`: a gated layer whose values start as the tokens, then a plain one, and the learned vectors besides.

{outcome}

{table}

<img src="small-data.svg" width="720" alt="Accuracy over the share of the training set, for each scheme">

## How to read it

- Each seed draws its own share of the {whole} training examples, each digit alike. All schemes get the same draw in the
  same order, and the same start for what they share. {seeds} seeds; ± is their standard deviation.
- Differences are paired over seeds and the {test} test examples. Their intervals and p are corrected (Holm) for the
  {pairs} comparisons of the table together; see [what may be said](compare.md#what-may-be-said).
- Every share is trained for as many steps, at most {steps}: a smaller one is passed over more often. The learning rate
  and the start (by the first seed, as many tries for each scheme) and the step whose weights are kept are chosen on
  {validation} validation examples, which do not shrink with the share: for all schemes alike.

## What it does not say

- These are not ConViT-S and DeiT-S. The models have two layers of four heads and answer by the mean over tokens, the
  pictures 4 × 4 patches. Four heads start at the corners of a 2 × 2 neighbourhood, between patches; ConViT-S has nine
  heads on 3 × 3 of 14 × 14 patches in ten layers of twelve, and a class token.
- A digit of 4 × 4 patches has little that is local and the same everywhere: a stroke at the top means something else
  than one at the bottom. A gate knows offsets alone; a learned vector knows the place.
- Other data, sizes and budgets may go another way. `locant compare DATA --positions
  learned,gated,convit --share 0.05` asks your own.

## Again

`python docs/small_data.py` makes this page. It runs, for each line of the table,

```sh
{commands}
```
"""


def page(folder: Path, tasks: dict[float, Any]) -> str:
    pairs = paired(folder, tasks)
    names = ",".join((PLAIN, *OTHERS))
    return TEXT.format(
        outcome=outcome(tasks, pairs),
        table=table(tasks, pairs),
        seeds=SEEDS,
        pairs=len(pairs),
        commands="\n".join(
            f"locant compare --task images --positions {names} --seeds {SEEDS} --share {share:g} --no-sensitivity"
            for share in SHARES
        ),
        steps=tasks[1.0]["budget"]["steps"],
        whole=f"{tasks[1.0]['sizes']['train']:,}",
        **{name: tasks[1.0]["sizes"][name] for name in ("validation", "test")},
    )


def main(folder: Path) -> None:
    tasks = trained(folder)
    PAGE.write_text(page(folder, tasks), encoding="utf-8")
    matplotlib.use("agg")
    with matplotlib.rc_context({"svg.hashsalt": "locant", "font.family": "DejaVu Sans", "axes.facecolor": "none"}):
        fig = drawn(tasks)
        fig.savefig(PAGE.with_suffix(".svg"), metadata={"Date": None})
        plt.close(fig)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs") / "small-data")
