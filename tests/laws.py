"""The laws of position-aware attention, as plain functions that raise AssertionError when they are broken.

`LAWS` maps a law's name to the function and the cases it is meant for; tests/test_laws.py runs them all under every
kernel, tests/test_mutants.py shows that each of them bites. A kernel that refuses a case leaves it to the planner's
choice: tests/test_plan.py holds which refuses what.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import truth
from schemes import (
    BIASES,
    CLIP,
    HEAD_DIM,
    HEADS,
    LINE,
    NONE,
    PLACED,
    PLANE,
    PURE,
    RAGGED,
    SCHEMES,
    UNPLACED,
    WHOLE,
    Scheme,
    heads,
    learned,
    parts,
)  # fmt: skip
from torch import Tensor

from locant import attend, planner
from locant.attend import weights
from locant.grid import Grid
from locant.masks import Causal, Mask, Padding, Pairs, Windows
from locant.positions.position import Gate, Rotation
from locant.positions.rotary import Rotary
from locant.positions.table import RelativeTable

TOLERANCE = 1e-10  # float64
KERNELS = tuple(kernel.name for kernel in planner.FAMILY)
LAWS: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {}


def law(*cases: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enters a function `(case, kernel)` into the table, with the cases that it holds for."""

    def enter(check: Callable[..., None]) -> Callable[..., None]:
        LAWS[check.__name__] = (check, cases)
        return check

    return enter


def able(kernel: str, *q_k_v: Tensor, **arguments: Any) -> str:
    """The kernel of that name if it does not refuse, else the planner's choice."""
    problem = attend.plan(*q_k_v, **arguments).problem
    return "auto" if kernel == "auto" or planner.named(kernel).refuses(problem) is not None else kernel


def attention(q: Tensor, k: Tensor, v: Tensor, *, kernel: str, **arguments: Any) -> Any:
    """The verb, by the kernel of that name where it can."""
    return attend.attention(q, k, v, kernel=able(kernel, q, k, v, **arguments), **arguments)


def same(found: Tensor, golden: Tensor, what: str = "values") -> None:
    assert found.shape == golden.shape, f"{what}: shape {list(found.shape)}, expected {list(golden.shape)}"
    error = (found - golden).abs().max().item() if golden.numel() else 0.0
    assert error <= TOLERANCE, f"{what} differ by {error:.3g}"  # a NaN fails as well


def differ(one: Tensor, other: Tensor, what: str = "values") -> None:
    assert (one - other).abs().max().item() > 1e-3, f"{what} should differ, and do not"


def moved(grid: Grid, *steps: int) -> Grid:
    origin = tuple(o + s for o, s in zip(grid.origin, steps, strict=True))
    return Grid(*grid.shape, prefix=grid.prefix, origin=origin, stride=grid.stride)


def flipped(x: Tensor, grid: Grid) -> Tensor:
    """Rows of `[batch, heads, tokens, dim]`, the cells mirrored along every axis, the prefix left in front."""
    cells = x[:, :, grid.prefix :].unflatten(2, grid.shape).flip(tuple(range(2, 2 + grid.axes)))
    return torch.cat([x[:, :, : grid.prefix], cells.flatten(2, 1 + grid.axes)], dim=2)


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Of a fixed random sum of the output; zeros where an input plays no part."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(out.dtype)
    found = torch.autograd.grad(out, inputs, weight, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


@law(*SCHEMES)
def moving_every_token_changes_nothing(scheme: Scheme, kernel: str) -> None:
    position, q_k_v = scheme.make(), heads(scheme.grid)
    # prefix tokens are not turned, so that cells meet them at the angle of their own place: a rotation with a prefix
    # is no function of offsets alone
    check = differ if scheme.grid.prefix and any(isinstance(p, Rotation) for p in parts(position)) else same
    far = moved(scheme.grid, *(7, -5, 11)[: scheme.grid.axes])
    for mask in (None, Causal()):
        here = attention(*q_k_v, grid=scheme.grid, position=position, mask=mask, kernel=kernel)
        check(attention(*q_k_v, grid=far, position=position, mask=mask, kernel=kernel), here)
    windows = RAGGED[scheme.grid.axes]
    far = moved(scheme.grid, *(3 * n for n in windows.size))
    here = attention(*q_k_v, grid=scheme.grid, position=position, mask=windows, kernel=kernel)
    check(attention(*q_k_v, grid=far, position=position, mask=windows, kernel=kernel), here)


@law(*SCHEMES)
def only_the_offset_matters(scheme: Scheme, kernel: str) -> None:
    """With one vector for all queries and one for all keys, equal offsets give equal logits."""
    grid, position = scheme.grid, scheme.make()
    q, k, v = (x[:1, :, :1].expand(-1, -1, grid.tokens, -1) for x in heads(grid))
    gate = next((p for p in parts(position) if isinstance(p, Gate)), None)
    if gate is None:
        _, lse = attention(q, k, v, grid=grid, position=position, return_lse=True, kernel=kernel)
        logits = (weights(q, k, grid=grid, position=position).log() + lse[..., None])[0]
    else:
        logits = gate.values(grid, grid).dense(grid, grid)
    by_offset: dict[Any, Tensor] = {}
    at = truth.places(grid)
    for i, j in itertools.product(range(grid.tokens), repeat=2):
        a, b = at[i], at[j]
        if a is None or b is None:
            continue
        key = tuple(x - y for x, y in zip(a, b, strict=True))
        same(logits[:, i, j], by_offset.setdefault(key, logits[:, i, j]), f"logits at the offset {key}")


@law(*BIASES)
def one_number_more_everywhere_changes_nothing(scheme: Scheme, kernel: str) -> None:
    """softmax(S + c) = softmax(S), c a number per head."""
    position, q_k_v = scheme.make(), heads(scheme.grid)
    before = attention(*q_k_v, grid=scheme.grid, position=position, kernel=kernel)
    more = RelativeTable(scheme.grid, HEADS).double()
    with torch.no_grad():
        for row in more.parameters():
            row.copy_(torch.tensor([3.0, -2.0], dtype=row.dtype).reshape(-1, *[1] * (row.ndim - 1)).expand_as(row))
    position = (*parts(position), more)
    same(attention(*q_k_v, grid=scheme.grid, position=position, kernel=kernel), before)


@law(*SCHEMES)
def mirrors(scheme: Scheme, kernel: str) -> None:
    """A bias in the distance alone cannot tell left from right; a table, a rotation and a gate can."""
    grid, position = scheme.grid, scheme.make()
    q, k, v = heads(grid)
    here = attention(q, k, v, grid=grid, position=position, kernel=kernel)
    q, k, v = (flipped(x, grid) for x in (q, k, v))
    there = flipped(attention(q, k, v, grid=grid, position=position, kernel=kernel), grid)
    (same if scheme.blind else differ)(there, here, "mirrored outputs")


@law("interleaved", "halves")
def rotation_sees_direction_through_turned_pairs(layout: str, kernel: str) -> None:
    """q.R(d)k = (q.k) cos d + (q x k) sin d: the cross product alone tells d from -d. Parallel pairs are blind."""
    position = Rotary(HEAD_DIM, layout=layout)
    q, k, v = heads(LINE)
    second = torch.arange(HEAD_DIM) % 2 == 1 if layout == "interleaved" else torch.arange(HEAD_DIM) >= HEAD_DIM // 2
    q, k = (x.masked_fill(second, 0.0) for x in (q, k))
    here = attention(q, k, v, grid=LINE, position=position, kernel=kernel)
    there = attention(*(flipped(x, LINE) for x in (q, k, v)), grid=LINE, position=position, kernel=kernel)
    same(flipped(there, LINE), here)


@law(*SCHEMES)
def samples_do_not_meet(scheme: Scheme, kernel: str) -> None:
    position, (q, k, v), order = scheme.make(), heads(scheme.grid, batch=3), torch.tensor([2, 0, 1])
    for mask in (None, RAGGED[scheme.grid.axes]):
        out = attention(q, k, v, grid=scheme.grid, position=position, mask=mask, kernel=kernel)
        turned = attention(q[order], k[order], v[order], grid=scheme.grid, position=position, mask=mask, kernel=kernel)
        same(turned, out[order])


@law(*PURE)
def whole_window_shifts_carry_over(scheme: Scheme, kernel: str) -> None:
    """Rolling the tokens by a whole window rolls the output."""
    grid, mask, position = scheme.grid, WHOLE[scheme.grid.axes], scheme.make()
    axes = tuple(range(2, 2 + grid.axes))

    def rolled(x: Tensor) -> Tensor:
        return x.unflatten(2, grid.shape).roll(mask.size, axes).flatten(2, 1 + grid.axes)

    q, k, v = heads(grid)
    out = attention(q, k, v, grid=grid, position=position, mask=mask, kernel=kernel)
    q, k, v = rolled(q), rolled(k), rolled(v)
    same(attention(q, k, v, grid=grid, position=position, mask=mask, kernel=kernel), rolled(out))


@law(*SCHEMES)
def a_cell_attends_as_if_alone(scheme: Scheme, kernel: str) -> None:
    """Under windows each cell, cut out with its coordinates (and the prefix), gives the same rows on its own."""
    grid, windows, position = scheme.grid, RAGGED[scheme.grid.axes], scheme.make()
    q, k, v = heads(grid)
    out = attention(q, k, v, grid=grid, position=position, mask=windows, kernel=kernel)
    found: dict[Any, list[int]] = {}
    at = truth.places(grid)
    for token, place in enumerate(at):
        if place is not None:
            cuts = zip(place, windows.shift, windows.size, strict=True)
            found.setdefault(tuple((c - s) // n for c, s, n in cuts), []).append(token)
    assert sum(map(len, found.values())) == grid.cells
    for tokens in found.values():
        first, last = at[tokens[0]], at[tokens[-1]]
        shape = [b - a + 1 for a, b in zip(first, last, strict=True)]
        rows = [*range(grid.prefix), *tokens]
        alone = Grid(*shape, prefix=grid.prefix, origin=first)
        cell = attention(q[:, :, rows], k[:, :, rows], v[:, :, rows], grid=alone, position=position, kernel="reference")
        same(out[:, :, tokens], cell[:, :, grid.prefix :], f"the cell at {first}")
    if grid.prefix:
        whole = attention(q, k, v, grid=grid, position=position, kernel="reference")
        same(out[:, :, : grid.prefix], whole[:, :, : grid.prefix], "prefix queries, which see everything")


@law(*SCHEMES)
def a_slice_of_queries_gives_its_rows(scheme: Scheme, kernel: str) -> None:
    """A slice remembers where it lies, under every kind of mask that is said of coordinates."""
    grid, position = scheme.grid, scheme.make()
    q, k, v = heads(grid)
    step = grid.cells // grid.shape[0]
    for mask in (None, Causal(), Causal(axis=0), RAGGED[grid.axes], WHOLE[grid.axes] & Causal()):
        full = attention(q, k, v, grid=grid, position=position, mask=mask, kernel=kernel)
        first, last = grid.prefix + step, grid.prefix + grid.shape[0] * step
        arguments = {"grid": grid[1:], "key_grid": grid, "position": position, "mask": mask}
        part = attention(q[:, :, first:last], k, v, kernel=kernel, **arguments)
        same(part, full[:, :, first:], f"rows under {mask}")


@law(*(s for s in SCHEMES if s.grid.axes == 1))
def one_query_against_a_cache_is_the_last_row(scheme: Scheme, kernel: str) -> None:
    position, (q, k, v), grid = scheme.make(), heads(scheme.grid), scheme.grid
    full = attention(q, k, v, grid=grid, position=position, mask=Causal(), kernel=kernel)
    for length in range(1, grid.tokens + 1):
        seen, last = grid[:length], grid[length - 1 : length]
        step = attention(
            q[:, :, length - 1 : length], k[:, :, :length], v[:, :, :length],
            grid=last, key_grid=seen, position=position, mask=Causal(), kernel=kernel,
        )  # fmt: skip
        same(step, full[:, :, length - 1 : length], f"step {length}")


@law(*SCHEMES)
def pooled_keys_lie_at_every_second_or_third_place(scheme: Scheme, kernel: str) -> None:
    """Attention to pooled keys is attention to all keys of which only those are allowed."""
    grid, position = scheme.grid, scheme.make()
    q, k, v = heads(grid)
    for step, mask in itertools.product((2, 3), (None, Windows((2,) * grid.axes), RAGGED[grid.axes], Causal())):
        keep = torch.tensor([place is None or all(c % step == 0 for c in place) for place in truth.places(grid)])
        both = Pairs(keep[None]) if mask is None else mask & Pairs(keep[None])
        golden = attention(q, k, v, grid=grid, position=position, mask=both, kernel="reference")
        arguments = {"grid": grid, "key_grid": grid.pooled(step), "position": position, "mask": mask}
        same(attention(q, k[:, :, keep], v[:, :, keep], kernel=kernel, **arguments), golden, f"under {mask}")


@law("space", "time")
def aim_is_one_call_under_two_windows(axis: str, kernel: str) -> None:
    """A window of one frame is attention frame by frame, a window of one pixel attention through time."""
    frames, rows, columns = CLIP.shape
    q, k, v = heads(CLIP)
    cut = (frames, 1, 1) if axis == "time" else (1, rows, columns)
    small = Grid(frames) if axis == "time" else Grid(rows, columns)
    table = Scheme("", small, lambda: RelativeTable(small, HEADS)).make()
    flat = RelativeTable(Grid(*cut), HEADS).double()
    flat.load_state_dict({"table": table.table.reshape(flat.table.shape)})
    out = attention(q, k, v, grid=CLIP, position=flat, mask=Windows(cut), kernel=kernel)
    out = out.unflatten(2, CLIP.shape)
    parted = [x.unflatten(2, CLIP.shape) for x in (q, k, v)]
    if axis == "space":
        for t in range(frames):
            alone, _ = truth.attention(*(x[:, :, t].flatten(2, 3) for x in parted), grid=small, position=table)
            same(out[:, :, t].flatten(2, 3), alone, f"frame {t}")
    else:
        for y, x in itertools.product(range(rows), range(columns)):
            alone, _ = truth.attention(*(z[:, :, :, y, x] for z in parted), grid=small, position=table)
            same(out[:, :, :, y, x], alone, f"row {y}, column {x}")


@law(*UNPLACED)
def prefix_tokens_see_all_and_are_seen(scheme: Scheme, kernel: str) -> None:
    """Under windows too. Under Causal all see them, and they see only each other."""
    grid, position, p = scheme.grid, scheme.make(), scheme.grid.prefix
    q, k, v = (x.requires_grad_() for x in heads(grid))

    def touches(mask: Mask, queries: slice, keys: slice) -> Tensor:
        """How much the outputs of these queries lean on each of these values."""
        out = attention(q, k, v, grid=grid, position=position, mask=mask, kernel=kernel)[:, :, queries]
        return torch.autograd.grad(out.sum(), v)[0][:, :, keys].abs().amin(dim=(0, 1, 3))

    prefix, cells = slice(0, p), slice(p, None)
    for mask in (RAGGED[2], WHOLE[2]):
        assert (touches(mask, prefix, slice(None)) > 0).all(), "prefix queries see everything under windows"
        assert (touches(mask, slice(p, p + 1), prefix) > 0).all(), "every cell sees the prefix"
    assert (touches(Causal(), prefix, cells) == 0).all(), "the future would leak through a prefix that sees it"
    assert (touches(Causal(), prefix, prefix) > 0).all()
    for cell in range(p, grid.tokens):
        assert (touches(Causal(), slice(cell, cell + 1), prefix) > 0).all(), f"token {cell} sees the prefix"


@law(PLANE, LINE, CLIP)
def order_is_unknown_without_position(grid: Grid, kernel: str) -> None:
    q, k, v = heads(grid)
    order = torch.randperm(grid.tokens, generator=torch.Generator().manual_seed(4))
    out = attention(q, k, v, grid=grid, kernel=kernel)
    same(attention(q[:, :, order], k[:, :, order], v[:, :, order], grid=grid, kernel=kernel), out[:, :, order])
    same(attention(q, k[:, :, order], v[:, :, order], grid=grid, kernel=kernel), out, "order of the keys")


@law(*SCHEMES)
def padded_is_truncated(scheme: Scheme, kernel: str) -> None:
    """The last third of the first axis padded gives the values and gradients of the grid cut there."""
    grid, position = scheme.grid, scheme.make()
    keep = grid.shape[0] - grid.shape[0] // 3 - (grid.shape[0] < 3)
    short = grid[:keep]
    rows = slice(0, short.tokens)
    valid = torch.arange(grid.tokens)[None] < short.tokens
    q, k, v = (x.requires_grad_() for x in heads(grid))
    inputs = (q, k, v, *learned(position))
    for more in (None, RAGGED[grid.axes], Causal()):
        mask = Padding(valid) if more is None else Padding(valid) & more
        out = attention(q, k, v, grid=grid, position=position, mask=mask, kernel=kernel)[:, :, rows]
        cut = attention(
            q[:, :, rows], k[:, :, rows], v[:, :, rows], grid=short, position=position, mask=more, kernel=kernel
        )
        same(out, cut, "values")
        for found, golden in zip(gradients(out, inputs), gradients(cut, inputs), strict=True):
            same(found, golden, "gradients")


@law(*SCHEMES)
def what_padding_hides_does_not_leak(scheme: Scheme, kernel: str) -> None:
    """NaN and infinity in keys and values that no query may see change neither outputs nor gradients."""
    grid, position = scheme.grid, scheme.make()
    valid = torch.ones(2, grid.tokens, dtype=torch.bool)
    valid[0, -3:] = valid[1, grid.prefix + 1] = False
    for mask in (Padding(valid), Padding(valid) & RAGGED[grid.axes]):
        found = []
        for poison in (0.0, torch.nan, torch.inf):
            q, k, v = heads(grid)
            k, v = (x.masked_fill(~valid[:, None, :, None], poison).requires_grad_() for x in (k, v))
            out = attention(q.requires_grad_(), k, v, grid=grid, position=position, mask=mask, kernel=kernel)
            found.append([out, *gradients(out, (q, k, v, *learned(position)))])
        for clean, *dirty in zip(*found, strict=True):
            for other in dirty:
                same(other, clean)


@law(*SCHEMES)
def a_row_that_sees_nothing_is_zero(scheme: Scheme, kernel: str) -> None:
    """Output 0, gradients 0 and finite, log-sum-exp -inf."""
    grid, position = scheme.grid, scheme.make()
    q, k, v = (x.requires_grad_() for x in heads(grid))
    blocked = torch.ones(2, HEADS, grid.tokens, grid.tokens, dtype=torch.bool)
    blocked[0, :, 2], blocked[1, 1, -1] = False, False
    nothing = ~blocked.any(-1)
    for mask in (
        Pairs(blocked),
        Pairs(blocked) & RAGGED[grid.axes],
        Padding(torch.tensor([[True], [False]]).expand(-1, grid.tokens)),
    ):
        empty = nothing if isinstance(next(mask.members()), Pairs) else torch.tensor([False, True])[:, None, None]
        empty = empty.expand(2, HEADS, grid.tokens)
        out = attention(q, k, v, grid=grid, position=position, mask=mask, kernel=kernel)
        assert (out[empty] == 0).all(), "empty rows"
        assert (out[~empty] != 0).all(), "the others"
        by_q, *others = gradients(out, (q, k, v, *learned(position)))
        assert (by_q[empty] == 0).all(), "gradients of empty rows"
        assert all(g.isfinite().all() for g in (by_q, *others)), "gradients"
        if not any(isinstance(p, Gate) for p in parts(position)):
            _, lse = attention(q, k, v, grid=grid, position=position, mask=mask, return_lse=True, kernel=kernel)
            assert ((lse == -torch.inf) == empty).all(), "log-sum-exp"
            assert all(g.isfinite().all() for g in gradients(lse[~empty], (q, k)))


__all__ = ["LAWS", "NONE", "PLACED", "able", "attention", "differ", "gradients", "law", "same"]
