"""How long a product takes by each library, predicted from its sizes and constants; and which library is the fastest.

seconds = a + b · FLOPs / threads + c · numbers of weights / threads + d · numbers in, hidden and out / threads
        + e · bytes that are mapped

A result of more than 32 MiB is mapped by the allocator at every call, and every page faults: by one thread at a time.
The constants (locant.products.costs) are of an operation, a library, a dtype and a kind of processor. Operations:

    linear        act(x Wᵀ + b) by a packed weight that is kept
    repacked      the same, the weight packed at the call: training, and dX
    weights       dW = dYᵀ X
    perceptron    act(x W1ᵀ + b1) W2ᵀ + b2, with GELU, by packed weights that are kept
    half          x + perceptron(norm(x)), a residual half of a block
    training      a perceptron forward and backward

Libraries: "torch" is what runs without Locant, one operator after the other; "onednn" and "compiled" are files here.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

from locant.products import constants

MAPPED = 32 << 20  # bytes from which glibc's allocator maps a block anew
OPERATIONS = ("linear", "repacked", "weights", "perceptron", "half", "training")
TIE = 0.95  # our kernels' time counts for less: they join what stands around, and give any threads the same bits
_LINEAR = (6272, 192, 576), (1568, 384, 1152), (1568, 384, 384), (1568, 384, 1536), (392, 3072, 768)
_LAYERS = (6272, 192, 768, 192), (1568, 384, 1536, 384), (392, 768, 3072, 768)
TYPICAL = {"linear": _LINEAR, "perceptron": _LAYERS, "half": _LAYERS, "training": _LAYERS}


def parts(operation: str, library: str, itemsize: int, rows: int, sizes: tuple[int, ...], threads: int) -> list[float]:
    """(1, FLOPs, weights, numbers in, hidden and out, mapped bytes) of one call; see above for threads.

    Args:
        sizes: (in, out) of a linear layer, (in, hidden, out) of a perceptron.
    """
    pairs = list(pairwise(sizes))
    weights = sum(a * b for a, b in pairs)
    hidden = rows * sum(sizes[1:-1])
    flops = 2 * rows * weights * (3 if operation == "training" else 1)
    results = [rows * sizes[-1]] if operation != "weights" else [weights]
    if library == "torch" or operation == "training":
        results += [hidden] * (2 if library != "compiled" else 1)
    mapped = sum(count * itemsize for count in results if count * itemsize > MAPPED)
    shared = flops, weights, rows * sum(sizes)
    return [1.0, *(amount / threads for amount in shared), float(mapped)]


def seconds(operation: str, library: str, dtype: str, rows: int, sizes: tuple[int, ...], threads: int) -> float | None:
    """One call on this kind of processor; None where that was never measured."""
    found = constants.here().seconds.get((operation, library, dtype))
    if found is None:
        return None
    amounts = parts(operation, library, 2 if dtype == "bfloat16" else 4, rows, sizes, threads)
    return sum(amount * each for amount, each in zip(amounts, found, strict=True))


def fastest(operation: str, dtype: str, rows: int, sizes: tuple[int, ...], able: tuple[str, ...]) -> str:
    """Of the libraries that are able, the one that takes the least time at these sizes; the first, if none is known.

    On one thread, whatever torch has: the same bits for any number of threads.
    """
    return _fastest(operation, dtype, ((rows, *sizes),), able, constants.here())


def chosen(operation: str, dtype: str, able: tuple[str, ...]) -> str:
    """The same for the sizes of `TYPICAL`, together."""
    return _fastest(operation, dtype, TYPICAL[operation], able, constants.here())


@lru_cache(maxsize=4096)
def _fastest(
    operation: str, dtype: str, work: tuple[tuple[int, ...], ...], able: tuple[str, ...], held: constants.Constants
) -> str:
    known = {}
    for library in able:
        times = [seconds(operation, library, dtype, rows, tuple(sizes), 1) for rows, *sizes in work]
        if all(times):
            known[library] = sum(time or 0.0 for time in times) * (TIE if library == "compiled" else 1.0)
    return min(known, key=known.__getitem__) if known else able[0]
