"""Whether the pictures of class folders are the frames of films: DATA is one level too deep then.

A folder of clips and a folder of classes look alike: folders that hold pictures. Frames are numbered, and each is much
like the next; pictures of a class are no more like the next than like any other.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from jaxtyping import UInt8

from locant.tasks.folders import Item, Listing, printable
from locant.tasks.stills import SUFFIXES
from locant.tasks.task import Doubt, Reading

Pixels = Callable[[str], UInt8[np.ndarray, "rows columns channels"]]
FEWEST = 4  # pictures of a folder, to say of them whether neighbours are alike
LOOKED_AT = 32  # pictures of each folder, at most


def refuse_frames(listing: Listing, items: Sequence[Item], pixels: Pixels) -> None:
    """Raises Doubt if the pictures of all class folders are numbered in turn, and are more than half alike to the next
    or lie beside other folders of the same kind, more folders than pictures in each."""
    homes: dict[str, list[str]] = defaultdict(list)
    for item in items:
        homes[os.path.dirname(item.path)].append(item.path)
    if any(item.split is not None for item in items) or min(map(len, homes.values()), default=0) < FEWEST:
        return
    if not all(map(_count_up, homes.values())):
        return
    small = len(homes) > median(map(len, homes.values())) and _has_siblings(listing.root)
    if small or _resemble(list(homes.values()), pixels):
        root = os.path.abspath(listing.root)
        raise Doubt(
            f"its {len(homes)} folders hold pictures that are numbered as the frames of films are",
            Reading(f"{len(homes)} classes of pictures", {"task": "images"}),
            Reading(
                f"{len(homes)} clips of one class, {printable(os.path.basename(root))!r}: the folder above holds the "
                "classes",
                {"data": os.path.dirname(root), "task": "clips"},
            ),
        )


def _count_up(paths: Sequence[str]) -> bool:
    """Whether the names of pictures are one word with the numbers n, n + 1, n + 2, ..."""
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    found = [re.fullmatch(r"(.*?)([0-9]+)", stem) for stem in stems]
    if not all(found):
        return False
    numbers = sorted(int(match[2]) for match in found if match is not None)
    return len({match[1] for match in found if match is not None}) == 1 and numbers == list(
        range(numbers[0], numbers[0] + len(numbers))
    )


def _has_siblings(root: str) -> bool:
    """Whether another folder beside it holds nothing but folders with numbered pictures."""
    root = os.path.abspath(root)
    try:
        beside = [entry.path for entry in os.scandir(os.path.dirname(root)) if entry.is_dir() and entry.path != root]
        return any(map(_holds_frames, beside))
    except OSError:
        return False


def _holds_frames(folder: str) -> bool:
    inside = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    pictures = [[e.path for e in os.scandir(one.path) if os.path.splitext(e.name)[1].lower() in SUFFIXES]
                for one in inside if one.is_dir()]  # fmt: skip
    return len(pictures) == len(inside) > 1 and all(len(some) >= FEWEST and _count_up(some) for some in pictures)


def _resemble(homes: Sequence[Sequence[str]], pixels: Pixels) -> bool:
    """Whether the next picture leaves less than half as much open as the one half a folder away.

    What a picture leaves open of another is 1 - r, r their correlation over pixels. The median over folders counts.
    """
    near, far = [], []
    for paths in homes:
        looked_at = paths[:LOOKED_AT]
        flat = np.stack([pixels(path).mean(-1, dtype=np.float64).reshape(-1) for path in looked_at])
        flat -= flat.mean(1, keepdims=True)
        size = np.linalg.norm(flat, axis=1, keepdims=True)
        flat = np.divide(flat, size, out=np.zeros_like(flat), where=size > 0)
        half = len(looked_at) // 2
        near.append(1 - float((flat[1:] * flat[:-1]).sum(1).mean()))
        far.append(1 - float((flat[half:] * flat[:-half]).sum(1).mean()))
    return median(near) < median(far) / 2
