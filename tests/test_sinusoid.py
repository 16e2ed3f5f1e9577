"""Sinusoids: golden numbers, loops over the formula for every layout, and the rotation law."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor

from locant.grid import Grid
from locant.positions.sinusoid import LAYOUTS, Sinusoid

pytestmark = pytest.mark.row(40)


def slow(grid: Grid, dim: int, layout: str, base: float = 10000.0, start: int = 0) -> Tensor:
    """The definition, one number at a time: which channel holds which function of which coordinate."""
    axes, rows = grid.axes, []
    n = dim // (2 * axes)
    for cell in itertools.product(*(grid.along(a) for a in range(axes))):
        row = [0.0] * dim
        for axis, j in itertools.product(range(axes), range(n)):
            rate = base ** -(j / max(n - 1, 1) if layout == "t2t" else j / n)
            angle = (cell[axis] + start) * rate
            sin, cos = {
                "interleaved": (axis * 2 * n + 2 * j, axis * 2 * n + 2 * j + 1),
                "halves": (axis * 2 * n + j, axis * 2 * n + n + j),
                "t2t": (axis * 2 * n + j, axis * 2 * n + n + j),
                "timm": (axis * n + j, (axes + axis) * n + j),
                "mae": ((axes - 1 - axis) * 2 * n + j, (axes - 1 - axis) * 2 * n + n + j),
            }[layout]
            row[sin], row[cos] = math.sin(angle), math.cos(angle)
        rows.append(row)
    return torch.tensor([[0.0] * dim] * grid.prefix + rows, dtype=torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", [Grid(7), Grid(3, 5), Grid(5, 3, prefix=2), Grid(2, 3, 4)])
def test_every_layout_is_its_formula(grid, layout):
    found = Sinusoid(24, layout=layout, start=1)(grid)
    # float64 inside, rounded once: half a unit in the last place of numbers up to 1
    torch.testing.assert_close(found.double(), slow(grid, 24, layout, start=1), atol=6e-8, rtol=0)
    exact = Sinusoid(24, layout=layout, base=50.0).double()(grid)
    torch.testing.assert_close(exact, slow(grid, 24, layout, base=50.0), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("layout", "place", "golden"),
    [
        ("interleaved", 1, [0.84147, 0.54030, 0.09983, 0.99500, 0.01000, 0.99995, 0.00100, 1.0]),
        ("interleaved", 2, [0.90930, -0.41615, 0.19867, 0.98007, 0.02000, 0.99980, 0.00200, 1.0]),
        ("interleaved", 0, [0, 1, 0, 1, 0, 1, 0, 1]),
        ("t2t", 1, [0.84147, 0.04640, 0.00215, 0.00010, 0.54030, 0.99892, 1.0, 1.0]),
        ("halves", 3, [0.14112, 0.29552, 0.03, 0.003, -0.98999, 0.95534, 0.99955, 1.0]),  # Transformer-XL's R
        ("halves", 0, [0, 0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_golden_rows_of_eight_channels(layout, place, golden):
    row = Sinusoid(8, layout=layout)(Grid(4))[place]
    torch.testing.assert_close(row, torch.tensor(golden, dtype=torch.float32), atol=1e-5, rtol=0)


def test_a_step_turns_every_pair_by_a_fixed_angle():
    position = Sinusoid(16).double()
    here, there = position(Grid(40)), position(Grid(40, origin=(7,)))
    for j in range(8):
        angle = 7 * 10000.0 ** (-j / 8)
        turn = torch.tensor(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64
        )
        pair = slice(2 * j, 2 * j + 2)
        torch.testing.assert_close(there[:, pair], here[:, pair] @ turn.T, atol=1e-10, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dot_products_depend_on_the_distance_alone(layout):
    position = Sinusoid(24, layout=layout).double()
    here, there = position(Grid(3, 4)), position(Grid(3, 4, origin=(-5, 11)))
    torch.testing.assert_close(here @ here.T, there @ there.T, atol=1e-10, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_and_columns_are_told_apart(layout):
    rows = Sinusoid(8, layout=layout)(Grid(3, 3))
    assert not torch.allclose(rows[1], rows[3]), "cells (0, 1) and (1, 0)"


def test_slices_and_strides_read_their_coordinates():
    position = Sinusoid(6)
    whole = position(Grid(20))
    assert torch.equal(position(Grid(20)[5:9]), whole[5:9])
    assert torch.equal(position(Grid(20).pooled(4)), whole[::4])
    assert torch.equal(Sinusoid(6, start=3)(Grid(17)), whole[3:])
    assert torch.equal(position(Grid(1, origin=(-4,)))[:, 0], -whole[4:5, 0]), "sine is odd"
    assert torch.equal(position(Grid(1, origin=(-4,)))[:, 1], whole[4:5, 1]), "cosine is even"


def test_no_length_is_too_long(parity):
    """d2l's table ends at 1000, and a longer input fails to broadcast; here every row is made when it is asked for."""
    found = Sinusoid(8).double()(Grid(1500))
    error = (found - slow(Grid(1500), 8, "interleaved")).abs().max()
    parity(40, "sin and cos of p / 10000^(2i/D), to p = 1499", error, 1e-10)
    assert torch.equal(found[1000:], Sinusoid(8).double()(Grid(1500)[1000:]))


@pytest.mark.parametrize("layout", ["interleaved", "halves", "t2t"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_start_is_a_rotation_in_every_layout(layout, step):
    """PE(p + step) is PE(p) turned in each pair (sin, cos), by an angle that does not depend on p."""
    n, dim = 4, 8
    here = Sinusoid(dim, layout=layout).double()(Grid(30))
    there = Sinusoid(dim, layout=layout, start=step).double()(Grid(30))
    for j in range(n):
        angle = step * 10000.0 ** (-j / (n - 1 if layout == "t2t" else n))
        sin, cos = (2 * j, 2 * j + 1) if layout == "interleaved" else (j, n + j)
        turned = here[:, sin] * math.cos(angle) + here[:, cos] * math.sin(angle)
        torch.testing.assert_close(there[:, sin], turned, atol=1e-10, rtol=0)
        turned = here[:, cos] * math.cos(angle) - here[:, sin] * math.sin(angle)
        torch.testing.assert_close(there[:, cos], turned, atol=1e-10, rtol=0)


def test_t2t_is_another_encoding_than_the_papers():
    """Frequencies reach 1 / 10000 itself, and all sines come first: neither layout nor rates are those of the paper."""
    t2t, paper = Sinusoid(8, layout="t2t").double()(Grid(5)), Sinusoid(8).double()(Grid(5))
    assert abs(t2t[1, 3].item() - math.sin(1e-4)) < 1e-12
    assert abs(paper[1, 6].item() - math.sin(1e-3)) < 1e-12
    assert (t2t.sort(1).values - paper.sort(1).values).abs().max() > 1e-2


def test_far_positions_are_as_exact_as_near_ones():
    row = Sinusoid(64)(Grid(1, origin=(100_000,)))[0]
    for j in range(32):
        angle = 100_000 * 10000.0 ** (-j / 32)
        assert abs(row[2 * j].item() - math.sin(angle)) < 6e-8
        assert abs(row[2 * j + 1].item() - math.cos(angle)) < 6e-8


def test_t2t_pads_what_is_left_over():
    odd = Sinusoid(7, layout="t2t")(Grid(5))
    assert torch.equal(odd[:, :6], Sinusoid(6, layout="t2t")(Grid(5)))
    assert not odd[:, 6].any()
    picture = Sinusoid(11, layout="t2t")(Grid(2, 3))
    assert not picture[:, 8:].any()
    torch.testing.assert_close(picture.double(), slow(Grid(2, 3), 11, "t2t"), atol=6e-8, rtol=0)
    one = Sinusoid(2, layout="t2t")(Grid(3))  # a single frequency: 1, and no division by n - 1 = 0
    torch.testing.assert_close(one[2], torch.tensor([math.sin(2), math.cos(2)]), atol=6e-8, rtol=0)


def test_prefix_rows_are_zeros():
    found = Sinusoid(4)(Grid(2, prefix=3))
    assert not found[:3].any()
    assert torch.equal(found[3:], Sinusoid(4)(Grid(2)))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 3e-4), (torch.bfloat16, 2e-3)])
def test_half_precision_is_rounded_once(dtype, bound):
    grid = Grid(40, 50)
    found = Sinusoid(32).to(dtype)(grid)
    assert found.dtype == dtype
    assert (found.double() - slow(grid, 32, "interleaved")).abs().max() <= bound


def test_nothing_is_stored_and_copies_agree():
    position = Sinusoid(8, layout="timm", start=2)
    assert not position.state_dict()
    assert not list(position.parameters())
    for again in (copy.deepcopy(position), pickle.loads(pickle.dumps(position))):
        assert torch.equal(again(Grid(3, 3)), position(Grid(3, 3)))
    assert torch.equal(position.half().float()(Grid(3, 3)), Sinusoid(8, layout="timm", start=2)(Grid(3, 3)))
    assert "layout='timm'" in repr(position)


def test_empty_grids():
    assert Sinusoid(8)(Grid(0)).shape == (0, 8)
    assert Sinusoid(8)(Grid(3, 0, prefix=1)).shape == (1, 8)


def test_a_dim_that_does_not_divide_is_told_which_do():
    with pytest.raises(ValueError, match=r"1 axis, .*multiple of 2; got 7. Use 6 or 8, or layout=\"t2t\""):
        Sinusoid(7)
    with pytest.raises(ValueError, match=r"3 axes, .*multiple of 6; got 16. Use 12 or 18"):
        Sinusoid(16)(Grid(2, 2, 2))
    with pytest.raises(ValueError, match=r"multiple of 4; got 2. Use 4\."):
        Sinusoid(2, layout="t2t")(Grid(2, 2))


def test_unknown_layouts_and_bases_are_refused():
    with pytest.raises(ValueError, match=r"`layout` out of 'interleaved', 'halves', 't2t', 'timm', 'mae'; got 'detr'"):
        Sinusoid(8, layout="detr")
    with pytest.raises(ValueError, match=r"`base` above 0; got 0"):
        Sinusoid(8, base=0.0)


@pytest.mark.compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_graph_for_every_layout(layout):
    torch.compiler.reset()
    position = Sinusoid(12, layout=layout)
    compiled = torch.compile(position, fullgraph=True, backend="aot_eager")
    for grid in (Grid(9, prefix=1)[2:], Grid(2, 3, prefix=1), Grid(2, 2, 2)):
        torch.testing.assert_close(compiled(grid), position(grid), atol=6e-8, rtol=0)


@pytest.mark.compiled
@pytest.mark.inductor
def test_it_compiles_whole():
    torch.compiler.reset()
    position, grid = Sinusoid(12), Grid(2, 3, prefix=1)
    compiled = torch.compile(position, fullgraph=True)
    torch.testing.assert_close(compiled(grid), position(grid), atol=6e-8, rtol=0)
