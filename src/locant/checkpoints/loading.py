"""Published weights into a model here, and a model's weights out, in the names and sizes that each side has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locant.checkpoints.contents import Contents, unwrapped
from locant.checkpoints.detection import Reading, read_names
from locant.checkpoints.families import OWN, recognised
from locant.checkpoints.files import refused
from locant.checkpoints.names import Layout, fits, made, turned_in, turned_out
from locant.checkpoints.notes import rules_note, window_note
from locant.checkpoints.pickles import Damage
from locant.checkpoints.report import Report
from locant.checkpoints.shards import opened, shard
from locant.checkpoints.sizes import brought, check_sides, places
from locant.checkpoints.wording import option
from locant.registry import family

Source = str | Path | Mapping[str, object]


def load(
    model: nn.Module,
    source: Source,
    *,
    layout: str | Layout | None = None,
    method: str | None = None,
    window: Sequence[int] | None = None,
    grid: Sequence[int] | None = None,
    fresh: Iterable[str] = (),
    top: str | None = None,
    prefix: str | None = None,
    strict: bool = True,
) -> Report:
    """Load a checkpoint into `model`: renamed, resized and without what is recomputed. All of it, or nothing.

    Args:
        model: of `locant.models` or `locant.nn`.
        source: a file, the index of several or a folder with either, or a state dict.
        layout: whose names it has, such as "timm"; None finds out. A `Layout` of your own works too.
        method: how tables and embeddings of another size are resized (`locant.resizing`); None is the way of the
            library that the layout belongs to.
        window: the window, (rows, columns), that flat tables in the file were made for, unless it is the model's or
            a square.
        grid: the grid, (rows, columns), that embeddings in the file were made for, unless it is the model's or square.
        fresh: patterns of our names, such as "head.*", that stay as the model has them, whatever the file holds.
        top: the key under which a file of torch.save holds its tensors, such as "model_ema"; None finds out, and the
            report says which other ones there are.
        prefix: what the names begin with, such as "backbone."; names without it are left alone. None finds out.
        strict: whether a tensor that is missing, unexpected, of a shape that does not fit or not finite is an error.
            If not, what fits is loaded, and the report tells the rest.

    Returns:
        What was renamed, resized, dropped, left alone, missing and unexpected.

    Raises:
        ValueError: if the file is damaged or no checkpoint, no single layout fits, or under `strict`.
    """
    state, report = prepared(
        model,
        source,
        layout=layout,
        method=method,
        window=window,
        grid=grid,
        fresh=fresh,
        top=top,
        prefix=prefix,
        strict=strict,
    )
    model.load_state_dict(state, strict=False)
    return report


def resize(
    state: Mapping[str, Tensor], model: nn.Module, *, method: str = "linear", grid: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """A state dict of a model like this one, but made for other windows, pictures or clips, in the sizes of `model`.

    Args:
        state: by our names.
        model: whose sizes are wanted; it is not changed.
        method: of `locant.resizing`; "geometric" is for tables, and embeddings are then "antialiased", as in timm.
        grid: as `load` takes it.

    Raises:
        ValueError: for an unknown method, or an embedding whose grid is in doubt.
    """
    return brought(state, model, Layout("", (), rows_method="antialiased"), method=method, grid=grid)[0]


def export(model: nn.Module, layout: str | Layout, *, buffers: bool = False) -> dict[str, Tensor]:
    """The model's state dict by the names and in the shapes of another library.

    Args:
        model: of `locant.models` or `locant.nn`.
        layout: "timm", "official", ..., or a `Layout`.
        buffers: whether to make what that library keeps in its files and recomputes, its indices and masks, for a
            strict `load_state_dict` there. Without them it misses those alone.

    Raises:
        ValueError: for a layout that is unknown, or has no name for a tensor of the model.
    """
    return exported(model.state_dict(), recognised(model, layout), model if buffers else None)


def exported(state: Mapping[str, Tensor], layouts: Sequence[Layout], model: nn.Module | None) -> dict[str, Tensor]:
    """A state by our names in the first of these layouts that has a name for everything, with buffers for `model`."""
    for layout in layouts:
        try:
            found = turned_out(state, layout)
        except ValueError:
            if layout is layouts[-1]:
                raise
        else:
            return {**found, **(made(model, layout) if model is not None else {})}
    raise AssertionError("there is a last one")


def prepared(
    model: nn.Module,
    source: Source,
    *,
    layout: str | Layout | None = None,
    method: str | None = None,
    window: Sequence[int] | None = None,
    grid: Sequence[int] | None = None,
    fresh: Iterable[str] = (),
    top: str | None = None,
    prefix: str | None = None,
    strict: bool = True,
    held: Any = None,
) -> tuple[dict[str, Tensor], Report]:
    """What `load` puts into the model, and its report. The model, which may be on the meta device, is not changed.

    `held` is what the file holds, if it has been opened.
    """
    # 1. What the file holds, and whose names these are.
    wanted, known, fresh = model.state_dict(), recognised(model, layout), tuple(fresh)
    contents = _opened(source, source if isinstance(source, Mapping) else held, known, top)
    reading = read_names(
        contents.tensors, known, wanted, type(model).__name__, prefix=prefix, fresh=fresh, strict=strict
    )
    chosen, fresh = reading.layout, (*fresh, *reading.layout.fresh)
    # 2. Their tensors as ours, in our sizes.
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    turned = turned_in(reading.state, chosen, _made_for(shapes, model, window))
    odd = "" if chosen is OWN else window_note(turned, model)
    if odd and strict:
        raise ValueError(f"{odd} No model here is built so: resize them on purpose with {option('strict')}.")
    if chosen is not OWN and window is None and grid is None:
        check_sides(turned, model)
    ours = {name: tensor for name, tensor in turned.items() if not fits(name, fresh)}
    ours, resized = brought(ours, model, chosen, method=method, grid=grid)
    # 3. What became of each, and whether that is all of them.
    report = _sorted(reading, wanted, fresh, type(model).__name__)
    report.resized, report.key, report.others = resized, contents.key, list(contents.others)
    report.skipped = list(contents.skipped)
    report.notes = [note for note in (odd, rules_note(model, chosen)) if note]
    unfit = [name for name, tensor in ours.items() if tuple(tensor.shape) != shapes[name]]
    broken = [name for name, tensor in ours.items() if name not in unfit and not torch.isfinite(tensor).all()]
    report.leave_out([(name, tuple(ours[name].shape), shapes[name]) for name in unfit], broken)
    if strict and not report.exact:
        raise ValueError(
            f"a checkpoint needs to fit the {report.model} tensor by tensor; got, read in the layout "
            f"{report.layout!r}{report.behind}, {report.faults()}. {_advice(report, model, source)}"
        )
    return {name: tensor for name, tensor in ours.items() if name not in (*unfit, *broken)}, report


def _opened(source: Source, held: Any, layouts: Sequence[Layout], top: str | None) -> Contents:
    tops = (top,) if top is not None else tuple(dict.fromkeys(key for layout in layouts for key in layout.top))
    try:
        if held is None and isinstance(source, str | Path):
            held = opened(source)
        return unwrapped(held, tops)
    except Damage as damage:
        if isinstance(source, str | Path):
            raise refused(Path(source), damage) from None
        raise ValueError(f"`source` needs tensors by their names: {damage.reason}. {damage.advice}") from None


def _advice(report: Report, model: nn.Module, source: Source) -> str:
    """What to do about a file that does not fit."""
    part = shard(source) if isinstance(source, str | Path) else ""
    if part and report.missing:
        return part
    own = family(model)
    odd = [*report.missing, *report.unexpected, *report.broken, *(name for name, *_ in report.unfit)]
    if own is None or not own.head or not all(fits(name, own.head) for name in odd) or report.broken:
        return (
            f"Build the model that it was made for, name what is to stay as it is ({option('fresh')}), or load what "
            f"fits ({option('strict')})."
        )
    anew = f"start the head anew with {option('fresh', *own.head)}"
    if report.unfit and not report.missing:
        classes = report.unfit[0][1][0] - own.spare
        return f"Build the model for the {classes} classes of its head: {option('classes', classes)}, or {anew}."
    return f"{anew[0].upper()}{anew[1:]}, or build the model without one: {option('classes', 0)}."


def _sorted(reading: Reading, wanted: Mapping[str, Tensor], fresh: tuple[str, ...], model: str) -> Report:
    found = reading.found
    report = Report(model, reading.layout.name, prefix=reading.prefix, dropped=found.recomputed)
    for _, theirs, ours in found.pairs:
        if all(fits(name, fresh) for name in ours):
            continue
        if theirs == ours:
            report.kept += ours
        else:
            report.renamed.append((ours, theirs))
    got = {name for _, _, ours in found.pairs for name in ours}
    stays = [name for name in wanted if fits(name, fresh)]
    tolerated = [name for name in wanted if name not in got and name.endswith("num_batches_tracked")]
    unasked = [key for key, names in found.absent.items() if names and all(fits(name, fresh) for name in names)]
    report.left = list(dict.fromkeys([*found.elsewhere, *unasked, *stays, *tolerated, *reading.others]))
    report.missing = [name for name in wanted if name not in got and name not in report.left]
    report.unexpected = found.unknown + [key for key in found.absent if key not in unasked] + list(found.incomplete)
    return report


def _made_for(
    shapes: Mapping[str, tuple[int, ...]], model: nn.Module, window: Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    """The shapes that our tensors have in the file, as far as they are known: those of the model, but for `window`."""
    found = dict(shapes)
    for name, place in places(model).items():
        live = [axis for axis, size in enumerate(place.shape) if size > 1]
        if window is not None and place.kind == "table" and len(window) == len(live):
            sizes = list(shapes[name])
            for axis, size in zip(live, window, strict=True):
                sizes[1 + axis] = 2 * size - 1
            found[name] = tuple(sizes)
    return found
