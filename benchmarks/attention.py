"""Every figure that Locant claims for its compiled kernels, measured here: contenders in turn, exactness first.

    python benchmarks/attention.py [--rows forward,train] [--threads 2,1] [--seconds 10] [--json FILE] [--write PAGE]
    python benchmarks/attention.py --read FILE FILE FILE --write PAGE       # runs apart in time, as one page

What PAGE shows of other processors and other numbers of threads stays.

A row is a median of ratios over rounds, with quartiles: in a round each contender is timed once, and a sample counts
only if a small matrix product just before and just after it ran at full speed (locant.measuring.clock). A contender
whose results are wrong ends the run of its family: exit code 1, no speed. Rows that need denormal numbers flushed
before anything is parallel, and rows of memory, run in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rows.page import combined, markdown, plain

FAMILIES = {  # the process that each family runs in
    "forward": "default", "train": "default", "forward-apart": "default", "train-apart": "default",
    "bfloat16": "default", "share": "default", "temporal": "default",
    "windows-default": "default", "swin": "default", "windows": "flushed", "windows-train": "flushed",
    "memory": "memory", "long": "long",
    "content": "default", "content-sequence": "default", "content-memory": "content-memory",
    "content-long": "content-long", "content-long-sequence": "content-long-sequence",
}  # fmt: skip


def main() -> int:
    arguments = _arguments()
    if arguments.process is not None:
        return child(arguments)
    if arguments.read:
        kept = [run for file in arguments.read for run in json.loads(Path(file).read_text())]
        _write(arguments.write, combined(kept))
        return 0
    names = arguments.rows.split(",")
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        print(f"--rows needs names out of {', '.join(FAMILIES)}; got {', '.join(unknown)}.", file=sys.stderr)
        return 2
    runs, code = [], 0
    for threads in arguments.threads.split(","):
        result: dict = {"threads": int(threads), "rows": [], "failed": []}
        for process in dict.fromkeys(FAMILIES[name] for name in names):
            chosen = [name for name in names if FAMILIES[name] == process]
            for line in _lines(process, chosen, threads, arguments.seconds, result["failed"]):
                kind, value = next(iter(json.loads(line).items()))
                if kind == "row":
                    result["rows"].append(value)
                    print(plain(value), flush=True)
                else:
                    result[kind] = {**result.get(kind, {}), process: value} if kind == "gate" else value
        code |= bool(result["failed"])
        runs.append(result)
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(runs, indent=2) + "\n")
    if arguments.write is not None:
        _write(arguments.write, runs)
    return code


def _write(path: str, runs: list[dict]) -> None:
    page = Path(path)
    page.write_text(markdown(runs, page.read_text() if page.exists() else ""))


def _lines(process: str, names: list[str], threads: str, seconds: float, failed: list[str]) -> Iterator[str]:
    """What a process of the rows says, line by line."""
    command = [sys.executable, __file__, "--process", process, "--rows", ",".join(names), "--threads", threads]
    with subprocess.Popen([*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        yield from running.stdout
    if running.returncode:
        failed.append(", ".join(names))


def child(arguments: argparse.Namespace) -> int:
    """One process: its rows as JSON, one per line."""
    import torch

    if arguments.process == "flushed" and not torch.set_flush_denormal(True):  # a setting of a thread, inherited
        raise SystemExit("this processor cannot flush denormal numbers: nothing was measured")
    torch.set_num_threads(int(arguments.threads))
    from rows.row import Setting

    from locant.measuring import machine
    from locant.measuring.clock import Gate

    print(json.dumps({"machine": machine.description("timm")}), flush=True)
    gate = Gate()
    if arguments.process in ("default", "flushed"):
        gate.calibrate()
    setting, code = Setting(arguments.seconds, gate), 0
    for name in arguments.rows.split(","):
        start = time.perf_counter()
        try:
            for row in family(name)(setting):
                print(json.dumps({"row": {**asdict(row), "met": row.met}}), flush=True)
        except SystemExit as red:  # wrong results: this family has no speed, the others may
            print(f"{name}: {red}", file=sys.stderr)
            code = 1
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    quiet = {"best_probe_ms": 1e3 * gate.best, "quiet_probes": gate.quiet_probes / max(1, gate.probes)}
    print(json.dumps({"gate": quiet}), flush=True)
    return code


def family(name: str) -> Callable:
    from rows import content, memory, models, whole, windows

    return {
        "forward": whole.forward, "forward-apart": partial(whole.forward, apart=True),
        "train": whole.train, "train-apart": partial(whole.train, apart=True),
        "bfloat16": whole.bfloat16, "share": whole.share, "temporal": windows.temporal,
        "windows": windows.forward, "windows-default": windows.default,
        "windows-train": windows.train, "swin": models.swin, "memory": memory.forward, "long": memory.long,
        "content": content.picture, "content-sequence": content.sequence, "content-memory": content.memory,
        "content-long": content.long_picture, "content-long-sequence": content.long_sequence,
    }[name]  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(FAMILIES), help=f"which: {', '.join(FAMILIES)}")
    parser.add_argument("--threads", default="2", help="of torch: 2, or 2,1 for both tables")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each set of contenders")
    parser.add_argument("--json", help="file for all figures")
    parser.add_argument("--write", help="file for the page of the docs")
    parser.add_argument("--read", nargs="+", help="measure nothing: these files of --json, as one page for --write")
    parser.add_argument("--process", choices=sorted(set(FAMILIES.values())), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read and not arguments.write:
        parser.error("--read needs --write FILE, the page that it is to make; got none. Add it.")
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
