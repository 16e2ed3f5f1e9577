"""How a forward is replaced: on one instance, under its own name, so that all else about the module stays.

A replaced method is a bound method in the instance's dictionary. What Python does with such a thing is what is wanted:
a deep copy binds it to the copy, and a pickle writes `getattr(module, "forward")`, which is the class's own when it is
read. What the method needs beside the module lies in the same dictionary as `_locant`, is copied with it, and is
never saved.

Tracers that write a program down from Python (torch.jit.trace and the ONNX export on it, torch.fx, torch.jit.script)
get the class's own methods: what they write runs where Locant is not installed, and their sizes are no numbers.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType, NoneType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
STATE = "_locant"
SCRIPTED = "__prepare_scriptable__"  # what torch.jit.script asks a module for before it reads it


class State:
    """What a replaced method needs beside its module. A pickle of it is None."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        new = State()
        memo[id(self)] = new
        vars(new).update(copy.deepcopy(vars(self), memo))
        return new

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return NoneType, ()


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a module's methods.

    Attributes:
        methods: plain functions of the module, by the name that they take over, which is their own `__name__` too;
            with a path before it, of a module below.
        state: what they find as `module._locant`.
    """

    methods: dict[str, Callable[..., Any]]
    state: State | None = None

    def __post_init__(self) -> None:
        named = all(name.rpartition(".")[2] == function.__name__ for name, function in self.methods.items())
        assert named, "a pickle names a method by its function"

    def put(self, module: nn.Module) -> Callable[[], None]:
        """Replace, and return what puts everything back."""
        places = [(module.get_submodule(name.rpartition(".")[0]), function) for name, function in self.methods.items()]
        before = [
            (place, dict(vars(place))) for place in {id(x): x for x in (module, *(p for p, _ in places))}.values()
        ]
        for place, function in places:
            vars(place)[function.__name__] = MethodType(
                _standing_in(function, getattr(type(place), function.__name__)), place
            )
        if self.state is not None:
            vars(module)[STATE] = self.state
        for place, _ in before:
            vars(place)[SCRIPTED] = _Plain(place)
        names = {*(function.__name__ for function in self.methods.values()), STATE, SCRIPTED}

        def put_back() -> None:
            for place, own in before:
                for name in names:
                    vars(place).pop(name, None)
                    if name in own:
                        vars(place)[name] = own[name]

        return put_back


ROOT = Replacement({})  # of a model whose parts are replaced: nothing of its own


@functools.lru_cache(maxsize=256)
def _standing_in(function: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the signature of the class's own method, which runs while a program is written down from Python.

    Libraries read it: what a forward does not name, transformers' `generate` does not hand it, a mask among them.
    """

    @functools.wraps(function)
    def method(self: Any, *inputs: Any, **named: Any) -> Any:
        if torch.jit.is_tracing() or any(isinstance(x, torch.fx.Proxy) for x in (*inputs, *named.values())):
            return getattr(type(self), function.__name__)(self, *inputs, **named)
        if function.__name__ == "forward" and _checkpoints(self):
            if any(named.get(name) is not None for name in ("cache", "layer_past", "past_key_values")):
                return type(self).forward(self, *inputs, **named)  # it drops a cache, which would be filled twice
            return self._gradient_checkpointing_func(functools.partial(function, self, **named), *inputs)
        return function(self, *inputs, **named)

    method.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    return method


def _checkpoints(module: Any) -> bool:
    """Whether its class's forward would keep nothing for backward and run again there: transformers wraps it."""
    if not (module.training and torch.is_grad_enabled() and getattr(module, "gradient_checkpointing", False)):
        return False  # first what costs nothing: a module that has no such name looks for it everywhere
    code = getattr(type(module).forward, "__code__", None)  # of the wrapper, whatever name it took over
    wraps = getattr(code, "co_name", "") == "forward_with_checkpointing"
    return wraps and hasattr(module, "_gradient_checkpointing_func")


def runs(module: nn.Module, name: str, function: Callable[..., Any]) -> bool:
    """Whether a method of the module was replaced by this function."""
    found = getattr(vars(module).get(name), "__func__", None)
    return getattr(found, "__wrapped__", None) is function


def state_of(module: nn.Module) -> State | None:
    """What its replaced forward needs, as long as that is the one which runs."""
    found = getattr(vars(module).get("forward"), "__func__", None)
    ours = getattr(found, "__module__", "").startswith("locant.integrations")
    return vars(module).get(STATE) if ours else None


class _Plain:
    """A module as its class has it, on the same tensors. A pickle of it is the module alone."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self) -> nn.Module:
        return plain_copy(self.module)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Plain:
        return _Plain(copy.deepcopy(self.module, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial, (copy.copy, self.module)


def deep_copy(model: Module, shared: dict[int, Any] | None = None) -> Module:
    """A copy of modules that copy.deepcopy may refuse: what a call left in them (a pruned weight) goes as its numbers.

    Args:
        shared: what is not copied, by its id.
    """
    left = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in left} | (shared or {}))


def plain_copy(model: nn.Module) -> nn.Module:
    """The model with the methods of its classes, on the same parameters and buffers."""
    plain = deep_copy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for module in plain.modules():
        restore(module)
    return plain


def is_replaced(module: nn.Module) -> bool:
    """Whether a method of it is one of ours."""
    return bool(_ours(module))


def restore(module: nn.Module) -> None:
    """Give a module, such as a copy, the methods of its class back."""
    for name in (*_ours(module), STATE, SCRIPTED):
        vars(module).pop(name, None)


def _ours(module: nn.Module) -> list[str]:
    bound = [(name, value) for name, value in vars(module).items() if isinstance(value, MethodType)]
    return [name for name, value in bound if value.__func__.__module__.startswith("locant.integrations")]
