"""Published weights into a model here, and a model's weights out, in the names and sizes that each side has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locant.checkpoints.families import OWN, recognised
from locant.checkpoints.files import opened, refused, unwrapped
from locant.checkpoints.names import Layout, Matched, fits, matched, turned_in, turned_out
from locant.checkpoints.pickles import Damage
from locant.checkpoints.report import Report
from locant.checkpoints.sizes import brought, check_sides, places

WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile

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
    strict: bool = True,
) -> Report:
    """Load a checkpoint into `model`: renamed, resized and without what is recomputed. All of it, or nothing.

    Args:
        model: of `locant.models` or `locant.nn`.
        source: a file, or a state dict.
        layout: whose names it has, such as "timm"; None finds out. A `Layout` of your own works too.
        method: how tables and embeddings of another size are resized (`locant.resizing`); None is the way of the
            library that the layout belongs to.
        window: the window, (rows, columns), that flat tables in the file were made for, unless it is the model's or
            a square.
        grid: the grid, (rows, columns), that embeddings in the file were made for, unless it is the model's or square.
        fresh: patterns of our names, such as "head.*", that stay as the model has them, whatever the file holds.
        top: the key under which a file of torch.save holds its tensors; None finds out.
        strict: whether a tensor that is missing, unexpected, of a shape that does not fit or not finite is an error.
            If not, what fits is loaded, and the report tells the rest.

    Returns:
        What was renamed, resized, dropped, left alone, missing and unexpected.

    Raises:
        ValueError: if the file is damaged or no checkpoint, no single layout fits, or under `strict`.
    """
    state, report = prepared(
        model, source, layout=layout, method=method, window=window, grid=grid, fresh=fresh, top=top, strict=strict
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


def export(model: nn.Module, layout: str | Layout) -> dict[str, Tensor]:
    """The model's state dict by the names and in the shapes of another library.

    What that library recomputes is not made: load it there with `strict=False`, and expect its indices and masks alone
    among the missing ones.

    Args:
        model: of `locant.models` or `locant.nn`.
        layout: "timm", "official", ..., or a `Layout`.

    Raises:
        ValueError: for a layout that is unknown, or has no name for a tensor of the model.
    """
    return exported(model.state_dict(), recognised(model, layout))


def exported(state: Mapping[str, Tensor], layouts: Sequence[Layout]) -> dict[str, Tensor]:
    """A state by our names in the first of these layouts that has a name for everything."""
    for layout in layouts[:-1]:
        try:
            return turned_out(state, layout)
        except ValueError:
            continue
    return turned_out(state, layouts[-1])


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
    strict: bool = True,
    held: Any = None,
) -> tuple[dict[str, Tensor], Report]:
    """What `load` puts into the model, and its report. The model, which may be on the meta device, is not changed.

    `held` is what the file holds, if it has been opened.
    """
    wanted, known = model.state_dict(), recognised(model, layout)
    theirs = _unwrapped(source, source if isinstance(source, Mapping) else held, known, top)
    chosen = known[0] if len(known) == 1 else detected(theirs, known, wanted, type(model).__name__)
    fresh = (*fresh, *chosen.fresh)
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    found = matched(theirs, chosen, wanted)
    turned = turned_in(theirs, chosen, _made_for(shapes, model, window))
    if chosen is not OWN and window is None and grid is None:
        check_sides(turned, model)
    ours = {name: tensor for name, tensor in turned.items() if not fits(name, fresh)}
    ours, resized = brought(ours, model, chosen, method=method, grid=grid)
    report = _sorted(found, chosen, wanted, fresh, type(model).__name__)
    report.resized = resized
    unfit = [name for name, tensor in ours.items() if tuple(tensor.shape) != shapes[name]]
    broken = [name for name, tensor in ours.items() if name not in unfit and not torch.isfinite(tensor).all()]
    report.leave_out([(name, tuple(ours[name].shape), shapes[name]) for name in unfit], broken)
    if strict and not report.exact:
        raise ValueError(
            f"a checkpoint needs to fit the {report.model} tensor by tensor; got, read in the layout "
            f"{report.layout!r}, {report.faults()}. Build the model that it was made for, name what is to stay as it "
            "is (fresh), or load what fits (strict=False)."
        )
    return {name: tensor for name, tensor in ours.items() if name not in (*unfit, *broken)}, report


def _unwrapped(source: Source, held: Any, layouts: Sequence[Layout], top: str | None) -> dict[str, Tensor]:
    tops = (top,) if top is not None else tuple(dict.fromkeys(key for layout in layouts for key in layout.top))
    try:
        if held is None and isinstance(source, str | Path):
            held = opened(source)
        state = unwrapped(held, tops)
    except Damage as damage:
        if isinstance(source, str | Path):
            raise refused(Path(source), damage) from None
        raise ValueError(f"`source` needs tensors by their names: {damage.reason}. {damage.advice}") from None
    for wrapper in WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return state


def detected(theirs: Mapping[str, Tensor], layouts: Sequence[Layout], ours: Mapping[str, Tensor], model: str) -> Layout:
    """The one layout that has a place for every name in the file.

    Of several the one counts by which more of them are names of the model.

    Raises:
        ValueError: if there is none, or two that read the file differently.
    """
    found = [(layout, matched(theirs, layout, ours)) for layout in layouts]
    best = max(_covered(m) for _, m in found)
    fitting = [(one, m) for one, m in found if _covered(m) == best > len(m.absent) and not m.unknown]
    readings = {tuple(sorted((own, names) for _, names, own in m.pairs)) for _, m in fitting}
    if len(readings) == 1:
        return fitting[0][0]
    if fitting:
        raise ValueError(
            f"a checkpoint of a {model} needs names that say which layout it has; got names that "
            f"{' and '.join(repr(one.name) for one, _ in fitting)} read differently. Say which with layout=."
        )
    layout, most = max(found, key=lambda one: _covered(one[1]) - len(one[1].unknown))
    known = ", ".join(dict.fromkeys(repr(one.name) for one in layouts))
    raise ValueError(
        f"a checkpoint of a {model} needs names of one of its layouts, {known}; got {len(theirs)} names, most like "
        f"{layout.name!r}, by which {_covered(most)} of the model's {len(ours)} are there, and which has none for "
        f"{', '.join([*most.unknown, *most.absent][:3]) or 'the others'}. Check that it is this model's, or name its "
        "layout=, and strict=False to load what fits."
    )


def _covered(found: Matched) -> int:
    return sum(len(ours) for _, _, ours in found.pairs)


def _sorted(found: Matched, layout: Layout, wanted: Mapping[str, Tensor], fresh: tuple[str, ...], model: str) -> Report:
    report = Report(model, layout.name, dropped=found.recomputed, left=found.elsewhere)
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
    report.left = list(dict.fromkeys([*report.left, *unasked, *stays, *tolerated]))
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
