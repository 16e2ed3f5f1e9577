"""A gate's half of attention, axis by axis, for every kernel that has the content's half.

    out = (1 - g) softmax(content) v + g (⊗_axes softmax_axis) v

A gate's positional map is a product of one small softmax per axis, so its half is two or three small matrix products
on v: O(N·(H + W)) per channel instead of O(N²), and once for the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from locant.forms import SeparableValues
from locant.problem import Problem


def refuses(problem: Problem) -> str | None:
    """Why the map of this problem's gate does not factorise, or None."""
    if problem.gate is None:
        return None
    beyond = problem.mask.beyond_windows()
    if beyond is not None:
        return f"under {beyond} the positional map no longer factorises by axis, so the gate needs its dense form"
    if problem.dropout:
        return "dropout acts on the mixed map, so the gate needs its dense form"
    if problem.grid.prefix or problem.key_grid.prefix:
        return "prefix tokens have no place on the axes, so the gate needs its dense form"
    return None


def flops(problem: Problem) -> int:
    return 2 * problem.batch * problem.heads * problem.value_dim * problem.queries * sum(problem.key_grid.shape)


def note(problem: Problem) -> str:
    weights = sum(q * k for q, k in zip(problem.grid.shape, problem.key_grid.shape, strict=True))
    return f"the positional half runs axis by axis: {problem.heads * weights:,} weights for the whole batch"


def mixed(problem: Problem, gate: SeparableValues | None, out: Tensor, v: Tensor) -> Tensor:
    """The content's half `out` and the gate's half; v has a head for every query head."""
    if gate is None:
        return out
    share = gate.share[:, None, None]
    return ((1 - share) * out + share * by_axis(problem, gate, v)).to(out.dtype)


def by_axis(problem: Problem, gate: SeparableValues, v: Tensor) -> Tensor:
    """The positional map times v, one axis after the other; under windows each axis keeps to its own cells.

    In float32 at least: rounded to a half between the axes, the gradients of the gate lost four bits to the reference.
    """
    v = v.to(torch.promote_types(v.dtype, gate.share.dtype)).unflatten(2, problem.key_grid.shape)
    for axis, logits in enumerate(gate.logits):
        allowed = torch.ones((), dtype=torch.bool, device=v.device)
        for windows in problem.mask.windows:
            q, k = (
                torch.div(g.line(axis, None, v.device) - windows.shift[axis], windows.size[axis], rounding_mode="floor")
                for g in (problem.grid, problem.key_grid)
            )
            allowed = allowed & (q[:, None] == k)
        p = torch.softmax(logits.masked_fill(~allowed, torch.finfo(logits.dtype).min), -1) * allowed
        p = p.to(v.dtype).reshape(problem.heads, *(1,) * (problem.grid.axes - 1), *p.shape[1:])
        v = (p @ v.movedim(2 + axis, -2)).movedim(-2, 2 + axis)
    return v.flatten(2, 1 + problem.grid.axes)
