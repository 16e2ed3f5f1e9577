"""What torch tells under private names alone, in this file and no other; each question has a public way round.

    private name                         asked for                                 where it is missing
    _C._dispatch_keys, and               whether a call may skip the dispatcher    it goes through the registered
    _C._len_torch_dispatch_stack,        (0.16 ms), as no mode, subclass,          operator: the same numbers, later
    _C._len_torch_function_stack,        tracer or profiler is active
    _C._get_tracing_state,
    _C._autograd._profiler_enabled
    _C._are_functorch_transforms_active  whether torch.func transforms this call   a Function without setup_context is
                                                                                   applied, which torch then refuses
    Function._dynamo_marked_constant     a constant to torch.compile, without      torch.compiler.assume_constant_result
                                         importing its compiler (a second)
    Module._forward_hooks, ..., and      whether a module's weight may be read     the module is called
    nn.modules.module._has_any_global_hook      in place of calling it
    fx.experimental.symbolic_shapes      whether a size is a symbol                graphs are made for one size
    ops.aten._assert_async               a check in an exported program            the program does not check
    ops.mkldnn._linear_pointwise,        linear maps with packed weights on CPUs   torch's own linear: slower
    ops.mkldnn._reorder_linear_weight,
    ops.aten.mkldnn_linear_backward_weights
    utils._pytree                        grids and masks as arguments of graphs    they are arguments of compiled graphs
                                                                                   still, and not of exported ones

A name may vanish with any release of torch. LOCANT_PUBLIC_TORCH=1 in the environment takes all of them for missing: the
tests run so as well, and it is the first thing to try where a new torch breaks something here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import TorchDispatchMode  # documented, though the module that defines it is private

__all__ = [
    "MISSING",
    "TorchDispatchMode",
    "assert_in_graph",
    "constant_to_graphs",
    "hooks_of",
    "is_exporting",
    "is_open",
    "is_transformed",
    "is_unwatched",
    "map_tree",
    "operators",
    "pack_linear",
    "packed_linear",
    "packs_linear",
    "register_constant",
    "register_node",
    "tree_leaves",
    "weight_gradient",
]


MISSING: list[str] = []  # the names below that this torch lacks: `locant info` lists them
_PUBLIC = os.environ.get("LOCANT_PUBLIC_TORCH") == "1"
Asked = TypeVar("Asked", bound=Callable[..., Any])


def _private(path: str) -> Any:
    """What torch has under `torch.{path}`, or None."""
    found: Any = None if _PUBLIC else torch
    for name in path.split("."):
        found = getattr(found, name, None)
    if found is None:
        MISSING.append(f"torch.{path}")
    return found


# --- what is going on around a call -----------------------------------------------------------------------------------


def constant_to_graphs(function: Asked) -> Asked:
    """While a graph is traced, the function is called by Python, and the graph holds what it returned."""
    if _PUBLIC:
        return torch.compiler.assume_constant_result(function)
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_to_graphs
def is_exporting() -> bool:
    """Whether torch.export is at work. Asked of Python while a graph is traced: dynamo of torch 2.10 answers True."""
    return torch.compiler.is_exporting()


def is_open(size: int) -> bool:
    """Whether a graph that is being traced leaves this size open: a symbol, which questions make a constant."""
    if _PUBLIC or not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes a while, and whoever exports has it

    return not has_static_value(size)


class _WithoutSetup(torch.autograd.Function):
    """A Function in the first style, which torch.func refuses to transform."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:  # type: ignore[override]
        return dx


@constant_to_graphs
def _is_function_refused() -> bool:
    try:
        _WithoutSetup.apply(torch.empty(0, device="cpu"))
    except (RuntimeError, AttributeError):  # the latter: torch itself misses its name; then better safe
        return True
    return False


is_transformed: Callable[[], bool] = _private("_C._are_functorch_transforms_active") or _is_function_refused

_keys = _private("_C._dispatch_keys")  # of a tensor: its device, and whether it is negated, fake, traced, ...
_WATCHERS = tuple(
    _private(path)
    for path in (
        "_C._len_torch_dispatch_stack", "_C._len_torch_function_stack", "_C._get_tracing_state",
        "_C._autograd._profiler_enabled",
    )
)  # fmt: skip


def _plain_keys() -> frozenset[int]:
    """The keys of plain tensors, and of those that inference_mode makes, which autograd knows nothing of."""
    assert _keys is not None
    with torch.inference_mode():  # device="cpu" is explicit: the import may run under torch.set_default_device
        inferred = torch.empty(0, device="cpu")
    return frozenset(_keys(x).raw_repr() for x in (torch.empty(0, device="cpu"), inferred))


_PLAIN = None if None in (_keys, *_WATCHERS) else _plain_keys()


def is_unwatched(arguments: Sequence[Any]) -> bool:
    """Whether skipping the dispatcher changes nothing: no graph is traced, no mode, subclass or profiler is active."""
    if torch.compiler.is_compiling() or _PLAIN is None or any(active() for active in _WATCHERS):
        return False
    tensors = (x for x in arguments if isinstance(x, Tensor))
    return all(type(x) in (Tensor, nn.Parameter) and _keys(x).raw_repr() in _PLAIN for x in tensors)


_all_hooked = _private("nn.modules.module._has_any_global_hook")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks_of(module: nn.Module) -> list[Callable[..., Any]] | None:
    """What torch calls beside the module's forward; None where it does not tell, or where all modules are hooked."""
    held = vars(module)
    own = [held.get(name) for name in _HOOKS]
    if _all_hooked is None or _all_hooked() or None in own:
        return None
    return [hook for hooks in own if hooks for hook in hooks.values()]


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of it run a graph: it is torch.compile's wrapper, or was compiled in place."""
    wrapper = type(module).__name__ == "OptimizedModule"
    return wrapper or vars(module).get("_compiled_call_impl") is not None


_assert_async = _private("ops.aten._assert_async.msg")


def assert_in_graph(condition: Tensor, sentence: str) -> None:
    """Fails with the sentence when a program that is being exported runs and `condition` (one bool) is false."""
    if _assert_async is not None:
        _assert_async(condition, sentence)


def operators(*names: str) -> set[Any]:
    """Those of torch's own operators that this torch has."""
    return {getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)}


# --- oneDNN's products -----------------------------------------------------------------------------------------------

_pack_linear = _private("ops.mkldnn._reorder_linear_weight")
_packed_linear = _private("ops.mkldnn._linear_pointwise")


_multiplies_bfloat16 = _private("ops.mkldnn._is_mkldnn_bf16_supported")


@constant_to_graphs
def packs_linear(dtype: torch.dtype = torch.float32) -> bool:
    """Whether torch was built with oneDNN's packed linear maps, and they are not switched off.

    In bfloat16 the processor has to have the instructions: torch raises from packing where it has not (AVX2 alone).
    """
    all_there = None not in (_pack_linear, _packed_linear, _weight_gradient)
    there = all_there and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    if dtype != torch.bfloat16 or not there:
        return there
    return _multiplies_bfloat16 is not None and bool(_multiplies_bfloat16())


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """A copy of a weight [out, in] in the order in which products of about so many rows read it."""
    return _pack_linear(weight, rows)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str, algorithm: str) -> Tensor:
    """activation(x weightᵀ + bias) by a packed weight."""
    return _packed_linear(x, packed, bias, activation, [], algorithm)


_weight_gradient = _private("ops.aten.mkldnn_linear_backward_weights")


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """dyᵀ x by oneDNN, dy [rows, out], x [rows, in]."""
    return _weight_gradient(dy.to_mkldnn(), x.to_mkldnn(), weight, False)[0].to_dense()


# --- values made of tensors -------------------------------------------------------------------------------------------

_pytree = _private("utils._pytree")
_NODES: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {}


def register_constant(kind: type) -> None:
    """Objects of this kind are constants of a graph that takes them as arguments."""
    if _pytree is not None:
        _pytree.register_constant(kind)


def register_node(
    kind: type, name: str, keys: Sequence[str], flatten: Callable[[Any], Any], unflatten: Callable[[Any, Any], Any]
) -> None:
    """Objects of this kind hold tensors, so that they pass compile, export and checkpointing.

    Args:
        name: what an exported program calls the kind.
        keys: the names of its children, in their order.
        flatten: object → (children, what else it holds).
        unflatten: the inverse, of both.
    """
    _NODES[kind] = flatten, unflatten
    if _pytree is None:
        return

    def with_keys(value: Any) -> tuple[list[Any], Any]:
        children, rest = flatten(value)
        return [(_pytree.GetAttrKey(key), child) for key, child in zip(keys, children, strict=True)], rest

    _pytree.register_pytree_node(kind, flatten, unflatten, serialized_type_name=name, flatten_with_keys_fn=with_keys)


def map_tree(change: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree of tuples, lists, dicts and registered kinds, its leaves changed."""
    if _pytree is not None:
        return _pytree.tree_map(change, tree)
    if type(tree) in _NODES:
        flatten, unflatten = _NODES[type(tree)]
        children, rest = flatten(tree)
        return unflatten([map_tree(change, child) for child in children], rest)
    if isinstance(tree, dict):
        return type(tree)((key, map_tree(change, child)) for key, child in tree.items())
    if isinstance(tree, list | tuple):
        children = [map_tree(change, child) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    return change(tree)


def tree_leaves(tree: Any) -> Iterable[Any]:
    """What `map_tree` changes."""
    if _pytree is not None:
        return list(_pytree.tree_iter(tree))
    found: list[Any] = []
    map_tree(found.append, tree)
    return found
