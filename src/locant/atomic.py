"""Files that are whole or not there: written beside their name, flushed to disk, renamed over it."""

from __future__ import annotations

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Write all of `content`, or leave what was there. A kill leaves at most a file `.tmp-...` beside it.

    Raises:
        OSError: if it cannot be written.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
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
