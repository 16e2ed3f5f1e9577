"""What each kernel refuses, pinned: the one place that says so.

A kernel that stands here refuses exactly these problems, with these words. Of one that does not, the tests believe
what it says itself: a new kernel changes nothing here until its refusals are to be held.
"""

from __future__ import annotations

from collections.abc import Callable

from locant import operators, planner
from locant.problem import Problem

Row = tuple[Callable[[Problem], bool], str]  # when it refuses, and how its sentence begins

MISSING = operators.missing()  # why there are no compiled kernels here, or None
GATED: tuple[Row, ...] = (
    (
        lambda p: p.gate is not None and p.mask.beyond_windows() is not None,
        "under {beyond} the positional map no longer factorises by axis, so the gate needs its dense form",
    ),
    (lambda p: p.gate is not None and p.dropout, "dropout acts on the mixed map, so the gate needs its dense form"),
    (
        lambda p: p.gate is not None and p.grid.prefix + p.key_grid.prefix > 0,
        "prefix tokens have no place on the axes, so the gate needs its dense form",
    ),
)
REFUSALS: dict[str, tuple[Row, ...]] = {
    "native": (
        (lambda p: p.device not in ("cpu", "meta"), "these are kernels for the CPU, and the tensors are on {device}"),
        (lambda p: MISSING is not None, MISSING or ""),
        (
            lambda p: p.exporting,
            "under export the graph is made of torch's own operators, so that it runs without Locant",
        ),
        (lambda p: p.transformed, "torch.func transforms need rules for each operator, and torch's own operators have"),
        (lambda p: p.mask.pairs, "Pairs is dense by nature, and these kernels never form what is dense"),
        (lambda p: p.mask.segments > 1, "these kernels know one Segments; two would have to be numbered anew"),
        *GATED,
    ),
    "sdpa": (
        (lambda p: p.lse, "torch's scaled_dot_product_attention keeps its log-sum-exp to itself, and return_lse asks"),
        (
            lambda p: p.transformed and p.bias_grad and p.device in ("cpu", "meta"),
            "under torch.func transforms torch's attention on the CPU has no gradient for a bias",
        ),
        *GATED,
    ),
    "reference": (),
}


def expected(kernel: str, problem: Problem) -> str | None:
    """How the sentence begins with which this kernel must refuse the problem; None if it must not."""
    if kernel not in REFUSALS:
        return planner.named(kernel).refuses(problem)
    words = {"beyond": problem.mask.beyond_windows(), "device": problem.device}
    return next((sentence.format(**words) for when, sentence in REFUSALS[kernel] if when(problem)), None)


def refusal(kernel: str, problem: Problem) -> str | None:
    """What the kernel says of the problem, once it is what it must say."""
    said, wanted = planner.named(kernel).refuses(problem), expected(kernel, problem)
    assert (said is None) == (wanted is None), f"{kernel} says {said!r}, and must say {wanted!r}: {problem}"
    assert said is None or wanted is None or said.startswith(wanted), f"{said!r} should begin with {wanted!r}"
    return said
