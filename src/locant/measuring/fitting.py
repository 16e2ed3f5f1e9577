"""Constants fitted to timed work: seconds = Σ amount · constant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def fit(rows: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Non-negative constants of the least relative error, by descent along one at a time.

    Args:
        rows: the amounts of one piece of work, and its seconds.
    """
    a = np.array([amounts for amounts, _ in rows]) / np.array([[seconds] for _, seconds in rows])
    size = np.abs(a).max(0)
    a = a / np.where(size > 0, size, 1)
    x, rest = np.zeros(a.shape[1]), np.ones(len(a))  # rest = 1 - a x
    square = (a * a).sum(0)
    for _ in range(20_000):
        before = x.copy()
        for i in np.flatnonzero(square):
            new = max(0.0, x[i] + a[:, i] @ rest / square[i])
            rest -= (new - x[i]) * a[:, i]
            x[i] = new
        if np.abs(x - before).max() <= 1e-12 * np.abs(x).max():
            break
    return [float(f"{v:.3g}") for v in x / np.where(size > 0, size, 1)]
