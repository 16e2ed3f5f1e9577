"""The compiled CPU kernels (csrc/): an offset table, or what queries meet, is run and trained without being formed.

Identity: softmax needs its keys one block at a time, as long as what was summed is rescaled when the largest score
moves; and the bias of one key for neighbouring queries is one slice of the table, so that it seeds the product q kᵀ
as a load in place of a zero. The gradient of the table is added to the same slices. What queries make of a content
scheme's vectors is one more product, of few rows, made where the scores are, and read in the same way. Windows are
lists of tokens, cell by cell: nothing is rolled, gathered or masked. Memory is O(N).
"""

from __future__ import annotations

from locant import operators, separable
from locant.cells import count, visible_share
from locant.gpu import chips
from locant.kernels.kernel import Output, Work
from locant.operate import operate
from locant.problem import Inputs, Problem

name = "native"


def refuses(problem: Problem) -> str | None:
    if problem.device not in ("cpu", "meta"):
        return f"these are kernels for the CPU, and the tensors are on {problem.device}"
    if chips.interpreted():
        return "TRITON_INTERPRET=1 has the operators run Triton's kernels on CPU tensors, under its interpreter"
    missing = operators.missing()  # asked for tensors on the CPU alone: it warns
    if missing is not None:
        return missing
    if problem.exporting:
        return "under export the graph is made of torch's own operators, so that it runs without Locant"
    if problem.transformed:
        return "torch.func transforms need rules for each operator, and torch's own operators have them"
    if problem.mask.pairs:
        return "Pairs is dense by nature, and these kernels never form what is dense"
    if problem.mask.segments > 1:
        return "these kernels know one Segments; two would have to be numbered anew"
    return separable.refuses(problem)


def work(problem: Problem) -> Work:
    windows, copies = problem.mask.windows, problem.batch * problem.heads
    cells, scores = (copies * number for number in count(windows, problem.grid, problem.key_grid))
    flops = 2 * scores * (problem.head_dim + problem.value_dim)
    held = problem.bias.numbers * max(4, problem.width) if problem.bias is not None else 0
    notes = []
    if problem.bias is not None:
        notes.append(f"reads the table in place: {held:,} bytes, whatever the number of pairs")
    if problem.content is not None:
        vectors = problem.heads * sum(problem.content.sizes)
        own = vectors * problem.head_dim * max(4, problem.width)
        flops, held = flops + 2 * _made(problem) * problem.head_dim, held + own
        notes.append(
            f"makes content's terms where the scores are: {vectors // problem.heads:,} vectors per head, {own:,} bytes"
        )
    if problem.gate is not None:
        flops += separable.flops(problem)
        notes.append(separable.note(problem))
    computed = flops * visible_share(problem.mask.causal, problem.grid, problem.key_grid)
    return Work(flops, problem.stream + held, held, tuple(notes), items=cells, computed=computed)


def _made(problem: Problem) -> int:
    """How many of content's terms are made: a panel of 64 queries meets the offsets that it has to the keys."""
    assert problem.content is not None
    each = sum(min(high - low, high + 64) + 1 for low, high in problem.content.ranges)
    return problem.batch * problem.heads * problem.queries * each


def run(problem: Problem, inputs: Inputs) -> Output:
    out, lse = operate(problem, inputs)
    return separable.mixed(problem, inputs.gate, out, inputs.grouped()[1] if inputs.gate is not None else out), lse
