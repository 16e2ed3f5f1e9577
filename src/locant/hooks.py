"""Who looks on while attention is called, or stands in for it: scoped, so that nobody else notices.

A hook is called with the call and with `proceed`, which runs it and may be left alone:

    def hook(call, proceed): ...; return proceed()

Counting, recording and checking need just this. The hook of the outer `with` is called first. They belong to a context
(PEP 567): other threads and other tasks do not see them. In a traced graph none is called: the graph outlives
the `with`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from locant.call import Call
from locant.kernels.kernel import Output

Hook = Callable[[Call, Callable[[], Output]], Output]

_HOOKS: ContextVar[tuple[Hook, ...]] = ContextVar("locant_hooks", default=())


@contextmanager
def attending(hook: Hook) -> Iterator[None]:
    """While this lasts, every attention of this context passes through `hook`."""
    token = _HOOKS.set((*_HOOKS.get(), hook))
    try:
        yield
    finally:
        _HOOKS.reset(token)


@dataclass(frozen=True)
class Regrouped:
    """Tokens that were cut from a map and stand along the batch.

    Attributes:
        shape: of the map.
        places: its row-major cell for every token; -1 for those that were filled in.
    """

    shape: tuple[int, ...]
    places: Int[Tensor, "windows tokens"]


_REGROUPED: ContextVar[Regrouped | None] = ContextVar("locant_regrouped", default=None)


def run_regrouped(
    shape: tuple[int, ...], places: Callable[[], Int[Tensor, "windows tokens"]], run: Callable[[], Tensor]
) -> Tensor:
    """`run()`, whose calls are of windows of a map. `places` is asked only where a hook is set."""
    if torch.compiler.is_compiling() or not _HOOKS.get():
        return run()
    token = _REGROUPED.set(Regrouped(shape, places()))
    try:
        return run()
    finally:
        _REGROUPED.reset(token)


def current_regrouping() -> Regrouped | None:
    """For hooks: the map that the tokens of this call were cut from, if they were."""
    return _REGROUPED.get()


def through(call: Call, run: Callable[[Call], Output]) -> Output:
    """`run(call)`, by way of the hooks that are set."""
    hooks = () if torch.compiler.is_compiling() else _HOOKS.get()
    proceed: Callable[[], Output] = partial(run, call)
    for hook in reversed(hooks):
        proceed = partial(hook, call, proceed)
    return proceed()
