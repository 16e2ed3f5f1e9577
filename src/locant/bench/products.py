"""The constants of linear layers and perceptrons (locant.products.speed), measured and fitted on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from locant.atomic import write_bytes
from locant.bench.settings import CHECKS
from locant.dispatch import packs_linear
from locant.measuring.clock import limit_threads
from locant.measuring.fitting import fit
from locant.products import compiled, constants, onednn, operators, speed
from locant.products.around import NOTHING, Around

TURNS = 5
LINEAR = (
    (1, 768, 768), (1, 768, 3072), (16, 384, 1536), (49, 768, 2304), (49, 768, 768), (196, 384, 1152), (197, 768, 3072),
    (392, 3072, 768), (784, 192, 576), (784, 192, 192), (1568, 384, 1536), (1568, 1536, 384), (1024, 1024, 1024),
    (3136, 96, 288), (3136, 96, 96), (6272, 192, 768), (12544, 96, 384), (25088, 96, 384), (25088, 384, 96),
)  # fmt: skip
LAYERS = (
    (1, 768, 3072, 768), (16, 384, 1536, 384), (49, 768, 3072, 768), (196, 384, 1536, 384), (197, 192, 768, 192),
    (392, 768, 3072, 768), (784, 192, 768, 192), (1568, 384, 1536, 384), (3136, 96, 384, 96), (6272, 192, 768, 192),
    (12544, 96, 384, 96), (25088, 96, 384, 96),
)  # fmt: skip
Call = Callable[[], object]
Times = dict[constants.Key, list[tuple[list[float], float]]]


def _able(dtype: torch.dtype) -> tuple[str, ...]:
    return "torch", *("onednn",) * packs_linear(dtype), *("compiled",) * compiled.available(dtype)


def write_costs(threads: int | None = None, *, tell: Callable[[str], object] | None = None) -> Path:
    """Measure and fit this machine's constants, and put them where Locant looks for them; takes a minute or two.

    Args:
        threads: the most that torch will have; constants are fitted to so many and to one. Default as it is set.
        tell: is called with a sentence on what is going on.

    Returns:
        The file. It holds for this processor, its instruction set and this version of torch.

    Raises:
        ValueError: threads that are no count.
        OSError: if the file cannot be written.
    """
    threads = torch.get_num_threads() if threads is None else CHECKS["threads"]("threads", threads)
    with limit_threads(threads):
        found = measure(tell)
        content = constants.content(found, threads, date.today().isoformat())
    path = constants.file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.encode())
    constants.forget()
    return path


def measure(tell: Callable[[str], object] | None = None) -> dict[constants.Key, tuple[float, ...]]:
    """Constants by operation, library and dtype, on one thread and on as many as torch has."""
    found: Times = {}
    for threads in sorted({1, torch.get_num_threads()}):
        with limit_threads(threads):
            for dtype in operators.DTYPES:
                if tell is not None:
                    tell(f"{str(dtype).rpartition('.')[2]}, {threads} thread{'s' * (threads > 1)}")
                _time_all(dtype, threads, found)
    return {key: tuple(fit(rows)) for key, rows in sorted(found.items())}


def _time_all(dtype: torch.dtype, threads: int, found: Times) -> None:
    for operation in speed.OPERATIONS:
        for rows, *sizes in LINEAR if operation in ("linear", "repacked", "weights") else LAYERS:
            calls = dict(_calls(operation, dtype, rows, *sizes))
            for library, least in _least(calls).items():
                amounts = speed.parts(operation, library, dtype.itemsize, rows, tuple(sizes), threads)
                found.setdefault((operation, library, str(dtype).rpartition(".")[2]), []).append((amounts, least))


def _least(calls: dict[str, Call]) -> dict[str, float]:
    """The shortest of some turns, each library's in turn; every call once before."""
    least = dict.fromkeys(calls, float("inf"))
    for turn in range(TURNS + 1):
        for library, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                least[library] = min(least[library], time.perf_counter() - start)
    return least


def _calls(operation: str, dtype: torch.dtype, rows: int, *sizes: int) -> Iterator[tuple[str, Call]]:
    """A call of one operation by each library that is able."""
    for library in _able(dtype):
        torch.manual_seed(0)  # each with weights of its own: one packed copy is kept of a weight
        x = torch.randn(rows, sizes[0], dtype=dtype)
        layers = [(torch.randn(b, a, dtype=dtype) / a**0.5, torch.randn(b, dtype=dtype)) for a, b in pairwise(sizes)]
        call = (_linear if len(layers) == 1 else _perceptron)(operation, library, x, layers)
        if call is not None:
            yield library, call


def _linear(operation: str, library: str, x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Call | None:
    ((weight, bias),) = layers
    if operation == "weights":
        dy = torch.randn(len(x), len(weight), dtype=x.dtype)
        if library == "torch":
            return lambda: (dy.t() @ x, dy.sum(0))
        if library == "onednn" and x.dtype != torch.float32:
            return None
        return partial(operators.LIBRARIES[library].weight_gradient, dy, x, weight, True)
    if library == "torch":
        return partial(F.linear, x, weight, bias)
    return partial(operators.LIBRARIES[library].linear, x, weight, bias, "none", NOTHING, operation == "linear")


def _perceptron(operation: str, library: str, x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Call | None:
    (w1, b1), (w2, b2) = layers
    scale, shift = torch.ones(x.shape[1], dtype=x.dtype), torch.zeros(x.shape[1], dtype=x.dtype)

    def plain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    if operation == "training":
        return _training(library, plain, [t.requires_grad_() for t in (x, w1, b1, w2, b2)])
    if library == "torch":
        if operation == "perceptron":
            return partial(plain, x, w1, b1, w2, b2)
        return lambda: x + plain(F.layer_norm(x, x.shape[-1:], scale, shift), w1, b1, w2, b2)
    around = Around(residual=x, scale=scale, shift=shift, epsilon=1e-5) if operation == "half" else NOTHING
    return partial(operators.LIBRARIES[library].perceptron, x, w1, b1, w2, b2, "gelu", around, True)


def _training(library: str, plain: Callable[..., Tensor], inputs: list[Tensor]) -> Call:
    """Forward and backward. By oneDNN it is two linear layers, one after the other."""
    x, w1, b1, w2, b2 = inputs
    dy = torch.randn(len(x), len(w2), dtype=x.dtype)

    def by_torch() -> object:
        return torch.autograd.grad(plain(*inputs), inputs, dy)

    def by_layers() -> object:
        fixed = "none", NOTHING, False
        before = onednn.linear(x, w1, b1, *fixed)
        after = F.gelu(before)
        y = onednn.linear(after, w2, b2, *fixed)
        dh = torch.ops.aten.gelu_backward(onednn.input_gradient(dy, w2), before)
        sums = onednn.weight_gradient(dy, after, w2, True), onednn.weight_gradient(dh, x, w1, True)
        return y, onednn.input_gradient(dh, w1), sums

    def by_rows() -> object:
        before = x.new_empty(len(x), len(w1))
        y = compiled.perceptron(x, w1, b1, w2, b2, "gelu", NOTHING, False, before)
        return y, compiled.perceptron_gradients(dy, x, before, w1, b1, w2, "gelu", [True] * 5)

    return {"torch": by_torch, "onednn": torch.no_grad()(by_layers), "compiled": torch.no_grad()(by_rows)}[library]
