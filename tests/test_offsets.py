"""A bias is one method, `at(offset)`: the table that kernels read, and any pair asked for by itself, are the same."""

from __future__ import annotations

import pytest
import torch

from locant import ALiBi, Grid, LogCPB, Pairs, RelativeTable, Segments, T5Buckets, Windows, attention
from locant.positions.position import Bias
from locant.tokens import every_offset, offset

BIASES = {
    "table": lambda axes: RelativeTable(Grid(*(5, 4, 3)[:axes]), 2, init_std=1.0),
    "manhattan": lambda axes: ALiBi(2, distance="manhattan"),
    "euclidean": lambda axes: ALiBi(2, distance="euclidean"),
    "cpb": lambda axes: LogCPB(Grid(*(5, 4, 3)[:axes]), 2, hidden=8, init_std=1.0),
    "t5": lambda axes: T5Buckets(2, buckets=8, max_distance=16, init_std=1.0),
}


def built(name: str, axes: int) -> Bias:
    if name == "t5" and axes > 1:
        pytest.skip("T5's buckets are those of a sequence")
    torch.manual_seed(0)
    return BIASES[name](axes).double()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", BIASES)
def test_the_bias_at_an_offset_is_that_of_every_pair_so_far_apart(name, axes):
    scheme, grid = built(name, axes), Grid(*(5, 4, 3)[:axes])
    places = grid.coordinates()
    apart = places[:, None] - places[None]
    dense = scheme(grid)
    assert (scheme.at(apart) - dense).abs().max() < 1e-12
    for i, j in ((0, 0), (0, grid.cells - 1), (grid.cells - 1, 1)):  # a single offset, without any other axis
        assert (scheme.at(places[i] - places[j]) - dense[:, i, j]).abs().max() < 1e-12


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", BIASES)
def test_what_lies_within_reach_is_at_every_offset(name, axes):
    scheme, near = built(name, axes), (3, 1, 0)[:axes]
    assert torch.equal(scheme.within(near), scheme.at(every_offset(near)))


def test_offsets_are_query_minus_key():
    assert offset(torch.tensor([[5, 7]]), torch.tensor([[1, 2, 9]])).tolist() == [[[4, 3, -4], [6, 5, -2]]]
    assert every_offset((1, 2))[0, 0].tolist() == [-1, -2]
    assert every_offset((1, 2))[2, 3].tolist() == [1, 1]


# --- documents in a row ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", ["segments", "pairs"])
def test_the_advice_for_documents_in_a_row_keeps_their_numbers(masked):
    """Three documents of 10 in a row of 30: what the error advises gives each what it got alone."""
    q, k, v = torch.randn(3, 1, 2, 10, 8, dtype=torch.double).unbind(0)
    table = RelativeTable(Grid(10), 2, init_std=1.0).double()
    ids = torch.arange(3).repeat_interleave(10)[None]
    mask = Segments(ids) if masked == "segments" else Pairs(ids[0][:, None] == ids[0])
    row = [torch.cat([x] * 3, 2) for x in (q, k, v)]
    with pytest.raises(ValueError, match="keeps the numbers of the offsets that it has") as caught:
        attention(*row, grid=Grid(30), position=table, mask=mask)
    assert 'position.resized(Grid(30), method="clip")' in str(caught.value)
    advised = table.resized(Grid(30), method="clip")
    alone = attention(q, k, v, grid=Grid(10), position=table)
    together = attention(*row, grid=Grid(30), position=advised, mask=mask)
    assert (together - torch.cat([alone] * 3, 2)).abs().max() < 1e-12


def test_a_larger_picture_is_advised_to_stretch_and_told_of_the_other_way():
    table, q = RelativeTable(Grid(4, 4), 2), torch.randn(1, 2, 64, 8)
    with pytest.raises(ValueError, match=r"resized\(Grid\(8, 8\)\), which stretches it .*method=\"clip\" keeps"):
        attention(q, q, q, grid=Grid(8, 8), position=table)
    attention(q, q, q, grid=Grid(8, 8), position=table, mask=Windows((4, 4)))
