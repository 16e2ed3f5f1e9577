"""Products by oneDNN, which torch carries: what it has no kernel for in one go is done before and after by torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from locant import dispatch
from locant.products import speed
from locant.products.activations import activate
from locant.products.around import Around, finish, normalise_in_front
from locant.products.packed import packed

CHUNK = 512  # rows of a perceptron at once: the hidden layer of a chunk stays in the cache, and is never mapped anew
REPACKED = 64  # rows from which packing a weight at each call costs less than it saves

_FUSED = {
    "none": ("none", "none"), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", ""),
    "silu": ("swish", ""),
}  # fmt: skip


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, keep: bool) -> Tensor:
    """activation(x weightᵀ + bias), x [rows, in] contiguous, in x's dtype."""
    bias = None if bias is None else bias.detach().to(x.dtype)
    if len(x) == 0 or (not keep and len(x) < REPACKED):
        return activate(F.linear(x, weight.detach().to(x.dtype), bias), activation)
    copy = packed(
        weight, x.dtype, x.dtype.itemsize,
        lambda: dispatch.pack_linear(weight.detach().to(x.dtype), len(x)), keep,
    )  # fmt: skip
    return dispatch.packed_linear(x, copy, bias, *_FUSED[activation])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, around: Around, keep: bool) -> Tensor:
    """x and a residual [rows, ...] contiguous."""
    return finish(_multiply(normalise_in_front(x, around), weight, bias, activation, keep), around, owned=True)


def perceptron(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str, around: Around, keep: bool
) -> Tensor:
    """x and a residual [rows, ...] contiguous, a chunk of rows at a time."""
    out, residual = x.new_empty(len(x), w2.shape[0]), around.residual
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        hidden = _multiply(normalise_in_front(x[part], around), w1, b1, activation, keep)
        y = finish(_multiply(hidden, w2, b2, "none", keep), around._replace(residual=None), owned=True)
        torch.add(y, residual[part], out=out[part]) if residual is not None else out[part].copy_(y)
    return out


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """dX = dY W, by the transposed weight, packed anew."""
    return _multiply(dy, weight.detach().to(dy.dtype).t().contiguous(), None, "none", keep=False)


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """dW = dYᵀ X by oneDNN's product or torch's, whichever is the faster one at these sizes, and db."""
    sizes, both = (x.shape[1], dy.shape[1]), ("torch", "onednn")
    oneself = x.dtype == torch.float32 and dispatch.packs_linear()
    if oneself and len(x) and speed.fastest("weights", "float32", len(x), sizes, both) == "onednn":
        dw = dispatch.weight_gradient(dy, x, weight)
    else:
        dw = dy.t() @ x
    return dw, dy.sum(0) if bias else None
