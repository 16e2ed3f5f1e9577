"""Attention written slowly from its definition, token by token: what the library is measured against.

Nothing of the library's arithmetic is used here. Grids, masks and positions are read for their plain fields only
(sizes, lengths, learned numbers), and every rule is written again from coordinates, one pair of tokens at a time.
The result is differentiable, so that gradients have an independent truth as well.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor

from locant.grid import Grid
from locant.masks import Causal, Every, Mask, Padding, Pairs, Segments, Windows
from locant.positions.buckets import T5Buckets
from locant.positions.decomposed import Decomposed
from locant.positions.field import LogCPB
from locant.positions.gate import GatedPosition
from locant.positions.position import Content, Position
from locant.positions.rotary import Rotary
from locant.positions.shaw import Shaw
from locant.positions.slopes import ALiBi
from locant.positions.table import RelativeTable
from locant.positions.transformer_xl import TransformerXL

Place = tuple[int, ...] | None


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


def bias(position: Position, head: int, query: Place, key: Place) -> Tensor | float:
    """What a scheme adds to the logit of one pair."""
    if isinstance(position, RelativeTable):
        if query is None or key is None:
            rows = {(True, False): "query_prefix", (False, True): "key_prefix", (True, True): "both"}
            row = getattr(position, rows[query is None, key is None])
            return 0.0 if row is None else row[head]
        centre = [size - 1 for size in position.grid.shape]
        return position.table[(head, *(a - b + c for a, b, c in zip(query, key, centre, strict=True)))]
    if isinstance(position, ALiBi):
        if query is None or key is None:
            return 0.0
        steps = [abs(a - b) for a, b in zip(query, key, strict=True)]
        distance = sum(steps) if position.distance == "manhattan" else math.hypot(*steps)
        return -slope(position.heads, head) * distance
    if isinstance(position, T5Buckets):
        return 0.0 if query is None or key is None else position.table[head, bucket(position, query[0] - key[0])]
    if isinstance(position, LogCPB):
        return 0.0 if query is None or key is None else read_off(position, head, query, key)
    return 0.0


def bucket(position: T5Buckets, offset: int) -> int:
    """T5's bucket: near distances one by one, far ones by their logarithm, keys to the right in the second half."""
    side = position.buckets // 2 if position.bidirectional else position.buckets
    exact, distance = side // 2, abs(offset)
    found = distance
    if distance >= exact:
        part = math.log(distance / exact) / math.log(position.max_distance / exact)
        found = min(side - 1, exact + int(part * (side - exact)))
    return found + side * (offset < 0)


def read_off(position: LogCPB, head: int, query: Place, key: Place) -> Tensor:
    """Swin V2's perceptron of the offset, unit by unit."""
    assert query is not None
    assert key is not None
    coordinates = []
    for a, b, size in zip(query, key, position.pretrained.shape, strict=True):
        part = 8 * (a - b) / max(1, size - 1)
        coordinates.append(math.copysign(math.log2(abs(part) + 1) / 3, part))
    first, second = position.mlp.fc1, position.mlp.fc2
    total = second.weight[head, 0] * 0
    for unit in range(len(first.weight)):
        inside = first.bias[unit] + sum(w * c for w, c in zip(first.weight[unit], coordinates, strict=True))
        total = total + second.weight[head, unit] * torch.relu(inside)
    return 16 / (1 + torch.exp(-total))


def term(position: Content, head: int, q: Tensor, scale: float, query: Place, key: Place) -> Tensor | float:
    """What a content scheme adds to the logit of one pair; what it adds to q is `met`."""
    if query is None or key is None:
        return 0.0
    steps = [a - b for a, b in zip(query, key, strict=True)]
    if isinstance(position, Decomposed):
        centre = [size - 1 for size in position.grid.shape]
        rows = (table[step + c] for table, step, c in zip(position.tables, steps, centre, strict=True))
        return sum(q @ row for row in rows)
    (step,) = steps
    if isinstance(position, Shaw):
        far, own = position.distance, head if len(position.table) > 1 else 0
        row = min(step, far) if position.causal else max(-far, min(step, far)) + far
        extra = 0.0 if position.bias is None else position.bias[own, row]
        return scale * (q @ position.table[own, row] + extra)
    assert isinstance(position, TransformerXL)
    if position.clamp is not None:
        step = max(-position.clamp, min(step, position.clamp))
    rates = [10000.0 ** (-2 * m / position.dim) for m in range(position.dim // 2)]
    wave = [math.sin(step * rate) for rate in rates] + [math.cos(step * rate) for rate in rates]
    told = position.r_net.weight @ torch.tensor(wave, dtype=q.dtype)
    return scale * ((q + position.biases()[1][head]) @ told.unflatten(0, (position.heads, -1))[head])


def met(position: Content, q: Tensor) -> Tensor:
    """What meets the keys: q, and u where a scheme has one."""
    u = position.biases()[0] if isinstance(position, TransformerXL) else getattr(position, "u", None)
    return q if u is None else q + u[None, :, None]


def slope(heads: int, head: int) -> float:
    """ALiBi's published recipe: 2^(-8(h+1)/n); beyond a power of two, every second one of the next larger power."""
    power = 1
    while power * 2 <= heads:
        power *= 2
    return 2 ** (-8 * (head + 1) / power) if head < power else 2 ** (-8 * (2 * (head - power) + 1) / (2 * power))


def rotated(position: Rotary, x: Tensor, grid: Grid) -> Tensor:
    """Every vector of `[batch, heads, tokens, head_dim]` turned at its own place."""
    rows = [turned(position, row, places(grid)[i % grid.tokens]) for i, row in enumerate(x.flatten(0, 2))]
    return torch.stack(rows).reshape(x.shape) if rows else x


def turned(position: Rotary, x: Tensor, place: Place) -> Tensor:
    """One vector turned pair by pair, each by its own angle."""
    if place is None:
        return x
    out, pair = list(x), 0
    for coordinate, count in zip(place, position.pairs, strict=True):
        for i in range(count):
            angle = coordinate / position.base ** (i / count)
            halves = position.layout == "halves"
            one, two = (pair, pair + len(x) // 2) if halves else (2 * pair, 2 * pair + 1)
            out[one] = x[one] * math.cos(angle) - x[two] * math.sin(angle)
            out[two] = x[one] * math.sin(angle) + x[two] * math.cos(angle)
            pair += 1
    return torch.stack(out)


def gate_logit(position: GatedPosition, head: int, query: Place, key: Place) -> Tensor:
    """ConViT's positional logit of one pair; 0 without a place."""
    if query is None or key is None:
        return position.spread[head] * 0
    steps = [a - b for a, b in zip(query, key, strict=True)]
    linear = sum(position.direction[head, axis] * step for axis, step in enumerate(steps))
    return linear + position.spread[head] * sum(step**2 for step in steps)


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
    gates = [p for p in schemes if isinstance(p, GatedPosition)]
    at, key_at, share = places(grid), places(key_grid), q.shape[1] // max(1, k.shape[1])
    contents, asked = [p for p in schemes if isinstance(p, Content)], q
    for p in contents:
        q = met(p, q)
    for p in schemes:
        if isinstance(p, Rotary):
            q, k = rotated(p, q, grid), rotated(p, k, key_grid)
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    lse = q.new_zeros(q.shape[:3])
    seen = allowed(mask, grid, key_grid, q.shape[0], q.shape[1]).tolist()
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        content = (scale * (q[b, h, i] @ key) for key in k[b, h // share])
        logits = [s + sum(bias(p, h, at[i], c) for p in schemes) for s, c in zip(content, key_at, strict=True)]
        for p in contents:
            added = (term(p, h, asked[b, h, i], scale, at[i], c) for c in key_at)
            logits = [x + extra for x, extra in zip(logits, added, strict=True)]
        row = seen[b][h][i]
        weights, total = softmax(logits, row)
        for gate in gates:
            mine = torch.sigmoid(gate.gate[h])
            where, _ = softmax([gate_logit(gate, h, at[i], c) for c in key_at], row)
            weights = [(1 - mine) * p + mine * r for p, r in zip(weights, where, strict=True)]
        rows = [w * v[b, h // share, j] for j, w in enumerate(weights) if row[j]]
        out = out.index_put(tuple(torch.tensor(n) for n in (b, h, i)), sum(rows, v.new_zeros(v.shape[3])))
        lse = lse.index_put(tuple(torch.tensor(n) for n in (b, h, i)), total)
    return out, lse
