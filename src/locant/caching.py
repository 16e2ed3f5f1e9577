"""Results that are remembered between calls, and worked out anew where a graph is traced."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def remember(most: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the last `most` results are kept; a graph is traced once, and its tracer warns of caches."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        remembered = lru_cache(maxsize=most)(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            return remembered(*args, **kwargs)  # type: ignore[arg-type]  # hashable or a TypeError, as lru_cache says

        return call

    return decorate
