"""ConViT's gated positional self-attention: timm's published forward against `locant.nn.GatedAttention`.

    python benchmarks/gpsa.py [--json] [--seconds 8] [--threads 2]

Same weights, same tokens, float32, no gradients; heads and width of convit_small. Both are timed in turn in one
process, and a round's times are divided: what is shown is the median of those ratios and their quartiles, with a star
where the machine was not quiet (locant.measuring.clock). Results that are more than 1e-5 apart stop everything before a
time is taken.

The positional softmax has weights so small that they are denormal numbers, which CPUs compute slowly. That is a
setting of each thread, inherited when it starts, so both settings run in a process of their own: as torch comes, and
with `torch.set_flush_denormal(True)` before anything is parallel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from rows.mend import mend_torchvision

from locant.measuring import machine
from locant.measuring.clock import Gate, Times, time_in_turn

DIM, HEADS = 432, 9  # convit_small
CASES = ((14, 8), (28, 4), (56, 1))  # side of the map, batch
MOST = 1e-5  # how far apart the results may be


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
    result = {"machine": {**machine.description("timm"), "threads": rows[0]["threads"]}, "rows": rows}
    print(json.dumps(result, indent=2) if arguments.json else table(result))
    return 0


def measured(denormals: str, threads: int | None, seconds: float) -> Iterator[dict[str, object]]:
    """One row per case, under one setting of denormal numbers."""
    import torch

    if denormals == "flushed" and not torch.set_flush_denormal(True):
        raise SystemExit("this processor cannot flush denormal numbers: nothing was measured")
    if threads is not None:
        torch.set_num_threads(threads)
    gate = Gate()
    gate.calibrate()
    for side, batch in CASES:
        torch.manual_seed(0)
        theirs, ours = modules(side)
        x = torch.randn(batch, side * side, DIM)
        with torch.inference_mode():
            error = float((ours(x) - theirs(x)).abs().max())
            if not error <= MOST:  # a NaN is not
                raise SystemExit(f"{side} × {side}: results differ by {error:.1e}, more than {MOST}: no speed is shown")
            times = time_in_turn({"timm": partial(theirs, x), "locant": partial(ours, x)}, seconds, gate)
        yield {
            "denormals": denormals, "side": side, "batch": batch, "error": error, "threads": torch.get_num_threads(),
            **summary(times),
        }  # fmt: skip


def modules(side: int) -> tuple[Callable, Callable]:
    """timm's GPSA as it starts, a little off, and ours with the same weights."""
    import torch

    from locant import Grid
    from locant.nn import GatedAttention

    mend_torchvision()
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


def summary(times: Times) -> dict[str, object]:
    ratio = times.ratio("timm", "locant")
    return {
        "timm_ms": 1e3 * times.seconds("timm"), "locant_ms": 1e3 * times.seconds("locant"), "ratio": ratio.median,
        "ratio_low": ratio.low, "ratio_high": ratio.high, "rounds": ratio.rounds, "quiet": ratio.quiet,
    }  # fmt: skip


def table(result: dict) -> str:
    told = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines = [told, f"GPSA, {HEADS} heads of {DIM // HEADS}, float32, forward", ""]
    lines.append("denormals  map      batch   timm ms  locant ms   ratio (quartiles)     rounds  difference")
    for row in result["rows"]:
        cells = f"{row['side']} × {row['side']}"
        spread = f"{row['ratio']:6.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}){' *' * (not row['quiet'])}"
        lines.append(
            f"{row['denormals']:9}  {cells:7} {row['batch']:6} {row['timm_ms']:9.1f} {row['locant_ms']:10.1f}  "
            f"{spread:22} {row['rounds']:6}  {row['error']:.1e}"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="timm's GPSA against locant.nn.GatedAttention")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--seconds", type=float, default=8.0, help="to spend on each map and setting")
    parser.add_argument("--threads", type=int, help="of torch; its own choice if left out")
    parser.add_argument("--denormals", choices=("default", "flushed"), help=argparse.SUPPRESS)  # one process of the two
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
