"""Tables and embeddings resized as timm resizes them, method by method (row 8)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from locant.resizing import resize_embedding, resize_table

WINDOWS = [(7, 12), (7, 8), (12, 7), (7, 24), (2, 7), (8, 16)]


def flat(table: Tensor) -> Tensor:
    """[heads, 2H-1, 2W-1] as published: [(2H-1)(2W-1), heads]."""
    return table.flatten(1).T.contiguous()


def largest(ours: Tensor, theirs: Tensor) -> float:
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    return (ours - theirs).abs().max().item()


@pytest.mark.row(8)
@pytest.mark.parametrize(("old", "new"), WINDOWS)
def test_geometric_is_timms_default(timm, parity, old, new):
    table = torch.randn(4, 2 * old - 1, 2 * old - 1)
    theirs = timm.layers.resize_rel_pos_bias_table(flat(table), (new, new), ((2 * new - 1) ** 2, 4))
    ours = flat(resize_table(table, (2 * new - 1, 2 * new - 1), "geometric"))
    parity(8, "timm resize_rel_pos_bias_table", largest(ours, theirs), 1e-5 * theirs.abs().max().item())


@pytest.mark.row(8)
def test_geometric_on_rectangles_and_prefix_rows(timm, parity):
    table, rows = torch.randn(3, 13, 9), torch.randn(3, 3)
    theirs = timm.layers.resize_rel_pos_bias_table(
        torch.cat([flat(table), rows]), (9, 12), (17 * 23 + 3, 3), old_window_size=(7, 5)
    )
    ours = torch.cat([flat(resize_table(table, (17, 23), "geometric")), rows])
    parity(8, "timm resize_rel_pos_bias_table, 7 × 5 to 9 × 12", largest(ours, theirs), 1e-5 * 5)


@pytest.mark.row(8)
@pytest.mark.parametrize(("old", "new"), WINDOWS)
def test_bicubic_is_timms_simple_one(timm, parity, old, new):
    table = torch.randn(4, 2 * old - 1, 2 * old - 1)
    theirs = timm.layers.resize_rel_pos_bias_table_simple(flat(table), (new, new), ((2 * new - 1) ** 2, 4))
    ours = flat(resize_table(table, (2 * new - 1, 2 * new - 1), "bicubic"))
    parity(8, "timm resize_rel_pos_bias_table_simple", largest(ours, theirs), 0.0)


@pytest.mark.row(8)
@pytest.mark.parametrize(("old", "new"), WINDOWS)
def test_antialiased_is_levits(timm, parity, old, new):
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_levit

    table = torch.randn(4, 2 * old - 1, 2 * old - 1)
    theirs = resize_rel_pos_bias_table_levit(flat(table), ((2 * new - 1) ** 2, 4))
    ours = flat(resize_table(table, (2 * new - 1, 2 * new - 1), "antialiased"))
    parity(8, "timm resize_rel_pos_bias_table_levit", largest(ours, theirs), 0.0)


@pytest.mark.row(8)
@pytest.mark.parametrize(("method", "antialias", "mode"), [
    ("antialiased", True, "bicubic"), ("bicubic", False, "bicubic"), ("bilinear", False, "bilinear"),
])  # fmt: skip
@pytest.mark.parametrize(("old", "new"), [((7, 7), (5, 9)), ((14, 14), (24, 24)), ((4, 10), (10, 4))])
def test_positions_are_timms(timm, parity, old, new, method, antialias, mode):
    rows = torch.randn(old[0] * old[1] + 1, 6)
    theirs = timm.layers.resample_abs_pos_embed(
        rows[None], list(new), list(old), num_prefix_tokens=1, interpolation=mode, antialias=antialias
    )[0]
    ours = torch.cat([rows[:1], resize_embedding(rows[1:], old, new, method)])
    # torch mixes four neighbours at once, we two and two: a few roundings apart
    rounding = 0.0 if mode == "bicubic" else 4 * torch.finfo(rows.dtype).eps * rows.abs().max().item()
    parity(8, f"timm resample_abs_pos_embed ({mode}, antialias {antialias})", largest(ours, theirs), rounding)


@pytest.mark.row(8)
@pytest.mark.parametrize("method", ["linear", "bilinear", "bicubic", "antialiased", "clip", "geometric"])
@pytest.mark.parametrize(("old", "new"), [((31,), (15,)), ((13, 9), (23, 17)), ((15, 13, 13), (7, 15, 17))])
def test_the_zero_offset_stays_in_the_centre(old, new, method):
    """A table that is even in the offset stays so, and a peak at the zero offset stays the largest entry."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in old), indexing="ij")
    found = resize_table(-sum(a**2 for a in axes)[None], new, method)[0]
    for axis in range(len(new)):
        torch.testing.assert_close(found.flip(axis), found, atol=1e-10, rtol=0)
    assert tuple(torch.unravel_index(found.argmax(), found.shape)) == tuple(n // 2 for n in new)


@pytest.mark.row(8)
def test_the_default_keeps_linear_tables_and_the_centre_row():
    """A temporal table resized from 16 to 8 and 24 frames: linear stays linear, and row "same frame" its value."""
    table = torch.randn(2, 31, dtype=torch.float64)
    slope = torch.arange(-15.0, 16, dtype=torch.float64)[None] / 15
    for frames in (8, 16, 24):
        n = 2 * frames - 1
        assert torch.equal(resize_table(table, (n,))[:, frames - 1], table[:, 15])
        torch.testing.assert_close(
            resize_table(slope, (n,))[0], torch.linspace(-1, 1, n, dtype=torch.float64), atol=1e-12, rtol=0
        )
    assert torch.equal(resize_table(table, (31,)), table)
