"""Every file is opened once before training: unusable ones are left out and listed, copies and changes are found.

After that, pixels are read as they are asked for; as many as fit into `CACHE` bytes are kept from the first reading.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Integer, UInt8

from locant.tasks import films
from locant.tasks.folders import Item, Listing, printable
from locant.tasks.stills import REMARKS, Decoded, Unusable, reason_of, require_file
from locant.tasks.task import Examples, Refusal

CACHE = 256 << 20
BLOCK = 1 << 20  # bytes of a file hashed at once
LISTED = 5  # names in a note
LISTED_STRICTLY = 20  # names in a refusal


class Store:
    """Decoded pixels by path: kept while there is room, read again after that."""

    def __init__(self, decode: Callable[[str], Decoded], room: int = CACHE) -> None:
        self.decode = decode
        self.room = room
        self.kept: dict[str, UInt8[np.ndarray, "*frames height width channels"]] = {}

    def first(self, path: str) -> Decoded:
        """Decode a file, and keep its pixels if there is room. Raises Unusable."""
        decoded = self.decode(path)
        if path not in self.kept and decoded.pixels.nbytes <= self.room:
            self.kept[path] = decoded.pixels
            self.room -= decoded.pixels.nbytes
        return decoded

    def pixels(self, path: str) -> UInt8[np.ndarray, "*frames height width channels"]:
        """The pixels of a file that was usable. Raises Refusal if it no longer is."""
        if path in self.kept:
            return self.kept[path]
        try:
            return self.decode(path).pixels
        except Unusable as error:
            raise Refusal(
                f"the data needs to stay as it was at the start; {printable(path)!r} can no longer be used: {error}. "
                "Bring it back and --resume, or start again."
            ) from None


class FileExamples(Examples):
    """Pictures `(C, H, W)` or clips `(T, C, H, W)` in files; `channels` is 1 only if every file is grey."""

    def __init__(
        self, paths: Sequence[str], labels: Integer[np.ndarray, " count"], store: Store, shape: tuple[int, ...]
    ) -> None:
        self.paths, self.store, self.shape = list(paths), store, shape
        self.labels = np.asarray(labels, np.int64)

    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        out = np.empty((len(index), *self.shape), np.float32)
        for row, place in zip(out, index, strict=True):
            row[...] = np.moveaxis(self.store.pixels(self.paths[place]), -1, -3)  # grey broadcasts to three channels
        out /= 255
        return out


@dataclass(frozen=True)
class Seen:
    """A usable item: the digest of what the model will read, that of its files, and what had to be done."""

    item: Item
    pixels: bytes
    content: str
    grey: bool
    remarks: frozenset[str]
    peak: int


def inspect(listing: Listing, store: Store, progress: Callable[[int, int], None] | None = None) -> list[Seen]:
    """All usable items in order; the others go to `listing.skipped`."""
    seen = []
    for count, item in enumerate(listing.items, start=1):
        try:
            seen.append(_look(item, store))
        except Unusable as error:
            listing.skip(item.path, str(error))
        if progress is not None:
            progress(count, len(listing.items))
    return seen


def _look(item: Item, store: Store) -> Seen:
    decoded = store.first(item.path)
    odd = {"odd name"} if printable(item.name) != item.name else set()
    colour = np.broadcast_to(decoded.pixels, (*decoded.pixels.shape[:-1], 3))
    digest = hashlib.sha256(np.ascontiguousarray(colour).data).digest()
    grey = decoded.pixels.shape[-1] == 1
    return Seen(item, digest, _content(item.path), grey, decoded.remarks | odd, decoded.peak)


def _content(path: str) -> str:
    """sha256 over the bytes of a file, or over the names and bytes of the frames in a folder; streamed."""
    files = films.frame_files(path) if os.path.isdir(path) else [path]
    whole = hashlib.sha256()
    for name in files:
        require_file(name)
        try:
            with open(name, "rb") as file:
                part = hashlib.sha256()
                while block := file.read(BLOCK):
                    part.update(block)
        except OSError as error:
            raise Unusable(f"cannot be read: {reason_of(error)}") from None
        whole.update(os.fsencode(os.path.basename(name)) + b"\0" + part.digest())
    return whole.hexdigest()


def changes(seen: Sequence[Seen]) -> list[str]:
    """One note for each thing that had to be done to usable files, with the first few names."""
    names: dict[str, list[str]] = defaultdict(list)
    for one in seen:
        for remark in one.remarks:
            names[remark].append(printable(one.item.name))
    return [
        f"{len(names[r])} usable files {REMARKS[r]} ({first_names(names[r], LISTED)})" for r in REMARKS if r in names
    ]


def first_names(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def refuse_strictly(listing: Listing, notes: Sequence[str]) -> None:
    """With --strict: refuses if a file was skipped, or usable only after a change."""
    reasons = [f"{skip.path} ({skip.reason})" for skip in listing.skipped] + list(notes)
    if reasons:
        raise Refusal(
            f"--strict needs every file to be usable as it is; {len(listing.skipped)} were skipped and {len(notes)} "
            f"kinds of change were needed: {first_names(reasons, LISTED_STRICTLY)}. "
            "Repair or remove those, or leave out --strict."
        )
