"""Folders of pictures: every layout, and every kind of file that is odd, broken or hostile."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import everything, picture, plain_folder, reads, reason, save, sizes
from PIL import Image

from locant.tasks import stills
from locant.tasks.folders import printable
from locant.tasks.sources import open_task
from locant.tasks.task import ArrayExamples, Refusal, two_sides


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
    assert (stills.read_still(tmp_path / "wide.png", (8, 8)).pixels == picture(3)).all()
    save(tmp_path / "tall.png", wide.transpose(1, 0, 2))
    assert (stills.read_still(tmp_path / "tall.png", (8, 8)).pixels == picture(3).transpose(1, 0, 2)).all()


def test_resizing_averages(tmp_path: Path) -> None:
    flat = np.kron(np.array([[0, 100], [200, 40]], np.uint8), np.ones((16, 16), np.uint8))
    save(tmp_path / "flat.png", flat)
    small = stills.read_still(tmp_path / "flat.png", (8, 8)).pixels[..., 0]
    assert small[0, 0] == 0
    assert small[0, 7] == 100
    assert small[7, 0] == 200
    assert small[7, 7] == 40


def test_a_thin_picture_does_not_explode(tmp_path: Path) -> None:
    save(tmp_path / "thin.png", np.full((60_000, 1), 9, np.uint8))
    assert (stills.read_still(tmp_path / "thin.png", (32, 32)).pixels == 9).all()


def test_cmyk_is_converted(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(root / "a" / "print.jpg", quality=100)
    found = stills.read_still(root / "a" / "print.jpg", (8, 8))
    assert found.remarks == {"CMYK"}
    assert np.abs(found.pixels.astype(int) - (255, 0, 0)).max() <= 3
    assert "1 usable files are CMYK: converted to RGB (a/print.jpg)" in open_task(root, size=8).notes


def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 65535, 32768], [128, 129, 300, 65406]], np.uint16)
    square = np.tile(deep, (2, 1))
    Image.fromarray(square).save(tmp_path / "deep.png")
    found = stills.read_still(tmp_path / "deep.png", (4, 4))
    assert found.remarks == {"16-bit"}
    assert (found.pixels[..., 0] == np.floor(square / 257 + 0.5)).all()


def test_sixteen_bit_colour_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + np.full((2, 2, 3), 0x8000, ">u2").tobytes())
    (tmp_path / "deep.png").write_bytes(sixteen_bit_png())
    assert stills.read_still(tmp_path / "deep.png", (2, 2)).remarks == {"16-bit"}
    assert (stills.read_still(tmp_path / "deep.png", (2, 2)).pixels == 0x80).all()
    assert (stills.read_still(tmp_path / "deep.ppm", (2, 2)).pixels == 0x80).all()


def sixteen_bit_png(level: int = 0x8000) -> bytes:
    """A 2 × 2 RGB PNG of 16 bits a channel, all of one level, which Pillow can read but not write."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = (b"\0" + level.to_bytes(2, "big") * 6) * 2
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_twelve_bits_in_sixteen_are_stretched(tmp_path: Path, ending: str) -> None:
    """A scanner of 12 bits writes 0 to 4,095: read as 16 bits, all of it would lie below 16 of 255."""
    for c, label in enumerate("ab"):
        for i, value in enumerate((1000, 3000, 4095)):
            pixels = np.full((8, 8), value, np.uint16)
            pixels[c, i] = 0  # no two alike
            save(tmp_path / label / f"{i}.{ending}", pixels)
    save(tmp_path / "a" / "plain.png", np.full((8, 8), 77, np.uint8))
    task = open_task(tmp_path, size=8)
    read = sorted({round(255 * float(x.max())) for xs, _ in reads(task).values() for x in xs})
    assert read == [62, 77, 187, 255]
    assert "the files of 16 bits use 12 of them: 4,095 is white, for all alike" in task.notes
    save(tmp_path / "b" / f"whole.{ending}", np.full((8, 8), 65_535, np.uint16))
    whole = open_task(tmp_path, size=8)
    read = sorted({round(255 * float(x.max())) for xs, _ in reads(whole).values() for x in xs})
    assert read == [4, 12, 16, 77, 255]
    assert not any("is white" in note for note in whole.notes)


def test_few_levels_of_sixteen_bit_colours_are_told(tmp_path: Path) -> None:
    """Of these Pillow reads the upper 8 bits alone: 12 bits leave 16 levels, which are spread and said."""
    for label, levels in (("a", (0x0100, 0x0800, 0x0FFF)), ("b", (0x0200, 0x05FF, 0x0A00))):
        (tmp_path / label).mkdir()
        for level in levels:
            (tmp_path / label / f"{level}.png").write_bytes(sixteen_bit_png(level))
    task = open_task(tmp_path, size=2)
    read = sorted({round(255 * float(x.max())) for xs, _ in reads(task).values() for x in xs})
    assert read == [17, 34, 85, 136, 170, 255]
    assert any("have 16 bits a colour and use few of the upper 8" in note for note in task.notes)


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
    found = stills.read_still(tmp_path / "photo.jpg", (32, 32))
    assert np.abs(found.pixels[..., 0].astype(int) - upright).max() <= 3
    assert found.remarks == ({"rotated"} if orientation > 1 else set())


def test_animated_pictures_give_their_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("L", (8, 8), 40), Image.new("L", (8, 8), 200)
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    found = stills.read_still(tmp_path / "moving.gif", (8, 8))
    assert found.remarks == {"animated"}
    assert (found.pixels == 40).all()


def test_transparent_pictures_are_laid_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 4, 8))
    clear.save(tmp_path / "clear.png")
    found = stills.read_still(tmp_path / "clear.png", (8, 8))
    assert found.remarks == {"transparent"}
    assert (found.pixels[:, :4] == (0, 0, 255)).all()
    assert (found.pixels[:, 4:] == 255).all()
    Image.new("LA", (8, 8), (10, 255)).save(tmp_path / "grey.png")
    assert (stills.read_still(tmp_path / "grey.png", (8, 8)).pixels == np.full((8, 8, 1), 10)).all()


def test_palettes_become_colours(tmp_path: Path) -> None:
    table = Image.new("P", (8, 8), 1)
    table.putpalette([0, 0, 0, 10, 20, 30])
    table.save(tmp_path / "table.png")
    found = stills.read_still(tmp_path / "table.png", (8, 8))
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
    assert stills.read_still(tmp_path / "most.png", (2, 2)).pixels.tolist() == [[[0], [0]], [[0], [0]]]
    Image.new("1", (16000, 16000)).save(tmp_path / "twice.png")  # beyond twice the limit Pillow raises by itself
    with pytest.raises(stills.Unusable, match="64 million"):
        stills.read_still(tmp_path / "twice.png", (2, 2))


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
    assert "a/\\xff\\xfe.png" in note
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


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    plain_folder(root / "a", classes=("x", "y"))
    (root / "a" / "x" / "to y").symlink_to(root / "a" / "y")
    (root / "a" / "y" / "to x").symlink_to(root / "a" / "x")
    for i in range(5):
        (root / "b" / f"{i}.png").unlink()
        save(root / "b" / f"{i}.png", picture(300 + i))
    task = open_task(root, "images", size=8)
    assert {skip.path for skip in task.skipped} == {"a/x/to y/to x", "a/y/to x/to y"}
    assert "15 examples are copies of others; copies stand in one split" in task.notes


def test_names_are_shown_escaped() -> None:
    assert printable("a\tb\x1b[31m é") == "a\\tb\\x1b[31m é"
    assert printable(os.fsdecode(b"\xff")) == "\\xff"


def test_array_examples() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    examples = ArrayExamples(x, np.array([1, 0, 1, 2], np.int32))
    assert examples.labels.dtype == np.int64
    assert examples.shape == (2, 3)
    assert (examples.read(np.array([3, 1])) == x[[3, 1]]).all()
    with pytest.raises(ValueError, match=r"one label for each example; it got 4 examples and 3 labels"):
        ArrayExamples(x, np.zeros(3, np.int64))


@pytest.mark.parametrize(
    ("value", "found"), [(8, (8, 8)), ((4,), (4, 4)), ((4, 6), (4, 6))], ids=["number", "one", "two"]
)
def test_sizes_are_one_number_or_two(value: int | tuple[int, ...], found: tuple[int, int]) -> None:
    assert two_sides("size", value) == found


@pytest.mark.parametrize("value", [0, (), (4, 0), (1, 2, 3)])
def test_sizes_that_are_neither(value: int | tuple[int, ...]) -> None:
    with pytest.raises(Refusal, match=r"size needs one whole number of at least 1, or rows x columns"):
        two_sides("size", value)


def test_a_rectangle_is_cut_from_the_middle(tmp_path: Path) -> None:
    whole = picture(3, (8, 8))
    root = plain_folder(tmp_path)
    save(root / "a" / "0.png", whole)
    assert (stills.read_still(root / "a" / "0.png", (4, 8)).pixels == whole[2:6]).all()
    assert (stills.read_still(root / "a" / "0.png", (8, 2)).pixels == whole[:, 3:5]).all()
    assert open_task(root, size=(4, 8)).train.shape == (3, 4, 8)
