"""The constants by which the planner tells which kernel is the faster one (locant.speed), measured and fitted here.

    python benchmarks/costs.py [--threads 1] [--seconds 0.3] [--write] [--check [--only PART]]

Each constant is at least 0, and all are fitted to timed problems by the least relative error. --write puts them into
src/locant/costs.py; --check shows what they predict for problems that they were not fitted to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from locant import ALiBi, Causal, Decomposed, Grid, Padding, RelativeTable, Shaw, TransformerXL, Windows, planner, speed
from locant.kernels import reference
from locant.measuring import machine
from locant.measuring.clock import Gate, time_in_turn
from locant.measuring.fitting import fit
from locant.measuring.workload import Workload

TARGET = Path(__file__).parents[1] / "src" / "locant" / "costs.py"
DTYPES = ("float32", "float64", "bfloat16", "float16")
PAIR = ("native", "sdpa")  # that --check tells apart
Make = Callable[[torch.dtype], Workload]
HEAD = '''"""How long each part of a kernel's work takes, for comparing kernels (locant.speed).

Written by benchmarks/costs.py, not by hand. In seconds per call, item, FLOP, score, query byte, key byte and copied
byte; by device, kernel, dtype and mode: "forward", "train" (forward and backward), "learned" (and a bias learns).
Measured on {processor} ({instructions}), {threads}, torch {torch}, commit {commit}, {date}.
"""

PROCESSOR = "{processor}"  # another one has its own ratios: `locant bench` measures them
SECONDS: dict[tuple[str, str, str, str], tuple[float, ...]] = {{
'''


def plain(batch: int, heads: int, tokens: int, head_dim: int) -> Make:
    return lambda dtype: Workload.draw(batch, heads, head_dim, Grid(tokens), dtype=dtype)


def table(batch: int, heads: int, head_dim: int, grid: Grid, window: tuple[int, ...] = (), shift: int = 0) -> Make:
    def make(dtype: torch.dtype) -> Workload:
        mask = Windows(window, (shift,) * len(window)) if window else None
        position = RelativeTable(Grid(*window) if window else grid, heads).to(dtype)
        return Workload.draw(batch, heads, head_dim, grid, position=position, mask=mask, dtype=dtype)

    return make


def decode(batch: int, heads: int, kv_heads: int, head_dim: int, queries: int, keys: int, slopes: bool = False) -> Make:
    def make(dtype: torch.dtype) -> Workload:
        line = Grid(keys)
        return Workload.draw(
            batch, heads, head_dim, line[keys - queries :], key_grid=line, kv_heads=kv_heads, mask=Causal(),
            position=ALiBi(heads) if slopes else None, dtype=dtype,
        )  # fmt: skip

    return make


def crossed(batch: int, heads: int, head_dim: int, queries: int, keys: int) -> Make:
    return lambda dtype: Workload.draw(batch, heads, head_dim, Grid(queries), key_grid=Grid(keys), dtype=dtype)


def masked(batch: int, heads: int, head_dim: int, tokens: int, mask: str, slopes: bool = False) -> Make:
    def make(dtype: torch.dtype) -> Workload:
        lengths = torch.linspace(tokens // 2, tokens, batch).long()
        made = Causal() if mask == "causal" else Padding.from_lengths(lengths, tokens)
        position = ALiBi(heads) if slopes else None
        return Workload.draw(batch, heads, head_dim, Grid(tokens), mask=made, position=position, dtype=dtype)

    return make


def picture(batch: int, heads: int, head_dim: int, grid: Grid, window: tuple[int, ...] = ()) -> Make:
    def make(dtype: torch.dtype) -> Workload:
        met = Decomposed(Grid(*window) if window else grid, heads, head_dim).to(dtype)
        mask = Windows(window, (0,) * len(window)) if window else None
        return Workload.draw(batch, heads, head_dim, grid, position=met, mask=mask, dtype=dtype)

    return make


def sequence(batch: int, heads: int, head_dim: int, queries: int, keys: int, order: bool, clip: int = 0) -> Make:
    def make(dtype: torch.dtype) -> Workload:
        met = Shaw(heads, head_dim, clip, biases=True) if clip else TransformerXL(heads * head_dim, heads)
        line = Grid(keys)
        return Workload.draw(
            batch, heads, head_dim, line[keys - queries :] if keys > queries else line, key_grid=line,
            mask=Causal() if order else None, position=met.to(dtype), dtype=dtype,
        )  # fmt: skip

    return make


FITTED: tuple[Make, ...] = (
    plain(1, 4, 16, 16), plain(32, 8, 16, 32), plain(1, 1, 64, 32), plain(8, 8, 64, 64), plain(4, 8, 100, 32),
    plain(2, 8, 196, 64), plain(2, 4, 196, 32), plain(1, 4, 784, 64), plain(1, 4, 784, 32), plain(1, 2, 784, 128),
    plain(1, 2, 784, 16), plain(1, 2, 512, 256), plain(1, 1, 1600, 64),
    table(8, 4, 16, Grid(4, 4)), table(8, 8, 32, Grid(8, 8)), table(2, 8, 64, Grid(14, 14)),
    table(4, 4, 32, Grid(14, 14)), table(1, 4, 64, Grid(28, 28)), table(1, 2, 32, Grid(40, 40)),
    table(2, 6, 32, Grid(28, 28), (7, 7)), table(2, 6, 32, Grid(28, 28), (7, 7), 3),
    table(2, 24, 32, Grid(7, 7), (7, 7)), table(1, 4, 32, Grid(36, 36), (12, 12), 6),
    table(1, 4, 64, Grid(8, 14, 14), (8, 1, 1)),
    decode(1, 32, 32, 64, 1, 1024), decode(1, 8, 8, 64, 1, 4096), decode(1, 32, 8, 128, 1, 1024),
    decode(1, 8, 8, 64, 8, 2048), decode(1, 16, 16, 64, 1, 2048, True), decode(2, 8, 8, 32, 32, 1024),
    crossed(2, 8, 64, 64, 512), crossed(1, 8, 40, 512, 77), masked(2, 4, 64, 512, "causal"),
    masked(1, 4, 32, 1024, "causal"), masked(1, 4, 64, 512, "causal", True), masked(2, 4, 64, 512, "padding"),
    picture(2, 4, 64, Grid(14, 14)), picture(1, 2, 64, Grid(28, 28)), picture(1, 4, 64, Grid(28, 28), (14, 14)),
    sequence(1, 4, 64, 512, 512, False), sequence(2, 4, 32, 256, 512, True), sequence(1, 4, 64, 512, 512, False, 16),
)  # fmt: skip
CHECKED: dict[str, Make] = {
    "1 query, 1,024 keys, 4 × 32 heads of 64": decode(4, 32, 32, 64, 1, 1024),
    "1 query, 8,192 keys, 32 heads of 64": decode(1, 32, 32, 64, 1, 8192),
    "1 query, 8,192 keys, 32 heads over 8 of 128": decode(1, 32, 8, 128, 1, 8192),
    "1 query, 4,096 keys, 32 heads of 64, ALiBi": decode(1, 32, 32, 64, 1, 4096, True),
    "4 queries, 4,096 keys, 8 heads of 64": decode(1, 8, 8, 64, 4, 4096),
    "16 tokens, 64 × 4 heads of 12": plain(64, 4, 16, 12),
    "16 tokens, 64 × 4 heads of 12, table": table(64, 4, 12, Grid(4, 4)),
    "49 tokens, 16 × 8 heads of 32": plain(16, 8, 49, 32),
    "64 tokens, 16 × 12 heads of 64": plain(16, 12, 64, 64),
    "196 tokens, 8 × 12 heads of 64": plain(8, 12, 196, 64),
    "196 tokens, 8 × 12 heads of 64, table": table(8, 12, 64, Grid(14, 14)),
    "1,024 tokens, 8 heads of 80": plain(1, 8, 1024, 80),
    "1,024 tokens, 2 heads of 256": plain(1, 2, 1024, 256),
    "1,024 tokens, 8 heads of 16": plain(1, 8, 1024, 16),
    "4,096 tokens, 2 heads of 64": plain(1, 2, 4096, 64),
    "3,136 tokens, 2 heads of 64, table": table(1, 2, 64, Grid(56, 56)),
    "64 queries, 1,024 keys, 2 × 8 heads of 64": crossed(2, 8, 64, 64, 1024),
    "1,024 queries, 77 keys, 2 × 8 heads of 40": crossed(2, 8, 40, 1024, 77),
    "2,048 tokens, 4 heads of 64, causal": masked(1, 4, 64, 2048, "causal"),
    "1,024 tokens, 8 heads of 64, causal ALiBi": masked(1, 8, 64, 1024, "causal", True),
    "1,024 tokens, 4 × 8 heads of 64, padding": masked(4, 8, 64, 1024, "padding"),
    "56 × 56, windows of 7, 2 × 3 heads": table(2, 3, 32, Grid(56, 56), (7, 7)),
    "7 × 7, one window, 8 × 24 heads": table(8, 24, 32, Grid(7, 7), (7, 7)),
    "196 tokens, 8 × 12 heads of 64, decomposed": picture(8, 12, 64, Grid(14, 14)),
    "4,096 tokens, 2 heads of 64, decomposed": picture(1, 2, 64, Grid(64, 64)),
    "70 × 70, windows of 14, 12 heads, decomposed": picture(1, 12, 64, Grid(70, 70), (14, 14)),
    "1,024 tokens, 8 heads of 64, Transformer-XL": sequence(1, 8, 64, 1024, 1024, False),
    "512 queries, 1,024 keys, Transformer-XL, order": sequence(1, 8, 64, 512, 1024, True),
    "1 query, 2,048 keys, Transformer-XL, order": sequence(1, 8, 64, 1, 2048, True),
    "1,024 tokens, 8 heads of 64, Shaw, clip 16": sequence(1, 8, 64, 1024, 1024, False, 16),
    "16 × 14 × 14, windows in time, 12 heads of 64": table(1, 12, 64, Grid(16, 14, 14), (16, 1, 1)),
}


def modes(work: Workload) -> tuple[tuple[str, Callable[[str], object]], ...]:
    return ("forward", work.forward), ("learned" if work.learned else "train", work.gradients)


def timed(work: Workload, seconds: float, gate: Gate) -> Iterator[tuple[str, str, float]]:
    """(kernel, mode, seconds) of one problem: of every kernel but the definition that takes it, all in turn."""
    problem = work.plan(train=True).problem
    able = [k.name for k in planner.FAMILY if k is not reference and k.refuses(problem) is None]
    calls = {(k, mode): (lambda k=k, call=call: call(k)) for mode, call in modes(work) for k in able}
    times = time_in_turn({f"{k} {mode}": call for (k, mode), call in calls.items()}, seconds, gate)
    for k, mode in calls:
        yield k, mode, times.least(f"{k} {mode}")


def parts(work: Workload, kernel: str, mode: str) -> tuple[float, ...]:
    return speed.parts(work.plan(train=mode != "forward").problem, planner.named(kernel))


def measured(seconds: float, gate: Gate) -> dict[tuple[str, str, str], list[float]]:
    found: dict[tuple[str, str, str], list[tuple[tuple[float, ...], float]]] = {}
    for dtype in DTYPES:
        for make in FITTED:
            torch.manual_seed(0)
            work = make(getattr(torch, dtype))
            for kernel, mode, t in timed(work, seconds, gate):
                found.setdefault((kernel, dtype, mode), []).append((parts(work, kernel, mode), t))
    constants = {key: fit(rows) for key, rows in sorted(found.items())}
    for key, rows in sorted(found.items()):
        off = [sum(x * c for x, c in zip(amounts, constants[key], strict=True)) / t for amounts, t in rows]
        print(f"{' '.join(key):26} {len(rows)} problems, predicted / true: {min(off):.2f} to {max(off):.2f}")
    return constants


def written(constants: dict[tuple[str, str, str], list[float]]) -> str:
    about = machine.description()
    threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
    lines = [
        f'    ("cpu", "{k}", "{d}", "{m}"): ({", ".join(map(repr, row))}),' for (k, d, m), row in constants.items()
    ]
    return HEAD.format(**{**about, "threads": threads}) + "\n".join(lines) + "\n}\n"


def checked(seconds: float, gate: Gate, dtype: str, only: str) -> None:
    """Predicted and true ratio of times, sdpa over native."""
    right = count = 0
    for name, make in CHECKED.items():
        if not any(part in name for part in only.split("|")):
            continue
        torch.manual_seed(0)
        work = make(getattr(torch, dtype))
        for mode, call in modes(work):
            if mode == "train":  # the planner can't see this one: no bias is learned
                continue
            times = time_in_turn({k: (lambda k=k, call=call: call(k)) for k in PAIR}, seconds, gate)
            ratio = times.ratio("sdpa", "native")
            problem = work.plan(train=mode != "forward").problem
            native, sdpa = (speed.seconds(problem, planner.named(k)) or 0.0 for k in PAIR)
            agree = (sdpa > native) == (ratio.median > 1)
            near = ratio.low <= 1 <= ratio.high
            right, count = right + (agree or near), count + 1
            word = "right" if agree else "a tie" if near else "WRONG"
            print(f"{name:46} {mode:8} predicted {sdpa / native:6.2f}  true {ratio!s:26} {word}", flush=True)
    print(f"{right} of {count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each problem")
    parser.add_argument("--write", action="store_true", help="measure, fit, and write src/locant/costs.py")
    parser.add_argument("--check", action="store_true", help="predict other problems")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of --check")
    parser.add_argument("--only", default="", help="of --check: problems with one of these parts (a|b) in their names")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    gate = Gate()
    gate.calibrate()
    if arguments.write:
        TARGET.write_text(written(measured(arguments.seconds, gate)))
    if arguments.check:
        checked(arguments.seconds, gate, arguments.dtype, arguments.only)
    print(f"{gate.quiet_probes / gate.probes:.0%} of {gate.probes} probes were quiet")


if __name__ == "__main__":
    main()
