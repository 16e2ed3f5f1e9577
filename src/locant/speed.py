"""Which kernel is the faster one: its seconds, predicted from the parts of its work and measured constants.

seconds = call + items · a + FLOPs · b + scores · c + bytes moved · d + bytes held · e,  constants in locant.costs.

Predictions are for comparing kernels on one machine; on another all of them are off by a factor that they share,
roughly. Counted from shapes alone.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from locant.costs import SECONDS
from locant.layout import described, layout
from locant.problem import Problem


def seconds(problem: Problem, kernel: ModuleType) -> float:
    """One call of `kernel`: forward, or forward and backward where a bias is being learned."""
    constants = SECONDS[kernel.name, problem.dtype, "learned" if problem.bias_grad else "forward"]
    return sum(amount * each for amount, each in zip(parts(problem, kernel), constants, strict=True))


def parts(problem: Problem, kernel: ModuleType) -> tuple[float, ...]:
    """(calls, work items, FLOPs, scores, bytes moved, bytes held) of one forward call."""
    cost = kernel.cost(problem)
    own = layout(described(problem.grid, problem.key_grid, problem.mask, ()))
    held = cost.held if kernel.name == "sdpa" else 0  # a table is small, an expanded bias is not
    done = 1.0 if held else _visible(problem)  # who spells a mask out computes what it forbids
    flops = done * cost.flops
    moved = problem.stream + _copied(problem) * (kernel.name == "sdpa")
    scores = flops / (2 * (problem.head_dim + problem.value_dim))
    return 1.0, float(problem.batch * problem.heads * own.cells), flops, scores, float(moved), float(held)


def _visible(problem: Problem) -> float:
    """The share of pairs that an order leaves, on a sequence: one half of a square, all of one new query."""
    if not problem.mask.causal or problem.queries == 0 or problem.keys == 0:
        return 1.0
    axis = problem.mask.causal[0].axis or 0
    queries, keys = (np.asarray(g.along(axis)) for g in (problem.grid, problem.key_grid))
    return float(np.searchsorted(keys, queries, side="right").mean() / max(1, len(keys)))


def _copied(problem: Problem) -> int:
    """Bytes that are copied for torch's attention: cells gathered and put back, keys repeated or cleared."""
    rows = problem.batch * problem.keys * (problem.head_dim + problem.value_dim) * problem.width
    copied = 2 * problem.stream if problem.mask.windows else 0
    copied += rows * problem.heads if problem.kv_heads != problem.heads else 0
    return copied + rows * problem.kv_heads * problem.mask.padding
