"""Watch `locant compare` in Weights & Biases: one run, in which every trial has curves over its own steps.

    pip install wandb
    python examples/progress_wandb.py           # offline; `wandb sync` uploads what it left, if you want that

Without wandb the points are kept in a list, so that this runs anywhere.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from locant import compare


class Run(Protocol):
    """What is needed of a run of wandb."""

    def define_metric(self, name: str, step_metric: str) -> object: ...

    def log(self, data: dict[str, Any]) -> object: ...

    def finish(self) -> object: ...


class Points(list[dict[str, Any]]):
    """Stands in for a run."""

    def define_metric(self, name: str, step_metric: str) -> None: ...

    def log(self, data: dict[str, Any]) -> None:
        self.append(data)

    def finish(self) -> None: ...


def run_into(folder: Path) -> Run:
    """A run of wandb where it is installed, a list elsewhere."""
    if find_spec("wandb") is None:
        return Points()
    import wandb

    os.environ.setdefault("WANDB_MODE", "offline")
    run: Run = wandb.init(project="locant compare", dir=str(folder))
    return run


def listener(run: Run) -> Callable[[dict[str, Any]], None]:
    """For `progress=`: trials run side by side, so each has steps of its own."""
    known: set[str] = set()

    def tell(event: dict[str, Any]) -> None:
        key = event["key"]
        if key not in known:
            run.define_metric(f"{key}/*", step_metric=f"{key}/step")
            known.add(key)
        run.log({f"{key}/{what}": event[what] for what in ("step", "validation", "loss")})

    return tell


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        points, run = Points(), run_into(Path(folder))
        both = [listener(points), listener(run)]
        result = compare.run(
            task="images", positions=["none", "learned"], seeds=1, steps=40, lr=0.006, starts=1, dim=16, depth=1,
            heads=2, out=Path(folder) / "run", quiet=True, progress=lambda event: [tell(event) for tell in both],
        )  # fmt: skip
        (task,) = result.data["tasks"]
        for scheme in task["schemes"]:
            run.log({f"test/{scheme['name']}": scheme["accuracy"]["mean"]})
        run.finish()
    for scheme in task["schemes"]:
        mine = [point for point in points if any(f"-{scheme['name']}-" in name for name in point)]
        seen = [tuple(point.values())[:2] for point in mine]
        print(f"{scheme['name']}: {len(seen)} points, the last at step {seen[-1][0]}")
        assert seen == [(point["step"], point["validation"]) for point in scheme["trials"][0]["curve"]]
    assert len(task["schemes"]) == 2


if __name__ == "__main__":
    main()
