"""Writes parity.md, what must work and what it was compared with: `python docs/parity.py [file]`.

It runs the tests that bear the number of a row. A comparison is what a test gave to the fixture `parity`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PAGE = Path(__file__).with_suffix(".md")
ROOT = Path(__file__).parents[1]

ROWS: dict[int, tuple[str, str]] = {
    1: ("AIM", "1-D relative index"),
    2: ("Swin", "2-D relative index, windows that are not square"),
    3: ("AIM, Swin", "spatial attention in windows, with and without a mask"),
    4: ("AIM", "temporal attention by the same weights"),
    5: ("AIM", "a block of space and time that starts as the image model"),
    6: ("AIM", "1-D attention with and without projections"),
    7: ("AIM", "clips of unequal length, and order"),
    8: ("tables", "resizing in time and space"),
    9: ("Swin", "windows as a partition, and its inverse"),
    10: ("Swin", "shifted windows"),
    11: ("Swin", "maps that windows do not divide"),
    12: ("Swin", "maps smaller than a window"),
    13: ("Swin", "block and merging"),
    14: ("Swin v2", "cosine attention, the bias of log-spaced coordinates"),
    15: ("BEiT", "the relative index with a class token"),
    16: ("Swin", "checkpoints"),
    17: ("ConViT", "relative features"),
    18: ("ConViT", "gated attention"),
    19: ("ConViT", "its start as a convolution"),
    20: ("ConViT", "grids that are not square"),
    21: ("ConViT", "the whole model, its class token late"),
    22: ("ConViT", "gradients of gate and position"),
    23: ("ConViT", "non-locality"),
    24: ("DETR", "sine positions from a mask"),
    25: ("DETR", "the same, unbatched"),
    26: ("DETR", "edge cases and half precision"),
    27: ("DETR", "learned positions"),
    28: ("DETR", "positions on queries and keys, in every layer"),
    29: ("DETR", "the mask of a feature map"),
    30: ("DETR", "padding changes nothing"),
    31: ("FIERY", "causal convolution"),
    32: ("FIERY", "temporal block"),
    33: ("FIERY", "pyramid pooling"),
    34: ("FIERY", "the whole model, its receptive field"),
    35: ("FIERY", "checkpoints"),
    36: ("d2l", "masked softmax"),
    37: ("d2l", "dot-product, additive and kernel pooling"),
    38: ("d2l", "multi-head attention"),
    39: ("plain", "multi-head attention with weights returned"),
    40: ("Transformer", "sinusoids"),
    41: ("BERT", "learned positions"),
    42: ("Transformer", "encoder and decoder, cached decoding"),
    43: ("Bahdanau", "decoder"),
    44: ("Transformer-XL", "relative attention with memory"),
    45: ("Transformer-XL", "both directions"),
    46: ("Transformer-XL", "what the shift trick computes, where it holds"),
    47: ("Transformer-XL", "memory, equal lengths, clamped distances"),
    48: ("Transformer-XL", "the other attention types"),
    49: ("FLOPs", "multiply-adds and FLOPs, published figures"),
    50: ("masks", "every published sense"),
    51: ("laws", "what moves with what"),
    52: ("AIM", "what is frozen"),
    53: ("dtypes", "half precisions, gradients in float64"),
    54: ("state dicts", "old keys and new"),
    55: ("graphs", "compiled and exported"),
    56: ("texts", "what they get wrong"),
    57: ("ViT, DeiT", "whole models: tokens without a place, LayerScale, any position"),
    58: ("ViT, DeiT", "checkpoints, both ways"),
    59: ("SAM", "the picture encoder, on any size, its checkpoints both ways"),
    60: ("SAM, ViTDet", "encoders of other libraries, accelerated"),
    61: ("MViT", "pooled attention of other libraries, accelerated"),
    62: ("MONAI", "the attention of its ViT, accelerated"),
    63: ("Conformers", "encoders of speech of transformers, accelerated"),
    64: ("MViT v2", "whole models, pictures and clips, checkpoints both ways"),
}


def nearness(pair: tuple[float, float]) -> float:
    """How near an error is to what is allowed; what has to be equal allows nothing."""
    error, allowed = pair
    return error / allowed if allowed else float(error > 0)


@dataclass(eq=False)
class Found:
    """What ran: tests by row, and comparisons by row."""

    tests: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    compared: dict[int, dict[str, tuple[float, float]]] = field(default_factory=lambda: defaultdict(dict))
    failed: list[str] = field(default_factory=list)

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.when != "call":
            return
        if call.excinfo is not None:
            if not call.excinfo.errisinstance(pytest.skip.Exception):
                self.failed.append(item.nodeid)
            return
        for mark in item.iter_markers("row"):
            for row in mark.args:
                self.tests[row].add(item.nodeid.split("[")[0])
        for name, value in item.user_properties:
            if name == "parity":
                row, reference, error, tolerance = value
                worst = self.compared[row].get(reference, (0.0, tolerance))
                self.compared[row][reference] = max(worst, (error, tolerance), key=nearness)


def run(part: Sequence[str]) -> Found:
    """One part of the suite, the marked tests alone, in this process."""
    found = Found()
    pytest.main(["-q", "-m", "row", "-p", "no:cacheprovider", *part, str(ROOT / "tests")], plugins=[found])
    if found.failed:
        raise SystemExit(f"{len(found.failed)} tests failed, the first: {found.failed[0]}")
    return found


def page(found: Found) -> str:
    """The table, and under it the tests."""
    lines = [
        "# Parity",
        "",
        "Written by `python docs/parity.py`, which runs the tests of each row; not edited by hand. Weights are random,",
        "and carried over. An error is the largest difference between numbers, or as a test says relative to the",
        "largest number; beside it what is allowed, which follows from the precision and is the same for everybody.",
        "Rows without a reference are goldens, closed forms, double loops and laws: the tests are named below.",
        "",
        "| row | system | what must work | comparisons | tests |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row, (system, what) in ROWS.items():
        lines.append(f"| {row} | {system} | {what} | {len(found.compared[row]) or '—'} | {len(found.tests[row])} |")
    lines += ["", "## Comparisons", "", "| row | with | largest error | allowed |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        for name, (error, most) in sorted(found.compared[row].items()):
            said = f"{error:.1e}" if error else "equal"
            lines.append(f"| {row} | {name.replace('|', '/')} | {said} | {f'{most:.1e}' if most else 'nothing'} |")
    lines += ["", "## The tests of each row", ""]
    for row in ROWS:
        files = defaultdict(list)
        for test in sorted(found.tests[row]):
            file, name = test.split("::", 1)
            files[file.removeprefix("tests/")].append(name.split("::")[-1])
        said = "; ".join(f"`{file}`: {', '.join(names)}" for file, names in files.items())
        lines.append(f"- **{row}** {said or 'none'}")
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:2] == ["--part"]:  # a process each: the shape hook must come before the modules that it checks
        found = run(sys.argv[3:])
        tests = {row: sorted(names) for row, names in found.tests.items()}
        Path(sys.argv[2]).write_text(json.dumps({"tests": tests, "compared": found.compared}))
        return
    raise SystemExit(written(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE))


def written(to: Path) -> int:
    """Runs both parts and writes the page."""
    whole = Found()
    with tempfile.TemporaryDirectory() as folder:
        files = {Path(folder) / f"part{number}": part for number, part in enumerate(([], ["--plain"]))}
        started = [
            subprocess.Popen([sys.executable, __file__, "--part", str(file), *part], cwd=ROOT)
            for file, part in files.items()
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            raise SystemExit("a test failed: see above")
        for file in files:
            part = json.loads(file.read_text())
            for row, names in part["tests"].items():
                whole.tests[int(row)] |= set(names)
            for row, pairs in part["compared"].items():
                whole.compared[int(row)].update(pairs)
    missing = [row for row in ROWS if not whole.tests[row]]
    to.write_text(page(whole), encoding="utf-8")
    print(f"{to}: {len(ROWS) - len(missing)} of {len(ROWS)} rows shown" + (f"; without: {missing}" if missing else ""))
    return bool(missing)


if __name__ == "__main__":
    main()
