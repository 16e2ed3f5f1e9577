"""docs/gpu.md, launches and costs from what benchmarks/gpu.py measured on a device."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UNMEASURED = ", and were not measured on a device yet"  # in the first lines of launches.py
# what is compared, on which shapes, and the ratio (theirs / ours) that must be met, and the one that is hoped for; a
# name that ends in / is the fastest of torch's backends
PLANES, SMALL = ("28²", "64²"), ("7×7 windows", "7×7 windows, shifted", "7×7 windows, stage 2", "8×8 windows")
LARGE, MODELS = ("12×12 windows", "8×7×7 windows"), ("timm swin_tiny, batch 128", "transformers Swin tiny, batch 128")
GOALS: tuple[tuple[str, str, str, tuple[str, ...], float, float | None], ...] = (
    ("forward vs flex_attention with the same table", "triton forward", "flex forward", PLANES, 1.15, 1.3),
    ("forward vs torch's, the bias expanded before", "triton forward", "expanded/ forward", PLANES, 1.0, 1.15),
    ("forward vs torch's without position", "triton forward", "none/ forward", PLANES, 0.8, 0.95),
    ("training vs flex_attention with the same table", "triton train", "flex train", PLANES, 1.5, 3.0),
    ("training vs torch's, the bias expanded and learned", "triton train", "learned/ train", ("14²",), 1.3, 3.0),
    ("training vs torch's, the bias expanded and learned", "triton train", "learned/ train", PLANES, 2.0, 3.0),
    ("training vs torch's without position", "triton train", "none/ train", PLANES, 0.45, 0.6),
    ("windows vs rolling and masking", "triton forward", "roll forward", SMALL[:1], 2.5, 5.0),
    ("shifted windows vs rolling and masking", "triton forward", "roll forward", SMALL[1:], 3.0, 5.0),
    ("windows, training, vs rolling and masking", "triton train", "roll train", SMALL, 2.0, 3.0),
    ("windows vs torch's without position on cut windows", "triton forward", "none/ forward", SMALL, 1.0, 1.5),
    ("large windows, training, vs torch's", "triton train", "sdpa train", LARGE, 1.5, 2.5),
    ("a model, forward, vs the same without Locant", "ours forward", "plain forward", MODELS, 1.25, None),
    ("a model, training, vs the same without Locant", "ours train", "plain train", MODELS, 1.2, None),
)  # fmt: skip
COPIED = (0.6, 0.8)  # share of the rate of a copy that windows must reach, and may hope for
HELD = 64  # MiB that training 4,096 tokens may hold


def page(results: dict[str, Any]) -> str:
    """The page of one card: goals, exactness, bits, memory, ablations. A stage that is not there is left out."""
    card, after = _rows(results, "card")[0], "".join(r["clocks"] for r in _rows(results, "after"))
    errors = [f"| {r['family']} | {r['dtype']} | {_errors(r)} |" for r in _rows(results, "exactness")]
    lines = [
        "# On GPUs", "",
        f"Measured on {card['name']}, torch {card['torch']}, Triton {card['triton']}, commit {card['commit']}, by",
        "`benchmarks/gpu.py`.", "",
        f"- It copies {card['copy TB/s']:.2f} TB/s, computes {card['product TF/s']:.0f} TFLOP/s and takes "
        f"{card['exp T/s']:.2f} T exponentials a second.",
        f"- Clocks, temperature, driver: {card['clocks']}; behind all stages {after or 'not told'}.",
        f"- Absent: {', '.join(card['absent']) or 'nobody'}.",
        *(f"- {told}" for told in _verdicts(results)), "",
        "| goal | shape | must | hoped | measured | |", "| --- | --- | --- | --- | --- | --- |", *_goal_rows(results),
        "",
        "Ratios are those of CUDA graphs; a call that could not be captured is timed as it is.", "",
        "| family | dtype | largest error / what is allowed |", "| --- | --- | --- |", *errors, "",
        "| ablation | way | milliseconds | predicted | |", "| --- | --- | --- | --- | --- |",
        *_ablation_rows(results), "",
        *(f"- {stage}: {row['said']}." for stage, found in results.items() for row in found if "said" in row),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _rows(results: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    return [row for row in results.get(stage, []) if "said" not in row]


def _verdicts(results: dict[str, Any]) -> Iterator[str]:
    """One sentence each."""
    for r in _rows(results, "tf32x3"):
        yield f"float32 by three products in tf32: {r['verdict']}."
    for r in _rows(results, "random_problems")[-1:]:
        yield f"{r['done']:,} random problems: {len(r['red'])} not exact, {len(r['failed'])} failed."
    for r in _rows(results, "bits"):
        yield f"{r['family']}: {r['repeats']} repeats, {'the same bits' if r['equal'] else 'NOT the same bits'}."
    for r in _rows(results, "nan"):
        yield f'cuDNN\'s backward gives NaN: {r["cuDNN"]}; kernel="sdpa" there: {r["kernel sdpa"]}.'
    for r in _rows(results, "memory_held"):
        held = "needs a device" if r["bytes"] is None else f"{r['bytes'] / 2**20:.1f} MiB"
        yield f"Training {r['tokens']:,} tokens holds beside tensors of q's size: {held} (at most {HELD} MiB at 4,096)."
    for r in _rows(results, "whole_models"):
        kernels = f"run by {', '.join(r['kernels'])}, outputs {r['apart']:.1e} apart" if "kernels" in r else r["absent"]
        yield f"{r['model']}: {kernels}."
    found = _rows(results, "checks")
    yield f"The constants pick the faster kernel, or one within 10 %: {sum(r['right'] for r in found)} of {len(found)}."


def _errors(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused: {row['refused']}"
    share = max((e / limit if limit else float(e > 0) for e, limit in row["errors"].values()), default=0.0)
    return f"{share:.2f}{' RED' if row['red'] else ''}{' ' + row['failed'] if 'failed' in row else ''}"


def _goal_rows(results: dict[str, Any]) -> list[str]:
    times = {row["shape"]: row["ms"] for row in _rows(results, "goals")}
    times |= {row["model"]: row["ms"] for row in _rows(results, "whole_models") if "ms" in row}
    rows = []
    for name, ours, theirs, shapes, must, hoped in GOALS:
        for shape in shapes:
            own, best = (_least(times.get(shape, {}), asked) for asked in (ours, theirs))
            ratio = None if own is None or best is None else best / own
            rows.append(_goal_row(name, shape, must, hoped, ratio))
    card = _rows(results, "card")[0]
    for row in _rows(results, "goals"):
        if row["shape"] in SMALL:
            own = _least(row["ms"], "triton forward")
            share = None if own is None else row["stream"] / (own * 1e-3) / (card["copy TB/s"] * 1e12)
            rows.append(_goal_row("windows, forward, share of the rate of a copy", row["shape"], *COPIED, share))
    return rows


def _least(times: dict[str, float], asked: str) -> float | None:
    """The time of a name; of "none/ forward" that of the fastest backend."""
    first, _, last = asked.partition("/")
    fits = [
        t
        for name, t in times.items()
        if name == asked or ("/" in asked and name.startswith(f"{first}/") and name.endswith(last))
    ]
    return min(fits, default=None)


def _goal_row(name: str, shape: str, must: float, hoped: float | None, found: float | None) -> str:
    said = "not reached | " if found is None else f"{found:.2f} | {'met' if found >= must else 'MISSED'}"
    return f"| {name} | {shape} | {must} | {hoped or ''} | {said} |"


def _ablation_rows(results: dict[str, Any]) -> Iterator[str]:
    for row in _rows(results, "ablations"):
        ms = row["ms"] if isinstance(row["ms"], dict) else {"": row["ms"]}
        told = ", ".join(f"{k} {t:.3f}".strip() if isinstance(t, float) else f"{k} {t}".strip() for k, t in ms.items())
        yield f"| {row['of']} | {row['way']} | {told} | {row['predicted'] or ''} | {row['predicted is']} |"


def launch_lines(results: dict[str, Any], source: str) -> str:
    """launches.py with the fastest launch of each pass that was tried, where it is faster by more than 2 %."""
    for row in _rows(results, "tuning"):
        times = {k: v for k, v in row.get("ms", {}).items() if isinstance(v, float)}
        if not times:
            continue
        best = min(times, key=lambda k: times[k])
        pattern = re.compile(rf'(\("{row["chip"]}", "{row["kernel"]}", {row["channels"]}\): )Launch(\([^)]*\))')
        found = pattern.search(source)
        own = times.get(found[2]) if found else None
        if found and own is not None and times[best] < 0.98 * own:
            source = pattern.sub(rf"\1Launch{best}", source)
            source = source.replace(UNMEASURED, f"; those of {row['chip']} were then measured")
    return source


def cost_lines(results: dict[str, Any], source: str) -> str:
    """costs.py with the constants of this chip among the others, in order."""
    start = source.index("= {\n") + 2
    table = ast.literal_eval(source[start:])
    table |= {tuple(row["key"]): tuple(row["constants"]) for row in _rows(results, "constants") if "key" in row}
    entry = ("    (" + ", ".join(f'"{x}"' for x in key) + f"): {value},\n" for key, value in sorted(table.items()))
    return source[:start] + "{\n" + "".join(entry) + "}\n"


def write(results: dict[str, Any], into: Path | None = None) -> str:
    """Writes the three files: into this checkout, or into a folder beside it.

    Raises:
        ValueError: if the result is not one of a device, and would be written into the checkout; if one was not exact.
    """
    if results["card"][0]["dry"] and into is None:
        raise ValueError(
            "--write needs a result that was measured on a GPU; this one is of a dry run on a CPU. "
            "Run benchmarks/gpu.py on a machine with a GPU, or name a folder to look at: --into FOLDER."
        )
    if any(row.get("red") for row in results["exactness"]):
        raise ValueError("--write needs a result in which every kernel was exact; this one has red rows. See gpu.json.")
    package = Path("src") / "locant"
    files = {Path("docs") / "gpu.md": page(results)}
    for name, change in (("gpu/launches.py", launch_lines), ("costs.py", cost_lines)):
        files[package / name] = change(results, (ROOT / package / name).read_text())
    for name, text in files.items():
        target = (ROOT if into is None else into) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return f"written: {', '.join(map(str, files))}"
