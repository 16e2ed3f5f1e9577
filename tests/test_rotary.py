"""Rotary: complex numbers one at a time, and the law that logits see the offset alone."""

from __future__ import annotations

import cmath
import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor

from locant import Causal, Grid, attention, plan
from locant.positions.rotary import LAYOUTS, Rotary

CASES = [
    (Grid(5), {}),
    (Grid(3, 4, prefix=2), {"axes": 2}),
    (Grid(2, 3, 2), {"axes": 3, "pairs": (4, 2, 2)}),
    (Grid(2, 2, 3, prefix=1), {"axes": 3, "pairs": (0, 3, 5)}),
]


def slow(x: Tensor, grid: Grid, pairs: tuple[int, ...], layout: str, base: float = 10000.0) -> Tensor:
    """a + ib times exp(i coordinate base^(-i / n)), one token and one pair at a time."""
    out, half = x.clone(), x.shape[-1] // 2
    angles = [(axis, base ** (-i / n)) for axis, n in enumerate(pairs) for i in range(n)]
    for token, cell in enumerate(itertools.product(*(grid.along(a) for a in range(grid.axes))), start=grid.prefix):
        for pair, (axis, rate) in enumerate(angles):
            a, b = (2 * pair, 2 * pair + 1) if layout == "interleaved" else (pair, pair + half)
            turn = cmath.exp(1j * cell[axis] * rate)
            for batch, head in itertools.product(*map(range, x.shape[:2])):
                z = complex(x[batch, head, token, a], x[batch, head, token, b]) * turn
                out[batch, head, token, a], out[batch, head, token, b] = z.real, z.imag
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("grid", "options"), CASES)
def test_it_is_a_product_of_complex_numbers(grid, options, layout):
    position = Rotary(16, layout=layout, base=100.0, **options)
    x = torch.randn(2, 2, grid.tokens, 16, dtype=torch.float64)
    golden = slow(x, grid, position.pairs, layout, base=100.0)
    torch.testing.assert_close(position(x, grid), golden, atol=1e-10, rtol=0)


def test_the_sign_and_order_by_hand():
    """One pair at coordinate 1: (1, 0) goes to (cos 1, sin 1), against the clock."""
    x = torch.tensor([[[[1.0, 0.0]]]])
    found = Rotary(2)(x, Grid(1, origin=(1,)))
    torch.testing.assert_close(found.flatten(), torch.tensor([math.cos(1), math.sin(1)]), atol=1e-7, rtol=0)
    four = Rotary(4, layout="halves")(torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]]), Grid(1, origin=(1,)))
    golden = torch.tensor([math.cos(1), -math.sin(0.01), math.sin(1), math.cos(0.01)])
    torch.testing.assert_close(four.flatten(), golden, atol=1e-7, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("grid", "options"), CASES)
def test_logits_depend_on_the_offset_alone(grid, options, layout):
    """Moving every cell by the same step changes no logit; the prefix has no place, so it is left out."""
    position = Rotary(16, layout=layout, **options)
    here = grid.without_prefix()
    moved = Grid(*here.shape, origin=(3, -7, 11)[: here.axes])
    q, k = (torch.randn(1, 2, here.tokens, 16, dtype=torch.float64) for _ in range(2))
    before, after = (position(q, g) @ position(k, g).mT for g in (here, moved))
    torch.testing.assert_close(before, after, atol=1e-10, rtol=0)


def test_moving_one_axis_of_the_keys_is_seen():
    """What the law above must not be: blind. A key one row away is told from one a column away."""
    position = Rotary(16, axes=2)
    x = torch.randn(1, 1, 1, 16, dtype=torch.float64)
    logits = [
        (position(x, Grid(1, 1)) * position(x, Grid(1, 1, origin=place))).sum().item()
        for place in [(0, 0), (1, 0), (0, 1), (-1, 0)]
    ]
    assert len({round(v, 6) for v in logits}) == 3
    assert logits[1] == pytest.approx(logits[3]), "one and the same vector: its logits are even in the offset"
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).unbind()
    ahead, behind = ((position(q, Grid(1, 1)) * position(k, Grid(1, 1, origin=(s, 0)))).sum() for s in (1, -1))
    assert not torch.isclose(ahead, behind), "different vectors tell before from after"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("grid", "options"), CASES)
def test_lengths_stay(grid, options, layout):
    x = torch.randn(2, 1, grid.tokens, 16, dtype=torch.float64)
    turned = Rotary(16, layout=layout, **options)(x, grid)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-10, rtol=0)


def test_turning_back_undoes_it():
    """A negative coordinate is the inverse rotation."""
    position, x = Rotary(8), torch.randn(1, 1, 1, 8, dtype=torch.float64)
    there = position(x, Grid(1, origin=(9,)))
    torch.testing.assert_close(position(there, Grid(1, origin=(-9,))), x, atol=1e-10, rtol=0)


def test_prefix_tokens_are_left_bit_for_bit():
    grid = Grid(3, 3, prefix=2)
    x = torch.randn(1, 2, grid.tokens, 8)
    x[..., 0, 0] = math.inf
    assert torch.equal(Rotary(8, axes=2)(x, grid)[..., :2, :], x[..., :2, :])


def test_slices_and_pooled_grids_turn_by_their_coordinates():
    position, grid = Rotary(8, axes=2), Grid(6, 4)
    x = torch.randn(1, 1, 24, 8)
    whole = position(x, grid)
    assert torch.equal(position(x[..., 8:16, :], grid[2:4]), whole[..., 8:16, :])
    every = x.unflatten(2, (6, 4))[:, :, ::2, ::2].flatten(2, 3)
    assert torch.equal(position(every, grid.pooled(2)), whole.unflatten(2, (6, 4))[:, :, ::2, ::2].flatten(2, 3))


@pytest.mark.parametrize(
    ("head_dim", "axes", "pairs"), [(16, 1, (8,)), (16, 2, (4, 4)), (16, 3, (2, 3, 3)), (14, 3, (2, 2, 3))]
)
def test_pairs_are_shared_out_evenly(head_dim, axes, pairs):
    assert Rotary(head_dim, axes=axes).pairs == pairs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_axes_turn_their_own_pairs_only(layout):
    position = Rotary(16, axes=3, pairs=(4, 2, 2), layout=layout)
    owner = [0, 0, 0, 0, 1, 1, 2, 2]
    x = torch.randn(1, 1, 1, 16)
    for axis in range(3):
        place = tuple(int(a == axis) for a in range(3))
        moved = (position(x, Grid(1, 1, 1, origin=place)) != x).flatten()
        turned = moved.reshape(8, 2).any(1) if layout == "interleaved" else moved.reshape(2, 8).any(0)
        assert turned.tolist() == [a == axis for a in owner]


def test_layouts_are_one_permutation_of_channels_apart():
    x, grid = torch.randn(1, 2, 5, 8), Grid(5)
    to_halves = torch.arange(8).reshape(4, 2).T.flatten()
    turned = Rotary(8, layout="halves")(x[..., to_halves], grid)
    torch.testing.assert_close(turned, Rotary(8)(x, grid)[..., to_halves], atol=1e-6, rtol=0)


def test_far_positions_are_exact():
    x = torch.randn(1, 1, 1, 64)
    grid = Grid(1, origin=(100_000,))
    golden = slow(x.double(), grid, (32,), "interleaved")
    low = 2 * torch.finfo(torch.float32).eps * x.abs().max()  # two products and a sum in float32
    assert (Rotary(64)(x, grid) - golden).abs().max() <= 2 * low


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x, grid = torch.randn(1, 2, 50, 32).to(dtype), Grid(50, origin=(2000,))
    found, golden = Rotary(32).to(dtype)(x, grid), Rotary(32)(x.double(), grid)
    assert found.dtype == dtype
    assert ((found - golden).abs() <= golden.abs() * torch.finfo(dtype).eps / 2 + 2e-6).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(layout):
    grid, position = Grid(2, 2, prefix=1), Rotary(8, axes=2, pairs=(1, 3), layout=layout)
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: position(x, grid), (x,))


def test_strided_and_empty_inputs():
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)
    assert torch.equal(Rotary(8)(x, Grid(5)), Rotary(8)(x.contiguous(), Grid(5)))
    odd = torch.randn(1 + 2 * 3 * 5 * 8)[1:].view(2, 3, 5, 8)  # an odd offset, which a complex view would refuse
    assert torch.equal(Rotary(8)(odd, Grid(5)), Rotary(8)(odd.clone(), Grid(5)))
    assert Rotary(8)(torch.zeros(0, 3, 5, 8), Grid(5)).shape == (0, 3, 5, 8)
    assert Rotary(8)(torch.zeros(1, 3, 1, 8), Grid(0, prefix=1)).shape == (1, 3, 1, 8)


def test_nothing_is_stored_and_copies_agree():
    position, x = Rotary(8, axes=2, layout="halves"), torch.randn(1, 1, 6, 8)
    assert not position.state_dict()
    for again in (copy.deepcopy(position), pickle.loads(pickle.dumps(position)), copy.deepcopy(position).half()):
        assert torch.equal(again(x, Grid(2, 3)), position(x, Grid(2, 3)))
    assert "pairs=(2, 2), layout='halves'" in repr(position)


@pytest.mark.parametrize("head_dim", [0, 7, -2])
def test_odd_head_dims_are_refused(head_dim):
    with pytest.raises(ValueError, match=rf"even `head_dim` of at least 2; got {head_dim}. Use"):
        Rotary(head_dim)


@pytest.mark.parametrize("pairs", [(4,), (4, 3), (9, -1), (2, 2, 4)])
def test_pairs_must_add_up(pairs):
    with pytest.raises(ValueError, match=r"`pairs` for each of 2 axes, 8 in all .* \(4, 4\) shares"):
        Rotary(16, axes=2, pairs=pairs)


def test_other_options_out_of_range():
    with pytest.raises(ValueError, match=r"1, 2 or 3 `axes`; got 4"):
        Rotary(8, axes=4)
    with pytest.raises(ValueError, match=r"`layout` out of 'interleaved', 'halves'; got 'neox'"):
        Rotary(8, layout="neox")
    with pytest.raises(ValueError, match=r"`base` above 0; got 0"):
        Rotary(8, base=0.0)


def test_grids_with_other_axes_are_refused():
    with pytest.raises(ValueError, match=r"needs a grid of 1 axis; got Grid\(2, 3\).* Rotary\(8, axes=2\)"):
        Rotary(8)(torch.zeros(1, 1, 6, 8), Grid(2, 3))


@pytest.mark.parametrize("shape", [(1, 1, 5, 8), (1, 1, 6, 4)])
def test_other_tokens_or_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"`x` \[batch, heads, 6, 8\] on Grid\(5, prefix=1\); got"):
        Rotary(8)(torch.zeros(shape), Grid(5, prefix=1))


@pytest.mark.compiled
@pytest.mark.parametrize(("layout", "backend"), [("interleaved", "aot_eager"), ("halves", "inductor")])
def test_it_compiles_whole_with_gradients(layout, backend):
    torch.compiler.reset()
    position, grid = Rotary(8, axes=2, layout=layout), Grid(3, 4, prefix=1)[:2]
    compiled = torch.compile(position, fullgraph=True, backend=backend)
    x, seen = torch.randn(2, 2, grid.tokens, 8), torch.randn(2, 2, grid.tokens, 8)
    found = []
    for call in (compiled, position):
        leaf = x.clone().requires_grad_()
        out = call(leaf, grid)
        found.append((out.detach(), torch.autograd.grad(out, leaf, seen)[0]))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-6, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_that_were_turned_when_they_were_new_are_the_same(layout):
    line, rotary = Grid(33), Rotary(8, layout=layout)
    q, k, v = torch.randn(3, 2, 2, 33, 8).unbind(0)
    turned = torch.cat([rotary.turn(k[:, :, t : t + 1], line[t : t + 1]) for t in range(33)], dim=2)
    # a complex product of few numbers is rounded without fused multiply-adds: one rounding more
    assert (turned - rotary(k, line)).abs().max() <= (
        0 if layout == "halves" else 2 * torch.finfo().eps * k.abs().max()
    )
    new = line[32:]
    again = attention(q[:, :, 32:], k, v, grid=new, key_grid=line, position=rotary, mask=Causal())
    once = attention(rotary.turn(q[:, :, 32:], new), turned, v, grid=new, key_grid=line, mask=Causal())
    assert (once - again).abs().max() < 1e-5
    said = "all 33 keys are turned at each call: keep turned keys, and turn what is new (rotary.turn)"
    assert said in str(plan(q[:, :, 32:], k, v, grid=new, key_grid=line, position=rotary, mask=Causal()))
    assert said not in str(plan(q, k, v, grid=line, position=rotary, mask=Causal()))
