"""Linear maps and perceptrons on CPUs by products whose weights are packed: oneDNN's, which torch carries.

    linear(x, weight, bias, keep)                           x weightᵀ + bias
    perceptron(x, w1, b1, w2, b2, activation, keep)         act(x w1ᵀ + b1) w2ᵀ + b2, a chunk of rows at a time

x [..., in], weights [out, in] as torch has them. torch's own `linear` goes to a library that is slow on some
processors; the same sums by oneDNN on a weight that lies in its order take half of the time there. `keep` says that a
packed copy of the weight is kept beside it (as large again). It is made anew when the weight's address, version, dtype
or shape has moved, and goes when the weight goes. Without `keep`, or where a weight is an inference tensor, which
counts no versions, it is packed at each call, where that pays.

Both are torch operators, so that a graph holds one node and never a packed weight. Under export, on other devices, in
other dtypes and for small products it is torch's own linear.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from locant import dispatch

DTYPES = (torch.float32, torch.bfloat16)
CHUNK = 512  # rows of a perceptron at once: the hidden layer of a chunk stays in the cache, and is never mapped anew
SMALL = 1 << 18  # multiply-adds below which a call of an operator costs more than it saves
REPACKED = 64  # rows from which packing a weight at each call costs less than it saves
ONEDNN_ROWS = 8192  # up to so many rows the weight's gradient is oneDNN's; above, torch's own product is faster
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu")


# --- packed weights ---------------------------------------------------------------------------------------------------


class _Kept:
    """A packed copy of a weight, and what the weight was when it was made."""

    def __init__(self, weight: Tensor, packed: Tensor, mark: tuple[Any, ...]) -> None:
        self.packed, self.mark = packed, mark
        self.gone = weakref.finalize(weight, _KEPT.pop, id(weight), None)
        self.gone.atexit = False


_KEPT: dict[int, _Kept] = {}


def _mark(weight: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    return weight.data_ptr(), weight._version, weight.dtype, tuple(weight.shape), tuple(weight.stride()), dtype


def packed(weight: Tensor, dtype: torch.dtype, rows: int, keep: bool) -> Tensor:
    """The weight in the order of the product, from memory where it is kept and has not moved."""
    source = weight.detach().to(dtype)
    if not keep or weight.is_inference():
        return dispatch.pack_linear(source, rows)
    kept, mark = _KEPT.get(id(weight)), _mark(weight, dtype)
    if kept is None or kept.mark != mark:
        if kept is not None:
            kept.gone.detach()
        kept = _KEPT[id(weight)] = _Kept(weight, dispatch.pack_linear(source, rows), mark)
    return kept.packed


def forget(weight: Tensor) -> int:
    """Drop the packed copy of a weight, if there is one; returns its bytes."""
    kept = _KEPT.pop(id(weight), None)
    if kept is None:
        return 0
    kept.gone.detach()
    return weight.numel() * kept.mark[-1].itemsize


def kept_bytes(weight: Tensor) -> int:
    """Bytes of the packed copy that is kept of a weight."""
    kept = _KEPT.get(id(weight))
    return 0 if kept is None else weight.numel() * kept.mark[-1].itemsize


# --- the products -----------------------------------------------------------------------------------------------------


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return x
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="none" if activation == "gelu" else "tanh")
    return F.relu(x) if activation == "relu" else F.silu(x)


_FUSED = {
    "none": ("none", "none"), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", ""),
    "silu": ("swish", ""),
}  # fmt: skip


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, keep: bool) -> Tensor:
    """activation(x weightᵀ + bias), x [rows, in] contiguous, in x's dtype."""
    bias = None if bias is None else bias.detach().to(x.dtype)
    if len(x) == 0 or (not keep and len(x) < REPACKED):
        return _activate(F.linear(x, weight.detach().to(x.dtype), bias), activation)
    return dispatch.packed_linear(x, packed(weight, x.dtype, len(x), keep), bias, *_FUSED[activation])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, keep: bool) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = _product(rows, weight, bias, "none", keep).view(*x.shape[:-1], weight.shape[0])
    return out.detach()  # a view would be refused to whoever writes into it, such as ReLU(inplace=True)


def _perceptron(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str, keep: bool
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = rows.new_empty(len(rows), w2.shape[0])
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        hidden = _product(rows[part], w1, b1, activation, keep)
        out[part] = _product(hidden, w2, b2, "none", keep)
    return out.view(*x.shape[:-1], w2.shape[0])


def _linear_backward(dy: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty where they are not wanted."""
    rows, given = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]).contiguous()
    nothing = x.new_empty(0)
    # 1 dX = dY W, by the transposed weight, packed anew
    dx = nothing
    if wanted[0]:
        turned = weight.detach().to(x.dtype).t().contiguous()
        dx = _product(given, turned, None, "none", keep=False).view(x.shape)
    # 2 dW = dYᵀ X, by whichever product is the faster one for so many rows
    dw = nothing
    if wanted[1]:
        if 0 < len(rows) <= ONEDNN_ROWS and x.dtype == torch.float32 and dispatch.packs_linear():
            dw = dispatch.weight_gradient(given, rows.contiguous(), weight)
        else:
            dw = given.t() @ rows
        dw = dw.to(weight.dtype)
    # 3 dB = Σ dY
    return dx, dw, given.sum(0) if wanted[2] else nothing


_LIBRARY = torch.library.Library("locant", "FRAGMENT")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias, bool keep) -> Tensor")
_LIBRARY.define("linear_backward(Tensor dy, Tensor x, Tensor weight, bool[] wanted) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "perceptron(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str activation, bool keep) -> Tensor"
)


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None, keep: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _fake_linear_backward(dy: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    nothing = x.new_empty(0)
    return (
        x.new_empty(x.shape) if wanted[0] else nothing,
        weight.new_empty(weight.shape) if wanted[1] else nothing,
        dy.new_empty(dy.shape[-1]) if wanted[2] else nothing,
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias = None if bias is None else bias.dtype


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2] and ctx.bias is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (dy, x, weight)):  # a gradient of a gradient
        flat = dy.reshape(-1, dy.shape[-1])
        dx = (flat @ weight.to(dy.dtype)).view(x.shape) if wanted[0] else None
        dw = (flat.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype) if wanted[1] else None
        return dx, dw, flat.sum(0).to(ctx.bias) if wanted[2] else None, None
    direct = dispatch.is_unwatched((dy, x, weight))
    found = (_linear_backward if direct else torch.ops.locant.linear_backward)(dy, x, weight, wanted)
    dx, dw, db = (part if asked else None for part, asked in zip(found, wanted, strict=True))
    return dx, dw, None if db is None else db.to(ctx.bias), None


class _Linear(torch.autograd.Function):
    """`linear` past torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:  # type: ignore[override]
        output = _linear(*inputs)
        _save(ctx, inputs, output)
        return output

    backward = staticmethod(_gradient)  # type: ignore[assignment]


for _name, _cpu, _fake in (
    ("linear", _linear, _fake_linear),
    ("linear_backward", _linear_backward, _fake_linear_backward),
    ("perceptron", _perceptron, lambda x, w1, b1, w2, *rest: x.new_empty(*x.shape[:-1], w2.shape[0])),
):
    _LIBRARY.impl(_name, _cpu, "CPU")
    torch.library.register_fake(f"locant::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("locant::linear", _gradient, setup_context=_save, lib=_LIBRARY)


# --- what is called ---------------------------------------------------------------------------------------------------


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _is_ours(x: Tensor, *weights: Tensor) -> bool:
    """Whether the products are oneDNN's: on the CPU, in a dtype that it packs, plain, not too small, not exported."""
    plain = all(type(w) in (Tensor, torch.nn.Parameter) and w.device.type == "cpu" for w in weights)
    cast = torch.is_autocast_enabled("cpu")  # else torch refuses a weight of another dtype, and is left to say so
    return (
        x.device.type == "cpu"
        and plain
        and _dtype(x) in DTYPES
        and all(w.is_floating_point() and w.ndim == 2 and (cast or w.dtype == x.dtype) for w in weights)
        and x.shape[-1] == weights[0].shape[1]
        and x.numel() * weights[0].shape[0] >= SMALL
        and dispatch.packs_linear()
        and not dispatch.is_exporting()
        and not dispatch.is_transformed()
    )


def linear(x: Float[Tensor, "*batch in"], weight: Tensor, bias: Tensor | None, keep: bool) -> Tensor:
    """x weightᵀ + bias, as torch.nn.functional.linear, autocast included. `keep`: hold a packed copy of the weight."""
    if not _is_ours(x, weight):
        return F.linear(x, weight, bias)
    arguments = x.to(_dtype(x)), weight, bias, keep
    if not dispatch.is_unwatched(arguments):
        return torch.ops.locant.linear(*arguments)
    learns = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in arguments)
    return _Linear.apply(*arguments) if learns else _linear(*arguments)


def perceptron(
    x: Float[Tensor, "*batch in"], w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str,
    keep: bool,
) -> Tensor:  # fmt: skip
    """act(x w1ᵀ + b1) w2ᵀ + b2. Where a gradient is wanted the hidden layer is formed whole, as torch does."""
    inputs = (x, w1, b1, w2, b2)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if learns or not _is_ours(x, w1, w2):
        return linear(_activate(linear(x, w1, b1, keep), activation), w2, b2, keep)
    arguments = x.to(_dtype(x)), w1, b1, w2, b2, activation, keep
    run = _perceptron if dispatch.is_unwatched(arguments) else torch.ops.locant.perceptron
    return run(*arguments)
