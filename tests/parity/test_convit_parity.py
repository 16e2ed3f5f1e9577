"""The verb on timm's numbers: a gated position is ConViT's GPSA, its positional half never expanded."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from locant import GatedPosition, Grid, attention, plan, weights

MOST = 1e-5


def converted(theirs) -> GatedPosition:
    """pos_proj acts on (dx, dy, d²) of key - query; ours on (row, column) of query - key."""
    gate = GatedPosition(theirs.num_heads)
    published = theirs.pos_proj.weight
    gate.load_state_dict(
        {"direction": -published[:, [1, 0]], "spread": published[:, 2], "gate": theirs.gating_param}, strict=True
    )
    return gate


def heads_of(theirs, x):
    q, k = theirs.qk(x).unflatten(-1, (2, theirs.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, theirs.v(x).unflatten(-1, (theirs.num_heads, -1)).transpose(1, 2)


def published(timm, count: int, start: str):
    """timm's module with weights that show."""
    gpsa = import_module("timm.models.convit").GPSA(8 * count, count).eval()
    if start == "local":
        gpsa.local_init()
    else:
        for parameter in (gpsa.pos_proj.weight, gpsa.pos_proj.bias, gpsa.gating_param):
            nn.init.normal_(parameter)
    return gpsa


def through(theirs, x, gate, grid, kernel):
    """Our attention between timm's projections."""
    q, k, v = heads_of(theirs, x)
    out = attention(q, k, v, grid=grid, position=gate, kernel=kernel)
    return theirs.proj(out.transpose(1, 2).flatten(2))


CASES = pytest.mark.parametrize(
    ("side", "count", "start"),
    [(4, 4, "random"), (7, 9, "random"), (14, 4, "local"), (14, 9, "random"), (14, 16, "local")],
)


@pytest.mark.row(18)
@pytest.mark.parametrize("kernel", ["auto", "reference"])
@CASES
def test_gpsa(timm, parity, side, count, start, kernel):
    theirs, grid = published(timm, count, start), Grid(side, side)
    x, gate = torch.randn(2, grid.tokens, 8 * count), converted(theirs)
    assert plan(*heads_of(theirs, x), grid=grid, position=gate).kernel != "reference", "never its dense form"
    error = (through(theirs, x, gate, grid, kernel) - theirs(x)).abs().max().item()
    parity(18, "timm GPSA", error, MOST)


@pytest.mark.row(18)
@pytest.mark.row(22)
@pytest.mark.parametrize("kernel", ["auto", "reference"])
@CASES
def test_gpsa_gradients(timm, parity, side, count, start, kernel):
    """In float64, so that nothing but the mathematics can differ. pos_proj.bias cancels: it has no counterpart."""
    theirs, grid = published(timm, count, start).double(), Grid(side, side)
    gate = converted(theirs).double()
    x = torch.randn(2, grid.tokens, 8 * count, dtype=torch.float64, requires_grad=True)
    found, golden = through(theirs, x, gate, grid, kernel), theirs(x)
    weight = torch.randn_like(golden)
    by_input, direction, spread, share = torch.autograd.grad(
        (found * weight).sum(), (x, gate.direction, gate.spread, gate.gate)
    )
    numbers = (x, theirs.pos_proj.weight, theirs.gating_param, theirs.pos_proj.bias)
    *expected, cancelled = torch.autograd.grad((golden * weight).sum(), numbers)
    by_weight = torch.cat([-direction.flip(1), spread[:, None]], dim=1)
    for name, ours, ref in zip(("input", "weights", "gate"), (by_input, by_weight, share), expected, strict=True):
        row = 22 if name == "gate" else 18
        error = ((ours - ref).abs().max() / ref.abs().max()).item()
        parity(row, f"timm GPSA, gradient of the {name} (float64, of its size)", error, 1e-10)
    dead = (cancelled.abs().max() / expected[1].abs().max()).item()
    parity(22, "zero: gradient of timm's pos_proj.bias (float64, of pos_proj.weight's)", dead, 1e-10)


@pytest.mark.row(19)
@pytest.mark.parametrize("count", [4, 9, 16])
def test_local_start(timm, parity, count):
    gpsa = import_module("timm.models.convit").GPSA(8 * count, count)
    gpsa.local_init()
    published, ours = converted(gpsa), GatedPosition(count)
    for name, value in ours.state_dict().items():
        error = (value - published.state_dict()[name]).abs().max().item()
        parity(19, "timm local_init", error, 0.0)


@pytest.mark.row(18)
def test_the_map(timm, parity):
    gpsa = import_module("timm.models.convit").GPSA(36, 9).eval()
    gpsa.local_init()
    x = torch.randn(1, 49, 36)
    gpsa(x)
    q, k, _ = heads_of(gpsa, x)
    found = weights(q, k, grid=Grid(7, 7), position=converted(gpsa))
    parity(18, "timm GPSA, the mixed map", (found - gpsa.get_attention(x)).abs().max().item(), MOST)
