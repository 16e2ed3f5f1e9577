"""Files that are whole or not there: written beside their name, flushed to disk, renamed over it."""

from __future__ import annotations

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Write all of `content`, or leave what was there. A kill leaves at most a file `.tmp-...` beside it.

    Raises:
        OSError: if it cannot be written; it names `path`.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        _replace(path, temporary, content)
    except OSError as error:  # of the name that was asked for: nobody knows the other one
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _replace(path: Path, temporary: Path, content: bytes) -> None:
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # where the new name is kept
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
