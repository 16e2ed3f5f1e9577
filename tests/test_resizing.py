"""Resizing: against loops over the definition, and the laws that offset tables need."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from locant.resizing import METHODS, resize_embedding, resize_table

SIZES = [((5,), (9,)), ((7,), (3,)), ((5, 3), (9, 7)), ((3, 7), (5, 1)), ((3, 5, 3), (5, 3, 7))]


def multilinear(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """One new cell at a time: the weighted sum over the corners around t = i (n - 1) / (n' - 1)."""
    old, out = x.shape[1:], x.new_zeros(x.shape[0], *sizes)
    for cell in itertools.product(*map(range, sizes)):
        places = [i * (n - 1) / (m - 1) if m > 1 else (n - 1) / 2 for i, n, m in zip(cell, old, sizes, strict=True)]
        for corner in itertools.product(*map(range, old)):
            weight = math.prod(max(0.0, 1 - abs(t - c)) for t, c in zip(places, corner, strict=True))
            out[(slice(None), *cell)] += weight * x[(slice(None), *corner)]
    return out


def convolved(x: Tensor, sizes: tuple[int, ...], kernel: Callable[[float], float], widen: bool = False) -> Tensor:
    """At t = (i + 1/2) n / n' - 1/2, one axis after the other: neighbours weighted by the kernel of their distance."""
    for axis, size in enumerate(sizes, start=1):
        n, columns = x.shape[axis], []
        width = max(1.0, n / size) if widen else 1.0
        for i in range(size):
            t = (i + 0.5) * n / size - 0.5
            # antialiasing leaves out what lies beyond the border and shares its weight; the others repeat the edge
            reach = range(-3 * n, 4 * n) if not widen else range(n)
            weights = {c: kernel((t - c) / width) for c in reach if kernel((t - c) / width) != 0}
            total = sum(weights.values())
            columns.append(sum(w / total * x.select(axis, min(max(c, 0), n - 1)) for c, w in weights.items()))
        x = torch.stack(columns, dim=axis)
    return x


def cubic(a: float) -> Callable[[float], float]:
    """Keys' kernel; torch takes a = -0.75, and -0.5 when it antialiases."""

    def kernel(d: float) -> float:
        d = abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    return kernel


def hat(d: float) -> float:
    return max(0.0, 1 - abs(d))


SLOW = {
    "linear": lambda x, sizes: multilinear(x, sizes),
    "bilinear": lambda x, sizes: convolved(x, sizes, hat),
    "bicubic": lambda x, sizes: convolved(x, sizes, cubic(-0.75)),
    "antialiased": lambda x, sizes: convolved(x, sizes, cubic(-0.5), widen=True),
}


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_linear_is_the_multilinear_formula(old, new):
    table = torch.randn(2, *old, dtype=torch.float64)
    torch.testing.assert_close(resize_table(table, new), multilinear(table, new), atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "antialiased"])
@pytest.mark.parametrize(("old", "new"), [*SIZES, ((13, 13), (23, 23)), ((9, 5), (5, 7))])
def test_the_others_are_convolutions_on_any_axes(old, new, method):
    table = torch.randn(3, *old, dtype=torch.float64)
    torch.testing.assert_close(resize_table(table, new, method), SLOW[method](table, new), atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", SLOW)
def test_axes_of_one_cell_play_no_part(method):
    table = torch.randn(3, 1, 5, 7, dtype=torch.float64)
    flat = resize_table(table[:, 0], (9, 3), method)
    torch.testing.assert_close(resize_table(table, (1, 9, 3), method)[:, 0], flat, atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", SLOW)
def test_embedding_rows_are_resized_as_maps(method):
    rows = torch.randn(2 * 4, 5, dtype=torch.float64)
    maps = rows.reshape(2, 4, 5).permute(2, 0, 1)
    found = resize_embedding(rows, (2, 4), (3, 6), method)
    slow = SLOW[method](maps, (3, 6)).permute(1, 2, 0).reshape(18, 5)
    torch.testing.assert_close(found, slow, atol=1e-10, rtol=0)


def test_geometric_places_old_distances_on_a_progression():
    """From 7 to 12: the old distances 1 ... 6 lie at 1, 1 + q, ..., the last one where the new window ends."""
    table = torch.randn(2, 13, 13, dtype=torch.float64)
    found = resize_table(table, (23, 23), "geometric")
    assert torch.equal(found[:, 11, 11], table[:, 6, 6]), "the zero offset stays what it was"
    q = 1.01
    while sum(q**i for i in range(6)) < 11:
        q += 1e-7
    places = [sum(q**i for i in range(j)) for j in range(7)]
    places = [-p for p in places[:0:-1]] + places
    for y, x in itertools.product((-11, -7, -1, 0, 2, 10), (-8, 0, 3)):
        weights = [[max(0.0, hat_between(places, k, at)) for k in range(13)] for at in (y, x)]
        slow = torch.einsum("hyx,y,x->h", table, *(torch.tensor(w, dtype=torch.float64) for w in weights))
        # q is found to 1e-6 by bisection, and moves the places by up to 15e-6
        torch.testing.assert_close(found[:, 11 + y, 11 + x], slow, atol=1e-4, rtol=0)


def hat_between(places: list[float], k: int, at: float) -> float:
    at = min(max(at, places[0]), places[-1])
    if at <= places[k]:
        return 1 - (places[k] - at) / (places[k] - places[k - 1]) if k > 0 else float(at == places[0])
    return 1 - (at - places[k]) / (places[k + 1] - places[k]) if k + 1 < len(places) else 0.0


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_linear_keeps_centre_and_corners_bit_for_bit(old, new):
    table = torch.randn(2, *old)
    found = resize_table(table, new)
    assert torch.equal(found[(slice(None), *(n // 2 for n in new))], table[(slice(None), *(n // 2 for n in old))]), (
        "the zero offset must stay the zero offset"
    )
    for corner in itertools.product((0, -1), repeat=len(new)):
        if 1 not in new:
            assert torch.equal(found[(slice(None), *corner)], table[(slice(None), *corner)])


def test_a_table_linear_in_the_offset_stays_linear():
    def plane(rows: int, columns: int) -> Tensor:
        r = torch.linspace(-1, 1, rows, dtype=torch.float64)[:, None]
        c = torch.linspace(-1, 1, columns, dtype=torch.float64)
        return (0.5 + 2 * r - 3 * c)[None]

    torch.testing.assert_close(resize_table(plane(5, 9), (13, 7)), plane(13, 7), atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_mirroring_commutes_with_resizing(method):
    table = torch.randn(2, 7, 5, dtype=torch.float64)
    mirrored = resize_table(table.flip(1), (11, 9), method)
    torch.testing.assert_close(mirrored, resize_table(table, (11, 9), method).flip(1), atol=1e-10, rtol=0)


def test_resizing_there_and_back_over_a_whole_ratio_is_the_identity():
    table = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(resize_table(resize_table(table, (9, 5)), (5, 3)), table, atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_equal_sizes_are_a_fresh_copy(method):
    table = torch.randn(2, 5, 3)
    found = resize_table(table, (5, 3), method)
    assert torch.equal(found, table)
    found.zero_()
    assert table.abs().sum() > 0


def test_one_cell_is_read_at_the_centre():
    rows = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    assert resize_embedding(rows, (4,), (1,)).item() == 3.0
    assert torch.equal(resize_embedding(rows[:1] + 7, (1,), (3,)), torch.full((3, 1), 7.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype, method):
    table = torch.randn(2, 7, 5).to(dtype)
    found, golden = resize_table(table, (13, 9), method), resize_table(table.double(), (13, 9), method)
    assert found.dtype == dtype
    # half a unit in the last place of the result, and float32's own error
    assert ((found - golden).abs() <= golden.abs() * torch.finfo(dtype).eps / 2 + 1e-6).all()


@pytest.mark.parametrize(
    ("new", "method"), [((1, 9), "linear"), ((7, 1), "clip"), *(((7, 5), method) for method in METHODS)]
)
def test_gradients(new, method):
    table = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: resize_table(t, new, method), (table,))
    if method == "geometric":
        return
    rows = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: resize_embedding(r, (2, 3), (4, 5), method), (rows,))


def test_only_what_requires_grad_gets_a_graph():
    assert not resize_table(torch.randn(1, 3), (5,)).requires_grad
    assert resize_table(torch.randn(1, 3, requires_grad=True), (5,)).requires_grad


def test_clip_keeps_each_offset_and_repeats_the_edge():
    """Read at an offset, the new table says what the old one says at the offset clipped to its reach."""
    table = torch.randn(2, 5, 3, dtype=torch.float64)
    wide = resize_table(table, (9, 1), "clip")
    for dy in range(-4, 5):
        assert torch.equal(wide[:, 4 + dy, 0], table[:, 2 + max(-2, min(2, dy)), 1])
    assert torch.equal(resize_table(wide, (5, 1), "clip"), table[:, :, 1:2])


def test_geometric_is_for_tables():
    with pytest.raises(ValueError, match=r"needs a method for places; got \"geometric\", which .* Use"):
        resize_embedding(torch.zeros(4, 1), (2, 2), (3, 3), "geometric")


def test_unknown_methods_are_told_the_known_ones():
    with pytest.raises(ValueError, match=r"'linear', 'clip', .*'geometric'; got 'nearest'.*Use"):
        resize_embedding(torch.zeros(4, 1), (4,), (8,), "nearest")


@pytest.mark.parametrize(("shape", "sizes"), [((4,), (5,)), ((5,), (8,)), ((5,), (5, 5)), ((5,), (-1,))])
def test_tables_need_odd_sizes(shape, sizes):
    with pytest.raises(ValueError, match=r"needs odd sizes .* got .* has 2 r \+ 1 entries"):
        resize_table(torch.zeros(1, *shape), sizes)


@pytest.mark.parametrize(("cells", "old", "new"), [(5, (2, 2), (3, 3)), (4, (2, 2), (3,)), (4, (2, 2), (0, 3))])
def test_embeddings_need_a_row_per_cell(cells, old, new):
    with pytest.raises(ValueError, match=r"one row per cell of `old_shape`.* got .* Take the prefix rows off"):
        resize_embedding(torch.zeros(cells, 1), old, new)
