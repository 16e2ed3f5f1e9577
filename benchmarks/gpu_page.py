"""docs/gpu.md, launches and costs from what benchmarks/gpu.py measured on a device."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# what is compared, on which shapes, and the ratio (theirs / ours) that must be met, and the one that is hoped for
GOALS: tuple[tuple[str, str, str, tuple[str, ...], float, float], ...] = (
    ("forward vs flex_attention with the same table", "triton forward", "flex forward", ("28²", "64²"), 1.15, 1.3),
    ("forward vs torch's, the bias expanded before", "triton forward", "expanded forward", ("28²", "64²"), 1.0, 1.15),
    ("forward vs torch's without position", "triton forward", "none forward", ("28²", "64²"), 0.8, 0.95),
    ("training vs flex_attention with the same table", "triton train", "flex train", ("28²", "64²"), 1.5, 3.0),
    ("training vs torch's, the bias expanded and learned", "triton train", "sdpa train", ("14²",), 1.3, 3.0),
    ("training vs torch's, the bias expanded and learned", "triton train", "sdpa train", ("28²", "64²"), 2.0, 3.0),
    ("training vs torch's without position", "triton train", "none train", ("28²", "64²"), 0.45, 0.6),
    ("windows vs torch's without position on cut windows", "triton forward", "none forward",
     ("7×7 windows", "8×8 windows"), 1.0, 1.5),
    ("windows, training, vs torch's", "triton train", "sdpa train", ("7×7 windows", "8×8 windows"), 2.0, 3.0),
    ("large windows, training, vs torch's", "triton train", "sdpa train", ("12×12 windows", "8×7×7 windows"), 1.5, 2.5),
)  # fmt: skip


def page(results: dict[str, Any]) -> str:
    """The page of one card: exactness, goals, bits, memory."""
    (card,) = results["card"]
    rows = {stage: [row for row in found if "said" not in row] for stage, found in results.items()}
    lines = [
        "# On GPUs", "",
        f"Measured on {card['name']}, torch {card['torch']}, Triton {card['triton']}, commit {card['commit']}, by",
        f"`benchmarks/gpu.py`. It copies {card['copy TB/s']:.2f} TB/s and computes {card['product TF/s']:.0f} TFLOP/s.",
        "", "| family | dtype | largest error / what is allowed |", "| --- | --- | --- |",
        *(f"| {r['family']} | {r['dtype']} | {_errors(r)} |" for r in rows["exactness"]),
        "", "| goal | shape | must | hoped | measured | |", "| --- | --- | --- | --- | --- | --- |",
        *_goal_rows(results), "",
    ]  # fmt: skip
    for r in rows["bits"]:
        lines.append(
            f"{r['family']}: {r['repeats']} repeats, {'the same bits' if r['equal'] else 'NOT the same bits'}."
        )
    for r in rows["nan"]:
        lines.append(f'cuDNN\'s backward gives NaN: {r["cuDNN"]}; kernel="sdpa" there: {r["kernel sdpa"]}.')
    for r in rows["memory"]:
        lines.append(f"Training {r['tokens']:,} tokens holds {r['bytes'] / 2**20:.1f} MiB beside tensors of q's size.")
    return "\n".join(lines) + "\n"


def _errors(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused: {row['refused']}"
    share = max((e / limit if limit else float(e > 0) for e, limit in row["errors"].values()), default=0.0)
    return f"{share:.2f}{' RED' if row['red'] else ''}"


def _goal_rows(results: dict[str, Any]) -> list[str]:
    times = {row["shape"]: row["ms"] for row in results["goals"] if "shape" in row}
    rows = []
    for name, ours, theirs, shapes, must, hoped in GOALS:
        for shape in shapes:
            own = times.get(shape, {})
            if ours not in own or theirs not in own:
                rows.append(f"| {name} | {shape} | {must} | {hoped} | not reached | |")
                continue
            ratio = own[theirs] / own[ours]
            rows.append(
                f"| {name} | {shape} | {must} | {hoped} | {ratio:.2f} | {'met' if ratio >= must else 'MISSED'} |"
            )
    return rows


def launch_lines(results: dict[str, Any], source: str) -> str:
    """launches.py with the fastest launch of each pass that was tried, where it is faster by more than 2 %."""
    for row in results["tuning"]:
        times = {k: v for k, v in row.get("ms", {}).items() if isinstance(v, float)}
        if not times:
            continue
        best = min(times, key=lambda k: times[k])
        pattern = re.compile(rf'(\("{row["chip"]}", "{row["kernel"]}", {row["channels"]}\): )Launch(\([^)]*\))')
        found = pattern.search(source)
        own = times.get(found[2]) if found else None
        if found and own is not None and times[best] < 0.98 * own:
            source = pattern.sub(rf"\1Launch{best}", source)
    return source


def cost_lines(results: dict[str, Any], source: str) -> str:
    """costs.py with the constants of this chip among the others, in order."""
    start = source.index("= {\n") + 2
    table = ast.literal_eval(source[start:])
    table |= {tuple(row["key"]): tuple(row["constants"]) for row in results["constants"] if "key" in row}
    entry = ("    (" + ", ".join(f'"{x}"' for x in key) + f"): {value},\n" for key, value in sorted(table.items()))
    return source[:start] + "{\n" + "".join(entry) + "}\n"


def write(results: dict[str, Any]) -> str:
    """Writes the three files.

    Raises:
        ValueError: if the result is not one of a device.
    """
    if results["card"][0]["dry"]:
        raise ValueError(
            "--write needs a result that was measured on a GPU; this one is of a dry run on a CPU. "
            "Run benchmarks/gpu.py on a machine with a GPU."
        )
    if any(row.get("red") for row in results["exactness"]):
        raise ValueError("--write needs a result in which every kernel was exact; this one has red rows. See gpu.json.")
    (ROOT / "docs" / "gpu.md").write_text(page(results))
    for name, change in (("gpu/launches.py", launch_lines), ("costs.py", cost_lines)):
        target = ROOT / "src" / "locant" / name
        target.write_text(change(results, target.read_text()))
    return "written: docs/gpu.md, src/locant/gpu/launches.py, src/locant/costs.py"
