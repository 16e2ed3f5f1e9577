"""Tensors in files: safetensors, and what torch.save wrote, read without running or trusting anything in them.

Before a tensor is made, the file's own account of itself is checked against its length: sizes, offsets, overlaps,
dtypes, names, and that nothing in it would run. What a file holds is told by its first bytes, not by its name.
Writing is whole or not at all (`atomic.py`).

Where it differs: safetensors 0.8 takes duplicate keys, shapes such as [0, 2⁶²], 100,000 axes and names like ../../x;
`torch.load(weights_only=True)` takes a pickle that asks for any amount of memory (`pickles.py`).
Source: the safetensors format (github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from locant.atomic import write_bytes
from locant.checkpoints import pickles
from locant.checkpoints.pickles import MAGIC, SAVE, Damage, walked

ENDINGS = (".safetensors", ".pt", ".pth")  # that are written
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
CHUNK, UNKNOWN, SUM = 2**20, b"0" * 8, re.compile(rb'"locant.crc32":"([0-9a-f]{8})"')
HEADER, TENSORS, AXES, ELEMENTS, NAME = 16 * 2**20, 20_000, 8, 2**40, 512


def opened_file(path: str | Path) -> Any:
    """What one file holds, checked: tensors by name, or what torch.save was given.

    Other objects than tensors, plain values and containers are a `Skipped` of `pickles.py`.

    Raises:
        ValueError: if the file is no checkpoint, or damaged, or would run something.
        OSError: if it cannot be opened.
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Damage("it is no file but a folder, a pipe or a device", "Name the file itself.")
            size, first = os.fstat(file.fileno()).st_size, file.read(len(MAGIC))
            file.seek(0)
            if first.startswith(b"PK\x03\x04"):
                return _torch(path, mmap=True, foreign=_check_zip(file, size))
            if first == MAGIC:
                return _torch(path, mmap=False, foreign=_check_legacy(file, size))
            check_header(file, size)
            _check_sum(file)
        with safe_open(path, "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)
    except IsADirectoryError:
        raise refused(path, Damage("it is a folder", "Name the file itself.")) from None
    except (Damage, SafetensorError) as error:
        raise refused(path, error if isinstance(error, Damage) else Damage(str(error))) from None


def refused(path: Path, damage: Damage) -> ValueError:
    return ValueError(
        f"a checkpoint, as safetensors or torch.save write it, was needed; {str(path)!r} was refused: {damage.reason}. "
        f"{damage.advice}"
    )


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to is refused, not awaited


def metadata(path: str | Path) -> dict[str, str]:
    """The text that a safetensors file says of itself; files of torch.save have none.

    Raises:
        ValueError: if it is no checkpoint, or its header is damaged.
        OSError: if it cannot be opened.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            first = file.read(len(MAGIC))
            file.seek(0)
            torchs = first == MAGIC or first.startswith(b"PK\x03\x04")
            return {} if torchs else check_header(file, os.fstat(file.fileno()).st_size)
    except Damage as damage:
        raise refused(Path(path), damage) from None


def check_header(file: io.BufferedIOBase, size: int) -> dict[str, str]:
    """Refuse a safetensors file by whose account not every byte behind its header belongs to exactly one tensor.

    Returns:
        Its metadata.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or file.read(1) != b"{":
        raise Damage("it is neither safetensors nor torch.save's", "Name a .safetensors, .pt or .pth file.")
    if length > min(HEADER, size - 8):
        raise Damage(f"its header claims {length:,} bytes of a file of {size:,} (at most {HEADER:,} are read)")
    try:
        header = json.loads(b"{" + file.read(length - 1), object_pairs_hook=unique_keys, parse_constant=reject_constant)
    except (ValueError, RecursionError) as error:
        reason = error.reason if isinstance(error, Damage) else "its header is no JSON"
        raise Damage(reason) from error
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise Damage("its metadata is more than text")
    if len(header) > TENSORS:
        raise Damage(f"it has {len(header):,} tensors; at most {TENSORS:,} are read")
    spans = sorted((*_span(name, entry), name) for name, entry in header.items())
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            raise Damage(f"the bytes of {name!r} begin at {begin:,} instead of {end:,}: tensors overlap or leave a gap")
        end = stop
    if end != size - 8 - length:
        raise Damage(
            f"its tensors have {end:,} bytes, and the file {size - 8 - length:,} for them: it was cut or padded"
        )
    return about


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary; a key that comes twice is damage, for readers would differ in which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Damage(f"its header has the key {twice!r} twice")
    return found


def reject_constant(text: str) -> None:
    """NaN and infinities, which Python's JSON reads and the standard does not have."""
    raise Damage(f"its header holds {text}")


def _span(name: str, entry: Any) -> tuple[int, int]:
    """First and last byte of a tensor, whose entry has been checked for itself."""
    check_name(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Damage(f"{name!r} needs dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise Damage(f"shape and data_offsets of {name!r} need whole numbers of at least 0")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in WIDTHS:
        raise Damage(
            f"{name!r} has the dtype {entry['dtype']!r}; {', '.join(WIDTHS)} are read", "Save it in one of them."
        )
    if len(shape) > AXES or math.prod(max(1, n) for n in shape) > ELEMENTS:
        raise Damage(f"{name!r} has a shape of {len(shape)} axes that no model has: {str(shape[:8])[1:-1]} ...")
    wanted = math.prod(shape) * WIDTHS[entry["dtype"]]
    if len(offsets) != 2 or offsets[1] - offsets[0] != wanted:
        raise Damage(f"{name!r} of shape {shape} needs {wanted:,} bytes, and has data_offsets {offsets}")
    return offsets[0], offsets[1]


def check_name(name: str) -> None:
    """A tensor's name, as torch.nn makes them: printable, without a path."""
    if not 0 < len(name) <= NAME or not name.isprintable() or any(part in name for part in ("/", "\\", "..")):
        raise Damage(f"a tensor has the name {name[:40]!r}, which no module gives")


def _check_sum(file: io.BufferedIOBase) -> None:
    """A checksum of all bytes but its own, which `write` leaves in its files: safetensors has none."""
    file.seek(0)
    head = file.read(8)
    head += file.read(int.from_bytes(head, "little"))
    found = SUM.search(head)
    if found is None:
        return
    total = zlib.crc32(head[: found.start(1)] + UNKNOWN + head[found.end(1) :])
    while chunk := file.read(CHUNK):
        total = zlib.crc32(chunk, total)
    if total != int(found[1], 16):
        raise Damage("its checksum differs: bytes have changed since it was written")


def _check_zip(file: io.BufferedIOBase, size: int) -> bool:
    """torch.save's container: plain entries that share the file's bytes, one of them the pickle.

    Returns:
        Whether the pickle names objects that are to be skipped.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.filename.endswith("constants.pkl") for entry in entries):
                raise Damage("it is a TorchScript program", SAVE)
            if len(entries) > 2 * TENSORS or sum(entry.file_size for entry in entries) > size:
                raise Damage("its entries unpack to more than the file holds")
            named = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            stored = {entry.filename: entry.file_size for entry in entries}
            if len(stored) < len(entries):
                raise Damage("two of its entries have one name")
            if len(named) != 1 or named[0].file_size > HEADER:
                raise Damage("it is a zip file, but no checkpoint", SAVE)
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise Damage("its entries are packed, which torch.save does not do", "Unpack it first.")
            for entry in entries:
                with archive.open(entry) as content:
                    while content.read(CHUNK):  # to the end, where its checksum is compared
                        pass
            root = named[0].filename.removesuffix("data.pkl")
            walk = walked(io.BytesIO(archive.read(named[0])))
            for key, storage in walk.storages.items():
                if stored.get(f"{root}data/{key}") != storage.elements * storage.width:
                    raise Damage(
                        f"the storage {key!r} does not have the {storage.elements * storage.width:,} bytes it claims"
                    )
            return bool(walk.foreign)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, UnicodeDecodeError) as error:
        raise Damage(f"its zip container is damaged or cut: {error}") from error


def _check_legacy(file: io.BufferedIOBase, size: int) -> bool:
    """The format before torch 1.6: five pickles, the fourth of which is the object, then the storages' bytes.

    Returns:
        Whether one of the pickles names objects that are to be skipped.
    """
    walks = [walked(file) for _ in range(5)]
    wanted = sum(8 + storage.elements * storage.width for storage in walks[3].storages.values())
    if wanted != size - file.tell():
        raise Damage(
            f"its tensors need {wanted:,} bytes, and it has {size - file.tell():,} for them: it was cut or padded"
        )
    return any(walk.foreign for walk in walks)


def _torch(path: Path, *, mmap: bool, foreign: bool) -> Any:
    """What torch.load makes of a file whose pickles were walked, with a `Skipped` for every foreign object."""
    try:
        if not foreign:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if tarfile.is_tarfile(path):  # torch.load would read it as its oldest format, whose pickles were not walked
            raise Damage("it is a tar archive", SAVE)
        # Not `weights_only`, which refuses foreign names: they are not imported by `pickles.Unpickler` either.
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=pickles, mmap=mmap)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        EOFError,
        pickle.PickleError,
    ) as e:
        raise Damage(f"torch.load refuses it: {str(e).splitlines()[0][:200]}") from e


def write(
    path: str | Path, tensors: Mapping[str, Tensor], *, about: Mapping[str, str] | None = None, top: str = ""
) -> None:
    """Write tensors to a file that is whole or not there: safetensors, or torch.save's where the name says .pt or .pth.

    Args:
        path: where to.
        tensors: by name.
        about: text that goes into the file, safetensors only.
        top: key under which torch.save's dictionary holds them; "" for none.

    Raises:
        ValueError: for another ending.
        OSError: if it cannot be written; what was there before is whole.
    """
    path = Path(path)
    check_ending(path)
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    if path.suffix == ".safetensors":
        content = save(plain, {**(about or {}), "locant.crc32": UNKNOWN.decode()})
        found = SUM.search(content)
        assert found is not None, "safetensors writes its metadata without spaces"
        content = content[: found.start(1)] + b"%08x" % zlib.crc32(content) + content[found.end(1) :]
    else:
        buffer = io.BytesIO()
        torch.save({top: plain} if top else plain, buffer)
        content = buffer.getvalue()
    write_bytes(path, content)


def check_ending(path: Path) -> None:
    """Refuse a name whose ending says no format that is written."""
    if path.suffix not in ENDINGS:
        raise ValueError(
            f"a checkpoint is written to .safetensors, .pt or .pth; got {str(path)!r}. Give it one of these endings."
        )


def check_target(target: Path, sources: Iterable[Path]) -> None:
    """Refuse, before any work, a place where nothing can be written, and one that holds what is to be read.

    Raises:
        ValueError: for another ending, and for one of `sources`, whatever links lead to it.
        OSError: if there is no folder to write to, or a source is not there.
    """
    check_ending(target)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and any(os.path.samefile(source, target) for source in sources):
        raise ValueError(
            f"the file to write needs to be another one than the file that is read; got {str(target)!r}, which is "
            "read and would be lost. Name another file."
        )
