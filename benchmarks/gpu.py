"""Everything that a GPU has to tell, in one call of at most eight minutes, kept stage by stage.

    PYTHONPATH=src python benchmarks/gpu.py [--out FOLDER] [--seconds 450]
    PYTHONPATH=src python benchmarks/gpu.py --dry            tiny problems on a CPU, under Triton's interpreter
    python benchmarks/gpu.py --write FOLDER/gpu.json         docs/gpu.md, launches and costs, on any machine

Exactness comes first: kernels that fail are not timed. Then every goal against every peer, whole models, the constants
that the planner reads, ablations with what was predicted beside them, and launches tried beside those of the table.
Each stage has a time by which it ends, and says what it did not reach. FOLDER is a new temporary one by default.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DRY = "--dry" in sys.argv
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch  # noqa: E402
from costs import fit  # noqa: E402
from gpu_clock import Call, able, clocks, measured, reason, timed  # noqa: E402
from gpu_exact import bits, calls_of, exactness, nan, random_problems, tf32x3  # noqa: E402
from gpu_page import page, write  # noqa: E402
from gpu_peers import contenders, models, of_model, predicted, rolled  # noqa: E402
from gpu_problems import DEVICE, checked, dtypes, families, fitted, route, shapes, small, workload  # noqa: E402
from gpu_tuning import ablations, launches_tried, tuned, tuning, with_launch  # noqa: E402

from locant import Grid, planner, speed  # noqa: E402
from locant.gpu import chips  # noqa: E402
from locant.masks import Structure  # noqa: E402
from locant.measuring import machine, memory  # noqa: E402
from locant.measuring.workload import Workload  # noqa: E402

Results = dict[str, Any]
Rows = Iterator[dict[str, Any]]
PEERS = ("timm", "transformers", "torchvision")


# --- stages ----------------------------------------------------------------------------------------------------------


def card(_: Results) -> Rows:
    """What it is, and how fast it copies, multiplies and takes exponentials."""
    found = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "commit": machine.commit(), "dry": DRY,
        "triton": __import__("triton").__version__, "chip": chips.chip_of(DEVICE), "clocks": clocks(),
        "name": "none: a CPU, under Triton's interpreter" if DRY else torch.cuda.get_device_name(),
        "absent": [name for name in PEERS if find_spec(name) is None],
    }  # fmt: skip
    side, numbers, few = (64, 1 << 12, 1 << 8) if DRY else (8192, 1 << 30, 1 << 21)
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    x, y = (torch.zeros(numbers, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    z = torch.rand(few, device=DEVICE)
    calls = {"copy": lambda: y.copy_(x), "product": lambda: a @ b, "exp": lambda: torch.exp2(z)}
    times = timed(calls, rounds=10)
    yield found | {
        "copy TB/s": 4e-12 * numbers / times["copy"], "product TF/s": 2e-12 * side**3 / times["product"],
        "exp T/s": 1e-12 * few / times["exp"],
    }  # fmt: skip


def compiling(_: Results) -> Rows:
    """Every kernel once, in many processes: the caches on the disk serve the stages that follow."""
    count = 1 if DRY else min(12, os.cpu_count() or 1)
    command = [sys.executable, __file__, *(["--dry"] if DRY else []), "--warm"]
    start, environment = time.monotonic(), os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, f"{n}/{count}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for n in range(count)
    ]
    said = []
    for process in running:
        try:
            said.append(process.communicate(timeout=max(1.0, 60 - (time.monotonic() - start)))[0].decode())
        except subprocess.TimeoutExpired:
            process.kill()
            said.append(process.communicate()[0].decode() + "stopped: a minute was over\n")
    lines = [line for text in said for line in text.splitlines() if line.startswith(("failed", "stopped"))]
    yield {"processes": count, "seconds": time.monotonic() - start, "failed": lines[:20]}


def chores() -> Iterator[tuple[str, Call]]:
    """What compiles: the goals with flex_attention first, for they take longest."""
    for name, make in shapes().items():
        for what in ("forward", "train"):
            yield (
                f"{name} {what}",
                lambda name=name, make=make, what=what: [
                    call()
                    for key, call in contenders(name, make(), True).items()
                    if key in (f"triton {what}", f"flex {what}")
                ],
            )
    for name, make in families().items():
        for dtype in dtypes():
            yield f"{name} {dtype}", lambda make=make, dtype=dtype: [each() for each in calls_of(make(dtype)).values()]
    seen = set[str]()
    for name, work in small(1 if DRY else 300):
        if name not in seen:
            seen.add(name)
            yield name, lambda work=work: [each() for each in calls_of(work).values()]
    for channels, kernel, one in launches_tried():
        yield f"{kernel} {one}", partial(with_launch, kernel, one, tuned(channels).gradients)


def warm(share: str) -> None:
    """One process of those that compile: every so-manyth chore."""
    number, count = map(int, share.split("/"))
    for at, (name, chore) in enumerate(chores()):
        if at % count == number and not (DRY and at % 16):
            try:
                chore()
            except Exception as error:
                print(f"failed: {name}: {reason(error)}", flush=True)


def goals(results: Results) -> Rows:
    """Medians of interleaved rounds, as CUDA graphs and one by one; nothing of kernels that were not exact."""
    red = {row["route"] for row in results.get("exactness", []) if row.get("red")}
    for name, make in shapes().items():
        work = make()
        ours = route(work) not in red
        calls, refused = able(contenders(name, work, ours))
        row: dict[str, Any] = {"shape": name, "stream": work.plan(train=False).problem.stream, "refused": refused}
        row |= {} if ours else {"not timed": "triton: it was not exact on this device"}
        mask = Structure.of(work.mask).windows
        if mask:
            roll, arguments, _ = rolled(work, mask[0])
            same = work.forward("sdpa").transpose(1, 2).flatten(2).unflatten(1, work.grid.shape)
            row["roll apart"] = (roll(*arguments).float() - same.float()).abs().max().item()
        yield row | measured(calls, rounds=2 if DRY else 12)


def memory_held(_: Results) -> Rows:
    """What training holds beyond q, k, v, the output and their gradients."""
    for side in (4,) if DRY else (64, 256):
        work = workload(Grid(side, side), 1, 1 if DRY else 12, 16 if DRY else 64)
        work.gradients("triton")
        extra = memory.extra(partial(work.gradients, "triton"), DEVICE)
        rows = 4 * work.q.numel() * work.q.element_size()
        yield {"tokens": side**2, "bytes": None if DRY or extra is None else extra - rows}


def constants(_: Results) -> Rows:
    """What the planner needs to know of this chip: seconds for each part of the work, by least relative error."""
    for dtype in (torch.bfloat16,) if DRY else (torch.bfloat16, torch.float16):
        rows: dict[tuple[str, ...], list[Any]] = {}
        for make in fitted():
            work = make(dtype)
            for key, problem, kernel, took in _timed_kernels(work, rounds=1 if DRY else 5):
                rows.setdefault(key, []).append((speed.parts(problem, planner.named(kernel)), took))
            yield {"measured": f"{work.grid}, {len(work.q)} × {work.q.shape[1]} × {work.q.shape[3]}, {dtype}"}
        for key, times in rows.items():
            found = fit(times)
            off = [sum(a * b for a, b in zip(parts, found, strict=True)) / took for parts, took in times]
            yield {"key": list(key), "constants": found, "predicted / true": [min(off), max(off)]}


def checks(results: Results) -> Rows:
    """Whether the constants pick the faster kernel on problems that they were not fitted to, or one within 10 %."""
    own = {tuple(row["key"]): row["constants"] for row in results.get("constants", []) if "key" in row}
    for name, make in checked().items():
        by_mode: dict[str, dict[str, tuple[float, float | None]]] = {}
        for key, problem, kernel, took in _timed_kernels(make(torch.bfloat16), rounds=1 if DRY else 5):
            by_mode.setdefault(key[-1], {})[kernel] = (took, predicted(problem, kernel, own))
        for mode, found in by_mode.items():
            times = {kernel: took for kernel, (took, _) in found.items()}
            guess = {kernel: told for kernel, (_, told) in found.items() if told is not None}
            chosen = min(guess, key=lambda k: guess[k]) if guess else None
            right = chosen is not None and times[chosen] <= 1.1 * min(times.values())
            yield {"problem": name, "mode": mode, "seconds": times, "predicted": guess, "right": right}


def _timed_kernels(work: Workload, rounds: int) -> Iterator[tuple[tuple[str, ...], Any, str, float]]:
    """(key, problem, kernel, seconds) of Triton's and torch's kernels, forward and with gradients."""
    for train, call in ((False, work.forward), (True, work.gradients)):
        problem = work.plan(train=train).problem
        for kernel in ("triton", "sdpa"):
            if planner.named(kernel).refuses(problem) is None:
                calls, _ = able({"": partial(call, kernel)})
                if calls:
                    yield speed.key(problem, planner.named(kernel)), problem, kernel, timed(calls, rounds)[""]


def whole_models(results: Results) -> Rows:
    """Models of other libraries as they are, and with Triton's kernels in them; absent libraries by name."""
    if any(row.get("red") for row in results.get("exactness", [])):
        yield {"said": "not timed: the kernels were not exact on this device"}
        return
    for name, make in models():
        try:
            yield {"model": name, **of_model(make, partial(measured, rounds=1 if DRY else 8))}
        except Exception as error:  # a library that is absent, or does not fit torch here
            yield {"model": name, "absent": reason(error)}


def after(_: Results) -> Rows:
    """The clocks once more: a card that was hot is slower."""
    yield {"clocks": clocks()}


# --- the run ---------------------------------------------------------------------------------------------------------

STAGES: tuple[tuple[Callable[[Results], Rows], float], ...] = (  # and the share of all seconds by which each ends
    (card, 0.04), (compiling, 0.2), (exactness, 0.33), (tf32x3, 0.33), (random_problems, 0.4), (bits, 0.42),
    (nan, 0.42),
    (goals, 0.62), (memory_held, 0.64), (whole_models, 0.75), (ablations, 0.82), (constants, 0.92), (checks, 0.95),
    (tuning, 1.0), (after, 1.0),
)  # fmt: skip


def run(folder: Path, seconds: float) -> Results:
    """All stages; a failure is a row, and the next stage begins. The file is written after each row."""
    begun, results = time.monotonic(), Results()
    for stage, share in STAGES:
        results[stage.__name__] = rows = list[dict[str, Any]]()
        started = time.monotonic() - begun
        try:
            for row in stage(results):
                rows.append(row)
                (folder / "gpu.json").write_text(json.dumps(results, indent=1))
                if time.monotonic() - begun > share * seconds and stage is not card:
                    rows.append({"said": f"stopped here: its {share * seconds:.0f} s were over"})
                    break
        except Exception as error:
            rows.append({"said": f"failed: {reason(error)}"})
        now = time.monotonic() - begun
        said = [row["said"] for row in rows if "said" in row]
        print(
            f"{now:5.0f} s  {stage.__name__}, {len(rows)} rows in {now - started:.0f} s {'; '.join(said)}", flush=True
        )
    (folder / "gpu.json").write_text(json.dumps(results, indent=1))
    (folder / "gpu.md").write_text(page(results))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md (a new temporary one)")
    parser.add_argument("--seconds", type=float, help="of all stages together (450; 170 with --dry)")
    parser.add_argument("--dry", action="store_true", help="every stage on tiny problems, on a CPU")
    parser.add_argument("--write", type=Path, metavar="JSON", help="docs/gpu.md, launches and costs from a result")
    parser.add_argument("--into", type=Path, help="with --write: another folder than this checkout, to look at first")
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write is not None:
        print(write(json.loads(given.write.read_text()), given.into))
        return
    if not DRY and not torch.cuda.is_available():
        parser.error("needs a GPU, and there is none. Run it with --dry, which tries every stage on a CPU.")
    if given.warm is not None:
        warm(given.warm)
        return
    folder = Path(tempfile.mkdtemp(prefix="gpu-")) if given.out is None else given.out
    folder.mkdir(parents=True, exist_ok=True)
    results = run(folder, (170 if DRY else 450) if given.seconds is None else given.seconds)
    lines = [line for line in page(results).splitlines() if "not reached" not in line]
    print("\n".join(lines[: 58 - len(STAGES)]))
    print(folder / "gpu.json")


if __name__ == "__main__":
    main()
