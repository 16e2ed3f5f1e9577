"""What compiled kernels are handed, as tuples of numbers: each operand stated once, as csrc/fields.h does for C++.

`Forward` and `Gradients` here and `Layout` in locant.layout name the operands in their order, and an annotation is the
operand's kind. `check` compares them with those of the compiled module. A new operand is a line here, a line in
csrc/fields.h, and the kernels that read it.

The tuples hold addresses: whoever makes them keeps the tensors alive until the kernels have run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from locant.layout import Layout

ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu")  # by the numbers that linear.h has for them
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

Address = int  # of the first number; 0 says that there is none
Rows = tuple[Address, int, int, int, int]  # [batch, heads, tokens, channels], and its strides, counted in numbers
PerSample = tuple[Address, int]  # [batch or 1, tokens], and its stride over samples: 0 if all share one row


class Forward(NamedTuple):
    """What both passes read, and `out` and `lse`, which forward writes and backward reads."""

    dtype: int  # DTYPES, of q, k, v, out and their gradients
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    q: Rows
    k: Rows
    v: Rows
    out: Rows
    lse: Address  # [batch, heads, queries]; this and the bias are float32, or float64 beside float64
    scale: float
    table: Address  # [heads, entries]
    entries: int
    prefix_bias: Address  # [3, heads]: of prefix queries, of prefix keys, between both
    content: Rows  # what meets the vectors; 0: q
    vectors: Address  # [vector_heads, offsets, head_dim], axis by axis
    vector_heads: int  # 1: all heads meet the same
    offsets: int
    vector_bias: Address  # [vector_heads, offsets]
    content_scale: float
    valid: PerSample  # bool, of keys
    query_id: PerSample  # int64: segments
    key_id: PerSample
    free_queries: int  # prefix tokens that belong to every segment
    free_keys: int
    dropout: float
    seed: int


class Gradients(NamedTuple):
    """What backward reads and writes besides."""

    dout: Rows
    dlse: Address
    dq: Rows
    dk: Rows
    dv: Rows
    dtable: Address
    dprefix_bias: Address
    dcontent: Rows
    dvectors: Address  # [heads, offsets, head_dim]
    dvector_bias: Address


class Weight(NamedTuple):
    """A weight to pack: its number for input k and output n lies at k * input_step + n * output_step. Rows and weights
    of this and of the linear maps below are float32 or bfloat16, as `dtype` says; vectors and dw are float32."""

    dtype: int
    inputs: int
    outputs: int
    input_step: int
    output_step: int
    packed_from: Address
    packed: Address


class Linear(NamedTuple):
    """y = N(act(n(x) W + b)) ∘ gain + residual, n and N norms or nothing. Rows are contiguous."""

    dtype: int
    rows: int
    inputs: int
    outputs: int
    activation: int  # ACTIVATIONS
    x: Address  # [rows, inputs]
    centred: bool  # n is a LayerNorm; else a RMSNorm
    scale: Address  # [inputs], of n; 0: there is none
    shift: Address
    epsilon: float
    weight: Address  # packed
    bias: Address  # [outputs]
    scale_behind: Address  # [outputs], of a LayerNorm behind the product; 0: there is none
    shift_behind: Address
    epsilon_behind: float
    unit: int  # outputs that are brought to length 1 together
    united: int  # outputs, from the first, to which that is done
    gain: Address  # [outputs], before the residual is added
    residual: Address  # [rows, outputs]
    before: Address  # [rows, outputs], written: what the activation takes
    y: Address  # [rows, outputs]


class Perceptron(NamedTuple):
    """y = N(act(n(x) W1 + b1) W2 + b2) ∘ gain + residual."""

    dtype: int
    rows: int
    inputs: int
    hidden: int
    outputs: int
    activation: int
    x: Address
    centred: bool
    scale: Address
    shift: Address
    epsilon: float
    weight1: Address
    bias1: Address
    weight2: Address
    bias2: Address
    scale_behind: Address
    shift_behind: Address
    epsilon_behind: float
    gain: Address
    residual: Address
    before: Address  # [rows, hidden], written: what the activation takes
    y: Address


class WeightGradient(NamedTuple):
    """dW = dYᵀ X and db = Σ dY, added to what is there or not."""

    dtype: int
    rows: int
    inputs: int
    outputs: int
    added: bool
    dy: Address  # [rows, outputs]
    x: Address  # [rows, inputs]
    dw: Address  # [outputs, inputs]
    db: Address  # [outputs]


class HiddenGradient(NamedTuple):
    """Backward through act(h) W2, h = x W1: dh, act(h) once more, and dx."""

    dtype: int
    rows: int
    inputs: int
    hidden: int
    outputs: int
    activation: int
    dy: Address  # [rows, outputs]
    before: Address  # [rows, hidden]: h
    turned1: Address  # packed, from hidden to inputs
    turned2: Address  # packed, from outputs to hidden
    dh: Address  # [rows, hidden]
    after: Address  # [rows, hidden]: act(h)
    dx: Address  # [rows, inputs]


RECORDS: dict[str, type[Any]] = {
    "LAYOUT": Layout, "FORWARD": Forward, "GRADIENTS": Gradients, "WEIGHT": Weight, "LINEAR": Linear,
    "PERCEPTRON": Perceptron, "WEIGHT_GRADIENT": WeightGradient, "HIDDEN_GRADIENT": HiddenGradient,
}  # fmt: skip


def check(module: ModuleType) -> None:
    """Compare the operands that the compiled module reads with those that are handed to it.

    Raises:
        ImportError: if they differ: the module was built from other sources than these.
    """
    for name, record in RECORDS.items():
        kinds = {field: getattr(kind, "__forward_arg__", kind) for field, kind in record.__annotations__.items()}
        handed, read = (
            [f"{field}: {kind}" for field, kind in pairs] for pairs in (kinds.items(), getattr(module, name, ()))
        )
        for place, (one, other) in enumerate(itertools.zip_longest(handed, read, fillvalue="nothing")):
            if one != other:
                raise ImportError(
                    f"the compiled kernels have to read the operands that locant.operands hands over; number {place} "
                    f"of {name} is `{one}` here and `{other}` in {module.__file__}, which was built from other "
                    "sources. Build it again: `pip install .`, or by hand as CMakeLists.txt says."
                )


def arithmetic(x: Tensor) -> torch.dtype:
    """The dtype that is computed in, and that sums are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def of_layout(layout: Layout) -> tuple[int, ...]:
    """A layout, its arrays as addresses."""
    return tuple(x.ctypes.data if isinstance(x, np.ndarray) else x for x in vars(layout).values())


def address(x: Tensor | None) -> Address:
    return 0 if x is None else x.data_ptr()


def rows(x: Tensor | None) -> Rows:
    if x is None:
        return 0, 0, 0, 0, 0
    batch, head, token, channel = x.stride()
    return x.data_ptr(), batch, head, token, channel


def per_sample(x: Tensor | None) -> PerSample:
    return (0, 0) if x is None else (x.data_ptr(), 0 if x.shape[0] == 1 else x.stride(0))


def forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, table: Tensor | None, prefix_bias: Tensor | None,
    content: Tensor | None, vectors: Tensor | None, vector_bias: Tensor | None, valid: Tensor | None,
    query_id: Tensor | None, key_id: Tensor | None, free: Sequence[int], scale: float, content_scale: float,
    dropout: float, seed: Tensor | None,
) -> tuple[Forward, tuple[Tensor | None, ...]]:  # fmt: skip
    """The operands of a problem, and the tensors to keep alive beside those that were given."""
    bias, of_prefix, met, beside = (
        None if x is None else x.detach().to(lse.dtype).contiguous() for x in (table, prefix_bias, vectors, vector_bias)
    )
    real = None if valid is None else valid.to(torch.bool).contiguous()
    ids, key_ids = (None if x is None else x.to(torch.int64).contiguous() for x in (query_id, key_id))
    operands = Forward(
        DTYPES[q.dtype], q.shape[0], q.shape[1], k.shape[1], q.shape[3], v.shape[3],
        rows(q), rows(k), rows(v), rows(out), lse.data_ptr(), scale,
        address(bias), 0 if table is None else math.prod(table.shape[1:]), address(of_prefix),
        rows(content), address(met), 0 if met is None else met.shape[0], 0 if met is None else met.shape[1],
        address(beside), content_scale,
        per_sample(real), per_sample(ids), per_sample(key_ids), free[0], free[1],
        dropout, 0 if seed is None else int(seed.item()),
    )  # fmt: skip
    return operands, (bias, of_prefix, met, beside, real, ids, key_ids)
