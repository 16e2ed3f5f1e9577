"""Which kernel, at what cost, and why not the others: pure, cached, no tensors.

The plan is the kernel that does not refuse and that measured constants (locant.speed) say is the fastest. A kernel
without constants for the device is never chosen by itself; where no kernel has any, torch's own attention runs. The
reference comes last: it runs when it is asked for by name, or when every other kernel has refused, and the plan then
shows their sentences. Nothing falls back in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from html import escape

import torch

from locant import speed
from locant.costs import PROCESSOR, SECONDS
from locant.kernels import flex, native, reference, sdpa, triton
from locant.kernels.kernel import Kernel, Work
from locant.problem import Problem

FAMILY: tuple[Kernel, ...] = (triton, native, sdpa, flex, reference)  # read at each call; graphs take the first


@dataclass(frozen=True)
class Plan:
    """A choice that says why: the kernel, its cost, and one sentence per kernel that was passed over."""

    kernel: str
    cost: Work
    passed_over: tuple[tuple[str, str], ...]
    problem: Problem

    def __str__(self) -> str:
        lines = [
            f"kernel    {self.kernel}",
            f"cost      {self.cost.flops:,} FLOPs, {self.cost.bytes:,} bytes moved, {self.cost.held:,} bytes held",
            *(f"          {note}" for note in (*self.cost.notes, *self._before())),
            *(f"not {name:9} {why}" for name, why in self.passed_over),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def _before(self) -> Iterator[str]:
        """What holds whichever kernel runs."""
        problem = self.problem
        if problem.device == "meta":
            yield "meta tensors have no device: planned as on a CPU"
        if problem.rotated and problem.queries < problem.keys:
            yield (
                f"all {problem.keys:,} keys are turned at each call: keep turned keys, and turn what is new "
                "(rotary.turn)"
            )


class _Family(tuple[Kernel, ...]):
    """The kernels as part of a cache's key: two are equal if they hold the same objects, which need no hash."""

    def __hash__(self) -> int:
        return hash(tuple(map(id, self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Family) and list(map(id, self)) == list(map(id, other))


def choose(problem: Problem, kernel: str = "auto") -> str:
    """The name of the kernel that will run, or a ValueError with the sentence of the one that was asked for."""
    if kernel != "auto":
        why = _absent(kernel)
        if why is None:
            why = named(kernel).refuses(problem)
        if why is not None:
            raise ValueError(
                f"kernel={kernel!r} was asked for, and it refuses: {why}. "
                'Change that, name another kernel, or leave kernel="auto".'
            )
        return kernel
    able = [k for k in FAMILY if k is not reference and k.refuses(problem) is None]
    measured = [k for k in able if speed.key(problem, k) in SECONDS]
    if not measured:
        return sdpa.name if any(k is sdpa for k in able) else reference.name
    if len(measured) == 1 or torch.compiler.is_compiling():  # a graph takes the first: costs can't be traced
        return measured[0].name
    return min(measured, key=lambda k: speed.seconds(problem, k) or 0.0).name


def plan(problem: Problem, kernel: str = "auto") -> Plan:
    """The choice with its reasons, as a value; remembered."""
    return _planned(problem, kernel, _Family(FAMILY))


@lru_cache(maxsize=1024)
def _planned(problem: Problem, kernel: str, family: _Family) -> Plan:
    name = choose(problem, kernel)
    passed = tuple((k.name, _why_not(k, problem, name, kernel)) for k in family if k.name != name)
    return Plan(name, named(name).work(problem), passed, problem)


def named(name: str) -> Kernel:
    """The kernel of that name."""
    return next(k for k in FAMILY if k.name == name)


def _why_not(kernel: Kernel, problem: Problem, chosen: str, asked: str) -> str:
    why = kernel.refuses(problem)
    if why is not None:
        return str(why)
    if asked != "auto":
        return f"{chosen} was asked for by name"
    if kernel is reference:
        return "the definition, dense: it runs when asked for by name, or when all others refuse"
    own, best = speed.seconds(problem, kernel), speed.seconds(problem, named(chosen))
    if own is None or not best:
        where = speed.key(problem, kernel)[0]
        return f"exact as well, and never measured on {where}: it runs when asked for by name"
    return f"exact as well, and {own / best:.1f} times as slow as {chosen}, by costs measured on {PROCESSOR}"


def _absent(name: str) -> str | None:
    if name in (k.name for k in FAMILY):
        return None
    return f"there is no kernel of that name; there are {', '.join(k.name for k in FAMILY)}"


@lru_cache(maxsize=1024)
def _remembered(problem: Problem, kernel: str, family: _Family) -> str:
    return choose(problem, kernel)


def cached(problem: Problem, kernel: str) -> str:
    """`choose`, remembered; not in a graph, which is traced once, and whose tracer warns of caches."""
    return choose(problem, kernel) if torch.compiler.is_compiling() else _remembered(problem, kernel, _Family(FAMILY))
