"""The folder of a run: opened new, gone on with by what lies in it, given more seeds.

`settings.toml` is all that a run was started with. `identity.json` is the part of it that trials depend on, written
once: what differs from it on resuming would mix trials of two kinds, and is refused. Seeds are not in it, because a
trial has one, nor is what only decides where trials run and what is said of them.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from locant.compare import checkpoint, settings, source
from locant.compare.settings import Settings
from locant.tasks.task import Refusal

FREE = {"threads", "prefer", "sensitivity"}  # what may be given anew beside `resume`: no trial depends on it


def read_again(
    folder: Any, given: dict[str, Any], out: object, config: object, add_seeds: int | Sequence[int] | None
) -> Settings:
    """The settings that a folder was started with, with more seeds if wanted.

    `given` holds what was said beside `resume`: None and False are not said, objects that no file can hold are
    taken, and so is what is in `FREE`.

    Raises:
        Refusal: no folder of a run, or settings given again.
    """
    # 1 the folder, and nothing beside it that settings.toml says
    called = {name: value for name, value in given.items() if value is not None and value is not False}
    if not isinstance(folder, str | Path):
        raise Refusal(
            f"resume needs the folder of a run; got {folder!r}. Write --resume {shlex.quote(str(out or 'runs/mine'))}, "
            f"in Python resume={str(out or 'runs/mine')!r}, without out."
        )
    folder = Path(folder)
    path = folder / "settings.toml"
    if not path.is_file():
        raise Refusal(
            f"--resume needs the folder of a run, which holds settings.toml; {str(folder)!r} does not."
            f"{_nearest(folder)}"
        )
    again = sorted(name for name, value in called.items() if name not in FREE and _can_be_written(value))
    again += [name for name, value in (("out", out), ("config", config)) if value is not None]
    if again:
        flags = ", ".join("DATA" if name == "data" else "--" + name.replace("_", "-") for name in again)
        raise Refusal(
            f"--resume takes every setting from {str(path)!r}; {flags} came beside it. Leave that out, or start a "
            f"new run with other settings: --config {shlex.quote(str(path))}."
        )
    # 2 what was written, unless it was changed since
    stored = settings.resolve(called, path)
    known = folder / "identity.json"
    if known.is_file():
        old = json.loads(known.read_text())
        stored = replace(stored, fingerprints=old["fingerprints"])  # of data that are given again, too
        _refuse_changes(old, stored, folder)
    return stored if add_seeds is None else replace(stored, seeds=(*stored.seeds, *_more(stored.seeds, add_seeds)))


def open_folder(folder: Path, chosen: Settings, resume: bool) -> None:
    """Make the folder, or check that it is one to go on with, and write the complete settings into it."""
    path = folder / "settings.toml"
    try:
        if path.exists() and not resume:
            raise Refusal(
                f"--out needs a new folder; {str(folder)!r} holds a comparison. Go on with it by --resume "
                f"{shlex.quote(str(folder))}, or choose another folder."
            )
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        checkpoint.sweep(folder)
        checkpoint.sweep(folder / "trials")
        if not path.exists():
            checkpoint.write_bytes(folder / "identity.json", json.dumps(identity(chosen), indent=1).encode())
        checkpoint.write_bytes(path, settings.toml(chosen).encode())
    except OSError as error:
        raise Refusal(
            f"--out needs a folder that can be written; {str(folder)!r} can't: {error.strerror}. Choose another."
        ) from None


def identity(chosen: Settings) -> dict[str, Any]:
    """What trials depend on: settings but for seeds and what is free, as JSON has them; the user's own Python."""
    kept = {name: value for name, value in chosen.flags().items() if name not in FREE | {"seeds"}}
    return dict(json.loads(json.dumps({**kept, "sources": chosen.digests()})))


def refuse_other_data(stored: Settings, found: dict[str, str], resume: object, config: object) -> None:
    """Refuse data that are not those which the settings were written for; `found` holds fingerprints by kind."""
    changed = [kind for kind, mark in found.items() if (stored.fingerprints or {}).get(kind, mark) != mark]
    if not changed:
        return
    if resume is not None:
        raise Refusal(
            f"--resume needs the data that {str(resume)!r} was started with; they have changed. Restore them, or "
            f"start a new run: take [fingerprints] out of a copy of its settings.toml and give that to --config."
        )
    raise Refusal(
        f"--config needs the data that {str(config)!r} was written for; those of {', '.join(changed)} have changed. "
        "Restore them, or take the table [fingerprints] out of the file to run on the data as they are."
    )


def command(folder: Path) -> str:
    """The command that goes on with a run."""
    here = f"locant compare --resume {shlex.quote(str(folder))}"
    count = os.environ.get("LOCAL_WORLD_SIZE")
    return here if count is None else f"torchrun --nproc-per-node {count} -m {here}"


def _refuse_changes(old: dict[str, Any], stored: Settings, folder: Path) -> None:
    new = identity(stored)
    before, now = old.pop("sources", {}), new.pop("sources")
    for name, digest in now.items():
        if source.is_live(name):
            source.find(name.removeprefix(source.LIVE).partition(":")[0], name)  # refuses what was not given again
        if before.get(name, digest) != digest:
            raise Refusal(
                f"--resume needs {source.name_of(name)} as it was when {str(folder)!r} was started; it, or a file "
                "beside it that it imports, has changed. Restore it, or choose another --out."
            )
    changed = {name: _differences(name, old.get(name), new.get(name)) for name in {**old, **new}}
    said = [one for some in changed.values() for one in some]
    if said:
        raise Refusal(
            f"--resume needs settings.toml in {str(folder)!r} as it was written at the start; {', '.join(said)}. "
            "Put that back, or start a new run from it: --config "
            f"{shlex.quote(str(folder / 'settings.toml'))}."
        )


def _differences(name: str, old: Any, new: Any) -> list[str]:
    """'images.epochs was 4 and is 5', for everything that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [one for key in {**old, **new} for one in _differences(f"{name}.{key}", old.get(key), new.get(key))]
    return [] if old == new else [f"{name} was {old!r} and is {new!r}"]


def _can_be_written(value: object) -> bool:
    """Whether settings.toml can hold it: anything but objects of one's own, which have to be given again."""
    if isinstance(value, list | tuple):
        return all(map(_can_be_written, value))
    return isinstance(value, str | Path | int | float)


def _more(seeds: tuple[int, ...], added: int | Sequence[int]) -> tuple[int, ...]:
    """The next seeds after the largest, or those that are named."""
    new = settings.read_seeds(added, "add_seeds")
    if isinstance(added, int):
        new = tuple(max(seeds) + 1 + seed for seed in new)
    twice = sorted(set(new) & set(seeds))
    if twice:
        raise Refusal(
            f"--add-seeds needs seeds that the run does not have; it has {', '.join(map(str, twice))}. "
            "Name others, or a count: --add-seeds 3."
        )
    return new


def _nearest(folder: Path) -> str:
    """The newest run inside it, or beside it, as something to try."""
    runs = [path.parent for near in (folder, folder.parent) for path in near.glob("*/settings.toml")]
    if not runs:
        return " Name the folder that the run printed first."
    newest = max(runs, key=lambda run: (run / "settings.toml").stat().st_mtime)
    return f" Name the folder that the run printed first; the newest near there is {str(newest)!r}."
