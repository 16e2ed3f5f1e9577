"""A checkpoint from one file to another: other names, another size, or both. What `locant convert` does."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from locant.checkpoints.families import recognised
from locant.checkpoints.files import check_target, metadata, reject_constant, unique_keys, write
from locant.checkpoints.loading import exported, prepared
from locant.checkpoints.names import fits
from locant.checkpoints.notes import library, size_notes
from locant.checkpoints.report import Report
from locant.checkpoints.shards import opened, sources
from locant.checkpoints.wording import CONVERT, asked_by, in_flags, word
from locant.registry import BUILDERS, builder, family

ARGUMENTS = {"image_size": "img_size", "window": "window", "frames": "frames", "classes": "num_classes"}


@asked_by(CONVERT)
def convert(
    source: str | Path,
    target: str | Path,
    *,
    model: str,
    to: str = "locant",
    layout: str | None = None,
    method: str | None = None,
    image_size: int | tuple[int, ...] | None = None,
    window: int | tuple[int, ...] | None = None,
    frames: int | None = None,
    classes: int | None = None,
    settings: Mapping[str, Any] | None = None,
    from_window: Sequence[int] | None = None,
    from_grid: Sequence[int] | None = None,
    fresh: Sequence[str] = (),
    top: str | None = None,
    prefix: str | None = None,
    strict: bool = True,
) -> Report:
    """Read `source`, bring it to the names and sizes that are wanted, and write `target`, whole or not at all.

    Args:
        source: a .safetensors, .pt or .pth file, the index of several, or a folder with either.
        target: a file with one of these endings, and another one than `source`.
        model: its published name, "swin_tiny", "convit_base", "detr", or its class, "Swin", all of it by `settings`.
        to: the layout to write, "locant" or one of the model's family.
        layout, method, fresh, top, prefix, strict: as `checkpoints.load` takes them.
        image_size, window, frames, classes: of the model that is wanted; None is the published one. For another number
            of classes the head starts anew (seed 0), and the report says that it was left alone.
        settings: other arguments of the model's builder, by their names.
        from_window, from_grid: `window` and `grid` of `checkpoints.load`.

    Raises:
        ValueError: for a model, layout or argument that there is not, a target that is the source, and whatever `load`
            refuses.
        OSError: if a file cannot be read or written.
    """
    check_target(Path(target), sources(source))
    held = opened(source)  # before a model is built for it
    wanted = {"image_size": image_size, "window": window, "frames": frames, "classes": classes}
    arguments = _arguments(model, {name: value for name, value in wanted.items() if value is not None}, settings or {})
    with torch.device("meta"):  # names and shapes alone
        built = build(model, arguments)
    outwards = recognised(built, to, asked="to")
    theirs = library(built, outwards[0])
    if theirs and "like" not in arguments:  # the rules of whom it is written for, by which the sizes of tables go
        arguments["like"] = theirs
        with torch.device("meta"):
            built = build(model, arguments)
    options: dict[str, Any] = {
        "layout": layout, "method": method, "window": from_window, "grid": from_grid, "top": top,
        "prefix": prefix, "held": held,
    }  # fmt: skip
    own = family(built)
    head = () if classes is None or own is None else own.head
    if head:
        unfit = prepared(built, source, strict=False, fresh=fresh, **options)[1].unfit
        head = head if classes == 0 or any(fits(name, head) for name, *_ in unfit) else ()
    state, report = prepared(built, source, strict=strict, fresh=(*fresh, *head), **options)
    if state.keys() != built.state_dict().keys():
        state = {**build(model, arguments).state_dict(), **state}  # what the file does not say starts anew
    about = {"format": "pt", "model": model, "layout": to, "settings": json.dumps(arguments, default=str)}
    write(target, exported(state, outwards, built), about=about)
    if to == "locant":
        report.notes += size_notes(built)
    else:
        report.notes = []  # what differs there is theirs again
    report.next_step = _next_step(Path(target), to, model, arguments)
    return report


def _next_step(target: Path, to: str, model: str, arguments: Mapping[str, Any]) -> str:
    """What to write in Python to have the model of a file that was converted."""
    name, safe = str(target), target.suffix == ".safetensors"
    if to != "locant":
        read = f"safetensors.torch.load_file({name!r})" if safe else f"torch.load({name!r})"
        return f"model.load_state_dict({read})  # a model of {to}"
    if safe:
        return f"model = locant.models.from_file({name!r})"
    given = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
    return (
        f"model = locant.{BUILDERS[model].partition('.')[0]}.{model}({given}); locant.checkpoints.load(model, {name!r})"
    )


def described(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The name and the settings of the model that `convert` wrote a file for.

    Raises:
        ValueError: if the file does not say, or names no model that there is.
        OSError: if it cannot be opened.
    """
    about = metadata(path)
    try:
        settings = json.loads(about.get("settings", ""), object_pairs_hook=unique_keys, parse_constant=reject_constant)
    except (ValueError, RecursionError):
        settings = None
    if about.get("model") not in BUILDERS or not isinstance(settings, dict):
        raise ValueError(
            "a .safetensors file that `locant convert` wrote, with the name and the settings of its model, was needed; "
            f"got {str(path)!r}, which tells of {about.get('model', 'none')!r}. Build the model that it was made for, "
            "and load it: locant.checkpoints.load(model, path)."
        )
    return about["model"], _arguments(about["model"], {}, {name: _tuples(value) for name, value in settings.items()})


def _tuples(value: Any) -> Any:
    """JSON has lists alone."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _arguments(name: str, wanted: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the builder of a published name is given: sizes by whatever it calls them, and the settings.

    Raises:
        ValueError: for an unknown name, or an argument that its builder does not have.
    """
    known = inspect.signature(builder(name, word("model"))).parameters
    arguments = dict(settings)
    for asked, value in wanted.items():
        if ARGUMENTS[asked] not in known:
            raise ValueError(
                f"{name} has no {asked.replace('_', ' ')} to set; got {value}. Leave it out: it has {', '.join(known)}."
            )
        arguments[ARGUMENTS[asked]] = value
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        raise ValueError(
            f"{name} needs settings out of {', '.join(known)}; got {', '.join(unknown)}. Correct the name."
        )
    return arguments


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model of a published name, drawn with seed 0.

    Raises:
        ValueError: if its builder refuses the arguments, or needs more.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return builder(name)(**arguments)
        except (TypeError, RuntimeError, OverflowError) as error:  # one is missing, or of the wrong kind, or too large
            raise ValueError(
                f"{name} needs other settings: {error}; got {dict(arguments) or 'none'}. Set them by name."
            ) from None
        except ValueError as error:
            raise ValueError(in_flags(str(error), {python: flag for flag, python in ARGUMENTS.items()})) from None
