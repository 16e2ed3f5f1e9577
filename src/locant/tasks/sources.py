"""A user's data as a task: a folder of class folders, or an .npz file."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from locant.tasks import arrays, films, folders, neighbours, splits, stills
from locant.tasks.folders import Listing, printable
from locant.tasks.inspection import FileExamples, Seen, Store, changes, inspect, refuse_strictly
from locant.tasks.kind import Files, Kind
from locant.tasks.kinds import KINDS
from locant.tasks.splits import NAMES
from locant.tasks.task import Refusal, Task, two_sides

SIZE, FRAMES = 32, 8
Parts = dict[str, Int64[np.ndarray, " part"]]


def open_task(
    path: str | Path,
    kind: str | None = None,
    *,
    size: int | tuple[int, ...] | None = None,
    frames: int | None = None,
    axes: str | None = None,
    strict: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Task:
    """The task of a folder or an .npz file.

    Args:
        path: class folders of images, or of clips (folders of frames, or video files), under train, val and test
            if wanted; or an .npz with x and y.
        kind: "images", "clips" or "sequences"; None guesses, and a note says what was guessed.
        size: side of the pictures, or rows and columns: the largest middle part of that shape, resized. Default 32.
            Arrays stay as they are.
        frames: frames of a clip, evenly spaced. Default 8. Arrays stay as they are.
        axes: what the axes of x are, after the first: "CTHW", "HWC", "LC". Default by its sizes.
        strict: refuse if a file was skipped or had to be changed, or if an example stands in two splits.
        seed: of the split, where there is none.
        progress: called with (files looked at, files in all).

    Raises:
        Doubt: data that may be taken in two ways, with both of them.
        Refusal: with a sentence that says what was needed, what came and what to do.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise Refusal(f"kind needs to be one of {', '.join(KINDS)}; it is {kind!r}. Pick one.")
    sides = two_sides("size", SIZE if size is None else size)
    frames_taken = FRAMES if frames is None else frames
    if frames_taken < 1:
        raise Refusal(f"frames needs a whole number of at least 1; it is {frames}. Write --frames {FRAMES}.")
    if path.is_dir():
        if axes is not None:
            raise Refusal("--axes is for the arrays of an .npz; DATA is a folder. Leave it out.")
        items = {name: one.files.items for name, one in KINDS.items() if one.files is not None}
        if kind is not None and kind not in items:
            raise Refusal(f"{kind} need an .npz file; DATA is a folder. Save x {KINDS[kind].shapes} and y.")
        listing = folders.list_folder(path, kind, items)
        return _of_folder(listing, kind, sides, frames_taken, strict, seed, progress)
    if not path.exists():
        raise Refusal(f"DATA needs a folder or an .npz file; there is no {printable(str(path))!r}. Check the path.")
    if path.suffix.lower() != ".npz":
        raise Refusal(
            f"DATA needs a folder of class folders or an .npz file; {printable(path.name)!r} is neither. "
            "Save arrays with numpy.savez(path, x=x, y=y)."
        )
    return _of_arrays(path, kind, axes, None if size is None else sides, frames, strict, seed)


def _of_folder(
    listing: Listing,
    asked: str | None,
    size: tuple[int, int],
    frames: int,
    strict: bool,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> Task:
    # 1 every file is opened once
    kind = KINDS[listing.kind]
    files = kind.files
    assert files is not None, f"{kind.name} do not lie in folders"
    _require_libraries(listing, files)
    seen, store, stretched = _open_all(listing, files, size, frames, progress)
    altered = changes(seen) + stretched
    if asked is None and not kind.timed:
        neighbours.refuse_frames(listing, [one.item for one in seen], store.pixels)
    if strict:
        refuse_strictly(listing, altered)
    if not seen:
        above = printable(os.path.dirname(os.path.abspath(listing.root)))
        deep = f" If these are the clips of one class, name the folder above: {above}." if kind.timed else ""
        raise Refusal(
            f"DATA needs usable files in its class folders; {printable(listing.root)!r} has none "
            f"({_reasons(listing)}). Add some, or say another --task.{deep}"
        )
    # 2 labels and splits, with notes on what was found
    names = tuple(printable(name) for name in listing.classes)
    number = {name: index for index, name in enumerate(listing.classes)}
    labels = np.array([number[one.item.label] for one in seen], np.int64)
    digests = [one.pixels for one in seen]
    parts, notes = _parts(seen, labels, digests, names, seed)
    notes += _overlap(parts, digests, labels, strict) + splits.balance(labels, names) + altered
    notes.append(f"the data is taken for {kind.name}")
    if listing.hidden:
        notes.append(f"{listing.hidden} hidden files and litter of file managers were left out")
    # 3 examples that are read when asked for, and the fingerprint of data and split
    channels = 1 if all(one.grey for one in seen) else 3
    shape = files.shape(channels, size, frames)
    paths = [one.item.path for one in seen]
    train, validation, test = (
        FileExamples([paths[i] for i in parts[n]], labels[parts[n]], store, shape) for n in NAMES
    )
    mark = _fingerprint(
        {"kind": kind.name, "shape": shape, "classes": names},
        {n: [os.fsencode(seen[i].item.name) + b"\0" + seen[i].content.encode() for i in parts[n]] for n in NAMES},
    )
    question = kind.question.format(len(names))
    source = printable(listing.root)
    return Task(
        kind.name, source, question, names, train, validation, test, (), tuple(notes), tuple(listing.skipped), mark,
        augments=("shift", "brightness"),  # numbers in an .npz may mean more than a brightness, and a place a class
    )  # fmt: skip


def _open_all(
    listing: Listing,
    files: Files,
    size: tuple[int, int],
    frames: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Seen], Store, list[str]]:
    """Every file, opened once; a second time where 16 bits hold fewer, whose largest number is white then.

    A scanner of 12 bits writes 0 to 4,095: taken for 16 bits that is nearly black, and 16 of 256 levels are left.
    """
    store = Store(files.decoder(size, frames, stills.WHITE))
    seen = inspect(listing, store, progress)
    bits = max((one.peak for one in seen), default=0).bit_length()
    if not 0 < bits < 16:
        return seen, store, []
    white = 2**bits - 1
    store = Store(files.decoder(size, frames, white))
    again = Listing(listing.root, listing.kind, listing.classes, [one.item for one in seen])
    seen = inspect(again, store, progress)
    listing.skipped += again.skipped
    return seen, store, [f"the files of 16 bits use {bits} of them: {white:,} is white, for all alike"]


def _require_libraries(listing: Listing, files: Files) -> None:
    """Pillow always; PyAV only if there is a video."""
    video = any(os.path.splitext(i.path)[1].lower() in films.VIDEO_SUFFIXES for i in listing.items)
    needed = [("PIL", "pictures", "compare")] + [("av", "video files", "video")] * (video and files.videos)
    for module, what, extra in needed:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise Refusal(
                f"{what} need the package {module}; it can't be imported: {error}. Install locant[{extra}]."
            ) from None


def _reasons(listing: Listing) -> str:
    """What kept files out, by frequency."""
    reasons = Counter(skip.reason for skip in listing.skipped)
    return "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3)) or "no files at all"


def _parts(
    seen: Sequence[Seen], labels: Int64[np.ndarray, " count"], digests: Sequence[bytes], names: Sequence[str], seed: int
) -> tuple[Parts, list[str]]:
    """The splits, and a note on how they came about: as the folders say, the missing ones split off train."""
    homes = np.array([one.item.split or "train" for one in seen])
    given = {one.item.split for one in seen}
    if given == {None}:
        note = f"split 60/20/20 into train, validation and test, each class alike (seed {seed})"
        return splits.divide(labels, names, seed, digests), [note]
    missing = [name for name in NAMES if name not in given]
    if "train" in missing:
        raise Refusal("the folder train needs usable files; it has none. Add some.")
    train = np.flatnonzero(homes == "train")
    divided = splits.divide(labels[train], names, seed, [digests[int(i)] for i in train], ["train", *missing])
    parts = {name: train[index] for name, index in divided.items()}
    parts |= {name: np.flatnonzero(homes == name) for name in NAMES if name not in parts}
    notes = [f"the splits are the folders that were there: {', '.join(n for n in NAMES if n in given)}"]
    if missing:
        shares = " and ".join(f"{name} ({splits.SHARES[name]:.0%} of each class)" for name in missing)
        notes.append(f"{shares} split off train, as it was not there (seed {seed})")
    for name in NAMES[1:]:
        absent = [names[c] for c in sorted(set(range(len(names))) - set(labels[parts[name]].tolist()))]
        if absent:
            notes.append(f"{name} has no examples of {', '.join(map(repr, absent[:8]))}")
    return parts, notes


def _overlap(parts: Parts, digests: Sequence[bytes], labels: Int64[np.ndarray, " count"], strict: bool) -> list[str]:
    """Notes on copies: within a split, across splits, and under different labels."""
    notes = []
    shared = splits.leaks({name: [digests[i] for i in parts[name]] for name in NAMES})
    for (early, late), count in shared.items():
        notes.append(f"{count} of the {len(parts[late])} {late} examples stand in {early} too, pixel for pixel")
    if notes and strict:
        raise Refusal(
            f"--strict needs splits without common examples; {'; '.join(notes)}. "
            "Remove the copies, or leave out --strict."
        )
    copies = splits.copies(digests)
    if copies and not shared:
        notes.append(f"{copies} examples are copies of others; copies stand in one split")
    torn = splits.contradictions(digests, labels)
    if torn:
        notes.append(f"{torn} different examples stand in more than one class")
    return notes


def _fingerprint(settings: dict[str, object], parts: dict[str, list[bytes]]) -> str:
    """sha256 over settings and, split by split, what identifies each example in order."""
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, marks in parts.items():
        whole.update(f"{name} {len(marks)}".encode())
        for mark in marks:
            whole.update(hashlib.sha256(mark).digest())
    return whole.hexdigest()


def _of_arrays(
    path: Path,
    asked: str | None,
    axes: str | None,
    size: tuple[int, int] | None,
    frames: int | None,
    strict: bool,
    seed: int,
) -> Task:
    x, y = arrays.open_member(path, "x"), arrays.open_member(path, "y")
    kind, order = arrays.read_order(x.shape, asked, axes, KINDS)
    labels, names = arrays.read_labels(y, len(x), printable(path.name))
    survey = arrays.survey(x, printable(path.name))
    names = tuple(printable(name) for name in names)
    parts = splits.divide(labels, names, seed, survey.digests)
    notes = [
        f"split 60/20/20 into train, validation and test, each class alike (seed {seed})",
        order.sentence,
        *_overlap(parts, survey.digests, labels, strict),
        *splits.balance(labels, names),
    ]
    if (survey.low, survey.high) != (0.0, 1.0):
        notes.append(f"values from {survey.low:g} to {survey.high:g} are mapped linearly to 0 to 1")
    notes += _ignored(kind, order.shape(x.shape[1:]), size, frames)
    train, validation, test = (
        arrays.StoredExamples(x, parts[n], labels[parts[n]], order, survey.low, survey.high) for n in NAMES
    )
    mark = _fingerprint(
        {"kind": kind.name, "order": order.axes, "shape": x.shape[1:], "type": x.dtype.str, "classes": names},
        {n: [survey.digests[i] + labels[i].tobytes() for i in parts[n]] for n in NAMES},
    )
    question = kind.question.format(len(names))
    return Task(kind.name, printable(str(path)), question, names, train, validation, test, (), tuple(notes), (), mark)


def _ignored(kind: Kind, item: tuple[int, ...], size: tuple[int, int] | None, frames: int | None) -> list[str]:
    """Notes on sizes that were asked for and are not those of the arrays, which stay as they are."""
    sizes = kind.sizes(item)
    sides = two_sides("size", sizes[kind.timed :][-2:])
    different = {
        "size": size not in (None, sides),
        "frames": frames is not None and not (kind.timed and frames == sizes[0]),
    }
    return [f"{name} is for files; arrays are used as they are" for name, other in different.items() if other]
