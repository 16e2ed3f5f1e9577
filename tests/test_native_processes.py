"""The compiled kernels in threads and processes: Python threads, forks, DataLoader, torchrun; what they hold."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from laws import gradients
from torch import Tensor

from locant import Causal, Grid, Padding, RelativeTable, Windows, attention

pytestmark = pytest.mark.native

COMMON = '''
import torch
from locant import Causal, Grid, RelativeTable, Windows, attention

grid, mask = Grid(20, 21), Windows((7, 7), (3, 3))

def results(seed, threads):
    """Output and every gradient, under windows and on the whole grid, keys split."""
    torch.set_num_threads(threads)
    draw, found = torch.Generator().manual_seed(seed), []
    for where, reach in ((mask, Grid(7, 7)), (None, grid)):
        table = RelativeTable(reach, 2)
        table.table.data = torch.randn(table.table.shape, generator=draw)
        q, k, v = (torch.randn(1, 2, grid.tokens, 16, generator=draw).requires_grad_() for _ in range(3))
        out = attention(q, k, v, grid=grid, position=table, mask=where, kernel="native")
        found += [out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v, table.table))]
    return torch.cat([x.flatten() for x in found])
'''


def run(code: str, *arguments: str, module: tuple[str, ...] = (), timeout: int = 120, path: Path | None = None) -> str:
    """A Python of its own: what threads left behind in this one plays no part."""
    where = ["-c", code]
    if path is not None:
        path.write_text(code)
        where = [str(path)]
    command = [sys.executable, *module, *where, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


PROBLEMS = [
    (Grid(90), None, (2, 2)),
    (Grid(12, 13), Windows((5, 5), (2, 1)), (4, 2)),
    (Grid(9, 9, prefix=1), Causal(), (1, 1)),
    (Grid(70), Padding(torch.arange(70)[None] % 7 > 0), (3, 1)),
]


def results(number: int) -> list[Tensor]:
    grid, mask, (heads, kv) = PROBLEMS[number % len(PROBLEMS)]
    draw = torch.Generator().manual_seed(number)
    table = RelativeTable(grid, heads)
    for row in table.parameters():
        row.data = torch.randn(row.shape, generator=draw)
    q, k, v = (torch.randn(2, n, grid.tokens, 16, generator=draw).requires_grad_() for n in (heads, kv, kv))
    out = attention(q, k, v, grid=grid, position=table, mask=mask, kernel="native")
    return [out.detach(), *gradients(out, (q, k, v, *table.parameters()))]


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_python_threads_at_once(threads):
    """Each gives the bits that it gives alone: nothing is shared but what is never written."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        alone = [results(n) for n in range(8)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            together = list(pool.map(results, [n % 8 for n in range(80)]))
    finally:
        torch.set_num_threads(before)
    for n, found in enumerate(together):
        assert all(torch.equal(x, y) for x, y in zip(found, alone[n % 8], strict=True))


LOADER = (
    COMMON
    + """
class Attended(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return results(index, 1)

alone = torch.stack([results(n, 2) for n in range(6)])  # a parallel region before the fork
loaders = [torch.utils.data.DataLoader(Attended(), 2, num_workers=2, multiprocessing_context=c) for c in ("fork",)]
for loader in loaders:
    assert torch.equal(torch.cat(list(loader)), alone)
again = torch.stack([results(n, 2) for n in range(6)])  # and one after it
assert torch.equal(again, alone)
print("equal")
"""
)


def test_data_loaders_workers_attend():
    """Workers made by fork have one thread, and the same bits; the parent goes on with two."""
    assert run(LOADER) == "equal\n"


FORK = (
    COMMON
    + """
import os, sys
alone = results(0, 2)
reader, writer = os.pipe()
if os.fork() == 0:
    found = results(0, 1)  # torch's own rule: after a fork, one thread
    os.write(writer, b"equal" if torch.equal(found, alone) else b"other")
    os._exit(0)
os.wait()
print(os.read(reader, 5).decode())
"""
)


def test_a_forked_child_attends_on_one_thread():
    assert run(FORK) == "equal\n"


RANKS = (
    COMMON
    + """
import torch.distributed as dist
dist.init_process_group("gloo")
own = results(0, torch.get_num_threads())
everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
dist.all_gather(everyone, own)
assert len(everyone) == 2 and all(torch.equal(x, own) for x in everyone)
if dist.get_rank() == 0:
    torch.save(own, sys.argv[1])
dist.destroy_process_group()
"""
)


def test_two_processes_of_torchrun_give_the_bits_of_one(tmp_path):
    module = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run("import sys" + RANKS, str(tmp_path / "two.pt"), module=module, path=tmp_path / "ranks.py")
    alone: dict[str, object] = {}
    exec(COMMON, alone)
    before = torch.get_num_threads()
    try:
        assert torch.equal(torch.load(tmp_path / "two.pt"), alone["results"](0, 1))
    finally:
        torch.set_num_threads(before)


MEMORY = """
import sys, torch
from locant import Grid, RelativeTable, attention

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

side = int(sys.argv[1])
torch.set_num_threads(2)
for now in (4, side):  # what first calls keep is not this one's
    grid = Grid(now, now)
    table = RelativeTable(grid, 1, init_std=0.5)
    q, k, v = (torch.randn(1, 1, grid.tokens, 16).requires_grad_() for _ in range(3))
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    out = attention(q, k, v, grid=grid, position=table, kernel="native")
    out.sum().backward()
    rise = status("VmHWM") - before
assert out.isfinite().all() and all(x.grad.isfinite().all() for x in (q, k, v, table.table))
print(rise)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc (Linux)")
def test_a_learned_table_on_a_large_picture_holds_little():
    """128 × 128, forward and backward: a bias of 16,384² numbers alone were 1 GB; four such tensors are usual.

    256 × 256 takes 16 times as long; benchmarks/ run it, in half a GB.
    """
    assert int(run(MEMORY, "128")) < 100e6
