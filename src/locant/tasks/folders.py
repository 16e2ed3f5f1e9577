"""What lies in a folder of class folders: which file or clip belongs to which class, and to which split if any.

    root/class/picture        root/class/clip/frame       root/class/video
    root/split/class/...      with splits train, val | valid | validation, test

Names are taken as the file system gives them and escaped only to be shown. Symbolic links are followed, but never
into a folder that is already open above them. Hidden files and the litter of file managers are counted and left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from locant.tasks import films, stills
from locant.tasks.films import natural_key
from locant.tasks.task import Refusal, Skipped

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
LITTER = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx", "icon\r"})


@dataclass(frozen=True)
class Item:
    """One picture file, or one clip (a folder of frames or a video file)."""

    path: str
    name: str  # relative to the root, with forward slashes
    label: str
    split: str | None


@dataclass
class Listing:
    """All items of a folder in a fixed order, and what was left out."""

    root: str
    kind: str
    classes: tuple[str, ...] = ()
    items: list[Item] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    hidden: int = 0

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(printable(os.path.relpath(path, self.root)), reason))


Items = Callable[[Listing, str], Iterator[str]]


def printable(name: str) -> str:
    """A file name as it may be printed: undecodable bytes and control characters escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def list_folder(root: str | Path, kind: str | None, items: Mapping[str, Items]) -> Listing:
    """The items under `root`; without `kind`, pictures or clips is decided by what lies in the class folders.

    `items` finds, by kind, the items in one class folder.

    Raises:
        Refusal: no class folders, no train split, or no telling pictures from clips.
    """
    listing = Listing(os.fspath(root), "")
    folders = _subfolders(listing, listing.root)
    splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    split = "train" in splits.values() or (bool(splits) and len(splits) == len(folders))
    groups: dict[str | None, str] = {s: os.path.join(listing.root, name) for name, s in splits.items()} if split else {}
    groups = groups or {None: listing.root}
    if split:
        _check_splits(listing, folders, splits)
    classes = {s: folders if s is None else _subfolders(listing, folder) for s, folder in groups.items()}
    homes = [(s, c, os.path.join(groups[s], c)) for s in groups for c in classes[s]]
    if not homes:
        raise Refusal(
            f"DATA needs a folder for each class; {printable(listing.root)!r} has no folders with data in them. "
            "Lay it out as class/picture.png, class/clip/frame.png, class/video.mp4 or train/class/..."
        )
    listing.kind = _guess_kind([home for *_, home in homes]) if kind is None else kind
    listing.classes = tuple(sorted({c for _, c, _ in homes}, key=natural_key))
    for s, label, home in sorted(homes, key=lambda h: (str(h[0]), natural_key(h[1]))):
        for path in items[listing.kind](listing, home):
            name = os.path.relpath(path, listing.root).replace(os.sep, "/")
            listing.items.append(Item(path, name, label, s))
    return listing


def _check_splits(listing: Listing, folders: list[str], splits: dict[str, str]) -> None:
    root = printable(listing.root)
    if "train" not in splits.values():
        raise Refusal(f"a folder with splits needs train; {root!r} has {', '.join(splits)} only. Add train.")
    if len(set(splits.values())) < len(splits):
        raise Refusal(
            f"each split needs one folder; {root!r} has {', '.join(splits)}, where val, valid and validation "
            "are one and the same. Put them into one."
        )
    for name in folders:
        if name not in splits:
            listing.skip(os.path.join(listing.root, name), "lies beside the splits train, val, test: not one of them")


def _entries(listing: Listing, folder: str) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder, in natural order, without hidden files and litter, which are counted."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: natural_key(e.name))
    except OSError as error:
        listing.skip(folder, f"cannot be read: {stills.reason_of(error)}")
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in LITTER:
            listing.hidden += 1
        else:
            yield entry


def _subfolders(listing: Listing, folder: str) -> list[str]:
    """Names of the folders in a folder; files beside them belong to no class."""
    names = []
    for entry in _entries(listing, folder):
        if not _is_folder(entry):
            listing.skip(entry.path, "lies beside the class folders: it has no class")
        elif os.path.realpath(entry.path) in _above(folder):
            listing.skip(entry.path, "a symbolic link back to a folder above it")
        else:
            names.append(entry.name)
    return names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _above(folder: str) -> frozenset[str]:
    """The folder and all above it, links resolved."""
    real = Path(os.path.realpath(folder))
    return frozenset({str(real), *map(str, real.parents)})


def _guess_kind(homes: list[str]) -> str:
    """Pictures or clips, from names alone."""
    pictures = clips = 0
    for home in homes:
        for entry in _entries(Listing(home, ""), home):
            suffix = os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                clips += 1
            elif suffix in stills.SUFFIXES:
                pictures += 1
            else:
                clips += suffix in films.VIDEO_SUFFIXES
    if pictures and clips:
        raise Refusal(
            f"the class folders need to hold pictures or clips; they hold {pictures} pictures beside {clips} videos or "
            "folders. Say --task images (folders inside a class are searched too) or --task clips."
        )
    return "clips" if clips else "images"


def pictures(listing: Listing, folder: str, above: frozenset[str] | None = None) -> Iterator[str]:
    """Every file of a class, folders inside it included; whether it is a picture is seen when it is opened."""
    above = _above(folder) if above is None else above | {os.path.realpath(folder)}
    for entry in _entries(listing, folder):
        if not _is_folder(entry):
            yield entry.path
        elif os.path.realpath(entry.path) in above:
            listing.skip(entry.path, "a symbolic link back to a folder above it")
        else:
            yield from pictures(listing, entry.path, above)


def clips(listing: Listing, folder: str) -> Iterator[str]:
    """Folders of frames and video files of a class."""
    for entry in _entries(listing, folder):
        if _is_folder(entry):
            if os.path.realpath(entry.path) in _above(folder):
                listing.skip(entry.path, "a symbolic link back to a folder above it")
            else:
                yield entry.path
        elif os.path.splitext(entry.name)[1].lower() in films.VIDEO_SUFFIXES:
            yield entry.path
        else:
            listing.skip(entry.path, "neither a folder of frames nor a video file")
