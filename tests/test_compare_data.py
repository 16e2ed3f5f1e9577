"""A user's data: every layout, and every kind of file that is odd, broken or hostile."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from locant.compare import arrays, splits, stills
from locant.compare.films import natural, spaced
from locant.compare.folders import shown
from locant.compare.inspection import Store
from locant.compare.sources import open_task
from locant.compare.task import ArrayExamples, Refusal, Task

Image = pytest.importorskip("PIL.Image")
COLOURS = {"red": (220, 30, 20), "blue": (20, 40, 210)}


def picture(seed: int, size: tuple[int, int] = (8, 8), channels: int = 3) -> np.ndarray:
    """uint8 noise, different for each seed."""
    shape = (size[1], size[0], 3) if channels == 3 else (size[1], size[0])
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def plain_folder(root: Path, each: int = 5, classes: tuple[str, ...] = ("a", "b"), channels: int = 3) -> Path:
    """`each` different pictures of 8 × 8 in each class."""
    for c, name in enumerate(classes):
        for i in range(each):
            save(root / name / f"{i}.png", picture(100 * c + i, channels=channels))
    return root


def reads(task: Task) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    parts = {"train": task.train, "validation": task.validation, "test": task.test}
    return {name: (part.read(np.arange(len(part))), part.labels) for name, part in parts.items()}


def everything(task: Task) -> Counter[tuple[bytes, int]]:
    return Counter((x.tobytes(), int(y)) for xs, ys in reads(task).values() for x, y in zip(xs, ys, strict=True))


def sizes(task: Task) -> tuple[int, int, int]:
    return len(task.train), len(task.validation), len(task.test)


def reason(task: Task, path: str) -> str:
    (found,) = [skip.reason for skip in task.skipped if skip.path == path]
    return found


# ---------------------------------------------------------------- folders of pictures


def test_pictures_are_read_as_they_are(tmp_path: Path) -> None:
    task = open_task(plain_folder(tmp_path), size=8)
    assert (task.kind, task.classes, task.train.shape) == ("images", ("a", "b"), (3, 8, 8))
    assert sizes(task) == (6, 2, 2)
    expected = Counter(
        ((picture(100 * c + i).transpose(2, 0, 1) / 255).astype(np.float32).tobytes(), c)
        for c in (0, 1)
        for i in range(5)
    )
    assert everything(task) == expected
    assert task.skipped == ()
    assert all(
        (part.labels == 0).any() and (part.labels == 1).any() for part in (task.train, task.validation, task.test)
    )


def test_reading_keeps_the_order_asked_for(tmp_path: Path) -> None:
    train = open_task(plain_folder(tmp_path), size=8).train
    whole = train.read(np.arange(6))
    assert (train.read(np.array([4, 0, 4])) == whole[[4, 0, 4]]).all()
    assert train.read(np.array([], np.int64)).shape == (0, 3, 8, 8)


def test_grey_only_if_every_file_is_grey(tmp_path: Path) -> None:
    root = plain_folder(tmp_path, channels=1)
    task = open_task(root, size=8)
    assert task.train.shape == (1, 8, 8)
    save(root / "a" / "colour.png", picture(7))
    mixed = open_task(root, size=8)
    assert mixed.train.shape == (3, 8, 8)
    grey = [
        x
        for x, _ in (pair for part in reads(mixed).values() for pair in zip(*part, strict=True))
        if (x[0] == x[1]).all()
    ]
    assert len(grey) == 10


def test_aspect_is_kept_by_a_centre_square(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = picture(3)
    save(tmp_path / "wide.png", wide)
    assert (stills.read_still(tmp_path / "wide.png", 8).pixels == picture(3)).all()
    save(tmp_path / "tall.png", wide.transpose(1, 0, 2))
    assert (stills.read_still(tmp_path / "tall.png", 8).pixels == picture(3).transpose(1, 0, 2)).all()


def test_resizing_averages(tmp_path: Path) -> None:
    flat = np.kron(np.array([[0, 100], [200, 40]], np.uint8), np.ones((16, 16), np.uint8))
    save(tmp_path / "flat.png", flat)
    small = stills.read_still(tmp_path / "flat.png", 8).pixels[..., 0]
    assert small[0, 0] == 0
    assert small[0, 7] == 100
    assert small[7, 0] == 200
    assert small[7, 7] == 40


def test_a_thin_picture_does_not_explode(tmp_path: Path) -> None:
    save(tmp_path / "thin.png", np.full((60_000, 1), 9, np.uint8))
    assert (stills.read_still(tmp_path / "thin.png", 32).pixels == 9).all()


def test_cmyk_is_converted(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(root / "a" / "print.jpg", quality=100)
    found = stills.read_still(root / "a" / "print.jpg", 8)
    assert found.remarks == {"CMYK"}
    assert np.abs(found.pixels.astype(int) - (255, 0, 0)).max() <= 3
    assert "1 usable files are CMYK: converted to RGB (a/print.jpg)" in open_task(root, size=8).notes


def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 65535, 32768], [128, 129, 300, 65406]], np.uint16)
    square = np.tile(deep, (2, 1))
    Image.fromarray(square).save(tmp_path / "deep.png")
    found = stills.read_still(tmp_path / "deep.png", 4)
    assert found.remarks == {"16-bit"}
    assert (found.pixels[..., 0] == np.floor(square / 257 + 0.5)).all()


def test_sixteen_bit_colour_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + np.full((2, 2, 3), 0x8000, ">u2").tobytes())
    (tmp_path / "deep.png").write_bytes(sixteen_bit_png())
    assert stills.read_still(tmp_path / "deep.png", 2).remarks == {"16-bit"}
    assert (stills.read_still(tmp_path / "deep.png", 2).pixels == 0x80).all()
    assert (stills.read_still(tmp_path / "deep.ppm", 2).pixels == 0x80).all()


def sixteen_bit_png() -> bytes:
    """A 2 × 2 RGB PNG of 16 bits a channel, which Pillow can read but not write."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = (b"\0" + b"\x80\x00" * 6) * 2
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 16), np.uint8))
    # how the sensor saw it, for each orientation of the EXIF standard
    seen = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "photo.jpg", np.ascontiguousarray(seen), quality=100, exif=exif)
    found = stills.read_still(tmp_path / "photo.jpg", 32)
    assert np.abs(found.pixels[..., 0].astype(int) - upright).max() <= 3
    assert found.remarks == ({"rotated"} if orientation > 1 else set())


def test_animated_pictures_give_their_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("L", (8, 8), 40), Image.new("L", (8, 8), 200)
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    found = stills.read_still(tmp_path / "moving.gif", 8)
    assert found.remarks == {"animated"}
    assert (found.pixels == 40).all()


def test_transparent_pictures_are_laid_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 4, 8))
    clear.save(tmp_path / "clear.png")
    found = stills.read_still(tmp_path / "clear.png", 8)
    assert found.remarks == {"transparent"}
    assert (found.pixels[:, :4] == (0, 0, 255)).all()
    assert (found.pixels[:, 4:] == 255).all()
    Image.new("LA", (8, 8), (10, 255)).save(tmp_path / "grey.png")
    assert (stills.read_still(tmp_path / "grey.png", 8).pixels == np.full((8, 8, 1), 10)).all()


def test_palettes_become_colours(tmp_path: Path) -> None:
    table = Image.new("P", (8, 8), 1)
    table.putpalette([0, 0, 0, 10, 20, 30])
    table.save(tmp_path / "table.png")
    found = stills.read_still(tmp_path / "table.png", 8)
    assert (found.pixels == (10, 20, 30)).all()
    assert found.remarks == set()


def broken_files(folder: Path) -> dict[str, str]:
    """Files that cannot be used, with words of the reason."""
    whole = io.BytesIO()
    Image.fromarray(picture(1, (64, 64))).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.png").write_text("not a picture")
    Image.new("1", (8001, 8001)).save(folder / "huge.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tiff")
    (folder / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "loop").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe.png")
    return {
        "cut.jpg": "truncated",
        "empty.png": "0 bytes",
        "words.png": "not an image",
        "huge.png": "64 million pixels",
        "float.tiff": "32-bit",
        "script.eps": "not an image",
        "gone.png": "leads nowhere",
        "circle.png": "in a circle",
        "loop": "back to a folder above",
        "pipe.png": "not a regular file",
    }


def test_unusable_files_are_skipped_and_listed(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    before = Image.MAX_IMAGE_PIXELS
    expected = broken_files(root / "a")
    task = open_task(root, "images", size=8)
    assert sizes(task) == (6, 2, 2)
    assert {skip.path for skip in task.skipped} == {f"a/{name}" for name in expected}
    for name, words in expected.items():
        assert words in reason(task, f"a/{name}")
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_pixel_limit_is_exact(tmp_path: Path) -> None:
    Image.new("1", (8000, 8000)).save(tmp_path / "most.png")
    assert stills.read_still(tmp_path / "most.png", 2).pixels.tolist() == [[[0], [0]], [[0], [0]]]
    Image.new("1", (16000, 16000)).save(tmp_path / "twice.png")  # beyond twice the limit Pillow raises by itself
    with pytest.raises(stills.Unusable, match="64 million"):
        stills.read_still(tmp_path / "twice.png", 2)


def test_strict_refuses_with_the_list(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    assert open_task(root, size=8, strict=True).skipped == ()
    (root / "a" / "empty.png").write_bytes(b"")
    with pytest.raises(Refusal, match=r"--strict.*1 were skipped.*a/empty\.png \(empty: 0 bytes\)"):
        open_task(root, size=8, strict=True)
    (root / "a" / "empty.png").unlink()
    Image.new("CMYK", (8, 8)).save(root / "b" / "print.jpg")
    with pytest.raises(Refusal, match=r"--strict.*CMYK.*b/print\.jpg"):
        open_task(root, size=8, strict=True)


def test_odd_names(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    names = ["new\nline.png", "-rf.png", "sp ace.PNG", "日本 é.png", "a'\"<b>.png", os.fsdecode(b"\xff\xfe.png")]
    for i, name in enumerate(names):
        save(root / "a" / "x.png", picture(50 + i))
        (root / "a" / "x.png").rename(root / "a" / name)
    task = open_task(root, size=8)
    assert sum(sizes(task)) == 16
    assert task.skipped == ()
    (note,) = [note for note in task.notes if "control characters" in note]
    assert note.startswith("2 usable files")
    assert "a/new\\nline.png" in note
    assert "a/\\udcff\\udcfe.png" in note
    assert all(note.isprintable() for note in task.notes)
    note.encode()  # no lone surrogates


def test_odd_class_names(tmp_path: Path) -> None:
    root = plain_folder(tmp_path, classes=("class 10", "class 9", "línea\n2"))
    assert open_task(root, size=8).classes == ("class 9", "class 10", "línea\\n2")


def test_hidden_files_and_litter_are_left_out(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    for name in (".DS_Store", "Thumbs.db", ".hidden.png"):
        (root / "a" / name).write_bytes(b"x")
    (root / ".git").mkdir()
    task = open_task(root, size=8)
    assert task.skipped == ()
    assert "4 hidden files and litter of file managers were left out" in task.notes
    assert task.fingerprint == open_task(plain_folder(tmp_path / "clean"), size=8).fingerprint


def test_files_beside_the_classes_are_listed(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    (root / "README.txt").write_text("hello")
    assert "beside the class folders" in reason(open_task(root, size=8), "README.txt")


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    plain_folder(tmp_path / "there", classes=("a", "b"))
    (tmp_path / "here" / "b").mkdir(parents=True)
    (tmp_path / "here" / "a").symlink_to(tmp_path / "there" / "a")
    (tmp_path / "here" / "b" / "deeper").symlink_to(tmp_path / "there" / "b")
    task = open_task(tmp_path / "here", "images", size=8)
    assert sizes(task) == (6, 2, 2)
    assert task.skipped == ()


def test_one_class_linked_to_another_and_back(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    (root / "a" / "to b").symlink_to(root / "b")
    (root / "b" / "to a").symlink_to(root / "a")
    task = open_task(root, "images", size=8)
    assert {skip.path for skip in task.skipped} == {"a/to b/to a", "b/to a/to b"}
    assert "10 different examples stand in more than one class" in task.notes


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_split_folders_are_used(tmp_path: Path, name: str) -> None:
    for split, start in (("train", 0), (name, 10), ("test", 20)):
        for c, label in enumerate("ab"):
            for i in range(3):
                save(tmp_path / split / label / f"{i}.png", np.full((8, 8), start + 3 * c + i, np.uint8))
    task = open_task(tmp_path, size=8)
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


# ---------------------------------------------------------------- what is refused


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
    store = Store(lambda path: stills.read_still(path, 8), room=0)  # nothing is kept: larger than memory
    store.first(str(root / "a" / "0.png"))
    assert (store.pixels(str(root / "a" / "0.png")) == picture(0)).all()
    (root / "a" / "0.png").unlink()
    with pytest.raises(Refusal, match=r"stay as it was.*can no longer be used"):
        store.pixels(str(root / "a" / "0.png"))


def test_the_store_stops_at_its_room(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    store = Store(lambda path: stills.read_still(path, 8), room=2 * 8 * 8 * 3)
    for i in (0, 1, 2, 0):
        store.first(str(root / "a" / f"{i}.png"))
    assert [Path(path).name for path in store.kept] == ["0.png", "1.png"]
    assert store.room == 0


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    open_task(plain_folder(tmp_path), size=8, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 10) for i in range(1, 11)]


# ---------------------------------------------------------------- clips


def clip_folder(root: Path, each: int = 4, frames: int = 11) -> Path:
    """Clips whose frame t is grey 20 t, with one bright row that tells them apart."""
    for c, label in enumerate("ab"):
        for i in range(each):
            for t in range(frames):
                frame = np.full((8, 8), 20 * t, np.uint8)
                frame[0] = 100 * c + i
                save(root / label / f"clip {i}" / f"frame{t}.png", frame)
    return root


def test_folders_of_frames_in_natural_order(tmp_path: Path) -> None:
    task = open_task(clip_folder(tmp_path), size=8, frames=6)
    assert (task.kind, task.train.shape) == ("clips", (6, 1, 8, 8))
    assert sizes(task) == (4, 2, 2)
    for x, y in reads(task).values():
        assert np.abs(x[:, :, 0, 1:] * 255 - np.arange(0, 220, 40)[:, None, None]).max() < 1e-4
        assert ((x[:, 0, 0, 0, 0] * 255).round() // 100 == y).all()


def test_frames_are_evenly_spaced() -> None:
    assert spaced(11, 6).tolist() == [0, 2, 4, 6, 8, 10]
    assert spaced(10, 1).tolist() == [0]
    assert spaced(3, 5).tolist() == [0, 0, 1, 2, 2]
    assert spaced(1, 3).tolist() == [0, 0, 0]


def test_natural_order_counts() -> None:
    assert sorted(["f10", "f9", "f09", "a2b10", "a2b9", "٣"], key=natural) == ["a2b9", "a2b10", "f9", "f09", "f10", "٣"]


def test_broken_clips_are_skipped(tmp_path: Path) -> None:
    root = clip_folder(tmp_path, each=5)
    (root / "a" / "clip 0" / "frame10.png").write_bytes(b"")
    (root / "a" / "none").mkdir()
    (root / "b" / "words.txt").write_text("x")
    (root / "b" / "broken.mp4").write_bytes(b"\0" * 100)
    (root / "b" / "round").symlink_to(root / "b")
    task = open_task(root, size=8, frames=3)
    assert reason(task, "a/clip 0") == "frame 11 of 11: empty: 0 bytes"
    assert reason(task, "a/none") == "a folder without frames"
    assert "neither" in reason(task, "b/words.txt")
    assert "broken video" in reason(task, "b/broken.mp4")
    assert "back to a folder above" in reason(task, "b/round")
    assert len(task.skipped) == 5
    assert sum(sizes(task)) == 9


def test_short_clips_repeat_frames(tmp_path: Path) -> None:
    task = open_task(clip_folder(tmp_path, frames=2), size=8, frames=4)
    assert any(note.startswith("8 usable files have fewer frames than asked for") for note in task.notes)
    assert (task.train.read(np.array([0]))[0, :, 0, 1, 0] * 255).round().tolist() == [0, 0, 20, 20]


def test_frames_beside_other_files(tmp_path: Path) -> None:
    root = clip_folder(tmp_path)
    (root / "a" / "clip 0" / "notes.txt").write_text("x")
    (root / "a" / "clip 0" / ".hidden.png").write_text("x")
    assert open_task(root, size=8, frames=3).skipped == ()


def write_video(path: Path, levels: list[int], codec: str, pixels: str) -> None:
    """Frames of 32 × 32, each of one grey level, the right half brighter by 20."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, pixels
        for level in levels:
            image = np.full((32, 32, 3), level, np.uint8)
            image[:, 16:] += 20
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            for packet in stream.encode(frame):
                video.mux(packet)
        for packet in stream.encode():
            video.mux(packet)


@pytest.mark.parametrize(("suffix", "codec", "pixels"), [(".mp4", "mpeg4", "yuv420p"), (".AVI", "mjpeg", "yuvj420p")])
def test_video_files(tmp_path: Path, suffix: str, codec: str, pixels: str) -> None:
    levels = list(range(0, 220, 20))
    for c, label in enumerate("ab"):
        for i in range(3):
            write_video(tmp_path / label / f"{i}{suffix}", [v + 7 * c + 2 * i for v in levels], codec, pixels)
    task = open_task(tmp_path, size=8, frames=6)
    assert (task.kind, task.train.shape) == ("clips", (6, 3, 8, 8))
    assert sizes(task) == (2, 2, 2)
    for x, y in reads(task).values():
        start = np.round(x[:, :1, :, 1:7, 1:3].mean((1, 2, 3, 4)) * 255)
        assert (start // 7 == y).all() or np.abs(start - 7 * y - 2).max() <= 4
        expected = np.arange(0, 220, 40)[None, :, None, None, None] + start[:, None, None, None, None]
        assert np.abs(x[..., 1:7, 1:3] * 255 - expected).max() <= 4  # lossy codecs
        assert np.abs(x[..., 1:7, 5:7] * 255 - expected - 20).max() <= 4


def test_a_video_that_is_cut_off(tmp_path: Path) -> None:
    from locant.compare.films import Unusable, read_clip

    path = tmp_path / "cut.avi"
    write_video(path, list(range(0, 200, 10)), "mjpeg", "yuvj420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = read_clip(path, 8, 3).pixels  # the frames that are there
    levels = found[:, 2:6, 1].mean((1, 2))
    assert levels[0] <= 4
    assert 60 < levels[2] < 140
    write_video(tmp_path / "cut.mp4", list(range(0, 200, 10)), "mpeg4", "yuv420p")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes()[:600])
    with pytest.raises(Unusable, match="broken video"):
        read_clip(tmp_path / "cut.mp4", 8, 3)


# ---------------------------------------------------------------- arrays


def save_npz(path: Path, compressed: bool = False, **named: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **named)
    return path


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


Y = np.repeat([0, 1, 2], 5)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("shape", "kind", "found", "axes"),
    [
        ((15, 6, 8), None, "images", (None, 0, 1)),
        ((15, 6, 8), "sequences", "sequences", (0, 1)),
        ((15, 6), None, "sequences", (0, None)),
        ((15, 3, 6, 8), None, "images", (0, 1, 2)),
        ((15, 1, 6, 8), None, "images", (0, 1, 2)),
        ((15, 6, 8, 3), None, "images", (2, 0, 1)),
        ((15, 6, 8, 4), None, "images", (2, 0, 1)),
        ((15, 5, 6, 8), "images", "images", (0, 1, 2)),
        ((15, 5, 6, 8), None, "clips", (0, None, 1, 2)),
        ((15, 3, 6, 8), "clips", "clips", (0, None, 1, 2)),
        ((15, 5, 3, 6, 8), None, "clips", (0, 1, 2, 3)),
        ((15, 5, 6, 8, 3), None, "clips", (0, 3, 1, 2)),
        ((15, 5, 2, 6, 8), None, "clips", (0, 1, 2, 3)),
    ],
)
def test_layouts_of_arrays(
    tmp_path: Path, compressed: bool, shape: tuple[int, ...], kind: str | None, found: str, axes: tuple[int | None, ...]
) -> None:
    x = numbers(*shape)
    task = open_task(save_npz(tmp_path / "d.npz", compressed, x=x, y=Y), kind)
    assert task.kind == found
    expected = x.transpose(0, *(a + 1 for a in axes if a is not None))
    for place, axis in enumerate(axes, start=1):
        expected = np.expand_dims(expected, place) if axis is None else expected
    assert task.train.shape == expected.shape[1:]
    assert everything(task) == Counter((e.tobytes(), int(y)) for e, y in zip(expected, Y, strict=True))
    assert sizes(task) == (9, 3, 3)
    assert any(note.startswith("x is read as") for note in task.notes)


@pytest.mark.parametrize(
    ("x", "low", "high"),
    [
        (np.arange(15 * 4, dtype=np.uint8).reshape(15, 2, 2), 0, 59),
        (np.arange(15 * 4, dtype=">i4").reshape(15, 2, 2) - 20, -20, 39),
        (np.arange(15 * 4, dtype=np.float64).reshape(15, 2, 2) / 59, 0, 1),
        (np.arange(15 * 4, dtype=np.float16).reshape(15, 2, 2) + 5, 0, 64),
        (np.asfortranarray(np.arange(15 * 4, dtype=np.int64).reshape(15, 2, 2)), 0, 59),
        (np.eye(60, dtype=bool)[:15].reshape(15, 6, 10), 0, 1),
    ],
)
def test_values_are_mapped_to_0_to_1(tmp_path: Path, x: np.ndarray, low: float, high: float) -> None:
    task = open_task(save_npz(tmp_path / "d.npz", x=x, y=Y))
    expected = ((x.astype(np.float64) - low) / (high - low)).astype(np.float32)[:, None]
    assert everything(task) == Counter((e.tobytes(), int(y)) for e, y in zip(expected, Y, strict=True))
    assert any("mapped linearly" in note for note in task.notes) == ((low, high) != (0, 1))


@pytest.mark.parametrize(
    "y", [np.array(["cat", "dog", "élan"])[Y], np.array([b"cat", b"dog", "élan".encode()])[Y]], ids=["str", "bytes"]
)
def test_labels_may_be_words(tmp_path: Path, y: np.ndarray) -> None:
    task = open_task(save_npz(tmp_path / "d.npz", x=numbers(15, 4, 4), y=y))
    assert task.classes == ("cat", "dog", "élan")
    assert sorted(np.concatenate([y for _, y in reads(task).values()])) == Y.tolist()


def test_labels_may_be_any_whole_numbers(tmp_path: Path) -> None:
    task = open_task(save_npz(tmp_path / "d.npz", x=numbers(15, 4, 4), y=np.array([-5, 1000, 7])[Y]))
    assert task.classes == ("-5", "7", "1000")
    assert np.bincount(task.train.labels).tolist() == [3, 3, 3]


def test_an_uncompressed_array_stays_on_disk(tmp_path: Path) -> None:
    x = numbers(15, 4, 4)
    path = save_npz(tmp_path / "d.npz", x=x, y=Y)
    stored = arrays.open_member(path, "x")
    assert isinstance(stored, np.memmap)
    assert Path(stored.filename) == path
    assert (stored == x).all()


def test_a_compressed_array_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    x = numbers(15, 4, 4)
    stored = arrays.open_member(save_npz(tmp_path / "d.npz", True, x=x, y=Y), "x")
    assert isinstance(stored, np.memmap)
    assert (stored == x).all()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_copies_in_arrays_stay_in_one_split(tmp_path: Path) -> None:
    x = np.concatenate([numbers(15, 4, 4), numbers(15, 4, 4)])
    task = open_task(save_npz(tmp_path / "d.npz", x=x, y=np.concatenate([Y, Y])))
    sets = [{e.tobytes() for e in xs} for xs, _ in reads(task).values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 15
    assert sizes(task) == (18, 6, 6)


def test_array_fingerprints(tmp_path: Path) -> None:
    x, y = numbers(15, 4, 4), Y
    changed, relabelled = x.copy(), y.copy()
    changed[7, 1, 1] += 0.01
    relabelled[[0, 14]] = relabelled[[14, 0]]
    marks = [
        open_task(save_npz(tmp_path / "d.npz", packed, x=a, y=b), kind).fingerprint
        for packed, a, b, kind in [
            (False, x, y, None),
            (True, x, y, None),
            (False, changed, y, None),
            (False, x, relabelled, None),
            (False, x, y, "sequences"),
        ]
    ]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 4


def test_size_and_frames_are_for_files(tmp_path: Path) -> None:
    task = open_task(save_npz(tmp_path / "d.npz", x=numbers(15, 4, 4), y=Y), size=8)
    assert "size is for files; arrays are used as they are" in task.notes
    assert task.train.shape == (1, 4, 4)


def with_nan() -> np.ndarray:
    x = numbers(15, 4, 4)
    x[11, 2, 3] = np.nan
    return x


@pytest.mark.parametrize(
    ("named", "kind", "words"),
    [
        ({"x": numbers(15, 4, 4)}, None, r"has x and no 'y'"),
        ({"y": Y}, None, r"has y and no 'x'"),
        ({"x": numbers(15, 4, 4), "y": Y[:9]}, None, r"one label for each of 15 examples; it has 9"),
        ({"x": numbers(15, 4, 4), "y": np.eye(3)[Y]}, None, r"argmax"),
        ({"x": numbers(15, 4, 4), "y": Y / 2}, None, r"y\.astype\(int\)"),
        ({"x": with_nan(), "y": Y}, None, r"example 11 has NaN"),
        ({"x": np.array([None] * 15), "y": Y}, None, r"unpickled"),
        ({"x": numbers(15, 4, 4), "y": Y.astype(object)}, None, r"unpickled"),
        ({"x": np.zeros((15, 4, 4), complex), "y": Y}, None, r"complex128"),
        ({"x": np.full((15, 4, 4), "a"), "y": Y}, None, r"needs numbers"),
        ({"x": np.zeros(15, "i4,f4"), "y": Y}, None, r"plain numbers"),
        ({"x": numbers(15), "y": Y}, None, r"shape \(15,\) is none of those"),
        ({"x": np.float32(1), "y": Y}, None, r"shape \(\) is none of those"),
        ({"x": numbers(15, 2, 2, 2, 2, 2), "y": Y}, None, r"none of those"),
        ({"x": numbers(15, 4, 4), "y": Y}, "clips", r"read as clips"),
        ({"x": numbers(15, 3, 4, 4), "y": Y}, "sequences", r"read as sequences"),
        ({"x": numbers(15, 4, 0), "y": Y}, None, r"values in them"),
        ({"x": numbers(0, 4, 4), "y": Y[:0]}, None, r"values in them"),
        ({"x": numbers(15, 4, 4), "y": Y * 0}, None, r"one class only, '0'"),
        ({"x": numbers(11, 4, 4), "y": Y[:11]}, None, r"'2' has 1"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, named: dict[str, np.ndarray], kind: str | None, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        open_task(save_npz(tmp_path / "d.npz", **named), kind)


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "d.npz", x=numbers(15, 4, 4), y=Y)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refusal, match="broken"):
        open_task(path)
    path.write_bytes(b"")
    with pytest.raises(Refusal, match="broken"):
        open_task(path)


def test_a_corrupt_compressed_member_is_refused(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "d.npz", True, x=numbers(200, 16, 16), y=np.repeat(Y, 14)[:200])
    whole = bytearray(path.read_bytes())
    for place in range(2000, 3000):
        whole[place] ^= 0x5A
    path.write_bytes(whole)
    with pytest.raises(Refusal, match="broken"):
        open_task(path)


@pytest.mark.parametrize("shape", [(15, 4, 5), (2**62, 4, 4), (15, 2)])
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path, shape: tuple[int, ...]) -> None:
    body = io.BytesIO()
    np.lib.format.write_array_header_1_0(body, {"descr": "<f4", "fortran_order": False, "shape": shape})
    body.write(numbers(15, 4, 4).tobytes())
    labels = io.BytesIO()
    np.save(labels, Y)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", body.getvalue())
        archive.writestr("y.npy", labels.getvalue())
    with pytest.raises(Refusal, match=re.escape(str(shape))):
        open_task(tmp_path / "d.npz")


# ---------------------------------------------------------------- small parts


def test_names_are_shown_escaped() -> None:
    assert shown("a\tb\x1b[31m é") == "a\\tb\\x1b[31m é"
    assert shown(os.fsdecode(b"\xff")) == "\\udcff" or shown(os.fsdecode(b"\xff")) == "\\xff"


def test_array_examples() -> None:
    x = numbers(4, 2, 3)
    examples = ArrayExamples(x, np.array([1, 0, 1, 2], np.int32))
    assert examples.labels.dtype == np.int64
    assert examples.shape == (2, 3)
    assert (examples.read(np.array([3, 1])) == x[[3, 1]]).all()
    with pytest.raises(ValueError, match=r"one label for each example; it got 4 examples and 3 labels"):
        ArrayExamples(x, np.zeros(3, np.int64))
