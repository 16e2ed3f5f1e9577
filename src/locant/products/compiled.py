"""Products by the compiled kernels of csrc/linear: everything of a block of rows at once."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from locant import operands
from locant.dispatch import constant_to_graphs
from locant.operators import built
from locant.products.around import Around
from locant.products.packed import packed

FEW = 192  # rows up to which a perceptron's two layers, each shared out by columns, are faster than one pass by rows
HELD = 1 << 20  # numbers of a hidden layer at once, backward: they stay in the cache


def _module() -> Any:
    return built()


@constant_to_graphs
def available(dtype: torch.dtype) -> bool:
    """Whether the kernels are there, and the processor has instructions for their products of this dtype."""
    there = isinstance(built(), ModuleType)
    return there and (dtype == torch.float32 or (dtype == torch.bfloat16 and _module().multiplies_pairs()))


def _pack(weight: Tensor, dtype: torch.dtype, turned: bool) -> Tensor:
    """The weight [out, in] from in to out, or turned: from out to in."""
    outputs, inputs = weight.shape if not turned else weight.shape[::-1]
    across, down = weight.stride() if not turned else weight.stride()[::-1]
    module, weight = _module(), weight.detach().to(dtype)
    request = operands.Weight(operands.DTYPES[dtype], inputs, outputs, down, across, weight.data_ptr(), 0)
    copy = torch.empty(module.packed_numbers(request), dtype=dtype)
    module.pack(request._replace(packed=copy.data_ptr()), torch.get_num_threads())
    return copy


def _packed(weight: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    order = _module().isa(), dtype
    return packed(weight, order, dtype.itemsize, lambda: _pack(weight, dtype, False), keep)


def _plain(x: Tensor | None) -> Tensor | None:
    """A vector that is added or multiplied by, as the kernels read it."""
    if x is None or (x.dtype == torch.float32 and x.is_contiguous()):
        return x
    return x.detach().to(torch.float32).contiguous()


def _run(pass_: str, request: tuple[Any, ...]) -> None:
    getattr(_module(), pass_)(request, torch.get_num_threads())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, around: Around, keep: bool) -> Tensor:
    """x and a residual [rows, ...] contiguous."""
    y = x.new_empty(len(x), weight.shape[0])
    a, at, copy = around, operands.address, _packed(weight, x.dtype, keep)
    own = [_plain(v) for v in (bias, a.scale, a.shift, a.scale_behind, a.shift_behind, a.gain)]
    _run("linear", operands.Linear(
        operands.DTYPES[x.dtype], len(x), x.shape[1], y.shape[1], operands.ACTIVATIONS.index(activation), x.data_ptr(),
        a.centred, at(own[1]), at(own[2]), a.epsilon, copy.data_ptr(), at(own[0]), at(own[3]), at(own[4]),
        a.epsilon_behind, a.unit, a.united, at(own[5]), at(a.residual), 0, y.data_ptr(),
    ))  # fmt: skip
    return y


def perceptron(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str, around: Around,
    keep: bool, before: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x and a residual [rows, ...] contiguous; `before` [rows, hidden] is written where a gradient will be wanted."""
    if len(x) <= FEW and before is None:
        hidden = linear(x, w1, b1, activation, around.in_front(), keep)
        return linear(hidden, w2, b2, "none", around.behind(), keep)
    y = x.new_empty(len(x), w2.shape[0])
    a, at, copies = around, operands.address, (_packed(w1, x.dtype, keep), _packed(w2, x.dtype, keep))
    own = [_plain(v) for v in (b1, b2, a.scale, a.shift, a.scale_behind, a.shift_behind, a.gain)]
    _run("perceptron", operands.Perceptron(
        operands.DTYPES[x.dtype], len(x), x.shape[1], w1.shape[0], y.shape[1], operands.ACTIVATIONS.index(activation),
        x.data_ptr(), a.centred, at(own[2]), at(own[3]), a.epsilon, copies[0].data_ptr(), at(own[0]),
        copies[1].data_ptr(), at(own[1]), at(own[4]), at(own[5]), a.epsilon_behind, at(own[6]), at(a.residual),
        at(before), y.data_ptr(),
    ))  # fmt: skip
    return y


def _by(copy: Tensor, x: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b by a packed weight."""
    y, own = x.new_empty(len(x), outputs), _plain(bias)
    _run("linear", operands.Linear(
        operands.DTYPES[x.dtype], len(x), x.shape[1], outputs, 0, x.data_ptr(), True, 0, 0, 0.0, copy.data_ptr(),
        operands.address(own), 0, 0, 0.0, 0, 0, 0, 0, 0, y.data_ptr(),
    ))  # fmt: skip
    return y


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """dX = dY W."""
    return _by(_pack(weight, dy.dtype, True), dy, weight.shape[1], None)


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """dW = dYᵀ X, and db, in float32."""
    dw = torch.empty(weight.shape, dtype=torch.float32)
    db = torch.empty(len(dw), dtype=torch.float32) if bias else None
    _add_weight_gradient(dy, x, dw, db, added=False)
    return dw, db


def _add_weight_gradient(dy: Tensor, x: Tensor, dw: Tensor | None, db: Tensor | None, added: bool) -> None:
    at, dtype = operands.address, operands.DTYPES[x.dtype]
    _run("weight_gradient", operands.WeightGradient(
        dtype, len(x), x.shape[1], dy.shape[1], added, dy.data_ptr(), x.data_ptr(), at(dw), at(db)
    ))  # fmt: skip


def perceptron_gradients(
    dy: Tensor, x: Tensor, before: Tensor | None, w1: Tensor, b1: Tensor | None, w2: Tensor, activation: str,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of x, w1, b1, w2 and b2, of a chunk of rows at a time: of the hidden layer only a chunk's is formed.

    Args:
        dy: [rows, out].
        before: [rows, hidden], what the activation took; None: it is computed anew, of a chunk at a time.
        wanted: which of the five; the others are None.
    """
    # 1 both weights turned, and where sums go
    turned = _pack(w1, x.dtype, True), _pack(w2, x.dtype, True)
    straight = _pack(w1, x.dtype, False) if before is None else None
    hidden, chunk = w1.shape[0], max(512, HELD // w1.shape[0])
    shapes = x.shape, w1.shape, w1.shape[:1], w2.shape, w2.shape[:1]
    dtypes = x.dtype, *(torch.float32,) * 4  # sums over rows are kept in float32 to the end
    found = [
        torch.empty(shape, dtype=dtype) if asked else None
        for shape, dtype, asked in zip(shapes, dtypes, wanted, strict=True)
    ]
    dx, dw1, db1, dw2, db2 = found
    dh, after = (x.new_empty(min(chunk, len(x)), hidden) for _ in range(2))
    # 2 chunk by chunk: the hidden layer's gradient, dx, and what is added to the weights'
    for start in range(0, max(len(x), 1), chunk):  # without rows once, for sums of nothing
        part = slice(start, start + chunk)
        rows, given = x[part], dy[part]
        taken = _by(straight, rows, hidden, b1) if straight is not None else before[part]  # type: ignore[index]
        _run("hidden_gradient", operands.HiddenGradient(
            operands.DTYPES[x.dtype], len(rows), x.shape[1], hidden, dy.shape[1],
            operands.ACTIVATIONS.index(activation), given.data_ptr(), taken.data_ptr(), turned[0].data_ptr(),
            turned[1].data_ptr(), dh.data_ptr(), after.data_ptr(), 0 if dx is None else dx[part].data_ptr(),
        ))  # fmt: skip
        if dw1 is not None or db1 is not None:
            _add_weight_gradient(dh[: len(rows)], rows, dw1, db1, start > 0)
        if dw2 is not None or db2 is not None:
            _add_weight_gradient(given, after[: len(rows)], dw2, db2, start > 0)
    return tuple(None if one is None else one.to(x.dtype) for one in found)
