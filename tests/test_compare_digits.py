"""The built-in tasks: what is said of them holds, and everyone gets the same data."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from locant.tasks import digits
from locant.tasks.kinds import KINDS
from locant.tasks.task import Refusal, Task

OPPOSITE = {label: label ^ 1 for label in range(8)}


@pytest.fixture(scope="module")
def images() -> Task:
    return digits.images()


@pytest.fixture(scope="module")
def clips() -> Task:
    return digits.clips()


@pytest.fixture(scope="module")
def sequences() -> Task:
    return digits.sequences()


def splits(task: Task) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    parts = {"train": task.train, "validation": task.validation, "test": task.test}
    return {name: (part.read(np.arange(len(part))), part.labels) for name, part in parts.items()}


def scan_of(clip: np.ndarray) -> bytes:
    """The only occupied cell of the first frame."""
    return cells(clip)[0].tobytes()


def cells(clip: np.ndarray) -> np.ndarray:
    """For each frame [T, 1, H, W] its one occupied 8 × 8 cell; asserts that there is exactly one."""
    frames, _, height, width = clip.shape
    grid = clip[:, 0].reshape(frames, height // 8, 8, width // 8, 8).transpose(0, 1, 3, 2, 4).reshape(frames, -1, 8, 8)
    occupied = grid.any((2, 3))
    assert (occupied.sum(1) == 1).all()
    return grid[occupied]


def places(clip: np.ndarray) -> np.ndarray:
    """(row, column) of the occupied cell in each frame."""
    frames, _, height, width = clip.shape
    mass = clip[:, 0].reshape(frames, height // 8, 8, width // 8, 8).sum((2, 4))
    return np.stack(np.unravel_index(mass.reshape(frames, -1).argmax(1), mass.shape[1:]), axis=1)


def test_images_are_the_scans_each_once() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    expected = Counter(
        (scan.tobytes(), int(digit))
        for scan, digit in zip((data.images / 16).astype(np.float32), data.target, strict=True)
    )
    found = Counter(
        (x[0].tobytes(), int(y)) for xs, ys in splits(digits.images()).values() for x, y in zip(xs, ys, strict=True)
    )
    assert found == expected
    assert sum(found.values()) == 1797


def test_images_are_split_by_digit(images: Task) -> None:
    counts = {name: np.bincount(y, minlength=10) for name, (_, y) in splits(images).items()}
    whole = sum(counts.values())
    assert [int(c) for c in whole] == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (counts["test"] == np.round(0.2 * whole)).all()
    assert (counts["validation"] == np.round(0.2 * whole)).all()


@pytest.mark.parametrize("name", ["images", "sequences", "clips"])
def test_no_scan_is_in_two_splits(name: str, request: pytest.FixtureRequest) -> None:
    of = {"images": np.ndarray.tobytes, "sequences": np.ndarray.tobytes, "clips": scan_of}[name]
    sets = [{of(x) for x in xs} for xs, _ in splits(request.getfixturevalue(name)).values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 1797


def test_values_lie_in_0_to_1(images: Task, clips: Task, sequences: Task) -> None:
    for task in (images, clips, sequences):
        kind = KINDS[task.kind]
        shifts = kind.shifts(task.test, kind.patch(task.test.shape, None))
        assert shifts, task.kind
        shifted = [shift.examples.read(np.arange(len(shift.examples))) for shift in shifts]
        for x in [*(x for x, _ in splits(task).values()), *shifted]:
            assert x.dtype == np.float32
            assert x.min() == 0.0
            assert x.max() == 1.0


def test_images_at_another_size() -> None:
    task = digits.images(size=16)
    assert task.train.shape == (1, 16, 16)
    x, _ = splits(task)["train"]
    small, _ = splits(digits.images())["train"]
    # inner pixels of a doubling are 9/16, 3/16, 3/16, 1/16 of the four nearest
    a = small[:, 0]
    expected = 9 / 16 * a[:, 3, 3] + 3 / 16 * (a[:, 3, 4] + a[:, 4, 3]) + 1 / 16 * a[:, 4, 4]
    assert np.abs(x[:, 0, 7, 7] - expected).max() < 1e-6


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_reversing_time_maps_each_class_onto_its_opposite(clips: Task, name: str) -> None:
    x, y = splits(clips)[name]
    whole = Counter((clip.tobytes(), int(label)) for clip, label in zip(x, y, strict=True))
    backwards = Counter((clip[::-1].tobytes(), OPPOSITE[int(label)]) for clip, label in zip(x, y, strict=True))
    assert whole == backwards


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_frames_say_nothing_about_the_sense_of_motion(clips: Task, name: str) -> None:
    x, y = splits(clips)[name]
    # as a multiset of clips, each clip a multiset of frames: what a model without time can see at most
    bags = [Counter(tuple(sorted(f.tobytes() for f in clip)) for clip in x[y == label]) for label in range(8)]
    for label in range(8):
        assert bags[label] == bags[OPPOSITE[label]]
        assert bags[label]


def test_patches_say_nothing_at_all_about_the_motion(clips: Task) -> None:
    for x, y in splits(clips).values():
        shares = Counter()
        for clip, label in zip(x, y, strict=True):
            scans = cells(clip)
            assert (scans == scans[0]).all()  # the same three patches, the rest blank: the scan alone
            shares[scans[0].tobytes(), int(label) // 2] += 1
        assert set(shares.values()) == {2}  # and each scan moves along one line, in both senses


def test_each_direction_is_as_it_is_called(clips: Task) -> None:
    for x, y in splits(clips).values():
        for clip, label in zip(x, y, strict=True):
            steps = np.diff(places(clip), axis=0)
            words = clips.classes[label].split(" and ")
            down = ("down" in words) - ("up" in words)
            right = ("right" in words) - ("left" in words)
            assert (steps == (down, right)).all()
        counts = np.bincount(y, minlength=8)
        assert counts.max() - counts.min() <= 10  # each of ten digits may miss one line of motion


def test_more_frames_on_a_wider_canvas() -> None:
    task = digits.clips(size=40, frames=4)
    x, _ = splits(task)["validation"]
    assert x.shape[1:] == (4, 1, 40, 40)
    assert {tuple(p) for clip in x for p in places(clip).tolist()} == {(i, j) for i in range(5) for j in range(5)}


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_sequences_read_the_scan_in_order(size: int, images: Task) -> None:
    x, y = splits(digits.sequences(size))["train"]
    pictures, labels = splits(images)["train"]
    assert x.shape[1:] == (size, 64 // size)
    assert (x.reshape(len(x), 64) == pictures.reshape(len(x), 64)).all()
    assert (y == labels).all()


@pytest.mark.parametrize("name", ["images", "clips", "sequences"])
def test_the_same_data_every_time(name: str, request: pytest.FixtureRequest) -> None:
    assert KINDS[name].built_in(KINDS[name].recipe).fingerprint == request.getfixturevalue(name).fingerprint


def test_fingerprints_differ_with_settings(images: Task, clips: Task, sequences: Task) -> None:
    marks = [images, clips, sequences, digits.images(size=16), digits.clips(size=32), digits.sequences(8)]
    assert len({task.fingerprint for task in marks}) == 6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: digits.images(size=2), "Take --size 8"),
        (lambda: digits.images(size=(8, 12)), "one side for both"),
        (lambda: digits.clips(size=20), "Take --size 24 --frames 3"),
        (lambda: digits.clips(frames=4), "Take --size 32 --frames 4"),
        (lambda: digits.clips(frames=1), "Take --size 24 --frames 2"),
        (lambda: digits.sequences(7), "8, 16, 32 or 64"),
    ],
)
def test_sizes_that_cannot_be(make: object, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        make()  # type: ignore[operator]
