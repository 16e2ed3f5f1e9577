"""Places and frames: one vector per head says what table, prefix, order, padding and tails say together; exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from exactness import MASKS
from hypothesis import given, settings
from hypothesis import strategies as st
from schemes import BIASES, HEADS

from locant import Causal, Grid, Padding, Windows, places
from locant.cells import reach
from locant.forms import OffsetTable, OffsetValues, add_values
from locant.frames import WIDEST, frames
from locant.layout import described
from locant.masks import Mask, Structure

STATIC = tuple(name for name in MASKS if "samples" not in name and name not in ("twice", "pairs"))
GRIDS = {
    "sequence": (Grid(37, prefix=2), None),
    "plane": (Grid(9, 10, prefix=1), None),
    "volume": (Grid(3, 4, 5), None),
    "slice": (Grid(40)[29:], Grid(40)),
    "pooled": (Grid(6, 8, prefix=1), Grid(6, 8, prefix=1).pooled(2)),
    "far": (Grid(5, 6, origin=(2, -3)), Grid(4, 3, prefix=2, origin=(-1, 4), stride=(2, 1))),
}


def vector_of(own, table, rows):
    forbidden = None if own.forbidden is None else torch.from_numpy(own.forbidden)
    return places.vector(own.stretches, forbidden, table, rows, torch.empty(0, dtype=torch.float64))


def numbers_of(grid: Grid, key_grid: Grid, mask: Mask | None, table: bool = True) -> tuple[int, ...]:
    structure = Structure.of(mask)
    return described(grid, key_grid, structure, reach(grid, key_grid, structure.windows) if table else ())


def dense(grid: Grid, key_grid: Grid, mask: Mask | None, table, rows) -> torch.Tensor:
    """The definition: the bias of each pair, -inf where it is not allowed."""
    bias = torch.zeros(1, grid.tokens, key_grid.tokens, dtype=torch.float64)
    if table is not None:
        bias = OffsetValues(table, *(rows if rows is not None else ())).dense(grid, key_grid)
    if mask is None:
        return bias
    return bias.masked_fill(~mask.bound(grid, key_grid).allowed(grid, key_grid, torch.device("cpu"))[0], -torch.inf)


def in_cells(own) -> torch.Tensor:
    """bool [queries, keys]: pairs that lie in one cell; kernels visit no other."""
    out = torch.zeros(own.queries, own.keys, dtype=torch.bool)
    for c in range(own.cells):
        q, k = (x[s[c] : s[c + 1]] for x, s in ((own.query, own.query_start), (own.key, own.key_start)))
        out[np.ix_(q, k)] = True
    return out


def read(own, vector: torch.Tensor) -> torch.Tensor:
    return vector[:, torch.from_numpy(own.query.astype(np.int64))[:, None] - torch.from_numpy(own.key)]


def check_vector(grid: Grid, key_grid: Grid, mask: Mask | None, table, rows) -> None:
    numbers = numbers_of(grid, key_grid, mask, table is not None)
    own = places.places(numbers)
    found = vector_of(own, table, None if rows is None else torch.stack(rows))
    assert found.shape[1] == own.size
    golden = dense(grid, key_grid, mask, table, rows)
    bias = torch.where(in_cells(places.both_ways(numbers)[0]), read(own, found), -torch.inf)
    assert torch.equal(bias, golden.expand_as(bias))
    # a query that is not there, and a key that nobody sees, read inside of the vector; the latter nothing
    ends = (own.absent - own.key, own.query - own.hidden, np.array([own.absent - own.hidden]))
    assert all(x.min(initial=0) >= 0 and x.max(initial=0) < own.size for x in ends)
    assert (found[:, torch.from_numpy((own.query - own.hidden).astype(np.int64))] == -torch.inf).all()


@pytest.mark.parametrize("scheme", BIASES, ids=str)
@pytest.mark.parametrize("mask", STATIC)
def test_the_vector_is_the_bias_and_the_mask(scheme, mask):
    grid, mask = scheme.grid, MASKS[mask](scheme.grid)
    made = scheme.make()
    schemes = [p for p in (made if isinstance(made, tuple) else (made,)) if hasattr(p, "prefix_rows")]
    needed = reach(grid, grid, Structure.of(mask).windows)
    form = OffsetTable(HEADS, needed, any(p.prefix_rows() is not None for p in schemes))
    values = add_values([p.values(form, torch.device("cpu")) for p in schemes])
    rows = None if values.query_prefix is None else (values.query_prefix, values.key_prefix, values.both)
    check_vector(grid, grid, mask, values.table, rows)


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("kind", ["none", "causal", "causal-in-time", "windows", "windows-causal"])
@pytest.mark.parametrize("biased", [True, False])
def test_grids_of_all_kinds(grids, kind, biased):
    grid, key_grid = GRIDS[grids][0], GRIDS[grids][1] or GRIDS[grids][0]
    window = Windows((3,) * grid.axes, (1,) * grid.axes)
    masks = {"none": None, "causal": Causal(), "causal-in-time": Causal(axis=0), "windows": window}
    mask = masks[kind] if kind in masks else window & Causal()
    if not biased:
        check_vector(grid, key_grid, mask, None, None)
        return
    needed = reach(grid, key_grid, Structure.of(mask).windows)
    table = torch.randn(2, *(2 * r + 1 for r in needed), dtype=torch.float64)
    check_vector(grid, key_grid, mask, table, tuple(torch.randn(3, 2, dtype=torch.float64)))
    check_vector(grid, key_grid, mask, table, None)


def test_the_gradient_is_the_transpose():
    grid = Grid(4, 5, prefix=2)
    own = places.places(numbers_of(grid, grid, Causal()))
    table, rows = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 7, 9), (3, 2)))
    found = vector_of(own, table, rows)
    weight = torch.randn_like(found).masked_fill(found == -torch.inf, 0.0)
    golden = torch.autograd.grad(found, (table, rows), weight)
    dtable, drows = places.split_gradient(own, weight)
    assert torch.equal(dtable, golden[0].flatten(1))
    torch.testing.assert_close(drows, golden[1], rtol=0, atol=1e-14)


def test_padding_hides_by_sample():
    grid = Grid(6)
    own = places.places(numbers_of(grid, grid, None, False))
    valid = torch.tensor([[True] * 6, [True, False] * 3])
    key = places.seen(own.hidden, torch.from_numpy(own.key), valid)
    vector = vector_of(own, None, None)
    bias = vector[0][torch.from_numpy(own.query)[None, :, None] - key[:, None]]
    assert torch.equal(bias == -torch.inf, ~valid[:, None].expand_as(bias))
    assert (bias[valid[:, None].expand_as(bias)] == 0).all()


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("key_major", [False, True])
@pytest.mark.parametrize("block", [2, 4, 16])
def test_words_hold_two_neighbours(grids, key_major, block):
    grid, key_grid = GRIDS[grids][0], GRIDS[grids][1] or GRIDS[grids][0]
    own = places.places(numbers_of(grid, key_grid, None))
    vector = torch.randn(own.size, dtype=torch.float64)
    paired, single = (own.query, own.key) if key_major else (own.key, own.query)
    place, other = places.words(own, paired, block, key_major=key_major)
    both = torch.stack([vector.repeat(len(other) // own.size), vector[torch.from_numpy(other)]], 1)
    at = place[None] - single[:, None].astype(np.int64) if key_major else single[:, None].astype(np.int64) - place[None]
    found = both[torch.from_numpy(at)].flatten(1)
    filler = own.absent if key_major else own.hidden
    filled = np.full(found.shape[1], filler, dtype=np.int64)
    filled[: len(paired)] = paired
    apart = filled[None] - single[:, None]
    golden = vector[torch.from_numpy(apart if key_major else -apart)]
    assert found.shape[1] % block == 0
    assert torch.equal(found, golden)


def visible(grid: Grid, key_grid: Grid, mask: Mask | None) -> np.ndarray:
    return (dense(grid, key_grid, mask, None, None)[0] > -torch.inf).numpy()


MORE = ("none", "causal", "causal-in-time", "windows", "windows-causal")


def mask_of(kind: str, grid: Grid) -> Mask | None:
    window = Windows((3,) * grid.axes, (1,) * grid.axes)
    found = {"none": None, "causal": Causal(), "causal-in-time": Causal(axis=0), "windows": window}
    return found[kind] if kind in found else window & Causal()


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("kind", MORE)
@pytest.mark.parametrize("key_major", [False, True])
def test_tiles_meet_all_that_is_seen(grids, kind, key_major):
    """Each row is in one tile, its range holds every column that it sees, and in one cell ends at the last of them."""
    grid, key_grid = GRIDS[grids][0], GRIDS[grids][1] or GRIDS[grids][0]
    mask = mask_of(kind, grid)
    own = places.both_ways(numbers_of(grid, key_grid, mask))[key_major]
    there = visible(grid, key_grid, mask)
    there = there.T if key_major else there
    rows, columns, visits = 4, 6, np.zeros_like(there, dtype=int)
    for first, last, begin, end in places.tiles(own, rows, columns, key_major=key_major):
        visits[np.ix_(own.query[first : min(last, first + rows)], own.key[begin:end])] += 1
        if own.cells == 1:
            assert begin % columns == 0
            seen = there[own.query[first : min(last, first + rows)]].any(0)
            assert end == begin or (end == np.flatnonzero(seen)[-1] + 1 and begin + columns > np.flatnonzero(seen)[0])
    assert (visits[there] == 1).all()
    assert visits.max(initial=0) <= 1


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("kind", MORE)
@pytest.mark.parametrize("longest", [1, 3, 100])
def test_groups_hold_each_pair_once_with_equal_offsets(grids, kind, longest):
    grid, key_grid = GRIDS[grids][0], GRIDS[grids][1] or GRIDS[grids][0]
    mask = mask_of(kind, grid)
    numbers = numbers_of(grid, key_grid, mask)
    own, placed = places.both_ways(numbers)[0], places.places(numbers)
    table = placed.entries
    visits = np.zeros((grid.tokens, key_grid.tokens), dtype=int)
    for row, rows, column, columns, cell, count, down, right in places.cut_groups(
        places.alike(own, 4, 6, whole=mask is None or not Structure.of(mask).windows), longest
    ):
        assert count <= longest
        first = None
        for n in range(count):
            at = cell + n * ((down, right) == (0, 0))
            q = own.query[own.query_start[at] + row + n * down :][:rows]
            k = own.key[own.key_start[at] + column + n * right :][:columns]
            visits[np.ix_(q, k)] += 1
            offset = placed.query[q][:, None].astype(np.int64) - placed.key[k]
            ends = np.array([0, table, placed.key_prefix, placed.both, placed.nothing])
            offset = np.where(offset < table, offset, -np.searchsorted(ends, offset, side="right"))
            first = offset if first is None else first
            assert np.array_equal(offset, first)
    assert (visits[visible(grid, key_grid, mask)] == 1).all()
    assert visits.max() <= 1


def test_a_plane_has_long_groups():
    """What makes the table's gradient leave registers rarely: 64 × 64 tokens are 2,048 pairs of tiles in 126 groups."""
    grid = Grid(64, 64)
    found = places.alike(places.both_ways(numbers_of(grid, grid, None))[0], 128, 64, whole=True)
    assert found[:, 5].sum() == 32 * 64
    assert len(found) <= 126


WINDOWED = [
    ((14, 14), (7, 7), (0, 0)), ((14, 14), (7, 7), (3, 3)), ((9, 10), (4, 3), (1, 2)), ((13, 8), (7, 4), (3, 0)),
    ((5, 5), (7, 7), (3, 3)), ((4, 6, 6), (2, 3, 3), (1, 1, 1)), ((4, 7, 7), (4, 3, 5), (2, 1, 2)), ((30,), (8,), (5,)),
    ((16, 16), (8, 8), (4, 4)), ((3, 20), (1, 7), (0, 6)), ((2, 2, 2), (1, 1, 1), (0, 0, 0)),
]  # fmt: skip


def check_frames(grid: Grid, mask: Windows) -> None:
    numbers = numbers_of(grid, grid, mask)
    made = frames(numbers)
    assert made is not None
    tokens = made.tokens[made.tokens >= 0]
    assert sorted(tokens.tolist()) == list(range(grid.tokens))
    table = torch.randn(1, *(2 * r + 1 for r in reach(grid, grid, (mask,))), dtype=torch.float64)
    golden, flat = dense(grid, grid, mask, table, None)[0], table.flatten()
    found = torch.full_like(golden, -torch.inf)
    slots = torch.zeros(made.width**2 + 1, dtype=torch.float64)
    for kind, region in enumerate(made.region):
        see = (region[:, None] == region[None]) & (region >= 0)[None]
        for row in made.tokens[made.start[kind] : made.start[kind + 1]]:
            assert ((row >= 0) == (region >= 0)).all()
            i, j = np.nonzero(see)
            place = made.place[i] - made.place[j] + flat.numel() // 2
            found[row[i], row[j]] = flat[place]
            slots[i * made.width + j] = flat[place]
    assert torch.equal(found, golden)
    for offset, pairs in enumerate(made.pairs):
        own = pairs[pairs < made.width**2]
        assert (slots[own] == flat[offset]).all()
        assert len(set(own.tolist())) == len(own)
    assert (np.sort(made.pairs[made.pairs < made.width**2]) == np.flatnonzero(slots[:-1] != 0)).all()


@pytest.mark.parametrize(("shape", "size", "shift"), WINDOWED)
def test_frames_are_the_windows(shape, size, shift):
    check_frames(Grid(*shape), Windows(size, shift))


@settings(max_examples=60)
@given(st.data())
def test_frames_of_any_windows(data):
    axes = data.draw(st.integers(1, 3))

    def each(low, high):
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes)))

    grid = Grid(*each(1, 6), origin=each(-3, 3), stride=each(1, 2))
    check_frames(grid, Windows(each(1, 4), each(-2, 2)))


def test_few_frames_of_few_kinds():
    """A shifted plane of 56 × 56 has as many frames as one without a shift, of four kinds."""
    made = frames(numbers_of(Grid(56, 56), Grid(56, 56), Windows((7, 7), (3, 3))))
    assert made is not None
    assert made.tokens.shape == (64, 64)
    assert np.diff(made.start).tolist() == [49, 7, 7, 1]


def test_where_there_are_no_frames():
    plane = Grid(16, 16)
    for grid, key_grid, mask in (
        (plane, plane, Windows((9, 8))), (plane, plane, Windows((4, 4)) & Causal()), (plane, plane, None),
        (plane, Grid(16, 8), Windows((4, 4))), (Grid(16, 16, prefix=1),) * 2 + (Windows((4, 4)),),
        (plane, plane, Windows((4, 4)) & Windows((3, 3))),
    ):  # fmt: skip
        assert frames(numbers_of(grid, key_grid, mask)) is None
    assert frames(numbers_of(plane, plane, Windows((8, 8)))).width == WIDEST
    assert frames(numbers_of(Grid(3), Grid(3), Windows((50,)))).width == 16  # only slots that are filled count


def test_keys_in_no_cell_are_known():
    mask, key_grid = Windows((2,)), Grid(6)
    own = places.both_ways(numbers_of(key_grid[:2], key_grid, mask))[0]
    assert places.lives(own).tolist() == [True, True, False, False, False, False]
    assert places.lives(places.both_ways(numbers_of(key_grid, key_grid, mask))[0]) is None


def test_a_vector_too_long_for_its_places_is_refused():
    with pytest.raises(ValueError, match=r"needs 3,758,096,390 numbers .* places are 32-bit. Use a smaller grid"):
        places.places(numbers_of(Grid(2), Grid(2, stride=(2**29,)), None))


@pytest.mark.parametrize("piece", ["span", "zones", "order", "jump"])
def test_mutants_are_seen(piece, monkeypatch):
    """A stretch one too short, two stretches exchanged, an order turned round, a jump with the wrong sign."""
    original, words = places.places, places.words
    changes = {
        "span": lambda own: replace(own, key=np.where(own.key < 0, own.key + 1, own.key)),
        "zones": lambda own: replace(own, key_prefix=own.both - 1, both=own.both),
        "order": lambda own: replace(own, forbidden=own.forbidden[::-1].copy()),
    }
    if piece == "jump":
        monkeypatch.setattr(places, "words", lambda own, x, b, key_major: words(own, x, b, key_major=not key_major))
        with pytest.raises((AssertionError, IndexError)):
            test_words_hold_two_neighbours("plane", False, 4)
        return
    monkeypatch.setattr(places, "places", lambda numbers: changes[piece](original(numbers)))
    with pytest.raises((AssertionError, IndexError)):
        test_grids_of_all_kinds("plane", "causal", True)


def test_a_padding_is_no_place_of_its_own():
    """The layout says nothing of padding: the same places serve every batch."""
    mask = Padding(torch.ones(2, 6, dtype=torch.bool))
    assert numbers_of(Grid(6), Grid(6), mask) == numbers_of(Grid(6), Grid(6), None)
