"""`locant.nn.WindowAttention` against slow formulas: literal cells, and the two orders of filling and rolling."""

from __future__ import annotations

import itertools

import pytest
import torch
from near import close
from torch import Tensor

from locant import Grid, Padding, RelativeTable, Rotary, Sinusoid, Windows
from locant.nn import WindowAttention
from locant.nn.window import _merged, _partitioned, _regions, fitted

DIM, HEADS, WIDTH = 6, 2, 3


def table_for(size: tuple[int, ...]) -> RelativeTable:
    return RelativeTable(Grid(*size), HEADS, init_std=1.0)


def attend(module: WindowAttention, rows: Tensor, places: list[tuple[int, ...]], labels: list[object]) -> Tensor:
    """One window: rows [n, dim] at places; pairs of different labels don't see each other."""
    n, reach = len(rows), [side // 2 for side in module.position.table.shape[1:]]
    qkv = rows @ module.qkv.weight.T + module.qkv.bias
    out = torch.zeros_like(rows)
    for h in range(HEADS):
        q, k, v = (qkv[:, part * DIM + h * WIDTH : part * DIM + (h + 1) * WIDTH] for part in range(3))
        for i in range(n):
            seen = [j for j in range(n) if labels[i] == labels[j]]
            logits = []
            for j in seen:
                offset = tuple(a - b + r for a, b, r in zip(places[i], places[j], reach, strict=True))
                logits.append(q[i] @ k[j] * WIDTH**-0.5 + module.position.table[(h, *offset)])
            p = torch.softmax(torch.stack(logits), 0)
            out[i, h * WIDTH : (h + 1) * WIDTH] = p @ v[seen]
    return out @ module.proj.weight.T + module.proj.bias


def slow_cells(module: WindowAttention, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Group coordinates by floor((c - shift) / window); attend inside each group."""
    out = torch.zeros_like(x)
    places = list(itertools.product(*map(range, shape)))
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, place in enumerate(places):
        cell = tuple((c - s) // w for c, s, w in zip(place, module.shift, module.window, strict=True))
        groups.setdefault(cell, []).append(n)
    for b in range(len(x)):
        for members in groups.values():
            out[b, members] = attend(module, x[b, members], [places[n] for n in members], [0] * len(members))
    return out


def slow_regrouped(module: WindowAttention, x: Tensor, shape: tuple[int, int]) -> Tensor:
    """The published procedure in slots: for each slot of the grouped map, which cell lies there (or a zero)."""
    (rows, columns), (wr, wc), (sr, sc) = shape, module.window, module.shift
    tall, wide = -(-rows // wr) * wr, -(-columns // wc) * wc
    filled_first = module.border == "pad-roll"
    source: dict[tuple[int, int], tuple[int, int] | None] = {}
    for r, c in itertools.product(range(tall), range(wide)):
        if filled_first:  # the filled map, rolled
            a, b = (r + sr) % tall, (c + sc) % wide
            source[r, c] = (a, b) if a < rows and b < columns else None
        else:  # the rolled map, filled
            source[r, c] = ((r + sr) % rows, (c + sc) % columns) if r < rows and c < columns else None

    def region(place: int, side: int, window: int, shift: int) -> int:
        return 0 if place < side - window else 1 if shift == 0 or place < side - shift else 2

    out = torch.zeros_like(x)
    for b, top, left in itertools.product(range(len(x)), range(0, tall, wr), range(0, wide, wc)):
        slots = [(r, c) for r in range(top, top + wr) for c in range(left, left + wc)]
        zero = x.new_zeros(DIM)
        cells = torch.stack([zero if source[s] is None else x[b, source[s][0] * columns + source[s][1]] for s in slots])
        labels = [(region(r, tall, wr, sr), region(c, wide, wc, sc)) for r, c in slots]
        for slot, y in zip(slots, attend(module, cells, slots, labels), strict=True):
            if source[slot] is not None:
                out[b, source[slot][0] * columns + source[slot][1]] = y
    return out


@pytest.mark.parametrize(
    ("shape", "window", "shift"),
    [
        ((11,), (4,), None),
        ((11,), (4,), (1,)),
        ((4, 8), (2, 4), (1, 2)),
        ((5, 7), (2, 3), (1, 1)),
        ((7, 5), (3, 2), None),
        ((3, 4, 5), (2, 2, 3), (1, 1, 2)),
    ],
)
def test_cells_are_the_literal_partition(
    shape: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...] | None
) -> None:
    grid = Grid(*shape)
    module = WindowAttention(DIM, HEADS, window, grid=grid, shift=shift, position=table_for(window)).double()
    x = torch.randn(2, grid.tokens, DIM, dtype=torch.float64)
    close(module(x), slow_cells(module, x, shape))


@pytest.mark.parametrize("border", ["pad-roll", "roll-pad"])
@pytest.mark.parametrize(
    ("shape", "window", "shift"),
    [((5, 7), (3, 3), (1, 1)), ((7, 5), (2, 3), (1, 2)), ((4, 5), (3, 2), None), ((5, 4), (2, 3), (0, 1))],
)
def test_filled_borders_follow_the_published_order(
    border: str, shape: tuple[int, int], window: tuple[int, int], shift: tuple[int, int] | None
) -> None:
    grid = Grid(*shape)
    module = WindowAttention(DIM, HEADS, window, shift=shift, position=table_for(window), border=border).double()
    x = torch.randn(2, grid.tokens, DIM, dtype=torch.float64)
    close(module(x, grid=grid), slow_regrouped(module, x, shape))


def test_the_orders_differ_where_windows_do_not_divide() -> None:
    """On 9 × 9 a zero lies in the window of real cells; on 10 × 10 filling before rolling equals the literal cells."""
    x = torch.randn(1, 81, DIM, dtype=torch.float64)
    first = WindowAttention(DIM, HEADS, (7, 7), shift=3, position=table_for((7, 7))).double()
    found = []
    for border in ("cells", "pad-roll", "roll-pad"):
        module = WindowAttention(DIM, HEADS, (7, 7), shift=3, border=border).double()
        module.load_state_dict(first.state_dict())
        found.append(module(x, grid=Grid(9, 9)))
    for a, b in itertools.combinations(found, 2):
        assert float((a - b).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("shape", "window", "shift"), [((12,), (4,), (3,)), ((6, 8), (3, 4), (1, 2)), ((4, 6, 4), (2, 3, 2), (1, 1, 1))]
)
def test_all_borders_agree_where_windows_divide(
    shape: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> None:
    """Swin's shifted window is a partition of coordinates, not a roll and a mask."""
    grid = Grid(*shape)
    first = WindowAttention(DIM, HEADS, window, shift=shift, position=table_for(window)).double()
    x = torch.randn(2, grid.tokens, DIM, dtype=torch.float64)
    for border in ("pad-roll", "roll-pad"):
        module = WindowAttention(DIM, HEADS, window, shift=shift, border=border).double()
        module.load_state_dict(first.state_dict())
        close(module(x, grid=grid), first(x, grid=grid))
    unshifted = WindowAttention(DIM, HEADS, window).double()
    unshifted.load_state_dict(first.state_dict())
    assert float((unshifted(x, grid=grid) - first(x, grid=grid)).detach().abs().max()) > 1e-3


def test_golden_regions_of_a_rolled_map() -> None:
    """Labels of 4 × 4, window 2, shift 1, window by window (systems.md 5.3, [V])."""
    golden = [[0, 0, 0, 0], [1, 2, 1, 2], [3, 3, 6, 6], [4, 5, 7, 8]]
    assert _regions((4, 4), (2, 2), (1, 1), torch.device("cpu")).tolist() == golden


@pytest.mark.parametrize(("sizes", "window"), [((6,), (3,)), ((4, 6), (2, 3)), ((4, 2, 6), (2, 1, 3))])
def test_windows_are_row_major_and_come_back(sizes: tuple[int, ...], window: tuple[int, ...]) -> None:
    x = torch.randn(2, *sizes, 5)
    cut = _partitioned(x, window)
    assert torch.equal(_merged(cut, 2, window, sizes), x)
    last = tuple(slice(side - size, side) for side, size in zip(sizes, window, strict=True))
    assert torch.equal(cut[-1], x[1][last].reshape(-1, 5))
    if len(sizes) == 2:
        assert torch.equal(cut[1], x[0, :2, 3:].reshape(-1, 5))


@pytest.mark.parametrize(
    ("small", "shape", "expected"),
    [
        ("joint", (14, 14), ((7, 7), (3, 3))),
        ("joint", (7, 14), ((7, 7), (0, 0))),
        ("joint", (5, 14), ((5, 5), (0, 0))),
        ("joint", (9, 3), ((3, 3), (0, 0))),
        ("per-axis", (7, 14), ((7, 7), (0, 3))),
        ("per-axis", (5, 14), ((5, 7), (0, 3))),
        ("pad", (7, 14), ((7, 7), (0, 3))),
        ("pad", (5, 14), ((7, 7), (0, 3))),
        ("pad", (5, 3), ((7, 7), (0, 0))),
    ],
)
def test_small_maps_follow_the_rule_that_is_named(small: str, shape: tuple[int, int], expected: tuple) -> None:
    assert fitted((7, 7), (3, 3), shape, small) == expected


def test_windows_that_are_not_square_shrink_axis_by_axis() -> None:
    assert fitted((3, 5), (1, 2), (3, 5), "joint") == ((3, 5), (0, 0))
    assert fitted((8, 7, 7), (4, 3, 3), (1, 56, 56), "joint") == ((1, 7, 7), (0, 0, 0))
    assert fitted((8, 7, 7), (4, 3, 3), (1, 56, 56), "per-axis") == ((1, 7, 7), (0, 3, 3))


@pytest.mark.parametrize("border", ["cells", "pad-roll", "roll-pad"])
def test_small_maps_read_the_centre_of_the_table(border: str) -> None:
    """A map of 2 × 3 under windows of 4 × 4 is one window of its own size, if nothing is filled."""
    big = WindowAttention(DIM, HEADS, (4, 4), position=table_for((4, 4)), border=border, small="per-axis").double()
    own = WindowAttention(DIM, HEADS, (2, 3)).double()
    state = {**big.state_dict(), "position.table": big.position.table.detach()[:, 2:5, 1:6]}
    own.load_state_dict(state)
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    close(big(x, grid=Grid(2, 3)), own(x, grid=Grid(2, 3)))


def test_padding_up_lets_zeros_take_part() -> None:
    module = WindowAttention(DIM, HEADS, (3, 3), border="pad-roll", small="pad", position=table_for((3, 3))).double()
    x = torch.randn(1, 4, DIM, dtype=torch.float64)
    close(module(x, grid=Grid(2, 2)), slow_regrouped(module, x, (2, 2)))
    shrunk = WindowAttention(DIM, HEADS, (3, 3), border="pad-roll", small="per-axis").double()
    shrunk.load_state_dict(module.state_dict())
    assert float((module(x, grid=Grid(2, 2)) - shrunk(x, grid=Grid(2, 2))).detach().abs().max()) > 1e-3


def test_cells_take_prefix_tokens_and_masks() -> None:
    grid = Grid(4, 5, prefix=1)
    module = WindowAttention(DIM, HEADS, (2, 2), grid=grid, shift=1).double()
    x = torch.randn(2, grid.tokens, DIM, dtype=torch.float64)
    valid = torch.rand(2, grid.tokens) > 0.3
    mask = Windows((2, 2), shift=(1, 1)) & Padding(valid)
    close(module(x, mask=Padding(valid)), super(WindowAttention, module).forward(x, grid=grid, mask=mask))
    changed = x.clone()
    changed[:, 0] += 1  # the prefix is seen from every window
    assert bool(((module(changed) - module(x)).abs().amax(-1) > 1e-6).all())


def test_positions_by_name_by_scheme_and_none() -> None:
    grid = Grid(6, 6)
    x = torch.randn(1, 36, DIM, dtype=torch.float64)
    table = WindowAttention(DIM, HEADS, (3, 3), grid=grid)
    assert table.position.table.shape == (HEADS, 5, 5)
    none = WindowAttention(DIM, HEADS, (3, 3), grid=grid, position=None).double()
    assert "position.table" not in none.state_dict()
    table.load_state_dict({**none.state_dict(), "position.table": torch.zeros(HEADS, 5, 5)})
    close(none(x), table.double()(x))
    rotary = WindowAttention(DIM, 1, (3, 3), position=Rotary(DIM, axes=2), shift=1).double()
    filled = WindowAttention(DIM, 1, (3, 3), position=Rotary(DIM, axes=2), shift=1, border="pad-roll").double()
    filled.load_state_dict(rotary.state_dict())
    assert (
        float((filled(x, grid=grid) - rotary(x, grid=grid)).detach().abs().max()) <= 1e-6
    )  # Rotary turns in float32 or better


def test_window_and_shift_may_be_ints_on_a_sequence() -> None:
    module = WindowAttention(DIM, HEADS, 4, shift=2)
    assert (module.window, module.shift) == ((4,), (2,))
    assert WindowAttention(DIM, HEADS, (4, 6), shift=2).shift == (2, 2)
    assert "window=(4,), shift=(2,), border='cells', small='joint'" in repr(module)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: WindowAttention(8, 3, (7, 7)), r"got dim=8, heads=3"),
        (lambda: WindowAttention(8, 2, (7, 7), border="pad"), r"`border` out of 'cells'.*got 'pad'"),
        (lambda: WindowAttention(8, 2, (7, 7), small="axis"), r"`small` out of 'joint'.*got 'axis'"),
        (lambda: WindowAttention(8, 2, (7, 7), position="alibi"), r'one `position` by name, "table"; got \'alibi\''),
        (lambda: WindowAttention(8, 2, (7, 0)), r"Windows needs a size of at least 1"),
        (lambda: WindowAttention(8, 2, (7, 7), shift=(3,)), r"a shift per axis.*got size=\(7, 7\), shift=\(3,\)"),
        (lambda: WindowAttention(8, 2, (7, 7), grid=Grid(14)), r"a size per axis of Grid\(14\)"),
    ],
)
def test_a_module_that_cannot_be_is_refused(build: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.plain
@pytest.mark.parametrize(
    ("grid", "given", "sentence"),
    [
        (Grid(4, 4), {"mask": Padding(torch.ones(1, 16, dtype=torch.bool))}, r"it got a mask as well"),
        (Grid(4, 4), {"position": Sinusoid(8)}, r"it got the embedding Sinusoid as well"),
        (Grid(5, 3, prefix=1), {}, r"it got Grid\(5, 3, prefix=1\), with a prefix.*border=\"cells\""),
        (Grid(8, 4)[4:], {}, r"it got Grid\(4, 4, origin=\(4, 0\)\)"),
        (Grid(16), {}, r"a size per axis of Grid\(16\)"),
        (Grid(4, 5), {}, r"`x` on Grid\(4, 5\) must have 20 tokens.*got 16"),
    ],
)
def test_filled_borders_refuse_what_they_would_misplace(grid: Grid, given: dict, sentence: str) -> None:
    module = WindowAttention(8, 2, (2, 2), border="pad-roll")
    with pytest.raises(ValueError, match=sentence):
        module(torch.zeros(1, 16, 8), grid=grid, **given)
