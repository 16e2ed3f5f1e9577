"""Content on the compiled kernels: terms made where scores are, in one to three dimensions, with every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from exactness import BY_NAME, Case, results, within_policy
from laws import gradients, same
from redrawing import redraw_alike
from test_native import ISAS, MODULE
from torch import Tensor

from locant import Causal, Grid, Padding, RelativeTable, Segments, Windows, attention, hooks
from locant.attend import attention_packed
from locant.measuring.exactness import plainly
from locant.positions.decomposed import Decomposed
from locant.positions.position import Position
from locant.positions.rotary import Rotary
from locant.positions.shaw import Shaw
from locant.positions.transformer_xl import TransformerXL

pytestmark = pytest.mark.native

LINE, WHOLE, LONG = Grid(90), Grid(130), Grid(1400)
PLANE, CLIP, RAGGED = Grid(9, 11, prefix=2), Grid(3, 5, 6, prefix=1), Grid(15, 16)


def decomposed(grid: Grid) -> Callable[[int, int], Position]:
    return lambda heads, dim: Decomposed(Grid(*grid.shape), heads, dim)


def xl(**options: int) -> Callable[[int, int], Position]:
    return lambda heads, dim: TransformerXL(10, heads, dim, **options)


def shaw(distance: int, **options: bool) -> Callable[[int, int], Position]:
    return lambda heads, dim: Shaw(heads, dim, distance, **options)


def keys_that_are_there(tokens: int, every: int) -> Padding:
    return Padding(torch.arange(2 * tokens).reshape(2, tokens) % every > 0)


@dataclass(frozen=True)
class Problem:
    grid: Grid
    builds: tuple[Callable[[int, int], Position], ...]
    mask: object = None
    key_grid: Grid | None = None
    heads: tuple[int, int] = (2, 2)
    dims: tuple[int, int] = (8, 12)
    batch: int = 2
    scale: float | Tensor | None = None

    def position(self) -> list[Position]:
        torch.manual_seed(3)
        return [redraw_alike(build(self.heads[0], self.dims[0]).double()) for build in self.builds]


def table(grid: Grid) -> Callable[[int, int], Position]:
    return lambda heads, dim: RelativeTable(grid, heads)


PROBLEMS = {
    "plane": Problem(RAGGED, (decomposed(RAGGED),)),
    "plane, 64 channels": Problem(Grid(20, 20), (decomposed(Grid(20, 20)),), dims=(64, 64), heads=(1, 1), batch=1),
    "plane, prefix": Problem(PLANE, (decomposed(PLANE),), heads=(4, 2)),
    "plane, windows": Problem(RAGGED, (decomposed(Grid(7, 7)),), Windows((7, 7))),
    "plane, shifted windows, prefix": Problem(PLANE, (decomposed(Grid(4, 4)),), Windows((4, 4), (1, 2))),
    "plane, padding": Problem(PLANE, (decomposed(PLANE),), keys_that_are_there(PLANE.tokens, 3)),
    "plane, order": Problem(PLANE, (decomposed(PLANE),), Causal()),
    "plane, order of columns": Problem(RAGGED, (decomposed(RAGGED),), Causal(1)),
    "plane, segments": Problem(
        RAGGED, (decomposed(RAGGED),), Segments((torch.arange(240)[None] // 70).reshape(1, 15, 16))
    ),
    "plane, pooled keys": Problem(Grid(14, 14), (decomposed(Grid(14, 14)),), key_grid=Grid(14, 14).pooled(2)),
    "plane, pooled keys and a prefix": Problem(
        Grid(12, 12, prefix=1), (decomposed(Grid(12, 12)),), key_grid=Grid(12, 12, prefix=1).pooled(4)
    ),
    "plane and a table": Problem(PLANE, (decomposed(PLANE), table(Grid(9, 11)))),
    "plane and a table, windows and padding": Problem(
        PLANE, (table(Grid(4, 5)), decomposed(Grid(4, 5))), Windows((4, 5)) & keys_that_are_there(PLANE.tokens, 4)
    ),
    "plane, one row": Problem(Grid(1, 40), (decomposed(Grid(1, 40)),)),
    "plane, one column": Problem(Grid(40, 1), (decomposed(Grid(40, 1)),)),
    "plane, turned": Problem(RAGGED, (lambda heads, dim: Rotary(dim, axes=2), decomposed(RAGGED))),
    "plane, long side": Problem(Grid(2, 700), (decomposed(Grid(2, 700)),), heads=(1, 1), batch=1, dims=(4, 4)),
    "plane, scale of a head": Problem(RAGGED, (decomposed(RAGGED),), scale=torch.tensor([0.3, 1.7]).reshape(2, 1, 1)),
    "clip": Problem(CLIP, (decomposed(CLIP),)),
    "clip, windows and a table": Problem(CLIP, (decomposed(Grid(3, 3, 3)), table(Grid(3, 3, 3))), Windows((3, 3, 3))),
    "clip, order in time, pooled keys": Problem(
        Grid(4, 6, 6), (decomposed(Grid(4, 6, 6)),), Causal(0), key_grid=Grid(4, 6, 6).pooled((1, 2, 2))
    ),
    "line": Problem(WHOLE, (xl(),)),
    "line, memory, order": Problem(WHOLE[50:], (xl(),), Causal(), key_grid=WHOLE),
    "line, clamp": Problem(WHOLE, (xl(clamp=7),)),
    "line, clamp, order, padding": Problem(
        WHOLE[50:], (xl(clamp=30),), Causal() & keys_that_are_there(130, 3), key_grid=WHOLE
    ),
    "line, one query": Problem(WHOLE[129:], (xl(),), Causal(), key_grid=WHOLE),
    "line, scale of a head": Problem(LINE, (xl(),), scale=torch.tensor([0.3, 1.7]).reshape(2, 1, 1)),
    "line, several stretches": Problem(LONG, (xl(),), heads=(1, 1), batch=1, dims=(4, 4)),
    "line, several stretches, order, padding": Problem(
        LONG[100:], (xl(),), Causal() & Padding(torch.arange(1400)[None] % 17 < 3), key_grid=LONG, heads=(1, 1),
        batch=1, dims=(4, 4),
    ),
    "line, windows": Problem(LONG, (xl(),), Windows((96,), (17,)), heads=(1, 1), batch=1, dims=(4, 4)),
    "line, every third query": Problem(
        Grid(40, origin=(5,), stride=(3,)), (xl(),), key_grid=WHOLE, heads=(2, 1)
    ),
    "clipped": Problem(WHOLE, (shaw(5),)),
    "clipped, vectors of a head, numbers": Problem(WHOLE, (shaw(200, per_head=True, biases=True),), heads=(4, 2)),
    "clipped, numbers, order": Problem(WHOLE[50:], (shaw(9, causal=True, biases=True),), Causal(), key_grid=WHOLE),
    "clipped, a number, prefix": Problem(Grid(100, prefix=3), (shaw(4, biases=True),)),
    "clipped, numbers, scale of a head": Problem(
        LINE, (shaw(6, biases=True),), scale=torch.tensor([0.3, 1.7]).reshape(2, 1, 1)
    ),
    "clipped to one": Problem(LINE, (shaw(0),)),
    "clipped, table, segments": Problem(
        WHOLE, (shaw(5), table(WHOLE)), Segments((torch.arange(130)[None] >= 72).long())
    ),
    # so few queries that each is done by itself (csrc/attention/single_row.h)
    "rows, memory, order": Problem(WHOLE[129:], (xl(),), Causal(), key_grid=WHOLE, dims=(16, 32)),
    "rows, clipped, numbers, table, padding": Problem(
        WHOLE[128:], (shaw(9, per_head=True, biases=True), table(WHOLE)), Causal() & keys_that_are_there(130, 3),
        key_grid=WHOLE, heads=(4, 2), dims=(32, 16),
    ),
    "rows of a plane": Problem(
        Grid(1, 2, origin=(4, 3)), (decomposed(Grid(9, 11)),), key_grid=Grid(9, 11), dims=(16, 16)
    ),
    "rows of a clip, windows, prefix": Problem(CLIP, (decomposed(Grid(2, 2, 2)),), Windows((1, 1, 2)), dims=(16, 16)),
}  # fmt: skip


def drawn(problem: Problem, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    (heads, kv), (dim, width) = problem.heads, problem.dims
    queries, keys = problem.grid.tokens, (problem.key_grid or problem.grid).tokens
    shapes = ((heads, queries, dim), (kv, keys, dim), (kv, keys, width))
    q, k, v = (torch.randn(problem.batch, *shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return tuple(x.to(dtype).requires_grad_() for x in (q, k, v))


def found(problem: Problem, kernel: str, dtype: torch.dtype = torch.float64, arithmetic=None) -> list[Tensor]:
    """Output, log-sum-exp and the gradients of both with respect to all that learns."""
    q, k, v = (x.detach().to(arithmetic or dtype).requires_grad_() for x in drawn(problem, dtype))
    position = [p.to(dtype).to(arithmetic or dtype) for p in problem.position()]
    learned = [x for p in position for x in p.parameters()]
    scale = problem.scale
    if isinstance(scale, Tensor):
        scale = scale.to(q.dtype).requires_grad_()
        learned.append(scale)
    out, lse = attention(
        q, k, v, grid=problem.grid, key_grid=problem.key_grid, position=position, mask=problem.mask, scale=scale,
        kernel=kernel, return_lse=True,
    )  # fmt: skip
    inputs = (q, k, v, *learned)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape).sin()
    return [
        out,
        lse,
        *gradients((out * weights).sum(), inputs),
        *gradients(lse.masked_fill(lse == -math.inf, 0.0), inputs),
    ]


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_is_the_definition(name):
    """Output, log-sum-exp and every gradient, in float64, against the reference."""
    problem = PROBLEMS[name]
    for one, other in zip(found(problem, "native"), found(problem, "reference"), strict=True):
        same(one, other, name)


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set."""
    before = MODULE.isa()
    MODULE.choose_isa(request.param)
    yield request.param
    MODULE.choose_isa(before)


BRIEF = (
    "plane", "plane, prefix", "plane, windows", "plane, padding", "plane and a table", "plane, pooled keys", "clip",
    "line, memory, order", "line, clamp", "line, several stretches", "clipped, vectors of a head, numbers",
    *(name for name in PROBLEMS if name.startswith("rows")),
)  # fmt: skip


@pytest.mark.parametrize("name", BRIEF)
def test_every_instruction_set(isa, name):
    for one, other in zip(found(PROBLEMS[name], "native"), found(PROBLEMS[name], "reference"), strict=True):
        same(one, other, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scheme", ["decomposed-2d-prefix", "decomposed-3d", "xl-1d", "shaw-1d"])
def test_every_dtype(isa, scheme, dtype):
    """Errors by the policy, beside those of plain torch."""
    for mask in ("free", "causal", "shifted+samples"):
        case = Case(BY_NAME[scheme], mask)
        golden = results(case, dtype, "reference", arithmetic=torch.float64)
        within_policy(results(case, dtype, "native"), results(case, dtype, "reference"), golden)


@pytest.mark.parametrize("name", BRIEF)
def test_larger_problems_in_bfloat16(isa, name):
    """Of several panels and blocks, on matrix units where the set has them."""
    problem = PROBLEMS[name]
    golden = found(problem, "reference", torch.bfloat16, arithmetic=torch.float64)
    with hooks.attending(plainly):
        plain = found(problem, "auto", torch.bfloat16)
    of_all = (found(problem, "native", torch.bfloat16), plain, golden)
    within_policy(*([one[0], *one[2:]] for one in of_all))  # but for the log-sum-exp, which is float32 here


@pytest.mark.parametrize(
    "name", ["plane", "plane, windows", "plane, padding", "line, memory, order", "clipped, a number, prefix"]
)
def test_the_same_bits_on_any_number_of_threads(name):
    problem, before = PROBLEMS[name], torch.get_num_threads()
    first = found(problem, "native", torch.float32)
    assert all(x[x > -math.inf].isfinite().all() for x in first)
    try:
        for repeat in range(50):
            torch.set_num_threads(1 + repeat % 3)
            assert all(torch.equal(x, y) for x, y in zip(found(problem, "native", torch.float32), first, strict=True))
    finally:
        torch.set_num_threads(before)


def test_a_packed_projection_meets_vectors_as_well():
    """Without copies: what q has of the gradient through the vectors is part of its own."""
    grid, heads, dim = RAGGED, 2, 8
    position = redraw_alike(Decomposed(grid, heads, dim).double())
    qkv = torch.randn(2, *grid.shape, 3, heads, dim, dtype=torch.float64, requires_grad=True)
    outs = [attention_packed(qkv, grid=grid, position=position, kernel=kernel) for kernel in ("native", "reference")]
    same(*outs)
    inputs = (qkv, *position.parameters())
    for one, other in zip(*(gradients(out.sin().sum(), inputs) for out in outs), strict=True):
        same(one, other)


def test_frozen_vectors_have_no_gradient_and_queries_do():
    position = redraw_alike(Decomposed(RAGGED, 2, 8).double()).requires_grad_(False)
    q, k, v = drawn(PROBLEMS["plane"])
    outs = [attention(q, k, v, grid=RAGGED, position=position, kernel=kernel) for kernel in ("native", "reference")]
    for one, other in zip(*(gradients(out.sin().sum(), (q, k, v)) for out in outs), strict=True):
        same(one, other)


def test_vectors_alone_learn():
    position = redraw_alike(Decomposed(RAGGED, 2, 8).double())
    q, k, v = (x.detach() for x in drawn(PROBLEMS["plane"]))
    outs = [attention(q, k, v, grid=RAGGED, position=position, kernel=kernel) for kernel in ("native", "reference")]
    for one, other in zip(*(gradients(out.sin().sum(), tuple(position.parameters())) for out in outs), strict=True):
        same(one, other)
