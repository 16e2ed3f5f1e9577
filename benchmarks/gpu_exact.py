"""The stages of benchmarks/gpu.py that come first: whether kernels are exact on this device, and repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_clock import Call, poisoned, reason
from gpu_problems import DEVICE, DRY, dtypes, families, route, small

from locant import Grid, RelativeTable, attention, planner
from locant.measuring.exactness import Truth
from locant.measuring.workload import Workload

Results = dict[str, Any]
Rows = Iterator[dict[str, Any]]


def calls_of(work: Workload) -> dict[str, Call]:
    """Ours, forward and with gradients as far as it does not refuse."""
    able = {
        "forward": planner.named("triton").refuses(work.plan(train=False).problem) is None,
        "train": planner.named("triton").refuses(work.plan(train=True).problem) is None,
    }
    both = {"forward": partial(work.forward, "triton"), "train": partial(work.gradients, "triton")}
    return {what: call for what, call in both.items() if able[what]}


def exactness(_: Results) -> Rows:
    """Every family in every dtype by the policy of exactness, forward and gradients; a sentence where it is refused.

    What the kernels are to fill is filled with NaN before: what they leave out shows.
    """
    for name, make in families().items():
        for dtype in dtypes():
            work = make(dtype)
            row: dict[str, Any] = {"family": name, "dtype": str(dtype)[6:], "route": route(work)}
            able = calls_of(work)
            if not able:
                yield row | {"refused": planner.named("triton").refuses(work.plan(train=False).problem)}
                continue
            try:
                truth = Truth(work, train="train" in able)
                with poisoned():
                    found = truth.check("triton")
            except Exception as error:
                yield row | {"red": True, "errors": {}, "failed": reason(error)}
                continue
            yield row | {"red": any(f.red for f in found), "errors": {f.what: (f.error, f.limit) for f in found}}


def tf32x3(results: Results) -> Rows:
    """Whether float32 by three products in tf32 keeps the tolerance of float32 on this chip."""
    rows = [row for row in results.get("exactness", []) if row.get("dtype") == "float32"]
    ran, refused = [row for row in rows if "errors" in row], [row for row in rows if "refused" in row]
    exact = not any(row["red"] for row in ran)
    verdict = f"refused: {refused[0]['refused']}" if refused and not ran else "exact" if exact and ran else "NOT exact"
    yield {"verdict": "not checked: the interpreter computes it in float32" if DRY else verdict, "families": len(ran)}


def random_problems(_: Results) -> Rows:
    """1,000 small problems of all sizes and masks, by the same policy."""
    red, failed = list[str](), list[str]()
    for done, (name, work) in enumerate(small(24 if DRY else 1000, seed=1), 1):
        try:
            truth = Truth(work, train="train" in calls_of(work))
            with poisoned():
                found = truth.check("triton")
            floor = cancelled(work)
            red += [f"{name}, {work.grid}: {f.what} {f.error:.1e}" for f in found if f.red and not f.error <= floor]
        except Exception as error:
            failed.append(f"{name}, {work.grid}: {reason(error)}")
        if done % (8 if DRY else 50) == 0:
            yield {"done": done, "red": red[:20], "failed": failed[:20]}


def cancelled(work: Workload) -> float:
    """What rounding leaves of a gradient that is 0: where a query sees one key, it is a difference of two equal sums.

    Each is at most ‖dO‖₁ max|v|, rounded once in the tensors' dtype; q or k multiplies it, and a table adds it up.
    """
    each = work.dout.abs().sum(-1).max() * work.v.abs().max() * torch.finfo(work.q.dtype).eps
    largest = max(float(x.detach().abs().max()) for x in (work.q, work.k)) * work.q.shape[-1] ** -0.5
    return float(each.detach()) * max(largest, 1.0)


def bits(_: Results) -> Rows:
    """Repeats give the same bits, all gradients."""
    names = ("plane", "windows of 9") if DRY else ("plane", "windows of 49", "windows beyond 64", "grouped heads")
    for name in names:
        work = families()[name](torch.bfloat16)
        first, repeats = work.gradients("triton"), 1 if DRY else 50
        equal = all(
            torch.equal(a, b) for _ in range(repeats) for a, b in zip(first, work.gradients("triton"), strict=True)
        )
        yield {"family": name, "repeats": repeats, "equal": equal}


def nan(_: Results) -> Rows:
    """cuDNN's backward under a mask, where keys % 128 is 64 and a row's log-sum-exp lies below -88.7."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (torch.randn(1, 1, 64, 64, device=DEVICE, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    bias = torch.full((1, 1, 64, 64), -120.0, device=DEVICE, dtype=torch.bfloat16)

    def nans(backends: list[Any]) -> bool | str:
        try:
            with sdpa_kernel(backends):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)
                return bool(torch.autograd.grad(out.sum(), q)[0].isnan().any())
        except RuntimeError as error:
            return reason(error)

    position = RelativeTable(Grid(64), 1).to(DEVICE)
    torch.nn.init.constant_(position.table, -120.0)
    (ours,) = torch.autograd.grad(attention(q, k, v, grid=Grid(64), position=position, kernel="sdpa").sum(), q)
    cudnn = "needs a device" if DRY else nans([SDPBackend.CUDNN_ATTENTION])
    yield {"cuDNN": cudnn, "kernel sdpa": bool(ours.isnan().any())}
