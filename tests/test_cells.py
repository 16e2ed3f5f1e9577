"""What is counted in closed form is what is laid out token by token."""

from __future__ import annotations

import pytest
import torch

from locant import Causal, Grid, RelativeTable, Windows, attention
from locant.cells import count, visible_share
from locant.layout import described, layout
from locant.masks import Structure

COUNTED = [
    (Grid(7), Grid(7), ()),
    (Grid(0), Grid(5), ()),
    (Grid(5, prefix=2), Grid(9, prefix=1), ()),
    (Grid(0, prefix=2), Grid(12, prefix=2), ()),
    (Grid(0, 2, 3, prefix=1), Grid(0, 2, 3, prefix=1), (Windows((2, 2, 2)),)),
    (Grid(7, 9), Grid(7, 9), (Windows((3, 2), (1, 1)),)),
    (Grid(7, 9, prefix=2), Grid(7, 9, prefix=2), (Windows((3, 2), (1, 1)), Windows((2, 4)))),
    (Grid(8, 8), Grid(8, 8).pooled(2), (Windows((3, 3)),)),
    (Grid(16)[5:9], Grid(16), (Windows(4),)),
]


@pytest.mark.parametrize(("grid", "key_grid", "windows"), COUNTED, ids=str)
def test_cells_and_their_pairs_are_counted_as_they_are_laid_out(grid, key_grid, windows):
    own = layout(described(grid, key_grid, Structure(windows=windows), ()))
    assert count(windows, grid, key_grid) == (own.cells, own.scores)


@pytest.mark.parametrize(
    ("grid", "key_grid"),
    [(Grid(9), Grid(9)), (Grid(64)[63:], Grid(64)), (Grid(12)[3:7], Grid(12).pooled(3)), (Grid(4), Grid(9)[2:])],
)
def test_the_share_that_an_order_leaves(grid, key_grid):
    allowed = Causal().allowed(grid, key_grid).double().mean()
    assert visible_share((Causal(),), grid, key_grid) == pytest.approx(float(allowed), abs=1e-12)
    assert visible_share((), grid, key_grid) == 1.0


def test_prefix_queries_alone_are_planned_without_a_warning(recwarn):
    q, k = torch.randn(1, 2, 2, 4), torch.randn(1, 2, 14, 4)
    arguments = {"grid": Grid(0, prefix=2), "key_grid": Grid(12, prefix=2), "mask": Causal(0)}
    golden = attention(q, k, k, kernel="reference", **arguments)
    assert (attention(q, k, k, **arguments) - golden).abs().max() < 1e-6
    assert not recwarn.list
    table = RelativeTable(Grid(1, 1, 1), 2)  # no query has a place: no offset is needed on any axis
    empty = Grid(0, 2, 3, prefix=1)
    one = torch.randn(1, 2, 1, 4)
    assert torch.allclose(attention(one, one, one, grid=empty, position=table), one, atol=1e-6)
