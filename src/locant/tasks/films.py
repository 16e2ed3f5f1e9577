"""One clip: evenly spaced frames from a folder of pictures or from a video file.

Frame i of F is frame round(i (n - 1) / (F - 1)) of n: the first and the last are always among them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64, UInt8

from locant.tasks import stills
from locant.tasks.stills import PIXEL_LIMIT, WHITE, Decoded, Unusable, crop, read_still, reason_of, require_file

if TYPE_CHECKING:
    import av

UPRIGHT = (1, 0, 0, 1)  # shown as stored
VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ogv .3gp .ts .gif".split())


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key that counts: frame2 comes before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts if part]


def spread_frames(count: int, frames: int) -> Int64[np.ndarray, " frames"]:
    """Which of `count` frames to take."""
    return np.round(np.linspace(0, count - 1, frames)).astype(np.int64)


def frame_files(folder: str | Path) -> list[str]:
    """The frames of a clip folder in natural order: files with a picture's suffix, hidden ones left out."""
    names = [e.name for e in os.scandir(folder) if not e.name.startswith(".") and not os.path.isdir(e.path)]
    pictures = [name for name in names if os.path.splitext(name)[1].lower() in stills.SUFFIXES]
    return [os.path.join(folder, name) for name in sorted(pictures, key=natural_key)]


def read_clip(path: str | Path, size: tuple[int, int], frames: int, white: int = WHITE) -> Decoded:
    """`uint8 [frames, rows, columns, 1 or 3]` from a folder of frames or a video file; `white` is that of stills.

    Raises:
        Unusable: with the reason.
    """
    return _from_folder(path, size, frames, white) if os.path.isdir(path) else _from_video(path, size, frames)


def _from_folder(folder: str | Path, size: tuple[int, int], frames: int, white: int) -> Decoded:
    try:
        files = frame_files(folder)
    except OSError as error:
        raise Unusable(f"cannot be read: {reason_of(error)}") from None
    if not files:
        raise Unusable("a folder without frames")
    remarks: set[str] = {"short"} if len(files) < frames else set()
    pixels: list[np.ndarray] = []
    peak = 0
    for place in spread_frames(len(files), frames):
        try:
            still = read_still(files[place], size, white)
        except Unusable as error:
            raise Unusable(f"frame {place + 1} of {len(files)}: {error}") from None
        remarks |= still.remarks
        peak = max(peak, still.peak)
        pixels.append(still.pixels)
    channels = max(p.shape[-1] for p in pixels)
    same = [np.broadcast_to(p, (*size, channels)) for p in pixels]
    return Decoded(np.stack(same), frozenset(remarks), peak)


def _from_video(path: str | Path, size: tuple[int, int], frames: int) -> Decoded:
    require_file(path)
    import av

    try:
        count = _count(path)
        taken, seen, changed = _take(path, size, spread_frames(max(1, count), frames))
        if 0 < seen < count:  # the container promised more than it holds
            count = seen
            taken, seen, changed = _take(path, size, spread_frames(count, frames))
    except Unusable:
        raise
    except av.error.FFmpegError as error:
        raise Unusable(f"broken video: {error.strerror or type(error).__name__}") from None
    except (OSError, EOFError, ValueError, RuntimeError, MemoryError) as error:
        raise Unusable(f"broken video: {reason_of(error)}") from None
    if not taken:
        raise Unusable("a video without frames")
    remarks = {"short"} if count < frames else set()
    return Decoded(np.stack(taken), frozenset(remarks | ({"shown"} if changed else set())))


def _count(path: str | Path) -> int:
    """Frames of a video by its packets, without decoding."""
    import av

    with av.open(str(path)) as video:
        if not video.streams.video:
            raise Unusable("broken video: no pictures in it")
        stream = video.streams.video[0]
        if stream.width * stream.height > PIXEL_LIMIT:
            raise Unusable(f"more than {PIXEL_LIMIT // 1_000_000} million pixels a frame")
        return sum(packet.size > 0 for packet in video.demux(stream))


def _take(
    path: str | Path, size: tuple[int, int], places: Int64[np.ndarray, " frames"]
) -> tuple[list[UInt8[np.ndarray, "rows columns channels"]], int, bool]:
    """The frames at these rising places, how many there were up to the last that was looked at, and whether the film
    is shown otherwise than it is stored."""
    import av

    wanted, seen = places.tolist(), 0
    taken: list[np.ndarray] = []
    changed = False
    with av.open(str(path)) as video:
        wide = float(video.streams.video[0].sample_aspect_ratio or 1)
        for seen, frame in enumerate(video.decode(video=0), start=1):
            if here := wanted.count(seen - 1):
                matrix = _display_matrix(frame)
                changed |= wide != 1 or matrix != UPRIGHT
                taken += [_show(frame, size, matrix, wide)] * here
            if len(taken) == len(wanted):
                break
    return taken, seen, changed


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d of the quarter turn or mirroring that the film asks for: a stored pixel (x, y), x to the right and y
    down, is shown at (a x + c y, b x + d y), but for where the picture begins."""
    held: Any = frame.side_data.get("DISPLAYMATRIX")
    if held is None:
        return UPRIGHT
    a, b, _, c, d, *_ = np.frombuffer(held, np.int32)[:9].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1), 0, 0, (-1 if d < 0 else 1)
    return 0, (-1 if b < 0 else 1), (-1 if c < 0 else 1), 0


def _show(
    frame: av.VideoFrame, size: tuple[int, int], matrix: tuple[int, int, int, int], wide: float
) -> UInt8[np.ndarray, "rows columns channels"]:
    """A frame as it is shown: turned, mirrored, with pixels that are `wide` times as wide as high."""
    from PIL import Image

    a, b, c, d = matrix
    grey = frame.format.name.startswith("gray")
    pixels = frame.to_ndarray(format="gray" if grey else "rgb24")
    if b or c:
        pixels, wide = pixels.swapaxes(0, 1), 1 / wide  # rows are x now, columns y
    pixels = pixels[:: b or d, :: a or c]
    return crop(Image.fromarray(np.ascontiguousarray(pixels)), size, wide)
