"""Learned embeddings: which row each token reads, by coordinate, and what is carried over when resized."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from locant.grid import Grid
from locant.positions.learned import Learned
from locant.resizing import resize_embedding

pytestmark = pytest.mark.row(41)


def numbered(grid: Grid, **options) -> Learned:
    """Row r of the table holds r, prefix row i holds -1 - i: values say which row was read."""
    position = Learned(grid, 1, **options)
    with torch.no_grad():
        position.table.copy_(torch.arange(len(position.table))[:, None])
        if position.prefix is not None:
            position.prefix.copy_(-1 - torch.arange(grid.prefix)[:, None])
    return position


def read(position: Learned, grid: Grid) -> list[int]:
    return position(grid)[:, 0].int().tolist()


def test_slices_and_pooled_grids_read_their_own_rows():
    position = numbered(Grid(10))
    assert read(position, Grid(10)) == list(range(10))
    assert read(position, Grid(10)[4:7]) == [4, 5, 6]
    assert read(position, Grid(10).pooled(3)) == [0, 3, 6, 9]
    assert read(position, Grid(10)[9:10]) == [9]
    assert read(position, Grid(10)[3:3]) == []


def test_images_are_read_row_major():
    position = numbered(Grid(4, 6))
    assert read(position, Grid(4, 6)[2:3]) == list(range(12, 18))
    assert read(position, Grid(4, 6).pooled((2, 3))) == [0, 3, 12, 15]
    assert read(position, Grid(2, 2, origin=(1, 4))) == [10, 11, 16, 17]


def test_rows_of_a_grid_with_origin_and_stride():
    position = numbered(Grid(4, origin=(-2,), stride=(3,)))  # rows for -2, 1, 4, 7
    assert read(position, Grid(2, origin=(1,), stride=(3,))) == [1, 2]
    assert read(position, Grid(2, origin=(-2,), stride=(6,))) == [0, 2]
    assert read(position, Grid(1, origin=(7,))) == [3]
    for between in (Grid(2, origin=(1,)), Grid(4, origin=(1,))):  # ends on 2, which has no row; on 4, passing 2
        with pytest.raises(ValueError, match=r"-2 to 7 in steps of 3 .* asks for 1 to "):
            position(between)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_only_named_axes_have_rows(axes):
    grid = Grid(2, 3, 4)
    position = numbered(grid, axes=axes)
    expected = []
    for cell in ((t, r, c) for t in range(2) for r in range(3) for c in range(4)):
        row = 0
        for axis in axes:
            row = row * grid.shape[axis] + cell[axis]
        expected.append(row)
    assert read(position, grid) == expected
    assert len(position.table) == max(expected) + 1


def test_a_shared_embedding_reads_any_number_of_frames():
    position = numbered(Grid(2, 2, 2), axes=(1, 2))
    assert read(position, Grid(3, 2, 2)) == [0, 1, 2, 3] * 3


def test_prefix_rows_come_first_and_may_be_left_out():
    position = numbered(Grid(3, prefix=2))
    assert read(position, Grid(3, prefix=2)) == [-1, -2, 0, 1, 2]
    assert read(position, Grid(3)) == [0, 1, 2]
    assert read(position, Grid(3, prefix=2)[1:]) == [1, 2]
    assert sorted(position.state_dict()) == ["prefix", "table"]
    assert sorted(numbered(Grid(3)).state_dict()) == ["table"]


def test_the_default_grid_is_the_one_it_was_built_on():
    position = numbered(Grid(2, 2, prefix=1))
    assert torch.equal(position(), position(position.grid))


def test_rows_start_from_a_normal_of_init_std():
    torch.manual_seed(0)
    rows = Learned(Grid(64), 256).table
    assert abs(rows.std().item() - 0.02) < 0.02 * 5 / (2 * rows.numel()) ** 0.5  # five standard errors
    assert abs(rows.mean().item()) < 0.02 * 5 / rows.numel() ** 0.5
    assert not Learned(Grid(3, prefix=1), 4, init_std=0.0)().any()


def test_gradients_count_who_read_a_row():
    position = numbered(Grid(2, 2, 3, prefix=1), axes=(0,))
    position(position.grid).sum().backward()
    assert position.table.grad.tolist() == [[6.0], [6.0]]
    assert position.prefix.grad.tolist() == [[1.0]]


def test_gradcheck():
    position = Learned(Grid(2, 2, 2, prefix=1), 2, axes=(1, 2)).double()
    names, values = zip(*position.named_parameters(), strict=True)

    def call(*values):
        return torch.func.functional_call(position, dict(zip(names, values, strict=True)), (position.grid,))

    assert torch.autograd.gradcheck(call, values)


def test_resized_carries_trained_values_over():
    position = Learned(Grid(3, 4, prefix=2), 5)
    new = position.resized(Grid(6, 4, prefix=2))
    assert torch.equal(new.table, resize_embedding(position.table, (3, 4), (6, 4), "linear"))
    assert torch.equal(new.prefix, position.prefix)
    bicubic = position.resized(Grid(6, 4, prefix=2), method="bicubic")
    assert torch.equal(bicubic.table, resize_embedding(position.table, (3, 4), (6, 4), "bicubic"))
    assert new.table.is_leaf
    with torch.no_grad():
        new.prefix.zero_()
    assert position.prefix.any()


def test_resized_looks_at_embedded_axes_only():
    position = Learned(Grid(4, 3, 3), 2, axes=(1, 2))
    assert torch.equal(position.resized(Grid(9, 3, 3)).table, position.table)
    time = Learned(Grid(4, 3, 3), 2, axes=(0,))
    assert torch.equal(time.resized(Grid(7, 5, 5)).table, resize_embedding(time.table, (4,), (7,)))
    with pytest.raises(ValueError, match=r"resize_embedding needs a method for places; got \"geometric\""):
        time.resized(Grid(7, 5, 5), method="geometric")


def test_resized_keeps_dtype_mode_and_frozen_parameters():
    position = Learned(Grid(3, prefix=1), 2).double().eval()
    position.table.requires_grad_(False)
    new = position.resized(Grid(5, prefix=1))
    assert new.table.dtype == torch.float64
    assert not new.training
    assert (new.table.requires_grad, new.prefix.requires_grad) == (False, True)


@pytest.mark.parametrize("other", [Grid(5), Grid(5, prefix=2), Grid(3, 3, prefix=1)])
def test_resized_keeps_prefix_and_axes(other):
    with pytest.raises(ValueError, match=r"resized needs a grid of 1 axes with prefix=1.* got .* same prefix"):
        Learned(Grid(3, prefix=1), 2).resized(other)


@pytest.mark.parametrize("other", [Grid(11), Grid(4, origin=(-1,)), Grid(4, origin=(8,))])
def test_coordinates_without_a_row_name_resized(other):
    with pytest.raises(ValueError, match=r"tokens 0 to 9 .* asks for .* Use `resized\(grid\)`"):
        Learned(Grid(10), 2)(other)


@pytest.mark.parametrize("other", [Grid(3, prefix=1), Grid(3, prefix=3), Grid(3, 3, prefix=2)])
def test_another_prefix_or_number_of_axes_is_refused(other):
    with pytest.raises(ValueError, match=r"needs a grid of 1 axes with prefix=2 or none.* got "):
        Learned(Grid(3, prefix=2), 2)(other)


@pytest.mark.parametrize("axes", [(), (1, 0), (0, 0), (2,), (-1,)])
def test_axes_must_be_those_of_the_grid(axes):
    with pytest.raises(ValueError, match=r"needs `axes` of .* out of \(0, 1\) \(row, column\); got "):
        Learned(Grid(3, 3), 2, axes=axes)


@pytest.mark.parametrize(("dim", "std"), [(0, 0.02), (2, -0.1)])
def test_dim_and_std_must_be_in_range(dim, std):
    with pytest.raises(ValueError, match=r"`dim` of at least 1 and an `init_std` of at least 0; got"):
        Learned(Grid(3), dim, init_std=std)


def test_it_survives_copies_pickle_and_half():
    position = Learned(Grid(3, 2, prefix=1), 4)
    for again in (copy.deepcopy(position), pickle.loads(pickle.dumps(position))):
        assert torch.equal(again(Grid(3, 2)[1:]), position(Grid(3, 2)[1:]))
    assert torch.equal(copy.deepcopy(position).half()(), position().half())
    assert "axes=(0,)" in repr(Learned(Grid(3, 2), 4, axes=(0,)))


@pytest.mark.compiled
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_whole(backend):
    torch.compiler.reset()
    position = Learned(Grid(4, 3, 3, prefix=1), 8, axes=(1, 2))
    compiled = torch.compile(position, fullgraph=True, backend=backend)
    grids = (Grid(4, 3, 3).pooled((1, 2, 1)), position.grid, Grid(4, 3, 3)[2:])
    for grid in grids if backend == "aot_eager" else grids[:1]:
        torch.testing.assert_close(compiled(grid), position(grid), atol=0, rtol=0)
