"""The contract of a family: which classes of a library it knows, and what takes the place of their methods.

A class is known by its name and by the source of the methods that are replaced. Where the source is another one, and in
classes that are known by their shape alone, a replacement has to agree with the module's own methods first: on random
input, in float64, on maps that windows do not divide (locant.integrations.trying).
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from locant.grid import Grid
from locant.integrations.replacing import Replacement
from locant.masks import Mask
from locant.positions.position import Position


@dataclass(frozen=True)
class Attended:
    """What a module attends with, as a plan is asked for it.

    Attributes:
        heads, head_dim: of the attention.
        position: the scheme; None: there is none.
        grid: where its tokens are, if the module says so before it is called.
        mask: windows, or an order.
    """

    heads: int
    head_dim: int
    position: Position | None = None
    grid: Grid | None = None
    mask: Mask | None = None


@dataclass(frozen=True)
class Offer:
    """A replacement, and what is to be known of it.

    Attributes:
        replacement: what takes the place of which methods.
        what: the scheme, or the sizes, in words.
        trial: arguments, in float64, of a call of the module by which the replacement is tried, or several of them.
        attended: what an attention attends with; None for other parts.
        inside: the modules below that are no longer called as a whole, so that their hooks are not either.
    """

    replacement: Replacement
    what: str
    trial: Callable[[nn.Module], tuple[Any, ...] | list[tuple[Any, ...]]]
    attended: Attended | None = None
    inside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Modules of one shape in one library.

    Attributes:
        kind: "attention", "perceptron", or "block": what joins a norm and a sum with one of them.
        classes: their full names, `package.module.Class`.
        methods: what is replaced and what that calls, functions and classes of its file too: the source that `known`
            speaks of.
        offer: the offer for a module, or a sentence that says why there is none.
        known: digests of sources that were compared line by line; others have to agree with themselves first.
        parts: modules that are no longer called as a whole, by their paths, and the full name of their class, or of
            several.
        rounds: whether its own softmax is in float32 whatever comes in, so that a trial can be no nearer than that.
    """

    kind: str
    classes: tuple[str, ...]
    methods: tuple[str, ...]
    offer: Callable[[nn.Module], Offer | str]
    known: frozenset[str] = frozenset()
    parts: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    rounds: bool = False

    def changed(self, module: nn.Module) -> str | None:
        """Why a part is not what the family takes it for, as a sentence; None if all are."""
        for path, names in self.parts:
            names = (names,) if isinstance(names, str) else names
            name = " or ".join(names)
            try:
                part = module.get_submodule(path)
            except AttributeError:
                return f"it has no {path}, where {name} is expected"
            if class_name(type(part)) not in names or "forward" in vars(part):
                return (
                    f"its {path} is another than {name}, or had its forward replaced by others: it goes on being called"
                )
        return None


def class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@lru_cache(maxsize=256)
def digest(cls: Any, methods: tuple[str, ...]) -> str:
    """A digest of the source of these methods, blank lines and indentation aside; "" where there is no source.

    A name that is no method is that of a function or a class in the file of the class, or of a class above it.
    """
    files = [sys.modules.get(base.__module__) for base in cls.__mro__]
    try:
        found = [next(getattr(x, name) for x in (cls, *files) if hasattr(x, name)) for name in methods]
        sources = [textwrap.dedent(inspect.getsource(x)) for x in found]
    except (OSError, TypeError, StopIteration):
        return ""
    lines = [line.rstrip() for source in sources for line in source.splitlines() if line.strip()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def keeps_methods(cls: type, known: type, methods: tuple[str, ...]) -> bool:
    """Whether a subclass of a known class leaves these methods as they are."""
    return all(inspect.getattr_static(cls, name, None) is inspect.getattr_static(known, name, None) for name in methods)


def derived_tensors(module: nn.Module) -> list[str]:
    """Tensors that a hook makes before each call, of parameters named after them: pruning, norms of weights.

    `weight` of `weight_orig` and a mask, or of `weight_g` and `weight_v`; between calls it is that of the last one.
    """
    own = [name for name, _ in module.named_parameters(recurse=False)]
    held = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
    return [name for name in held if any(of.startswith(f"{name}_") for of in own)]


def dropout_of(module: object) -> float:
    """The probability of an nn.Dropout, now: 0 outside of training."""
    p = float(getattr(module, "p", 0.0))
    return p if getattr(module, "training", False) else 0.0
