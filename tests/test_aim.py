"""AIM (arXiv 2302.03024): spatial and temporal attention of one module, by two windows on one clip."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from locant import Grid, RelativeTable, Windows
from locant.nn import Attention

T, H, W, SIDE, HEADS, WIDTH = 4, 6, 4, 2, 2, 3
DIM = HEADS * WIDTH
CLIP = Grid(T, H, W)


def published(module: Attention, groups: Tensor, flat_table: Tensor, index: Tensor) -> Tensor:
    """AIM's forward on regrouped tokens [groups, N, C]: scale q, q kᵀ, bias by index, softmax, v, project."""
    count, n, _ = groups.shape
    qkv = groups @ module.qkv.weight.T + module.qkv.bias
    out = torch.zeros_like(groups)
    for g in range(count):
        for h in range(HEADS):
            q, k, v = (qkv[g, :, part * DIM + h * WIDTH : part * DIM + (h + 1) * WIDTH] for part in range(3))
            s = (q * WIDTH**-0.5) @ k.T
            for i in range(n):
                for j in range(n):
                    s[i, j] = s[i, j] + flat_table[index[i, j], h]
            out[g, :, h * WIDTH : (h + 1) * WIDTH] = torch.softmax(s, -1) @ v
    return out @ module.proj.weight.T + module.proj.bias


def temporal_index(frames: int) -> Tensor:
    return torch.tensor([[i - j + frames - 1 for j in range(frames)] for i in range(frames)])


def spatial_index(rows: int, columns: int) -> Tensor:
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    return torch.tensor(
        [[(a - c + rows - 1) * (2 * columns - 1) + b - d + columns - 1 for c, d in cells] for a, b in cells]
    )


@pytest.fixture
def module() -> Attention:
    return Attention(DIM, HEADS, grid=CLIP).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, CLIP.tokens, DIM, dtype=torch.float64)


@pytest.mark.row(1)
def test_golden_index_of_four_frames() -> None:
    golden = torch.tensor([[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]])
    table = RelativeTable(Grid(4), 1)
    with torch.no_grad():
        table.table.copy_(torch.arange(7.0))
        assert torch.equal(table(Grid(4))[0], golden.float())
        # the same through a clip: pairs of one place under Windows((T, 1, 1))
        clip = RelativeTable(Grid(4, 1, 1), 1)
        clip.table.copy_(torch.arange(7.0).reshape(7, 1, 1))
        place = torch.arange(0, 24, 6)
        assert torch.equal(clip(Grid(4, 2, 3), mask=Windows((4, 1, 1)))[0][place][:, place], golden.float())


@pytest.mark.row(2)
def test_golden_index_of_windows() -> None:
    assert spatial_index(2, 2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert spatial_index(2, 3)[[0, -1]].tolist() == [[7, 6, 5, 2, 1, 0], [14, 13, 12, 9, 8, 7]]
    for rows, columns in ((2, 2), (2, 3), (3, 2), (7, 7)):
        table = RelativeTable(Grid(rows, columns), 1)
        with torch.no_grad():
            table.table.copy_(torch.arange(table.table.numel()).reshape(table.table.shape))
            assert torch.equal(table(Grid(rows, columns))[0].long(), spatial_index(rows, columns))


@pytest.mark.row(3)
@pytest.mark.row(4)
@pytest.mark.row(5)
def test_both_paths_share_one_module(module: Attention, x: Tensor, parity: Callable[..., None]) -> None:
    spatial = RelativeTable(Grid(1, SIDE, SIDE), HEADS, init_std=1.0).double()
    temporal = RelativeTable(Grid(T, 1, 1), HEADS, init_std=1.0).double()
    after_space = module(x, position=spatial, mask=Windows((1, SIDE, SIDE)))
    after_time = module(after_space, position=temporal, mask=Windows((T, 1, 1)))

    clip = x.reshape(2, T, H // SIDE, SIDE, W // SIDE, SIDE, DIM)
    groups = clip.permute(0, 1, 2, 4, 3, 5, 6).reshape(-1, SIDE * SIDE, DIM)  # windows row-major, cells row-major
    out = published(module, groups, spatial.table.flatten(1).T, spatial_index(SIDE, SIDE))
    out = out.reshape(2, T, H // SIDE, W // SIDE, SIDE, SIDE, DIM).permute(0, 1, 2, 4, 3, 5, 6)
    error = float((after_space - out.reshape(2, -1, DIM)).detach().abs().max())
    parity(3, "double loop over pairs, on regrouped tokens", error, 1e-10)

    groups = after_space.reshape(2, T, H * W, DIM).transpose(1, 2).reshape(-1, T, DIM)
    out = published(module, groups, temporal.table.flatten(1).T, temporal_index(T))
    out = out.reshape(2, H * W, T, DIM).transpose(1, 2).reshape(2, -1, DIM)
    error = float((after_time - out).detach().abs().max())
    parity(4, "double loop over pairs, on regrouped tokens", error, 1e-10)

    assert set(module.state_dict()) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    after_time.square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in (*module.parameters(), spatial.table, temporal.table))


@pytest.mark.row(1)
@pytest.mark.row(4)
def test_the_direction_of_time_is_query_minus_key(module: Attention, x: Tensor) -> None:
    """Row T-1+d of the table holds keys d frames earlier: with one row high, a frame copies the frame before it."""
    temporal = RelativeTable(Grid(T, 1, 1), HEADS, init_std=0.0).double()
    with torch.no_grad():
        temporal.table[:, T] = 1e4
    out = module(x, position=temporal, mask=Windows((T, 1, 1)))
    v = x @ module.qkv.weight[2 * DIM :].T + module.qkv.bias[2 * DIM :]
    frames = module.proj(v).unflatten(1, (T, H * W))
    assert float((out.unflatten(1, (T, H * W))[:, 1:] - frames[:, :-1]).detach().abs().max()) <= 1e-10


@pytest.mark.row(51)
def test_laws_of_the_temporal_table(module: Attention, x: Tensor) -> None:
    temporal = RelativeTable(Grid(T, 1, 1), HEADS, init_std=1.0).double()
    windows = Windows((T, 1, 1))
    out = module(x, position=temporal, mask=windows)
    later = Grid(T, H, W, origin=(2 * T, 0, 0))  # all frames moved by two windows
    assert torch.equal(module(x, grid=later, position=temporal, mask=windows), out)
    with torch.no_grad():
        temporal.table += torch.randn(HEADS, 1, 1, 1)  # a constant per head cancels in the softmax
    assert float((module(x, position=temporal, mask=windows) - out).detach().abs().max()) <= 1e-10


@pytest.mark.row(4)
def test_zero_tables_agree_between_space_and_time(module: Attention) -> None:
    zero_space = RelativeTable(Grid(1, 2, 2), HEADS, init_std=0.0).double()
    zero_time = RelativeTable(Grid(4, 1, 1), HEADS, init_std=0.0).double()
    x = torch.randn(2, 4, DIM, dtype=torch.float64)
    a = module(x, grid=Grid(1, 2, 2), position=zero_space, mask=Windows((1, 2, 2)))
    b = module(x, grid=Grid(4, 1, 1), position=zero_time, mask=Windows((4, 1, 1)))
    assert float((a - b).detach().abs().max()) <= 1e-10


@pytest.mark.row(4)
@pytest.mark.row(5)
def test_a_clip_that_is_too_long_names_resized(module: Attention) -> None:
    """The published block folds frames by the number it was built with, and mixes clips in silence."""
    temporal = RelativeTable(Grid(T, 1, 1), HEADS).double()
    longer = Grid(T + 2, H, W)
    x = torch.randn(1, longer.tokens, DIM, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"resized\(Grid\(6, 1, 1\)\)"):
        module(x, grid=longer, position=temporal, mask=Windows((T + 2, 1, 1)))
