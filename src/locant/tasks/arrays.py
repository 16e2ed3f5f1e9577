"""An `.npz` file with `x` and `y`, read without pickle and without loading `x`.

An uncompressed member is mapped where it lies in the zip; a compressed one is streamed once into a temporary file,
which goes away with the last reader. One pass over `x` finds its range, NaN, copies and the fingerprint.

Values are mapped linearly so that they lie within 0 to 1: v ↦ (v - low) / (high - low), with low = min(0, smallest)
and high = largest; what lies there already stays as it is.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float32, Int64, Integer, Shaped

from locant.tasks.kind import AxisOrder, Kind
from locant.tasks.task import Doubt, Examples, Reading, Refusal

CHUNK = 16 << 20  # bytes of x looked at together


class StoredExamples(Examples):
    """Rows of an array on disk, brought into shape as they are read."""

    def __init__(
        self,
        x: Shaped[np.ndarray, "stored *item"],
        rows: Integer[np.ndarray, " count"],
        labels: Integer[np.ndarray, " count"],
        order: AxisOrder,
        low: float,
        high: float,
    ) -> None:
        self.x, self.rows, self.order, self.low, self.high = x, rows, order, low, high
        self.labels = np.asarray(labels, np.int64)
        self.shape = order.shape(x.shape[1:])

    def read(self, index: Integer[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen *shape"]:
        taken = np.asarray(self.x[self.rows[index]], np.float64)
        taken = (taken - self.low) / (self.high - self.low)
        taken = taken.transpose(0, *(axis + 1 for axis in self.order.axes))
        return np.ascontiguousarray(taken.reshape(-1, *self.shape), np.float32)


@dataclass(frozen=True)
class Survey:
    """What one pass over x found."""

    low: float
    high: float
    digests: tuple[bytes, ...]


def open_member(path: str | Path, name: str) -> Shaped[np.ndarray, "..."]:
    """The array `name` of an .npz, on disk. Raises Refusal for whatever is not a plain array there."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            if name not in names:
                raise Refusal(
                    f"an .npz needs arrays x and y; {path.name!r} has {', '.join(names) or 'nothing'} and no {name!r}. "
                    "Save it with numpy.savez(path, x=x, y=y)."
                )
            return _map_member(path, archive, archive.infolist()[names.index(name)])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise Refusal(f"DATA needs a whole .npz file; {path.name!r} is broken: {error}. Save it again.") from None


def _map_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with cast(zipfile.ZipExtFile, archive.open(info)) as member:
        shape, order, dtype = _header(path, info, member)
        start = member.tell()
        wanted = math.prod(shape) * dtype.itemsize
        if wanted != info.file_size - start:
            raise Refusal(
                f"{info.filename} in {path.name!r} needs {wanted} bytes for {dtype} {shape}; it has "
                f"{info.file_size - start}. Save it again."
            )
        if not wanted:
            return np.empty(shape, dtype, order)
        if info.compress_type == zipfile.ZIP_STORED:
            return np.memmap(path, dtype, "r", _offset(path, info) + start, shape, order)
        return _unpack_member(member, info.file_size - start, dtype, shape, order)


def _header(
    path: Path, info: zipfile.ZipInfo, member: zipfile.ZipExtFile
) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    """Shape, memory order and type of a member, checked."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(member)
        if version not in readers:
            raise ValueError("its header is of a kind for structured arrays")
        shape, fortran, dtype = readers[version](member)
    except ValueError as error:
        raise Refusal(
            f"{info.filename} in {path.name!r} needs to be a plain numpy array; {error}. Save it with numpy.savez."
        ) from None
    if dtype.hasobject or dtype.names is not None:
        raise Refusal(
            f"{info.filename} in {path.name!r} needs plain numbers or strings; its type is {dtype}, which would have "
            "to be unpickled, and that can run code. Save it as numbers or as fixed-length strings (astype(str))."
        )
    return shape, "F" if fortran else "C", dtype


def _offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: its local header is 30 bytes, a name and extras of their own lengths."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _unpack_member(
    member: zipfile.ZipExtFile, size: int, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any
) -> np.ndarray:
    """A compressed member, streamed into a temporary file without a name, which lives as long as the array."""
    if shutil.disk_usage(tempfile.gettempdir()).free < size:
        raise Refusal(
            f"a compressed .npz needs {size} bytes of temporary space; {tempfile.gettempdir()} has less. Free some, "
            "point TMPDIR elsewhere, or save with numpy.savez, which is read in place."
        )
    with tempfile.TemporaryFile(prefix="locant-") as file:
        shutil.copyfileobj(member, file, CHUNK)
        file.flush()
        return np.memmap(file, dtype, "r", 0, shape, order)


def read_order(
    shape: tuple[int, ...], asked: str | None, axes: str | None, known: Mapping[str, Kind]
) -> tuple[Kind, AxisOrder]:
    """The kind of x and how it is read: by the letters of its axes, or by its sizes where these leave one way.

    Raises:
        Doubt: sizes that several layouts would explain.
        Refusal: sizes that none does, letters that do not fit.
    """
    item = shape[1:]
    if axes is not None:
        kind = _kind_of_letters(axes, item, asked, known)
        return kind, AxisOrder.of_letters(axes, kind)
    kinds = [kind for kind in known.values() if asked in (None, kind.name)]
    found = [(kind, stored) for kind in kinds for stored in kind.layouts(item, asked is not None)]
    if len(found) == 1:
        ((kind, stored),) = found
        return kind, AxisOrder.of_letters(stored, kind)
    if found:
        raise Doubt(
            f"x is [n, {', '.join(map(str, item))}]",
            *(Reading(_spell(item, stored, kind), {"axes": stored}) for kind, stored in found),
        )
    *first, last = (f"{k.name} {k.shapes}" for k in known.values())
    raise Refusal(
        f"x needs to be {', '.join(first)}, or {last}, with sides and lengths of 2 or more; "
        f"{'' if asked is None else f'read as {asked}, '}its shape {shape} is none of those. "
        "Reshape it, say another --task, or what its axes are: --axes LC."
    )


def _kind_of_letters(axes: str, item: tuple[int, ...], asked: str | None, known: Mapping[str, Kind]) -> Kind:
    """The kind whose axes these are. Raises Refusal if they are none's, or not those of x."""
    for kind in known.values():
        needed = set(kind.letters) - {"C"}
        if asked in (None, kind.name) and needed <= set(axes) <= set(kind.letters) and len(set(axes)) == len(axes):
            if len(axes) == len(item):
                return kind
            break
    letters = ", ".join(f"{kind.letters} of {kind.name}" for kind in known.values() if asked in (None, kind.name))
    raise Refusal(
        f"--axes needs one letter for each axis of x after the first: {letters}, in the order in which they lie, "
        f"C left out where there is none; got {axes!r} for x of {len(item) + 1} axes. Write --axes HWC, for example."
    )


def _spell(item: tuple[int, ...], stored: str, kind: Kind) -> str:
    """'clips of 3 frames of 8 × 8 with 16 channels, [n, C, T, H, W]'."""
    size = dict(zip(stored, item, strict=True))
    sides = f"{size['H']} × {size['W']}" if "H" in size else ""
    length = f"{size['L']} steps" if "L" in size else ""
    frames = f"{size['T']} frames of " if "T" in size else ""
    count = size.get("C", 1)
    return f"{kind.name} of {frames}{length}{sides} with {count} channel{'s' * (count > 1)}, [n, {', '.join(stored)}]"


def survey(x: Shaped[np.ndarray, "count *item"], name: str) -> Survey:
    """Range and a digest of every row, in one pass. Raises Refusal for NaN, infinities and types without order."""
    if x.dtype.kind not in "biuf":
        raise Refusal(f"x in {name!r} needs numbers; its type is {x.dtype}. Save it as float32 or uint8.")
    if x.size == 0:
        raise Refusal(f"x in {name!r} needs examples with values in them; its shape is {x.shape}. Add some.")
    digests: list[bytes] = []
    low, high = math.inf, -math.inf
    step = max(1, CHUNK // max(1, x[0].nbytes))
    for first in range(0, len(x), step):
        rows = np.ascontiguousarray(x[first : first + step])
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            bad = first + int(np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(1))[0])
            raise Refusal(
                f"x in {name!r} needs finite values; example {bad} has NaN or infinity. Fill those in or leave it out."
            )
        low, high = min(low, float(rows.min())), max(high, float(rows.max()))
        digests += [hashlib.sha256(row.tobytes()).digest() for row in rows]
    if low >= 0 and high <= 1 and high > 0:
        return Survey(0.0, 1.0, tuple(digests))
    low = min(0.0, low)
    return Survey(low, high if high > low else low + 1, tuple(digests))


def read_labels(
    y: Shaped[np.ndarray, "..."], count: int, name: str
) -> tuple[Int64[np.ndarray, " count"], tuple[str, ...]]:
    """Labels as indices, and the names of the classes in order. One column [n, 1] is n labels. Raises Refusal."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "biuUS":
        raise Refusal(
            f"y in {name!r} needs one whole number or string for each example; it is {y.dtype} of shape {y.shape}. "
            f"Save {'y.argmax(1), if each row marks its class' if y.ndim == 2 else 'y.astype(int)'}."
        )
    if len(y) != count:
        raise Refusal(f"y in {name!r} needs one label for each of {count} examples; it has {len(y)}. Cut both alike.")
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "backslashreplace")
    values, labels = np.unique(y, return_inverse=True)
    return labels.astype(np.int64), tuple(str(value) for value in values)
