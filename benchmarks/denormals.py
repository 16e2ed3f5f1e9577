"""What a finite -100 costs: the weights-times-values product of one shifted Swin block, three ways to say "blocked".

    python benchmarks/denormals.py [--rounds 15]

Batch 8, 56 × 56 tokens, 3 heads, windows of 7 × 7 shifted by 3, float32, one thread. The same logits are softmaxed with
-100 and with -inf where a pair is blocked; both products are timed in turn in one process while the machine is quiet
(locant.measuring.clock), and the ratio of a round's times is taken. Whether denormal numbers are flushed is a setting
of a thread that must come first, so each setting runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys

BATCH, SIDE, HEADS, WINDOW, SHIFT, HEAD_DIM = 8, 56, 3, 7, 3, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--denormals", choices=("default", "flushed"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.denormals is not None:
        print(json.dumps(measured(arguments.denormals == "flushed", arguments.rounds)))
        return
    print(f"{platform.processor() or platform.machine()}, one thread; time with -100 over time with -inf, P @ V")
    for setting in ("default", "flushed"):
        command = [sys.executable, __file__, "--rounds", str(arguments.rounds), "--denormals", setting]
        low, median, high = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"denormals {setting:8} {median:5.2f} ({low:.2f} to {high:.2f})")


def measured(flush: bool, rounds: int) -> tuple[float, float, float]:
    """Quartiles of the ratio of times, -100 over -inf."""
    import torch

    from locant import Grid, Windows
    from locant.measuring.clock import Gate, time_in_turn

    if flush and not torch.set_flush_denormal(True):
        raise SystemExit("this processor cannot flush denormal numbers: nothing was measured")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    grid = Grid(SIDE, SIDE)
    # Swin's layout: the map rolled by -shift and cut into windows; a pair is free if the unrolled cells are the same
    rolled = torch.arange(grid.cells).reshape(SIDE, SIDE).roll((-SHIFT, -SHIFT), (0, 1))
    windows = rolled.unflatten(0, (-1, WINDOW)).unflatten(2, (-1, WINDOW)).transpose(1, 2).reshape(-1, WINDOW**2)
    tokens = grid.select(windows)
    free = Windows((WINDOW, WINDOW), shift=(SHIFT, SHIFT)).pairs(tokens, tokens)[0, 0]
    logits = torch.randn(BATCH, len(windows), HEADS, WINDOW**2, WINDOW**2)
    v = torch.randn(BATCH, len(windows), HEADS, WINDOW**2, HEAD_DIM)
    finite, infinite = (
        torch.softmax(logits + torch.where(free, 0.0, blocked)[None, :, None], -1) for blocked in (-100.0, -torch.inf)
    )
    assert (finite @ v - infinite @ v).abs().max() < 1e-5, "the two say different things: no speed is given"
    gate = Gate()
    gate.calibrate()
    times = time_in_turn({"finite": lambda: finite @ v, "infinite": lambda: infinite @ v}, 5.0, gate, rounds)
    ratio = times.ratio("finite", "infinite")
    return ratio.low, ratio.median, ratio.high


if __name__ == "__main__":
    main()
