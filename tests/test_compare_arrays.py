"""Arrays: layouts, ranges, labels, and archives that are refused."""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import everything, reads, sizes

from locant.tasks import arrays
from locant.tasks.kinds import KINDS
from locant.tasks.sources import open_task
from locant.tasks.task import Doubt, Refusal


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
        ((15, 5, 6, 8), "clips", "clips", (0, None, 1, 2)),
        ((15, 7, 7, 5), None, "images", (2, 0, 1)),
        ((15, 64, 1), None, "sequences", (0, 1)),
        ((15, 1, 64), None, "sequences", (1, 0)),
        ((15, 1, 64), "sequences", "sequences", (1, 0)),
        ((15, 64, 9), "sequences", "sequences", (0, 1)),
        ((15, 9, 64), "sequences", "sequences", (0, 1)),
        ((15, 3, 6, 8), "clips", "clips", (0, None, 1, 2)),
        ((15, 5, 3, 6, 8), None, "clips", (0, 1, 2, 3)),
        ((15, 5, 6, 8, 3), None, "clips", (0, 3, 1, 2)),
        ((15, 5, 2, 6, 8), None, "clips", (0, 1, 2, 3)),
        ((15, 3, 5, 6, 8), None, "clips", (1, 0, 2, 3)),
        ((15, 1, 5, 6, 8), None, "clips", (1, 0, 2, 3)),
        ((15, 1, 3, 6, 8), None, "clips", (1, 0, 2, 3)),
        ((15, 3, 1, 6, 8), None, "clips", (0, 1, 2, 3)),
        ((15, 4, 3, 6, 8), None, "clips", (0, 1, 2, 3)),
        ((15, 4, 5, 6, 8), "clips", "clips", (1, 0, 2, 3)),
        ((15, 16, 9, 9, 7), None, "clips", (0, 3, 1, 2)),
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
    ("shape", "kind", "readings"),
    [
        ((15, 64, 3), None, "HW LC"),
        ((15, 3, 64), None, "HW CL"),
        ((15, 3, 64), "sequences", "LC CL"),
        ((15, 5, 6, 8), None, "CHW THW"),
        ((15, 4, 9, 9), None, "CHW THW"),
        ((15, 3, 8, 3), "images", "CHW HWC"),
        ((15, 3, 3, 6, 8), None, "TCHW CTHW"),
        ((15, 5, 7, 6, 6), None, "TCHW CTHW"),
        ((15, 3, 9, 9, 3), "clips", "CTHW THWC"),
    ],
)
def test_sizes_that_leave_a_doubt_are_asked_about(
    tmp_path: Path, shape: tuple[int, ...], kind: str | None, readings: str
) -> None:
    x = numbers(*shape)
    path = save_npz(tmp_path / "d.npz", x=x, y=Y)
    with pytest.raises(Doubt, match=rf"x is \[n, .*\(say --axes {readings.split()[0]}\), or") as found:
        open_task(path, kind)
    assert [reading.settings["axes"] for reading in found.value.readings] == readings.split()
    for stored in readings.split():
        task = open_task(path, kind, axes=stored)
        moved = [stored.index(letter) for letter in KINDS[task.kind].letters if letter in stored]
        expected = x.transpose(0, *(1 + axis for axis in moved))
        if "C" not in stored:
            expected = np.expand_dims(expected, 1 + KINDS[task.kind].letters.index("C"))
        assert everything(task) == Counter((e.tobytes(), int(y)) for e, y in zip(expected, Y, strict=True))


@pytest.mark.parametrize("shape", [(15, 1, 1), (15, 1, 64, 1), (15, 64, 1, 3), (15, 1, 1, 6, 6), (15, 2, 2, 2, 2, 2)])
@pytest.mark.parametrize("kind", [None, "images", "clips", "sequences"])
def test_a_side_of_one_is_none(tmp_path: Path, shape: tuple[int, ...], kind: str | None) -> None:
    with pytest.raises(Refusal, match="sides and lengths of 2 or more; .*its shape .* is none of those.*--axes LC"):
        open_task(save_npz(tmp_path / "d.npz", x=numbers(*shape), y=Y), kind)


@pytest.mark.parametrize("shape", [(15, 3, 64, 1), (15, 64, 3, 1), (15, 1, 64, 3)])
def test_a_strip_is_no_picture_unless_it_is_asked_for(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save_npz(tmp_path / "d.npz", x=numbers(*shape), y=Y)
    with pytest.raises(Refusal, match="its shape .* is none of those"):
        open_task(path)
    assert open_task(path, "images").train.shape == (1, *(size for size in shape[1:] if size > 1))


@pytest.mark.parametrize(
    ("axes", "kind"), [("HW", None), ("TCHWL", None), ("CC", None), ("chw", None), ("CHW", "clips"), ("", None)]
)
def test_letters_that_do_not_fit_are_refused(tmp_path: Path, axes: str, kind: str | None) -> None:
    path = save_npz(tmp_path / "d.npz", x=numbers(15, 5, 6, 8), y=Y)
    with pytest.raises(Refusal, match=f"--axes needs one letter for each axis of x.*got '{axes}' for x of 4 axes"):
        open_task(path, kind, axes=axes)


def test_labels_in_a_column_are_labels(tmp_path: Path) -> None:
    """Keras' CIFAR has [n, 1]; an argmax over one column would make all of them 0."""
    x = numbers(15, 4, 4)
    column, row = (open_task(save_npz(tmp_path / "d.npz", x=x, y=y)) for y in (Y[:, None], Y))
    assert column.fingerprint == row.fingerprint
    assert everything(column) == everything(row)
    with pytest.raises(Refusal, match=r"of shape \(15, 3\). Save y.argmax\(1\), if each row marks its class"):
        open_task(save_npz(tmp_path / "d.npz", x=x, y=np.eye(3, dtype=int)[Y]))
    with pytest.raises(Refusal, match=r"it is float64 of shape \(15,\). Save y.astype\(int\)"):
        open_task(save_npz(tmp_path / "d.npz", x=x, y=Y / 2))


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
