"""The kinds of tasks that there are. A kind is added by one more value here: everything else asks `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from locant.tasks.kind import AUGMENTED, Files, Kind, Recipe, Sides

if TYPE_CHECKING:
    from locant.tasks.folders import Listing
    from locant.tasks.stills import Decoded
    from locant.tasks.task import Examples, Shift, Task

COLOURS = (1, 3, 4)  # what an axis of channels may count
THIN = 8  # fewer than this, and a quarter of the other side at most, may be the channels of a sequence

Item = tuple[int, ...]


def _sides(name: str, given: Sides) -> tuple[int, int]:
    from locant.tasks.task import two_sides

    return two_sides(name, given)


def _is_thin(rows: int, columns: int) -> bool:
    return min(rows, columns) < THIN and max(rows, columns) >= 4 * min(rows, columns)


def _picture_patch(item: Item, given: Sides | None) -> tuple[int, int]:
    """Rows and columns; unless they are given, a picture becomes sixteen patches, as near as its sides divide."""
    if given is not None:
        return _sides("patch", given)
    rows, columns = (next(n for n in range(max(1, side // 4), 0, -1) if side % n == 0) for side in item[-2:])
    return rows, columns


# --- images: (C, H, W) -------------------------------------------------------------------------------------------


def _image_layouts(item: Item, asked: bool) -> tuple[str, ...]:
    """A side of 1 is none. Channels are few, or the sides are alike and they are not. A strip is nobody's picture."""

    def sides(rows: int, columns: int) -> bool:
        return min(rows, columns) > 1 and (asked or not _is_thin(rows, columns))

    if len(item) == 2:
        return ("HW",) if min(item) > 1 else ()
    if len(item) != 3:
        return ()
    first, last = item[0] in (1, 3), item[2] in COLOURS
    if not first and not last:
        first = not item[0] == item[1] != item[2]
        last = not first
    return ("CHW",) * (first and sides(*item[1:])) + ("HWC",) * (last and sides(*item[:2]))


def _image_items(listing: Listing, folder: str) -> Iterator[str]:
    from locant.tasks import folders

    return folders.pictures(listing, folder)


def _image_decoder(size: tuple[int, int], frames: int, white: int) -> Callable[[str], Decoded]:
    from locant.tasks import stills

    return partial(stills.read_still, size=size, white=white)


def _image_shifts(test: Examples, patch: tuple[int, ...]) -> tuple[Shift, ...]:
    from locant.tasks import shifts

    return shifts.of_images(test, patch)


def _image_digits(recipe: Recipe) -> Task:
    from locant.tasks import digits

    return digits.images(size=recipe.size)


_IMAGES = Recipe(steps=340, lr=(0.003, 0.006), batch=64, dim=48, depth=2, heads=4, patch=2)
IMAGES = Kind(
    name="images",
    axes=(1, 2),
    channel=0,
    recipe=_IMAGES,
    quick=replace(_IMAGES, steps=255, lr=(0.006,)),
    schemes=("none", "learned", "sinusoid", "relative", "alibi", "rotary", "gated"),
    quick_schemes=("none", "learned", "relative"),
    patch=_picture_patch,
    shifts=_image_shifts,
    question="Which of {} classes does the picture belong to?",
    shapes="[n, H, W], [n, C, H, W] or [n, H, W, C]",
    letters="CHW",
    layouts=_image_layouts,
    files=Files(_image_items, _image_decoder, lambda channels, size, frames: (channels, *size)),
    built_in=_image_digits,
    usual=True,
    augments=AUGMENTED,
)


# --- clips: (T, C, H, W) -----------------------------------------------------------------------------------------


def _clip_layouts(item: Item, asked: bool) -> tuple[str, ...]:
    """One frame is no clip, and a side of 1 is none. The likeliest number of channels decides, if there is one."""
    if len(item) == 3:
        picture = item[0] in (1, 3) or item[2] in COLOURS or item[0] == item[1] != item[2]
        return ("THW",) if min(item) > 1 and (asked or not picture) else ()
    if len(item) != 4:
        return ()
    likely = {1: 3, 3: 3, 4: 2, 2: 1}
    found = {
        stored: likely.get(item[stored.index("C")], 0)
        for stored in ("TCHW", "CTHW", "THWC")
        if min(size for letter, size in zip(stored, item, strict=True) if letter != "C") > 1
    }
    best = [stored for stored, score in found.items() if score == max(found.values())]
    if any(found.values()):
        return tuple(best)
    last = item[1] == item[2] != item[3]  # frames are mostly square
    return tuple(stored for stored in best if (stored == "THWC") == last)


def _clip_items(listing: Listing, folder: str) -> Iterator[str]:
    from locant.tasks import folders

    return folders.clips(listing, folder)


def _clip_decoder(size: tuple[int, int], frames: int, white: int) -> Callable[[str], Decoded]:
    from locant.tasks import films

    return partial(films.read_clip, size=size, frames=frames, white=white)


def _clip_shifts(test: Examples, patch: tuple[int, ...]) -> tuple[Shift, ...]:
    from locant.tasks import shifts

    return shifts.of_clips(test, patch)


def _moving_digits(recipe: Recipe) -> Task:
    from locant.tasks import digits

    return digits.clips(size=recipe.size, frames=recipe.frames)


_CLIPS = Recipe(steps=306, lr=(0.004, 0.008), batch=64, dim=48, depth=2, heads=4, patch=8)
CLIPS = Kind(
    name="clips",
    axes=(0, 2, 3),
    channel=1,
    recipe=_CLIPS,
    quick=replace(_CLIPS, steps=272, lr=(0.006,)),
    schemes=("none", "space", "time", "shared", "relative", "rotary"),
    quick_schemes=("none", "space", "relative"),
    patch=lambda item, given: (1, *_picture_patch(item, given)),  # one frame deep
    shifts=_clip_shifts,
    question="Which of {} classes does the clip belong to?",
    shapes="[n, T, H, W], [n, T, C, H, W] or [n, C, T, H, W]",
    letters="TCHW",
    layouts=_clip_layouts,
    files=Files(_clip_items, _clip_decoder, lambda channels, size, frames: (frames, channels, *size), videos=True),
    built_in=_moving_digits,
    usual=True,
    timed=True,
    augments=AUGMENTED,
)


# --- sequences: (L, C) -------------------------------------------------------------------------------------------


def _sequence_layouts(item: Item, asked: bool) -> tuple[str, ...]:
    """Long in one way and thin in the other: the thin one counts the channels."""
    if len(item) == 1:
        return ("L",)
    if len(item) != 2 or max(item) == 1:
        return ()
    rows, columns = item
    if min(item) == 1:
        return ("LC",) if columns == 1 else ("CL",)
    thin = _is_thin(rows, columns)
    if thin and rows < columns:
        return ("LC", "CL") if asked else ("CL",)
    return ("LC",) if asked or thin else ()


def _sequence_shifts(test: Examples, patch: tuple[int, ...]) -> tuple[Shift, ...]:
    from locant.tasks import shifts

    return shifts.of_sequences(test, patch)


def _scan_lines(recipe: Recipe) -> Task:
    from locant.tasks import digits

    return digits.sequences(size=recipe.size)


_SEQUENCES = Recipe(steps=408, lr=(0.003, 0.006), batch=64, dim=48, depth=2, heads=4)
SEQUENCES = Kind(
    name="sequences",
    axes=(0,),
    channel=1,
    recipe=_SEQUENCES,
    quick=replace(_SEQUENCES, steps=255, lr=(0.006,)),
    schemes=("none", "learned", "sinusoid", "relative", "alibi", "rotary", "gated"),
    quick_schemes=("none", "learned", "relative"),
    patch=lambda item, given: (1 if given is None else _sides("patch", given)[0],),
    shifts=_sequence_shifts,
    question="Which of {} classes does the sequence belong to?",
    shapes="[n, L] or [n, L, C]",
    letters="LC",
    layouts=_sequence_layouts,
    built_in=_scan_lines,
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (IMAGES, CLIPS, SEQUENCES)}
