"""Built-in tasks on real data that needs no download: scikit-learn's 1,797 scanned digits of 8 × 8 pixels.

`images` asks which digit, `clips` which way a digit moves, `sequences` which digit from its scan line. All is
generated from fixed seeds, so that everyone compares on the same data. The scans are split 60/20/20, each digit
alike, before anything is made of them: no scan is in two splits.

Clips are built so that what a scheme can tell is known beforehand. A digit steps by its own width over a canvas of
cells in one of eight compass directions, and each clip comes with its reversal in time, which bears the opposite
label. Patches as large as a cell (or that divide it) see the same patches in every class:

- without position, the chance is 1/8;
- with space alone, the line of motion is known but not its sense: a model that cannot tell the order of frames
  answers both clips of a pair alike, so that it is right on at most 1/2;
- with space and time, all is known.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64

from locant.tasks.splits import NAMES, divide
from locant.tasks.task import ArrayExamples, Refusal, Task, fingerprint, two_sides

SIDE = 8  # pixels of a scan, each way
DIGITS = tuple(str(digit) for digit in range(10))
SOURCE = "scikit-learn's handwritten digits (1,797 scans of 8 × 8 pixels)"
# (down, right) of one step; a direction and its opposite are neighbours
DIRECTIONS = {
    "right": (0, 1),
    "left": (0, -1),
    "down": (1, 0),
    "up": (-1, 0),
    "down and right": (1, 1),
    "up and left": (-1, -1),
    "down and left": (1, -1),
    "up and right": (-1, 1),
}
SPLIT_NOTE = "the scans are split 60/20/20, each digit alike; no scan is in two splits"

Scans = Float32[np.ndarray, "count side side"]
Canvases = Float32[np.ndarray, "count canvas canvas"]
Labels = Int64[np.ndarray, " count"]


def _scans() -> dict[str, tuple[Scans, Labels]]:
    """The scans of each split with their digits, values 0 to 1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise Refusal(
            f"the built-in tasks need scikit-learn; it can't be imported: {error}. Install locant[compare], or name "
            "data of your own."
        ) from None
    data = load_digits()
    scans = (data.images / 16).astype(np.float32)
    digits = data.target.astype(np.int64)
    parts = divide(digits, DIGITS, seed=0, digests=[scan.tobytes() for scan in scans])
    return {name: (scans[index], digits[index]) for name, index in parts.items()}


def _generator(*words: str) -> np.random.Generator:
    """A stream of its own for each use, so that changing one leaves the others as they were."""
    return np.random.default_rng(list("/".join(words).encode()))


def images(size: int | tuple[int, ...] | None = None) -> Task:
    """Which digit is it? Examples `[1, size, size]`.

    Args:
        size: side of the pictures, 4 or more; scans are resized to it (bilinear). Default 8, as scanned.

    Raises:
        Refusal: if `size` is below 4 or names two sides.
    """
    size = _one_side(SIDE if size is None else size)
    if size < 4:
        raise Refusal(f"the digits need a size of 4 or more to be told apart; it is {size}. Take --size 8, as scanned.")
    parts = {name: ArrayExamples(_resize(x, size)[:, None], y) for name, (x, y) in _scans().items()}
    return _task("images", "Which digit was written?", DIGITS, parts, (SPLIT_NOTE,), {"size": size})


def clips(size: int | tuple[int, ...] | None = None, frames: int | None = None) -> Task:
    """Which way does the digit move? Examples `[frames, 1, size, size]`, two for each scan: one and its reversal.

    Args:
        size: side of the canvas, in whole steps of 8 pixels. Default 24: 3 × 3 cells, 27 tokens with patches of 8.
        frames: frames of a clip, one step each; a canvas of n cells a side has room for n. Default 3.

    Raises:
        Refusal: if the canvas is not a whole number of cells, or has no room for so many frames.
    """
    size = _one_side(3 * SIDE if size is None else size)
    frames = 3 if frames is None else frames
    cells = size // SIDE
    if size % SIDE or not 2 <= frames <= cells:
        raise Refusal(
            f"clips of moving digits need a size in whole steps of {SIDE} pixels and 2 to size/{SIDE} frames; "
            f"they have size {size} and {frames} frames. Take --size {SIDE * max(2, frames, cells)} "
            f"--frames {max(2, frames)}."
        )
    scans = _scans()
    parts = {name: _motion(*scans[name], cells, frames, _generator("clips", name)) for name in NAMES}
    notes = (
        SPLIT_NOTE,
        (
            "each clip comes with its reversal in time, which bears the opposite label: a model that cannot tell the "
            "order of frames is right on at most half, and one without position on one in eight by chance"
        ),
    )
    question = "Which way does the digit move: one of eight compass directions?"
    return _task("clips", question, tuple(DIRECTIONS), parts, notes, {"size": size, "frames": frames})


def sequences(size: int | tuple[int, ...] | None = None) -> Task:
    """Which digit is it, from its scan line? Examples `[size, 64 / size]`: runs of pixels in reading order.

    Args:
        size: length of the line: 8 whole rows of 8 pixels, 16 half rows, 32 quarter rows, or 64 single pixels.
            Default 16: without position, half rows cannot even be told left from right.

    Raises:
        Refusal: if `size` is none of those.
    """
    size = _one_side(16 if size is None else size)
    if size not in (8, 16, 32, 64):
        raise Refusal(
            f"a scan line needs --size 8, 16, 32 or 64 (of the 64 pixels of a scan); it got {size}. Pick one."
        )
    parts = {name: ArrayExamples(x.reshape(len(x), size, 64 // size), y) for name, (x, y) in _scans().items()}
    question = "Which digit was written, read from its scan line?"
    return _task("sequences", question, DIGITS, parts, (SPLIT_NOTE,), {"size": size})


def _task(
    kind: str,
    question: str,
    classes: tuple[str, ...],
    parts: dict[str, ArrayExamples],
    notes: tuple[str, ...],
    settings: dict[str, int],
) -> Task:
    mark = fingerprint(
        {"kind": kind, **settings}, *(array for part in parts.values() for array in (part.x, part.labels))
    )
    train, validation, test = (parts[name] for name in NAMES)
    augments = () if kind == "sequences" else ("brightness",)
    return Task(kind, SOURCE, question, classes, train, validation, test, (), notes, (), mark, augments)


def _one_side(size: int | tuple[int, ...]) -> int:
    rows, columns = two_sides("size", size)
    if rows != columns:
        raise Refusal(f"the built-in tasks need one side for both; size is {rows} x {columns}. Write --size {rows}.")
    return rows


def _resize(scans: Scans, size: int) -> Canvases:
    """The scans at another size, bilinear; as they are when it is their own."""
    if size == scans.shape[1]:
        return scans
    from PIL import Image

    return np.stack(
        [np.asarray(Image.fromarray(scan).resize((size, size), Image.Resampling.BILINEAR)) for scan in scans]
    )


def _motion(scans: Scans, digits: Labels, cells: int, frames: int, rng: np.random.Generator) -> ArrayExamples:
    """Each scan in motion, then the same clip backwards; the four lines of motion equally often for each digit."""
    names = list(DIRECTIONS)
    turn = np.empty(len(scans), np.int64)  # which line of motion
    for digit in np.unique(digits):
        members = rng.permutation(np.flatnonzero(digits == digit))
        turn[members] = np.arange(len(members)) % 4
    out = np.zeros((len(scans), 2, frames, 1, cells * SIDE, cells * SIDE), np.float32)
    for pair, scan, line in zip(out, scans, turn, strict=True):
        y, x = (SIDE * _path(by, cells, frames, rng) for by in DIRECTIONS[names[2 * line]])
        for t in range(frames):
            pair[0, t, 0, y[t] : y[t] + SIDE, x[t] : x[t] + SIDE] = scan
        pair[1] = pair[0, ::-1]
    labels = np.stack([2 * turn, 2 * turn + 1], axis=1).reshape(-1)
    return ArrayExamples(out.reshape(-1, *out.shape[2:]), labels)


def _path(by: int, cells: int, frames: int, rng: np.random.Generator) -> Int64[np.ndarray, " frames"]:
    """The cell on one axis in each frame, by steps of -1, 0 or 1 from a random start that stays on the canvas."""
    travel = by * (frames - 1)
    start = rng.integers(max(0, -travel), cells - max(0, travel))
    return start + by * np.arange(frames)
