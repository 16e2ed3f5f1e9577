"""What a kernel owes the definition: values, log-sum-exp and every gradient, in every dtype. More laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import truth
from laws import able, attention, gradients, law, same
from schemes import HEAD_DIM, HEADS, LINE, RAGGED, SCHEMES, WHOLE, Scheme, heads, learned, parts
from torch import Tensor

from locant import attend, hooks
from locant.attend import weights
from locant.grid import Grid
from locant.masks import Causal, Mask, Padding, Pairs, Segments, Windows
from locant.measuring.exactness import plainly
from locant.positions.decomposed import Decomposed
from locant.positions.gate import GatedPosition
from locant.positions.position import Gate
from locant.positions.rotary import Rotary

BY_NAME = {scheme.name: scheme for scheme in SCHEMES}
SMALL = {1: (6,), 2: (3, 4), 3: (2, 3, 2)}


def draw(*shape: int, below: int = 3) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(6))


def every_sample(grid: Grid) -> Mask:
    """Padding and segments: another mask in each sample. Sample 1 has queries that see nothing."""
    valid = draw(2, grid.tokens) > 0
    valid[1, : grid.tokens // 2] = False
    ids = draw(2, *grid.shape, below=2)
    return Padding(valid) & Segments(ids, ids.roll(1, -1))


def twice(grid: Grid) -> Mask:
    """Two orders, neither of which holds the other, and two paddings, one of them the same for all samples."""
    first, last = torch.ones(1, grid.tokens, dtype=torch.bool), torch.ones(2, grid.tokens, dtype=torch.bool)
    first[:, 0] = last[0, -1] = False
    return Causal() & Padding(first) & Causal(axis=grid.axes - 1) & Padding(last)


MASKS: dict[str, Callable[[Grid], Mask | None]] = {
    "free": lambda grid: None,
    "causal": lambda grid: Causal(),
    "causal-in-time": lambda grid: Causal(axis=0),
    "windows": lambda grid: WHOLE[grid.axes],
    "shifted": lambda grid: RAGGED[grid.axes],
    "two-windows": lambda grid: RAGGED[grid.axes] & WHOLE[grid.axes],
    "samples": every_sample,
    "twice": twice,
    "pairs": lambda grid: Pairs(draw(2, HEADS, grid.tokens, grid.tokens) > 0),
    "cells+samples": lambda grid: every_sample(grid) & Windows((2,) * grid.axes),
    "shifted+samples": lambda grid: every_sample(grid) & RAGGED[grid.axes],
    "shifted+causal": lambda grid: RAGGED[grid.axes] & Causal(),
}


@dataclass(frozen=True)
class Case:
    """A scheme under a mask."""

    scheme: Scheme
    mask: str

    def __str__(self) -> str:
        return f"{self.scheme}-{self.mask}"


CASES = tuple(Case(s, m) for s, m in itertools.product(SCHEMES, MASKS))
# every mask with one scheme, every scheme with three masks: the slow truth takes its time
SLOW = tuple(
    c
    for c in CASES
    if c.scheme.name in ("table-2d-prefix", "gate-2d") or c.mask in ("shifted+causal", "cells+samples", "twice")
)


@lru_cache(maxsize=16)
def golden(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """From tests/truth.py: the output and its gradients, the log-sum-exp and its gradients where it is finite."""
    grid = Grid(*SMALL[case.scheme.grid.axes], prefix=case.scheme.grid.prefix)
    position = case.scheme.make()
    q_k_v = tuple(x.requires_grad_() for x in heads(grid, kv_heads=1))
    arguments = {"grid": grid, "position": position, "mask": MASKS[case.mask](grid), "scale": 0.7}
    out, lse = truth.attention(*q_k_v, **arguments)
    inputs, there = (*q_k_v, *learned(position)), lse != -torch.inf
    return [out.detach(), *gradients(out, inputs)], [lse.detach(), *gradients(lse[there], inputs)]


@law(*SLOW)
def attention_is_its_definition(case: Case, kernel: str) -> None:
    """Against tests/truth.py: values, log-sum-exp and every gradient."""
    grid = Grid(*SMALL[case.scheme.grid.axes], prefix=case.scheme.grid.prefix)
    position = case.scheme.make()
    q, k, v = (x.requires_grad_() for x in heads(grid, kv_heads=1))
    inputs = (q, k, v, *learned(position))
    (expected, *by_out), (expected_lse, *by_lse) = golden(case)
    arguments = {"grid": grid, "position": position, "mask": MASKS[case.mask](grid), "scale": 0.7, "kernel": kernel}
    out = attention(q, k, v, **arguments)
    same(out, expected)
    for found, ref in zip(gradients(out, inputs), by_out, strict=True):
        same(found, ref, "gradients")
    if not any(isinstance(p, Gate) for p in parts(position)):
        out, lse = attention(q, k, v, return_lse=True, **arguments)
        same(out, expected, "values beside the log-sum-exp")
        there = expected_lse != -torch.inf
        assert torch.equal(lse != -torch.inf, there)
        same(lse[there], expected_lse[there], "log-sum-exp")
        for found, ref in zip(gradients(lse[there], inputs), by_lse, strict=True):
            same(found, ref, "gradients of the log-sum-exp")


@law(*(c for c in CASES if c.mask in ("free", "shifted+samples")))
def weights_are_shares(case: Case, kernel: str) -> None:
    """Each row is positive and sums to 1, or to 0 if it sees nothing; times the values it is the output."""
    grid, position, mask = case.scheme.grid, case.scheme.make(), MASKS[case.mask](case.scheme.grid)
    q, k, v = heads(grid)
    p = weights(q, k, grid=grid, position=position, mask=mask)
    assert (p >= 0).all()
    total = p.sum(-1)
    same(total, (total > 0.5).double(), "sums of rows")
    same(p @ v, attention(q, k, v, grid=grid, position=position, mask=mask, kernel=kernel), "weights times values")


@law(*MASKS)
def masks_are_their_definition(mask: str, kernel: str) -> None:
    """Pair by pair, on a line, a plane and a clip, each with a prefix."""
    for shape in SMALL.values():
        grid = Grid(*shape, prefix=1)
        made = MASKS[mask](grid)
        if made is not None:
            found = made.allowed(grid).expand(2, HEADS, -1, -1)
            assert torch.equal(found, truth.allowed(made, grid, grid, 2, HEADS)), f"{mask} on {grid}"


@law(LINE)
def rotation_by_hand(grid: Grid, kernel: str) -> None:
    """One pair, one step: (1, 0) goes to (cos 1, sin 1), against the clock, for queries and keys alike."""
    x = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    golden = torch.tensor([math.cos(1), math.sin(1)], dtype=torch.float64)
    same(Rotary(2)(x, Grid(1, origin=(1,))).flatten(), golden, "a turned pair")


@law(*(s for s in SCHEMES if s.name in ("rotary-3d", "table-3d", "gate-3d", "rotary-1d", "table+alibi+rotary")))
def moved_queries_are_elsewhere(scheme: Scheme, kernel: str) -> None:
    """The grid's origin and stride count: keys at other places give another output, and the slow truth the same."""
    small = Grid(*SMALL[scheme.grid.axes])
    position = scheme.make()
    far = Grid(*small.shape, origin=(1,) * small.axes)
    if "table" in scheme.name:
        far = Grid(*small.shape[:-1], small.shape[-1] - 1, origin=(0,) * (small.axes - 1) + (1,))
    q, k, v = heads(small, far)
    golden, _ = truth.attention(q, k, v, grid=small, key_grid=far, position=position)
    same(attention(q, k, v, grid=small, key_grid=far, position=position, kernel=kernel), golden)


@law(Grid(3, 3), Grid(2, 2, 2))
def a_square_gate_keeps_its_axes(grid: Grid, kernel: str) -> None:
    """On equal sides swapped axes fit, and only the values tell."""
    gate = Scheme("", grid, lambda: GatedPosition(HEADS, axes=grid.axes)).make()
    q, k, v = heads(grid)
    golden, _ = truth.attention(q, k, v, grid=grid, position=gate)
    same(attention(q, k, v, grid=grid, position=gate, kernel=kernel), golden)


@law(Grid(4, 4), Grid(3, 3, 3))
def decomposed_on_a_square_keeps_its_axes(grid: Grid, kernel: str) -> None:
    """The same of terms per axis, with all keys and in windows with equal sides."""
    position = Scheme("", grid, lambda: Decomposed(grid, HEADS, HEAD_DIM)).make()
    q, k, v = heads(grid)
    for mask in (None, Windows((2,) * grid.axes)):
        golden, _ = truth.attention(q, k, v, grid=grid, position=position, mask=mask)
        same(attention(q, k, v, grid=grid, position=position, mask=mask, kernel=kernel), golden)


@law(1, 2, 4)
def key_heads_serve_neighbouring_queries(kv_heads: int, kernel: str) -> None:
    """Grouped queries: heads 0 and 1 share the first key head of two, 2 and 3 the second."""
    grid, draw = Grid(5), torch.Generator().manual_seed(9)
    q, k, v = (torch.randn(1, n, 5, 4, generator=draw, dtype=torch.float64) for n in (4, kv_heads, kv_heads))
    golden, _ = truth.attention(q, k, v, grid=grid)
    same(attention(q, k, v, grid=grid, kernel=kernel), golden)


@law("padding", "pairs")
def senses_agree(kind: str, kernel: str) -> None:
    """Every published way to write one mask gives one mask."""
    lengths = torch.tensor([5, 2])
    kept = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    blocked = (~kept).double()
    if kind == "padding":
        found = [
            Padding.from_lengths(lengths, 5),
            Padding.from_key_padding_mask(~kept),
            Padding.from_attention_mask(kept.int()),
            Padding.from_additive(blocked[:, None, None] * -10000.0),
        ]
        assert all(torch.equal(mask.valid, kept) for mask in found)
    else:
        rows = kept[:, None]
        found = [
            Pairs.from_kept(rows.int()), Pairs.from_blocked(~rows), Pairs.from_additive(blocked[:, None] * -1e9),
            Pairs.from_window_mask(blocked[:, None] * -100.0, batch=1), Pairs.from_lengths(lengths[:, None], 5),
        ]  # fmt: skip
        assert all(torch.equal(mask.allowed_pairs, rows) for mask in found)


@law(*"none-free table-2d-shifted table-2d-prefix-causal table-2d-prefix-windows table-1d-samples gate-2d-free".split())
def dropout_drops_the_same_weights_backward(case: str, kernel: str) -> None:
    """Values that are rows of the unit matrix show what was dropped; with that, the gradients are known.

    out = (P ∘ M / (1 - p)) v, M being 0 or 1, the same for the output and for every gradient.
    """
    scheme = BY_NAME[case.rpartition("-")[0]]
    grid, position, p = scheme.grid, scheme.make(), 0.4
    q, k, _ = (x.requires_grad_() for x in heads(grid, kv_heads=1))
    v = torch.eye(grid.tokens, dtype=q.dtype).expand(2, 1, -1, -1).clone().requires_grad_()
    arguments = {"grid": grid, "position": position, "mask": MASKS[case.rpartition("-")[2]](grid)}
    torch.manual_seed(5)
    out = attention(q, k, v, dropout=p, kernel=kernel, **arguments)
    weights_kept = weights(q, k, **arguments)
    seen, kept = weights_kept > 0, out != 0
    assert 0.5 < kept[seen].double().mean() < 0.7
    golden = torch.where(kept, weights_kept / (1 - p), 0.0) @ v
    same(out, golden)
    inputs = (q, k, v, *learned(position))
    for found, expected in zip(gradients(out, inputs), gradients(golden, inputs), strict=True):
        same(found, expected, "gradients")


@law("table-2d", "table-2d-prefix", "table+gate")
def packed_is_the_same_attention(scheme: str, kernel: str) -> None:
    """Straight from the projection: values, and the projection's gradient."""
    grid, position = BY_NAME[scheme].grid, BY_NAME[scheme].make()
    qkv = torch.randn(2, grid.tokens, 3, HEADS, 8, dtype=torch.float64, requires_grad=True)
    q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))
    arguments = {"grid": grid, "position": position, "mask": RAGGED[2]}
    arguments["kernel"] = able(kernel, q, k, v, **arguments)
    golden = attend.attention(q, k, v, **arguments)
    golden = torch.cat([golden[:, head] for head in range(HEADS)], dim=-1)
    found = attend.attention_packed(qkv, **arguments)
    same(found, golden)
    inputs = (qkv, *learned(position))
    for one, other in zip(gradients(found, inputs), gradients(golden, inputs), strict=True):
        same(one, other, "gradients")
    if not grid.prefix:
        del arguments["grid"]  # it is read off the picture
        found = attend.attention_packed(qkv.unflatten(1, grid.shape), **arguments)
        same(found, golden.unflatten(1, grid.shape))
        for one, other in zip(
            gradients(found, inputs), gradients(golden.unflatten(1, grid.shape), inputs), strict=True
        ):
            same(one, other, "gradients of a picture")


def results(case: Case, dtype: torch.dtype, kernel: str, arithmetic: torch.dtype | None = None) -> list[Tensor]:
    """Output and every gradient; the numbers are rounded to `dtype` first, then computed in `arithmetic`.

    The gradients of one scheme are one tensor. Two numbers, one per head, have no scale of their own: under `Causal`
    the row between prefix tokens shifts a whole softmax, so that its gradient is 0 but for rounding.
    """
    arithmetic = dtype if arithmetic is None else arithmetic
    grid, position = case.scheme.grid, case.scheme.make(dtype)
    for part in parts(position):
        part.to(arithmetic)
    q, k, v = (x.to(arithmetic).requires_grad_() for x in heads(grid, kv_heads=1, dtype=dtype))
    arguments = {"grid": grid, "position": position, "mask": MASKS[case.mask](grid)}
    if kernel == "plain":  # the definition in this dtype, each step rounded
        with hooks.attending(plainly):
            out = attend.attention(q, k, v, **arguments)
    else:
        out = attend.attention(q, k, v, kernel=kernel, **arguments)
    groups = [(q,), (k,), (v,), *(tuple(part.parameters()) for part in parts(position))]
    found = [gradients(out, group) for group in groups if group]
    return [out.detach(), *(torch.cat([g.flatten() for g in group]) for group in found)]


def within_policy(found: list[Tensor], plain: list[Tensor], golden: list[Tensor]) -> None:
    """Error from the float64 golden at most that of the same mathematics done plainly in that dtype, times a factor.

    float32: max(2 low, 1e-5 max|golden|); half precisions: 2 low + 2 max|(golden + 0.3 - 0.3) - golden|, the sum
    taken in that dtype. Gradients have 3 for 2.
    """
    for number, (x, low, ref) in enumerate(zip(found, plain, golden, strict=True)):
        factor = 2 if number == 0 else 3
        assert x.dtype == low.dtype
        assert x.isfinite().all()
        error, usual = ((y.double() - ref).abs().max().item() for y in (x, low))
        if x.dtype == torch.float32:
            limit = max(factor * usual, 1e-5 * ref.abs().max().item())
        else:
            rounded = ref.to(x.dtype)
            limit = factor * usual + 2 * ((rounded + 0.3 - 0.3) - rounded).abs().max().item()
        assert error <= limit, f"result {number}: error {error:.3g}, limit {limit:.3g} (plain arithmetic: {usual:.3g})"
