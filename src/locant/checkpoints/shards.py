"""A checkpoint in several files: a folder, the index in it that says which tensor is in which file, and the files.

An index is trusted no more than a file is: it names files of its own folder, each of its tensors is in the file that it
says and nowhere else, and every file is checked as a single one is.

Source: transformers' `save_pretrained`, whose `model.safetensors.index.json` holds {"weight_map": {tensor: file}}.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from locant.checkpoints.files import (
    HEADER,
    TENSORS,
    check_name,
    opened_file,
    refused,
    reject_constant,
    unique_keys,
)
from locant.checkpoints.pickles import Damage

INDEX, ENDINGS, SHARDS = ".index.json", (".safetensors", ".bin", ".pt", ".pth"), 1_000
FOLDER = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


def opened(path: str | Path) -> Any:
    """What a checkpoint holds, checked: a single file, or all the tensors that a folder or an index names.

    Raises:
        ValueError: if it is no checkpoint, or damaged, or would run something.
        OSError: if it cannot be opened.
    """
    place = located(path)
    if not place.name.endswith(INDEX):
        return opened_file(place)
    try:
        return _gathered(place)
    except Damage as damage:
        raise refused(place, damage) from None


def sources(path: str | Path) -> list[Path]:
    """Every file that is read for `path`."""
    place = located(path)
    if not place.name.endswith(INDEX):
        return [place]
    try:
        return [place, *(place.with_name(name) for name in _index(place))]
    except Damage as damage:
        raise refused(place, damage) from None


def located(path: str | Path) -> Path:
    """The file or index that a folder means; any other path is itself.

    Raises:
        ValueError: if the folder holds no checkpoint, or several of no known name.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    names = sorted(entry.name for entry in path.iterdir())
    known = [name for name in FOLDER if name in names]
    indices = [name for name in names if name.endswith(INDEX)]
    single = [name for name in names if name.endswith(ENDINGS) and SHARD.search(Path(name).stem) is None]
    for some in (known[:1], indices, single):
        if len(some) == 1:
            return path / some[0]
    named = f"several, {', '.join([*indices, *single][:8])}" if indices or single else "none"
    raise refused(
        path,
        Damage(
            f"it is a folder, in which {', '.join(FOLDER)} or a single other checkpoint was looked for; it has {named}",
            "Name the file itself.",
        ),
    )


def shard(path: str | Path) -> str:
    """What to say of a file that by its name is one of several; "" for others."""
    found = SHARD.search(Path(path).stem)
    if found is None or int(found[2]) < 2:
        return ""
    return (
        f"It is part {int(found[1])} of {int(found[2])}: name the folder, or the index (*{INDEX}), to read all of them."
    )


def _gathered(index: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file, names in _index(index).items():
        try:
            held = opened_file(index.with_name(file))
        except FileNotFoundError:
            raise Damage(f"its part {file} is not there", "Put all parts into one folder.") from None
        if not isinstance(held, dict) or held.keys() != names or not all(isinstance(t, Tensor) for t in held.values()):
            other = sorted(map(str, names ^ held.keys()))[:3] if isinstance(held, dict) else ["a dictionary of tensors"]
            raise Damage(f"its part {file} does not hold what the index says: {', '.join(other) or 'tensors'}")
        found |= held
    return found


def _index(path: Path) -> dict[str, set[str]]:
    """The tensors of each file that an index names."""
    with open(path, "rb") as file:
        text = file.read(HEADER + 1)
    if len(text) > HEADER:
        raise Damage(f"an index of more than {HEADER:,} bytes is not read")
    try:
        found = json.loads(text, object_pairs_hook=unique_keys, parse_constant=reject_constant)
    except (ValueError, RecursionError) as error:
        reason = error.reason.replace("header", "index") if isinstance(error, Damage) else "its index is no JSON"
        raise Damage(reason) from error
    named = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise Damage("its index has no weight_map of tensors and their files")
    files: dict[str, set[str]] = {}
    for name, part in named.items():
        check_name(name)
        if not part.endswith(ENDINGS) or not part.isprintable() or any(word in part for word in ("/", "\\", "..")):
            raise Damage(f"its index names the file {part[:60]!r}, which is no checkpoint beside it")
        files.setdefault(part, set()).add(name)
    if len(named) > TENSORS or len(files) > SHARDS:
        raise Damage(
            f"its index has {len(named):,} tensors in {len(files):,} files; {TENSORS:,} in {SHARDS:,} are read"
        )
    return files
