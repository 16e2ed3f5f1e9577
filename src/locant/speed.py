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
    """Under which the constants stand: of a GPU its chip, or the newest before it of the same maker.

    Meta tensors have no device to be fast on: they are planned for the CPU.
    """
    device = "cpu" if problem.device == "meta" else problem.chip or problem.device
    rest = (kernel.name, problem.dtype, "learned" if problem.bias_grad else "forward")
    if problem.chip.startswith("sm") and (device, *rest) not in SECONDS:
        older = [name for name, *others in SECONDS if name.startswith("sm") and tuple(others) == rest]
        older = [name for name in older if int(name[2:]) <= int(device[2:])]
        device = max(older, key=lambda name: int(name[2:]), default=device)
    return device, *rest


def parts(problem: Problem, kernel: Kernel) -> tuple[float, ...]:
    """(1, items, FLOPs, scores, query bytes, key bytes, copied bytes) of one forward call.

    On a GPU (1, items, streamed bytes, scores of whole tiles, their FLOPs, copied bytes, these scores if a bias is
    being learned).
    """
    work = kernel.work(problem)
    flops = work.flops if work.computed is None else work.computed
    channels = problem.head_dim + problem.value_dim
    if problem.chip:
        scores = flops / (2 * channels) if work.padded is None else float(work.padded)
        learned = scores if problem.bias_grad else 0.0
        streamed, copied = float(work.bytes - work.held), float(work.copied)
        return 1.0, float(work.items), streamed, scores, 2 * scores * channels, copied, learned
    row = problem.batch * problem.heads * channels * problem.width
    amounts = (work.items, flops, flops / (2 * channels), row * problem.queries, row * problem.keys, work.copied)
    return 1.0, *map(float, amounts)
