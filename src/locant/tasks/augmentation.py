"""How training examples are varied: draws that depend on (seed, epoch, example) alone, so every scheme sees the same.

Only what can't change a label is done unasked, and a task says what that is (`Task.augments`). Nothing turns or mirrors
by default: which way up a picture is, or which way something moves, may be the question. All frames of a clip are
varied alike, so that motion stays what it was.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Integer

from locant.tasks.kind import AUGMENTED, Kind, Recipe
from locant.tasks.task import Examples, Task

PART = 16  # of a side: the furthest that an example is moved is a sixteenth, in whole pixels
GAIN = 1.25  # the most that values are multiplied or divided by

WORDS = {
    "shift": "moved by up to a sixteenth of a side, edges repeated",
    "brightness": f"all values multiplied by {1 / GAIN:g} to {GAIN:g}",
    "flip": "every second one mirrored left to right",
}


class Varied(Examples):
    """Examples as one epoch shows them.

    Args:
        base: the examples as they are.
        kind: says which axes are rows and columns.
        ways: names among `AUGMENTED`.
        seed: with the epoch, of the draws.
    """

    def __init__(self, base: Examples, kind: Kind, ways: tuple[str, ...], seed: int) -> None:
        self.base, self.labels, self.shape, self.ways, self.seed = base, base.labels, base.shape, ways, seed
        self.axes = kind.axes[-2:]
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Draw for an epoch: every way in its turn, asked for or not, so that one does not change another."""
        self.drawn: dict[str, np.ndarray] = {}
        if not self.ways:
            return
        draw = np.random.default_rng([*b"augment", self.seed, epoch])
        count = len(self.base)
        far = [self.shape[axis] // PART for axis in self.axes]
        moves = np.stack([draw.integers(-most, most + 1, count) for most in far], axis=1)
        gains = (GAIN ** draw.uniform(-1, 1, count)).astype(np.float32)
        flips = draw.random(count) < 0.5
        every: dict[str, np.ndarray] = dict(zip(AUGMENTED, (moves, gains, flips), strict=True))
        self.drawn = {way: every[way] for way in self.ways}

    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        x = self.base.read(index)
        if "shift" in self.drawn:
            moves = self.drawn["shift"]
            x = np.stack([self._moved(one, moves[i]) for one, i in zip(x, index, strict=True)])
        many = (-1, *[1] * (x.ndim - 1))
        if "flip" in self.drawn:
            x = np.where(self.drawn["flip"][index].reshape(many), np.flip(x, self.axes[-1] + 1), x)
        if "brightness" in self.drawn:
            x = x * self.drawn["brightness"][index].reshape(many)
        return x

    def _moved(self, example: Float32[np.ndarray, "*shape"], move: Integer[np.ndarray, " axes"]) -> np.ndarray:
        for axis, by in zip(self.axes, move, strict=True):
            if by:
                place = np.arange(example.shape[axis]) - by
                example = np.take(example, place.clip(0, example.shape[axis] - 1), axis)
        return example


def ways(recipe: Recipe, kind: Kind, task: Task) -> tuple[str, ...]:
    """Those that were asked for, or else all that the task allows."""
    return recipe.augment if recipe.augment is not None else tuple(w for w in kind.augments if w in task.augments)
