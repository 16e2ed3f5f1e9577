"""Data that was not trained for: the same test examples on a larger canvas, off centre, or longer.

They are made of any task's test examples as they are read, so that a user's own data are asked the same questions as
the built-in ones. On a larger canvas an example lies at a whole number of patches: its patches stay as they were, and
only their places are new, which is the question put to a position scheme. Off centre, patches change as well.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64, Integer

from locant.tasks.task import Examples, Shift

SEED = 0
GROWTH = 1.25  # of each side, in whole patches and at least by one: more blank tokens would drown the others


def of_images(test: Examples, patch: tuple[int, ...]) -> tuple[Shift, ...]:
    """Images on a larger canvas, and off centre; `patch` per axis of the grid, as the model cuts them."""
    down, right = max(1, test.shape[-2] // 4), max(1, test.shape[-1] // 4)
    sentence = f"the same images moved by up to {down} × {right} pixels; what leaves the picture is lost"
    return _larger_canvas("images", test, patch), Shift("off centre", sentence, Moved(test, down, right))


def of_clips(test: Examples, patch: tuple[int, ...]) -> tuple[Shift, ...]:
    """Longer clips, and clips on a larger canvas."""
    frames = test.shape[0]
    longer = frames + max(1, frames // 2)
    sentence = f"{longer} frames instead of {frames}: the first is held before the clip or the last after it"
    return Shift("longer clips", sentence, Held(test, longer)), _larger_canvas("clips", test, patch)


def of_sequences(test: Examples, patch: tuple[int, ...]) -> tuple[Shift, ...]:
    """Longer sequences."""
    longer = _larger_side(test.shape[0], patch[0])
    sentence = f"the same sequences at a random place in blank ones of {longer} steps instead of {test.shape[0]}"
    return (Shift("longer sequence", sentence, Placed(test, {0: (longer, patch[0])})),)


def _larger_canvas(what: str, test: Examples, patch: tuple[int, ...]) -> Shift:
    rows, columns = len(test.shape) - 2, len(test.shape) - 1
    height, width = _larger_side(test.shape[rows], patch[-2]), _larger_side(test.shape[columns], patch[-1])
    return Shift(
        "larger canvas",
        f"the same {what} at a random place, in whole patches, on an empty canvas of {height} × {width} pixels",
        Placed(test, {rows: (height, patch[-2]), columns: (width, patch[-1])}),
    )


class Placed(Examples):
    """Each example at a random place in an empty larger one.

    Args:
        base: the examples.
        sides: for each axis of an example that grows, its new size and the step between possible places.
    """

    def __init__(self, base: Examples, sides: dict[int, tuple[int, int]]) -> None:
        self.base, self.labels = base, base.labels
        self.shape = tuple(sides[axis][0] if axis in sides else n for axis, n in enumerate(base.shape))
        draw = np.random.default_rng([SEED, 0])
        self.starts: dict[int, Int64[np.ndarray, " count"]] = {
            axis: draw.integers(0, (size - base.shape[axis]) // step + 1, len(base)) * step
            for axis, (size, step) in sides.items()
        }

    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        out = np.zeros((len(index), *self.shape), np.float32)
        for canvas, example, i in zip(out, self.base.read(index), index, strict=True):
            starts = [int(self.starts[axis][i]) if axis in self.starts else 0 for axis in range(example.ndim)]
            canvas[tuple(slice(s, s + n) for s, n in zip(starts, example.shape, strict=True))] = example
        return out


class Moved(Examples):
    """Each example moved by up to `down` and `right` pixels each way, and by one at least; blanks come in."""

    def __init__(self, base: Examples, down: int, right: int) -> None:
        self.base, self.labels, self.shape = base, base.labels, base.shape
        draw = np.random.default_rng([SEED, 1])
        every = [(y, x) for y in range(-down, down + 1) for x in range(-right, right + 1) if (y, x) != (0, 0)]
        self.steps = np.array(every)[draw.integers(0, len(every), len(base))]

    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        out = np.zeros((len(index), *self.shape), np.float32)
        height, width = self.shape[-2:]
        for canvas, example, (y, x) in zip(out, self.base.read(index), self.steps[index], strict=True):
            to = (..., slice(max(0, y), height + min(0, y)), slice(max(0, x), width + min(0, x)))
            of = (..., slice(max(0, -y), height - max(0, y)), slice(max(0, -x), width - max(0, x)))
            canvas[to] = example[of]
        return out


class Held(Examples):
    """Each clip drawn out to `frames`: its first frame is held, or its last, divided at random."""

    def __init__(self, base: Examples, frames: int) -> None:
        self.base, self.labels = base, base.labels
        self.shape = (frames, *base.shape[1:])
        self.before = np.random.default_rng([SEED, 2]).integers(0, frames - base.shape[0] + 1, len(base))

    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        frame = np.arange(self.shape[0]) - self.before[index][:, None]
        clips = self.base.read(index)
        return clips[np.arange(len(index))[:, None], np.clip(frame, 0, self.base.shape[0] - 1)]


def _larger_side(size: int, patch: int) -> int:
    return max(size // patch + 1, int(GROWTH * size / patch)) * patch
