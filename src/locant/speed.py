"""How long a kernel takes: predicted from the parts of its work and constants measured on a device.

seconds = a + b · items + c · FLOPs + d · scores + e · query bytes + f · key bytes + g · copied bytes, where an item is
a cell of one head of one sample, query bytes are q and the output, key bytes are k and v once per query head; copied
bytes are what torch's attention needs spelled out, gathered or repeated. The constants stand in locant.costs.

Predictions are for comparing kernels on one machine; on another all of them are off by a factor that they share,
roughly. Counted from shapes alone. Without constants for a kernel on a device there is no prediction.
"""

from __future__ import annotations

from locant.costs import SECONDS
from locant.kernels.kernel import Kernel
from locant.problem import Problem


def seconds(problem: Problem, kernel: Kernel) -> float | None:
    """One call of `kernel`: forward, or forward and backward where a bias is being learned. None: never measured."""
    constants = SECONDS.get(key(problem, kernel))
    if constants is None:
        return None
    return sum(amount * each for amount, each in zip(parts(problem, kernel), constants, strict=True))


def key(problem: Problem, kernel: Kernel) -> tuple[str, str, str, str]:
    """Under which the constants stand. Meta tensors have no device to be fast on: they are planned for the CPU."""
    device = "cpu" if problem.device == "meta" else problem.device
    return device, kernel.name, problem.dtype, "learned" if problem.bias_grad else "forward"


def parts(problem: Problem, kernel: Kernel) -> tuple[float, ...]:
    """(1, items, FLOPs, scores, query bytes, key bytes, copied bytes) of one forward call."""
    work = kernel.work(problem)
    flops = work.flops if work.computed is None else work.computed
    channels = problem.head_dim + problem.value_dim
    row = problem.batch * problem.heads * channels * problem.width
    amounts = (work.items, flops, flops / (2 * channels), row * problem.queries, row * problem.keys, work.copied)
    return 1.0, *map(float, amounts)
