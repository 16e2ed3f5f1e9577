"""Is a kernel right on this problem? Against the dense definition in float64, before anything is timed.

The definition holds one slice of queries at a time. What is too much work for it is cut: some slices of queries of the
first and the last sample. The kernel runs on the whole problem all the same, with a gradient of the output that is 0
elsewhere, so that the gradients of keys, values and tables depend on these slices alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from locant import hooks
from locant.attend import attention
from locant.call import Call, materialise
from locant.kernels import reference
from locant.kernels.kernel import Output
from locant.measuring.workload import Workload

WORK = 30_000_000  # scores that are compared at most
HELD = 4_000_000  # scores that the definition may hold at a time
NAMES = ("out", "dq", "dk", "dv", "dposition")


@dataclass(frozen=True)
class Finding:
    """Of one result (the output, or a gradient): its largest error, and the largest that the policy allows."""

    what: str
    error: float
    limit: float

    @property
    def red(self) -> bool:
        return not self.error <= self.limit  # a NaN is not


@dataclass(frozen=True)
class Slice:
    """Queries `start` to `stop`, which lie on `rows` of the first axis, of some samples."""

    samples: slice
    rows: slice
    start: int
    stop: int


class Truth:
    """The definition on one workload, in float64 and, for comparison, plainly in the workload's own dtype."""

    def __init__(self, work: Workload, *, train: bool) -> None:
        self.train = train
        self.slices = tuple(_slices(work))
        dout = torch.zeros_like(work.dout)
        for s in self.slices:
            dout[s.samples, :, s.start : s.stop] = work.dout[s.samples, :, s.start : s.stop]
        self.work = replace(work, dout=dout)
        self.golden = _definition(self.work, self.slices, torch.float64, train)
        self.plain = _definition(self.work, self.slices, work.q.dtype, train)

    @property
    def whole(self) -> bool:
        """Nothing was left out."""
        return self.compared == self.work.pairs

    @property
    def compared(self) -> int:
        """How many scores the comparison rests on."""
        _, heads, _, _ = self.work.q.shape
        samples = len(range(*self.slices[0].samples.indices(self.work.q.shape[0])))
        return samples * heads * sum(s.stop - s.start for s in self.slices) * self.work.key_grid.tokens

    def check(self, kernel: str) -> list[Finding]:
        """Every result of the kernel against the truth."""
        out = self.work.forward(kernel)
        results = [torch.cat([out[s.samples, :, s.start : s.stop].flatten() for s in self.slices])]
        if self.train:
            results += _join_learned(self.work.gradients(kernel))
        return [
            finding(what, x, low, ref, 2 if what == "out" else 3)
            for what, x, low, ref in zip(NAMES, results, self.plain, self.golden, strict=False)
        ]


def finding(what: str, x: Tensor, low: Tensor, ref: Tensor, factor: int = 2) -> Finding:
    """`low` is the same mathematics done plainly in the dtype of x, `ref` in float64; gradients have a factor of 3."""
    error, usual = (_distance(y, ref) for y in (x, low))
    top = ref.abs().max().item() if ref.numel() else 0.0
    if x.dtype == torch.float64:
        limit = 1e-10 * max(1.0, top)
    elif x.dtype == torch.float32:
        limit = max(factor * usual, 1e-5 * top)
    else:
        rounded = ref.to(x.dtype)
        limit = factor * usual + 2 * _distance((rounded + 0.3 - 0.3).double(), rounded.double())
    return Finding(what, error, limit)


def plainly(call: Call, proceed: Callable[[], Output]) -> Output:
    """A hook: the definition in the dtype that it is given, in place of any kernel."""
    return reference.dense(call.problem, materialise(call))


def _distance(x: Tensor, ref: Tensor) -> float:
    return (x.double() - ref).abs().max().item() if ref.numel() else 0.0


def _definition(work: Workload, slices: Sequence[Slice], dtype: torch.dtype, train: bool) -> list[Tensor]:
    """The output on the slices, flat, and the gradients of q, k, v and all that is learned."""
    position = None if work.position is None else copy.deepcopy(work.position).to(dtype)
    learned = [] if position is None else [p for p in position.parameters() if p.requires_grad]
    inputs = [x.detach().to(dtype).requires_grad_() for x in (work.q, work.k, work.v)]
    q, k, v = inputs
    outs: list[Tensor] = []
    gradients = [torch.zeros_like(x) for x in (*inputs, *learned)]
    for s in slices:
        with torch.set_grad_enabled(train), hooks.attending(plainly):
            out = attention(
                q[s.samples, :, s.start : s.stop], k[s.samples], v[s.samples], grid=work.grid[s.rows],
                key_grid=work.key_grid, position=position, mask=work.mask, kernel="reference",
            )  # fmt: skip
        outs.append(out.detach().flatten())
        if train:
            dout = work.dout[s.samples, :, s.start : s.stop].to(dtype)
            parts = torch.autograd.grad(out, [*inputs, *learned], dout, allow_unused=True)
            for total, part in zip(gradients, parts, strict=True):
                if part is not None:
                    total += part
    return [torch.cat(outs), *(_join_learned(gradients) if train else [])]


def _join_learned(gradients: Sequence[Tensor]) -> list[Tensor]:
    """What a scheme learns is one tensor: two numbers alone may have no scale of their own."""
    dq, dk, dv, *learned = gradients
    return [dq, dk, dv, *([torch.cat([x.flatten() for x in learned])] if learned else [])]


def _slices(work: Workload) -> Iterator[Slice]:
    """All queries, or as many as the work allows: slices from the start, the end and between."""
    batch, heads, _, _ = work.q.shape
    cost = max(1, heads * work.key_grid.tokens * (work.grid.cells // max(1, work.grid.shape[0])))  # of a row
    whole = batch * cost * work.grid.shape[0] <= WORK
    samples = slice(0, batch) if whole else slice(0, batch, max(1, batch - 1))
    taken = len(range(*samples.indices(batch)))
    step = max(1, HELD // (taken * cost))
    edges = sorted({*range(0, work.grid.shape[0], step), work.grid.shape[0]})
    cuts = list(pairwise(edges))
    most = max(1, WORK // (taken * cost * step))
    if not whole and len(cuts) > most:
        chosen = {round(i * (len(cuts) - 1) / max(1, most - 1)) for i in range(most)}
        cuts = [cuts[i] for i in sorted(chosen)]
    line = work.grid.cells // max(1, work.grid.shape[0])
    for low, high in cuts:
        start = work.grid.prefix + low * line if low else 0
        yield Slice(samples, slice(low, high), start, work.grid.prefix + high * line)
