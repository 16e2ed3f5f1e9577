"""The compiled kernels as torch operators: `locant::attend`, `locant::attend_packed`, and their gradients.

    out, lse = attend(q, k, v, table, rows, content, vectors, vector_bias, valid, query_id, key_id, described, free,
                      scale, content_scale, dropout, seed)

q [batch, heads, queries, head_dim], k and v with kv_heads, any strides; or qkv [batch, *grid, 3, heads, head_dim].
`table [heads, *offsets]`, `rows [3, heads]` (query_prefix, key_prefix, both) are the bias; `content [batch, heads,
queries, head_dim]`, or q where it is None, meets `vectors [heads or 1, offsets, head_dim]`, axis by axis, beside
`vector_bias [heads or 1, offsets]`, times `content_scale`. `valid [batch or 1, keys]` is the padding, `query_id` and
`key_id` are the segments, `free` counts the prefix queries and keys that belong to every segment; `described` is the
layout (locant.layout). `seed` is drawn outside: checkpointing, compile, resume repeat it.

On a CPU they are those of csrc, on a GPU Triton's (locant.gpu), which TRITON_INTERPRET=1 runs on CPU tensors as well.

out lies in memory as [batch, queries, heads, value_dim], ready for a projection; lse is float32 (float64 for float64).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from locant import operands
from locant.dispatch import constant_to_graphs, is_unwatched
from locant.gpu.chips import interpreted
from locant.layout import Layout, layout


@lru_cache(maxsize=1)
def built() -> ModuleType | str:
    """The compiled module, or a sentence that says why there is none.

    Raises:
        ImportError: if there is one that was built for other operands than these.
    """
    try:
        module = importlib.import_module("locant._native")
    except ImportError as error:
        return f"the compiled kernels are not there ({error}); install Locant where a C++ compiler is"
    operands.check(module)
    return module


@constant_to_graphs
def missing() -> str | None:
    """Why there is no compiled module, or None; a constant to whoever traces it. Warns when it is first asked."""
    found = built()
    return None if isinstance(found, ModuleType) else _warned(found)


@lru_cache(maxsize=1)
def _warned(sentence: str) -> str:
    warnings.warn(
        f"{sentence}. Until then attention on CPUs runs on torch's kernels, exact and slower; `locant info` shows what "
        "there is.",
        RuntimeWarning,
        stacklevel=2,
    )
    return sentence


def _module() -> ModuleType:
    module = built()
    assert isinstance(module, ModuleType), "an operator ran without the module that it is made of"
    return module


@lru_cache(maxsize=64)
def _native_layout(described: tuple[int, ...]) -> tuple[Any, Layout]:
    """A layout as the kernels read it, beside the arrays that it points to."""
    own = layout(described)
    return _module().Layout(operands.of_layout(own)), own


def _by_triton(q: Tensor) -> bool:
    return q.is_cuda or interpreted()


def _device_of(q: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be that of the tensors."""
    return torch.cuda.device(q.device) if q.is_cuda else nullcontext()


def _launch() -> ModuleType:
    """Triton, and with it seconds of importing, comes with the first call on a GPU."""
    return importlib.import_module("locant.gpu.launch")


def _new_out(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    out = q.new_empty(batch, queries, heads, v.shape[3]).transpose(1, 2)
    return out, torch.empty(batch, heads, queries, dtype=operands.arithmetic(q), device=q.device)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Tensor | None, content: Tensor | None,
    vectors: Tensor | None, vector_bias: Tensor | None, valid: Tensor | None, query_id: Tensor | None,
    key_id: Tensor | None, described: Sequence[int], free: Sequence[int], scale: float, content_scale: float,
    dropout: float, seed: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if _by_triton(q):
        with _device_of(q):
            return _launch().forward(
                q, k, v, table, rows, valid, query_id, key_id, described, free, scale, dropout, seed
            )  # fmt: skip
    native, _ = _native_layout(tuple(described))
    out, lse = _new_out(q, v)
    problem, _kept = operands.forward(
        q, k, v, out, lse, table, rows, content, vectors, vector_bias, valid, query_id, key_id, free, scale,
        content_scale, dropout, seed,
    )  # fmt: skip
    _module().forward(native, problem, torch.get_num_threads())
    return out, lse


def _backward(
    into: tuple[Tensor, Tensor, Tensor], dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, learns: bool,
    learns_vectors: bool, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Tensor | None,
    content: Tensor | None, vectors: Tensor | None, vector_bias: Tensor | None, valid: Tensor | None,
    query_id: Tensor | None, key_id: Tensor | None, described: Sequence[int], free: Sequence[int], scale: float,
    content_scale: float, dropout: float, seed: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Writes the gradients of q, k and v into `into`, and returns those of the bias and of content.

    These are table, rows, content, vectors and vector_bias, empty if they are not wanted or not there.
    """
    if _by_triton(q):
        with _device_of(q):
            found = _launch().backward(
                into, dout, dlse, out, lse, learns, q, k, v, table, rows, valid, query_id, key_id, described, free,
                scale, dropout, seed,
            )  # fmt: skip
        return *found, *(lse.new_empty(0) for _ in range(3))
    native, own = _native_layout(tuple(described))
    problem, _kept = operands.forward(
        q, k, v, out, lse, table, rows, content, vectors, vector_bias, valid, query_id, key_id, free, scale,
        content_scale, dropout, seed,
    )  # fmt: skip
    bias = _fake_gradients(lse, learns, learns_vectors, table, rows, content, vectors, vector_bias)
    dtable, drows, dcontent, dvectors, dnumbers = bias
    if dvectors.numel() and vectors is not None and vectors.shape[0] != q.shape[1]:  # one for all heads: summed below
        dvectors, dnumbers = (x.new_empty(q.shape[1], *x.shape[1:]) if x.numel() else x for x in (dvectors, dnumbers))
    dlse = None if dlse is None else dlse.to(lse.dtype).contiguous()
    dq, dk, dv = into
    if own.cells == 0:
        dk.zero_(), dv.zero_()
    at = [operands.address(x) if x.numel() else 0 for x in (dtable, drows, dvectors, dnumbers)]
    gradients = operands.Gradients(
        operands.rows(dout), operands.address(dlse), operands.rows(dq), operands.rows(dk), operands.rows(dv),
        at[0], at[1], operands.rows(None if content is None else dcontent), at[2], at[3],
    )  # fmt: skip
    module = _module()
    partial = torch.empty(module.backward_partial_bytes(native, problem, gradients), dtype=torch.uint8)
    module.backward(native, problem, gradients, partial.data_ptr(), torch.get_num_threads())
    dvectors, dnumbers = (
        x.sum(0, keepdim=True) if x.numel() and own is not None and len(own) != len(x) else x
        for x, own in ((dvectors, vectors), (dnumbers, vector_bias))
    )
    return dtable, drows, dcontent, dvectors, dnumbers


def _unpacked(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[batch, *grid, 3, heads, head_dim] as three views [batch, heads, tokens, head_dim]."""
    q, k, v = qkv.flatten(1, -4).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


_REST = (
    "Tensor? table, Tensor? rows, Tensor? content, Tensor? vectors, Tensor? vector_bias, Tensor? valid, "
    "Tensor? query_id, Tensor? key_id, SymInt[] described, SymInt[] free, float scale, float content_scale, "
    "float dropout, Tensor? seed"
)
_LIBRARY = torch.library.Library("locant", "DEF")
_LIBRARY.define(f"attend(Tensor q, Tensor k, Tensor v, {_REST}) -> (Tensor, Tensor)")
_LIBRARY.define(f"attend_packed(Tensor qkv, {_REST}) -> (Tensor, Tensor)")
_GIVEN = "Tensor dout, Tensor? dlse, Tensor out, Tensor lse, bool learns, bool learns_vectors"
_GRADIENTS = ", ".join(["Tensor"] * 5)  # of table, rows, content, vectors, vector_bias
_LIBRARY.define(
    f"attend_backward({_GIVEN}, Tensor q, Tensor k, Tensor v, {_REST}) -> (Tensor, Tensor, Tensor, {_GRADIENTS})"
)
_LIBRARY.define(f"attend_packed_backward({_GIVEN}, Tensor qkv, {_REST}) -> (Tensor, {_GRADIENTS})")


def _attend_backward(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, learns: bool, learns_vectors: bool, q: Tensor,
    k: Tensor, v: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    into = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    return (*into, *_backward(into, dout, dlse, out, lse, learns, learns_vectors, q, k, v, *rest))


def _attend_packed(qkv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _forward(*_unpacked(qkv), *rest)


def _attend_packed_backward(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, learns: bool, learns_vectors: bool, qkv: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    into = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)  # contiguous: its parts are views
    return (into, *_backward(_unpacked(into), dout, dlse, out, lse, learns, learns_vectors, *_unpacked(qkv), *rest))


def _fake_gradients(
    lse: Tensor, learns: bool, learns_vectors: bool, table: Tensor | None, rows: Tensor | None, content: Tensor | None,
    vectors: Tensor | None, vector_bias: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    sizes = [x.shape if learns and x is not None else (0,) for x in (table, rows)]
    sizes += [x.shape if learns_vectors and x is not None else (0,) for x in (vectors, vector_bias)]
    dtable, drows, *met = (lse.new_empty(size) for size in sizes)  # each of its own: operators return no views
    return dtable, drows, lse.new_empty(0) if content is None else torch.empty_like(content), *met


def _fake_backward(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, learns: bool, learns_vectors: bool, q: Tensor,
    k: Tensor, v: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    into = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    return (*into, *_fake_gradients(lse, learns, learns_vectors, *rest[:5]))


def _fake_packed_backward(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, learns: bool, learns_vectors: bool, qkv: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return qkv.new_empty(qkv.shape), *_fake_gradients(lse, learns, learns_vectors, *rest[:5])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors = [x if isinstance(x, Tensor) else None for x in inputs]
    ctx.save_for_backward(*tensors, *output)
    ctx.plain = [None if isinstance(x, Tensor) else x for x in inputs]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None, operator: Any, leading: int) -> tuple[Any, ...]:
    *saved, out, lse = ctx.saved_tensors
    inputs = [plain if tensor is None else tensor for tensor, plain in zip(saved, ctx.plain, strict=True)]
    if dout is None:
        dout = torch.zeros_like(out)
    needs = ctx.needs_input_grad[leading : leading + 5]
    found = operator(dout, dlse, out, lse, any(needs[:2]), any(needs[3:]), *inputs)
    own, bias = found[:leading], found[leading:]
    bias = [dx.to(x.dtype) if dx.numel() else None for x, dx in zip(inputs[leading : leading + 5], bias, strict=True)]
    return (*own, *bias, *[None] * (len(inputs) - leading - 5))


def _attend_gradient(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    direct = not torch.is_grad_enabled() and is_unwatched((dout, dlse))
    return _differentiate(ctx, dout, dlse, _attend_backward if direct else torch.ops.locant.attend_backward, 3)


def _packed_gradient(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    direct = not torch.is_grad_enabled() and is_unwatched((dout, dlse))
    operator = _attend_packed_backward if direct else torch.ops.locant.attend_packed_backward
    return _differentiate(ctx, dout, dlse, operator, 1)


def _called(name: str, run: Callable[..., Any], gradient: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The operator, past torch's dispatcher where nobody would miss it: that takes longer than a small problem."""

    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        output = run(*arguments)
        _save(ctx, arguments, output)
        return output

    body = {"forward": staticmethod(forward), "backward": staticmethod(gradient)}
    function: Any = type(name, (torch.autograd.Function,), body)

    def call(*arguments: Any) -> tuple[Tensor, Tensor]:
        if not is_unwatched(arguments):
            return getattr(torch.ops.locant, name)(*arguments)
        learns = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
        return function.apply(*arguments) if learns else run(*arguments)

    return call


attend = _called("attend", _forward, _attend_gradient)
attend_packed = _called("attend_packed", _attend_packed, _packed_gradient)

for _name, _run, _fake in (
    ("attend", _forward, lambda q, k, v, *rest: _new_out(q, v)),
    ("attend_packed", _attend_packed, lambda qkv, *rest: _new_out(*_unpacked(qkv)[::2])),
    ("attend_backward", _attend_backward, _fake_backward),
    ("attend_packed_backward", _attend_packed_backward, _fake_packed_backward),
):
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _run, _device)
    torch.library.register_fake(f"locant::{_name}", _fake, lib=_LIBRARY)


def _products(q: tuple[int, ...], rest: Sequence[Any], widths: int, of_terms: int) -> int:
    """FLOPs of matrix products of so many channels in all, and of so many of queries and vectors.

    q is [batch, heads, ...], and the rest as in the operators.
    """
    vectors, described = rest[3], tuple(rest[8])
    own = layout(described)
    met = 0 if vectors is None else own.queries * vectors[1] * vectors[2]
    return 2 * q[0] * q[1] * (own.scores * widths + of_terms * met)


@register_flop_formula(torch.ops.locant.attend)
def _attend_flops(*sizes: Any, **_: Any) -> int:
    q, _k, v, *rest = sizes
    return _products(q, rest, q[3] + v[3], 1)


@register_flop_formula(torch.ops.locant.attend_packed)
def _packed_flops(*sizes: Any, **_: Any) -> int:
    qkv, *rest = sizes
    return _products((qkv[0], qkv[-2]), rest, 2 * qkv[-1], 1)


@register_flop_formula(torch.ops.locant.attend_backward)
def _attend_backward_flops(*sizes: Any, **_: Any) -> int:
    """Scores again, the gradients of weights, and those of v, q and k: five products; three of vectors."""
    q, _k, v, *rest = sizes[6:]
    return _products(q, rest, 3 * q[3] + 2 * v[3], 3)


@register_flop_formula(torch.ops.locant.attend_packed_backward)
def _packed_backward_flops(*sizes: Any, **_: Any) -> int:
    qkv, *rest = sizes[6:]
    return _products((qkv[0], qkv[-2]), rest, 5 * qkv[-1], 3)


def _no_second(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "the compiled kernels have gradients of the first order; a gradient of a gradient was asked for. "
        'Ask for kernel="reference" in this call.'
    )


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """A second gradient is refused: nothing is kept for it."""


for _name in ("attend_backward", "attend_packed_backward"):
    torch.library.register_autograd(f"locant::{_name}", _no_second, setup_context=_save_nothing, lib=_LIBRARY)
torch.library.register_autograd("locant::attend", _attend_gradient, setup_context=_save, lib=_LIBRARY)
torch.library.register_autograd("locant::attend_packed", _packed_gradient, setup_context=_save, lib=_LIBRARY)
