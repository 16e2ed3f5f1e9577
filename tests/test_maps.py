"""Maps of positions: they are what attention does, for every scheme of the laws, and what a formula says."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from schemes import HEAD_DIM, HEADS, SCHEMES, Scheme, heads, parts

from locant.attend import weights
from locant.grid import Grid
from locant.maps import BY_ENTRANCE, likeness, one_query, position_map, query_row
from locant.masks import Windows
from locant.positions.gate import GatedPosition
from locant.positions.position import Bias, Content, Gate, Rotation
from locant.positions.rotary import Rotary
from locant.positions.shaw import Shaw
from locant.positions.sinusoid import Sinusoid
from locant.positions.slopes import ALiBi

# Sums of at most 72 products of numbers below 4 in float64: 72 · 4² · 2⁻⁵² < 3e-13.
CLOSE = 1e-12


def alone(kind: type) -> list[Scheme]:
    return [s for s in SCHEMES if len(parts(s.build())) == 1 and isinstance(parts(s.build())[0], kind)]


@pytest.mark.parametrize("scheme", [*alone(Bias), *alone(Content)], ids=str)
def test_a_map_of_logits_is_what_attention_adds(scheme: Scheme) -> None:
    torch.manual_seed(0)
    (position,) = parts(scheme.build())
    position = position.double()
    q, k, _ = (x[:1] for x in heads(scheme.grid))
    shown = position_map(position, scheme.grid, q=q)
    met = position.queries(q) if isinstance(position, Content) else q
    logits = met @ k.transpose(-1, -2) * HEAD_DIM**-0.5 + shown
    truth = weights(q, k, grid=scheme.grid, position=position)
    assert (torch.softmax(logits, -1) - truth).abs().max() < CLOSE


@pytest.mark.parametrize("scheme", alone(Gate), ids=str)
def test_a_map_of_a_gate_is_attention_where_the_gate_is_open(scheme: Scheme) -> None:
    (gate,) = parts(scheme.build())
    gate = gate.double()
    q, k, _ = heads(scheme.grid)
    with torch.no_grad():
        gate.gate.fill_(40.0)  # the sigmoid of 40 is 1 to the last bit but four
    truth = weights(q, k, grid=scheme.grid, position=gate)[0]
    shown = position_map(gate, scheme.grid)
    p = scheme.grid.prefix
    assert (shown[:, p:, p:] - truth[:, p:, p:]).abs().max() < CLOSE


def test_a_map_of_turns_is_the_mean_cosine() -> None:
    shown = position_map(Rotary(8, base=100.0), Grid(6))
    for query in range(6):
        for key in range(6):
            expected = sum(math.cos((query - key) * 100.0 ** (-i / 4)) for i in range(4)) / 4
            assert shown[0, query, key].item() == pytest.approx(expected, abs=4e-7)  # 8 products in float32


def test_a_map_of_vectors_is_their_cosine() -> None:
    grid = Grid(3, 4, prefix=1)
    vectors = Sinusoid(8)(grid)
    shown = position_map(Sinusoid(8), grid)
    assert shown.shape == (1, 13, 13)
    for query, key in ((1, 2), (5, 12)):
        a, b = vectors[query].double(), vectors[key].double()
        assert shown[0, query, key].item() == pytest.approx((a @ b / (a.norm() * b.norm())).item(), abs=1e-6)
    assert torch.equal(shown, likeness(vectors))


def test_one_query_is_read_by_its_coordinates() -> None:
    grid, far = Grid(3, 4, prefix=2), ALiBi(2, distance="manhattan")
    row = query_row(position_map(far, grid), grid, (1, 2))
    assert row.shape == (2, 3, 4)
    for y in range(3):
        for x in range(4):
            expected = -far.slopes * (abs(1 - y) + abs(2 - x))
            assert torch.equal(row[:, y, x], expected)


def test_a_mask_says_how_far_a_bias_must_reach() -> None:
    from locant.positions.table import RelativeTable

    grid, table = Grid(6, 6), RelativeTable(Grid(3, 3), 1)
    with pytest.raises(ValueError, match="reach"):
        position_map(table, grid)
    assert position_map(table, grid, Windows((3, 3))).shape == (1, 36, 36)


def test_content_needs_queries() -> None:
    with pytest.raises(ValueError, match=r"Shaw acts through the queries, so its map needs q \[1, 2, 5, 4\]; got None"):
        position_map(Shaw(2, 4, 2), Grid(5))


def test_every_entrance_has_a_map() -> None:
    assert set(BY_ENTRANCE) == {"embed", "rotate", "bias", "content", "gate"}
    assert all(isinstance(parts(s.build())[0], Rotation) for s in alone(Rotation))
    assert HEADS > 1


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("grid", [Grid(5), Grid(3, 4), Grid(2, 3, 4)], ids=str)
def test_a_grid_of_other_axes_has_a_map_or_is_a_sentence(scheme: Scheme, grid: Grid) -> None:
    for position in parts(scheme.build()):
        with contextlib.suppress(ValueError):  # a sentence, and nothing of torch's
            one_query(position, grid, (0,) * grid.axes)


def test_a_gate_names_the_axes_that_it_was_built_for() -> None:
    with pytest.raises(ValueError, match=r"built for grids of 2 axes; got Grid\(5\). Build it with axes=1."):
        one_query(GatedPosition(2), Grid(5), (0,))
