"""Kernels x forms x masks x dtypes against the float64 reference, forward and every gradient; hostile inputs."""

from __future__ import annotations

import itertools

import pytest
import torch
import truth
from exactness import BY_NAME, CASES, MASKS, Case, results, within_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import KERNELS as ALL
from laws import attention, gradients, same
from refusals import refusal
from schemes import HEADS, RAGGED, heads, learned
from torch._subclasses.fake_tensor import FakeTensorMode

from locant import ALiBi, Causal, GatedPosition, Grid, Padding, Pairs, RelativeTable, Rotary, Windows, plan, weights
from locant.attend import attention as attend
from locant.kernels import sdpa

KERNELS = tuple(name for name in ALL if name != "reference")
HALVES = ("free", "causal", "shifted", "shifted+samples")


def or_refusal(case: Case, dtype: torch.dtype, kernel: str):
    """What the kernel gives; None if it refuses, as it may by the table in refusals.py."""
    grid = case.scheme.grid
    arguments = {"grid": grid, "position": case.scheme.make(dtype), "mask": MASKS[case.mask](grid)}
    problem = plan(*heads(grid, kv_heads=1, dtype=dtype), **arguments).problem
    if refusal(kernel, problem) is None:
        return results(case, dtype, kernel)
    with pytest.raises(ValueError, match=f"kernel='{kernel}' was asked for, and it refuses: "):
        results(case, dtype, kernel)
    return None


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64(case, kernel):
    found, golden = or_refusal(case, torch.float64, kernel), results(case, torch.float64, "reference")
    for x, ref in zip(found or golden, golden, strict=True):
        same(x, ref)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", [c for c in CASES if c.mask in HALVES], ids=str)
def test_low_precision(case, kernel, dtype):
    found, plain = or_refusal(case, dtype, kernel), results(case, dtype, "plain")
    golden = results(case, dtype, "reference", arithmetic=torch.float64)
    within_policy(found or plain, plain, golden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_the_definition_in_halves_is_as_good_as_torchs_dense_attention(dtype):
    """Where "auto" takes it (a log-sum-exp under Pairs), halves are raised to float32 and rounded once."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 49, 16, dtype=dtype).unbind(0)
    allowed = torch.rand(49, 49) > 0.2
    arguments = {"mask": Pairs(allowed), "return_lse": True}
    assert plan(q, k, v, **arguments).kernel == "reference"
    out, lse = attend(q, k, v, **arguments)
    golden, golden_lse = attend(q.double(), k.double(), v.double(), **arguments)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, allowed)
    once = (golden.to(dtype).double() - golden).abs().max()
    assert out.dtype == dtype
    assert (out.double() - golden).abs().max() <= max((theirs.double() - golden).abs().max(), 1.01 * once)
    assert lse.dtype == torch.float32
    assert (lse.double() - golden_lse).abs().max() < 1e-5
    p = weights(q, k, mask=Pairs(allowed))
    exact = weights(q.double(), k.double(), mask=Pairs(allowed))
    assert p.dtype == dtype
    assert (p.double() - exact).abs().max() <= 1.01 * (exact.to(dtype).double() - exact).abs().max()


class Attend(torch.nn.Module):
    """attention as a function of its position's parameters, for gradcheck."""

    def __init__(self, position, **arguments):
        super().__init__()
        self.position, self.arguments = position, arguments

    def forward(self, q, k, v):
        return attention(q, k, v, position=self.position, **self.arguments)


@pytest.mark.parametrize("kernel", ALL)
@pytest.mark.parametrize(
    ("build", "prefix", "mask"),
    [
        (lambda: RelativeTable(Grid(2, 2, prefix=1), HEADS), 1, None),
        (lambda: RelativeTable(Grid(2, 2), HEADS), 0, Windows((2, 2), (1, 0)) & Causal()),
        (lambda: GatedPosition(HEADS), 0, None),
        (lambda: GatedPosition(HEADS), 0, Windows((2, 2), (1, 0))),
        (
            lambda: (RelativeTable(Grid(2, 2), HEADS), Rotary(4, axes=2)),
            0,
            Padding(torch.tensor([[True] * 3 + [False]])),
        ),
    ],
    ids=["table-prefix", "table-windows-causal", "gate", "gate-windows", "table+rotary-padding"],
)
def test_gradcheck(build, prefix, mask, kernel):
    grid = Grid(2, 2, prefix=prefix)
    position = build()
    schemes = torch.nn.ModuleList(position if isinstance(position, tuple) else [position]).double()
    for parameter in schemes.parameters():
        torch.nn.init.normal_(parameter)
    model = Attend(position, grid=grid, mask=mask, kernel=kernel)
    model.schemes = schemes  # a tuple is no module: so that its parameters are found
    names = [name for name, _ in schemes.named_parameters(prefix="schemes")]

    def run(q, k, v, *numbers):
        return torch.func.functional_call(model, dict(zip(names, numbers, strict=True)), (q, k, v))

    shapes = ((HEADS, 4), (1, 4), (1, 3))
    inputs = [torch.randn(1, n, grid.tokens, d, dtype=torch.float64) for n, d in shapes]
    inputs = [x.requires_grad_() for x in (*inputs, *(p.detach().clone() for p in schemes.parameters()))]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=False)


HOSTILE = [(1,), (2,), (97,), (113,), (1, 1), (4, 8), (1, 13), (11, 1), (5, 7), (1, 1, 1), (3, 1, 7), (2, 4, 8)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", HOSTILE, ids=str)
def test_hostile_sizes(shape, kernel):
    grid, axes = Grid(*shape), len(shape)
    table = RelativeTable(grid, HEADS, init_std=0.5).double()
    gate = GatedPosition(HEADS, axes=axes).double()
    for position, mask in itertools.product(
        (table, gate), (None, RAGGED[axes], Windows((1,) * axes), Windows((50,) * axes))
    ):
        inputs = tuple(x.requires_grad_() for x in heads(grid, batch=1))
        inputs += tuple(position.parameters())
        both = [
            attention(*inputs[:3], grid=grid, position=position, mask=mask, kernel=name)
            for name in (kernel, "reference")
        ]
        for found, golden in zip(*([out, *gradients(out, inputs)] for out in both), strict=True):
            same(found, golden)


EMPTY = [(0, 2, 5, 5), (2, 0, 5, 5), (2, 2, 0, 5), (2, 2, 5, 0), (2, 2, 0, 0), (0, 0, 0, 0)]


@pytest.mark.parametrize("kernel", ALL)
@pytest.mark.parametrize("mask", [None, Causal(), Windows(2)], ids=str)
@pytest.mark.parametrize(("batch", "count", "queries", "keys"), EMPTY)
def test_nothing_at_all(batch, count, queries, keys, mask, kernel):
    """No samples, heads, queries or keys: right shapes, zeros, and gradients of zeros."""
    q = torch.randn(batch, count, queries, 4, requires_grad=True)
    k = torch.randn(batch, count, keys, 4, requires_grad=True)
    v = torch.randn(batch, count, keys, 3, requires_grad=True)
    schemes = (RelativeTable(Grid(5), count), ALiBi(count), GatedPosition(count, axes=1)) if count else ()
    for position in (None, *schemes):  # a scheme has heads
        out = attention(q, k, v, grid=Grid(queries), key_grid=Grid(keys), position=position, mask=mask, kernel=kernel)
        assert out.shape == (batch, count, queries, 3)
        assert (out == 0).all()
        for found, x in zip(torch.autograd.grad(out.sum(), (q, k, v)), (q, k, v), strict=True):
            assert found.shape == x.shape
            assert (found == 0).all()


@pytest.mark.parametrize("kernel", ALL)
def test_one_channel_and_windows_without_keys(kernel):
    grid, keys = Grid(8), Grid(8).pooled(4)
    q, k, v = torch.randn(1, 2, 8, 1).double(), torch.randn(1, 2, 2, 1).double(), torch.randn(1, 2, 2, 3).double()
    for position in (None, RelativeTable(grid, 2).double(), GatedPosition(2, axes=1).double()):
        arguments = {"grid": grid, "key_grid": keys, "position": position, "mask": Windows(2)}
        out = attention(q, k, v, kernel=kernel, **arguments)
        same(out, truth.attention(q, k, v, **arguments)[0])
        assert (out[:, :, [2, 3, 6, 7]] == 0).all()


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers, stored otherwise."""
    wide = torch.full((*x.shape[:3], 2 * x.shape[3]), torch.nan, dtype=x.dtype)
    wide[..., ::2] = x
    inside = torch.full([n + 2 for n in x.shape], torch.nan, dtype=x.dtype)
    inside[1:-1, 1:-1, 1:-1, 1:-1] = x
    return {
        "transposed": x.transpose(1, 2).contiguous().transpose(1, 2),
        "channels before tokens": x.transpose(2, 3).contiguous().transpose(2, 3),
        "strided, NaN between": wide[..., ::2],
        "offset, NaN around": inside[1:-1, 1:-1, 1:-1, 1:-1],
        "negative view": torch.complex(torch.zeros_like(x), -x).conj().imag,
    }


@pytest.mark.parametrize("kernel", ALL)
@pytest.mark.parametrize("name", layouts(torch.zeros(1, 1, 1, 1)))
def test_layouts(name, kernel):
    scheme = BY_NAME["table+alibi+rotary"]
    for mask in (None, RAGGED[2]):
        arguments = {"grid": scheme.grid, "position": scheme.make(), "mask": mask, "kernel": kernel}
        q, k, v = heads(scheme.grid)
        same(attention(*(layouts(x)[name] for x in (q, k, v)), **arguments), attention(q, k, v, **arguments))


@pytest.mark.parametrize("kernel", KERNELS)
def test_expanded_samples_and_heads(kernel):
    """One sample seen as three, one key head as two: gradients are summed where memory is shared."""
    grid, table = Grid(4, 6), RelativeTable(Grid(4, 6), HEADS).double()
    q, k, v = heads(grid, batch=1)
    k, v = k[:, :1], v[:, :1]
    for x in (q, k, v):
        x.requires_grad_()
    for mask in (None, RAGGED[2]):
        arguments = {"grid": grid, "position": table, "mask": mask}
        many = q.expand(3, -1, -1, -1), k.expand(3, 2, -1, -1), v.expand(3, 2, -1, -1)
        found = attention(*many, kernel=kernel, **arguments)
        golden = attention(q, k, v, kernel="reference", **arguments)
        same(found, golden.expand_as(found))
        for x, ref in zip(
            torch.autograd.grad(found.sum(), (q, k, v)), torch.autograd.grad(golden.sum(), (q, k, v)), strict=True
        ):
            same(x, 3 * ref)


@pytest.mark.parametrize("kernel", ALL)
@pytest.mark.parametrize("scheme", ["none", "table-2d-prefix", "gate-2d"])
def test_memory_that_starts_as_nan(scheme, kernel):
    """Every number of a result is written: torch.empty is filled with NaN."""
    scheme = BY_NAME[scheme]
    position, inputs = scheme.make(), heads(scheme.grid)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        q, k, v = (x.requires_grad_() for x in inputs)
        for mask in (None, RAGGED[2], RAGGED[2] & Causal()):
            out = attention(q, k, v, grid=scheme.grid, position=position, mask=mask, kernel=kernel)
            assert out.isfinite().all()
            assert all(g.isfinite().all() for g in gradients(out, (q, k, v, *learned(position))))
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("kernel", ALL)
@pytest.mark.parametrize("scheme", ["none", "table-2d-prefix", "gate-2d"])
@pytest.mark.parametrize("mask", [None, RAGGED[2]], ids=["free", "shifted"])
def test_the_same_bits_every_time(scheme, mask, kernel):
    scheme = BY_NAME[scheme]
    position = scheme.make(torch.float32)
    q, k, v = (x.requires_grad_() for x in heads(scheme.grid, dtype=torch.float32))
    first = None
    for _ in range(50):
        out = attention(q, k, v, grid=scheme.grid, position=position, mask=mask, kernel=kernel)
        found = [out, *gradients(out, (q, k, v, *learned(position)))]
        first = found if first is None else first
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))


@pytest.mark.parametrize("kernel", ALL)
@pytest.mark.parametrize("mask", [None, RAGGED[2]], ids=["free", "shifted"])
def test_dropout(mask, kernel):
    """The mean over many draws is the output without; a seed repeats the draw; checkpointing repeats it as well."""
    grid, p, draws = Grid(4, 6), 0.3, 2000
    table = RelativeTable(grid, HEADS).double()
    q, k, v = heads(grid, batch=1)
    golden = attention(q, k, v, grid=grid, position=table, mask=mask, kernel="reference")
    many = [x.expand(draws, -1, -1, -1) for x in (q, k, v)]
    torch.manual_seed(7)
    out = attention(*many, grid=grid, position=table, mask=mask, dropout=p, kernel=kernel)
    error = (out.mean(0, keepdim=True) - golden).abs() / (out.std(0, keepdim=True) / draws**0.5)
    assert 0.1 < error.max() < 5, "in standard errors of the mean"

    q, k, v = (x.requires_grad_() for x in (q, k, v))
    found = []
    for again in (False, False, True):
        torch.manual_seed(8)

        def run(q, k, v):
            return attention(q, k, v, grid=grid, position=table, mask=mask, dropout=p, kernel=kernel)

        out = torch.utils.checkpoint.checkpoint(run, q, k, v, use_reentrant=False) if again else run(q, k, v)
        found.append([out, *gradients(out, (q, k, v, table.table))])
    for once, twice, recomputed in zip(*found, strict=True):
        assert torch.equal(once, twice)
        assert torch.equal(once, recomputed)


@st.composite
def numbers(build):
    """Plain numbers that `problem` makes a problem of."""
    axes = build(st.integers(1, 3))
    most = 4 if axes < 3 else 2

    def each(low, high):
        return tuple(build(st.lists(st.integers(low, high), min_size=axes, max_size=axes)))

    return {
        "sizes": each(1, most),
        "origin": each(-3, 3),
        "windows": (each(1, 4), each(-2, 2)),
        "prefix": build(st.integers(0, 2)),
        "rows": build(st.integers(0, 1)),
        "keys": build(st.sampled_from(["same", "pooled", "sliced", "without prefix"])),
        "valid": build(st.lists(st.booleans(), min_size=24, max_size=24)),
        "masks": build(st.lists(st.sampled_from(["windows", "padding", "causal", "causal in time"]), max_size=3)),
        "schemes": build(st.sampled_from(["", "table", "table alibi", "rotary alibi", "gate", "table gate"])).split(),
    }


def problem(drawn):
    """Grids, mask and schemes."""
    sizes, rows = drawn["sizes"], drawn["rows"]
    grid = Grid(*sizes, prefix=drawn["prefix"], origin=drawn["origin"])
    cut = grid[1:] if sizes[0] > 1 else grid
    keys = {"same": grid, "pooled": grid.pooled(2), "sliced": cut, "without prefix": grid.without_prefix()}[
        drawn["keys"]
    ]
    masks = {
        "windows": Windows(*drawn["windows"]),
        "padding": Padding(torch.tensor([drawn["valid"][: keys.tokens]])),
        "causal": Causal(),
        "causal in time": Causal(axis=0),
    }
    mask = None
    for name in drawn["masks"]:
        mask = masks[name] if mask is None else mask & masks[name]
    schemes = {
        "table": RelativeTable(Grid(*(2 * n + 6 for n in sizes), prefix=rows), HEADS, init_std=0.5),
        "alibi": ALiBi(HEADS, distance="euclidean"),
        "rotary": Rotary(8, axes=grid.axes),
        "gate": GatedPosition(HEADS, axes=grid.axes),
    }
    return grid, keys, mask, tuple(schemes[name].double() for name in drawn["schemes"])


@settings(max_examples=60)
@given(numbers())
def test_any_problem(drawn):
    """Grids, key grids, masks and schemes at random: every kernel and the slow truth agree."""
    grid, key_grid, mask, position = problem(drawn)
    q, k, v = heads(grid, key_grid, batch=1)
    arguments = {"grid": grid, "key_grid": key_grid, "mask": mask, "position": position}
    golden, _ = truth.attention(q, k, v, **arguments)
    for kernel in ALL:
        same(attention(q, k, v, kernel=kernel, **arguments), golden, kernel)


@pytest.mark.parametrize(
    ("tokens", "masked", "learns", "device", "avoids"),
    [(64, True, True, "cuda", True), (192, True, True, "cuda", True), (128, True, True, "cuda", False),
     (96, True, True, "cuda", False), (64, False, True, "cuda", False), (64, True, False, "cuda", False),
     (64, True, True, "cpu", False)],
)  # fmt: skip
def test_where_cudnns_backward_gives_nan(tokens, masked, learns, device, avoids):
    """Told by tensors that only claim to be on a GPU."""
    with FakeTensorMode():
        q = torch.empty(1, 2, tokens, 8, device=device, requires_grad=learns)
        extra = torch.empty(1, 1, tokens, tokens, device=device) if masked else None
        assert sdpa._cudnn_gives_nan(q, q, q, extra) == avoids


@pytest.mark.parametrize("windows", [False, True])
def test_cudnn_is_left_out_there_and_back_afterwards(monkeypatch, windows):
    seen, theirs, before = [], sdpa.scaled_dot_product_attention, torch.backends.cuda.cudnn_sdp_enabled()

    def watched(*args, **kwargs):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return theirs(*args, **kwargs)

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", watched)
    q, k, v = heads(Grid(8, 16))
    arguments = {"grid": Grid(8, 16), "mask": Windows((8, 8)) if windows else None, "kernel": "sdpa"}
    golden = attend(q, k, v, **arguments)
    monkeypatch.setattr(sdpa, "_cudnn_gives_nan", lambda *tensors: True)
    assert torch.equal(attend(q, k, v, **arguments), golden)
    assert seen == [before, False]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
