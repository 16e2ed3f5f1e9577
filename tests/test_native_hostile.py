"""The compiled kernels on hostile input: odd sizes, strides beyond 2³¹, views, NaN and infinity, empty rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from exactness import within_policy
from laws import gradients, same
from torch import Tensor

from locant import Causal, Grid, Padding, RelativeTable, Segments, Windows, attention
from locant.attend import attention_packed

pytestmark = pytest.mark.native


def table(grid: Grid, heads: int, dtype: torch.dtype = torch.float64) -> RelativeTable:
    torch.manual_seed(1)
    made = RelativeTable(grid, heads)
    for row in made.parameters():
        torch.nn.init.normal_(row, std=0.5)
    return made.to(dtype)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def results(q_k_v: list[Tensor], position=None, dtype=torch.float64, **arguments) -> list[list[Tensor]]:
    """Of native in `dtype`, of plain arithmetic in it, and of float64: output and every gradient."""
    found = []
    for kernel, kind in (("native", dtype), ("reference", dtype), ("reference", torch.float64)):
        inputs = [x.detach().to(dtype).to(kind).requires_grad_() for x in q_k_v]
        scheme = None if position is None else position.to(dtype).to(kind)
        out = attention(*inputs, position=scheme, kernel=kernel, **arguments)
        learned = [] if scheme is None else list(scheme.parameters())
        found.append([out.detach(), *gradients(out, (*inputs, *learned))])
    return found


def equal(q_k_v: list[Tensor], position=None, **arguments) -> None:
    """In float64 to 1e-10, in float32 by the policy."""
    found, _, golden = results(q_k_v, position, **arguments)
    for x, ref in zip(found, golden, strict=True):
        same(x, ref)
    within_policy(*results(q_k_v, position, torch.float32, **arguments))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head_dim", "value_dim"), [(1, 1), (3, 5), (17, 130), (80, 1), (256, 64), (64, 256), (16, 16), (33, 31)]
)
def test_any_number_of_channels(head_dim, value_dim):
    q_k_v = drawn((2, 2, 40, head_dim), (2, 1, 40, head_dim), (2, 1, 40, value_dim))
    for mask in (None, Windows((3, 4), (1, 2)) & Causal()):
        equal(q_k_v, table(Grid(5, 8), 2), grid=Grid(5, 8), mask=mask)


@pytest.mark.parametrize("tokens", [2, 15, 16, 17, 63, 64, 65, 97, 113, 383, 385, 1025])
def test_any_number_of_tokens(tokens):
    """Around the sizes of vectors, blocks and chunks, for one head and for more than there are work items."""
    for heads, mask in ((1, None), (17, None), (2, Causal())):
        if heads * tokens <= 2050:
            q_k_v = drawn(*[(1, heads, tokens, d) for d in (8, 8, 5)])
            equal(q_k_v, table(Grid(tokens), heads), grid=Grid(tokens), mask=mask)


def test_one_token():
    """Its weight is 1: the output is the value; the gradients of q, k and the table are 0 but for rounding."""
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-5)):
        q, k, v = drawn(*[(1, 2, 1, d) for d in (8, 8, 5)], dtype=dtype)
        position = table(Grid(1), 2, dtype)
        out = attention(q, k, v, grid=Grid(1), position=position, kernel="native")
        assert (out - v).abs().max() <= tolerance
        *zeros, by_v = torch.autograd.grad(out.sum(), (q, k, position.table, v))
        assert all(x.abs().max() <= tolerance for x in zeros)
        assert (by_v - 1).abs().max() <= tolerance


def test_a_large_picture_row_by_row():
    """59 × 111: the rows of some queries against the reference, and the gradients of these rows alone."""
    grid, rows = Grid(59, 111), slice(37, 39)
    first, last = rows.start * 111, rows.stop * 111
    q, k, v = drawn(*[(1, 1, grid.tokens, d) for d in (8, 8, 5)])
    position = table(grid, 1)
    inputs = (q, k, v, position.table)
    out = attention(q, k, v, grid=grid, position=position, kernel="native")[:, :, first:last]
    arguments = {"grid": grid[rows], "key_grid": grid, "position": position}
    golden = attention(q[:, :, first:last], k, v, kernel="reference", **arguments)
    same(out, golden)
    for found, ref in zip(gradients(out, inputs), gradients(golden, inputs), strict=True):
        same(found, ref, "gradients")


def test_windows_that_do_not_divide_a_large_picture():
    grid, mask = Grid(59, 111), Windows((7, 12), (3, 5))
    q, k, v = drawn(*[(1, 2, grid.tokens, d) for d in (8, 8, 5)])
    position, found = table(Grid(7, 12), 2), []
    for kernel in ("native", "sdpa"):
        out = attention(q, k, v, grid=grid, position=position, mask=mask, kernel=kernel)
        found.append([out, *gradients(out, (q, k, v, position.table))])
    for one, other in zip(*found, strict=True):
        same(one, other)


KEYS = {
    "pooled": (Grid(16, 12), Grid(16, 12).pooled(4), None),
    "pooled, windows": (Grid(16, 12), Grid(16, 12).pooled(2), Windows((5, 7), (2, 3))),
    "pooled, windows without keys": (Grid(16, 12), Grid(16, 12).pooled(4), Windows((2, 12))),
    "a slice against all": (Grid(16, 12)[5:9], Grid(16, 12), Causal()),
    "all against a slice": (Grid(16, 12), Grid(16, 12)[3:11], Causal(axis=1)),
    "one token against a cache": (Grid(300)[299:], Grid(300), Causal()),
    "frames in order": (Grid(6, 5, 7), Grid(6, 5, 7), Causal(axis=0)),
    "some frames against all": (Grid(6, 5, 7)[2:4], Grid(6, 5, 7), Causal(axis=0) & Windows((4, 3, 7), (1, 1, 0))),
    "far away": (Grid(9, 9, origin=(10**6, -(10**6))), Grid(9, 9, origin=(10**6, 3 - 10**6)), Causal()),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_elsewhere(name):
    grid, key_grid, mask = KEYS[name]
    q_k_v = drawn((2, 2, grid.tokens, 8), (2, 1, key_grid.tokens, 8), (2, 1, key_grid.tokens, 5))
    wide = Grid(*[300] if grid.axes == 1 else [2 * max(n) for n in zip(grid.shape, key_grid.shape, strict=True)])
    equal(q_k_v, table(wide, 2), grid=grid, key_grid=key_grid, mask=mask)


# --- strides ---------------------------------------------------------------------------------------------------------


def views(x: Tensor) -> dict[str, Tensor]:
    """The same numbers, stored otherwise, with NaN between."""
    wide = torch.full((*x.shape[:3], 3 * x.shape[3]), torch.nan, dtype=x.dtype)
    wide[..., ::3] = x
    return {
        "heads last": x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "batch last": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "every third channel": wide[..., ::3],
        "negative": torch.complex(torch.zeros_like(x), -x).conj().imag,
    }


@pytest.mark.parametrize("name", ["heads last", "batch last", "every third channel", "negative"])
def test_any_strides_give_the_same_bits(name):
    """Inputs and the gradient that comes in, whatever lies between."""
    q, k, v = (x.detach() for x in drawn((2, 3, 90, 16), (2, 3, 90, 16), (2, 3, 90, 8), dtype=torch.float32))
    dout, position, found = torch.randn(2, 3, 90, 8), table(Grid(4, 4), 3, torch.float32), []
    arguments = {"grid": Grid(9, 10), "position": position, "mask": Windows((4, 4), (1, 2)), "kernel": "native"}
    for otherwise in (False, True):
        q_k_v_d = [views(x)[name] if otherwise else x for x in (q, k, v, dout)]
        inputs = [x.requires_grad_() for x in q_k_v_d[:3]]
        out = attention(*inputs, **arguments)
        found.append([out, *torch.autograd.grad(out, (*inputs, position.table), q_k_v_d[3])])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_an_expanded_gradient_and_expanded_inputs():
    """`out.sum()` sends a gradient with strides of 0; samples and heads may share memory as well."""
    q, k, v = drawn((1, 1, 40, 8), (1, 1, 40, 8), (1, 1, 40, 4))
    many = [x.expand(3, 4, -1, -1) for x in (q, k, v)]
    found, golden = (attention(*many, grid=Grid(40), kernel=kernel) for kernel in ("native", "reference"))
    for x, ref in zip(*(torch.autograd.grad(out.sum(), (q, k, v)) for out in (found, golden)), strict=True):
        same(x, ref)


@pytest.mark.parametrize("axis", ["batch", "head", "token", "channel"])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_strides_beyond_32_bits(axis, off):
    """Along one axis numbers lie 2³¹ - 1, 2³¹ and 2³¹ + 1 apart, in memory that is reserved and hardly used."""
    shape, steps = [2, 2, 2, 2], [200, 100, 20, 3]
    steps[["batch", "head", "token", "channel"].index(axis)] = 2**31 + off
    try:
        reserved = torch.empty(2**31 + 5000, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"cannot reserve 4 GiB of addresses: {error}")
    numbers = [torch.randn(shape).bfloat16() for _ in range(4)]
    position, found = table(Grid(2), 2, torch.bfloat16), []
    for far in (False, True):
        q, k, v, dout = (
            torch.as_strided(reserved, shape, steps, 1000 * n).copy_(x) if far else x.clone()
            for n, x in enumerate(numbers)
        )
        inputs = [x.requires_grad_() for x in (q, k, v)]
        out = attention(*inputs, grid=Grid(2), position=position, kernel="native")
        found.append([out, *torch.autograd.grad(out, (*inputs, position.table), dout)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("mask", [None, Windows(50, 20), Causal()], ids=["free", "windows", "causal"])
def test_what_padding_hides_leaves_every_bit_as_it_was(mask, poison):
    """Keys and values that nobody may see are not read; their gradients are 0."""
    grid = Grid(150)
    valid = torch.ones(2, 150, dtype=torch.bool)
    valid[0, 100:] = valid[1, 3] = valid[1, 64:129] = False
    hidden = Padding(valid) if mask is None else Padding(valid) & mask
    position, found = table(grid, 2, torch.float32), []
    for value in (0.0, poison):
        q, k, v = (x.detach() for x in drawn(*[(2, 2, 150, d) for d in (8, 8, 5)], dtype=torch.float32))
        k, v = (x.masked_fill(~valid[:, None, :, None], value).requires_grad_() for x in (k, v))
        out = attention(q.requires_grad_(), k, v, grid=grid, position=position, mask=hidden, kernel="native")
        found.append([out, *gradients(out, (q, k, v, position.table))])
    for clean, dirty in zip(*found, strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, dirty)
    for x in found[1][2:4]:
        assert (x.transpose(1, 2)[~valid] == 0).all()


PLACES = {"q": 0, "k": 1, "v": 2, "table": 3}
NAMES = ("out", "lse", "dq", "dk", "dv", "dtable")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_nan_and_infinity_spread_as_in_the_definition(place, poison, dtype):
    """The same numbers are NaN and infinite as in float64, in the output and in the gradients; the others are right."""
    grid, found = Grid(70), []
    for kernel, kind in (("native", dtype), ("reference", torch.float64)):
        position = table(grid, 2, dtype).to(kind)
        inputs = [x.detach().to(dtype).to(kind) for x in drawn(*[(1, 2, 70, 8)] * 3)]
        leaves = [*inputs, position.table.data]
        leaves[PLACES[place]].view(-1)[199] = poison  # of token 24 in head 0; of the offset -9 of head 1 in the table
        inputs = [x.requires_grad_() for x in inputs]
        out, lse = attention(*inputs, grid=grid, position=position, return_lse=True, kernel=kernel)
        found.append([out.detach(), lse.detach(), *gradients(out, (*inputs, position.table))])
    assert not all(x.isfinite().all() for x in found[1]) or (place, poison) == ("table", -torch.inf)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
    for name, x, golden in zip(NAMES, *found, strict=True):
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert bool((kind(x) == kind(golden)).all()), f"{name}: {kind.__name__}"
        there = golden.isfinite()
        assert bool(((x.double() - golden)[there].abs() <= tolerance * (1 + golden[there].abs())).all()), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bits", [0, 1, 1954, -1])
def test_every_nan_is_a_nan(bits, dtype):
    """Also those whose lower bits say something: 1954 is how R writes a missing number."""
    quiet, whole = (0x7FC00000, torch.int32) if dtype == torch.float32 else (0x7FF8000000000000, torch.int64)
    q, k, v = (x.detach() for x in drawn(*[(1, 1, 9, 4)] * 3, dtype=dtype))
    k.view(whole)[0, 0, 5, 2] = quiet | (bits if bits >= 0 else quiet >> 8)
    assert k.isnan().sum() == 1
    out, lse = attention(q, k, v, return_lse=True, kernel="native")
    assert out.isnan().all()
    assert lse.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_logits_of_ten_thousand(dtype):
    q, k, v = drawn((1, 2, 80, 16), (1, 2, 80, 16), (1, 2, 80, 8))
    q, k = q.detach() * 30, k.detach() * 30
    assert (q @ k.transpose(-1, -2)).abs().max() > 10_000
    found, plain, golden = results([q, k, v], table(Grid(80), 2), dtype, grid=Grid(80), scale=1.0)
    within_policy(found[:1], plain[:1], golden[:1])
    # Each row sees one key, so that dP - δ is 0: a sum of 8 products taken in two orders, which q and k then multiply.
    # Plain arithmetic takes it in one.
    orders = torch.finfo(torch.float32).eps * 8 * 5 * v.abs().max()  # gradients of `out` below 5
    widest = torch.stack([q.abs().max(), k.abs().max()]).max()
    for x, low, ref in zip(found[1:], plain[1:], golden[1:], strict=True):
        rounded = ref.to(x.dtype)
        limit = 3 * (low - ref).abs().max() + 2 * ((rounded + 0.3 - 0.3) - rounded).abs().max() + orders * widest
        assert (x - ref).abs().max() <= limit


def test_logits_of_ten_thousand_in_float32():
    """Weights are computed again from the log-sum-exp: its rounding, ε · 10,000, is that of the gradients as well."""
    q, k, v = drawn((1, 2, 80, 16), (1, 2, 80, 16), (1, 2, 80, 8))
    q, k = q.detach() * 30, k.detach() * 30
    found, plain, golden = results([q, k, v], table(Grid(80), 2), torch.float32, grid=Grid(80), scale=1.0)
    within_policy(found[:1], plain[:1], golden[:1])
    rounding = torch.finfo(torch.float32).eps * (q @ k.transpose(-1, -2)).abs().max()
    for x, ref in zip(found[3:4], golden[3:4], strict=True):
        assert (x - ref).abs().max() <= 4 * rounding * ref.abs().max()
    assert all(x.isfinite().all() for x in found)


def test_halves_beside_their_limits():
    """Numbers that float16 can just hold, sums that it can't: arithmetic is in float32."""
    q = torch.full((1, 1, 50, 64), 30.0, dtype=torch.float16)
    v = torch.full((1, 1, 50, 3), 60000.0, dtype=torch.float16)
    out, lse = attention(q, q, v, scale=1.0, return_lse=True, kernel="native")  # logits of 57,600
    assert torch.equal(out, v)
    assert torch.allclose(lse, torch.full_like(lse, 57600.0) + torch.tensor(50.0).log())


LINE = torch.arange(70)[None]
UPPER = torch.arange(12)[None, :, None].expand(1, 12, 10) > 3
ALL = slice(None)
ROWS_WITHOUT = {  # grid, mask, and the samples and rows that see nothing
    "a sample of padding": (Grid(70), Padding(torch.tensor([[True], [False]]).expand(-1, 70)), 1, ALL),
    "the first keys of an order": (Grid(70), Causal() & Padding(LINE > 4), ALL, slice(5)),
    "segments of their own": (Grid(70), Segments(LINE // 10, LINE // 10 + 2), ALL, slice(20)),
    "cells of padding": (Grid(12, 10), Windows((4, 5)) & Padding(UPPER), ALL, slice(40)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ROWS_WITHOUT)
def test_rows_that_see_nothing(name, dtype):
    """Output 0, log-sum-exp -inf, gradients 0 where nothing was seen and finite elsewhere."""
    grid, mask, samples, rows = ROWS_WITHOUT[name]
    position = table(grid, 2, dtype)
    q, k, v = drawn(*[(2, 2, grid.tokens, d) for d in (8, 8, 5)], dtype=dtype)
    out, lse = attention(q, k, v, grid=grid, position=position, mask=mask, return_lse=True, kernel="native")
    nothing = torch.zeros(2, 2, grid.tokens, dtype=torch.bool)
    nothing[samples, :, rows] = True
    assert torch.equal(lse == -torch.inf, nothing)
    assert (out[nothing] == 0).all()
    assert (out[~nothing] != 0).any(-1).all()
    for loss in ((out * torch.randn_like(out)).sum(), lse.exp().sum() + out.sum()):
        by_q, *others = torch.autograd.grad(loss, (q, k, v, position.table), retain_graph=True)
        assert (by_q[nothing] == 0).all()
        assert all(x.isfinite().all() for x in (by_q, *others))


def test_nothing_at_all_packed():
    """No samples, no heads, no tokens."""
    for shape in ((0, 4, 5, 3, 2, 8), (2, 4, 5, 3, 0, 8), (2, 0, 5, 3, 2, 8)):
        qkv = torch.randn(shape, requires_grad=True)
        tables = [RelativeTable(Grid(4, 5), shape[4])] if shape[4] else []  # a table of no heads is refused
        for mask, position in itertools.product((None, Windows((2, 2))), (None, *tables)):
            out = attention_packed(qkv, mask=mask, position=position, kernel="native")
            assert out.shape == (*shape[:-3], shape[-2] * shape[-1])
            (found,) = torch.autograd.grad(out.sum(), qkv)
            assert found.shape == shape
