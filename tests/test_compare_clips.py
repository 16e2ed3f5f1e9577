"""Clips: folders of frames and video files, whole and broken."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import clip_folder, reads, reason, save, sizes, write_video

from locant.tasks import stills
from locant.tasks.films import natural_key, read_clip, spread_frames
from locant.tasks.sources import open_task
from locant.tasks.task import Doubt, Refusal


def test_folders_of_frames_in_natural_order(tmp_path: Path) -> None:
    task = open_task(clip_folder(tmp_path), size=8, frames=6)
    assert (task.kind, task.train.shape) == ("clips", (6, 1, 8, 8))
    assert sizes(task) == (4, 2, 2)
    for x, y in reads(task).values():
        assert np.abs(x[:, :, 0, 1:] * 255 - np.arange(0, 220, 40)[:, None, None]).max() < 1e-4
        assert ((x[:, 0, 0, 0, 0] * 255).round() // 100 == y).all()


def test_frames_are_evenly_spaced() -> None:
    assert spread_frames(11, 6).tolist() == [0, 2, 4, 6, 8, 10]
    assert spread_frames(10, 1).tolist() == [0]
    assert spread_frames(3, 5).tolist() == [0, 0, 1, 2, 2]
    assert spread_frames(1, 3).tolist() == [0, 0, 0]


def test_natural_order_counts() -> None:
    names = ["f10", "f9", "f09", "a2b10", "a2b9", "٣"]
    assert sorted(names, key=natural_key) == ["a2b9", "a2b10", "f9", "f09", "f10", "٣"]


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
        start = 7 * y + 2  # the middle of its class
        expected = np.arange(0, 220, 40)[None, :, None, None, None] + start[:, None, None, None, None]
        near = 10  # codecs lose some, but a neighbouring frame would be off by 20
        assert np.abs(x[..., 1:7, 1:3] * 255 - expected).max() < near
        assert np.abs(x[..., 1:7, 5:7] * 255 - expected - 20).max() < near


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("cut.mp4", "mpeg4", "yuv420p"), ("cut.avi", "mjpeg", "yuvj420p")]
)
def test_a_video_that_is_cut_off(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    path = tmp_path / name
    write_video(path, list(range(0, 200, 10)), codec, pixels)
    assert read_clip(path, (8, 8), 3).pixels.shape == (3, 8, 8, 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(stills.Unusable, match="broken video"):
        read_clip(path, (8, 8), 3)


def test_a_container_that_promises_more_frames_than_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "few.avi"
    write_video(path, list(range(0, 220, 20)), "mjpeg", "yuvj420p")
    whole = read_clip(path, (8, 8), 3).pixels
    monkeypatch.setattr("locant.tasks.films._count", lambda path: 50)
    assert (read_clip(path, (8, 8), 3).pixels == whole).all()


UPPER_LEFT = np.zeros((32, 48, 3), np.uint8)
UPPER_LEFT[:16, :16] = 200  # of 32 rows and 48 columns


def film(path: Path, wide: Fraction = Fraction(1), matrix: tuple[int, int, int, int] = (1, 0, 0, 1)) -> Path:
    """A film of `UPPER_LEFT`, whose pixels are `wide` times as wide as high, and with a display matrix (a, b, c, d)."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=10, options={"qscale": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = wide
        for frame in [av.VideoFrame.from_ndarray(UPPER_LEFT, format="rgb24")] * 3:
            for packet in stream.encode(frame):
                video.mux(packet)
        for packet in stream.encode():
            video.mux(packet)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0: times, ids and duration, then layer and volume
    assert struct.unpack_from(">9i", content, start) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = (65536 * one for one in matrix)
    struct.pack_into(">9i", content, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), UPPER_LEFT),
        ((-1, 0, 0, 1), UPPER_LEFT[:, ::-1]),
        ((1, 0, 0, -1), UPPER_LEFT[::-1]),
        ((-1, 0, 0, -1), UPPER_LEFT[::-1, ::-1]),
        ((0, 1, -1, 0), np.rot90(UPPER_LEFT, -1)),  # a quarter turn to the right
        ((0, -1, 1, 0), np.rot90(UPPER_LEFT)),
        ((0, 1, 1, 0), UPPER_LEFT.swapaxes(0, 1)),
        ((0, -1, -1, 0), UPPER_LEFT[::-1, ::-1].swapaxes(0, 1)),
    ],
)
def test_films_are_taken_as_they_are_shown(tmp_path: Path, matrix: tuple[int, int, int, int], shown: Any) -> None:
    """(x, y) is shown at (a x + c y, b x + d y): all eight ways to turn and mirror a picture."""
    read = read_clip(film(tmp_path / "f.mp4", matrix=matrix), (32, 32), 2)
    rows, columns = shown.shape[:2]
    middle = shown[(rows - 32) // 2 :, (columns - 32) // 2 :][:32, :32].astype(int)
    assert np.abs(read.pixels[0].astype(int) - middle).mean() < 6  # the codec rounds edges
    assert read.remarks == (set() if matrix == (1, 0, 0, 1) else {"shown"})


def test_pixels_that_are_wider_than_high_are_shown_so(tmp_path: Path) -> None:
    """At 2 : 1 the 48 columns are 96 wide: the middle square of 32 rows is 16 stored columns, 16 to 32, all dark."""
    read = read_clip(film(tmp_path / "wide.mp4", Fraction(2)), (32, 32), 2)
    assert read.remarks == {"shown"}
    assert read.pixels[:, :, 4:].max() < 30
    turned = read_clip(film(tmp_path / "turned.mp4", Fraction(2), (0, 1, -1, 0)), (32, 32), 2)
    assert turned.pixels[:, 4:].max() < 30
    narrow = read_clip(film(tmp_path / "narrow.mp4", Fraction(1, 3)), (32, 32), 2).pixels.astype(int)
    assert np.abs(narrow[0, :4].mean(0)[:, 0] - np.where(np.arange(32) < 11, 200, 0)).mean() < 12  # 8 rows of 16 left


@pytest.mark.parametrize("siblings", [True, False])
def test_one_folder_too_deep_is_no_guess(tmp_path: Path, siblings: bool) -> None:
    """Clips of one class would be learned as classes of pictures: which clip is it?"""
    rng = np.random.default_rng(0)
    for way in ("left", "right")[: 1 + siblings]:
        for clip in range(9):
            scene = np.kron(rng.integers(0, 255, (8, 30)), np.ones((2, 4))).astype(np.uint8)
            for t in range(8):
                save(tmp_path / "pans" / way / f"clip{clip}" / f"{t:03}.png", scene[:, t : t + 16])
    with pytest.raises(
        Doubt, match="its 9 folders hold pictures that are numbered as the frames of films are"
    ) as found:
        open_task(tmp_path / "pans" / "left", size=16)
    pictures, clips = found.value.readings
    assert pictures.settings == {"task": "images"}
    assert clips.settings == {"task": "clips", "data": str(tmp_path / "pans")}
    assert len(open_task(tmp_path / "pans" / "left", "images", size=16).classes) == 9
    with pytest.raises(Refusal, match=f"clips of one class, name the folder above: {tmp_path / 'pans'}"):
        open_task(tmp_path / "pans" / "left", "clips", size=16)
    if siblings:
        assert open_task(tmp_path / "pans", size=16).classes == ("left", "right")


def test_numbered_pictures_are_no_frames(tmp_path: Path) -> None:
    """Pictures of a class share what they show, but none is more like the next than like any other."""
    rng = np.random.default_rng(0)
    for label in "abc":
        shown = 4 * rng.integers(0, 40, (16, 16))
        for i in range(8):
            save(tmp_path / label / f"{i}.png", (shown + rng.integers(0, 90, (16, 16))).astype(np.uint8))
    assert open_task(tmp_path, size=16).kind == "images"
