"""What the source texts say and nothing else here contradicts. The other sentences have their tests beside the systems:
all are marked row(56), and told in docs/sources.md.
"""

from __future__ import annotations

import pytest
import torch

from locant import Grid, MaskedSine, Windows
from locant.flops import published_aim


@pytest.mark.row(56)
@pytest.mark.parametrize("temporal", [False, True])
def test_the_maps_that_flops_counts(temporal: bool) -> None:
    """The text has h × N × T × T in space and N × T × T in time: they are T × [h, N, N] and N × [h, T, T]."""
    dim, heads, side, frames = 128, 4, 7, 16
    window = (frames, 1, 1) if temporal else (1, side, side)
    pairs = int(Windows(window).allowed(Grid(frames, side, side)).sum())  # that attend, of one head
    said = side**2 * frames**2 * (1 if temporal else heads)  # numbers of the text's map
    assert 2 * heads * pairs * (dim // heads) == published_aim(dim, heads, side**2, frames, temporal)
    assert heads * pairs != said


@pytest.mark.row(56)
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("columns", [2, 3, 6])
def test_positions_come_from_the_mask_alone(rows: int, columns: int) -> None:
    """The text's array `a` "supplies the size": it supplies a device. Of one 6 × 6 map each mask has its own counts."""
    valid = torch.zeros(6, 6, dtype=torch.bool)
    valid[:rows, :columns] = True
    code = MaskedSine(20, normalize=False).double().encode(valid)
    # the second wave is slow enough for its angle to be read back
    y, x = (torch.atan2(code[..., i], code[..., i + 1]) * 10000**0.2 for i in (2, 12))
    assert y.amax().item() == pytest.approx(rows, abs=1e-10)
    assert x.amax().item() == pytest.approx(columns, abs=1e-10)


@pytest.mark.row(56)
def test_a_batch_is_counted_along_the_same_axes_as_a_single_mask() -> None:
    """The text's axes 0 and 1 are those of [rows, columns]; of a batch they would count over samples."""
    valid = torch.ones(3, 2, 4, dtype=torch.bool)
    valid[1, :, 3], valid[2, 1] = False, False
    sine = MaskedSine(20, normalize=False)
    assert torch.equal(sine.encode(valid), torch.stack([sine.encode(one) for one in valid]))
    assert not torch.equal(sine.encode(valid)[1], sine.encode(valid)[2])
