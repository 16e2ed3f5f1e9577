"""What Swin's windows, shifts and tables are, entry by entry: the published goldens, and what the texts got wrong."""

from __future__ import annotations

import itertools

import pytest
import torch

from locant import Grid, RelativeTable, Windows
from locant.models.swin import Swin
from locant.nn import WindowAttention
from locant.nn.window import _merged, _partitioned, _regions


@pytest.mark.row(2)
@pytest.mark.parametrize(
    ("window", "rows"),
    [
        ((2, 2), {0: [4, 3, 1, 0], 1: [5, 4, 2, 1], 2: [7, 6, 4, 3], 3: [8, 7, 5, 4]}),
        ((2, 3), {0: [7, 6, 5, 2, 1, 0], -1: [14, 13, 12, 9, 8, 7]}),
        ((7, 7), {0: [84, 83, 82, 81, 80, 79, 78, 71]}),
    ],
)
def test_golden_entries_of_a_table(window: tuple[int, int], rows: dict[int, list[int]]) -> None:
    """Which entry of the flat table a pair reads: query - key, row-major, a row being 2 Ww - 1 long."""
    table = RelativeTable(Grid(*window), 1)
    count = table.table.numel()
    with torch.no_grad():
        table.table.copy_(torch.arange(count).reshape(table.table.shape))
    index = table(Grid(*window))[0].long()
    for row, golden in rows.items():
        assert index[row, : len(golden)].tolist() == golden
    assert bool((index + index.T == count - 1).all())
    if window == (7, 7):
        assert index[:, 0].tolist()[:8] == [84, 85, 86, 87, 88, 89, 90, 97]
        assert sorted(set(index.flatten().tolist())) == list(range(169))


@pytest.mark.row(9)
@pytest.mark.parametrize(("sizes", "window"), [((4, 6), (2, 3)), ((14, 7), (7, 7)), ((3, 5), (1, 5))])
def test_windows_hold_these_tokens_and_come_back(sizes: tuple[int, int], window: tuple[int, int]) -> None:
    index = torch.arange(2.0 * sizes[0] * sizes[1]).reshape(2, *sizes, 1)
    cut = _partitioned(index, window)
    corners = itertools.product(range(2), range(0, sizes[0], window[0]), range(0, sizes[1], window[1]))
    for n, (b, top, left) in enumerate(corners):
        rows = [(b * sizes[0] + top + r) * sizes[1] + left + c for r in range(window[0]) for c in range(window[1])]
        assert cut[n].flatten().tolist() == rows
    assert torch.equal(_merged(cut, 2, window, sizes), index)


@pytest.mark.row(10)
@pytest.mark.parametrize(("sizes", "window", "shift"), [((4, 4), 2, 1), ((14, 14), 7, 3), ((8, 12), 4, 2)])
def test_a_partition_of_the_plain_map_is_the_mask_of_the_rolled_one(
    sizes: tuple[int, int], window: int, shift: int
) -> None:
    """Swin's nine regions: pairs of one region in one window of the rolled map are those of one cell of the plain."""
    regions = _regions(sizes, (window, window), (shift, shift), torch.device("cpu"))
    if sizes == (4, 4):
        assert regions.tolist() == [[0, 0, 0, 0], [1, 2, 1, 2], [3, 3, 6, 6], [4, 5, 7, 8]]
    places = torch.arange(sizes[0] * sizes[1]).reshape(1, *sizes, 1).roll((-shift, -shift), (1, 2))
    order = _partitioned(places, (window, window))[..., 0]
    cells = Windows((window, window), shift=(shift, shift)).allowed(Grid(*sizes))[0, 0]
    seen = torch.zeros_like(cells)
    for members, labels in zip(order, regions, strict=True):
        seen[members[:, None], members] = labels[:, None] == labels
    assert torch.equal(seen, cells)


@pytest.mark.row(56)
def test_the_shifted_window_hides_no_future() -> None:
    """It parts opposite borders that a roll had brought together: who sees is seen, and later ones are among them."""
    cells = Windows((2, 2), shift=(1, 1)).allowed(Grid(4, 4))[0, 0]
    assert torch.equal(cells, cells.T)
    assert bool(cells.triu(1).any())
    module = WindowAttention(8, 2, (2, 2), shift=1)
    x = torch.randn(1, 16, 8, requires_grad=True)
    (reach,) = torch.autograd.grad(module(x, grid=Grid(4, 4))[0, 5].sum(), x)
    assert reach[0].abs().amax(-1).nonzero().flatten().tolist() == [5, 6, 9, 10]


@pytest.mark.row(56)
def test_the_table_is_learned_and_only_its_index_is_fixed() -> None:
    model = Swin(dim=8, depths=(2,), heads=(2,), window=4, num_classes=3)
    table = model.layers[0].blocks[1].attention.position.table
    torch.nn.init.normal_(model.head.weight)
    (gradient,) = torch.autograd.grad(model(torch.randn(2, 3, 32, 32)).square().sum(), table)
    assert table.requires_grad
    assert bool((gradient != 0).all())


@pytest.mark.row(11)
@pytest.mark.parametrize("shape", [(9, 9), (10, 13)])
def test_cells_are_filled_maps_whose_zeros_nobody_sees(shape: tuple[int, int]) -> None:
    """Filling and then rolling, with the keys that were filled in masked, by loops."""
    dim, heads, side, shift = 4, 1, 7, 3
    module = WindowAttention(dim, heads, (side, side), shift=shift).double()
    torch.nn.init.normal_(module.position.table)
    x = torch.randn(1, shape[0] * shape[1], dim, dtype=torch.float64)
    q, k, v = (x[0] @ module.qkv.weight.T + module.qkv.bias).chunk(3, dim=-1)
    tall, wide = (-(-n // side) * side for n in shape)
    out = torch.zeros_like(x[0])

    def where(r: int, c: int) -> tuple[tuple[int, int], tuple[bool, bool]]:
        """The window of a place of the filled map, once it is rolled, and whether the roll wrapped it."""
        a, b = (r - shift) % tall, (c - shift) % wide
        return (a // side, b // side), (r < shift, c < shift)

    places = list(itertools.product(*map(range, shape)))
    for i, (r, c) in enumerate(places):
        seen = [j for j, place in enumerate(places) if where(*place) == where(r, c)]
        logits = []
        for j in seen:
            offset = (r - places[j][0] + side - 1, c - places[j][1] + side - 1)
            logits.append(q[i] @ k[j] / 2 + module.position.table[(0, *offset)])
        out[i] = torch.softmax(torch.stack(logits), 0) @ v[seen]
    assert float((module(x, grid=Grid(*shape))[0] - module.proj(out)).detach().abs().max()) <= 1e-10
