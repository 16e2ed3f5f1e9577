"""ConViT's gated positional self-attention: timm's published forward against `locant.nn.GatedAttention`.

    python benchmarks/gpsa.py [--json] [--seconds 8] [--threads 2]

Same weights, same tokens, float32, no gradients; heads and width of convit_small. Both are timed in turn in one
process, the order changing every round, and a round's times are divided: what is shown is the median of those ratios
and their quartiles. Results that are more than 1e-5 apart stop everything before a time is taken.

The positional softmax has weights so small that they are denormal numbers, which CPUs compute slowly. That is a
setting of each thread, inherited when it starts, so both settings run in a process of their own: as torch comes, and
with `torch.set_flush_denormal(True)` before anything is parallel.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

DIM, HEADS = 432, 9  # convit_small
CASES = ((14, 8), (28, 4), (56, 1))  # side of the map, batch
MOST = 1e-5  # how far apart the results may be
ROUNDS = 5  # at least


def main() -> int:
    arguments = _arguments()
    if arguments.denormals is not None:
        print(json.dumps(list(measured(arguments.denormals, arguments.threads, arguments.seconds))))
        return 0
    rows = []
    for denormals in ("default", "flushed"):
        command = [sys.executable, __file__, "--denormals", denormals, "--seconds", str(arguments.seconds)]
        command += [] if arguments.threads is None else ["--threads", str(arguments.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return done.returncode
        rows += json.loads(done.stdout)
    result = {"machine": machine(rows[0]["threads"]), "rows": rows}
    print(json.dumps(result, indent=2) if arguments.json else table(result))
    return 0


def measured(denormals: str, threads: int | None, seconds: float) -> Iterator[dict[str, object]]:
    """One row per case, under one setting of denormal numbers."""
    import torch

    if denormals == "flushed" and not torch.set_flush_denormal(True):
        raise SystemExit("this processor cannot flush denormal numbers: nothing was measured")
    if threads is not None:
        torch.set_num_threads(threads)
    for side, batch in CASES:
        torch.manual_seed(0)
        theirs, ours = modules(side)
        x = torch.randn(batch, side * side, DIM)
        with torch.inference_mode():
            error = float((ours(x) - theirs(x)).abs().max())
            if not error <= MOST:  # a NaN is not
                raise SystemExit(f"{side} × {side}: results differ by {error:.1e}, more than {MOST}: no speed is shown")
            times = interleaved(partial(theirs, x), partial(ours, x), seconds)
        yield {
            "denormals": denormals, "side": side, "batch": batch, "error": error, "threads": torch.get_num_threads(),
            **summary(times),
        }  # fmt: skip


def modules(side: int) -> tuple[Callable, Callable]:
    """timm's GPSA as it starts, a little off, and ours with the same weights."""
    import torch

    from locant import Grid
    from locant.nn import GatedAttention

    _mend_torchvision()
    from timm.models.convit import GPSA

    theirs = GPSA(DIM, num_heads=HEADS)
    theirs.local_init()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state = {name: v for name, v in theirs.state_dict().items() if name.split(".")[0] in ("qk", "v", "proj")}
    state["position.direction"] = -theirs.pos_proj.weight.detach()[:, (1, 0)]  # published: key - query, x before y
    state["position.spread"] = theirs.pos_proj.weight.detach()[:, 2]
    state["position.gate"] = theirs.gating_param.detach()
    ours = GatedAttention(DIM, HEADS, grid=Grid(side, side))
    ours.load_state_dict(state)
    return theirs.eval(), ours.eval()


def interleaved(first: Callable[[], object], second: Callable[[], object], seconds: float) -> list[tuple[float, float]]:
    """Seconds of both, round by round, until the budget is spent; whoever went last goes first."""
    for call in (first, second):
        call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < ROUNDS or time.perf_counter() < end:
        turn = {}
        for call in (first, second) if len(times) % 2 else (second, first):
            start = time.perf_counter()
            call()
            turn[call] = time.perf_counter() - start
        times.append((turn[first], turn[second]))
    return times


def summary(times: list[tuple[float, float]]) -> dict[str, float]:
    ratios = [theirs / ours for theirs, ours in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "timm_ms": 1e3 * statistics.median(theirs for theirs, _ in times),
        "locant_ms": 1e3 * statistics.median(ours for _, ours in times),
        "ratio": middle, "ratio_low": low, "ratio_high": high, "rounds": len(times),
    }  # fmt: skip


def machine(threads: int) -> dict[str, object]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "processor": _processor(), "threads": threads, "python": platform.python_version(),
        "torch": version("torch"), "timm": version("timm"), "commit": commit.stdout.strip() or "unknown",
    }  # fmt: skip


def table(result: dict) -> str:
    told = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines = [told, f"GPSA, {HEADS} heads of {DIM // HEADS}, float32, forward", ""]
    lines.append("denormals  map      batch   timm ms  locant ms   ratio (quartiles)     rounds  difference")
    for row in result["rows"]:
        cells = f"{row['side']} × {row['side']}"
        spread = f"{row['ratio']:6.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        lines.append(
            f"{row['denormals']:9}  {cells:7} {row['batch']:6} {row['timm_ms']:9.1f} {row['locant_ms']:10.1f}  "
            f"{spread:22} {row['rounds']:6}  {row['error']:.1e}"
        )
    return "\n".join(lines)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _mend_torchvision() -> None:
    """timm imports torchvision, whose operators may not load beside a CPU build of torch: declare the two it names."""
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        _DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            _DECLARED[-1].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_DECLARED: list = []  # a fragment lives as long as its object


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="timm's GPSA against locant.nn.GatedAttention")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--seconds", type=float, default=8.0, help="to spend on each map and setting")
    parser.add_argument("--threads", type=int, help="of torch; its own choice if left out")
    parser.add_argument("--denormals", choices=("default", "flushed"), help=argparse.SUPPRESS)  # one process of the two
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
