"""Watch `locant compare` in TensorBoard: every look at validation becomes a point of a trial's curves.

    pip install tensorboard
    python examples/progress_tensorboard.py
    tensorboard --logdir runs

Without TensorBoard the points are kept in a list, so that this runs anywhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from locant import compare


class Writer(Protocol):
    """What is needed of `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...


class Points(list[tuple[str, float, int]]):
    """Stands in for a writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.append((tag, scalar_value, global_step))


def writer_into(folder: Path) -> Writer:
    """TensorBoard's writer where it is installed, a list elsewhere."""
    if find_spec("tensorboard") is None:
        return Points()
    from torch.utils.tensorboard import SummaryWriter

    writer: Writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]
    return writer


def listener(writer: Writer) -> Callable[[dict[str, Any]], None]:
    """For `progress=`: trials run side by side, so each has curves of its own."""

    def tell(event: dict[str, Any]) -> None:
        for what in ("validation", "loss"):
            writer.add_scalar(f"{event['key']}/{what}", event[what], event["step"])

    return tell


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        points, writer = Points(), writer_into(Path(folder) / "tensorboard")
        both = [listener(points), listener(writer)]
        result = compare.run(
            task="images", positions=["none", "learned"], seeds=1, steps=40, lr=0.006, starts=1, dim=16, depth=1,
            heads=2, out=Path(folder) / "run", quiet=True, progress=lambda event: [tell(event) for tell in both],
        )  # fmt: skip
        (task,) = result.data["tasks"]
    for scheme in task["schemes"]:
        (trial,) = scheme["trials"]
        curve = [(point["step"], point["validation"]) for point in trial["curve"]]
        seen = [(step, value) for tag, value, step in points if tag.endswith("validation") and scheme["name"] in tag]
        print(f"{scheme['name']}: {len(seen)} points, the last at step {seen[-1][0]}")
        assert seen == curve
    assert len(task["schemes"]) == 2


if __name__ == "__main__":
    main()
