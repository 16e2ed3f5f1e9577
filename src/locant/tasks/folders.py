"""What lies in a folder of class folders: which file or clip belongs to which class, and to which split if any.

    root/class/picture        root/class/clip/frame       root/class/video
    root/split/class/...      with splits train | training, val | valid | validation | dev, test | testing | eval ...

Names are taken as the file system gives them and escaped only to be shown. Symbolic links are followed, but never
into a folder that is already open above them. Hidden files and the litter of file managers are counted and left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from locant.tasks import films, stills
from locant.tasks.films import natural_key
from locant.tasks.task import Doubt, Reading, Refusal, Skipped

SPLITS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
CLIP_WORDS = frozenset({"clip", "video", "vid", "movie", "film", "seq", "sequence", "shot", "take", "scene"})
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
        Doubt: folders that may be splits or classes.
        Refusal: no class folders, no train split, or no telling pictures from clips.
    """
    # 1 classes, below splits if there are any
    listing = Listing(os.fspath(root), "")
    folders = _subfolders(listing, listing.root)
    splits = _find_splits(listing, folders, kind)
    groups: dict[str | None, str] = {s: os.path.join(listing.root, name) for name, s in splits.items()}
    groups = groups or {None: listing.root}
    classes = {s: folders if s is None else _subfolders(listing, folder) for s, folder in groups.items()}
    homes = [(s, c, os.path.join(groups[s], c)) for s in groups for c in classes[s]]
    if not homes:
        raise Refusal(
            f"DATA needs a folder for each class; {printable(listing.root)!r} has no folders with data in them. "
            "Lay it out as class/picture.png, class/clip/frame.png, class/video.mp4 or train/class/..."
        )
    # 2 what lies in them
    listing.kind = _guess_kind([home for *_, home in homes]) if kind is None else kind
    listing.classes = tuple(sorted({c for _, c, _ in homes}, key=natural_key))
    for s, label, home in sorted(homes, key=lambda h: (str(h[0]), natural_key(h[1]))):
        for path in items[listing.kind](listing, home):
            name = os.path.relpath(path, listing.root).replace(os.sep, "/")
            listing.items.append(Item(path, name, label, s))
    return listing


# --- splits ------------------------------------------------------------------------------------------------------


def _find_splits(listing: Listing, folders: list[str], kind: str | None) -> dict[str, str]:
    """Which of the folders are which splits; none of them where they are classes.

    A name alone says it only of a folder that holds folders: a class of trains is called "train" too. Other names
    than those of `SPLITS` are splits if they contain one of them and all folders hold the same ones; if these are
    the same and no name helps, they may be splits or classes.

    Raises:
        Doubt: folders that may be either.
        Refusal: two folders for one split, or no train.
    """
    # 1 by name
    inside = {name: _peek(os.path.join(listing.root, name)) for name in folders}
    named = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    if len(named) == 1 < len(folders) and not inside[next(iter(named))]:
        named = {}  # a class, as the others
    if named and ("train" in named.values() or len(named) == len(folders)):
        _check_splits(listing, folders, named, inside)
        return named
    # 2 by what they hold, and what their names contain
    least = min(inside.values(), key=len, default=frozenset())
    if len(folders) < 2 or len(least) < 2 or not all(least <= held for held in inside.values()):
        return {}
    contained = {name: _contained(name) for name in folders}
    if "train" in contained.values() and None not in contained.values():
        found = {name: split for name, split in contained.items() if split is not None}
        _check_splits(listing, folders, found, inside)
        return found
    if kind == "clips" or all(_is_clip_name(name) for name in least):
        return {}
    raise _doubt_of_splits(folders, least, kind)


def _peek(folder: str) -> frozenset[str]:
    """The names of the folders inside it."""
    return frozenset(entry.name for entry in _entries(Listing(folder, ""), folder) if _is_folder(entry))


def _contained(name: str) -> str | None:
    """The one split that a name speaks of: 'train2017', 'test_set'."""
    found = {SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def _is_like(train: frozenset[str], other: frozenset[str]) -> bool:
    """Whether a folder beside train holds the same classes; numbers alone may count clips as well."""
    return any(not name.isdecimal() and not _is_clip_name(name) for name in train & other)


def _is_clip_name(name: str) -> bool:
    """Whether it is a word for a clip with a running number: 'clip 7', 'video_003'."""
    words = re.findall("[a-z]+", name.lower())
    return bool(re.search("[0-9]", name)) and len(words) == 1 and words[0] in CLIP_WORDS


def _doubt_of_splits(folders: list[str], least: frozenset[str], kind: str | None) -> Doubt:
    first = sorted(least, key=natural_key)
    held = ", ".join(repr(printable(name)) for name in first[:3]) + (", ..." if len(first) > 3 else "")
    named = " and ".join(repr(printable(name)) for name in folders[:2]) + (" and others" if len(folders) > 2 else "")
    splits = Reading(
        f"splits with the {len(least)} classes {held}", {}, "rename them to train, val and test, or name one as DATA"
    )
    if kind is None:
        classes = Reading(f"{len(folders)} classes of clips, a folder each", {"task": "clips"})
    else:
        classes = Reading(f"{len(folders)} classes of {kind}", {}, "move the files of each up into its folder")
    return Doubt(f"its folders {named} hold folders of the same names, {held}", splits, classes)


def _check_splits(
    listing: Listing, folders: list[str], splits: dict[str, str], inside: dict[str, frozenset[str]]
) -> None:
    """Refuse splits that are not one of each, with train; list what lies beside them."""
    root = printable(listing.root)
    if "train" not in splits.values():
        raise Refusal(f"a folder with splits needs train; {root!r} has {', '.join(splits)} only. Add train.")
    for split in set(splits.values()):
        same = [name for name, one in splits.items() if one == split]
        if len(same) > 1:
            raise Refusal(
                f"each split needs one folder; {root!r} has {', '.join(same)}, which are one and the same: {split}. "
                "Put them into one, or take one away."
            )
    beside = [name for name in folders if name not in splits]
    (train,) = (name for name, split in splits.items() if split == "train")
    unlike = [name for name in beside if inside[name] and not _is_like(inside[train], inside[name])]
    if len(splits) == 1 and unlike:
        raise Doubt(
            f"{root!r} has the folder {train!r} beside {', '.join(repr(printable(name)) for name in beside[:3])}",
            Reading(f"the split {train} alone", {"data": os.path.join(listing.root, train)}),
            Reading(f"{len(folders)} classes of clips, one of them called {train}", {}, f"give {train} another name"),
        )
    for name in beside:
        listing.skip(os.path.join(listing.root, name), "lies beside the splits train, val, test: not one of them")


# --- files -------------------------------------------------------------------------------------------------------


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
