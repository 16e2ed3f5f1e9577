"""What was not trained for: the same examples elsewhere, nothing lost but what is said to be."""

import numpy as np
import pytest

from locant.tasks import shifts
from locant.tasks.kinds import KINDS
from locant.tasks.task import ArrayExamples

RNG = np.random.default_rng(0)


def examples(*shape: int) -> ArrayExamples:
    return ArrayExamples(RNG.random((50, *shape), np.float32) + 0.5, np.arange(50) % 5)


@pytest.mark.parametrize(
    ("kind", "shape", "patch", "names", "shapes"),
    [
        ("images", (3, 8, 12), (2, 4), ["larger canvas", "off centre"], [(3, 10, 16), (3, 8, 12)]),
        ("clips", (4, 1, 6, 6), (1, 3, 3), ["longer clips", "larger canvas"], [(6, 1, 6, 6), (4, 1, 9, 9)]),
        ("sequences", (10, 2), (1,), ["longer sequence"], [(12, 2)]),
    ],
)
def test_names_and_sizes(kind, shape, patch, names, shapes) -> None:
    made = KINDS[kind].shifts(examples(*shape), patch)
    assert [s.name for s in made] == names
    assert [s.examples.shape for s in made] == shapes
    for shift in made:
        read = shift.examples.read(np.arange(50))
        assert read.shape == (50, *shift.examples.shape)
        assert np.array_equal(shift.examples.read(np.array([7, 3])), read[[7, 3]])


def test_on_a_larger_canvas_an_example_is_whole_and_in_whole_patches() -> None:
    base = examples(1, 8, 8)
    (larger, _) = shifts.of_images(base, (2, 2))
    places = set()
    for example, canvas in zip(base.x, larger.examples.read(np.arange(50)), strict=True):
        rows, columns = np.nonzero(canvas[0])
        top, left = rows.min(), columns.min()
        assert np.array_equal(canvas[:, top : top + 8, left : left + 8], example)
        assert np.count_nonzero(canvas) == 64
        assert top % 2 == left % 2 == 0
        places.add((top, left))
    assert places == {(0, 0), (0, 2), (2, 0), (2, 2)}


def test_off_centre_moves_every_picture_and_says_how_far() -> None:
    base = examples(1, 8, 8)
    (_, moved) = shifts.of_images(base, (2, 2))
    seen = set()
    for example, canvas in zip(base.x, moved.examples.read(np.arange(50)), strict=True):
        fits = [
            (y, x)
            for y in range(-7, 8)
            for x in range(-7, 8)
            if np.array_equal(
                canvas[0],
                np.pad(example[0], 8)[8 - y : 16 - y, 8 - x : 16 - x],
            )
        ]
        assert len(fits) == 1
        seen |= set(fits)
    assert (0, 0) not in seen
    assert {abs(n) for step in seen for n in step} == {0, 1, 2}


def test_a_longer_clip_holds_its_ends() -> None:
    base = examples(4, 1, 3, 3)
    (longer, _) = shifts.of_clips(base, (1, 3, 3))
    held = set()
    for clip, drawn in zip(base.x, longer.examples.read(np.arange(50)), strict=True):
        index = [next(i for i in range(4) if np.array_equal(clip[i], frame)) for frame in drawn]
        assert index in ([0, 0, 0, 1, 2, 3], [0, 0, 1, 2, 3, 3], [0, 1, 2, 3, 3, 3])
        held.add(index.count(0))
    assert held == {1, 2, 3}
