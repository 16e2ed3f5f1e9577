"""Grids: where tokens are, counted by hand."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree
from truth import places

from locant import Grid

SHAPES = [(5,), (1,), (0,), (3, 4), (1, 1), (4, 0), (0, 3), (2, 3, 2), (1, 1, 1), (2, 0, 3)]


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_coordinates_are_row_major(shape, prefix):
    grid = Grid(*shape, prefix=prefix)
    golden = list(itertools.product(*map(range, shape)))
    assert grid.coordinates().tolist() == [list(place) for place in golden]
    assert grid.coordinates().dtype == torch.int64
    assert grid.coordinates().shape == (len(golden), len(shape))
    assert (grid.axes, grid.cells, grid.tokens, len(grid)) == (len(shape), len(golden), *[prefix + len(golden)] * 2)


def test_origin_and_stride_by_hand():
    grid = Grid(2, 3, origin=(5, -1), stride=(2, 4))
    assert grid.coordinates().tolist() == [[5, -1], [5, 3], [5, 7], [7, -1], [7, 3], [7, 7]]
    assert list(grid.along(0)) == [5, 7]
    assert list(grid.along(1)) == [-1, 3, 7]


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    prefix=st.integers(0, 3),
    cut=st.slices(5),
    pool=st.integers(1, 3),
)
def test_a_slice_is_the_same_tokens(sizes, prefix, cut, pool):
    """Slicing and pooling choose among the coordinates; they never make new ones."""
    grid = Grid(*sizes, prefix=prefix)
    if cut.step is not None and cut.step < 0:
        with pytest.raises(ValueError, match="rising order"):
            grid[cut]
        return
    part = grid[cut]
    lines = [range(n) for n in sizes]
    lines[0] = lines[0][cut]
    starts_at_0 = cut.indices(sizes[0])[0] == 0
    assert places(part) == [None] * (prefix if starts_at_0 else 0) + list(itertools.product(*lines))
    assert part.coordinates().tolist() == [list(place) for place in itertools.product(*lines)]
    lines = [line[::pool] for line in lines]
    assert part.pooled(pool).coordinates().tolist() == [list(place) for place in itertools.product(*lines)]
    assert part.pooled(pool).prefix == part.prefix


def test_slices_of_slices_add_up():
    grid = Grid(14, 14, prefix=1)
    assert grid[2:8][1:3] == Grid(2, 14, origin=(3, 0))
    assert grid[:4] == Grid(4, 14, prefix=1)
    assert grid[0:0] == Grid(0, 14, prefix=1)
    assert grid[-2:] == Grid(2, 14, origin=(12, 0))
    assert grid[1::3] == Grid(5, 14, origin=(1, 0), stride=(3, 1))
    assert grid[9:9].tokens == 0
    assert Grid(1024)[1023:] == Grid(1, origin=(1023,))
    assert grid.without_prefix() == Grid(14, 14)
    assert Grid(7, 8).pooled((2, 3)) == Grid(4, 3, stride=(2, 3))
    assert Grid(8).pooled(2)[1:3] == Grid(2, origin=(2,), stride=(2,))


def test_select_gives_tokens_with_their_places():
    grid = Grid(2, 2, prefix=1, origin=(4, 6))
    tokens = grid.select(torch.tensor([[0, 1], [4, 2]]))
    assert tokens.index.tolist() == [[0, 1], [4, 2]]
    assert tokens.placed.tolist() == [[False, True], [True, True]]
    assert tokens.coordinates[tokens.placed].tolist() == [[4, 6], [5, 7], [4, 7]]
    whole = grid.select()
    assert whole.index.tolist() == [[0, 1, 2, 3, 4]]
    assert whole.placed.tolist() == [[False, True, True, True, True]]


def test_equality_and_hash_are_those_of_the_numbers():
    a, b = Grid(3, 4, prefix=1), Grid(3, 4, prefix=1, origin=(0, 0), stride=(1, 1))
    assert a == b
    assert hash(a) == hash(b)
    others = [
        Grid(4, 3, prefix=1),
        Grid(3, 4),
        Grid(3, 4, prefix=1, origin=(0, 1)),
        Grid(3, 4, prefix=1, stride=(1, 2)),
        Grid(12),
    ]
    assert len({a, b, *others}) == 1 + len(others)
    assert a != (3, 4)


def test_a_grid_is_a_frozen_value():
    grid = Grid(3, 4, prefix=1, origin=(2, 0))
    with pytest.raises(AttributeError):
        grid.prefix = 2
    for copied in (pickle.loads(pickle.dumps(grid)), copy.deepcopy(grid), eval(repr(grid))):
        assert copied == grid
    leaves, structure = _pytree.tree_flatten({"grid": grid})
    assert leaves == []
    assert _pytree.tree_unflatten(leaves, structure) == {"grid": grid}


def test_repr_says_only_what_is_unusual():
    assert repr(Grid(196)) == "Grid(196)"
    assert repr(Grid(8, 14, 14, prefix=1)) == "Grid(8, 14, 14, prefix=1)"
    assert repr(Grid(14, 14)[2:4]) == "Grid(2, 14, origin=(2, 0))"
    assert repr(Grid(14, 14).pooled(2)) == "Grid(7, 7, stride=(2, 2))"


@pytest.mark.plain
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Grid(), ("one, two or three sizes", "got 0", "Write Grid(196)")),
        (lambda: Grid(1, 2, 3, 4), ("one, two or three sizes", "got 4", "Write Grid(196)")),
        (lambda: Grid(-1), ("sizes of a Grid", "(-1,)", "plain ints")),
        (lambda: Grid(2.0, 3), ("sizes of a Grid", "(2.0, 3)", "plain ints")),
        (lambda: Grid(True), ("sizes of a Grid", "(True,)", "plain ints")),
        (lambda: Grid(3, prefix=-1), ("prefix of a Grid", "(-1,)", "plain ints")),
        (lambda: Grid(3, origin=(1, 2)), ("origin of a Grid", "(1, 2)", "plain ints")),
        (lambda: Grid(3, stride=(0,)), ("stride of a Grid", "at least 1", "(0,)")),
        (lambda: Grid(3, 4).pooled(1.5), ("stride of a Grid", "(1.5, 1.5)", "plain ints")),
        (lambda: Grid(3, 4).pooled((2,)), ("stride of a Grid", "(2,)", "plain ints")),
        (lambda: Grid(3)[1], ("slice of its first axis", "got 1", "Write grid[1:1 + 1]")),
        (lambda: Grid(3)[::-1], ("rising order", "step -1", "Use a step of 1")),
    ],
)
def test_errors_have_three_parts(make, parts):
    with pytest.raises(ValueError, match=".") as caught:
        make()
    assert all(part in str(caught.value) for part in parts), str(caught.value)
