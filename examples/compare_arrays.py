"""`locant compare` from Python, on arrays of one's own: where is the bright spot, left or right, high or low?

The spot looks the same everywhere, so a model that is not told where its tokens are can only guess.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from locant import compare


def spots(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures [count, 8, 8] with a bright 2 × 2 spot, and the quarter that it lies in."""
    draw = np.random.default_rng(0)
    x = draw.random((count, 8, 8), dtype=np.float32) * 0.3
    y = draw.integers(0, 4, count)
    for picture, quarter in zip(x, y, strict=True):
        row, column = 4 * (quarter // 2) + 2 * draw.integers(2), 4 * (quarter % 2) + 2 * draw.integers(2)
        picture[row : row + 2, column : column + 2] += 0.7
    return x, np.array(["upper left", "upper right", "lower left", "lower right"])[y]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        x, y = spots(400)
        np.savez(Path(folder) / "spots.npz", x=x, y=y)
        result = compare.run(
            Path(folder) / "spots.npz", positions=["none", "sinusoid"], epochs=12, seeds=2, lr=0.01, batch=32, patch=2,
            dim=16, depth=1, heads=2, threads=2, out=Path(folder) / "run", quiet=True,
        )  # fmt: skip
        (task,) = result.data["tasks"]
        accuracy = {scheme["name"]: scheme["accuracy"]["mean"] for scheme in task["schemes"]}
        for sentence in task["finding"]:
            print(sentence)
        model, about = compare.load(result.folder / result.data["best"]["file"])
        print(f"best model: {about['job']['scheme']}, {sum(p.numel() for p in model.parameters())} parameters")
        print(f"report: {result.report.name}, {result.report.stat().st_size // 1024} kB")
    assert accuracy["none"] < 0.5 < 0.9 < accuracy["sinusoid"]


if __name__ == "__main__":
    main()
