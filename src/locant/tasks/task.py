"""What a comparison is run on: examples with labels in three splits, and data that was not trained for.

Everything here is numpy: the trainer converts. A task keeps where its data came from, what was left out and why,
and a fingerprint, so that a resumed run can refuse data that changed.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, Integer


class Refusal(ValueError):
    """Data or settings that cannot be compared: what was needed, what came, what to do."""


@dataclass(frozen=True)
class Reading:
    """One way to take data.

    Args:
        words: what the data then are.
        settings: the settings that say so; without any the data themselves have to say it.
        advice: what to do, where no setting does.
    """

    words: str
    settings: Mapping[str, str]
    advice: str = ""

    @property
    def way(self) -> str:
        """How to ask for it."""
        flags = (value if name == "data" else f"--{name} {value}" for name, value in self.settings.items())
        return self.advice or f"say {' '.join(flags)}"


class Doubt(Refusal):
    """Data that can be taken in two ways, of which one would answer another question: nothing is guessed.

    Attributes:
        what: what lies there.
        readings: the ways to take it.
    """

    def __init__(self, what: str, *readings: Reading) -> None:
        ways = ", or ".join(f"{reading.words} ({reading.way})" for reading in readings)
        super().__init__(f"DATA can be taken in {len(readings)} ways: {what}. They are {ways}.")
        self.what, self.readings = what, readings


class Examples(ABC):
    """Labelled examples of one shape, read when they are asked for.

    Attributes:
        labels: the class of each example, `int64 [n]`, an index into `Task.classes`.
        shape: of one example: images (C, H, W), clips (T, C, H, W), sequences (L, C).
    """

    labels: Int64[np.ndarray, " count"]
    shape: tuple[int, ...]

    @abstractmethod
    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        """The examples at `index`, in that order, with values about 0 to 1."""

    def __len__(self) -> int:
        return len(self.labels)


class ArrayExamples(Examples):
    """Examples that lie in memory.

    Args:
        x: `float32 [n, *shape]`.
        labels: `[n]` whole numbers.
    """

    def __init__(self, x: Float32[np.ndarray, "count *shape"], labels: Integer[np.ndarray, " labels"]) -> None:
        if len(x) != len(labels):
            raise ValueError(
                f"ArrayExamples needs one label for each example; it got {len(x)} examples and {len(labels)} labels. "
                "Cut both to the same length."
            )
        self.x = x
        self.labels = np.asarray(labels, np.int64)
        self.shape = x.shape[1:]

    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        return self.x[index]


@dataclass(frozen=True)
class Skipped:
    """One file that could not be used, named relative to the data folder."""

    path: str
    reason: str


@dataclass(frozen=True)
class Shift:
    """Test data of a kind that was not trained for; the shape of its examples may differ."""

    name: str
    sentence: str
    examples: Examples


@dataclass(frozen=True)
class Task:
    """One question with the data to learn it from.

    Args:
        kind: the name of its `Kind`: "images", "clips", "sequences".
        source: where the data came from, for the report.
        question: one sentence: what is asked of the model.
        classes: the name of each label, as it may be shown.
        train, validation, test: the splits; no example stands in two of them unless a note says so.
        shifts: data that was not trained for.
        notes: sentences on how the data was split, converted and balanced.
        skipped: files that could not be used.
        fingerprint: sha256 in hex over data, settings and split.
        augments: the ways to vary training examples that can't change their labels.
    """

    kind: str
    source: str
    question: str
    classes: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    shifts: tuple[Shift, ...]
    notes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    fingerprint: str
    augments: tuple[str, ...] = ()


def two_sides(name: str, value: int | tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns from one number for both, or from two. Raises Refusal."""
    sides = (value,) if isinstance(value, int) else tuple(value)
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise Refusal(
            f"{name} needs one whole number of at least 1, or rows x columns; it is {value}. "
            f"Write --{name} 8 or --{name} 8x16."
        )
    return sides[0], sides[-1]


def fingerprint(settings: Mapping[str, object], *arrays: np.ndarray) -> str:
    """sha256 in hex over settings (as sorted JSON) and arrays (type, shape and values)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
