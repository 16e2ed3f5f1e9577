"""Masks: who may attend, against the definition pair by pair."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import truth
from schemes import heads
from torch.utils import _pytree

from locant import Causal, Grid, Padding, Pairs, Segments, Windows, attention
from locant.cells import cells, reach
from locant.masks import Structure

GRIDS = {
    "line": (Grid(7), Grid(7)),
    "line-prefix": (Grid(6, prefix=2), Grid(6, prefix=2)),
    "plane": (Grid(5, 4), Grid(5, 4)),
    "plane-prefix": (Grid(3, 4, prefix=1), Grid(3, 4, prefix=1)),
    "clip": (Grid(2, 3, 4), Grid(2, 3, 4)),
    "clip-prefix": (Grid(2, 3, 2, prefix=1), Grid(2, 3, 2, prefix=1)),
    "slice": (Grid(6, 4)[2:4], Grid(6, 4)),
    "slice-of-a-line": (Grid(9)[8:], Grid(9, prefix=1)),
    "pooled": (Grid(5, 6), Grid(5, 6).pooled(2)),
    "far-away": (Grid(4, 3, origin=(-5, 10)), Grid(4, 3, origin=(-4, 8))),
    "one": (Grid(1), Grid(1)),
    "no-keys": (Grid(3), Grid(0)),
    "no-queries": (Grid(0, 3), Grid(2, 3)),
}


def made(kind: str, grid: Grid, key_grid: Grid):
    """A mask of that kind for these grids; the same every time."""
    draw = torch.Generator().manual_seed(5)

    def ids(*shape):
        return torch.randint(0, 3, (2, *shape), generator=draw)

    axes = grid.axes
    sizes, shifts = ((2,), (3, 2), (1, 2, 3))[axes - 1], ((1,), (2, 1), (0, 1, -2))[axes - 1]
    return {
        "causal": lambda: Causal(),
        "causal-first-axis": lambda: Causal(axis=0),
        "causal-last-axis": lambda: Causal(axis=axes - 1),
        "windows": lambda: Windows(sizes),
        "windows-shifted": lambda: Windows(sizes, shifts),
        "windows-huge": lambda: Windows((100,) * axes),
        "padding-tokens": lambda: Padding(ids(key_grid.tokens) > 0),
        "padding-cells": lambda: Padding(ids(*key_grid.shape) > 0),
        "segments-tokens": lambda: Segments(ids(grid.tokens), ids(key_grid.tokens)),
        "segments-cells": lambda: Segments(ids(*grid.shape), ids(*key_grid.shape)),
        "pairs": lambda: Pairs(torch.rand(2, 2, grid.tokens, key_grid.tokens, generator=draw) > 0.4),
        "pairs-of-samples": lambda: Pairs(ids(grid.tokens, key_grid.tokens) > 0),
        "pairs-for-all": lambda: Pairs(ids(grid.tokens, key_grid.tokens)[0] > 0),
        "pairs-of-queries": lambda: Pairs(ids(grid.tokens, 1) > 0),
        "joined": lambda: (
            Windows(sizes, shifts) & Causal() & Padding(ids(*key_grid.shape) > 0) & Windows(3 if axes == 1 else sizes)
        ),
    }[kind]()


KINDS = (
    "causal",
    "causal-first-axis",
    "causal-last-axis",
    "windows",
    "windows-shifted",
    "windows-huge",
    "padding-tokens",
    "padding-cells",
    "segments-tokens",
    "segments-cells",
    "pairs",
    "pairs-of-samples",
    "pairs-for-all",
    "pairs-of-queries",
    "joined",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", GRIDS)
def test_against_the_definition(where, kind):
    grid, key_grid = GRIDS[where]
    mask = made(kind, grid, key_grid)
    golden = truth.allowed(mask, grid, key_grid, batch=2, heads=2)
    found = mask.allowed(grid, key_grid).expand(2, 2, -1, -1)
    assert torch.equal(found, golden)
    again = mask.bound(grid, key_grid).allowed(grid, key_grid).expand(2, 2, -1, -1)
    assert torch.equal(again, golden), "binding a mask twice changes nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_tokens_say_the_same_as_the_whole(kind):
    """Kernels ask cell by cell: the answer for chosen tokens is that of the dense mask."""
    grid = Grid(3, 4, prefix=1)
    mask = made(kind, grid, grid).bound(grid, grid)
    rows, columns = torch.tensor([[0, 3, 5], [12, 1, 2]]), torch.tensor([[1, 0], [7, 12]])
    dense = mask.allowed(grid, grid).expand(2, 2, -1, -1)
    found = mask.pairs(grid.select(rows), grid.select(columns)).expand(2, 2, 2, 3, 2)
    for group in range(2):
        assert torch.equal(found[:, :, group], dense[:, :, rows[group]][..., columns[group]])


def swin_by_rolling(rows: int, columns: int, window: int, shift: int) -> tuple[list[list[int]], torch.Tensor]:
    """Swin's own construction, one cell at a time: labels of the rolled map, and which pixels may attend to which."""
    regions = [(0, rows - window), (rows - window, rows - shift), (rows - shift, rows)]
    across = [(0, columns - window), (columns - window, columns - shift), (columns - shift, columns)]
    labels, number = [[0] * columns for _ in range(rows)], 0
    for top, bottom in regions:
        for left, right in across:
            for y in range(top, bottom):
                for x in range(left, right):
                    labels[y][x] = number
            number += 1
    allowed = torch.zeros(rows * columns, rows * columns, dtype=torch.bool)
    for y, x, other_y, other_x in torch.cartesian_prod(*map(torch.arange, (rows, columns, rows, columns))).tolist():
        same_window = (y // window, x // window) == (other_y // window, other_x // window)
        unmasked = labels[y][x] == labels[other_y][other_x]
        query = (y + shift) % rows * columns + (x + shift) % columns  # the map was rolled by -shift
        key = (other_y + shift) % rows * columns + (other_x + shift) % columns
        allowed[query, key] = same_window and unmasked
    return labels, allowed


def test_swins_golden_labels():
    labels, _ = swin_by_rolling(4, 4, 2, 1)
    assert labels == [[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5], [6, 6, 7, 8]]
    big, _ = swin_by_rolling(14, 14, 7, 3)
    assert [row[0] for row in big] == [0] * 7 + [3] * 4 + [6] * 3
    assert big[0] == [0] * 7 + [1] * 4 + [2] * 3


@pytest.mark.parametrize(
    ("rows", "columns", "window", "shift"), [(4, 4, 2, 1), (14, 14, 7, 3), (6, 9, 3, 1), (8, 4, 4, 2)]
)
def test_windows_are_swins_roll_and_mask(rows, columns, window, shift):
    _, golden = swin_by_rolling(rows, columns, window, shift)
    found = Windows((window, window), shift=(shift, shift)).allowed(Grid(rows, columns))[0, 0]
    assert torch.equal(found, golden)


def test_swins_windows_of_4_by_4():
    """Window 0 of the rolled map holds one cell, windows 1 and 2 two each, window 3 four single pixels."""
    found = Windows((2, 2), shift=(1, 1)).allowed(Grid(4, 4))[0, 0]
    cell = {tuple(row.nonzero().flatten().tolist()) for row in found}
    assert cell == {(0,), (3,), (12,), (15,), (1, 2), (13, 14), (4, 8), (7, 11), (5, 6, 9, 10)}


def test_masks_combine_flat_and_describe_themselves():
    joined = (Causal() & Windows(3)) & (Padding(torch.ones(1, 4, dtype=torch.bool)) & Windows(2))
    assert [type(m).__name__ for m in joined.members()] == ["Causal", "Windows", "Padding", "Windows"]
    structure = Structure.of(joined)
    assert structure == Structure(causal=(Causal(),), windows=(Windows(3), Windows(2)), padding=True)
    assert structure.beyond_windows() == "causal and padding"
    assert Structure.of(None) == Structure()
    assert Structure.of(Windows(3)).beyond_windows() is None
    assert Windows((7, 7), shift=(10, -4)) == Windows((7, 7), shift=(3, 3))
    assert Windows(4) == Windows((4,), shift=(0,))


def test_cells_and_reach_by_hand():
    line = Grid(8)
    found = [(c.queries, c.keys) for c in cells((Windows(3, 1),), 0, line, line)]
    assert found == [((0, 1), (0, 1)), ((1, 4), (1, 4)), ((4, 7), (4, 7)), ((7, 8), (7, 8))]
    assert [(c.queries, c.keys) for c in cells((), 0, line, Grid(3))] == [((0, 8), (0, 3))]
    pooled = [(c.queries, c.keys) for c in cells((Windows(2),), 0, line, line.pooled(4))]
    assert pooled == [((0, 2), (0, 1)), ((2, 4), (0, 0)), ((4, 6), (1, 2)), ((6, 8), (0, 0))]
    assert reach(Grid(56, 56), Grid(56, 56), (Windows((7, 7), (3, 3)),)) == (6, 6)
    assert reach(Grid(5, 3), Grid(5, 3), ()) == (4, 2)
    assert reach(Grid(9)[8:], Grid(9), ()) == (8,)
    assert reach(Grid(4), Grid(4, origin=(10,)), ()) == (13,)
    assert reach(Grid(0), Grid(5), ()) == (0,)


LENGTHS = torch.tensor([5, 2])
KEPT = torch.arange(5) < LENGTHS[:, None]
BLOCK = torch.tensor([[True, True, False, True, False]] * 2 + [[False, True, True, True, True]] * 3)
PADDINGS = {
    "valid": Padding(KEPT),
    "from_lengths": Padding.from_lengths(LENGTHS, 5),
    "from_key_padding_mask": Padding.from_key_padding_mask(~KEPT),
    "from_attention_mask, int": Padding.from_attention_mask(KEPT.long()),
    "from_attention_mask, bool": Padding.from_attention_mask(KEPT),
    "from_attention_mask, float": Padding.from_attention_mask(KEPT.float()),
    "from_additive, BERT": Padding.from_additive(((1 - KEPT.float()) * -10000.0)[:, None, None]),
    "from_additive, -inf": Padding.from_additive(torch.zeros(2, 5).masked_fill(~KEPT, -torch.inf)),
    "from_additive, least": Padding.from_additive(torch.zeros(2, 5).masked_fill(~KEPT, torch.finfo(torch.float32).min)),
    "Pairs.from_kept": Pairs.from_kept(KEPT[:, None]),
    "Pairs.from_lengths": Pairs.from_lengths(LENGTHS[:, None].expand(2, 5), 5),
    "Segments": Segments(torch.zeros(2, 5, dtype=torch.int64), (~KEPT).long()),
}
PAIRS = {
    "allowed": Pairs(BLOCK),
    "from_kept, bool": Pairs.from_kept(BLOCK),
    "from_kept, 0/1": Pairs.from_kept(BLOCK.int()),
    "from_kept, batch and heads": Pairs.from_kept(BLOCK.float().expand(2, 2, 5, 5)),
    "from_blocked, bool": Pairs.from_blocked(~BLOCK),
    "from_blocked, TensorFlow's": Pairs.from_blocked((~BLOCK).float()),
    "from_additive, -inf": Pairs.from_additive(torch.zeros(5, 5).masked_fill(~BLOCK, -torch.inf)),
    "from_additive, -1e9": Pairs.from_additive((~BLOCK).double() * -1e9),
    "from_window_mask, Swin's": Pairs.from_window_mask((~BLOCK).float()[None] * -100.0, batch=2),
}


@pytest.mark.row(50)
@pytest.mark.parametrize(
    ("senses", "name"), [(s, n) for s in (PADDINGS, PAIRS) for n in s], ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_published_sense_gives_the_same_attention(senses, name):
    q, k, v = heads(Grid(5))
    first = next(iter(senses.values()))
    golden, _ = truth.attention(q, k, v, grid=Grid(5), mask=first)
    for kernel in ("auto", "reference"):
        torch.testing.assert_close(attention(q, k, v, mask=senses[name], kernel=kernel), golden, atol=1e-10, rtol=0)


# How each system writes down which of 12 keys are real, and who of 12 may see whom (True here = may take part).
KEYS = {
    "torch, DETR: True = ignore": (lambda kept: ~kept, Padding.from_key_padding_mask),
    "DETR, on a map": (lambda kept: ~kept.unflatten(1, (3, 4)), Padding.from_key_padding_mask),
    "transformers' pixel_mask, on a map": (lambda kept: kept.long().unflatten(1, (3, 4)), Padding.from_attention_mask),
    "BERT: 1 = keep": (lambda kept: kept.long(), Padding.from_attention_mask),
    "BERT, added": (lambda kept: ((1.0 - kept.float()) * -10000)[:, None, None], Padding.from_additive),
    "SDPA, one row for all": (lambda kept: kept[:, None, None], Pairs.from_kept),
}
WHO = {
    "SDPA: False = ignore": (lambda allowed: allowed[:, None], Pairs.from_kept),
    "SDPA, added": (lambda allowed: torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf), Pairs.from_additive),
    "plain Wq, Wk, Wv, fc: 0 = blocked": (lambda allowed: allowed.long()[:, None], Pairs.from_kept),
    "TensorFlow's tutorial: 1 = blocked": (lambda allowed: 1.0 - allowed.float()[:, None], Pairs.from_blocked),
    "Transformer-XL, queries × keys × batch": (
        lambda allowed: (~allowed).byte().permute(1, 2, 0),
        lambda mask: Pairs.from_blocked(mask.permute(2, 0, 1)),
    ),
    "XLNet, added as -1e30 · mask": (lambda allowed: (~allowed) * -1e30, Pairs.from_additive),
    "MultiheadAttention's attn_mask, by head": (
        lambda allowed: (~allowed).repeat_interleave(2, 0),
        lambda mask: Pairs.from_blocked(mask.unflatten(0, (2, 2))),
    ),
    "Swin, AIM: -100 in every window": (
        lambda allowed: (~allowed) * -100.0,
        lambda mask: Pairs.from_window_mask(mask, batch=1),
    ),
}


@pytest.mark.row(50)
@pytest.mark.parametrize("name", [*KEYS, *WHO])
def test_every_sense_comes_back_as_it_was(name, parity):
    """Written down as published and read again it is the same mask, and attention the same to the last bit; a row that
    may see nothing is 0 in all of them, whatever was published (uniform, NaN, as if there were no mask)."""
    grid = Grid(3, 4) if "map" in name else Grid(12)
    write, read = (KEYS | WHO)[name]
    draw = torch.Generator().manual_seed(7)
    q, k, v = torch.randn(3, 2, 2, 12, 4, dtype=torch.float64, generator=draw).unbind(0)
    for share in (0.9, 0.5, 0.1):
        allowed = torch.rand(2, *((12,) if name in KEYS else (12, 12)), generator=draw) < share
        allowed[1, ..., -3:] = False
        if name in WHO:
            allowed[0, 5] = False
        else:
            allowed[0] = share > 0.8
        mask, full = read(write(allowed)), allowed[:, None].expand(2, 12, 12) if name in KEYS else allowed
        assert torch.equal(mask.allowed(grid).expand(2, 2, -1, -1), full[:, None].expand(2, 2, 12, 12))
        ours = Padding(allowed) if isinstance(mask, Padding) else Pairs(full)
        for kernel in ("auto", "reference"):
            out = attention(q, k, v, grid=grid, mask=mask, kernel=kernel)
            expected = attention(q, k, v, grid=grid, mask=ours, kernel=kernel)
            parity(50, name, (out - expected).abs().max(), 0.0)
            empty = ~full.any(-1)
            assert bool(empty.any()) or share > 0.8
            assert not out.transpose(1, 2)[empty].any()


@pytest.mark.row(50)
def test_lengths_come_back_as_they_were():
    lengths, of_queries = torch.tensor([5, 0, 12]), torch.randint(0, 13, (3, 7))
    assert torch.equal(Padding.from_lengths(lengths, 12).valid.sum(1), lengths)
    pairs = Pairs.from_lengths(of_queries, 12).allowed_pairs
    assert torch.equal(pairs.sum(-1), of_queries)
    assert not (pairs[..., 1:] & ~pairs[..., :-1]).any(), "no key behind one that is hidden"


def test_window_masks_repeat_picture_by_picture():
    windows = torch.zeros(2, 3, 3)
    windows[1, 0, 2] = -100.0
    found = Pairs.from_window_mask(windows, batch=2).allowed_pairs
    assert found.shape == (4, 3, 3)
    assert found.logical_not().nonzero().tolist() == [[1, 0, 2], [3, 0, 2]]


def test_lengths_of_every_query():
    found = Pairs.from_lengths(torch.tensor([[0, 2], [3, 1]]), 3).allowed_pairs.int().tolist()
    assert found == [[[0, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 0, 0]]]


@pytest.mark.private
@pytest.mark.parametrize("kind", KINDS)
def test_round_trips(kind):
    """Through pytree, pickle and deepcopy, before and after binding."""
    grid = Grid(3, 4, prefix=1)
    golden = made(kind, grid, grid).allowed(grid)
    for mask in (made(kind, grid, grid), made(kind, grid, grid).bound(grid, grid)):
        leaves, structure = _pytree.tree_flatten(mask)
        assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
        rebuilt = _pytree.tree_unflatten(leaves, structure)
        for other in (rebuilt, pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask)):
            assert type(other) is type(mask)
            assert torch.equal(other.allowed(grid), golden)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Windows(7.0), ("size of at least 1", "size=(7.0,)", "Write Windows")),
        (lambda: Windows((7, 0)), ("size of at least 1", "(7, 0)", "Write Windows")),
        (lambda: Windows(()), ("size of at least 1", "size=()", "Write Windows")),
        (lambda: Windows((7, 7), shift=(3,)), ("a shift per axis", "shift=(3,)", "Write Windows")),
        (lambda: Windows(3).allowed(Grid(3, 3)), ("a size per axis", "got 1", "Give one number per axis")),
        (lambda: Causal(axis=2).allowed(Grid(3, 3)), ("an axis of the grid", "got 2", "Name one of those")),
        (lambda: Causal(axis=-1).allowed(Grid(3, 3)), ("an axis of the grid", "got -1", "Name one of those")),
        (lambda: Padding(torch.ones(2, 3)), ("bool tensor", "torch.float32", "from_attention_mask")),
        (lambda: Padding(torch.ones(3, dtype=torch.bool)), ("[batch, tokens]", "(3,)", "from_lengths")),
        (lambda: Padding.from_lengths(torch.tensor([2.5]), 4), ("whole numbers", "torch.float32", "lengths.long()")),
        (lambda: Padding.from_lengths(torch.tensor([-1]), 4), ("from 0 to 4", "such as -1", "Cut the lengths")),
        (lambda: Padding.from_lengths(torch.tensor([1, 99]), 4), ("from 0 to 4", "such as 99", "Cut the lengths")),
        (lambda: Padding.from_lengths(torch.tensor([[3]]), 4), ("one length per sample", "[1, 1]", "Pairs.from_len")),
        (lambda: Padding.from_lengths(torch.tensor([3]), 4.0), ("`tokens`", "got 4.0", "a plain int")),
        (lambda: Pairs.from_lengths(torch.arange(1, 7), 6), ("a length per query", "[6]", "Padding.from_lengths")),
        (lambda: Pairs.from_lengths(torch.tensor([[7]]), 6), ("from 0 to 6", "such as 7", "Cut the lengths")),
        (lambda: Pairs.from_additive(BLOCK), ("added to the logits", "a bool tensor", "Pairs.from_kept")),
        (lambda: Pairs.from_window_mask(torch.zeros(5, 5), 1), ("[windows, queries, keys]", "[5, 5]", "from_additive")),
        (lambda: Windows(True), ("whole numbers", "(True,)", "Write Windows")),
        (lambda: Causal("rows"), ("`axis` as a whole number", "'rows'", "Name an axis")),
        (lambda: Causal() | Windows(3), ("join by & alone", "a | b", "a.allowed(grid) | b.allowed(grid)")),
        (lambda: ~Causal(), ("join by & alone", "~a", "Pairs(~a.allowed(grid))")),
        (lambda: Causal() and Windows(3), ("join by & alone", "`and`", "a & b")),
        (lambda: Causal() & None, ("`b` as a Mask", "got None", "Make one")),
        (lambda: BLOCK & Causal(), ("`b` as a Mask", "a torch.bool tensor", "Pairs.from_kept(mask)")),
        (lambda: Padding(KEPT).allowed(Grid(4)), ("`valid` of shape [batch, 4]", "[2, 5]", "Lay it out")),
        (lambda: Padding.from_key_padding_mask(KEPT.long()), ("True = ignore", "torch.int64", "from_attention_mask")),
        (lambda: Padding.from_attention_mask(KEPT * 2), ("zeros and ones", "torch.int64", "from_additive")),
        (lambda: Padding.from_additive(KEPT * 0.5), ("zeros (free)", "0.5", "a bias, not a mask")),
        (
            lambda: Padding.from_additive(torch.zeros(2, 1, 5, 5)),
            ("[batch, 1, 1, tokens]", "[2, 1, 5, 5]", "Pairs.from_additive"),
        ),
        (lambda: Segments(torch.zeros(2, 5)), ("whole numbers", "torch.float32", "Number the segments")),
        (lambda: Segments(torch.zeros(5, dtype=torch.int64)), ("[batch, tokens]", "(5,)", "Number the segments")),
        (lambda: Segments(LENGTHS[:, None]).allowed(Grid(4)), ("`ids` of shape", "[2, 1]", "Lay it out")),
        (lambda: Segments(KEPT.long()).allowed(Grid(5), Grid(4)), ("`key_ids` of shape", "[2, 5]", "Lay it out")),
        (lambda: Pairs(torch.ones(3, 3)), ("bool tensor", "torch.float32", "from_kept")),
        (lambda: Pairs(torch.ones(3, dtype=torch.bool)), ("[queries, keys]", "(3,)", "from_kept")),
        (lambda: Pairs(BLOCK).allowed(Grid(4)), ("4 queries", "5 × 5", "Lay the mask out")),
        (lambda: Pairs.from_kept(torch.full((2, 2), 3)), ("zeros and ones", "torch.int64", "from_additive")),
        (lambda: Pairs.from_blocked(torch.full((2, 2), -1.0)), ("zeros and ones", "torch.float32", "from_additive")),
        (lambda: Pairs.from_additive(torch.full((2, 2), -3.0)), ("-100 or less", "-3", "a bias, not a mask")),
        (lambda: Pairs.from_additive(torch.full((2, 2), torch.nan)), ("-100 or less", "nan", "a bias, not a mask")),
    ],
)
def test_errors_have_three_parts(make, parts):
    with pytest.raises(ValueError, match=".") as caught:
        make()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_masks_print_what_they_are() -> None:
    """Those of integers as they were written, those of tensors by their sizes."""
    padding = Padding(torch.ones(2, 5, dtype=torch.bool))
    mask = Causal() & Windows((2, 3), shift=(1, 0)) & padding & Segments(torch.zeros(2, 5, dtype=torch.int64))
    assert repr(mask) == (
        "Causal(axis=None) & Windows(size=(2, 3), shift=(1, 0)) & Padding(valid=[2, 5]) & "
        "Segments(ids=[2, 5], key_ids=[2, 5])"
    )
