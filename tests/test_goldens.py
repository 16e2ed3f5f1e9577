"""Published numbers: which entry of a table each pair reads, ALiBi's slopes, where ConViT's heads start to look.

A table that holds 0, 1, 2, ... in the published row-major order shows the published index as its bias.
"""

from __future__ import annotations

import pytest
import torch

from locant import ALiBi, GatedPosition, Grid, RelativeTable, weights
from locant.positions.slopes import slopes


def index(grid: Grid) -> torch.Tensor:
    table = RelativeTable(grid, 1)
    with torch.no_grad():
        table.table.copy_(torch.arange(table.table.numel()).reshape(table.table.shape))
        if grid.prefix:  # BEiT: class to token M, token to class M + 1, class to class M + 2
            for row, name in enumerate(("query_prefix", "key_prefix", "both")):
                getattr(table, name).fill_(table.table.numel() + row)
    return table(grid)[0].int()


@pytest.mark.row(1)
def test_aim_temporal_index():
    assert index(Grid(4)).tolist() == [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]
    assert (index(Grid(9)) + index(Grid(9)).T == 2 * 9 - 2).all()


@pytest.mark.row(2)
def test_swin_index():
    assert index(Grid(2, 2)).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    two_by_three = index(Grid(2, 3))
    assert two_by_three[0].tolist() == [7, 6, 5, 2, 1, 0]
    assert two_by_three[-1].tolist() == [14, 13, 12, 9, 8, 7]
    seven = index(Grid(7, 7))
    assert (seven.min(), seven.max()) == (0, 168)
    assert seven[0, :8].tolist() == [84, 83, 82, 81, 80, 79, 78, 71]
    assert seven[:8, 0].tolist() == [84, 85, 86, 87, 88, 89, 90, 97]
    assert (seven + seven.T == 13 * 13 - 1).all()


def test_video_index_is_row_major_over_time_row_and_column():
    found = index(Grid(2, 2, 3))
    t, y, x = (Grid(2, 2, 3).coordinates()[:, None] - Grid(2, 2, 3).coordinates()).unbind(-1)
    assert torch.equal(found, ((t + 1) * 3 * 5 + (y + 1) * 5 + x + 2).int())


@pytest.mark.row(15)
def test_beit_index():
    """2 × 2 patches and a class token; 9 offsets, then the three rows."""
    found = index(Grid(2, 2, prefix=1)).tolist()
    assert found == [[11, 9, 9, 9, 9], [10, 4, 3, 1, 0], [10, 5, 4, 2, 1], [10, 7, 6, 4, 3], [10, 8, 7, 5, 4]]


def test_alibi_slopes():
    assert slopes(8) == [2.0**-n for n in range(1, 9)]
    assert slopes(1) == [2.0**-8]
    assert slopes(3) == [2.0**-4, 2.0**-8, 2.0**-2]
    assert slopes(12) == [2.0**-n for n in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    assert slopes(0) == []


def test_alibi_by_hand():
    line = ALiBi(2)(Grid(3))
    assert line[0].tolist() == [[0, -(2**-4), -(2**-3)], [-(2**-4), 0, -(2**-4)], [-(2**-3), -(2**-4), 0]]
    corner = {d: ALiBi(1, distance=d)(Grid(4, 5))[0, 0, -1].item() * 2**8 for d in ("euclidean", "manhattan")}
    assert corner == {"euclidean": -5.0, "manhattan": -7.0}


GOLDEN = {
    4: [[-1, -1, -1], [-1, 1, -1], [1, -1, -1], [1, 1, -1]],
    9: [
        [-2, -2, -1], [-2, 0, -1], [-2, 2, -1],
        [0, -2, -1], [0, 0, -1], [0, 2, -1],
        [2, -2, -1], [2, 0, -1], [2, 2, -1],
    ],
    16: [[x, y, -1] for x in (-3, -1, 1, 3) for y in (-3, -1, 1, 3)],
}  # fmt: skip


@pytest.mark.row(19)
@pytest.mark.parametrize("count", GOLDEN)
@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_convit_local_weights(count, strength):
    """In the published order (dx, dy, d²) of key - query."""
    gate = GatedPosition(count, locality=strength)
    published = torch.cat([-gate.direction.flip(1), gate.spread[:, None]], dim=1)
    assert torch.equal(published, strength * torch.tensor(GOLDEN[count], dtype=torch.float32))
    assert (torch.sigmoid(gate.gate) - 0.7311).abs().max() < 1e-4


def where_it_looks(gate: GatedPosition, grid: Grid, query: int) -> torch.Tensor:
    """The positional map of one query: all share to the gate."""
    with torch.no_grad():
        gate.gate.fill_(100.0)
    q = torch.randn(1, gate.heads, grid.tokens, 4)
    return weights(q, q, grid=grid, position=gate)[0, :, query].unflatten(1, grid.shape)


@pytest.mark.row(19)
def test_convit_peaks_of_nine_heads():
    """Head h looks at row offset h % 3 - 1, column offset h // 3 - 1, with weight .31824, .11708 beside it."""
    row = column = 6
    found = where_it_looks(GatedPosition(9), Grid(14, 14), row * 14 + column)
    for head in range(9):
        y, x = row + head % 3 - 1, column + head // 3 - 1
        assert abs(found[head].max() - 0.31824) < 5e-6
        assert found[head, y, x] == found[head].max()
        for near in (found[head, y + 1, x], found[head, y - 1, x], found[head, y, x + 1], found[head, y, x - 1]):
            assert abs(near - 0.11708) < 5e-6


@pytest.mark.row(19)
def test_convit_peaks_of_four_heads():
    """With an even side the centre falls between cells: four tie at .1931."""
    found = where_it_looks(GatedPosition(4), Grid(14, 14), 6 * 14 + 6)
    for head in range(4):
        top = found[head].flatten().topk(5).values
        assert (top[:4] - 0.1931).abs().max() < 5e-5
        assert top[4] < 0.1
        y, x = 6 + (head % 2 - 1), 6 + (head // 2 - 1)
        assert (found[head, y : y + 2, x : x + 2] - 0.1931).abs().max() < 5e-5


@pytest.mark.row(19)
def test_convit_heads_past_a_square_start_at_random():
    gate = GatedPosition(6, locality=3.0)
    assert (gate.spread[:4] == -3.0).all()
    assert gate.spread[4:].abs().max() < 0.5


def test_a_plain_convit_start_is_random():
    gate = GatedPosition(9, local_init=False, init_std=0.02)
    assert 0 < gate.spread.abs().max() < 0.2
    assert gate.direction.std() < 0.1
