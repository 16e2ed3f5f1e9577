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
from functools import partial

import torch

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


def through(call: Call, run: Callable[[Call], Output]) -> Output:
    """`run(call)`, by way of the hooks that are set."""
    hooks = () if torch.compiler.is_compiling() else _HOOKS.get()
    proceed: Callable[[], Output] = partial(run, call)
    for hook in reversed(hooks):
        proceed = partial(hook, call, proceed)
    return proceed()
