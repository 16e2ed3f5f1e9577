"""Which kernel is the faster one: its seconds, predicted from the parts of its work and measured constants.

seconds = a + b · items + c · FLOPs + d · scores + e · query bytes + f · key bytes + g · copied bytes, where an item is
a cell of one head of one sample, query bytes are q and the output, key bytes are k and v once per query head; copied
bytes are what torch's attention needs spelled out, gathered or repeated. The constants stand in locant.costs.

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
    """(1, items, FLOPs, scores, query bytes, key bytes, copied bytes) of one forward call."""
    cost = kernel.cost(problem)
    own = layout(described(problem.grid, problem.key_grid, problem.mask, ()))
    copied = cost.held + _copied(problem) if kernel.name == "sdpa" else 0
    spelled = kernel.name == "sdpa" and cost.held > 0  # who spells a mask out computes what it forbids
    flops = cost.flops * (1.0 if spelled else _visible(problem))
    channels = problem.head_dim + problem.value_dim
    row = problem.batch * problem.heads * channels * problem.width
    items = problem.batch * problem.heads * own.cells
    amounts = (items, flops, flops / (2 * channels), row * problem.queries, row * problem.keys, copied)
    return 1.0, *map(float, amounts)


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
