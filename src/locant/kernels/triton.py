"""Triton's kernels for GPUs (locant.gpu): an offset table is run and trained without ever being formed.

Identity: bias, order, prefix and padding are one vector per head, read at differences of places (locant.places). It
seeds the product q kᵀ, and softmax takes its keys a tile at a time. The table's gradient is summed in registers over
all that has the same offsets, and leaves them as whole numbers of a unit: the same bits every time. Memory is O(N).

Triton itself is imported by the first call on a GPU.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

from locant import separable
from locant.cells import cells, count, visible_share
from locant.gpu import chips
from locant.grid import Grid
from locant.kernels.kernel import Output, Work
from locant.masks import Windows
from locant.operate import operate
from locant.problem import Inputs, Problem

name = "triton"
WIDEST = 128  # channels of a head
TILE = 64  # tokens, as costs count them
LONGEST = 2**31  # numbers of the vector of a head


def refuses(problem: Problem) -> str | None:
    return _refuses_device(problem) or _refuses_dtype(problem) or _refuses_problem(problem)


def _refuses_device(problem: Problem) -> str | None:
    if chips.interpreted():
        if problem.device not in ("cpu", "meta"):
            return f"TRITON_INTERPRET=1 runs these kernels on CPU tensors, and the tensors are on {problem.device}"
        return None
    if problem.device != "cuda":
        here = problem.device.replace("meta", "cpu")  # as which meta tensors are planned
        return f"these are kernels for GPUs, and the tensors are on {here}"
    if not chips.has_triton():
        return "Triton is not installed; it comes with torch's builds for GPUs"
    if problem.chip.startswith("gfx"):
        return 'on AMD\'s GPUs these kernels were compiled, and never run; kernel="flex" is the way there'
    if problem.chip and int(problem.chip[2:]) < chips.OLDEST:
        return (
            f"these kernels need a GPU of compute capability 8.0 or later (A100, RTX 30); this one has "
            f"{problem.chip[2:-1]}.{problem.chip[-1]}"
        )
    return None


def _refuses_dtype(problem: Problem) -> str | None:
    if problem.dtype == "float64":
        return "the matrix units that these kernels are made for have no float64"
    if problem.dtype != "float32" or chips.interpreted():
        return None
    if problem.chip and int(problem.chip[2:]) < 90:
        return "three products in tf32, as good as one in float32, do not fit this GPU's registers; use bfloat16"
    if problem.bias_grad:
        return "in float32 the gradients' three products in tf32 do not fit the registers; train in bfloat16"
    return None


def _refuses_problem(problem: Problem) -> str | None:
    if problem.exporting:
        return "under export the graph is made of torch's own operators, so that it runs without Locant"
    if problem.transformed:
        return "torch.func transforms need rules for each operator, and torch's own operators have them"
    if problem.content is not None:
        return "these kernels read one table for all queries, and content brings each query terms of its own"
    if problem.mask.pairs:
        return "Pairs is dense by nature, and these kernels never form what is dense"
    if problem.mask.segments > 1:
        return "these kernels know one Segments; two would have to be numbered anew"
    widest = max(problem.head_dim, problem.value_dim)
    if widest > WIDEST:
        return f"these kernels hold heads of at most {WIDEST} channels in registers; these have {widest}"
    if _vector_bound(problem) >= LONGEST:
        return "the vector of biases would have more numbers than 32-bit places can tell apart"
    return separable.refuses(problem)


def _vector_bound(problem: Problem) -> int:
    """At least as many numbers as the vector of a head has: four times the offsets of the whole plane, and a few."""
    total = 4
    for axis in range(problem.grid.axes):
        ends = [c for g in (problem.grid, problem.key_grid) for c in (g.along(axis)[:1], g.along(axis)[-1:])]
        found = [c for ends_of in ends for c in ends_of]
        total *= 2 * (max(found) - min(found)) + 1 if found else 1
    return total + 16


def work(problem: Problem) -> Work:
    windows, copies = problem.mask.windows, problem.batch * problem.heads
    items, scores = (copies * number for number in count(windows, problem.grid, problem.key_grid))
    flops = 2 * scores * (problem.head_dim + problem.value_dim)
    held = 16 * problem.bias.numbers if problem.bias is not None else 0  # the vector is 3.5 tables of float32
    notes = []
    if problem.bias is not None:
        notes.append(f"reads the table in place: {held:,} bytes, whatever the number of pairs")
    if problem.bias_grad:
        notes.append("the table's gradient is summed in whole numbers: the same bits every time")
    if problem.gate is not None:
        flops += separable.flops(problem)
        notes.append(separable.note(problem))
    computed = flops * visible_share(problem.mask.causal, problem.grid, problem.key_grid)
    padded = copies * _padded(problem)
    return Work(flops, problem.stream + held, held, tuple(notes), items=items, computed=computed, padded=padded)


def _padded(problem: Problem) -> int:
    """Scores of one head with the tiles of each cell rounded up; those that an order leaves out are left out."""
    total, grid, key_grid, windows = 0, problem.grid, problem.key_grid, problem.mask.windows
    lines = [Counter(_sizes(windows, axis, grid, key_grid)) for axis in range(grid.axes)]
    for parts in itertools.product(*(line.items() for line in lines)):
        queries, keys = (math.prod(size[side] for size, _ in parts) for side in (0, 1))
        prefix = grid.prefix if not windows else 0  # a cell of its own under windows
        both = (-(-n // TILE) * TILE for n in (queries + prefix, keys + key_grid.prefix))
        total += math.prod(many for _, many in parts) * math.prod(both)
    if windows and grid.prefix:
        total += math.prod(-(-n // TILE) * TILE for n in (grid.prefix, key_grid.tokens))
    return int(total * visible_share(problem.mask.causal, grid, key_grid))


def _sizes(windows: tuple[Windows, ...], axis: int, grid: Grid, key_grid: Grid) -> list[tuple[int, int]]:
    """How many queries and keys each cell of an axis has."""
    found = cells(windows, axis, grid, key_grid)
    return [(c.queries[1] - c.queries[0], c.keys[1] - c.keys[0]) for c in found]


def run(problem: Problem, inputs: Inputs) -> Output:
    out, lse = operate(problem, inputs)
    return separable.mixed(problem, inputs.gate, out, inputs.grouped()[1] if inputs.gate is not None else out), lse
