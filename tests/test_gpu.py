"""Kernels for GPUs where there is none: what they refuse, what is imported, which constants a plan would read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from laws import same
from schemes import heads
from torch._subclasses.fake_tensor import FakeTensorMode

from locant import Grid, RelativeTable, Windows, attention, plan, speed
from locant.cells import reach
from locant.forms import AxialVectors, OffsetTable
from locant.gpu import chips
from locant.kernels import triton
from locant.layout import described
from locant.masks import Structure
from locant.places import places
from locant.problem import Problem

PROBLEM = Problem(
    2, 4, 2, 64, 64, Grid(6), Grid(6), dtype="bfloat16", device="cuda", chip="sm90", bias=OffsetTable(4, (5,))
)
CONTENT = AxialVectors(4, ((-5, 5),))
REFUSED = [
    ({"device": "cpu", "chip": ""}, "these are kernels for GPUs, and the tensors are on cpu"),
    ({"device": "meta", "chip": ""}, "these are kernels for GPUs, and the tensors are on cpu"),
    ({"device": "mps", "chip": ""}, "these are kernels for GPUs, and the tensors are on mps"),
    ({"chip": "sm75"}, "need a GPU of compute capability 8.0 or later (A100, RTX 30); this one has 7.5"),
    ({"chip": "gfx942"}, 'on AMD\'s GPUs these kernels were compiled, and never run; kernel="flex" is the way there'),
    ({"dtype": "float64"}, "have no float64"),
    ({"dtype": "float32", "chip": "sm80"}, "do not fit this GPU's registers; use bfloat16"),
    ({"dtype": "float32", "bias_grad": True}, "do not fit the registers; train in bfloat16"),
    ({"exporting": True}, "under export the graph is made of torch's own operators"),
    ({"transformed": True}, "torch.func transforms need rules"),
    ({"content": CONTENT}, "content brings each query terms of its own"),
    ({"mask": Structure(pairs=True)}, "Pairs is dense by nature"),
    ({"mask": Structure(segments=2)}, "know one Segments"),
    ({"head_dim": 192}, "at most 128 channels in registers; these have 192"),
    ({"key_grid": Grid(2, stride=(2**30,))}, "more numbers than 32-bit places can tell apart"),
]


@pytest.fixture
def present(monkeypatch):
    monkeypatch.setattr(chips, "has_triton", lambda: True)
    monkeypatch.setattr(chips, "interpreted", lambda: False)


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_it_refuses(changes, sentence, present):
    assert triton.refuses(PROBLEM) is None
    assert triton.refuses(replace(PROBLEM, chip="sm120", dtype="float16")) is None
    assert triton.refuses(replace(PROBLEM, dtype="float32")) is None  # forward alone, on a Hopper
    assert sentence in triton.refuses(replace(PROBLEM, **changes))


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(chips, "has_triton", lambda: False)
    assert triton.refuses(PROBLEM) == "Triton is not installed; it comes with torch's builds for GPUs"


def test_the_vector_is_never_longer_than_what_is_refused_by(present):
    """The bound is told from grids alone, and holds for windows and slices as well."""
    for grid, key_grid, mask in (
        (Grid(9, 10, prefix=1), None, Windows((4, 3), (1, 2))), (Grid(40)[30:], Grid(40), None),
        (Grid(6, 8), Grid(6, 8).pooled(2), None), (Grid(3, 4, 5), None, None), (Grid(1), None, None),
    ):  # fmt: skip
        key_grid = grid if key_grid is None else key_grid
        structure = Structure.of(mask)
        numbers = described(grid, key_grid, structure, reach(grid, key_grid, structure.windows))
        assert places(numbers).size <= triton._vector_bound(replace(PROBLEM, grid=grid, key_grid=key_grid))


def test_a_plan_on_a_gpu_that_was_never_measured_takes_torchs_attention():
    with FakeTensorMode():
        q = torch.empty(2, 4, 36, 64, device="cuda", dtype=torch.bfloat16)
        found = plan(q, q, q, grid=Grid(6, 6))
    assert found.kernel == "sdpa"
    assert set(dict(found.passed_over)) == {"triton", "native", "flex", "reference"}
    assert found.problem.chip == ("" if not torch.cuda.is_available() else chips.chip_of("cuda"))


def test_constants_are_those_of_the_chip_or_of_the_one_before(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", {("sm80", "triton", "bfloat16", "forward"): (1.0, *[0.0] * 6)})
    known_chips = {"sm90": True, "sm86": True, "sm80": True, "sm75": False, "gfx942": False, "": False}
    for chip, known in known_chips.items():
        problem = replace(PROBLEM, chip=chip)
        assert speed.key(problem, triton)[0] == ("sm80" if known else chip or "cuda")
        assert (speed.seconds(problem, triton) is not None) == known


def test_the_parts_of_work_on_a_gpu_are_those_of_whole_tiles():
    """49 tokens of a window are 64, twice; 100 keys are two tiles of 64."""
    windows = replace(PROBLEM, grid=Grid(14, 14), key_grid=Grid(14, 14), mask=Structure(windows=(Windows((7, 7)),)))
    one, programs, streamed, scores, flops, copied, learned = speed.parts(windows, triton)
    assert (one, programs) == (1.0, 2 * 4 * 4)
    assert scores == 2 * 4 * 4 * 64 * 64
    assert flops == 2 * scores * 128
    assert streamed == windows.stream
    assert (copied, learned) == (0.0, 0.0)
    line = replace(PROBLEM, grid=Grid(100), key_grid=Grid(100), bias_grad=True)
    assert speed.parts(line, triton)[3] == 2 * 4 * 128 * 128
    assert speed.parts(line, triton)[6] == 2 * 4 * 128 * 128


def test_nothing_of_triton_is_imported_before_a_gpu_is_used():
    """By us: torch imports Triton itself where it is installed. What of ours imports it lies in locant.gpu."""
    code = """if True:
        import sys, torch, locant
        from locant import attention, Grid, RelativeTable
        q = torch.randn(1, 2, 6, 16)
        attention(q, q, q, grid=Grid(6), position=RelativeTable(Grid(6), 2))
        print([name for name in sys.modules if name.startswith("locant.gpu.")])
    """
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    assert told.split() == ["['locant.gpu.chips']"]


def test_on_cpus_nothing_changed():
    q, k, v = heads(Grid(6))
    table = RelativeTable(Grid(6), 2).double()
    same(attention(q, k, v, grid=Grid(6), position=table),
         attention(q, k, v, grid=Grid(6), position=table, kernel="reference"))  # fmt: skip
    assert dict(plan(q, k, v).passed_over)["triton"] == "these are kernels for GPUs, and the tensors are on cpu"
