"""Attention written slowly from its definition, token by token: what the library is measured against.

Nothing of the library's arithmetic is used here. Grids, masks and positions are read for their plain fields only
(sizes, lengths, learned numbers), and every rule is written again from coordinates, one pair of tokens at a time;
the formula of a scheme stands in its own file of tests/schemes.
The result is differentiable, so that gradients have an independent truth as well.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from schemes import Place, case
from torch import Tensor

from locant.grid import Grid
from locant.masks import Causal, Every, Mask, Padding, Pairs, Segments, Windows
from locant.positions.position import Bias, Content, Gate, Position, Rotation


@lru_cache(maxsize=64)
def places(grid: Grid) -> list[Place]:
    """The coordinate of every token in order; None for prefix tokens."""
    lines = [[o + i * s for i in range(n)] for n, o, s in zip(grid.shape, grid.origin, grid.stride, strict=True)]
    return [None] * grid.prefix + list(itertools.product(*lines))


def sees(mask: Mask | None, grid: Grid, key_grid: Grid, sample: int, head: int, i: int, j: int) -> bool:
    """Whether query i may see key j."""
    query, key = places(grid)[i], places(key_grid)[j]
    if mask is None:
        return True
    if isinstance(mask, Every):
        return all(sees(m, grid, key_grid, sample, head, i, j) for m in mask.masks)
    if isinstance(mask, Causal):
        if key is None or query is None:  # a prefix key is seen by all, a prefix query sees the prefix only
            return key is None
        return key <= query if mask.axis is None else key[mask.axis] <= query[mask.axis]
    if isinstance(mask, Windows):
        if key is None or query is None:
            return True
        cuts = list(zip(mask.size, mask.shift, strict=True))
        return all((a - s) // n == (b - s) // n for a, b, (n, s) in zip(query, key, cuts, strict=True))
    if isinstance(mask, Padding):
        return _of_token(mask.valid, key_grid, sample, j, True)
    if isinstance(mask, Segments):
        one = _of_token(mask.ids, grid, sample, i, None)
        other = _of_token(mask.key_ids, key_grid, sample, j, None)
        return one is None or other is None or one == other
    assert isinstance(mask, Pairs)
    allowed = mask.allowed_pairs
    allowed = allowed[:, None] if allowed.ndim == 3 else allowed
    index = [
        n if size > 1 else 0 for n, size in zip((sample, head, i, j)[4 - allowed.ndim :], allowed.shape, strict=True)
    ]
    return bool(allowed[tuple(index)])


def _of_token(value: Tensor, grid: Grid, sample: int, token: int, without: bool | None) -> int | bool | None:
    """What a tensor [batch, tokens] or [batch, *grid] says of one token; `without` for a prefix it does not cover."""
    row = value[sample if len(value) > 1 else 0].flatten()
    token = token if len(row) == grid.tokens else token - grid.prefix
    return row[token].item() if token >= 0 else without


def allowed(mask: Mask | None, grid: Grid, key_grid: Grid, batch: int = 1, heads: int = 1) -> Tensor:
    """`sees` for all pairs: bool [batch, heads, queries, keys]."""
    counts = (batch, heads, grid.tokens, key_grid.tokens)
    pairs = [sees(mask, grid, key_grid, *pair) for pair in itertools.product(*map(range, counts))]
    return torch.tensor(pairs, dtype=torch.bool).reshape(counts)


def rotated(position: Rotation, x: Tensor, grid: Grid) -> Tensor:
    """Every vector of `[batch, heads, tokens, head_dim]` turned at its own place."""
    turned = case(position).turned
    rows = [turned(position, row, places(grid)[i % grid.tokens]) for i, row in enumerate(x.flatten(0, 2))]
    return torch.stack(rows).reshape(x.shape) if rows else x


def softmax(logits: list[Tensor], seen: list[bool]) -> tuple[list[Tensor], Tensor]:
    """Probabilities and log-sum-exp of one row; zeros and -inf if nothing is seen."""
    terms = [torch.exp(x) for x, there in zip(logits, seen, strict=True) if there]
    if not terms:
        return [torch.zeros((), dtype=torch.float64)] * len(seen), torch.tensor(-math.inf, dtype=torch.float64)
    total = sum(terms[1:], terms[0])
    none = torch.zeros_like(total)
    return [torch.exp(x) / total if there else none for x, there in zip(logits, seen, strict=True)], torch.log(total)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Grid,
    key_grid: Grid | None = None,
    position: Position | tuple[Position, ...] | None = None,
    mask: Mask | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, by loops over samples, heads, queries and keys."""
    key_grid = grid if key_grid is None else key_grid
    schemes = () if position is None else position if isinstance(position, tuple) else (position,)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    biases, contents, gates, rotations = (
        [p for p in schemes if isinstance(p, entrance)] for entrance in (Bias, Content, Gate, Rotation)
    )
    at, key_at, share, asked = places(grid), places(key_grid), q.shape[1] // max(1, k.shape[1]), q
    for p in contents:
        q = getattr(case(p), "met", lambda p, q: q)(p, q)
    for p in rotations:
        q, k = rotated(p, q, grid), rotated(p, k, key_grid)
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    lse = q.new_zeros(q.shape[:3])
    seen = allowed(mask, grid, key_grid, q.shape[0], q.shape[1]).tolist()
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        content = (scale * (q[b, h, i] @ key) for key in k[b, h // share])
        logits = [s + sum(case(p).bias(p, h, at[i], c) for p in biases) for s, c in zip(content, key_at, strict=True)]
        for p in contents:
            added = (case(p).term(p, h, asked[b, h, i], scale, at[i], c) for c in key_at)
            logits = [x + extra for x, extra in zip(logits, added, strict=True)]
        row = seen[b][h][i]
        weights, total = softmax(logits, row)
        for gate in gates:
            mine = torch.sigmoid(gate.gate[h])
            where, _ = softmax([case(gate).logit(gate, h, at[i], c) for c in key_at], row)
            weights = [(1 - mine) * p + mine * r for p, r in zip(weights, where, strict=True)]
        rows = [w * v[b, h // share, j] for j, w in enumerate(weights) if row[j]]
        out = out.index_put(tuple(torch.tensor(n) for n in (b, h, i)), sum(rows, v.new_zeros(v.shape[3])))
        lse = lse.index_put(tuple(torch.tensor(n) for n in (b, h, i)), total)
    return out, lse
