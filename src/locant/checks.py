"""Checks of arguments that many share: a ValueError of what was needed, what came and what to do, or nothing.

Nothing is coerced: True is no whole number, 4.0 is none, and an array is no tensor.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
ADVICE: dict[type, Callable[[object], str]] = {}  # what to write instead of a value that is none of that class


def is_whole(value: object) -> bool:
    """A plain int, or the size that a graph leaves open."""
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def advice_for_tracers(value: object) -> str:
    """What to do instead of a tracer that hands over symbols where tensors or numbers were; "" for anything else."""
    if isinstance(value, torch.fx.Proxy):
        return "torch.fx.symbolic_trace hands over symbols, of which nothing may be asked: use torch.export.export."
    if isinstance(value, Tensor) and torch.jit.is_tracing():
        return (
            "torch.jit.trace and torch.onnx.export(dynamo=False) make tensors of sizes: use torch.export.export, "
            "torch.onnx.export(dynamo=True)."
        )
    return ""


def is_number(value: object) -> bool:
    """A plain int or float that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -math.inf < value < math.inf  # compared: graphs that leave the number open trace no isfinite


def check_types(function: Callable[P, R]) -> Callable[P, R]:
    """Checks every argument of a constructor or function against its annotation, before it runs.

    For what runs once: constructors, builders. Annotations that say nothing of a type (Any, callables) are passed over.
    """
    names = tuple(inspect.signature(function).parameters)
    if names in ((), ("self",), ("cls",)):  # nothing to check, and graphs cannot trace how annotations are read
        return function
    kinds = functools.cache(lambda: get_type_hints(function))

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        owner = function.__name__
        if names[:1] in (("self",), ("cls",)):
            name = (args[0] if names[0] == "cls" else type(args[0])).__name__  # type: ignore[attr-defined]
            owner = name if owner == "__init__" else f"{name}.{owner}"
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in kinds():
                check_type(owner, name, value, kinds()[name])
        return function(*args, **kwargs)

    return checked


def check_type(owner: str, name: str, value: object, kind: Any) -> None:
    """A value of the annotation `kind`, or a ValueError that says what to write instead."""
    if not _fits(value, kind):
        raise ValueError(f"{owner} needs `{name}` as {_words(kind)}; got {description(value)}. {_advice(value, kind)}")


def _fits(value: object, kind: Any) -> bool:
    """Whether `value` is what the annotation says; shapes and dtypes of tensors are left to whoever asked."""
    if kind is Any:
        return True
    if kind in PLAIN:
        return PLAIN[kind][0](value)
    origin, members = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, member) for member in members)
    if origin is Literal:
        return isinstance(value, str)  # which words there are is said by whoever knows what they do
    if origin is tuple:
        if not isinstance(value, tuple | list) or (members[-1] is not ... and len(members) != len(value)):
            return False
        return all(_fits(item, members[0]) for item in value)
    if hasattr(kind, "array_type"):  # jaxtyping's
        return isinstance(value, Tensor)
    return not isinstance(kind, type) or isinstance(value, kind)


def _words(kind: Any) -> str:
    """An annotation in words."""
    if kind in PLAIN:
        return PLAIN[kind][1]
    origin, members = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, members)))
    if origin is Literal:
        return " or ".join(map(repr, members))
    if origin is tuple:
        many = "" if members[-1] is ... else f"{len(members)} "
        plural = {int: "whole numbers", float: "numbers"}.get(members[0], f"{members[0].__name__}s")
        return f"a tuple of {many}{plural}"
    if hasattr(kind, "array_type") or kind is Tensor:
        return "a tensor"
    return f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"


def _advice(value: object, kind: Any) -> str:
    """What to do instead."""
    if traced := advice_for_tracers(value):
        return traced
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for one in (one for one in kinds if isinstance(one, type)):
        for known, advice in ADVICE.items():
            if issubclass(one, known):
                return advice(value)
        if isinstance(value, type) and issubclass(value, one):
            return f"That is the class: make one, {value.__name__}(...)."
        if one is Tensor or hasattr(one, "array_type"):
            return "Convert it first: torch.as_tensor(...)."
    return f"Pass {_words(kinds[0])}."


PLAIN: dict[Any, tuple[Callable[[object], bool], str]] = {
    int: (is_whole, "a whole number"),
    float: (is_number, "a number"),
    bool: (lambda value: isinstance(value, bool), "True or False"),
    str: (lambda value: isinstance(value, str), "a string"),
    type(None): (lambda value: value is None, "None"),
}


def check_whole(
    owner: str, name: str, value: object, *, least: int | None = 1, most: int | None = None, advice: str = ""
) -> None:
    """A whole number, from `least` to `most`."""
    if is_whole(value):
        assert isinstance(value, int | torch.SymInt)
        if (least is None or value >= least) and (most is None or value <= most):
            return
    bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
    raise ValueError(
        f"{owner} needs `{name}` as a whole number{bounds}; got {description(value)}. "
        f"{advice or ('Choose one in that range.' if is_whole(value) else 'Pass a plain int.')}"
    )


def check_number(
    owner: str,
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    advice: str = "",
) -> None:
    """A finite number between bounds: `least` and `most` belong to them, `above` and `below` do not."""
    if is_number(value):
        assert isinstance(value, int | float)
        low = (least is None or value >= least) and (above is None or value > above)
        if low and (below is None or value < below) and (most is None or value <= most):
            return
    words = {"of at least": least, "above": above, "below": below, "of at most": most}
    bounds = " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)
    raise ValueError(
        f"{owner} needs `{name}` as a number{bounds and ' ' + bounds}; got {description(value)}. "
        f"{advice or ('Choose one in that range.' if is_number(value) else 'Pass a plain float.')}"
    )


def check_tensor(owner: str, name: str, value: object, needed: str = "a tensor") -> None:
    """A torch tensor."""
    if not isinstance(value, Tensor):
        advice = advice_for_tracers(value) or "Convert it first: torch.as_tensor(...)."
        raise ValueError(f"{owner} needs `{name}` as {needed}; got {description(value)}. {advice}")


def description(value: object) -> str:
    """What came, in a few words: a tensor by dtype and shape, a class by its name, what is long by its type."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value)
    if kind.__module__.split(".")[0] == "numpy":
        return f"numpy's {kind.__name__} of shape {list(getattr(value, 'shape', ()))}"
    text = " ".join(repr(value).split())
    if text.startswith("<"):  # an address says nothing
        return f"an object of type {kind.__name__}"
    return text if len(text) <= 60 else f"{kind.__name__} {text[:40]}…"
