"""T5's buckets and Swin V2's continuous bias, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from schemes import HEADS
from test_content import close

from locant.grid import Grid
from locant.positions.buckets import T5Buckets
from locant.positions.field import LogCPB


def test_t5_buckets_by_hand():
    """Published: key - query = 1 is bucket 17 of 32, -1 is 1; 8 begins the logarithms, 128 and beyond end them."""
    both = T5Buckets(1)
    offsets = torch.tensor([0, 1, 7, 8, 11, 12, 16, 64, 91, 127, 128, 5000, -1, -8, -128])
    assert both.bucket(offsets).tolist() == [0, 1, 7, 8, 8, 9, 10, 14, 15, 15, 15, 15, 17, 24, 31]
    one = T5Buckets(1, bidirectional=False)
    assert one.bucket(torch.tensor([-3, 0, 15, 16, 5000])).tolist() == [0, 0, 15, 16, 31]
    assert both.bucket(torch.arange(-200, 201)).unique().tolist() == list(range(32))[:16] + list(range(17, 32))
    with torch.no_grad():
        both.table.copy_(torch.arange(32.0)[None])
    assert both(Grid(3))[0].tolist() == [[0, 17, 18], [1, 0, 17], [2, 1, 0]]


@pytest.mark.row(14)
def test_log_cpb_by_hand():
    """16·sigmoid of a perceptron that reads one coordinate: sign · log2(1 + 8 |o| / (size - 1)) / 3."""
    scheme = LogCPB(Grid(1, 5), 1, hidden=1).double()
    with torch.no_grad():
        scheme.mlp.fc1.weight.copy_(torch.tensor([[0.0, 1.0]]))
        scheme.mlp.fc2.weight.fill_(1.0)
    found = scheme(Grid(1, 5))[0, :, 0]  # key 0: offsets 0 .. 4
    golden = [16 / (1 + math.exp(-math.log2(1 + 8 * o / 4) / 3)) for o in range(5)]
    close(found, torch.tensor(golden, dtype=torch.float64))
    close(scheme(Grid(1, 5))[0, 0], torch.full((5,), 8.0, dtype=torch.float64))  # the ReLU stops offsets below 0
    wide = scheme.resized(Grid(1, 9))
    assert (wide.grid, wide.pretrained) == (Grid(1, 9), Grid(1, 5))
    close(wide(Grid(1, 9))[0, :5, 0], found)
    far = 16 / (1 + math.exp(-math.log2(1 + 8 * 8 / 4) / 3))
    close(wide(Grid(1, 9))[0, 8, :1], torch.tensor([far], dtype=torch.float64))
    beyond = r"offsets up to \(0, 8\); the LogCPB on Grid\(1, 5\) reaches \(0, 4\).*resized\(Grid\(1, 9\)\)"
    with pytest.raises(ValueError, match=beyond):
        scheme(Grid(1, 9))


@pytest.mark.row(14)
@pytest.mark.parametrize("pretrained", [None, Grid(1, 1)])
def test_a_window_of_one_divides_by_nothing(pretrained):
    scheme = LogCPB(Grid(1, 1), HEADS, hidden=4, pretrained=pretrained)
    assert scheme(Grid(1, 1)).isfinite().all()
    assert LogCPB(Grid(3, 3), HEADS, pretrained=Grid(1, 1))(Grid(3, 3)).isfinite().all()
