"""How a user's data is split, what a fingerprint sees, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import clip_folder, everything, picture, plain_folder, reads, reason, save, sizes

from locant.tasks import splits, stills
from locant.tasks.inspection import Store
from locant.tasks.sources import open_task
from locant.tasks.task import ArrayExamples, Doubt, Refusal


@pytest.mark.parametrize(
    "names",
    ["train val test", "train valid test", "train validation test", "Train Val TEST", "Training dev Testing",
     "training Dev eval", "train val evaluation", "train2017 val2017 test2017", "MRI_train MRI-dev test_set"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [None, "images"])
def test_split_folders_are_used(tmp_path: Path, names: str, kind: str | None) -> None:
    for split, start in zip(names.split(), (0, 10, 20), strict=True):
        for c, label in enumerate("ab"):
            for i in range(3):
                save(tmp_path / split / label / f"{i}.png", np.full((8, 8), start + 3 * c + i, np.uint8))
    task = open_task(tmp_path, kind, size=8)
    assert (task.kind, task.classes) == ("images", ("a", "b"))
    values = {split: sorted(np.round(x[:, 0, 0, 0] * 255).astype(int)) for split, (x, _) in reads(task).items()}
    assert values == {"train": [*range(6)], "validation": [*range(10, 16)], "test": [*range(20, 26)]}
    assert any(note.startswith("the splits are the folders that were there: train, val") for note in task.notes)


def test_a_missing_split_is_taken_off_train(tmp_path: Path) -> None:
    plain_folder(tmp_path / "train", each=10)
    for c, label in enumerate("ab"):
        for i in range(3):
            save(tmp_path / "test" / label / f"{i}.png", picture(1000 + 10 * c + i))
    task = open_task(tmp_path, size=8)
    assert sizes(task) == (16, 4, 6)
    assert "validation (20% of each class) split off train, as it was not there (seed 0)" in task.notes
    both = open_task(plain_folder(tmp_path / "other" / "train", each=10).parent, size=8)
    assert sizes(both) == (12, 4, 4)


def test_splits_need_train(tmp_path: Path) -> None:
    plain_folder(tmp_path / "test")
    with pytest.raises(Refusal, match="needs train"):
        open_task(tmp_path)


def test_two_folders_for_one_split(tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        plain_folder(tmp_path / name)
    with pytest.raises(Refusal, match="one and the same"):
        open_task(tmp_path)


@pytest.mark.parametrize("kind", [None, "images", "clips"])
@pytest.mark.parametrize("names", [("fold 1", "fold 2"), ("one", "two", "three"), ("train", "fold")])
def test_folders_that_hold_the_same_folders_are_no_guess(
    tmp_path: Path, names: tuple[str, ...], kind: str | None
) -> None:
    """Splits by other names would be learned as classes: told apart are then training and test pictures."""
    for f, name in enumerate(names):
        for c, label in enumerate(("glioma", "meningioma", "pituitary")):
            for i in range(4):
                save(tmp_path / name / label / f"{i}.png", picture(100 * f + 10 * c + i))
    if "train" in names and kind == "clips":
        with pytest.raises(Refusal, match="neither a folder of frames nor a video file"):
            open_task(tmp_path, kind, size=8)
    elif "train" in names:
        assert open_task(tmp_path, kind, size=8).classes == ("glioma", "meningioma", "pituitary")
    elif kind == "clips":
        assert open_task(tmp_path, kind, size=8, frames=2).classes == tuple(sorted(names))
    else:
        with pytest.raises(
            Doubt, match="can be taken in 2 ways: its folders .* hold folders of the same names"
        ) as found:
            open_task(tmp_path, kind, size=8)
        splits, classes = found.value.readings
        assert splits.words == "splits with the 3 classes 'glioma', 'meningioma', 'pituitary'"
        assert dict(classes.settings) == ({"task": "clips"} if kind is None else {})
        assert "rename them to train, val and test" in str(found.value)


def test_a_class_of_trains_is_no_split(tmp_path: Path) -> None:
    pictures = open_task(plain_folder(tmp_path / "p", classes=("car", "train")), size=8)
    assert (pictures.classes, pictures.skipped) == (("car", "train"), ())
    clip_folder(tmp_path / "c")
    for label, name in (("a", "car"), ("b", "train")):
        (tmp_path / "c" / label).rename(tmp_path / "c" / name)
        for clip in range(4):
            (tmp_path / "c" / name / f"clip {clip}").rename(tmp_path / "c" / name / f"{name} {clip}")
    with pytest.raises(Doubt, match="the folder 'train' beside 'car'") as found:
        open_task(tmp_path / "c")
    assert dict(found.value.readings[0].settings) == {"data": str(tmp_path / "c" / "train")}


def test_a_class_named_test_is_a_class(tmp_path: Path) -> None:
    assert open_task(plain_folder(tmp_path, classes=("test", "other")), size=8).classes == ("other", "test")


def test_what_lies_beside_splits_is_listed(tmp_path: Path) -> None:
    plain_folder(tmp_path / "train", each=5)
    plain_folder(tmp_path / "extra")
    task = open_task(tmp_path, size=8)
    assert sum(sizes(task)) == 10
    assert "not one of them" in reason(task, "extra")


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    plain_folder(tmp_path / "train", classes=("a", "b"))
    plain_folder(tmp_path / "test", classes=("a", "b", "c"))
    with pytest.raises(Refusal, match="'c' has 0"):
        open_task(tmp_path, size=8)


def test_a_class_that_test_lacks_is_noted(tmp_path: Path) -> None:
    plain_folder(tmp_path / "train", classes=("a", "b", "c"))
    save(tmp_path / "test" / "b" / "1.png", picture(999))
    assert "test has no examples of 'a', 'c'" in open_task(tmp_path, size=8).notes


def test_copies_stay_in_one_split(tmp_path: Path) -> None:
    root = plain_folder(tmp_path, each=8)
    for i in range(6):  # the same pixels in another format: other bytes
        save(root / "a" / f"copy{i}.bmp", picture(i))
    for seed in range(5):
        task = open_task(root, size=8, seed=seed)
        sets = [{x.tobytes() for x in xs} for xs, _ in reads(task).values()]
        assert sum(map(len, sets)) == len(set.union(*sets)) == 16
        assert sum(sizes(task)) == 22
        assert "6 examples are copies of others; copies stand in one split" in task.notes


def test_a_leak_between_split_folders_is_told_and_refused_strictly(tmp_path: Path) -> None:
    plain_folder(tmp_path / "train", each=5)
    plain_folder(tmp_path / "val", each=2)
    save(tmp_path / "test" / "a" / "new.png", picture(800))
    save(tmp_path / "test" / "a" / "old.bmp", picture(3))
    task = open_task(tmp_path, size=8)
    assert "4 of the 4 validation examples stand in train too, pixel for pixel" in task.notes
    assert "1 of the 2 test examples stand in train too, pixel for pixel" in task.notes
    with pytest.raises(Refusal, match=r"--strict.*4 of the 4 validation.*1 of the 2 test"):
        open_task(tmp_path, size=8, strict=True)


def test_uneven_classes_are_told_and_split_alike(tmp_path: Path) -> None:
    root = plain_folder(tmp_path, each=5)
    for i in range(20):
        save(root / "b" / f"more{i}.png", picture(500 + i))
    task = open_task(root, size=8)
    assert [np.bincount(part.labels).tolist() for part in (task.train, task.validation, task.test)] == [
        [3, 15],
        [1, 5],
        [1, 5],
    ]
    assert "the largest class, 'b' with 25 examples, has 5 times the smallest, 'a' with 5" in task.notes


def test_the_split_follows_the_seed_alone(tmp_path: Path) -> None:
    root = plain_folder(tmp_path, each=12)
    again, other = open_task(root, size=8, seed=1), open_task(root, size=8, seed=2)
    first = open_task(root, size=8, seed=1)
    assert first.fingerprint == again.fingerprint
    assert (first.train.read(np.arange(14)) == again.train.read(np.arange(14))).all()
    assert first.fingerprint != other.fingerprint
    assert everything(first) == everything(other)


def test_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    marks = [open_task(root, size=8).fingerprint, open_task(root, size=16).fingerprint]
    save(root / "a" / "0.png", picture(77))
    marks.append(open_task(root, size=8).fingerprint)
    save(root / "a" / "0.png", picture(77), compress_level=0)  # the same pixels, other bytes
    marks.append(open_task(root, size=8).fingerprint)
    (root / "a" / "0.png").rename(root / "a" / "zero.png")
    marks.append(open_task(root, size=8).fingerprint)
    assert len(set(marks)) == 5


def test_the_fingerprint_does_not_see_where_the_folder_lies(tmp_path: Path) -> None:
    here, there = plain_folder(tmp_path / "here"), plain_folder(tmp_path / "there")
    assert open_task(here, size=8).fingerprint == open_task(there, size=8).fingerprint


@pytest.mark.parametrize("count", range(3, 40))
def test_every_class_reaches_every_split(count: int) -> None:
    labels = np.repeat(np.arange(3), [count, 3, 50])
    parts = splits.divide(labels, ("a", "b", "c"), seed=count)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    wanted = max(1, round(0.2 * count))
    counts = {name: np.bincount(labels[index], minlength=3).tolist() for name, index in parts.items()}
    assert counts == {
        "train": [count - 2 * wanted, 1, 30],
        "validation": [wanted, 1, 10],
        "test": [wanted, 1, 10],
    }


def test_too_small_a_class(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    for name in ("2", "3", "4"):
        (root / "b" / f"{name}.png").unlink()
    with pytest.raises(Refusal, match=r"at least 3 different usable examples.*'b' has 2\. Add"):
        open_task(root, size=8)


def test_copies_do_not_make_a_class_larger(tmp_path: Path) -> None:
    root = plain_folder(tmp_path, each=2)
    for name in "ab":
        save(root / name / "copy.png", picture(100 * "ab".index(name)))
    with pytest.raises(Refusal, match="'a' has 2, 'b' has 2"):
        open_task(root, size=8)


def test_a_class_without_usable_files(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    (root / "c").mkdir()
    with pytest.raises(Refusal, match="'c' has 0"):
        open_task(root, size=8)


def test_one_class_alone(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"at least two classes.*one class only, 'a'\. Add"):
        open_task(plain_folder(tmp_path, classes=("a",)), size=8)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"a folder for each class.*Lay it out"):
        open_task(tmp_path)


def test_pictures_without_classes(tmp_path: Path) -> None:
    save(tmp_path / "1.png", picture(1))
    with pytest.raises(Refusal, match="a folder for each class"):
        open_task(tmp_path)


def test_nothing_usable(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no")
    with pytest.raises(Refusal, match=r"usable files.*2 × not an image"):
        open_task(tmp_path)


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"there is no .*missing"):
        open_task(tmp_path / "missing")


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(Refusal, match=r"'x\.csv' is neither"):
        open_task(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("kind needs", {"kind": "pictures"}),
        ("size needs", {"size": 0}),
        ("frames needs", {"frames": -1}),
        ("sequences need", {"kind": "sequences"}),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, words: str, options: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=words):
        open_task(plain_folder(tmp_path), **options)


def test_pictures_beside_clips_need_a_word(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    save(root / "a" / "clip" / "0.png", picture(9))
    with pytest.raises(Refusal, match="--task images"):
        open_task(root, size=8)
    assert sum(sizes(open_task(root, "images", size=8))) == 11


def test_a_file_that_goes_away_later(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    store = Store(lambda path: stills.read_still(path, (8, 8)), room=0)  # nothing is kept: larger than memory
    store.first(str(root / "a" / "0.png"))
    assert (store.pixels(str(root / "a" / "0.png")) == picture(0)).all()
    (root / "a" / "0.png").unlink()
    with pytest.raises(Refusal, match=r"stay as it was.*can no longer be used"):
        store.pixels(str(root / "a" / "0.png"))


def test_the_store_stops_at_its_room(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    store = Store(lambda path: stills.read_still(path, (8, 8)), room=2 * 8 * 8 * 3)
    for i in (0, 1, 2, 0):
        store.first(str(root / "a" / f"{i}.png"))
    assert [Path(path).name for path in store.kept] == ["0.png", "1.png"]
    assert store.room == 0


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    open_task(plain_folder(tmp_path), size=8, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 10) for i in range(1, 11)]


def test_a_share_keeps_each_class_and_grows_by_adding() -> None:
    labels = np.repeat(np.arange(4), [100, 40, 7, 1])
    train = ArrayExamples(np.arange(len(labels), dtype=np.float32)[:, None], labels)
    assert splits.share(train, 1.0, 3) is train
    drawn = [splits.share(train, part, 3) for part in (0.05, 0.1, 0.3)]
    assert [np.bincount(part.labels).tolist() for part in drawn] == [[5, 2, 1, 1], [10, 4, 1, 1], [30, 12, 2, 1]]
    seen = []
    for part in drawn:
        values = part.read(np.arange(len(part)))[:, 0].astype(int)
        assert len(set(values)) == len(values)
        assert (labels[values] == part.labels).all()
        assert (part.read(np.array([2, 0]))[:, 0] == values[[2, 0]]).all()
        seen.append(set(values))
    assert seen[0] < seen[1] < seen[2]
    again, other = (splits.share(train, 0.3, seed).read(np.arange(45))[:, 0].astype(int) for seed in (3, 4))
    assert set(again) == seen[2] != set(other)
