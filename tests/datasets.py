"""Small data sets on disk, and what a task makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from locant.tasks.task import Task


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


def clip_folder(root: Path, each: int = 4, frames: int = 11) -> Path:
    """Clips whose frame t is grey 20 t, with one bright row that tells them apart."""
    for c, label in enumerate("ab"):
        for i in range(each):
            for t in range(frames):
                frame = np.full((8, 8), 20 * t, np.uint8)
                frame[0] = 100 * c + i
                save(root / label / f"clip {i}" / f"frame{t}.png", frame)
    return root


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
