"""Which kernel, at what cost, and why not the others: pure, cached, no tensors.

The plan is the kernel that does not refuse and that measured constants (locant.speed) say is the fastest. The
reference comes last: it runs when it is asked for by name, or when every other kernel has refused, and the plan then
shows their sentences. Nothing falls back in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from html import escape
from types import ModuleType

import torch

from locant import speed
from locant.kernels import native, reference, sdpa
from locant.problem import Cost, Problem

FAMILY: tuple[ModuleType, ...] = (native, sdpa, reference)  # in a traced graph, the first that can
KNOWN = ("reference", "sdpa", "native", "flex", "triton")


@dataclass(frozen=True)
class Plan:
    """A choice that says why: the kernel, its cost, and one sentence per kernel that was passed over."""

    kernel: str
    cost: Cost
    passed_over: tuple[tuple[str, str], ...]
    problem: Problem

    def __str__(self) -> str:
        lines = [
            f"kernel    {self.kernel}",
            f"cost      {self.cost.flops:,} FLOPs, {self.cost.bytes:,} bytes moved, {self.cost.held:,} bytes held",
            *(f"          {note}" for note in self.cost.notes),
            *(f"not {name:9} {why}" for name, why in self.passed_over),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def choose(problem: Problem, kernel: str = "auto") -> str:
    """The name of the kernel that will run, or a ValueError with the sentence of the one that was asked for."""
    if kernel == "auto":
        able = [k for k in FAMILY if k is not reference and k.refuses(problem) is None]
        if len(able) > 1 and not torch.compiler.is_compiling():  # a graph takes the first: costs can't be traced
            return min(able, key=lambda k: speed.seconds(problem, k)).name
        return able[0].name if able else reference.name
    why = _absent(kernel)
    if why is None:
        why = named(kernel).refuses(problem)
    if why is not None:
        raise ValueError(
            f"kernel={kernel!r} was asked for, and it refuses: {why}. "
            'Change that, name another kernel, or leave kernel="auto".'
        )
    return kernel


@lru_cache(maxsize=1024)
def plan(problem: Problem, kernel: str = "auto") -> Plan:
    """The choice with its reasons, as a value."""
    name = choose(problem, kernel)
    passed = [(k.name, _why_not(k, problem, name, kernel)) for k in FAMILY if k.name != name]
    missing = [(n, _absent(n) or "") for n in KNOWN if _absent(n) is not None]
    return Plan(name, named(name).cost(problem), (*passed, *missing), problem)


def named(name: str) -> ModuleType:
    """The kernel of that name."""
    return next(k for k in FAMILY if k.name == name)


def _why_not(kernel: ModuleType, problem: Problem, chosen: str, asked: str) -> str:
    why = kernel.refuses(problem)
    if why is not None:
        return str(why)
    if asked != "auto":
        return f"{chosen} was asked for by name"
    if kernel is reference:
        return "the definition, dense: it runs when asked for by name, or when all others refuse"
    times = speed.seconds(problem, kernel) / speed.seconds(problem, named(chosen))
    return f"exact as well, and by its measured costs {times:.1f} times as slow as {chosen} here"


def _absent(name: str) -> str | None:
    if name in (k.name for k in FAMILY):
        return None
    if name in KNOWN:
        return f"this build of Locant has no {name} kernel"
    return f"there is no kernel of that name; there are {', '.join(k.name for k in FAMILY)}"


_remembered = lru_cache(maxsize=1024)(choose)


def cached(problem: Problem, kernel: str) -> str:
    """`choose`, remembered."""
    return choose(problem, kernel) if torch.compiler.is_compiling() else _remembered(problem, kernel)
