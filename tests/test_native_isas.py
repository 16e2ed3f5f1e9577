"""The compiled kernels by instruction set: each of them by the policy, half precisions by floats, units and pairs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from exactness import BY_NAME, Case, results, within_policy
from laws import gradients, same
from test_native import BITS, ISAS, MODULE, leave_nan_behind, table

from locant import Causal, Grid, Padding, Windows, attention, hooks
from locant.measuring.exactness import plainly

pytestmark = pytest.mark.native


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set."""
    before = MODULE.isa()
    MODULE.choose_isa(request.param)
    yield request.param
    MODULE.choose_isa(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_instruction_set(isa, dtype):
    assert MODULE.isa() == isa
    pairs = [
        ("table-2d-prefix", "free"), ("table-2d-prefix", "shifted+samples"), ("table-2d-prefix", "causal"),
        ("table-3d", "shifted"), ("none", "twice"), ("table-1d", "samples"), ("alibi-1d", "two-windows"),
    ]  # fmt: skip
    for case in (Case(BY_NAME[scheme], mask) for scheme, mask in pairs):
        found = results(case, dtype, "native")
        golden = results(case, dtype, "reference", arithmetic=torch.float64)
        if dtype == torch.float64:
            for x, ref in zip(found, golden, strict=True):
                same(x, ref, str(case))
        else:
            within_policy(found, results(case, dtype, "reference"), golden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_is_read_and_written(isa, dtype):
    """All 65,536 of them through one key, whose weight is 1; and rounding, to the mean of two."""
    v = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, 1, 1, -1)
    v = torch.where(v.isfinite(), v, 0)
    q = torch.zeros(1, 1, 1, 16, dtype=dtype)
    found = attention(q, q, v, kernel="native")
    normal = v.float().abs() >= torch.finfo(torch.float32).tiny  # what bfloat16 has below, all kernels flush
    assert torch.equal(found[normal | (v == 0)], v[normal | (v == 0)])
    pair = torch.cat([v, v.flip(-1).roll(17, -1)], 2)
    mean = pair.double().mean(2, keepdim=True)
    found = attention(q, q.expand(1, 1, 2, 16), pair, grid=Grid(1), key_grid=Grid(2), kernel="native")
    normal = mean.abs() >= torch.finfo(torch.float32).tiny
    assert torch.equal(found[normal], mean.to(dtype)[normal])


@pytest.mark.parametrize("name", BITS)
def test_every_instruction_set_on_larger_problems(isa, name):
    """In float64 all of them agree; the reference says with what."""
    grid, (heads, kv), batch, mask = BITS[name]
    position = table(grid, heads)
    q, k, v = (torch.randn(batch, n, grid.tokens, 8, dtype=torch.float64) for n in (heads, kv, kv))
    inputs = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), *position.parameters())
    arguments = {"grid": grid, "position": position, "mask": mask}
    leave_nan_behind(torch.float64)
    found, golden = (attention(q, k, v, kernel=kernel, **arguments) for kernel in ("native", "reference"))
    same(found, golden)
    for x, ref in zip(gradients(found, inputs), gradients(golden, inputs), strict=True):
        same(x, ref, "gradients")


UNITS = {
    "one block": (Grid(5, 9), 8, 16, None),
    "several panels and blocks": (Grid(14, 14), 40, 48, None),
    "a class token": (Grid(14, 14, prefix=1), 64, 32, None),
    "windows": (Grid(15, 15), 32, 32, Windows((7, 7), (3, 3))),
    "order": (Grid(150), 66, 64, Causal()),
    "padding": (Grid(90), 16, 16, Padding(torch.arange(90)[None] < torch.tensor([[90], [17]]))),
    "odd counts": (Grid(7, 11), 25, 48, None),  # of channels and of keys: the last pair is half empty
}


def _has_units(units: str) -> bool:
    return bool({"amx", "emulated"} & set(ISAS)) if units == "tiles" else "avx512" in ISAS and _multiplies_pairs()


def _multiplies_pairs() -> bool:
    before = MODULE.isa()
    MODULE.choose_isa("avx512")
    try:
        return MODULE.multiplies_pairs()
    finally:
        MODULE.choose_isa(before)


@pytest.mark.parametrize("units", ["tiles", "pairs"])
@pytest.mark.parametrize("name", UNITS)
def test_matrix_units_and_pairs(name, units):
    """bfloat16 in tiles, which LOCANT_EMULATE emulates where there are none, or by pairs: by the policy."""
    if not _has_units(units):
        pytest.skip("no matrix units, and this build emulates none" if units == "tiles" else "no AVX512_BF16")
    grid, head_dim, value_dim, mask = UNITS[name]
    position = table(grid, 4)
    q, k, v = (torch.randn(2, n, grid.tokens, d) for n, d in ((4, head_dim), (2, head_dim), (2, value_dim)))
    q, k, v = (x.bfloat16().requires_grad_() for x in (q, k, v))

    def run(kernel, dtype):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        with hooks.attending(plainly) if kernel == "plain" else nullcontext():
            name = "auto" if kernel == "plain" else kernel
            out = attention(*inputs, grid=grid, position=position, mask=mask, kernel=name)
        return [out, *gradients(out, inputs)]

    plain, golden, before = run("plain", torch.bfloat16), run("reference", torch.float64), MODULE.isa()
    MODULE.choose_isa("avx512" if units == "pairs" else "amx" if "amx" in ISAS else "emulated")
    try:
        within_policy(run("native", torch.bfloat16), plain, golden)
    finally:
        MODULE.choose_isa(before)


def test_an_unknown_instruction_set_is_refused():
    before = MODULE.isa()
    with pytest.raises(ValueError, match="`name` has to name an instruction set .* it is 'sse9'. Choose one of: "):
        MODULE.choose_isa("sse9")
    assert MODULE.isa() == before
