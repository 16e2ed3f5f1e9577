"""`locant.accelerate`: a model that one already has, its attention and its linear layers run by Locant's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from locant import planner, speed
from locant.attend import plan
from locant.checks import check_types, description
from locant.gpu.chips import chip_of
from locant.integrations import (
    conformer,
    layers,
    monai,
    mvit,
    own,
    patches,
    sam,
    timm,
    timm_hybrid,
    torchvision,
    transformers,
    transformers_alibi,
    transformers_encoders,
    transformers_text,
    transformers_whole,
)
from locant.integrations.example import Example
from locant.integrations.family import Attended, Family, Offer, class_name, derived_tensors, digest, keeps_methods
from locant.integrations.hat import family_of_hat
from locant.integrations.predicted import Found, predict, said
from locant.integrations.replacing import ROOT, Replacement, is_replaced
from locant.integrations.report import Report, Row
from locant.integrations.shapes import family_of_shape
from locant.integrations.trying import disagreement
from locant.kernels import sdpa
from locant.nn import Attention, GatedAttention, MultiHeadAttention, RelativeAttention

OWN = (Attention, GatedAttention, MultiHeadAttention, RelativeAttention)
OWN_IN_MODELS = ("locant.models.transformer_xl_layers.MemoryAttention", "locant.models.mvit_layers.PooledAttention")
FAMILIES: tuple[Family, ...] = (
    *timm.FAMILIES, *timm_hybrid.FAMILIES, *torchvision.FAMILIES, *transformers.FAMILIES,
    *transformers_whole.FAMILIES, *transformers_text.FAMILIES, *transformers_alibi.FAMILIES,
    *transformers_encoders.FAMILIES, *monai.FAMILIES, *sam.FAMILIES, *mvit.FAMILIES, *conformer.FAMILIES,
    *own.FAMILIES, *patches.FAMILIES, *layers.PERCEPTRONS,
)  # fmt: skip
# what everyone calls the parameters and modules that attention with position owns
POSITIONAL = {
    "relative_position_bias_table",
    "relative_attention_bias",
    "relative_position_bias",
    "rel_pos_h",
    "rel_pos_arr",
    "pos_bias_u",
    "bias_u",
    "attention_biases",
}

SCRIPTED = "it is scripted, and Python does not run it: accelerate the model before it is scripted"


@check_types
def accelerate(
    model: nn.Module,
    *,
    example: Any = None,
    only: str | Sequence[str] | None = None,
    strict: bool = False,
    dry_run: bool = False,
    pack: bool | str = "auto",
    training: bool = False,
    recompute: bool = False,
) -> Report:
    """Run the attention and the linear layers of a model that you already have by Locant's kernels, in place.

    Only `forward`s of instances change. Parameters, buffers, keys, hooks, class names and wrappers stay; a deep copy
    works on its own weights, and a pickle is the plain model. `print(report)` shows what was replaced and why the rest
    was not; `report.undo()` puts everything back, and so does the end of a `with`.

    Args:
        model: of timm, torchvision, transformers, of `locant.models`, or your own.
        example: an input (a tensor, a tuple of arguments, a dictionary of named ones): outputs are compared before and
            after, in evaluation mode, and timed; all is undone where they differ by more than rounding. Ratios of
            linear layers are predicted for its sizes, of a dry run too.
        only: paths of modules, with `*`: nothing else is touched.
        strict: raise where an attention that was found can't be replaced, or none was found.
        dry_run: say what would be done, and do nothing.
        pack: "auto" or True keeps packed copies of the weights of linear layers in evaluation mode (as large again);
            False leaves linear layers and perceptrons alone.
        training: compare gradients as well, and time forward and backward.
        recompute: in training, keep nothing of the hidden layer of a perceptron; backward computes it anew, a chunk of
            rows at a time (one product more). Perceptrons whose dropout is at work, or whose parts are hooked, keep it.

    Raises:
        ValueError: wrong arguments, `only` that fits no module, what `strict` asks for, or an example on which the
            outputs differ. The model is as it was then.
    """
    _check(model, only, pack, recompute)
    with torch.random.fork_rng(devices=[]):  # trials draw their inputs: what the caller draws next is as without them
        return _replace_parts(model, example, only, strict, dry_run, pack is not False, training, recompute)


def _replace_parts(
    model: nn.Module, example: Any, only: str | Sequence[str] | None, strict: bool, dry_run: bool, pack: bool,
    training: bool, recompute: bool,
) -> Report:  # fmt: skip
    # 1 what there is, and what takes its place
    found = list(_survey(model, only, pack, layers.RECOMPUTED if recompute else layers.LINEAR))
    packs = [module for row, module, _ in found if row.kind == "linear" and row.kernel is not None]
    report = Report(tuple(row for row, _, _ in found), model, dry_run, _packs=packs)
    if strict:
        _refuse_rest(report)
    # 2 the example before, and what it says of sizes
    run = None if example is None else Example(model, example, training, only_sizes=dry_run)
    report.rows = tuple(predict(found, None if run is None else run.rows, training))
    report.measured = said(report.rows, run is not None)
    if dry_run:
        return report
    # 3 replace, and the example after; whatever goes wrong leaves the model as it was
    try:
        for _, module, replacement in found:
            if replacement is not None:
                report.put(module, replacement)
        if report.replaced:
            report.put(model, ROOT)
        if run is not None:
            report.checked = run.compare()
    except BaseException:
        report.undo()
        raise
    return report


def _check(model: nn.Module, only: object, pack: object, recompute: bool) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"accelerate needs `model`, an nn.Module that Python runs; got {type(model).__name__}. Pass the model "
            "before it is scripted."
        )
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"accelerate needs `model` with parameters that have sizes; those of {type(model).__name__} are not made "
            f"before its first call ({lazy[0]}). Call it once first."
        )
    if pack not in ("auto", True, False):
        raise ValueError(f'accelerate needs `pack` out of "auto", True, False; got {pack!r}. Leave it out for "auto".')
    if recompute and pack is False:
        raise ValueError(
            "accelerate needs packed perceptrons to compute their hidden layers anew; got recompute=True with "
            "pack=False. Leave pack out."
        )
    if only is None:
        return
    patterns = [only] if isinstance(only, str) else only
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f"accelerate needs `only` as a path or several, such as 'layers.*'; got {description(only)}. Name modules."
        )
    paths = [path for path, _ in model.named_modules()]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            near = ", ".join([path for path in paths if path][:4])
            raise ValueError(
                f"accelerate needs `only` to fit modules of the model; {pattern!r} fits none. Its first are {near}."
            )


def _refuse_rest(report: Report) -> None:
    rows = [row for row in report.rows if row.kind == "attention"]
    left = [row for row in rows if row.kernel is None]
    if left or not rows:
        why = "; ".join(f"{row.path} ({row.cls}): {row.why}" for row in left[:3]) or "it has none that Locant knows"
        raise ValueError(
            f"strict=True needs every attention of {type(report.model).__name__} to be replaced; {why}. Leave strict "
            "out to accelerate the rest."
        )


# --- what there is ----------------------------------------------------------------------------------------------------


def _survey(model: nn.Module, only: str | Sequence[str] | None, pack: bool, packed: Replacement) -> Iterator[Found]:
    """A row per part, its module, and what takes the place of the module's methods (None: it stays)."""
    patterns = [only] if isinstance(only, str) else only
    tried: dict[Any, str | None] = {}
    inside: list[str] = []  # what a replaced block no longer calls as a whole
    scripted: list[str] = []
    for path, module in model.named_modules():
        if patterns is not None and not any(fnmatchcase(path, pattern) for pattern in patterns):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            if not any(path.startswith(f"{above}.") for above in scripted):
                yield Row(path, "block", class_name(type(module)), why=SCRIPTED), module, None
            scripted.append(path)
            continue
        family = (
            family_of(type(module)) or family_of_shape(module) or sam.family_of_sam(module) or family_of_hat(module)
        )
        if isinstance(module, nn.Linear):
            if pack:
                yield _linear(path, module, packed)
        elif path in inside or (family is not None and family.kind in ("perceptron", "block") and not pack):
            continue
        elif isinstance(module, OWN) or class_name(type(module)) in OWN_IN_MODELS:
            yield Row(path, "attention", class_name(type(module)), kernel="Locant's own"), module, None
        elif family is not None:
            row, replacement, below = _known(path, module, family, tried)
            inside += [f"{path}.{name}" if path else name for name in below]
            yield row, module, replacement
        elif POSITIONAL & {*dict(module.named_parameters(recurse=False)), *dict(module.named_children())}:
            unknown = "it owns a position bias, and Locant does not know its class"
            yield Row(path, "attention", class_name(type(module)), why=unknown), module, None


def family_of(cls: type) -> Family | None:
    """The family that knows this class, or the nearest class above it whose methods it keeps."""
    for base in cls.__mro__:
        for family in FAMILIES:
            if class_name(base) in family.classes:
                return family if keeps_methods(cls, base, family.methods) else None
    return None


def _known(
    path: str, module: nn.Module, family: Family, tried: dict[Any, str | None]
) -> tuple[Row, Replacement | None, tuple[str, ...]]:
    cls = class_name(type(module))
    # 1 what the family says
    if is_replaced(module):
        why = "it is replaced already: undo the first report to begin anew"
        return Row(path, family.kind, cls, why=why), None, ()
    offer = family.changed(module) or family.offer(module)
    if not isinstance(offer, str):
        offer = _stale_reason(module, offer) or offer
    if isinstance(offer, str):
        return Row(path, family.kind, cls, why=offer), None, ()
    # 2 a source that nobody compared has to agree with itself
    source: Any = type(module)
    if digest(source, family.methods) not in family.known:
        # a class that nobody knows may do as its attributes say: each of its modules is tried
        key = (type(module), offer.what) if family.classes else module
        if key not in tried:
            tried[key] = disagreement(module, family)
        if tried[key] is not None:
            return Row(path, family.kind, cls, offer.what, why=str(tried[key])), None, ()
    # 3 what it will run on
    kernel, predicted = ("packed", None) if offer.attended is None else _planned(offer.attended, module)
    hooks = f"hooks on {', '.join(offer.inside)} are not called" if offer.inside else ""
    return Row(path, family.kind, cls, offer.what, kernel, predicted, hooks), offer.replacement, offer.inside


def _stale_reason(module: nn.Module, offer: Offer) -> str | None:
    """Why tensors of a part that is no longer called would be those of its last call, as a sentence."""
    for path in offer.inside:
        names = derived_tensors(module.get_submodule(path))
        if names:
            return (
                f"its {path} has a {names[0]} that is made anew before each call of it (pruning, a norm of weights): "
                "it goes on being called"
            )
    return None


def _planned(attended: Attended, module: nn.Module) -> tuple[str, float | None]:
    """The kernel on the module's device, and how much faster than torch's own attention it is by measured constants."""
    if attended.grid is None:
        return "planned at the call", None
    q = torch.empty(1, attended.heads, attended.grid.tokens, attended.head_dim, device="meta")
    chosen = plan(q, q, q, grid=attended.grid, position=attended.position, mask=attended.mask)
    weight = next(module.parameters(), q)
    if weight.device.type not in ("cpu", "meta"):
        device, dtype = weight.device, str(weight.dtype)[6:]
        chosen = planner.plan(replace(chosen.problem, device=device.type, chip=chip_of(str(device)), dtype=dtype))
    own, torchs = (speed.seconds(chosen.problem, k) for k in (planner.named(chosen.kernel), sdpa))
    return chosen.kernel, None if not own or not torchs else round(torchs / own, 1)


def _linear(path: str, module: nn.Linear, packed: Replacement) -> Found:
    cls, sizes = class_name(type(module)), f"{module.in_features} → {module.out_features}"
    why = "it is replaced already" if is_replaced(module) else layers.reason_not_to_pack(module)
    if why is not None:
        return Row(path, "linear", cls, sizes, why=why), module, None
    return Row(path, "linear", cls, sizes, "packed"), module, packed
