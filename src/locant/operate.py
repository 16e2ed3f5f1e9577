"""A problem's tensors as the operators take them (locant.operators): what the kernels of CPUs and of GPUs share."""

from __future__ import annotations

import torch
from torch import Tensor

from locant import operators
from locant.layout import described
from locant.masks import Mask, Padding, Segments
from locant.problem import Inputs, Problem


def operate(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The output and its log-sum-exp; where weights are dropped, the seed is drawn on their device."""
    *content, content_scale = _content(inputs)
    rest = (
        *_bias(inputs), *content, *_masks(problem, inputs.mask), inputs.scale, content_scale, inputs.dropout,
        torch.randint(2**62, (1,), device=inputs.q.device) if inputs.dropout > 0 else None,
    )  # fmt: skip
    if inputs.qkv is not None:
        return operators.attend_packed(inputs.qkv, *rest)
    return operators.attend(inputs.q, inputs.k, inputs.v, *rest)


def _described(problem: Problem) -> tuple[int, ...]:
    reach = () if problem.bias is None else problem.bias.reach
    ranges = () if problem.content is None else problem.content.ranges
    return described(problem.grid, problem.key_grid, problem.mask, reach, ranges)


def _bias(inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
    bias = inputs.bias
    if bias is None:
        return None, None
    rows = (bias.query_prefix, bias.key_prefix, bias.both)
    return bias.table, None if rows[0] is None else torch.stack([row for row in rows if row is not None])


def _content(inputs: Inputs) -> tuple[Tensor | None, Tensor | None, Tensor | None, float]:
    """What meets vectors (None is q), the vectors of all axes, the numbers beside them, and what scales them."""
    met = inputs.content
    if met is None:
        return None, None, None, 1.0
    queries, biases, factor = met.queries, met.biases, met.factor
    vectors, numbers = _joined(met.vectors), None if biases is None else _joined(biases)
    if isinstance(factor, Tensor):  # a number for a kernel has no gradient
        queries = queries * factor.to(queries.dtype)
        if numbers is not None:
            numbers = numbers * factor.to(numbers.dtype).reshape(-1, 1)
            vectors = vectors.expand(len(numbers), -1, -1)
        factor = 1.0
    return None if queries is inputs.q else queries, vectors, numbers, factor


def _joined(lines: tuple[Tensor, ...]) -> Tensor:
    """The offsets of all axes, one axis after the other."""
    return lines[0] if len(lines) == 1 else torch.cat(lines, 1)


def _masks(
    problem: Problem, mask: Mask | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, tuple[int, ...], tuple[int, int]]:
    valid, ids, key_ids, free = None, None, None, (0, 0)
    for member in () if mask is None else mask.members():
        if isinstance(member, Padding):
            valid = member.valid if valid is None else valid & member.valid
        elif isinstance(member, Segments):
            ids, key_ids, free = member.ids, member.key_ids, member.free(problem.grid, problem.key_grid)
    return valid, ids, key_ids, _described(problem), free
