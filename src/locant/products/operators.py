"""The products as torch operators, and which library does them.

    locant::linear, linear_backward, perceptron, perceptron_training, perceptron_backward

Each takes rows of any number of leading axes. A gradient of a gradient goes by torch's own products.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from locant import dispatch
from locant.dispatch import constant_to_graphs
from locant.operands import ACTIVATIONS
from locant.products import compiled, constants, onednn, speed
from locant.products.activations import activate
from locant.products.around import NOTHING, SCHEMA, Around, Norm, around_of, finish, normalise_in_front
from locant.products.packed import forget

__all__ = ["ACTIVATIONS", "linear", "perceptron"]

DTYPES = (torch.float32, torch.bfloat16)
LIBRARIES: dict[str, ModuleType] = {"onednn": onednn, "compiled": compiled}
SMALL = 1 << 18  # multiply-adds below which a call of an operator costs more than it saves


@constant_to_graphs
def able(dtype: torch.dtype) -> tuple[str, ...]:
    """The libraries that may do it, torch's own product aside: our kernels where they were measured."""
    measured = ("linear", "compiled", str(dtype).removeprefix("torch.")) in constants.here().seconds
    ours = measured and compiled.available(dtype)
    return ("onednn",) * dispatch.packs_linear(dtype) + ("compiled",) * ours


@constant_to_graphs
def chosen(operation: str, dtype: torch.dtype) -> str:
    """Who does an operation on packed weights that are kept, whatever its sizes: a weight has one packed copy."""
    return speed.chosen(operation, str(dtype).removeprefix("torch."), able(dtype))


def _library(operation: str, dtype: torch.dtype) -> ModuleType:
    return LIBRARIES[chosen(operation, dtype)]


def _library_for(operation: str, rows: Tensor, weight: Tensor) -> ModuleType:
    """Who multiplies by a weight that is packed at the call, or sums its gradient: the fastest at these sizes."""
    sizes, name = (weight.shape[1], weight.shape[0]), str(rows.dtype).removeprefix("torch.")
    return LIBRARIES[speed.fastest(operation, name, len(rows), sizes, able(rows.dtype))]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


# --- linear -----------------------------------------------------------------------------------------------------------


def _by_rows(rest: tuple[Any, ...]) -> tuple[Around, bool]:
    """What goes with a product, its residual by rows, and whether packed weights are kept."""
    *fields, keep = rest
    around = Around(*fields)
    return around if around.residual is None else around._replace(residual=_rows(around.residual)), keep


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, *rest: Any) -> Tensor:
    rows, (around, keep) = _rows(x), _by_rows(rest)
    if not keep:
        forget(weight)  # of evaluation, before: in training it moves at each step
    operation = "linear" if around.is_nothing() else "half"
    library = _library(operation, x.dtype) if keep else _library_for("repacked", rows, weight)
    y = library.linear(rows, weight, bias, activation, around, keep)
    # a view would be refused to whoever writes into it, such as ReLU(inplace=True)
    return y.view(*x.shape[:-1], weight.shape[0]).detach()


def _linear_backward(dy: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty where they are not wanted."""
    rows, given, nothing, dx = _rows(x), _rows(dy), x.new_empty(0), x.new_empty(0)
    if wanted[0]:
        dx = _library_for("repacked", given, weight.t()).input_gradient(given, weight).view(x.shape)
    dw, db = nothing, None
    if wanted[1]:
        dw, db = _library_for("weights", rows, weight).weight_gradient(given, rows, weight, wanted[2])
    if wanted[2] and db is None:
        db = given.sum(0)
    return dx, dw.to(weight.dtype), nothing if db is None else db.to(dy.dtype)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *_ = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias, ctx.count = None if bias is None else bias.dtype, len(inputs)


def _linear_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2] and ctx.bias is not None]
    rest = (None,) * (ctx.count - 3)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (dy, x, weight)):  # a gradient of a gradient
        flat = dy.reshape(-1, dy.shape[-1])
        dx = (flat @ weight.to(dy.dtype)).view(x.shape) if wanted[0] else None
        dw = (flat.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype) if wanted[1] else None
        return dx, dw, flat.sum(0).to(ctx.bias) if wanted[2] else None, *rest
    direct = dispatch.is_unwatched((dy, x, weight))
    found = (_linear_backward if direct else torch.ops.locant.linear_backward)(dy, x, weight, wanted)
    dx, dw, db = (part if asked else None for part, asked in zip(found, wanted, strict=True))
    return dx, dw, None if db is None else db.to(ctx.bias), *rest


# --- perceptrons ------------------------------------------------------------------------------------------------------


def _perceptron(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str, *rest: Any
) -> Tensor:
    rows, (around, keep) = _rows(x), _by_rows(rest)
    if not keep:
        forget(w1), forget(w2)
    library = _library("perceptron" if around.is_nothing() else "half", x.dtype)
    y = library.perceptron(rows, w1, b1, w2, b2, activation, around, keep)
    return y.view(*x.shape[:-1], w2.shape[0]).detach()


def _perceptron_training(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str, recompute: bool
) -> tuple[Tensor, Tensor]:
    """The perceptron, and what its activation took [rows, hidden]; of no rows where backward computes it anew."""
    rows = _rows(x)
    forget(w1), forget(w2)
    before = rows.new_empty(0 if recompute else len(rows), w1.shape[0])
    written = None if recompute else before
    y = compiled.perceptron(rows, w1, b1, w2, b2, activation, NOTHING, False, written)
    return y.view(*x.shape[:-1], w2.shape[0]).detach(), before


def _perceptron_backward(
    dy: Tensor, x: Tensor, before: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, activation: str,
    wanted: list[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients of x, w1, b1, w2 and b2; empty where they are not wanted. `before` of no rows is computed anew."""
    rows = _rows(x)
    kept = before if len(before) == len(rows) else None
    found = compiled.perceptron_gradients(_rows(dy), rows, kept, w1, b1, w2, activation, wanted)
    dx, *rest = (x.new_empty(0) if part is None else part for part in found)
    return [dx.view(x.shape) if wanted[0] else dx, *rest]


def _save_perceptron(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w1, b1, w2, b2, activation, _ = inputs
    ctx.save_for_backward(x, w1, b1, w2, b2, output[1])
    ctx.activation = activation
    ctx.mark_non_differentiable(output[1])


def _perceptron_gradient(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, w1, b1, w2, b2, before = ctx.saved_tensors
    needed = ctx.needs_input_grad
    wanted = [needed[i] and t is not None for i, t in enumerate((x, w1, b1, w2, b2))]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (dy, x, w1, b1, w2, b2)):
        y = F.linear(activate(F.linear(x, w1, b1), ctx.activation), w2, b2)  # a gradient of a gradient
        inputs = [t for t, asked in zip((x, w1, b1, w2, b2), wanted, strict=True) if asked]
        parts = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
        return *(next(parts) if asked else None for asked in wanted), None, None
    arguments = dy, x, before, w1, b1, w2, ctx.activation, wanted
    direct = dispatch.is_unwatched(arguments)
    found = (_perceptron_backward if direct else torch.ops.locant.perceptron_backward)(*arguments)
    return *(part if asked else None for part, asked in zip(found, wanted, strict=True)), None, None


# --- registered -------------------------------------------------------------------------------------------------------

_FUSED = f"{SCHEMA}, bool keep"
_LAYERS = "Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str activation"
_LIBRARY = torch.library.Library("locant", "FRAGMENT")
_LIBRARY.define(f"linear(Tensor x, Tensor weight, Tensor? bias, str activation, {_FUSED}) -> Tensor")
_LIBRARY.define("linear_backward(Tensor dy, Tensor x, Tensor weight, bool[] wanted) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(f"perceptron({_LAYERS}, {_FUSED}) -> Tensor")
_LIBRARY.define(f"perceptron_training({_LAYERS}, bool recompute) -> (Tensor, Tensor)")
_LIBRARY.define(
    "perceptron_backward(Tensor dy, Tensor x, Tensor before, Tensor w1, Tensor? b1, Tensor w2, str activation, "
    "bool[] wanted) -> Tensor[]"
)


def _fake_linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _fake_linear_backward(dy: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    nothing = x.new_empty(0)
    return (
        x.new_empty(x.shape) if wanted[0] else nothing,
        weight.new_empty(weight.shape) if wanted[1] else nothing,
        dy.new_empty(dy.shape[-1]) if wanted[2] else nothing,
    )


def _fake_training(
    x: Tensor, w1: Tensor, b1: Any, w2: Tensor, b2: Any, activation: str, recompute: bool
) -> tuple[Tensor, Tensor]:
    rows = 0 if recompute else x.numel() // x.shape[-1]
    return x.new_empty(*x.shape[:-1], w2.shape[0]), x.new_empty(rows, w1.shape[0])


def _fake_perceptron_backward(
    dy: Tensor, x: Tensor, before: Tensor, w1: Tensor, b1: Any, w2: Tensor, activation: str, wanted: list[bool]
) -> list[Tensor]:
    shapes = x.shape, w1.shape, w1.shape[:1], w2.shape, w2.shape[:1]
    return [x.new_empty(shape if asked else (0,)) for shape, asked in zip(shapes, wanted, strict=True)]


for _name, _cpu, _fake in (
    ("linear", _linear, _fake_linear),
    ("linear_backward", _linear_backward, _fake_linear_backward),
    ("perceptron", _perceptron, lambda x, w1, b1, w2, *rest: x.new_empty(*x.shape[:-1], w2.shape[0])),
    ("perceptron_training", _perceptron_training, _fake_training),
    ("perceptron_backward", _perceptron_backward, _fake_perceptron_backward),
):
    _LIBRARY.impl(_name, _cpu, "CPU")
    torch.library.register_fake(f"locant::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("locant::linear", _linear_gradient, setup_context=_save_linear, lib=_LIBRARY)
torch.library.register_autograd(
    "locant::perceptron_training", _perceptron_gradient, setup_context=_save_perceptron, lib=_LIBRARY
)


class _Linear(torch.autograd.Function):
    """`linear` past torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:  # type: ignore[override]
        output = _linear(*inputs)
        _save_linear(ctx, inputs, output)
        return output

    backward = staticmethod(_linear_gradient)  # type: ignore[assignment]


class _Perceptron(torch.autograd.Function):
    """`perceptron_training` past torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output = _perceptron_training(*inputs)
        _save_perceptron(ctx, inputs, output)
        return output

    backward = staticmethod(_perceptron_gradient)  # type: ignore[assignment]


# --- what is called ---------------------------------------------------------------------------------------------------


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _is_ours(x: Tensor, *weights: Tensor) -> bool:
    """Whether packed products do it: on the CPU, in a dtype that they have, plain, not too small, not exported."""
    plain = all(type(w) in (Tensor, torch.nn.Parameter) and w.device.type == "cpu" for w in weights)
    cast = torch.is_autocast_enabled("cpu")  # else torch refuses a weight of another dtype, and is left to say so
    return (
        x.device.type == "cpu"
        and plain
        and _dtype(x) in DTYPES
        and all(w.is_floating_point() and w.ndim == 2 and (cast or w.dtype == x.dtype) for w in weights)
        and x.shape[-1] == weights[0].shape[1]
        and x.numel() * weights[0].shape[0] >= SMALL
        and bool(able(_dtype(x)))
        and not dispatch.is_exporting()
        and not dispatch.is_transformed()
    )


def _reads(vector: Tensor | None, length: int, like: Tensor) -> bool:
    """Whether a vector has the length and kind that kernels, which read it by its address, take it for."""
    if vector is None:
        return True
    plain = type(vector) in (Tensor, torch.nn.Parameter) and vector.device.type == "cpu" and vector.shape == (length,)
    cast = torch.is_autocast_enabled("cpu") and vector.is_floating_point()
    return plain and (cast or vector.dtype == like.dtype)


def _joins(x: Tensor, outputs: int, around: Around) -> bool:
    """Whether all of it is what one pass takes; torch broadcasts others, or refuses them."""
    residual = around.residual
    alike = residual is None or (
        type(residual) is Tensor
        and residual.shape == (*x.shape[:-1], outputs)
        and (residual.dtype, residual.device) == (x.dtype, x.device)
    )
    united = 0 <= around.united <= outputs and (not around.united or around.united % around.unit == 0)
    front = all(_reads(v, x.shape[-1], x) for v in (around.scale, around.shift))
    behind = all(_reads(v, outputs, x) for v in (around.gain, around.scale_behind, around.shift_behind))
    return alike and united and front and behind


def _learns(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def linear(
    x: Float[Tensor, "*batch in"], weight: Tensor, bias: Tensor | None, keep: bool, *, activation: str = "none",
    gain: Tensor | None = None, residual: Tensor | None = None, norm: Norm | None = None, behind: Norm | None = None,
    units: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """N(act(n(x) weightᵀ + bias)) ∘ gain + residual, autocast included; with x, weight and bias alone torch's F.linear.

    Args:
        weight: [out, in].
        keep: hold a packed copy of the weight.
        activation: one of ACTIVATIONS; "none" with `behind`.
        gain: [out] (LayerScale).
        residual: [*batch, out].
        norm: of x, in front.
        behind: a LayerNorm of what comes out, before gain and residual.
        units: (n, first): the first outputs are brought to length 1, n at a time, as F.normalize does.
    """
    # 1 where a gradient is wanted, or torch multiplies: one after the other
    around = around_of(gain, residual, norm, behind, units)
    learns = _learns(x, weight, bias, *around.tensors())
    ours = _is_ours(x, weight) and _reads(bias, weight.shape[0], x)
    if activation != "none" or around is not NOTHING:
        joined = ours and not learns and not torch.is_autocast_enabled("cpu")
        if not (joined and _joins(x, weight.shape[0], around) and (behind is None or activation == "none")):
            y = linear(normalise_in_front(x, around), weight, bias, keep)
            return finish(activate(y, activation), around)
    elif not ours:
        return F.linear(x, weight, bias)
    # 2 in one go
    arguments = x.to(_dtype(x)), weight, bias, activation, *around, keep
    if not dispatch.is_unwatched(arguments):
        return torch.ops.locant.linear(*arguments)
    return _Linear.apply(*arguments) if learns else _linear(*arguments)


def perceptron(
    x: Float[Tensor, "*batch in"], w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str,
    keep: bool, *, gain: Tensor | None = None, residual: Tensor | None = None, norm: Norm | None = None,
    behind: Norm | None = None, recompute: bool = False,
) -> Tensor:  # fmt: skip
    """N(act(n(x) w1ᵀ + b1) w2ᵀ + b2) ∘ gain + residual, whose hidden layer is never formed whole.

    Where a gradient is wanted what the activation takes is kept, [rows, hidden], and nothing else of that size.

    Args:
        w1, w2: [hidden, in] and [out, hidden].
        activation, keep, gain, residual, norm, behind: as for `linear`.
        recompute: keep x alone for backward, which computes the hidden layer anew, a chunk of rows at a time.
    """
    inputs, around = (x, w1, b1, w2, b2), around_of(gain, residual, norm, behind, None)
    learns = _learns(*inputs, *around.tensors())
    plain = not torch.is_autocast_enabled("cpu") and _is_ours(x, w1, w2) and w2.shape[1] == w1.shape[0]
    plain = plain and _reads(b1, w1.shape[0], x) and _reads(b2, w2.shape[0], x)
    if learns and plain and chosen("training", x.dtype) == "compiled":
        given = normalise_in_front(x, around), w1, b1, w2, b2, activation, recompute
        direct = dispatch.is_unwatched(given)
        y, _ = (_Perceptron.apply if direct else torch.ops.locant.perceptron_training)(*given)
        return finish(y, around)
    if learns and recompute:
        return finish(_recompute_chunks(normalise_in_front(x, around), w1, b1, w2, b2, activation), around)
    if learns or not plain or not _joins(x, w2.shape[0], around):
        hidden = linear(x, w1, b1, keep, activation=activation, norm=norm)
        return linear(hidden, w2, b2, keep, gain=gain, residual=residual, behind=behind)
    arguments = *inputs, activation, *around, keep
    run = _perceptron if dispatch.is_unwatched(arguments) else torch.ops.locant.perceptron
    return run(*arguments)


def _recompute_chunks(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> Tensor:
    """Both layers, a chunk of rows at a time, each chunk computed anew in backward."""

    def both(part: Tensor) -> Tensor:
        return linear(linear(part, w1, b1, False, activation=activation), w2, b2, False)

    rows = x.reshape(-1, x.shape[-1])
    chunks = rows.split(max(onednn.CHUNK, compiled.HELD // w1.shape[0])) if len(rows) else [rows]
    parts = [checkpoint(both, part, use_reentrant=False, preserve_rng_state=False) for part in chunks]
    return torch.cat(parts).view(*x.shape[:-1], w2.shape[0])
