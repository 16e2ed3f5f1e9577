"""How examples are divided into train, validation and test: each class alike, and copies never apart.

For a class of k different examples and shares s (0.6, 0.2, 0.2), every split but the first takes
max(1, round(s * k)) of them and the first takes the rest. Examples with equal digests are one example here, so that
a copy can never leak from one split into another. Of the training examples each seed may take a share of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64, Integer

from locant.tasks.task import Examples, Refusal

NAMES = ("train", "validation", "test")
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
UNEVEN = 1.5  # from this ratio of largest to smallest class on, a note says that the classes are uneven


def divide(
    labels: Integer[np.ndarray, " count"],
    classes: Sequence[str],
    seed: int,
    digests: Sequence[bytes | str] | None = None,
    names: Sequence[str] = NAMES,
) -> dict[str, Int64[np.ndarray, " part"]]:
    """Indices of each split in `names`, sorted, decided by `seed` alone.

    Args:
        labels: the class of each example.
        classes: their names, for the error.
        seed: of the shuffle within each class.
        digests: equal for copies; a group of copies stays whole and counts as one, with its first label.
        names: the splits to make; the first takes the rest.

    Raises:
        Refusal: if a class has fewer different examples than there are splits.
    """
    group, first = _groups(len(labels), digests)
    refuse_small(Counter(labels[first].tolist()), classes, names)
    rng = np.random.default_rng(seed)
    home = np.zeros(len(first), np.int64)  # the split of each group
    for label in range(len(classes)):
        members = rng.permutation(np.flatnonzero(labels[first] == label))
        stop = 0
        for place, count in enumerate(_counts(len(members), names)[1:], start=1):
            home[members[stop : stop + count]] = place
            stop += count
    return {name: np.flatnonzero(home[group] == place) for place, name in enumerate(names)}


class Share(Examples):
    """A share of some examples, decided by `seed` alone: max(1, round(share · k)) of a class of k.

    What a seed draws for a small share lies within what it draws for a larger one.
    """

    def __init__(self, base: Examples, share: float, seed: int) -> None:
        rng = np.random.default_rng([*b"share", seed])
        kept = []
        for label in np.unique(base.labels):
            members = rng.permutation(np.flatnonzero(base.labels == label))
            kept.append(members[: max(1, round(share * len(members)))])
        self.base, self.shape = base, base.shape
        self.index = np.sort(np.concatenate(kept))
        self.labels = base.labels[self.index]

    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        return self.base.read(self.index[index])


def share(train: Examples, part: float, seed: int) -> Examples:
    """The training examples of one seed: all of them, or its share."""
    return train if part == 1 else Share(train, part, seed)


def _counts(size: int, names: Sequence[str]) -> list[int]:
    """How many of `size` examples go to each split; the smallest class still reaches every split."""
    later = [max(1, round(size * SHARES[name])) for name in names[1:]]
    return [size - sum(later), *later]


def _groups(
    count: int, digests: Sequence[bytes | str] | None
) -> tuple[Int64[np.ndarray, " count"], Int64[np.ndarray, " groups"]]:
    """The group of each example, numbered by first sight, and the first example of each group."""
    if digests is None:
        return np.arange(count), np.arange(count)
    number: dict[bytes | str, int] = {}
    group = np.array([number.setdefault(digest, len(number)) for digest in digests], np.int64)
    return group, np.unique(group, return_index=True)[1]


def refuse_small(counts: Counter[int], classes: Sequence[str], names: Sequence[str] = NAMES) -> None:
    """Refuses one class alone, and classes that cannot reach every split."""
    if len(classes) < 2:
        came = f"one class only, {classes[0]!r}" if classes else "none"
        raise Refusal(f"a comparison needs at least two classes; the data has {came}. Add examples of another class.")
    small = [(classes[label], counts[label]) for label in range(len(classes)) if counts[label] < len(names)]
    if small:
        listed = ", ".join(f"{name!r} has {count}" for name, count in small[:8]) + (", ..." if len(small) > 8 else "")
        raise Refusal(
            f"each class needs at least {len(names)} different usable examples, one for each of {', '.join(names)}; "
            f"{listed}. Add examples to those classes, or leave them out."
        )


def copies(digests: Sequence[bytes | str]) -> int:
    """How many examples repeat an earlier one."""
    return len(digests) - len(set(digests))


def contradictions(digests: Sequence[bytes | str], labels: Integer[np.ndarray, " count"]) -> int:
    """How many different examples bear more than one label."""
    pairs = set(zip(digests, labels.tolist(), strict=True))
    return sum(count > 1 for count in Counter(digest for digest, _ in pairs).values())


def leaks(parts: dict[str, Sequence[bytes | str]]) -> dict[tuple[str, str], int]:
    """For each pair of splits, how many examples of the later one stand in the earlier one too."""
    shared_by: dict[tuple[str, str], int] = {}
    names = list(parts)
    for i, early in enumerate(names):
        known = set(parts[early])
        for late in names[i + 1 :]:
            shared = sum(digest in known for digest in parts[late])
            if shared:
                shared_by[early, late] = shared
    return shared_by


def balance(labels: Integer[np.ndarray, " count"], classes: Sequence[str]) -> list[str]:
    """A note if the classes are uneven, else nothing."""
    counts = np.bincount(labels, minlength=len(classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[least] == 0 or counts[most] < UNEVEN * counts[least]:
        return []
    ratio = f"{counts[most] / counts[least]:.1f}".removesuffix(".0")
    largest, smallest = f"{classes[most]!r} with {counts[most]} examples", f"{classes[least]!r} with {counts[least]}"
    return [f"the largest class, {largest}, has {ratio} times the smallest, {smallest}"]
