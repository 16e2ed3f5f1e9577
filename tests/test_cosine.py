"""`CosineWindowAttention` (Swin v2) against loops over queries and keys, at its cap, in half precision and compiled."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor

from locant import Grid, RelativeTable
from locant.nn.cosine import CosineWindowAttention

DIM, HEADS, WIDTH = 6, 2, 3


def made(window: tuple[int, int] = (2, 3), **rules: object) -> CosineWindowAttention:
    """Every number drawn so that it shows; head 1 lies above the cap."""
    module = CosineWindowAttention(DIM, HEADS, window, **rules).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
        module.logit_scale.copy_(torch.tensor([1.0, 7.0]).view(HEADS, 1, 1))
    return module


def bias(module: CosineWindowAttention, offset: tuple[int, int]) -> Tensor:
    """16 σ(MLP(sign(d) log2(1 + 8 |d| / (side - 1)) / 3)), one offset at a time."""
    mlp = module.position.mlp
    line = [
        math.copysign(math.log2(1 + 8 * abs(d) / max(side - 1, 1)) / 3, d)
        for d, side in zip(offset, module.window, strict=True)
    ]
    hidden = torch.relu(mlp.fc1.weight @ torch.tensor(line, dtype=torch.float64) + mlp.fc1.bias)
    return 16 / (1 + torch.exp(-(mlp.fc2.weight @ hidden)))


def slow(module: CosineWindowAttention, x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Query by query, over the keys of its window."""
    places = list(itertools.product(*map(range, shape)))
    cells = [tuple((c - s) // w for c, s, w in zip(p, module.shift, module.window, strict=True)) for p in places]
    out = torch.zeros_like(x)
    for b, i in itertools.product(range(len(x)), range(len(places))):
        parts = []
        for h in range(HEADS):
            rows = slice(h * WIDTH, (h + 1) * WIDTH)
            wq, wk, wv = (module.qkv.weight[part * DIM : (part + 1) * DIM][rows] for part in range(3))
            q = wq @ x[b, i] + module.q_bias[rows]
            seen = [j for j in range(len(places)) if cells[j] == cells[i]]
            logits = []
            for j in seen:
                k = wk @ x[b, j]
                cosine = (q @ k) / (q.norm() * k.norm())
                scale = torch.exp(module.logit_scale[h, 0, 0]).clamp(max=100.0)
                offset = (places[i][0] - places[j][0], places[i][1] - places[j][1])
                logits.append(cosine * scale + bias(module, offset)[h])
            p = torch.softmax(torch.stack(logits), 0)
            parts.append(sum(p[n] * (wv @ x[b, j] + module.v_bias[rows]) for n, j in enumerate(seen)))
        out[b, i] = module.proj(torch.cat(parts))
    return out


@pytest.mark.row(14)
@pytest.mark.parametrize(("shape", "shift"), [((4, 6), None), ((4, 6), (1, 1)), ((3, 5), (1, 2))])
def test_it_is_its_formula(shape: tuple[int, int], shift: tuple[int, int] | None) -> None:
    module = made(shift=shift)
    x = torch.randn(2, shape[0] * shape[1], DIM, dtype=torch.float64)
    assert float((module(x, grid=Grid(*shape)) - slow(module, x, shape)).detach().abs().max()) <= 1e-10


@pytest.mark.row(14)
def test_the_scale_is_capped_at_100_and_learns_below() -> None:
    module, x = made(), torch.randn(1, 6, DIM, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(module(x, grid=Grid(2, 3)).square().sum(), module.logit_scale)
    assert float(gradient[0].abs()) > 0
    assert float(gradient[1].abs()) == 0  # exp(7) > 100
    at_cap = copy.deepcopy(module)
    with torch.no_grad():
        at_cap.logit_scale[1] = math.log(100)
    assert torch.allclose(at_cap(x, grid=Grid(2, 3)), module(x, grid=Grid(2, 3)), atol=1e-12)


def test_it_starts_as_published() -> None:
    module = CosineWindowAttention(8, 2, (7, 7))
    assert torch.equal(module.logit_scale, torch.full((2, 1, 1), math.log(10)))
    assert not module.q_bias.any()
    assert not module.v_bias.any()
    names = {"qkv.weight", "q_bias", "v_bias", "logit_scale", "proj.weight", "proj.bias"}
    names |= {f"position.mlp.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight")}
    assert set(module.state_dict()) == names
    bare = set(CosineWindowAttention(8, 2, (7, 7), qkv_bias=False).state_dict())
    assert names - bare == {"q_bias", "v_bias"}


@pytest.mark.row(53)
def test_gradients() -> None:
    module = CosineWindowAttention(4, 1, (2, 2), shift=1, position=RelativeTable(Grid(2, 2), 1, init_std=0.5)).double()
    x = torch.randn(1, 9, 4, dtype=torch.float64, requires_grad=True)

    def attend(x: Tensor, *_: Tensor) -> Tensor:
        return module(x, grid=Grid(3, 3))

    assert torch.autograd.gradcheck(attend, (x, *module.parameters()), fast_mode=True)


@pytest.mark.row(53)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("border", ["cells", "pad-roll"])
def test_half_precision_has_no_nan_where_keys_are_zero(border: str, dtype: torch.dtype) -> None:
    """Zeros that fill a map have keys of length 0: 0 / max(0, 1e-12) is 0 / 0 in float16."""
    module = made((2, 2), shift=1, border=border).to(dtype)
    x = torch.randn(1, 15, DIM, dtype=dtype)
    out = module(x, grid=Grid(3, 5))
    assert out.dtype == dtype
    exact = copy.deepcopy(module).double()(x.double(), grid=Grid(3, 5))
    # logits of up to 100 are rounded to the dtype before a softmax: each weight is off by a factor of 1 ± 100 eps
    limit = 2 * 100 * torch.finfo(dtype).eps * max(1.0, float(exact.detach().abs().max()))
    assert float((out.double() - exact).detach().abs().max()) <= limit


def test_copies_files_and_autocast() -> None:
    module = made((2, 2), shift=1).float()
    x, grid = torch.randn(2, 12, DIM), Grid(3, 4)
    expected = module(x, grid=grid)
    assert torch.equal(copy.deepcopy(module)(x, grid=grid), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x, grid=grid), expected)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, grid=grid)
    out.float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


@pytest.mark.row(55)
@pytest.mark.compiled
def test_compiled_it_is_the_same() -> None:
    module, x = made((2, 2), shift=1, border="roll-pad"), torch.randn(2, 15, DIM, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    leaves = list(module.parameters())
    found, wanted = compiled(x, grid=Grid(3, 5)), module(x, grid=Grid(3, 5))
    assert float((found - wanted).detach().abs().max()) <= 1e-10
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, wanted)), strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.plain
def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r'one `position` by name, "log-cpb"; got \'table\'. Build another scheme'):
        CosineWindowAttention(8, 2, (7, 7), position="table")
    with pytest.raises(
        ValueError, match=r"CosineWindowAttention needs a `dim` that its `heads` divide.*dim=8, heads=3"
    ):
        CosineWindowAttention(8, 3, (7, 7))
