"""DETR's learned positions: a table per axis, columns before rows, read by coordinate, with a clear end."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from locant.grid import Grid
from locant.positions.learned_axes import LearnedAxial
from locant.resizing import resize_embedding


def numbered(grid: Grid) -> LearnedAxial:
    """One channel per axis, whose entry is its index, and hundreds for rows, ten thousands for time."""
    position = LearnedAxial(grid, grid.axes)
    scale = {"token": 1, "column": 1, "row": 100, "time": 10000}
    with torch.no_grad():
        for name, table in position.named_parameters():
            table.copy_(torch.arange(len(table))[:, None] * scale[name])
    return position


@pytest.mark.row(27)
def test_the_column_comes_before_the_row():
    """[x, y], the other way round than the sine: token (r, c) reads column c, then row r."""
    found = numbered(Grid(3, 4))()
    assert found.tolist() == [[c, 100 * r] for r in range(3) for c in range(4)]


@pytest.mark.row(27)
def test_a_clip_goes_on_with_time():
    found = numbered(Grid(2, 3, 4))()
    assert found.tolist() == [[c, 100 * r, 10000 * t] for t in range(2) for r in range(3) for c in range(4)]


def test_a_sequence_has_one_table():
    assert numbered(Grid(5))(Grid(3)).tolist() == [[0], [1], [2]]


def test_entries_are_those_of_the_coordinates():
    position = numbered(Grid(6, 8))
    assert position(Grid(6, 8)[4:]).tolist() == [[c, 100 * r] for r in (4, 5) for c in range(8)]
    assert position(Grid(6, 8).pooled((2, 3))).tolist() == [[c, 100 * r] for r in (0, 2, 4) for c in (0, 3, 6)]
    assert position(Grid(1, 2, origin=(5, 6))).tolist() == [[6, 500], [7, 500]]
    strided = numbered(Grid(3, 3, origin=(1, 0), stride=(2, 5)))  # entries for the rows 1, 3, 5, the columns 0, 5, 10
    assert strided(Grid(1, 2, origin=(3, 5), stride=(7, 5))).tolist() == [[1, 100], [2, 100]]


def test_the_prefix_is_not_placed():
    found = numbered(Grid(2, 2))(Grid(2, 2, prefix=2))
    assert found.tolist() == [[0, 0], [0, 0], [0, 0], [1, 0], [0, 100], [1, 100]]
    assert numbered(Grid(0, 2))(Grid(0, 2, prefix=1)).tolist() == [[0, 0]]


@pytest.mark.row(27)
def test_entries_start_uniform_from_0_to_1():
    position = LearnedAxial(Grid(50, 50), 256)
    assert {name: tuple(table.shape) for name, table in position.named_parameters()} == {
        "row": (50, 128),
        "column": (50, 128),
    }
    for table in position.parameters():
        assert 0 <= float(table.detach().min()) < 0.01
        assert 0.99 < float(table.detach().max()) <= 1
        assert abs(float(table.detach().mean()) - 0.5) < 5 * (1 / 12 / table.numel()) ** 0.5  # five standard errors


@pytest.mark.row(27)
@pytest.mark.parametrize("other", [Grid(51, 50), Grid(50, 60), Grid(2, 2, origin=(0, 49)), Grid(2, 2, origin=(-1, 0))])
def test_a_map_beyond_the_tables_is_a_sentence(other):
    """Published: an index error deep inside (on a GPU, one that comes later and elsewhere)."""
    with pytest.raises(ValueError, match=r"has 50 entries for the (row|column)s .* asks for .* Use `resized\(grid\)`"):
        LearnedAxial(Grid(50, 50), 8)(other)


@pytest.mark.row(27)
def test_resized_carries_each_axis_over():
    position = LearnedAxial(Grid(5, 4), 6).double().eval()
    position.row.requires_grad_(False)
    new = position.resized(Grid(9, 4))
    assert torch.equal(new.row, resize_embedding(position.row, (5,), (9,)))
    assert torch.equal(new.row[::2], position.row), "twice as fine: every second entry is an old one"
    assert torch.equal(new.column, position.column)
    assert new.column is not position.column
    assert (new.row.requires_grad, new.column.requires_grad, new.training) == (False, True, False)
    assert new(Grid(9, 4)).dtype == torch.float64
    longer = position.resized(Grid(7, 4), method="clip")
    assert torch.equal(longer.row, position.row[[0, 0, 1, 2, 3, 4, 4]])
    with pytest.raises(ValueError, match=r"resizing needs a method out of .* got 'cubic'"):
        position.resized(Grid(9, 9), method="cubic")


@pytest.mark.parametrize("other", [Grid(5), Grid(2, 5, 4)])
def test_the_number_of_axes_is_fixed(other):
    position = LearnedAxial(Grid(5, 4), 6)
    with pytest.raises(ValueError, match=r"needs a grid of 2 axes, as Grid\(5, 4\) .* got .* that many axes"):
        position(other)
    with pytest.raises(ValueError, match=r"resized needs a grid of 2 axes, as Grid\(5, 4\) has; got .* size for each"):
        position.resized(other)


@pytest.mark.parametrize(("dim", "use"), [(7, "6 or 8"), (1, "2"), (0, "2")])
def test_dim_is_shared_out_to_the_axes(dim, use):
    with pytest.raises(ValueError, match=rf"`dim` out to 2 axes, .* multiple of 2; got {dim}. Use {use}: dim counts"):
        LearnedAxial(Grid(3, 3), dim)


@pytest.mark.row(53)
def test_gradcheck():
    position = LearnedAxial(Grid(3, 2), 4).double()
    names, values = zip(*position.named_parameters(), strict=True)

    def call(*values):
        return torch.func.functional_call(position, dict(zip(names, values, strict=True)), (Grid(2, 2, prefix=1),))

    assert torch.autograd.gradcheck(call, values)


@pytest.mark.row(54)
def test_it_survives_copies_pickle_and_half():
    position = LearnedAxial(Grid(3, 2), 4)
    assert sorted(position.state_dict()) == ["column", "row"]
    for again in (copy.deepcopy(position), pickle.loads(pickle.dumps(position))):
        assert torch.equal(again(Grid(3, 2)[1:]), position(Grid(3, 2)[1:]))
    assert torch.equal(copy.deepcopy(position).half()(), position().half())
    assert repr(position) == "LearnedAxial(Grid(3, 2), dim=4)"


@pytest.mark.row(55)
@pytest.mark.compiled
def test_it_compiles_whole():
    position = LearnedAxial(Grid(4, 6), 8)
    compiled = torch.compile(position, fullgraph=True, backend="aot_eager")
    for grid in (Grid(4, 6, prefix=1), Grid(4, 6)[1:3], Grid(4, 6).pooled(2)):
        assert torch.equal(compiled(grid), position(grid))
