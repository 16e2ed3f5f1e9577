"""Inputs: a picture, a film, an array or a line of text, as what a model takes and what a page shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from locant.explain.data import Input, Query, Rollout
from locant.explain.embeddings import lattice
from locant.explain.opening import Opened
from locant.explain.recording import Where
from locant.tasks.films import read_clip
from locant.tasks.stills import SUFFIXES, Unusable, read_still

WORDS = 64  # of a text, at most, whose weights are kept
SIDE = 3  # queries a side of a picture


@dataclass(frozen=True)
class Taken:
    """An input as the model takes it, and what is shown."""

    inputs: tuple[Tensor, ...]
    kind: str
    pixels: UInt8[np.ndarray, "*frames rows columns 3"] | None
    words: tuple[str, ...]
    note: str
    keywords: tuple[tuple[str, Tensor], ...] = ()

    def shown(self, queries: Sequence[Where], labels: Sequence[str], rollout: Rollout) -> Input:
        """With the queries that were asked of it."""
        asked = tuple(Query(where, label) for where, label in zip(queries, labels, strict=True))
        return Input(self.kind, self.pixels, self.words, self.note, asked, rollout)


def take(given: Any, opened: Opened) -> Taken:
    """The input for this model.

    Raises:
        ValueError: for what can't be read, or has no place in the model.
    """
    if isinstance(given, Tensor | np.ndarray):
        return _array(np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given), opened)
    if not isinstance(given, str | Path):
        raise ValueError(
            f"INPUT needs a picture, a film, an array or a line of text; got {type(given).__name__}. Pass a path, an "
            "array or a string."
        )
    path = Path(given)
    if _is_there(path) and path.suffix.lower() == ".npy":
        return _array(np.load(path, allow_pickle=False), opened)
    shape = _shape(opened)
    if _is_there(path):
        return _read(path, shape, opened)
    if path.suffix.lower() in SUFFIXES:
        raise ValueError(f"INPUT needs a file that is there; {str(path)!r} is not. Name another.")
    return _text(str(given), opened)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a line of text is too long for a name
        return False


def _shape(opened: Opened) -> tuple[int, ...]:
    return tuple(opened.inputs[0].shape[1:]) if opened.inputs else ()


def _frames(shape: tuple[int, ...], opened: Opened) -> int:
    return shape[1 - opened.channels]


def _read(path: Path, shape: tuple[int, ...], opened: Opened) -> Taken:
    """A picture [channels, rows, columns] or a film [channels, frames, rows, columns] from a file or a folder."""
    if len(shape) not in (3, 4):
        raise ValueError(
            f"{opened.title} takes {list(shape)}, which is no picture and no film. Pass an array or a text."
        )
    sides = (shape[-2], shape[-1])
    try:
        if len(shape) == 4:
            decoded, kind = read_clip(path, sides, _frames(shape, opened)).pixels, "film"
        else:
            decoded, kind = read_still(path, sides).pixels, "picture"
    except Unusable as error:
        raise ValueError(
            f"INPUT needs a picture or a film that can be read; {path.name}: {error}. Name another."
        ) from None
    frames = f"{_frames(shape, opened)} frames spread over its length, " if kind == "film" else ""
    note = f"{frames}its middle, brought to {sides[0]} × {sides[1]} as the model takes it."
    return _pixels(decoded, kind, note, shape, opened)


def _pixels(
    pixels: UInt8[np.ndarray, "*frames rows columns channels"],
    kind: str,
    note: str,
    shape: tuple[int, ...],
    opened: Opened,
) -> Taken:
    shown = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)) if pixels.shape[-1] == 1 else pixels)
    channels = shape[opened.channels]
    x = torch.from_numpy(shown.copy()).float() / 255
    x = x.mean(-1, keepdim=True) if channels == 1 else x
    mean, std = (torch.tensor((*v, *v, *v)[:channels]) for v in (opened.mean, opened.std))
    x = ((x - mean) / std).movedim(-1, opened.channels)[None]
    return Taken((x,), kind, shown, (), note[0].upper() + note[1:])


def _array(x: np.ndarray, opened: Opened) -> Taken:
    shape = _shape(opened)
    x = x[0] if x.ndim == len(shape) + 1 and len(x) == 1 else x
    if x.dtype == np.uint8 and len(shape) in (3, 4) and x.ndim == len(shape) and x.shape[-1] in (1, 3):
        return _resize(x, shape, opened)
    if x.shape != shape and shape:
        raise ValueError(
            f"INPUT needs an array {list(shape)} for {opened.title}; got {list(x.shape)}. Bring it to that "
            "shape, or pass a picture as uint8 [rows, columns, 3], which is resized."
        )
    tensor = torch.as_tensor(x)[None]
    pixels = None
    if x.ndim in (3, 4) and x.shape[opened.channels] in (1, 3):
        wide = np.moveaxis(x.astype(np.float64), opened.channels, -1)
        low, high = np.nanmin(wide), np.nanmax(wide)
        grey = np.nan_to_num((wide - low) / max(high - low, 1e-12)) * 255
        pixels = np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:-1], 3))).round().astype(np.uint8)
    return Taken((tensor,), "array", pixels, (), "As it was given.")


def _resize(x: np.ndarray, shape: tuple[int, ...], opened: Opened) -> Taken:
    from PIL import Image

    sides = (shape[-2], shape[-1])
    frames = x if x.ndim == 4 else x[None]
    if len(frames) == 0:
        raise ValueError("INPUT needs a film with frames; it has none. Pass [frames, rows, columns, 3].")
    same = frames.shape[1:3] == sides
    coloured = np.broadcast_to(frames, (*frames.shape[:-1], 3)).copy()
    cubic = Image.Resampling.BICUBIC
    brought = [np.asarray(Image.fromarray(frame).resize(sides[::-1], cubic)) for frame in coloured]
    pixels = np.stack(brought) if x.ndim == 4 else brought[0]
    count = _frames(shape, opened) if x.ndim == 4 else 1
    if x.ndim == 4 and len(pixels) != count:
        pixels = pixels[np.linspace(0, len(pixels) - 1, count).round().astype(int)]
    note = (
        "As it was given."
        if same
        else f"Resized from {frames.shape[1]} × {frames.shape[2]} to {sides[0]} × {sides[1]}."
    )
    return _pixels(pixels, "film" if x.ndim == 4 else "picture", note, shape, opened)


def _text(line: str, opened: Opened) -> Taken:
    folder = opened.folder
    files = (
        ()
        if folder is None
        else tuple(folder.glob("tokenizer*")) + tuple(folder.glob("vocab*")) + tuple(folder.glob("*.model"))
    )
    if folder is None or not files:
        raise ValueError(
            f"a line of text needs a tokenizer, and {opened.title} has none at hand; got {line[:40]!r}. Use "
            "hf:FOLDER with its tokenizer in the folder, or name a file that is there."
        )
    tokenizer: Any = named_tokenizer(folder)
    found = tokenizer(line, return_tensors="pt", truncation=True, max_length=WORDS)
    ids = found["input_ids"]
    words = tuple(str(word) for word in tokenizer.convert_ids_to_tokens(ids[0].tolist()))
    return Taken((ids,), "text", None, words, f"{len(words)} tokens, those that mark its ends included.")


def named_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies in a folder; nothing is fetched."""
    from locant.integrations.named import library

    transformers: Any = library("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def choose_queries(
    taken: Taken, axes: int, prefix: bool, given: Sequence[Where] | None
) -> tuple[list[Where], list[str]]:
    """Where is asked: the places that were given, or every word, or a lattice of places and the class token."""
    if given is not None:
        return list(given), [", ".join(f"{x:.2f}" for x in where) or "class token" for where in given]
    if taken.kind == "text":
        count = len(taken.words)
        return [((i + 0.5) / count,) for i in range(count)], list(taken.words)
    places = lattice((SIDE,) * axes, SIDE)
    wheres: list[Where] = [tuple((c + 0.5) / SIDE for c in place) for place in places]
    names = {1: ("",), 2: ("row", "column"), 3: ("time", "row", "column")}[axes]
    labels = [", ".join(f"{n} {100 * w:.0f}\u00a0%" for n, w in zip(names, where, strict=True)) for where in wheres]
    return ([*wheres, ()], [*labels, "class token"]) if prefix else (wheres, labels)
