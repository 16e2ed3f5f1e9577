"""DETR's sine encoding: its published golden numbers, loops over the definition, and what holes and padding do."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from locant.grid import Grid
from locant.masks import Causal, Padding
from locant.positions.masked_sine import MaskedSine


def slow(
    valid: Tensor, channels: int, scale: float | None, offset: float = 0.0, temperature: float = 10000.0
) -> Tensor:
    """The definition on one picture `[rows, columns]`: count cell by cell, then channel by channel; y half, x half."""
    rows, columns = valid.shape
    out = torch.zeros(rows, columns, 2 * channels, dtype=torch.float64)
    for r in range(rows):
        for c in range(columns):
            down, across = valid[:, c].tolist(), valid[r].tolist()
            for half, (count, last) in enumerate(
                [(sum(down[: r + 1]), sum(down)), (sum(across[: c + 1]), sum(across))]
            ):
                place = count + offset if scale is None else (count + offset) / (last + 1e-6) * scale
                for i in range(channels):
                    angle = place / temperature ** (2 * (i // 2) / channels)
                    out[r, c, half * channels + i] = math.cos(angle) if i % 2 else math.sin(angle)
    return out


def corner(rows: int, columns: int, real_rows: int, real_columns: int) -> Tensor:
    valid = torch.zeros(rows, columns, dtype=torch.bool)
    valid[:real_rows, :real_columns] = True
    return valid


def near(found: Tensor, golden: list[float], atol: float) -> None:
    torch.testing.assert_close(found, torch.tensor(golden), atol=atol, rtol=0)


@pytest.mark.row(24)
def test_golden_of_a_padded_picture():
    """4×4 cells, 3×3 of them real, N = 10, not normalised."""
    found = MaskedSine(20, normalize=False).encode(corner(4, 4, 3, 3))
    first = [0.84147, 0.54030, 0.15783, 0.98747, 0.025116, 0.99968, 0.0039811, 0.99999, 0.00063096, 1.0]
    near(found[0, 0], first * 2, 1e-5)
    near(found[2, 1, :10], [0.1411, -0.9900, 0.4578, 0.8891, 0.0753, 0.9972, 0.0119, 0.9999, 0.0019, 1.0], 1e-4)
    near(found[2, 1, 10:], [0.9093, -0.4161, 0.3117, 0.9502, 0.0502, 0.9987, 0.0080, 1.0, 0.0013, 1.0], 1e-4)
    near(found[3, 3], [0.0, 1.0] * 10, 0.0)


@pytest.mark.row(24)
def test_golden_counts_at_the_borders():
    """Below the picture y repeats and x is 0; right of it the other way round: counts from 1, never from 0."""
    found = MaskedSine(20, normalize=False).encode(corner(4, 4, 3, 3)).double()
    y = [[1, 1, 1, 0], [2, 2, 2, 0], [3, 3, 3, 0], [3, 3, 3, 0]]
    x = [[1, 2, 3, 3], [1, 2, 3, 3], [1, 2, 3, 3], [0, 0, 0, 0]]
    torch.testing.assert_close(found[..., 0], torch.tensor(y).double().sin(), atol=1e-7, rtol=0)
    torch.testing.assert_close(found[..., 11], torch.tensor(x).double().cos(), atol=1e-7, rtol=0)


@pytest.mark.row(24)
def test_golden_normalised_places():
    """4×4 with 3×3 real: y of the rows is 2.09439, 4.18879, 6.28318, and row 3 repeats the last."""
    found = MaskedSine(4).encode(corner(4, 4, 3, 3))
    places = torch.tensor([2.09439, 4.18879, 6.28318, 6.28318])
    torch.testing.assert_close(found[:, 0, 0], places.sin(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 0, 1], places.cos(), atol=1e-5, rtol=0)
    near(found[:, 3, 0], [0.0] * 4, 0.0)


@pytest.mark.row(24)
def test_golden_of_a_full_picture():
    """2×3 cells, N = 4, normalised."""
    found = MaskedSine(8).encode(corner(2, 3, 2, 3))
    near(found[0, 0], [0.0, -1.0, 0.03141, 0.99951, 0.86603, -0.5, 0.02094, 0.99978], 1e-5)
    near(found[1, 2], [0.0, 1.0, 0.06279, 0.99803, 0.0, 1.0, 0.06279, 0.99803], 1e-5)


@pytest.mark.row(24)
@pytest.mark.parametrize("scale", [None, 2 * math.pi, 1.0, 0.0])
@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_any_mask_is_the_formula(scale, offset):
    valid = torch.rand(5, 7, generator=torch.Generator().manual_seed(3)) > 0.4  # with holes
    valid[0, 0], valid[:, 2], valid[4] = True, True, True
    position = MaskedSine(16, normalize=scale is not None, scale=scale, offset=offset)
    empty = ~valid.any(0)[None, :] | ~valid.any(1)[:, None]
    assert not empty.any(), "a line without a real cell divides by 1e-6: tested by itself"
    golden = slow(valid, 8, scale, offset)
    # float32: a place of at most 7 is off by a few of its units in the last place, and so are its sines
    torch.testing.assert_close(position.encode(valid).double(), golden, atol=5e-6, rtol=0)


def test_float64_once_the_module_is():
    valid = corner(4, 5, 3, 4)
    found = MaskedSine(12).double().encode(valid)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, slow(valid, 6, 2 * math.pi), atol=1e-10, rtol=0)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(MaskedSine(12).encode(valid), found)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.row(24)
def test_a_hole_is_not_counted():
    valid = torch.tensor([[True, False, True, True]])
    found = MaskedSine(4, normalize=False).encode(valid)
    near(found[0, :, 2], [math.sin(1), math.sin(1), math.sin(2), math.sin(3)], 1e-6)


@pytest.mark.row(26)
@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_all_padding_is_finite(offset):
    found = MaskedSine(8, offset=offset).encode(torch.zeros(2, 3, 4, dtype=torch.bool))
    assert found.isfinite().all()
    if not offset:
        assert torch.equal(found, torch.tensor([0.0, 1.0] * 4).expand(2, 3, 4, 8))


@pytest.mark.row(24)
def test_epsilon_vanishes_from_32_cells_on():
    """In float32 n + 1e-6 = n exactly from n = 32 on: the last cell is then exactly at 2 pi."""
    turn = torch.tensor(2 * math.pi, dtype=torch.float32)
    for cells, exact in [(31, False), (32, True)]:
        last = MaskedSine(2).encode(torch.ones(cells, dtype=torch.bool), axes=1)[-1, 0]
        assert torch.equal(last, turn.sin()) is exact


@pytest.mark.row(24)
def test_rows_come_before_columns():
    found = MaskedSine(8, normalize=False).encode(corner(3, 5, 3, 5))
    assert (found[:, :1, :4] == found[..., :4]).all(), "the first half depends on the row alone"
    assert (found[:1, :, 4:] == found[..., 4:]).all(), "the second half depends on the column alone"
    assert not torch.allclose(found[0, 2], found[2, 0])


@pytest.mark.row(25)
def test_batches_are_pictures_side_by_side():
    position = MaskedSine(8)
    pictures = [corner(4, 5, 4, 3), corner(4, 5, 2, 5)]
    batch = position.encode(torch.stack(pictures))
    assert torch.equal(batch, torch.stack([position.encode(picture) for picture in pictures]))
    assert batch[0].shape == (4, 5, 8), "a picture alone: [rows, columns], channels last"


def test_forward_lays_tokens_out_row_major_behind_the_prefix():
    position, grid = MaskedSine(8), Grid(3, 4, prefix=2)
    assert torch.equal(position(grid)[2:], position.encode(corner(3, 4, 3, 4)).reshape(12, 8))
    assert not position(grid)[:2].any()
    valid = torch.stack([corner(3, 4, 2, 3), corner(3, 4, 3, 4)])
    found = position(grid, Padding(valid) & Causal())
    assert found.shape == (2, 14, 8)
    assert torch.equal(found[:, 2:], position.encode(valid).reshape(2, 12, 8))
    assert not found[:, :2].any()
    by_token = Padding(torch.cat([torch.ones(2, 2, dtype=torch.bool), valid.flatten(1)], dim=1))
    assert torch.equal(position(grid, by_token), found)
    assert torch.equal(position(grid, Causal()), position(grid))


def test_paddings_add_up():
    position, grid = MaskedSine(8), Grid(3, 4)
    a, b = corner(3, 4, 2, 4), corner(3, 4, 3, 3)
    assert torch.equal(position(grid, Padding(a[None]) & Padding(b[None])), position(grid, Padding((a & b)[None])))


@pytest.mark.row(26)
def test_without_a_mask_every_cell_is_real():
    """Published: None fails, in the encoding and behind it."""
    position, grid = MaskedSine(8), Grid(3, 4, prefix=1)
    everywhere = position(grid, Padding(torch.ones(2, 3, 4, dtype=torch.bool)))
    assert torch.equal(position(grid).expand(2, -1, -1), everywhere)


@pytest.mark.row(51)
@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_the_amount_of_padding_changes_no_real_cell(offset):
    position = MaskedSine(16, offset=offset)
    alone = position.encode(corner(5, 7, 5, 7))
    for rows, columns in [(5, 8), (6, 7), (40, 33)]:
        assert torch.equal(position.encode(corner(rows, columns, 5, 7))[:5, :7], alone)


@pytest.mark.row(50)
def test_every_published_sense_of_a_mask_is_the_same_picture():
    """DETR's mask is True = padding, transformers' 1 = real; given the wrong way round, they are off by up to 2."""
    position, grid, valid = MaskedSine(16), Grid(4, 5), torch.stack([corner(4, 5, 3, 4), corner(4, 5, 4, 2)])
    expected = position(grid, Padding(valid))
    for mask in (Padding.from_key_padding_mask(~valid), Padding.from_attention_mask(valid.long())):
        assert torch.equal(position(grid, mask), expected)
    lengths = torch.tensor([3, 5])  # on a sequence: d2l's valid_lens
    real = torch.arange(5) < lengths[:, None]
    assert torch.equal(position(Grid(5), Padding.from_lengths(lengths, 5)), position(Grid(5), Padding(real)))
    inverse = position(grid, Padding.from_key_padding_mask(valid))
    assert (inverse - expected)[valid.flatten(1)].abs().max() > 1


@pytest.mark.row(56)
def test_what_the_article_on_detrs_sine_gets_wrong():
    """On its own example, 4×4 with 3×3 real, 10 channels per axis."""
    valid = corner(4, 4, 3, 3)
    seed = MaskedSine(20, normalize=False).encode(valid)
    # "y accumulates in the row direction": it counts the rows downwards, the same along a row
    assert torch.equal(seed[:3, 0, :10], seed[:3, 2, :10])
    torch.testing.assert_close(seed[:3, 0, 0], torch.tensor([1.0, 2.0, 3.0]).sin(), atol=1e-6, rtol=0)
    # "i ranges from 0 to 10, d is the dimension": i is the pair, 0 to 4, and d the 10 channels of one axis
    rates = seed[0, 0, 0:10:2].double().asin()
    torch.testing.assert_close(rates[1:], 10000.0 ** (-2 * torch.arange(1.0, 5.0).double() / 10), atol=1e-6, rtol=0)
    assert torch.equal(seed[..., 10:], seed.transpose(0, 1)[..., :10]), "the other 10 are the columns'"
    # "padding is not considered": it gets numbers, the last count again or 0, and only attention leaves it out
    assert torch.equal(seed[3, :3, :10], seed[2, :3, :10])
    assert torch.equal(seed[3, 3], torch.tensor([0.0, 1.0] * 10))
    assert not torch.equal(seed[3, 0], seed[3, 3]), "nor are they one number for all padding"
    # its positions are plain counts: DETR's are normalised to 2 pi
    published = MaskedSine(20).encode(valid)
    assert (published - seed)[:3, :3].abs().max() > 0.5
    near(published[:, 0, 0], [math.sin(2 * math.pi * n / 3) for n in (1, 2, 3, 3)], 1e-5)


def test_sequences_and_clips():
    line = MaskedSine(6, normalize=False)(Grid(5))
    torch.testing.assert_close(line, slow(corner(5, 1, 5, 1), 6, None)[:, 0, :6].float(), atol=1e-6, rtol=0)
    clip = MaskedSine(12)(Grid(2, 3, 4)).reshape(2, 3, 4, 12)
    picture = slow(corner(3, 4, 3, 4), 4, 2 * math.pi).float()
    torch.testing.assert_close(clip[..., 4:], picture.expand(2, 3, 4, 8), atol=2e-6, rtol=0)
    time = slow(corner(2, 1, 2, 1), 4, 2 * math.pi)[:, 0, :4].float()
    torch.testing.assert_close(clip[:, 1, 2, :4], time, atol=2e-6, rtol=0)


@pytest.mark.row(24)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_padded_clip_is_the_formula(normalize):
    """VisTR's three axes: time, row, column, each counted over the real cells of its own line."""
    position = MaskedSine(12, normalize=normalize)
    valid = torch.zeros(2, 3, 4, 3, dtype=torch.bool)
    valid[0, :2, :3, :2], valid[1, :, :, :] = True, True
    valid[0, 0, 1, 1] = False
    found = position(Grid(3, 4, 3), Padding(valid)).unflatten(1, (3, 4, 3))
    for sample, *cell in ((b, t, r, c) for b in range(2) for t in range(3) for r in range(4) for c in range(3)):
        for axis in range(3):
            line = [[*cell[:axis], place, *cell[axis + 1 :]] for place in range(valid.shape[1 + axis])]
            counts = [int(valid[(sample, *place)]) for place in line]
            place = float(sum(counts[: cell[axis] + 1]))
            place = place / (sum(counts) + 1e-6) * 2 * math.pi if normalize else place
            for i in range(4):
                angle = place / 10000 ** (2 * (i // 2) / 4)
                value = float(found[(sample, *cell, 4 * axis + i)])
                assert abs(value - (math.cos(angle) if i % 2 else math.sin(angle))) <= 2e-6


@pytest.mark.row(26)
@pytest.mark.row(53)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 3e-4), (torch.bfloat16, 2e-3)])
def test_half_precision_is_computed_wide(dtype, bound):
    """Cast by the caller: the error is that of one rounding, where counting in float16 itself is 20 times worse."""
    valid = corner(40, 30, 37, 29)
    found = MaskedSine(32).to(dtype).encode(valid)
    assert found.dtype == torch.float32
    assert (found.to(dtype).double() - slow(valid, 16, 2 * math.pi)).abs().max() <= bound


@pytest.mark.row(54)
def test_nothing_is_stored_and_copies_agree():
    position = MaskedSine(8, offset=-0.5)
    assert not position.state_dict()
    for again in (copy.deepcopy(position), pickle.loads(pickle.dumps(position)), copy.deepcopy(position).half()):
        assert torch.equal(again(Grid(3, 3)), position(Grid(3, 3)))
    assert "offset=-0.5" in repr(position)


def test_empty_grids():
    assert MaskedSine(8)(Grid(0, 3, prefix=1)).shape == (1, 8)
    assert MaskedSine(8)(Grid(2, 0)).shape == (0, 8)


@pytest.mark.row(26)
def test_an_odd_number_of_channels_per_axis_is_refused():
    with pytest.raises(ValueError, match=r"1 axis, .*multiple of 2; got 7. Use 6 or 8"):
        MaskedSine(7)
    with pytest.raises(ValueError, match=r"2 axes, .*multiple of 4; got 10. Use 8 or 12: dim counts all channels"):
        MaskedSine(10)(Grid(3, 3))


def test_a_scale_needs_normalising():
    with pytest.raises(ValueError, match=r"normalize=True for a `scale`.* got normalize=False, scale=6.0. Leave"):
        MaskedSine(8, normalize=False, scale=6.0)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match=r"`temperature` above 0; got -1.0"):
        MaskedSine(8, temperature=-1.0)


def test_padding_for_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"Padding on Grid\(3, 3\) needs `valid`"):
        MaskedSine(8)(Grid(3, 3), Padding(torch.ones(1, 4, 4, dtype=torch.bool)))


@pytest.mark.plain
@pytest.mark.parametrize("valid", [torch.ones(3, 3), torch.ones(3, dtype=torch.bool)])
def test_encode_needs_a_bool_map(valid):
    with pytest.raises(ValueError, match=r"needs a bool map of at least 2 dimensions.* got .* pass ~mask"):
        MaskedSine(8).encode(valid)


@pytest.mark.row(55)
@pytest.mark.compiled
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_whole(backend):
    torch.compiler.reset()
    position = MaskedSine(8)
    compiled = torch.compile(position, fullgraph=True, backend=backend)
    grid, mask = Grid(3, 4, prefix=1), Padding(torch.stack([corner(3, 4, 2, 3), corner(3, 4, 3, 4)]))
    torch.testing.assert_close(compiled(grid, mask), position(grid, mask), atol=1e-6, rtol=0)
    torch.testing.assert_close(compiled(grid), position(grid), atol=1e-6, rtol=0)
