"""The contract of a kernel: four names in a file of `locant/kernels`, and a line in `planner.FAMILY`.

A kernel is a module (or any object) with a name, a sentence for each problem that it cannot run exactly, the work that
it would do, and the run itself. It is exact or it refuses: it never approximates, and never hands a problem on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from locant.problem import Inputs, Problem

# [batch, heads, queries, value_dim], and log Σ exp(logits) [batch, heads, queries] or None where it was not asked for
Output = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Work:
    """What one forward call of a kernel does, counted from shapes alone.

    Attributes:
        flops: two per multiply-add, of every pair that windows allow.
        bytes: moved to and from memory.
        held: of the extra tensors that live at once, at the most.
        notes: a sentence each on what is special about it here, for the plan.
        items: cells × heads × samples, each worked on by itself.
        computed: the part of `flops` that is left where pairs are skipped that an order forbids; None is all of it.
        copied: bytes of what is spelled out, gathered or repeated before the arithmetic begins.
        padded: scores of all samples and heads with the tiles of a GPU rounded up; None is as many as there are.
    """

    flops: int
    bytes: int
    held: int
    notes: tuple[str, ...] = ()
    items: int = 0
    computed: float | None = None
    copied: int = 0
    padded: int | None = None


@runtime_checkable
class Kernel(Protocol):
    """A way to execute attention exactly."""

    @property
    def name(self) -> str:
        """What `attention(..., kernel=name)` asks for."""

    def refuses(self, problem: Problem) -> str | None:
        """Why this problem cannot be run exactly, as a sentence without a full stop; None if it can."""

    def work(self, problem: Problem) -> Work:
        """What running it takes. Only asked of problems that are not refused."""

    def run(self, problem: Problem, inputs: Inputs) -> Output:
        """The result. Only called for problems that are not refused."""
