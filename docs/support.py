"""Writes support.md, what works with what, out of tests that passed: `python docs/support.py`.

    python docs/support.py              # runs the tests of all claims here, then writes support.json and the page
    python docs/support.py onnx wheels  # those whose file or name holds one of these words; the others are kept
    python docs/support.py --elsewhere  # the tests of one environment (another torch, Python, system), kept beside
    python docs/support.py --page       # the page of what support.json holds, running nothing

A claim names its tests. Where one does not exist, was left out or did not pass, there is no page but an error that
names it. What has no test stands as "not tried", and "not run" where a test of it waits for its turn.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
PAGE, FOUND = Path(__file__).with_suffix(".md"), Path(__file__).with_suffix(".json")
PARTS = ((), ("--plain",))  # of the tests: with the shape hook, and without

NOT_TRIED = ()
# what × where; each cell is the tests that show it
COLUMNS = ("attention, `locant.nn`", "`locant.models`", "after `locant.accelerate`")
OTHERS, GRAPHS = "tests/parity/test_accelerate_others.py::", "tests/test_native_graphs.py::"
ATTENTION, OPEN, ONNX = "tests/test_compiled.py::", "tests/test_open_sizes.py::", "tests/test_onnx.py::"
WRAPPED = "tests/test_models_wrapped.py::"
CLAIMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "float32, with gradients": (
        (ATTENTION + "test_inductor",), (GRAPHS + "test_a_step",), (OTHERS + "test_training_mode_and_gradients",),
    ),
    "float64": (
        ("tests/test_kernels.py::test_gradcheck",), (OPEN + "test_models_on_any",),
        (OTHERS + "test_other_dtypes[dtype0]",),
    ),
    "bfloat16, float16": (
        ("tests/test_nn_survival.py::test_half_precision", "tests/test_native_isas.py::test_every_half"),
        ("tests/test_swin.py::test_half_precision_is_finite", "tests/test_aim_models.py::test_half_precision"),
        (OTHERS + "test_other_dtypes",),
    ),
    "autocast (AMP)": (
        (ATTENTION + "test_autocast", "tests/test_nn_survival.py::test_autocast"),
        ("tests/test_detr_builds.py::test_autocast_trains",), (OTHERS + "test_autocast",),
    ),
    "torch.compile": (
        (ATTENTION + "test_one_graph", ATTENTION + "test_inductor"),
        (GRAPHS + "test_one_graph_without_breaks", GRAPHS + "test_a_step_is_that_of_eager"),
        (OTHERS + "test_compiled_before_and_after",),
    ),
    "torch.compile, many sizes": (
        (OPEN + "test_one_graph_serves_twelve",), (OPEN + "test_a_few_graphs_serve_twelve",), NOT_TRIED,
    ),
    "torch.export": (
        (ATTENTION + "test_export", ONNX + "test_schemes_are_exported"), (ONNX + "test_models_are_exported",),
        (OTHERS + "test_exported_with_torchs_own_operators",),
    ),
    "torch.export, sizes open": (
        (OPEN + "test_schemes_on_any_size", OPEN + "test_embeddings_on_any_size"), (OPEN + "test_models_on_any",),
        NOT_TRIED,
    ),
    "ONNX, in onnxruntime": (
        (ONNX + "test_schemes_run_in_onnxruntime",), (ONNX + "test_models_run_in_onnxruntime",), NOT_TRIED,
    ),
    "OpenVINO": ((ONNX + "test_openvino_converts_and_agrees[windowed]",), (ONNX + "test_openvino",), NOT_TRIED),
    "AOTInductor": ((ONNX + "test_aotinductor[scheme]",), (ONNX + "test_aotinductor[model]",), NOT_TRIED),
    "DDP": (NOT_TRIED, (WRAPPED + "test_two_processes[ddp]",), (OTHERS + "test_two_processes[ddp]",)),
    "FSDP2": (NOT_TRIED, (WRAPPED + "test_two_processes[fsdp2]",), (OTHERS + "test_two_processes[fsdp2]",)),
    "LoRA": (
        ("tests/test_wrapped.py::test_low_rank_adapters",), (WRAPPED + "test_an_adapter",),
        (OTHERS + "test_lora",),
    ),
    "int8, torch.ao quantize_dynamic": (
        ("tests/test_wrapped.py::test_quantised",), (OPEN + "test_linear_maps_may_be_quantised",), NOT_TRIED,
    ),
    "int8, torchao": (
        ("tests/test_torchao.py::test_int8[attention",), ("tests/test_torchao.py::test_int8[swin",),
        ("tests/test_torchao.py::test_accelerated",),
    ),
    "activation checkpointing": (
        (ATTENTION + "test_checkpointing",), ("tests/test_swin.py::test_checkpointing_changes_no_gradient",),
        (OTHERS + "test_gradient_checkpointing",),
    ),
    "torch.func": ((ATTENTION + "test_functional_transforms",), NOT_TRIED, NOT_TRIED),
}  # fmt: skip
# What an environment is tried by: attention compiled, exported, under autocast, copied; the compiled core in graphs.
TRIED_BY = ("tests/test_compiled.py", "tests/test_native_graphs.py")
# What was never run here, and what stands in its place, with the tests that show it.
ELSEWHERE: dict[str, tuple[str, tuple[str, ...]]] = {
    "NVIDIA GPU": (
        "not run; Triton's compiler takes the kernels for sm80 to sm100",
        ("tests/test_triton_compiles.py::test_launches", "tests/test_triton_compiles.py::test_windows"),
    ),
    "AMD GPU": ("not run; Triton's compiler takes the kernels", ("tests/test_triton_compiles.py::test_amd",)),
    "Apple GPU (mps), Intel GPU (xpu)": ("not tried; torch's operators are all that would run", NOT_TRIED),
    "Linux aarch64, macOS arm64": ("not run; how wheels are built is written down", ("tests/test_wheels.py",)),
    "Windows": ("not run; a wheel without the core is written down", ("tests/test_wheels.py",)),
}  # fmt: skip

Outcomes = dict[str, dict[str, int]]  # by function of a test, or test: how many passed, failed, were left out


def claimed_tests() -> set[str]:
    """Every test that a claim names."""
    several = [tests for row in CLAIMS.values() for tests in row] + [tests for _, tests in ELSEWHERE.values()]
    return {test for tests in several for test in tests} | set(TRIED_BY)


def functions(test: str) -> list[str]:
    """What pytest calls a claim's tests: a file, or its functions whose names begin so."""
    file, _, name = test.split("[")[0].partition("::")
    defined = re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
    return [f"{file}::{each}" for each in defined if each.startswith(name)] if name else [file]


def run(tests: set[str]) -> dict[str, str]:
    """The outcome of each test of these, by its id: passed, failed or skipped."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            file = Path(folder) / f"part{len(part)}.xml"
            names = sorted({name for test in tests for name in functions(test)})
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={file}", *part]
            subprocess.run([*command, *names], cwd=ROOT, check=False)
            for case in ElementTree.parse(file).iter("testcase"):
                path = case.get("classname", "").replace(".", "/")
                kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
                kind = "passed" if not kinds else "skipped" if kinds == {"skipped"} else "failed"
                found[f"{path}.py::{case.get('name')}"] = kind
    return found


def count_outcomes(found: dict[str, str], tests: set[str]) -> Outcomes:
    """By claimed test (a file, a function or the beginning of a name): how many passed, failed, were skipped."""
    counts = {test: Counter(kind for name, kind in found.items() if name.startswith(test)) for test in sorted(tests)}
    return {test: dict(sorted(kinds.items())) for test, kinds in counts.items()}


def environment() -> str:
    """Torch, Python and system, as one row of the page."""
    python = ".".join(map(str, sys.version_info[:2]))
    return f"torch {torch.__version__}, Python {python}, {platform.system()} {platform.machine()}"


def cell(tests: tuple[str, ...], outcomes: Outcomes) -> str:
    """A cell: how many tests passed. Raises where the claim does not hold."""
    for test in tests:
        kinds = outcomes.get(test)
        if not functions(test) or (kinds is not None and (not kinds.get("passed") or kinds.get("failed"))):
            raise SystemExit(f"a claim needs {test} to pass; it gave {kinds or 'no such test'}. Mend it, or the claim.")
    if not tests:
        return "not tried"
    if not outcomes.keys() >= set(tests):
        return "not run"
    return f"yes ({sum(outcomes[test]['passed'] for test in tests)})"


def page(found: dict[str, Any]) -> str:
    """The page of these outcomes."""
    outcomes = found["claims"]
    lines = [
        "# What works with what", "",
        "Written by `python docs/support.py`, which runs the tests of every claim and refuses one whose test does not",
        "pass. In brackets: how many tests. *Not tried*: no test; *not run*: there are tests, which were not run",
        "for this page. Neither is a word against it. Errors of every scheme and model on other runtimes:",
        "[exported](exported.md); what does not work: [limits](limits.md).", "",
        f"In {found['environment']}:", "",
        "| | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS),
        *(f"| {what} | " + " | ".join(cell(tests, outcomes) for tests in row) + " |" for what, row in CLAIMS.items()),
        "", "Attention compiled, exported, under autocast and copied, and the compiled core in graphs, on CPUs:", "",
        "| environment | passed | failed | left out |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, several in sorted(found["tried"].items()):
        sums = [sum(kinds.get(kind, 0) for kinds in several.values()) for kind in ("passed", "failed", "skipped")]
        lines.append(f"| {name} | " + " | ".join(map(str, sums)) + " |")
    lines += ["", "| device or system | |", "| --- | --- |"]
    for name, (said, tests) in ELSEWHERE.items():
        lines.append(f"| {name} | {said if cell(tests, outcomes) != 'not run' else 'not run'} |")
    lines += ["", "The tests:", ""]
    for what, row in CLAIMS.items():
        names = sorted({test for tests in row for test in tests})
        lines.append(f"- {what}: " + ", ".join(f"`{test.removeprefix('tests/')}`" for test in names))
    return "\n".join(lines) + "\n"


def read() -> dict[str, Any]:
    """What the tests gave, as it was last written."""
    return json.loads(FOUND.read_text()) if FOUND.exists() else {"environment": "", "claims": {}, "tried": {}}


def main() -> None:
    found = read()
    if "--page" not in sys.argv:
        elsewhere, words = "--elsewhere" in sys.argv, [word for word in sys.argv[1:] if not word.startswith("-")]
        tests = {
            test
            for test in (set(TRIED_BY) if elsewhere else claimed_tests())
            if not words or any(map(test.count, words))
        }
        outcomes, found = count_outcomes(run(tests), tests), read()
        found["tried"].setdefault(environment(), {}).update({t: outcomes[t] for t in TRIED_BY if t in tests})
        if not elsewhere:
            found["environment"] = environment()
            found["claims"] = {
                test: kinds for test, kinds in (found["claims"] | outcomes).items() if test in claimed_tests()
            }
        FOUND.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
