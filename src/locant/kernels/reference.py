"""The definition: dense, in float32 or in float64, readable as mathematics, covering everything.

    S = scale · q kᵀ + bias + content    [batch, heads, queries, keys]; -inf where the mask forbids
    P = softmax_keys(S)                  a row that may see nothing is 0
    P ← (1 - g) P + g R                  under a gate: R = softmax_keys(positional logits), same mask
    out = dropout(P) v,  lse = log Σ_keys exp(S)

Its memory is O(N²). Nothing is chosen here for speed; every other kernel is tested against this one in float64.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from locant.kernels.kernel import Output, Work
from locant.problem import Inputs, Problem
from locant.softmax import softmax

name = "reference"


def refuses(problem: Problem) -> str | None:
    return None


def work(problem: Problem) -> Work:
    scores = problem.batch * problem.heads * problem.queries * problem.keys
    maps = 2 + (problem.bias is not None) + (problem.content is not None) + 2 * (problem.gate is not None)
    held = (maps * scores + problem.terms) * max(4, problem.width)
    return Work(
        flops=2 * scores * (problem.head_dim + problem.value_dim) + 2 * problem.terms * problem.head_dim,
        bytes=problem.stream + 2 * held,
        held=held,
        notes=("forms every score: memory grows with queries × keys",),
    )


def run(problem: Problem, inputs: Inputs) -> Output:
    """The definition, halves raised to float32 and rounded at the end, as torch's own dense attention does."""
    out, lse = dense(problem, _raised(inputs))
    return out.to(inputs.q.dtype), lse


def weights(problem: Problem, inputs: Inputs) -> Float[Tensor, "batch heads queries keys"]:
    """The weights that meet the values, before dropout."""
    return probabilities(problem, _raised(inputs))[0].to(inputs.q.dtype)


def _raised(inputs: Inputs) -> Inputs:
    q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (inputs.q, inputs.k, inputs.v))
    content = inputs.content
    if content is not None:
        content = replace(content, queries=content.queries.to(q.dtype))
    return replace(inputs, q=q, k=k, v=v, content=content)


def dense(problem: Problem, inputs: Inputs) -> Output:
    """The definition, every step rounded to the dtype of `inputs`: what other kernels' errors are measured by."""
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
