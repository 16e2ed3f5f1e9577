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

from locant import Causal, Grid, Padding, RelativeTable, Windows, attention, plan, planner, speed
from locant.cells import reach
from locant.forms import AxialVectors, OffsetTable
from locant.gpu import chips
from locant.integrations import model
from locant.integrations.family import Attended
from locant.kernels import sdpa, triton
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


def test_a_models_row_names_the_kernel_of_its_own_device(present, monkeypatch):
    """What `accelerate` reports of a model on a GPU is planned for that chip."""
    monkeypatch.setattr(chips, "_chip", lambda device: "sm90")
    costs = {"triton": 1.0, "sdpa": 3.0}
    measured = {("sm90", name, "bfloat16", "learned"): (cost, *[0.0] * 6) for name, cost in costs.items()}
    monkeypatch.setattr(speed, "SECONDS", measured)
    monkeypatch.setattr(planner, "SECONDS", measured)
    planner._planned.cache_clear()
    attended = Attended(4, 64, RelativeTable(Grid(7, 7), 4), Grid(14, 14), Windows((7, 7), (3, 3)))
    narrow, wide, here = (torch.nn.Linear(64, 64, bias=False, device="meta") for _ in range(3))
    with FakeTensorMode():
        for layer, dtype in ((narrow, torch.bfloat16), (wide, torch.float32)):
            layer.weight = torch.nn.Parameter(torch.empty(64, 64, device="cuda", dtype=dtype))
        assert model._planned(attended, narrow) == ("triton", 3.0)
        assert model._planned(attended, wide) == ("sdpa", None)  # never measured in float32
    assert model._planned(attended, here)[0] != "triton"
    planner._planned.cache_clear()


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


def test_importing_locant_imports_no_triton():
    """Nor asks whether it is there. torch does, where it is installed: whose line asks is what counts."""
    code = """if True:
        import sys, torch
        class Heard:
            def find_spec(self, name, path=None, target=None):
                frame = sys._getframe(1)
                while "importlib" in frame.f_code.co_filename:
                    frame = frame.f_back
                if name.partition(".")[0] == "triton" and "locant" in frame.f_code.co_filename:
                    print("asked for by", frame.f_code.co_filename)
        def forget():  # torch imports it, where it is installed: who asks later would find it without asking
            for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
                del sys.modules[name]
        forget()
        sys.meta_path.insert(0, Heard())
        import locant, locant.nn, locant.kernels.triton, locant.kernels.flex
        from locant.gpu import chips
        print("imported")
        forget()
        chips.has_triton()
    """
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    imported, asked = told.splitlines()
    assert imported == "imported"
    assert asked.startswith("asked for by")  # the finder hears: has_triton() asks, at the first call that needs to know
    assert asked.endswith("chips.py")


@pytest.mark.parametrize("mask", [None, Windows((3, 3), (1, 1)), Causal(), "padding"], ids=str)
def test_a_bias_for_torchs_attention_on_gpus_has_whole_rows(mask, monkeypatch):
    """Rows of keys begin at multiples of 8 numbers, so that torch copies none; values and gradients are the same."""
    grid = Grid(5, 7, prefix=1)
    mask = Padding.from_lengths(torch.tensor([36, 20]), 36) if mask == "padding" else mask
    inputs, table = heads(grid), RelativeTable(grid, 2, init_std=0.5).double()
    seen = []

    def kept(q, k, v, bias, *rest, **named):
        seen.append((k.shape[2], bias))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, *rest, **named)

    def called():
        q, k, v = (x.detach().requires_grad_() for x in inputs)
        out = attention(q, k, v, grid=grid, position=table, mask=mask, kernel="sdpa")
        return [out, *torch.autograd.grad(out.square().sum(), (q, k, v, *table.parameters()))]

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", kept)
    plain = called()
    assert any(bias.stride(-2) % 8 for _, bias in seen)
    seen.clear()
    monkeypatch.setattr(sdpa, "_reads_whole_rows", lambda q: True)
    for found, golden in zip(called(), plain, strict=True):
        same(found, golden)
    assert all(bias.shape[-1] == keys for keys, bias in seen)
    shared = [bias for _, bias in seen if bias.shape[0] == 1]  # by sample or by cell they are copied all the same
    assert shared or isinstance(mask, Padding)
    for bias in shared:
        assert not any(stride % 8 for n, stride in zip(bias.shape[:-1], bias.stride(), strict=False) if n > 1)


def test_a_learned_bias_costs_torchs_attention_its_gradient_of_every_pair():
    learned, fixed = (sdpa.work(replace(PROBLEM, bias_grad=learns)) for learns in (True, False))
    assert learned.held - fixed.held == 2 * 4 * 6 * 6 * 2
    assert "its gradient is written for every pair and sample, 576 bytes" in " ".join(learned.notes)


def _why_no_nccl() -> str | None:
    if not torch.cuda.is_available():
        return "nccl joins processes on GPUs alone, and torch finds none here"
    if not torch.distributed.is_nccl_available():
        return "torch was built without nccl"
    return None if torch.cuda.get_device_capability() >= (8, 0) else "the kernels need compute capability 8.0"


NCCL = """
import os, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from locant import Causal, Grid, Padding, RelativeTable, attention

class Attends(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(64, 192, dtype=torch.bfloat16)
        self.position = RelativeTable(Grid(6, 6), 2)

    def forward(self, x):
        q, k, v = self.qkv(x).view(len(x), 36, 3, 2, 32).permute(2, 0, 3, 1, 4).unbind(0)
        return attention(q, k, v, grid=Grid(6, 6), position=self.position, kernel="triton")

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.cuda.set_device(rank)
dist.init_process_group("nccl")
torch.manual_seed(0)
model = Attends().cuda()
x = torch.randn(4, 36, 64, device="cuda", dtype=torch.bfloat16)
whole = torch.autograd.grad(model(x).float().square().mean(), list(model.parameters()))
together = DistributedDataParallel(model)
together(x[rank::size]).float().square().mean().backward()
for parameter, golden in zip(model.parameters(), whole, strict=True):
    apart = (parameter.grad - golden).abs().max().item()
    assert apart <= 4 * torch.finfo(torch.bfloat16).eps * golden.abs().max().item(), apart
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.skipif(_why_no_nccl() is not None, reason=str(_why_no_nccl()))
def test_processes_joined_by_nccl_average_the_gradients(tmp_path):
    """DistributedDataParallel over nccl, a GPU to each of at most two processes: the gradients of the whole batch."""
    (tmp_path / "ranks.py").write_text(NCCL)
    count = min(2, torch.cuda.device_count())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.split() == ["equal"] * count, done.stderr


def test_on_cpus_nothing_changed():
    q, k, v = heads(Grid(6))
    table = RelativeTable(Grid(6), 2).double()
    same(attention(q, k, v, grid=Grid(6), position=table),
         attention(q, k, v, grid=Grid(6), position=table, kernel="reference"))  # fmt: skip
    assert dict(plan(q, k, v).passed_over)["triton"] == "these are kernels for GPUs, and the tensors are on cpu"
