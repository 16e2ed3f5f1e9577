"""How training examples are varied: the same for every scheme, and never so that a label would change."""

import numpy as np
import pytest
from datasets import plain_folder

from locant.tasks import augmentation, digits
from locant.tasks.augmentation import Varied, ways
from locant.tasks.kind import AUGMENTED
from locant.tasks.kinds import CLIPS, IMAGES, KINDS
from locant.tasks.sources import open_task
from locant.tasks.task import ArrayExamples

EVERY = np.arange(40)


def noise(*shape: int) -> ArrayExamples:
    return ArrayExamples(np.random.default_rng(1).random((40, *shape), np.float32), EVERY % 2)


@pytest.mark.parametrize("kind", [IMAGES, CLIPS], ids=lambda kind: kind.name)
def test_examples_move_by_a_sixteenth_at_most_and_all_frames_alike(kind) -> None:
    base = noise(*((2,) if kind is CLIPS else ()), 1, 32, 48)
    varied = Varied(base, kind, ("shift",), seed=3)
    x, y = base.read(EVERY), varied.read(EVERY)
    for before, after, (down, right) in zip(x, y, varied.drawn["shift"], strict=True):
        assert abs(down) <= 2
        assert abs(right) <= 3
        rows, columns = (np.arange(32) - down).clip(0, 31), (np.arange(48) - right).clip(0, 47)
        assert np.array_equal(after, before[..., rows, :][..., columns])
    assert len({tuple(move) for move in varied.drawn["shift"].tolist()}) > 10


def test_values_are_scaled_and_pictures_mirrored_each_by_a_draw_of_its_own() -> None:
    base = noise(1, 8, 8)
    x = base.read(EVERY)
    bright = Varied(base, IMAGES, ("brightness",), seed=0)
    gains = bright.read(EVERY) / x
    assert np.allclose(gains, gains[:, :, :1, :1], rtol=1e-6)
    assert 1 / 1.25 <= gains.min() < 0.9 < 1.1 < gains.max() <= 1.25 * (1 + 1e-6)
    mirrored = Varied(base, IMAGES, ("flip",), seed=0).read(EVERY)
    turned = [np.array_equal(a, b[..., ::-1]) for a, b in zip(mirrored, x, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(mirrored, x, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 8 < sum(turned) < 32
    both = Varied(base, IMAGES, ("brightness", "flip"), seed=0).read(EVERY)
    assert np.allclose(both, mirrored * gains, rtol=1e-6)  # one way does not change the draws of another


def test_draws_belong_to_seed_epoch_and_example() -> None:
    base = noise(1, 32, 32)
    one, two = (Varied(base, IMAGES, AUGMENTED, seed=5) for _ in range(2))
    for epoch in (0, 7, 2):  # in any order: a resumed trial begins in the middle
        one.begin(epoch)
        two.begin(epoch)
        assert np.array_equal(one.read(EVERY), two.read(EVERY))
        assert np.array_equal(one.read(EVERY[[9, 3]]), one.read(EVERY)[[9, 3]])
    before = one.read(EVERY)
    one.begin(3)
    assert not np.array_equal(one.read(EVERY), before)
    assert not np.array_equal(
        Varied(base, IMAGES, AUGMENTED, seed=6).read(EVERY), Varied(base, IMAGES, AUGMENTED, 5).read(EVERY)
    )


def test_nothing_asked_is_nothing_done() -> None:
    base = noise(1, 8, 8)
    assert np.array_equal(Varied(base, IMAGES, (), 0).read(EVERY), base.read(EVERY))


def test_what_is_done_unasked_can_not_change_a_label(tmp_path) -> None:
    """Moving clips across their cells would give directions away; numbers may mean more than a brightness."""
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).random((60, 8, 8)), y=EVERY.repeat(2)[:60] % 2)
    tasks = {
        "digits": digits.images(), "moving": digits.clips(), "lines": digits.sequences(),
        "pictures": open_task(str(plain_folder(tmp_path / "photos", each=6)), None, size=32, frames=None, seed=0),
        "array": open_task(str(tmp_path / "own.npz"), None, size=None, frames=None, seed=0),
    }  # fmt: skip
    found = {name: ways(KINDS[task.kind].recipe, KINDS[task.kind], task) for name, task in tasks.items()}
    assert found == {
        "digits": ("brightness",), "moving": ("brightness",), "lines": (),
        "pictures": ("shift", "brightness"), "array": (),
    }  # fmt: skip
    assert "flip" not in {way for ways in found.values() for way in ways}
    assert set(augmentation.WORDS) == set(AUGMENTED)
