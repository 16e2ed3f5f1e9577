"""Data from Python: a torch `Dataset` of (x, y), a `DataLoader`, or two or three of either.

    run(dataset), run((x, y))            split 60/20/20, each class alike
    run((train, test))                   a fifth of each class is split off train, for validation
    run((train, validation, test))       as it is

x is an example `(C, H, W)`, `(T, C, H, W)` or `(L, C)`, y a whole number. Of a loader the data set and `collate_fn` are
used; its order and its batches play no part, since every scheme must see the same in the same order. Everything is read
once before training. What is the same at a second reading is kept in memory, if it fits; the rest (random crops, large
data) is read as it goes, and what is random depends on (seed, step) alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, Integer
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from locant.checks import description
from locant.compare import source
from locant.tasks import arrays, splits
from locant.tasks.kind import AxisOrder
from locant.tasks.kinds import KINDS
from locant.tasks.task import ArrayExamples, Examples, Refusal, Task, fingerprint

KEPT = 1 << 30  # bytes of one data set that are kept in memory
TWICE = 4  # examples that are read again, to see whether they are drawn anew each time


class DatasetExamples(Examples):
    """The examples of a data set at some of its indices, read when they are asked for.

    Args:
        data: the data set and how its examples become a batch.
        places: indices into it.
        labels: of these.
        order: how an example's axes are read.
        item: shape of an example as it is stored.
    """

    def __init__(
        self,
        data: Source,
        places: Integer[np.ndarray, " count"],
        labels: Int64[np.ndarray, " count"],
        order: AxisOrder,
        item: tuple[int, ...],
    ) -> None:
        self.data, self.places, self.labels, self.order = data, places, labels, order
        self.shape = order.shape(item)

    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        drawn = int(torch.randint(2**31, ()))  # data sets draw from three streams; torch's depends on (seed, step)
        random.seed(drawn)
        np.random.seed(drawn)
        x, _ = self.data.read([int(place) for place in self.places[index]])
        return _in_order(x, self.order)


class Source:
    """One data set: its length, and batches of it as numpy arrays."""

    def __init__(self, given: Any, name: str) -> None:
        loader = isinstance(given, DataLoader)
        self.name, self.collate = name, given.collate_fn if loader else default_collate
        self.dataset = given.dataset if loader else given
        indexed = hasattr(self.dataset, "__getitem__") and hasattr(self.dataset, "__len__")
        if isinstance(self.dataset, IterableDataset) or not indexed:
            raise Refusal(
                f"data from Python need a torch Dataset with a length and [index], or a DataLoader of one; {name} is "
                f"{description(given)}. Wrap it in a class with __len__ and __getitem__."
            )
        if not len(self.dataset):
            raise Refusal(f"data from Python need examples; {name} has none. Add some.")

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, places: Sequence[int]) -> tuple[np.ndarray, Any]:
        """Examples [chosen, *item] in float32, and their labels as they came. Raises Refusal."""
        with source.blame(source.file_of(self.dataset), "data from Python need examples that can be read"):
            examples = [self.dataset[place] for place in places]
        try:
            batch = self.collate(examples)
        except (TypeError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise Refusal(
                f"data from Python need x as tensors or arrays of one shape; {self.name} can't be collated: {first}. "
                "Turn pictures into tensors in the data set."
            ) from None
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise Refusal(
                f"data from Python need pairs (x, y); {self.name} gives {description(batch)}. Return x and its label."
            )
        x = np.ascontiguousarray(np.asarray(batch[0]), np.float32)
        if len(x) != len(places) or not np.isfinite(x).all():
            why = f"{len(x)} for {len(places)}" if len(x) != len(places) else "NaN or infinity"
            raise Refusal(f"data from Python need one example of finite numbers per index; {self.name} gives {why}.")
        return x, batch[1]


def open_task(given: Any, asked: str | None, seed: int, axes: str | None = None) -> Task:
    """The task that data from Python are; `axes` says what those of an example are. Raises Refusal."""
    # 1 every example once
    parts = _parts(given)
    if len(parts) not in (1, 2, 3):
        raise Refusal(
            f"data from Python are one data set, (train, test) or (train, validation, test); got {len(parts)}. "
            "Give one to three."
        )
    names = {1: ("data",), 2: ("train", "test"), 3: splits.NAMES}[len(parts)]
    sources = [Source(part, name) for part, name in zip(parts, names, strict=True)]
    seen = [_survey(source) for source in sources]
    items = {one.item for one in seen}
    if len(items) > 1:
        raise Refusal(f"data from Python need one shape of example; got {sorted(items)}. Bring all to one size.")
    # 2 kind and classes
    (item,) = items
    kind, order = arrays.read_order((len(sources[0]), *item), asked, axes, KINDS)
    count = 1 + max(int(one.labels.max()) for one in seen)
    called = getattr(sources[0].dataset, "classes", None)
    fits = isinstance(called, Sequence) and len(called) >= count and all(isinstance(name, str) for name in called)
    classes = tuple(called) if fits and called is not None else tuple(str(label) for label in range(count))
    # 3 splits: those that were given, the others split off the first
    missing = {1: splits.NAMES, 2: ("train", "validation"), 3: ("train",)}[len(parts)]
    divided = splits.divide(seen[0].labels, classes, seed, seen[0].digests, missing)
    places = {name: (0, index) for name, index in divided.items()}
    places |= {name: (i, np.arange(len(sources[i]))) for i, name in enumerate(names) if i}
    examples = {name: _examples(sources[i], seen[i], index, order) for name, (i, index) in places.items()}
    notes = [order.sentence]
    if len(missing) > 1:
        shares = "60/20/20 into train, validation and test" if len(parts) == 1 else "80/20 into train and validation"
        notes.append(f"split {shares}, each class alike (seed {seed})")
    notes += [f"{one.name} is drawn anew at each reading" for one in seen if one.random]
    notes += splits.balance(np.concatenate([one.labels for one in seen]), classes)
    mark = fingerprint(
        {"kind": kind.name, "order": order.axes, "item": item, "classes": classes},
        *(np.frombuffer(b"".join(seen[i].digests[p] for p in index), np.uint8) for i, index in places.values()),
        *(seen[i].labels[index] for i, index in places.values()),
    )
    title = type(sources[0].dataset).__name__
    return Task(kind.name, title, kind.question.format(len(classes)), classes, examples["train"],
                examples["validation"], examples["test"], (), tuple(notes), (), mark)  # fmt: skip


def _parts(given: Any) -> list[Any]:
    """The data sets that were given: one, or several in a tuple; arrays (x, y) are one."""
    several = isinstance(given, tuple) or (
        isinstance(given, list) and len(given) > 0 and isinstance(given[0], Dataset | DataLoader)
    )
    if not several:
        return [given]
    if len(given) == 2 and all(isinstance(part, np.ndarray | torch.Tensor) for part in given):
        return [TensorDataset(*(torch.as_tensor(part) for part in given))]
    return list(given)


class _Seen:
    """What one reading of a data set showed; `x` is None where it is to be read as it goes."""

    def __init__(self, name: str, item: tuple[int, ...]) -> None:
        self.name, self.item, self.random = name, item, False
        self.labels = np.empty(0, np.int64)
        self.digests: list[bytes] = []
        self.x: np.ndarray | None = None


def _survey(data: Source) -> _Seen:
    """Labels, digests and, where they stay as they are, the examples themselves."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        first, _ = data.read(range(min(TWICE, len(data))))
        again, _ = data.read(range(min(TWICE, len(data))))
        seen = _Seen(data.name, first.shape[1:])
        seen.random = first.shape != again.shape or not np.array_equal(first, again)
        fits = first[0].nbytes * len(data) <= KEPT and not seen.random
        kept = np.empty((len(data), *seen.item), np.float32) if fits else None
        labels = []
        for place in range(len(data)):
            x, y = data.read([place])
            if x.shape[1:] != seen.item:
                raise Refusal(
                    f"data from Python need one shape of example; {data.name}[{place}] is {[*x.shape[1:]]}, the "
                    f"first {[*seen.item]}. Bring all to one size."
                )
            if kept is not None:
                kept[place] = x[0]
            labels.append(_label(y, f"{data.name}[{place}]"))
            seen.digests.append(hashlib.sha256(x.tobytes()).digest())
    seen.x, seen.labels = kept, np.array(labels, np.int64)
    return seen


def _label(given: Any, where: str) -> int:
    y = np.asarray(given)
    if y.dtype.kind not in "iub" or y.size != 1 or int(y.reshape(())) < 0:
        raise Refusal(
            f"data from Python need one whole number from 0 as y; that of {where} is {description(given)}. "
            "Return the number of the class."
        )
    return int(y.reshape(()))


def _examples(data: Source, seen: _Seen, index: Integer[np.ndarray, " part"], order: AxisOrder) -> Examples:
    if seen.x is None:
        return DatasetExamples(data, index, seen.labels[index], order, seen.item)
    return ArrayExamples(_in_order(seen.x[index], order), seen.labels[index])


def _in_order(x: np.ndarray, order: AxisOrder) -> np.ndarray:
    moved = x.transpose(0, *(1 + axis for axis in order.axes))
    return np.ascontiguousarray(moved if order.channel is None else np.expand_dims(moved, 1 + order.channel))
