"""Everything that a GPU has to tell, in one call of at most nine minutes, kept stage by stage.

    PYTHONPATH=src python benchmarks/gpu.py [--out FOLDER] [--seconds 450]
    PYTHONPATH=src python benchmarks/gpu.py --dry            tiny problems on a CPU, under Triton's interpreter
    python benchmarks/gpu.py --write FOLDER/gpu.json         docs/gpu.md, launches and costs, on any machine

Exactness comes first: what fails is not timed. Then every goal against every peer, launches tried beside those of the
table, and the constants that the planner reads. FOLDER is a new temporary one by default.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DRY = "--dry" in sys.argv
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch  # noqa: E402
from costs import fit  # noqa: E402
from gpu_page import write  # noqa: E402

from locant import Causal, Grid, Padding, RelativeTable, Windows, attention, planner, speed  # noqa: E402
from locant.cells import reach  # noqa: E402
from locant.gpu import chips, launches  # noqa: E402
from locant.masks import Mask, Structure  # noqa: E402
from locant.measuring import machine  # noqa: E402
from locant.measuring.exactness import Truth  # noqa: E402
from locant.measuring.workload import Workload  # noqa: E402

DEVICE = "cpu" if DRY else "cuda"
Call = Callable[[], object]


def workload(
    grid: Grid, batch: int, heads: int, head_dim: int, mask: Mask | None = None, key_grid: Grid | None = None,
    kv_heads: int | None = None, dtype: torch.dtype = torch.bfloat16, table: bool = True,
) -> Workload:  # fmt: skip
    """A problem on the device, its table learned in float32."""
    key_grid = grid if key_grid is None else key_grid
    needed = reach(grid, key_grid, Structure.of(mask).windows)
    position = RelativeTable(Grid(*(n + 1 for n in needed), prefix=grid.prefix), heads, init_std=0.5) if table else None
    work = Workload.draw(
        batch, heads, head_dim, grid, key_grid=key_grid, kv_heads=kv_heads, position=position, mask=mask, dtype=dtype
    )
    moved = {n: getattr(work, n).detach().to(DEVICE) for n in ("q", "k", "v", "dout")}
    moved |= {n: moved[n].requires_grad_() for n in "qkv"}
    return replace(
        work, **moved, position=None if position is None else position.to(DEVICE),
        mask=None if mask is None else mask.to(torch.device(DEVICE)),
    )  # fmt: skip


def lengths(batch: int, tokens: int) -> Padding:
    return Padding.from_lengths(torch.linspace(tokens // 2, tokens, batch).long(), tokens)


def families() -> dict[str, Callable[[torch.dtype], Workload]]:
    """What has to be exact: global, prefix, order, padding, windows, grouped heads, slices; ragged to all tiles."""
    n = 1 if DRY else 3  # how much larger than the smallest

    def of(grid: Grid, *sizes: int, **options: Any) -> Callable[[torch.dtype], Workload]:
        return lambda dtype: workload(grid, *sizes, dtype=dtype, **options)

    line = Grid(37 * n, prefix=1)
    return {
        "line with a prefix": of(line, 2, 2, 16),
        "plane": of(Grid(5 * n, 7 * n), 2, 2, 64 if n > 1 else 16),
        "clip": of(Grid(2, 4 * n, 5), 2, 2, 32),
        "causal": of(Grid(33 * n), 2, 2, 16, mask=Causal()),
        "padding": of(Grid(30 * n), 2, 2, 16, mask=lengths(2, 30 * n)),
        "windows of 49": of(Grid(14, 14), 2, 2, 32, mask=Windows((7, 7), (3, 3))),
        "windows beyond 64": of(Grid(9, 16 * n - 8), 1, 2, 16, mask=Windows((9, 8 if DRY else 16))),
        "windows with a prefix": of(Grid(9, 10, prefix=1), 2, 2, 16, mask=Windows((4, 3), (1, 2))),
        "grouped heads": of(Grid(20 * n), 2, 4, 16, kv_heads=2),
        "a slice of the keys": of(Grid(40 * n)[30 * n :], 2, 2, 16, key_grid=Grid(40 * n), mask=Causal()),
        "wide heads": of(Grid(25), 1, 2, 128),
    }


def dtypes() -> tuple[torch.dtype, ...]:
    return (torch.float32, torch.bfloat16) if DRY else (torch.bfloat16, torch.float16, torch.float32)


# --- stages ----------------------------------------------------------------------------------------------------------


def card(_: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What it is, and how fast it copies and multiplies."""
    found = {
        "torch": torch.__version__, "commit": machine.commit(), "chip": chips.chip_of(DEVICE), "dry": DRY,
        "triton": __import__("triton").__version__,
        "name": "none: a CPU, under Triton's interpreter" if DRY else torch.cuda.get_device_name(),
        "absent": [name for name in ("timm", "transformers") if find_spec(name) is None],
    }  # fmt: skip
    side, numbers = (64, 1 << 12) if DRY else (8192, 1 << 30)
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    x, y = (torch.empty(numbers, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    times = timed({"copy": lambda: y.copy_(x), "product": lambda: a @ b})
    yield found | {"copy TB/s": 4e-12 * numbers / times["copy"], "product TF/s": 2e-12 * side**3 / times["product"]}


def exactness(_: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every family in every dtype by the policy of exactness, forward and gradients; a sentence where it is refused."""
    for name, make in families().items():
        for dtype in dtypes():
            work = make(dtype)
            row: dict[str, Any] = {"family": name, "dtype": str(dtype)[6:]}
            train = planner.named("triton").refuses(work.plan(train=True).problem) is None
            if not train and (why := planner.named("triton").refuses(work.plan(train=False).problem)):
                yield row | {"refused": why}
                continue
            found = Truth(work, train=train).check("triton")
            yield row | {"red": any(f.red for f in found), "errors": {f.what: (f.error, f.limit) for f in found}}


def bits(_: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Repeats give the same bits, all gradients."""
    for name in ("plane", "windows of 49"):
        work = families()[name](torch.bfloat16)
        first = work.gradients("triton")
        repeats = 2 if DRY else 50
        equal = all(
            torch.equal(a, b) for _ in range(repeats) for a, b in zip(first, work.gradients("triton"), strict=True)
        )
        yield {"family": name, "repeats": repeats, "equal": equal}


def nan(_: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """cuDNN's backward under a mask, where keys % 128 is 64 and a row's log-sum-exp lies below -88.7."""
    if DRY:
        yield {"said": "needs a device"}
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (torch.randn(1, 1, 64, 64, device=DEVICE, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    bias = torch.full((1, 1, 64, 64), -120.0, device=DEVICE, dtype=torch.bfloat16)

    def nans(backends: list[Any]) -> bool | str:
        try:
            with sdpa_kernel(backends):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)
                return bool(torch.autograd.grad(out.sum(), q)[0].isnan().any())
        except RuntimeError as error:
            return str(error).splitlines()[0]

    position = RelativeTable(Grid(64), 1).to(DEVICE)
    torch.nn.init.constant_(position.table, -120.0)
    (ours,) = torch.autograd.grad(attention(q, k, v, grid=Grid(64), position=position, kernel="sdpa").sum(), q)
    yield {"cuDNN": nans([SDPBackend.CUDNN_ATTENTION]), "kernel sdpa": bool(ours.isnan().any())}


def shapes() -> dict[str, Workload]:
    """The problems of the goals."""
    if DRY:
        return {
            "14²": workload(Grid(4, 4), 1, 2, 16),
            "7×7 windows": workload(Grid(6, 6), 1, 2, 16, mask=Windows((3, 3), (1, 1))),
        }
    swin, clip = Windows((7, 7), (3, 3)), Windows((8, 7, 7), (0, 3, 3))
    return {
        "14²": workload(Grid(14, 14), 128, 12, 64), "28²": workload(Grid(28, 28), 32, 12, 64),
        "64²": workload(Grid(64, 64), 4, 12, 64), "7×7 windows": workload(Grid(56, 56), 64, 3, 32, mask=swin),
        "8×8 windows": workload(Grid(64, 64), 64, 4, 32, mask=Windows((8, 8), (4, 4))),
        "12×12 windows": workload(Grid(96, 96), 16, 4, 32, mask=Windows((12, 12), (6, 6))),
        "8×7×7 windows": workload(Grid(16, 56, 56), 8, 3, 32, mask=clip),
    }  # fmt: skip


def contenders(work: Workload) -> dict[str, Call]:
    """Ours, and what one would use instead; forward alone, and with every gradient."""
    q, k, v = (x.detach() for x in (work.q, work.k, work.v))
    learned = [x.detach().requires_grad_() for x in (q, k, v)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    found: dict[str, Call] = {
        "none forward": lambda: sdpa(q, k, v),
        "none train": lambda: torch.autograd.grad(sdpa(*learned), learned, work.dout),
    }
    for kernel in ("triton", "sdpa", "flex"):
        if planner.named(kernel).refuses(work.plan(train=True).problem) is None:
            found[f"{kernel} forward"] = partial(work.forward, kernel)
            found[f"{kernel} train"] = partial(work.gradients, kernel)
    if not Structure.of(work.mask).windows and work.position is not None:
        form = work.plan(train=False).problem.bias
        assert form is not None
        bias = work.position.values(form, q.device).dense(work.grid, work.key_grid).to(q.dtype)[None].detach()
        found["expanded forward"] = lambda: sdpa(q, k, v, bias)
    elif Structure.of(work.mask).windows:  # the same products on windows that were cut before, without position
        count = work.mask.members()[0].size
        cut = [x.reshape(-1, x.shape[1], int(torch.tensor(count).prod()), x.shape[3]) for x in (q, k, v)]
        found["none forward"] = lambda: sdpa(*cut)
        del found["none train"]
    return found


def goals(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Medians of interleaved rounds; nothing of a kernel that was not exact."""
    if any(row.get("red") for row in results.get("exactness", [])):
        yield {"said": "not timed: the kernels were not exact on this device"}
        return
    for name, work in shapes().items():
        times = timed(contenders(work), rounds=2 if DRY else 12)
        yield {
            "shape": name,
            "ms": {k: 1e3 * t for k, t in times.items()},
            "stream": work.plan(train=False).problem.stream,
        }


def memory(_: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What training holds beyond q, k, v, the output and their gradients."""
    for side in (4,) if DRY else (64, 256):
        work = workload(Grid(side, side), 1, 2 if DRY else 12, 16 if DRY else 64)
        if DRY:
            work.gradients("triton")
            yield {"tokens": side**2, "said": "needs a device"}
            continue
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work.gradients("triton")
        rows = 4 * work.q.numel() * work.q.element_size()
        yield {"tokens": side**2, "bytes": torch.cuda.max_memory_allocated() - before - rows}


def tuning(_: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each pass with other tiles and warps, all else as in the table."""
    own = chips.chip_of(DEVICE)
    tried = [(64, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 2), (64, 128, 8, 2), (128, 128, 8, 2), (64, 64, 4, 3)]
    for channels in (16,) if DRY else (32, 64, 128):
        work = workload(Grid(4, 4) if DRY else Grid(28, 28), 1 if DRY else 16, 2 if DRY else 12, channels)
        for kernel in ("forward", "keys", "queries", "table"):
            call = work.forward if kernel == "forward" else work.gradients
            times = {}
            for shape in [(16, 16, 4, 2)] if DRY else tried:
                one = launches.Launch(*shape)
                kept, launches.launch = launches.launch, _with(launches.launch, kernel, one)
                try:
                    times[str(tuple(one))] = 1e3 * timed({"": partial(call, "triton")}, rounds=1 if DRY else 5)[""]
                except Exception as error:  # too many registers, or too much shared memory
                    times[str(tuple(one))] = str(error).splitlines()[-1][:80]
                finally:
                    launches.launch = kept
            yield {"chip": own, "kernel": kernel, "channels": channels, "ms": times}


def _with(before: Callable[..., launches.Launch], kernel: str, one: launches.Launch) -> Callable[..., launches.Launch]:
    return lambda chip, name, channels: one if name == kernel else before(chip, name, channels)


def constants(_: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the planner needs to know of this chip: seconds for each part of the work, by least relative error."""
    grids = [(Grid(4, 4), None)] if DRY else [
        (Grid(14, 14), None), (Grid(28, 28), None), (Grid(64, 64), None), (Grid(197), None), (Grid(1024), Causal()),
        (Grid(56, 56), Windows((7, 7))), (Grid(64, 64), Windows((8, 8), (4, 4))), (Grid(48, 48), Windows((12, 12))),
    ]  # fmt: skip
    rows: dict[tuple[str, str], list[Any]] = {}
    for grid, mask in grids:
        for batch, heads, channels in [(1, 2, 16)] if DRY else [(1, 4, 32), (8, 12, 64), (32, 3, 32)]:
            work = workload(grid, batch, heads, channels, mask=mask)
            for kernel in ("triton", "sdpa"):
                for mode, call in (("forward", work.forward), ("learned", work.gradients)):
                    problem = work.plan(train=mode != "forward").problem
                    if planner.named(kernel).refuses(problem) is None:
                        took = timed({"": partial(call, kernel)}, rounds=1 if DRY else 5)[""]
                        rows.setdefault((kernel, mode), []).append((speed.parts(problem, planner.named(kernel)), took))
    for (kernel, mode), measured in rows.items():
        yield {"key": [chips.chip_of(DEVICE), kernel, "bfloat16", mode], "constants": fit(measured)}


# --- clock -----------------------------------------------------------------------------------------------------------


def timed(calls: dict[str, Call], rounds: int = 3) -> dict[str, float]:
    """The median seconds of each, all in turn; by CUDA events on a device, each call after a flush of its cache."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    flush = None if DRY else torch.empty(1 << 28, dtype=torch.uint8, device=DEVICE)
    for number in range(rounds + 1 - DRY):
        for name, call in calls.items():
            if flush is None:
                start = time.perf_counter()
                call()
                found[name].append(time.perf_counter() - start)
                continue
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            if number:  # the first round compiles
                found[name].append(start.elapsed_time(end) / 1e3)
    return {name: sorted(times)[len(times) // 2] for name, times in found.items()}


STAGES = (card, exactness, bits, nan, goals, memory, tuning, constants)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for gpu.json (a new temporary one)")
    parser.add_argument("--seconds", type=float, default=450, help="no row begins after so many (450)")
    parser.add_argument("--dry", action="store_true", help="every stage on tiny problems, on a CPU")
    parser.add_argument("--write", type=Path, metavar="JSON", help="docs/gpu.md, launches and costs from a result")
    given = parser.parse_args()
    if given.write is not None:
        print(write(json.loads(given.write.read_text())))
        return
    if not DRY and not torch.cuda.is_available():
        parser.error("needs a GPU, and there is none. Run it with --dry, which tries every stage on a CPU.")
    folder = Path(tempfile.mkdtemp(prefix="gpu-")) if given.out is None else given.out
    folder.mkdir(parents=True, exist_ok=True)
    begun, results = time.monotonic(), dict[str, Any]()
    for stage in STAGES:
        results[stage.__name__] = rows = []
        for row in stage(results):
            rows.append(row)
            (folder / "gpu.json").write_text(json.dumps(results, indent=1))
            print(f"{time.monotonic() - begun:5.0f} s  {stage.__name__}: {str(row)[:150]}", flush=True)
            if time.monotonic() - begun > given.seconds:
                rows.append({"said": f"stopped here: {given.seconds:.0f} s were over"})
                break
    (folder / "gpu.json").write_text(json.dumps(results, indent=1))
    print(folder / "gpu.json")


if __name__ == "__main__":
    main()
