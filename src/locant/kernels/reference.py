"""The definition: dense, in the dtype it is given, readable as mathematics, covering everything.

    S = scale · q kᵀ + bias + content    [batch, heads, queries, keys]; -inf where the mask forbids
    P = softmax_keys(S)                  a row that may see nothing is 0
    P ← (1 - g) P + g R                  under a gate: R = softmax_keys(positional logits), same mask
    out = dropout(P) v,  lse = log Σ_keys exp(S)

Its memory is O(N²). Nothing is chosen here for speed; every other kernel is tested against this one in float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from locant.kernels.kernel import Output, Work
from locant.problem import Inputs, Problem

name = "reference"


def refuses(problem: Problem) -> str | None:
    return None


def work(problem: Problem) -> Work:
    scores = problem.batch * problem.heads * problem.queries * problem.keys
    maps = 2 + (problem.bias is not None) + (problem.content is not None) + 2 * (problem.gate is not None)
    held = (maps * scores + problem.terms) * problem.width
    return Work(
        flops=2 * scores * (problem.head_dim + problem.value_dim) + 2 * problem.terms * problem.head_dim,
        bytes=problem.stream + 2 * held,
        held=held,
        notes=("forms every score: memory grows with queries × keys",),
    )


def run(problem: Problem, inputs: Inputs) -> Output:
    p, lse = probabilities(problem, inputs)
    if inputs.dropout > 0:
        p = torch.nn.functional.dropout(p, inputs.dropout)
    return p @ inputs.grouped()[1], lse if problem.lse else None


def probabilities(
    problem: Problem, inputs: Inputs
) -> tuple[Float[Tensor, "batch heads queries keys"], Float[Tensor, "batch heads queries"]]:
    """The weights that meet the values, before dropout, and the log-sum-exp of the content's logits."""
    grid, key_grid = problem.grid, problem.key_grid
    logits = inputs.scale * (inputs.q @ inputs.grouped()[0].transpose(-1, -2))
    if inputs.bias is not None:
        logits = logits + inputs.bias.dense(grid, key_grid).to(logits.dtype)
    if inputs.content is not None:
        logits = logits + inputs.content.dense(grid, key_grid).to(logits.dtype)
    allowed = None if inputs.mask is None else inputs.mask.allowed(grid, key_grid, logits.device)
    p, lse = softmax(logits, allowed)
    if inputs.gate is not None:
        r, _ = softmax(inputs.gate.dense(grid, key_grid)[None], allowed)
        share = inputs.gate.share[:, None, None]
        p = ((1 - share) * p + share * r).to(p.dtype)
    return p, lse


def softmax(logits: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax over the last axis and its log-sum-exp. A row that may see nothing gives 0 and -inf."""
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if logits.shape[-1] == 0:
        return logits, logits.new_full(logits.shape[:-1], -torch.inf)
    top = logits.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    e = torch.exp(logits - top)
    total = e.sum(-1, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -torch.inf, top + torch.log(total))
    return e / total, lse.squeeze(-1)
