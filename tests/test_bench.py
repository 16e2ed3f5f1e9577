"""`locant bench`: right answers first, then ratios; what it says, and with which exit code. No time is asserted."""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from locant.bench import run
from locant.cli import app
from locant.grid import Grid
from locant.kernels import sdpa
from locant.masks import Windows
from locant.measuring import clock, exactness, memory
from locant.measuring.exactness import Truth
from locant.measuring.workload import Workload
from locant.positions.table import RelativeTable

ROOT = Path(__file__).parents[1]
TINY = ("--grid", "4x4", "--heads", "2", "--head-dim", "8", "--threads", "1", "--seconds", "0.01")


def command(*arguments: str) -> Result:
    plain = {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner().invoke(app, ["bench", *arguments], env=plain)


# --- exactness ---------------------------------------------------------------------------------------------------


def work(dtype: torch.dtype = torch.float32, batch: int = 3) -> Workload:
    grid = Grid(6, 5, prefix=1)
    position = RelativeTable(grid, 4, init_std=0.5).to(dtype)
    mask = Windows((4, 3), (1, 1))
    return Workload.draw(batch, 4, 8, grid, kv_heads=2, value_dim=6, position=position, mask=mask, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("left", [10**9, 4000])
def test_right_kernels_are_not_red(dtype: torch.dtype, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "WORK", left)
    monkeypatch.setattr(exactness, "HELD", 400)
    truth = Truth(work(dtype), train=True)
    assert truth.whole == (left > 4000)
    assert len(truth.slices) > 1
    for kernel in ("sdpa", "reference"):
        found = truth.check(kernel)
        assert [f.what for f in found] == ["out", "dq", "dk", "dv", "dposition"]
        assert [f.what for f in found if f.red] == []


def test_the_truth_of_slices_is_the_truth_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slice by slice, gradients included, against one dense call."""
    whole = work(torch.float64)
    monkeypatch.setattr(exactness, "HELD", 400)
    truth = Truth(whole, train=True)
    dq, dk, dv, *learned = whole.gradients("reference")
    dense = (whole.forward("reference"), dq, dk, dv, torch.cat([x.flatten() for x in learned]))
    out = torch.cat([dense[0][s.samples, :, s.start : s.stop].flatten() for s in truth.slices])
    for found, expected in zip(truth.golden, (out, *dense[1:]), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def broken(part: int) -> Callable[..., tuple[torch.Tensor, None]]:
    """The sdpa kernel with the output, or the gradient of q, k or v, off by a thousandth."""
    right = sdpa.run

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dx: torch.Tensor) -> torch.Tensor:
            return 1.001 * dx

    def wrong(problem: Any, inputs: Any) -> tuple[torch.Tensor, None]:
        from dataclasses import replace

        if part:
            name = "qkv"[part - 1]
            inputs = replace(inputs, **{name: Off.apply(getattr(inputs, name))})
        out, _ = right(problem, inputs)
        return (out if part else 1.001 * out), None

    return wrong


@pytest.mark.parametrize(("part", "red"), [(0, "out"), (1, "dq"), (2, "dk"), (3, "dv")])
def test_a_thousandth_is_red(part: int, red: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = Truth(work(), train=True)
    monkeypatch.setattr(sdpa, "run", broken(part))
    assert red in [f.what for f in truth.check("sdpa") if f.red]


def test_nan_is_red() -> None:
    ones = torch.ones(3)
    assert exactness.finding("out", ones * torch.nan, ones, ones.double()).red
    assert not exactness.finding("out", ones, ones, ones.double()).red


# --- the command -------------------------------------------------------------------------------------------------


def test_the_table_in_plain_words() -> None:
    result = command(*TINY, "--position", "relative", "--window", "2x2", "--shift", "1x1")
    assert result.exit_code == 0, result.output
    assert "4 × 4 tokens, 2 heads of 8, batch 1, relative, windows of 2 × 2 shifted by 1 × 1, float32, 1 thread" in (
        result.stdout
    )
    assert result.stdout.count("sdpa") >= 2
    assert "forward + backward: the plan" in result.stdout
    assert "\x1b" not in result.stdout
    assert "comparing with the definition" in result.stderr


def test_json(tmp_path: Path) -> None:
    result = command(*TINY, "--json", str(tmp_path / "found.json"), "-q")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 2  # the verdicts
    assert result.stderr == ""
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"format", "problem", "machine", "gate", "red", "modes"}
    assert {"processor", "threads", "torch", "locant", "commit", "date"} <= set(found["machine"])
    assert found["problem"]["grid"] == [4, 4]
    assert [mode["mode"] for mode in found["modes"]] == ["forward", "train"]
    for mode in found["modes"]:
        states = {k["kernel"]: k["state"] for k in mode["kernels"]}
        assert states["sdpa"] == states["reference"] == states[mode["plan"]] == "timed"
        for kernel in mode["kernels"]:
            if kernel["state"] == "timed":
                assert len(kernel["samples_ms"]) >= clock.ROUNDS
                assert kernel["ms"] > 0
                assert kernel["ratio"]["low"] <= kernel["ratio"]["median"] <= kernel["ratio"]["high"]
                assert not any(f["red"] for f in kernel["findings"])
        (chosen,) = [k for k in mode["kernels"] if k["kernel"] == mode["plan"]]
        assert chosen["ratio"]["median"] == 1


def test_json_alone() -> None:
    found = json.loads(command(*TINY, "--json", "-", "--forward").stdout)
    assert [mode["mode"] for mode in found["modes"]] == ["forward"]


def test_a_wrong_kernel_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "run", broken(0))
    result = command(*TINY, "--forward")
    assert result.exit_code == 1, result.output
    (row,) = [line for line in result.stdout.splitlines() if "sdpa" in line and "│" in line]
    assert "RED" in row
    assert "sdpa is RED: out is off by" in " ".join(result.stdout.split())
    found = json.loads(command(*TINY, "--forward", "--json", "-").stdout)
    (wrong,) = [k for k in found["modes"][0]["kernels"] if k["kernel"] == "sdpa"]
    assert (found["red"], wrong["state"], wrong["ms"], wrong["ratio"], wrong["samples_ms"]) == (
        True, "red", None, None, []
    )  # fmt: skip


def test_a_kernel_that_refuses_says_why() -> None:
    result = command(*TINY, "--position", "gated", "--mask", "causal", "--forward")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "sdpa did not run: under causal the positional map no longer factorises by axis" in said
    assert "the plan's choice, reference, is the only one that was timed" in said


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = run(grid=4, heads=1, head_dim=4, threads=1, seconds=0.01, train=False)
        assert (found.machine["threads"], torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)


SLIPS = {
    "grid needs whole numbers": ("--grid", "4xtwo"),
    "grid needs one to three sizes": ("--grid", "2x2x2x2"),
    "position must be one of": ("--position", "alibis"),
    "costs attention nothing": ("--position", "learned"),
    "mask must be one of": ("--mask", "casual"),
    "dtype must be one of": ("--dtype", "int8"),
    "heads needs a whole number": ("--heads", "0"),
    "prefix needs a whole number": ("--prefix", "-1"),
    "seconds needs a time": ("--seconds", "0"),
    "shift needs a window": ("--shift", "1x1"),
    "window needs as many sizes": ("--window", "2"),
    "queries counts along": ("--queries", "5"),
    "must be a multiple": ("--kv-heads", "3"),
    "head_dim": ("--head-dim", "3", "--position", "rotary"),
}


@pytest.mark.plain
@pytest.mark.parametrize("said", SLIPS)
def test_a_slip_is_one_sentence(said: str) -> None:
    result = command(*TINY, *SLIPS[said])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.startswith("locant: ")
    assert len(result.stderr.splitlines()) == 1
    assert " got " in result.stderr or "; it got" in result.stderr
    assert result.stderr.count(". ") >= 1, "it says what to do"


@pytest.mark.parametrize("arguments", [["bench", "--help"], ["bench"], ["bench", "--grid", "4", "--nonsense"]])
def test_help_and_slips_of_names_need_no_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from locant.cli import main
sys.argv = ["locant", *{arguments!r}]
try:
    main()
except SystemExit:
    print("loaded:", *sorted({{"torch", "numpy", "jaxtyping", "locant.bench"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env={**os.environ}
    )
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_every_flag_is_a_parameter_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def stop(**given: object) -> None:
        seen.update(given)
        raise ValueError("enough; got it. Stop.")

    monkeypatch.setattr("locant.bench.run", stop)
    assert command("--grid", "4", "--train").exit_code == 2
    assert set(seen) == set(inspect.signature(run).parameters)
    given = {name: value for name, value in seen.items() if value is not None and name != "tell"}
    assert given == {"grid": "4", "train": True}


def test_every_flag_is_told() -> None:
    told = (ROOT / "docs" / "bench.md").read_text()
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", command("--help").output)) - {"--help", "-h"}
    assert {"--grid", "--forward", "-q"} <= flags
    assert {flag for flag in flags if f"`{flag}`" not in told} == set()


def test_the_page_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as JSON become lines: ratio, quartiles, target, verdict; what was RED is named and has no figure."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from rows import page

    row = {
        "work": "forward", "against": "itself", "value": 1.0449, "low": 1.01, "high": 1.1, "quiet": True, "unit": "×",
        "target": 1.06, "most": True, "met": True, "note": "", "ms": {"native": 12.345}, "rounds": 9,
    }  # fmt: skip
    slow = {**row, "value": 1.2, "target": 1.3, "most": False, "met": False, "quiet": False, "note": "a word"}
    figure = {**row, "value": 0.375, "low": None, "high": None, "unit": "GB", "target": None, "met": None}
    text = page.markdown(
        [{"threads": 2, "machine": {"commit": "abc"}, "rows": [row, slow, figure], "failed": ["swin"]}]
    )
    assert "| forward | itself | 1.04 (1.01 to 1.10) | ≤ 1.06 | met |" in text
    assert "| forward | itself (a word) | 1.20 (1.01 to 1.10) * | ≥ 1.3 | not met |" in text
    assert "| forward | itself | 0.38 GB |  |  |" in text
    assert "RED, without figures: swin." in text
    assert "commit abc" in text
    more = {"threads": 2, "machine": {"processor": "another"}, "rows": [figure], "failed": []}
    both = page.markdown([more], text)
    assert both.startswith(text)
    assert "\n## 2 threads, another\n" in both
    assert page.markdown([more], both) == both
    assert page.plain(row) == "forward | itself | 1.04 (1.01 to 1.10) | ≤ 1.06 met | native 12.35 ms"


def test_runs_apart_in_time_become_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, in order, by number of threads: the middle figure as it stood, and the widest quartiles."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from rows import page

    def run(threads: int, value: float, against: str, quiet: bool = True) -> dict[str, Any]:
        row = {"family": "f", "work": "w", "value": value, "low": value - 0.1, "high": value + 0.1, "quiet": quiet}
        other = {**row, "against": "itself", "value": 9.0, "low": None, "high": None}
        return {"threads": threads, "rows": [{**row, "against": against}, other], "failed": []}

    runs = [run(2, 1.5, "eager"), run(2, 3.0, "SDPA", quiet=False), run(1, 7.0, "eager"), run(2, 2.0, "SDPA")]
    two, one = page.combined(runs)
    assert [(r["threads"], r["runs"]) for r in (two, one)] == [(2, 3), (1, 1)]
    first, second = two["rows"]
    assert (first["value"], first["against"], first["quiet"]) == (2.0, "SDPA", False)
    assert (first["low"], first["high"]) == (1.4, 3.1)
    assert (second["value"], second["low"]) == (9.0, None)
    assert one["rows"][0]["value"] == 7.0
    elsewhere = {**run(2, 4.0, "eager"), "machine": {"processor": "another"}}
    assert [r["rows"][0]["value"] for r in page.combined([*runs, elsewhere])] == [2.0, 7.0, 4.0]


def test_constants_are_fitted() -> None:
    """Times that are a sum of known parts give these back; what would be below 0 is 0."""
    costs = runpy.run_path(str(ROOT / "benchmarks" / "costs.py"), run_name="costs")
    true = [2e-5, 0.0, 1e-11, 3e-9, 0.0, 1e-10]
    draw = torch.Generator().manual_seed(0)
    amounts = torch.rand(40, 6, generator=draw, dtype=torch.float64) * torch.tensor([0, 1e2, 1e9, 1e6, 1e6, 1e7])
    amounts[:, 0] = 1
    rows = [(tuple(row), sum(a * t for a, t in zip(row, true, strict=True))) for row in amounts.tolist()]
    assert costs["fit"](rows) == pytest.approx(true, rel=0.02, abs=1e-13)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_extra_memory_is_what_a_call_takes() -> None:
    found = memory.extra(lambda: torch.ones(64 * 2**20, dtype=torch.uint8))
    if found is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert 60 * 2**20 <= found <= 80 * 2**20


# --- devices -----------------------------------------------------------------------------------------------------


NOWHERE = "--device needs a device that works here; 'abacus' does not: "


@pytest.mark.parametrize("device", ["cuda", "abacus", "meta"])
def test_a_device_that_is_not_here_is_one_sentence(device: str) -> None:
    """A meta tensor can be made anywhere, and read nowhere."""
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    found = command(*TINY, "--device", device)
    assert found.exit_code == 2
    said = " ".join(found.output.split())
    assert NOWHERE.replace("abacus", device) in said
    assert said.endswith("Try --device cpu.")


def test_a_call_is_timed_until_the_device_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "cpu:0" stands in for a device of another name: the probe, every sample and the memory are its own."""
    waited, measured = [], []
    monkeypatch.setattr(clock, "synchronize", waited.append)
    monkeypatch.setattr(memory, "extra", lambda call, device: measured.append(device))
    run(grid="4x4", heads=2, head_dim=8, train=False, threads=1, seconds=0.01, device="cpu")
    usual = len(waited)
    waited.clear(), measured.clear()
    found = run(grid="4x4", heads=2, head_dim=8, train=False, threads=1, seconds=0.01, device="cpu:0")
    assert set(waited) == set(measured) == {"cpu:0"}
    assert usual >= 200 + 2 * clock.ROUNDS  # the probes that calibrate, and a wait behind each call
    assert len(waited) >= 200 + 2 * clock.ROUNDS
    assert found.settings.sentence().endswith("float32, cpu:0")
    assert found.machine["device"] == found.machine["processor"]


def test_a_workload_moves_with_all_that_it_has() -> None:
    moved = work().to("meta")
    tensors = [moved.q, moved.k, moved.v, moved.dout, *moved.learned]
    assert all(x.is_meta for x in tensors)
    assert all(x.is_leaf and x.requires_grad for x in tensors[:3])
    assert work().to("cpu").q.device.type == "cpu"
