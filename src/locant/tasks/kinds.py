"""The kinds of tasks that there are. A kind is added by one more value here: everything else asks `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from locant.tasks.kind import AUGMENTED, AxisOrder, Files, Kind, Recipe, Sides

if TYPE_CHECKING:
    from locant.tasks.folders import Listing
    from locant.tasks.stills import Decoded
    from locant.tasks.task import Examples, Shift, Task

COLOURS = (1, 3, 4)  # what an axis of channels may count

Item = tuple[int, ...]


def _sides(name: str, given: Sides) -> tuple[int, int]:
    from locant.tasks.task import two_sides

    return two_sides(name, given)


def _picture_patch(item: Item, given: Sides | None) -> tuple[int, int]:
    """Rows and columns; unless they are given, a picture becomes sixteen patches, as near as its sides divide."""
    if given is not None:
        return _sides("patch", given)
    rows, columns = (next(n for n in range(max(1, side // 4), 0, -1) if side % n == 0) for side in item[-2:])
    return rows, columns


# --- images: (C, H, W) -------------------------------------------------------------------------------------------


def _image_order(item: Item) -> AxisOrder | None:
    if len(item) == 2:
        return AxisOrder((0, 1), "x is read as grey images [n, H, W]", channel=0)
    if len(item) != 3:
        return None
    if item[0] not in COLOURS and item[2] in COLOURS:
        return AxisOrder((2, 0, 1), "x is read as images [n, H, W, C]")
    return AxisOrder((0, 1, 2), "x is read as images [n, C, H, W]")


def _image_items(listing: Listing, folder: str) -> Iterator[str]:
    from locant.tasks import folders

    return folders.pictures(listing, folder)


def _image_decoder(size: tuple[int, int], frames: int) -> Callable[[str], Decoded]:
    from locant.tasks import stills

    return partial(stills.read_still, size=size)


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
    shapes="[n, H, W] or [n, C, H, W]",
    order=_image_order,
    claims=lambda item: len(item) == 2 or (len(item) == 3 and (item[0] in (1, 3) or item[2] in COLOURS)),
    files=Files(_image_items, _image_decoder, lambda channels, size, frames: (channels, *size)),
    built_in=_image_digits,
    usual=True,
    augments=AUGMENTED,
)


# --- clips: (T, C, H, W) -----------------------------------------------------------------------------------------


def _clip_order(item: Item) -> AxisOrder | None:
    if len(item) == 3:
        return AxisOrder((0, 1, 2), "x is read as grey clips [n, T, H, W]", channel=1)
    if len(item) != 4:
        return None
    if item[1] not in COLOURS and item[3] in COLOURS:
        return AxisOrder((0, 3, 1, 2), "x is read as clips [n, T, H, W, C]")
    return AxisOrder((0, 1, 2, 3), "x is read as clips [n, T, C, H, W]")


def _clip_items(listing: Listing, folder: str) -> Iterator[str]:
    from locant.tasks import folders

    return folders.clips(listing, folder)


def _clip_decoder(size: tuple[int, int], frames: int) -> Callable[[str], Decoded]:
    from locant.tasks import films

    return partial(films.read_clip, size=size, frames=frames)


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
    shapes="[n, T, C, H, W] or [n, T, H, W]",
    order=_clip_order,
    claims=lambda item: len(item) not in (1, 2),  # what images did not claim before
    files=Files(_clip_items, _clip_decoder, lambda channels, size, frames: (frames, channels, *size), videos=True),
    built_in=_moving_digits,
    usual=True,
    timed=True,
    augments=AUGMENTED,
)


# --- sequences: (L, C) -------------------------------------------------------------------------------------------


def _sequence_order(item: Item) -> AxisOrder | None:
    if len(item) not in (1, 2):
        return None
    what = "[n, length, channels]" if len(item) == 2 else "[n, length] with one channel"
    return AxisOrder(tuple(range(len(item))), f"x is read as sequences {what}", channel=1 if len(item) == 1 else None)


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
    shapes="[n, length, channels]",
    order=_sequence_order,
    claims=lambda item: len(item) == 1,
    built_in=_scan_lines,
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (IMAGES, CLIPS, SEQUENCES)}
