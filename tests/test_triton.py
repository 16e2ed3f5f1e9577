"""Triton's kernels on CPU tensors, under its interpreter: TRITON_INTERPRET=1 pytest tests/test_triton.py.

Families of grids and masks in float32 and bfloat16 against the definition in float64, by the policy of exactness:
values, log-sum-exp, the gradients of both. The arithmetic of a GPU (tf32, its exp2) and races are not tried here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from exactness import BY_NAME, Case, results, within_policy

from locant import Causal, Grid, Padding, RelativeTable, Segments, Windows, hooks, operators, plan
from locant.attend import attention, attention_packed
from locant.cells import reach
from locant.gpu import launches
from locant.layout import described
from locant.masks import Structure
from locant.measuring.exactness import plainly

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tried here")
pytestmark = pytest.mark.interpreted

HEADS, HEAD_DIM, VALUE_DIM = 2, 16, 24
FAMILIES = {
    "1-D": (Grid(40), None, None),
    "prefix": (Grid(37, prefix=2), None, None),
    "2-D": (Grid(5, 7), None, None),
    "2-D prefix": (Grid(6, 6, prefix=1), None, None),
    "3-D": (Grid(2, 4, 5), None, None),
    "causal": (Grid(33), None, Causal()),
    "causal in time": (Grid(4, 6), None, Causal(axis=0)),
    "causal prefix": (Grid(21, prefix=2), None, Causal()),
    "padding": (Grid(30), None, Padding.from_lengths(torch.tensor([30, 17]), 30)),
    "a row of nothing": (Grid(20), None, Padding.from_lengths(torch.tensor([20, 0]), 20)),
    "segments": (Grid(20), None, Segments(torch.arange(40).view(2, 20) // 7)),
    "windows of 49, shifted": (Grid(14, 14), None, Windows((7, 7), (3, 3))),
    "windows, ragged": (Grid(9, 10), None, Windows((4, 3), (1, 2))),
    "windows, prefix": (Grid(9, 10, prefix=1), None, Windows((4, 3), (1, 2))),
    "windows in time": (Grid(4, 6, 6), None, Windows((2, 3, 3), (1, 1, 1))),
    "windows, causal": (Grid(6, 6), None, Windows((3, 3), (1, 2)) & Causal()),
    "windows, padding": (Grid(6, 6), None, Windows((3, 3)) & Padding.from_lengths(torch.tensor([36, 20]), 36)),
    "windows of 70": (Grid(7, 20), None, Windows((7, 10), (0, 5))),
    "one window": (Grid(9, 8), None, Windows((9, 8))),
    "a slice of keys": (Grid(40)[30:], Grid(40), Causal()),
    "pooled keys": (Grid(6, 8), Grid(6, 8).pooled(2), None),
    "keys in no cell": (Grid(12)[:5], Grid(12), Windows((3,))),
}


def table_for(grid: Grid, key_grid: Grid, mask, std: float = 1.0) -> RelativeTable:
    needed = reach(grid, key_grid, Structure.of(mask).windows)
    table = RelativeTable(Grid(*(n + 1 for n in needed), prefix=grid.prefix), HEADS)
    for parameter in table.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return table


def drawn(grid: Grid, key_grid: Grid, dtype: torch.dtype, kv_heads: int) -> list[torch.Tensor]:
    sizes = ((HEADS, grid, HEAD_DIM), (kv_heads, key_grid, HEAD_DIM), (kv_heads, key_grid, VALUE_DIM))
    return [torch.randn(2, n, where.tokens, d).to(dtype) for n, where, d in sizes]


def outcome(kernel: str, dtype: torch.dtype, q_k_v, table, weight, lse_weight, **arguments) -> list[torch.Tensor]:
    """Output and its gradients, log-sum-exp and its gradients; "plain" is the definition, every step rounded."""
    position = RelativeTable(table.grid, HEADS)
    position.load_state_dict(table.state_dict())
    position = position.to(torch.promote_types(dtype, torch.float32) if kernel == "triton" else dtype)
    inputs = [x.to(dtype).requires_grad_() for x in q_k_v]
    if kernel == "plain":
        with hooks.attending(plainly):
            out, lse = attention(*inputs, position=position, return_lse=True, **arguments)
    else:
        out, lse = attention(*inputs, position=position, return_lse=True, kernel=kernel, **arguments)
    there = lse.isfinite()
    learned = tuple(position.parameters())
    found = [out.detach()]
    for value, scale in ((out, weight), (torch.where(there, lse, 0.0), lse_weight)):
        (*own,) = torch.autograd.grad(
            value, (*inputs, *learned), scale.to(value.dtype), retain_graph=True, allow_unused=True
        )
        own = [torch.zeros_like(x) if g is None else g for g, x in zip(own, (*inputs, *learned), strict=True)]
        found += [*own[:3], torch.cat([g.flatten() for g in own[3:]])]
    return [*found, torch.where(there, lse, 0.0).detach()]


def check(grid, key_grid, mask, dtype, kv_heads=1, **arguments) -> None:
    key_grid = grid if key_grid is None else key_grid
    table, q_k_v = table_for(grid, key_grid, mask), drawn(grid, key_grid, dtype, kv_heads)
    weight = torch.randn(2, HEADS, grid.tokens, VALUE_DIM).to(dtype)
    lse_weight = torch.randn(2, HEADS, grid.tokens).to(dtype)
    if dtype != torch.float32:  # a table is float32 on the way in, rounded for the plain arithmetic alone
        table.load_state_dict({name: x.to(dtype).float() for name, x in table.state_dict().items()})
    arguments = {"grid": grid, "key_grid": key_grid, "mask": mask, **arguments}
    found, plain, golden = (
        outcome(kernel, kind, q_k_v, table, weight, lse_weight, **arguments)
        for kernel, kind in (("triton", dtype), ("plain", dtype), ("reference", torch.float64))
    )
    found = [x.to(low.dtype) for x, low in zip(found, plain, strict=True)]  # float32 where the plain one is rounded
    within_policy(found[:1], plain[:1], golden[:1])
    within_policy([found[-1], *found[1:-1]], [plain[-1], *plain[1:-1]], [golden[-1], *golden[1:-1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, dtype):
    """Two query heads to a key head, but for windows of the small kernels, which have a key head each."""
    check(*FAMILIES[family], dtype, kv_heads=2 if family.startswith("windows") else 1)


@pytest.mark.parametrize("family", ["2-D prefix", "causal", "padding", "windows, prefix", "pooled keys"])
def test_other_tiles(family, monkeypatch):
    """Tiles that are not square: rows and columns are not to be confused."""
    monkeypatch.setattr(launches, "INTERPRETED", launches.Launch(32, 16, 4, 2))
    check(*FAMILIES[family], torch.float32)
    monkeypatch.setattr(launches, "INTERPRETED", launches.Launch(16, 32, 4, 2))
    check(*FAMILIES[family], torch.float32)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 2.0])
@pytest.mark.parametrize("family", ["2-D prefix", "windows, ragged", "causal"])
def test_scales_of_any_sign(family, scale):
    check(*FAMILIES[family], torch.float32, kv_heads=2, scale=scale)


@pytest.mark.parametrize("family", ["1-D", "causal prefix", "windows, ragged", "windows, padding", "segments"])
def test_without_a_bias(family):
    grid, _, mask = FAMILIES[family]
    q_k_v = [x.requires_grad_() for x in drawn(grid, grid, torch.float32, HEADS)]
    weight = torch.randn(2, HEADS, grid.tokens, VALUE_DIM)
    found, golden = (
        [out, *torch.autograd.grad(out, q_k_v, weight)]
        for out in (attention(*q_k_v, grid=grid, mask=mask, kernel=kernel) for kernel in ("triton", "reference"))
    )
    for x, ref in zip(found, golden, strict=True):
        torch.testing.assert_close(x, ref, rtol=0, atol=1e-5 * ref.abs().max().item())


CASES = [
    Case(BY_NAME[s], m) for s in ("table-2d-prefix", "alibi-1d", "table+alibi+rotary") for m in ("free", "shifted")
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda d: str(d)[6:])
def test_schemes(case, dtype):
    """The cases of all kernels: a scheme's own gradients, through the table that it makes."""
    golden = results(case, dtype, "reference", arithmetic=torch.float64)
    within_policy(results(case, dtype, "triton"), results(case, dtype, "plain"), golden)


def once(kernel: str, *q_k_v, gradient=None, **arguments):
    inputs = [x.detach().requires_grad_() for x in q_k_v]
    out = attention(*inputs, kernel=kernel, **arguments)
    return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out) if gradient is None else gradient)]


def close(found, golden) -> None:
    for x, ref in zip(found, golden, strict=True):
        torch.testing.assert_close(x, ref, rtol=0, atol=1e-5 * max([1.0, *ref.abs().flatten().tolist()]))


def strided(x: torch.Tensor) -> Iterator[torch.Tensor]:
    yield x.transpose(1, 2).contiguous().transpose(1, 2)
    yield x.transpose(2, 3).contiguous().transpose(2, 3)
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    yield wide[..., ::2]


@pytest.mark.parametrize("mask", [None, Windows((3, 3))], ids=["global", "windows"])
def test_strides_of_all_kinds(mask):
    grid = Grid(6, 6)
    q_k_v = drawn(grid, grid, torch.float32, HEADS)
    golden = once("reference", *q_k_v, grid=grid, mask=mask)
    for same in zip(*map(strided, q_k_v), strict=True):
        close(once("triton", *same, grid=grid, mask=mask), golden)
    expanded = torch.ones(()).expand(golden[0].shape)  # as the gradient of a sum comes: strides of 0
    close(once("triton", *q_k_v, grid=grid, mask=mask, gradient=expanded), golden)


@pytest.mark.parametrize("mask", [None, Windows((3, 3))], ids=["global", "windows"])
def test_packed(mask):
    table = table_for(Grid(6, 6), Grid(6, 6), mask)
    qkv = torch.randn(2, 6, 6, 3, HEADS, 16, requires_grad=True)
    found, golden = (
        [out, *torch.autograd.grad(out.square().sum(), (qkv, table.table))]
        for out in (attention_packed(qkv, position=table, mask=mask, kernel=name) for name in ("triton", "reference"))
    )
    close(found, golden)


@pytest.mark.parametrize(("batch", "tokens", "keys"), [(0, 5, 5), (2, 0, 5), (2, 5, 0), (1, 1, 1), (1, 1, 40)])
def test_edges(batch, tokens, keys):
    q_k_v = [torch.randn(batch, 2, n, 16) for n in (tokens, keys, keys)]
    close(once("triton", *q_k_v), once("reference", *q_k_v))


@pytest.mark.parametrize("family", ["padding", "keys in no cell"])
def test_what_nobody_sees_may_be_nan(family):
    """Neither values nor any gradient: the unit of the table's gradient as well is made of what is seen."""
    grid, key_grid, mask = FAMILIES[family]
    key_grid = grid if key_grid is None else key_grid
    table = table_for(grid, key_grid, mask)
    q, k, v = drawn(grid, key_grid, torch.float32, 2)
    hidden = torch.zeros(2, key_grid.tokens, dtype=torch.bool)
    hidden[:, 6:] = family != "padding"
    for member in () if mask is None else mask.members():
        hidden |= ~member.valid if isinstance(member, Padding) else False
    found = []
    for value in (0.0, torch.nan):
        inputs = [q.clone(), *(x.masked_fill(hidden[:, None, :, None], value) for x in (k, v))]
        inputs = [x.requires_grad_() for x in inputs]
        out = attention(*inputs, grid=grid, key_grid=key_grid, mask=mask, position=table, kernel="triton")
        found.append([out, *torch.autograd.grad(out.square().sum(), (*inputs, table.table))])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


@pytest.mark.parametrize("family", ["2-D prefix", "windows, ragged", "windows, prefix"])
def test_the_same_bits_whatever_came_before(family):
    """Whole numbers add up to the same in any order; memory that starts as NaN is written before it is read."""
    grid, _, mask = FAMILIES[family]
    table, q_k_v = table_for(grid, grid, mask), [x.requires_grad_() for x in drawn(grid, grid, torch.bfloat16, HEADS)]
    found = []
    for fill in (False, True):
        torch.use_deterministic_algorithms(fill)
        try:
            out = attention(*q_k_v, grid=grid, mask=mask, position=table, kernel="triton")
            found.append([out, *torch.autograd.grad(out.float().square().sum(), (*q_k_v, *table.parameters()))])
        finally:
            torch.use_deterministic_algorithms(False)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_gradient_that_is_not_finite_is_not_hidden():
    grid, table = Grid(6), table_for(Grid(6), Grid(6), None)
    q, k, v = drawn(grid, grid, torch.float32, HEADS)
    out = attention(q, k, v, grid=grid, position=table, kernel="triton")
    (found,) = torch.autograd.grad(out, table.table, torch.full_like(out, torch.inf))
    assert found.isnan().all()


@pytest.mark.parametrize("mask", [None, Windows((2, 3), (1, 1)), Causal()], ids=["global", "windows", "causal"])
def test_dropout(mask):
    """Values that are the unit matrix show what was dropped; a seed repeats it, forward and backward."""
    grid, p = Grid(4, 5), 0.4
    q, k, _ = drawn(grid, grid, torch.float32, HEADS)
    v = torch.eye(grid.tokens).expand(2, HEADS, -1, -1)
    arguments = {"grid": grid, "mask": mask}
    torch.manual_seed(5)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*inputs, dropout=p, kernel="triton", **arguments)
    weight = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, inputs, weight)]
    torch.manual_seed(5)
    assert torch.equal(attention(q, k, v, dropout=p, kernel="triton", **arguments), out)
    whole = attention(q, k, v, kernel="triton", **arguments)
    kept = out != 0
    assert 0.5 < kept[whole > 0].double().mean() < 0.7
    weights = attention(*(inputs := [x.clone().requires_grad_() for x in (q, k, v)]), kernel="reference", **arguments)
    scores = (inputs[0] @ inputs[1].mT) * 16**-0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.bound(grid, grid).allowed(grid, grid, torch.device("cpu")), -torch.inf)
    golden = torch.where(kept, scores.softmax(-1) / (1 - p), 0.0) @ inputs[2]
    assert weights.shape == golden.shape
    close(found, [golden, *torch.autograd.grad(golden, inputs, weight)])


@pytest.mark.native
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**61 + 12345])
@pytest.mark.parametrize("mask", [None, Windows((2, 3), (1, 1))], ids=["global", "windows"])
def test_a_seed_drops_the_same_weights_as_on_a_cpu(mask, seed, monkeypatch):
    """csrc's kernels and Triton's draw by one hash: a run that moves to another device repeats itself."""
    grid = Grid(4, 5, prefix=1)
    q, k, _ = drawn(grid, grid, torch.float32, HEADS)
    v = torch.eye(grid.tokens).expand(2, HEADS, -1, -1)
    numbers = described(grid, grid, Structure.of(mask), ())
    rest = (*[None] * 8, list(numbers), [0, 0], 0.25, 1.0, 0.4, torch.tensor([seed]))
    by_triton, _ = torch.ops.locant.attend(q, k, v, *rest)
    monkeypatch.setattr(operators, "interpreted", lambda: False)
    by_csrc, _ = torch.ops.locant.attend(q, k, v, *rest)
    assert torch.equal(by_triton == 0, by_csrc == 0)
    close([by_triton], [by_csrc])
    whole, _ = torch.ops.locant.attend(q, k, v, *rest[:-2], 0.0, None)
    assert 0.5 < (by_csrc != 0).double().mean() / (whole != 0).double().mean() < 0.7


def test_the_operators_pass_torchs_checks():
    grid, mask = Grid(3, 4), Windows((2, 2), (1, 0))
    q, k, v = (x.requires_grad_() for x in drawn(grid, grid, torch.float32, HEADS))
    table = torch.randn(HEADS, 3, 3, requires_grad=True)
    numbers = described(grid, grid, Structure.of(mask), (1, 1))
    rest = (table, None, None, None, None, None, None, None, list(numbers), [0, 0], 0.25, 1.0, 0.0, None)
    torch.library.opcheck(torch.ops.locant.attend, (q, k, v, *rest))
    qkv = torch.randn(2, 3, 4, 3, HEADS, 16, requires_grad=True)
    torch.library.opcheck(torch.ops.locant.attend_packed, (qkv, *rest))
    tests = ("test_schema", "test_faketensor")
    out, lse = torch.ops.locant.attend(q, k, v, *rest)
    given = (torch.randn_like(out), torch.randn_like(lse), out.detach(), lse.detach(), True, False)
    torch.library.opcheck(torch.ops.locant.attend_backward, (*given, q, k, v, *rest), test_utils=tests)
    out, lse = torch.ops.locant.attend_packed(qkv, *rest)
    given = (torch.randn_like(out), None, out.detach(), lse.detach(), True, False)
    torch.library.opcheck(torch.ops.locant.attend_packed_backward, (*given, qkv, *rest), test_utils=tests)


def test_one_graph():
    grid, table = Grid(4, 4), table_for(Grid(4, 4), Grid(4, 4), None)
    q, k, v = (x.requires_grad_() for x in drawn(grid, grid, torch.float32, HEADS))

    def call(q, k, v):
        return attention(q, k, v, grid=grid, position=table, kernel="triton").square().sum()

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    found, golden = (torch.autograd.grad(run(q, k, v), (q, k, v, table.table)) for run in (compiled, call))
    close(found, golden)


def test_what_is_said_under_the_interpreter():
    q, k, v = drawn(Grid(6), Grid(6), torch.float32, 2)
    found = plan(q, k, v)
    assert found.kernel == "sdpa"  # never measured here
    assert "TRITON_INTERPRET=1 has the operators run Triton's kernels" in dict(found.passed_over)["native"]
    assert "never measured on" in dict(found.passed_over)["triton"]
    with pytest.raises(ValueError, match="have no float64"):
        attention(q.double(), k.double(), v.double(), kernel="triton")
    assert operators._by_triton(q)
