"""Clips: folders of frames and video files, whole and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import clip_folder, reads, reason, sizes, write_video

from locant.tasks import stills
from locant.tasks.films import natural_key, read_clip, spread_frames
from locant.tasks.sources import open_task


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
