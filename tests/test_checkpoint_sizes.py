"""Tables and embeddings that a checkpoint has for other windows, pictures and clips."""

from __future__ import annotations

import published
import pytest
import torch
from redrawing import refill
from small import convit, same, swin
from torch import nn

from locant import Grid, Learned, RelativeTable
from locant.checkpoints import export, load, resize
from locant.checkpoints.families import OWN
from locant.checkpoints.report import Resized
from locant.positions.decomposed import Decomposed
from locant.positions.learned_axes import LearnedAxial
from locant.resizing import resize_embedding, resize_table


@pytest.mark.row(8)
@pytest.mark.row(16)
def test_tables_of_another_window_are_resized_by_the_layouts_own_method():
    state = published.swin(window=7)
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    old = state[name].T.reshape(4, 13, 13)
    for method, wanted in ((None, "bicubic"), ("geometric", "geometric"), ("linear", "linear")):
        model = swin(window=8, img_size=64)
        report = load(model, state, method=method)
        table = model.layers[1].blocks[0].attention.position.table
        assert torch.equal(table, resize_table(old, (15, 15), wanted))
        assert Resized("layers.1.blocks.0.attention.position.table", (13, 13), (15, 15), wanted) in report.resized
        assert len(report.resized) == 3


@pytest.mark.row(8)
def test_there_and_back_by_an_exact_method_and_a_linear_table():
    small, large = refill(swin(window=4)), swin(window=7, img_size=56)
    load(large, small.state_dict(), method="linear")
    again = swin(window=4)
    report = load(again, large.state_dict(), method="linear")
    assert len(report.resized) == 3
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-6, rtol=0)
    slope = torch.linspace(-1, 1, 7)[:, None] - 2 * torch.linspace(-1, 1, 7)
    state = {n: slope.expand_as(t).clone() if n.endswith("table") else t for n, t in small.state_dict().items()}
    wanted = torch.linspace(-1, 1, 13)[:, None] - 2 * torch.linspace(-1, 1, 13)
    resized = resize(state, large)
    for name in (n for n in state if n.endswith("table")):
        torch.testing.assert_close(resized[name], wanted.expand_as(resized[name]), atol=1e-6, rtol=0)
    assert same(
        {n: t for n, t in resized.items() if "table" not in n}, {n: t for n, t in state.items() if "table" not in n}
    )


class Holder(nn.Module):
    """A module with nothing but positions."""

    def __init__(self, **positions: nn.Module) -> None:
        super().__init__()
        for name, position in positions.items():
            self.add_module(name, position)


def positions(scale: int) -> Holder:
    """In one, two and three dimensions, rectangles, with prefix rows."""
    n = scale
    return Holder(
        time=RelativeTable(Grid(3 * n), 2), picture=RelativeTable(Grid(2 * n, 3 * n, prefix=1), 2),
        clip=RelativeTable(Grid(n, 2 * n, 3 * n), 2), frames=RelativeTable(Grid(2 * n, 1, 1), 2),
        line=Learned(Grid(3 * n, prefix=2), 4), cells=Learned(Grid(2 * n, 3 * n, prefix=1), 4),
        film=Learned(Grid(n, 2, n), 4, axes=(0, 2)), axial=LearnedAxial(Grid(2 * n, 3 * n), 4),
        decomposed=Decomposed(Grid(2 * n, 3 * n), 2, 4),
    )  # fmt: skip


@pytest.mark.row(8)
@pytest.mark.parametrize("method", ["linear", "clip", "bilinear", "bicubic", "antialiased", "geometric"])
def test_every_position_goes_from_grid_to_grid(method):
    """As `resized` of each does it; prefix rows stay as they are."""
    old, new = refill(positions(2)), positions(3)
    state = old.state_dict()
    report = load(new, state, layout=OWN, method=method, grid=(4, 6))
    assert len(report.resized) == 11
    for name, module in old.named_children():
        by = "linear" if method == "geometric" and isinstance(module, Learned | LearnedAxial) else method
        wanted = module.resized(getattr(new, name).grid, method=by)
        assert same(getattr(new, name).state_dict(), wanted.state_dict()), name
    assert torch.equal(new.picture.both, old.picture.both)
    assert torch.equal(new.cells.prefix, old.cells.prefix)


def test_sides_that_are_in_doubt_are_asked_for():
    """A square is taken for one where the model is square or cannot be meant; else it must be said."""
    rows = torch.randn(1, 16, 16)
    state = published.convit() | {"pos_embed": rows}
    model = convit(img_size=(32, 64))
    load(model, state)  # 16 rows are not 4 × 8
    assert torch.equal(model.pos_embed.table, resize_embedding(rows[0], (4, 4), (4, 8), "bicubic"))
    model = convit(img_size=(16, 64))  # 2 × 8 are 16 as well
    with pytest.raises(ValueError, match=r"16 entries are 2 × 8 or 4 × 4; got .* Say which: grid="):
        load(model, state)
    load(model, state, grid=(4, 4))
    assert torch.equal(model.pos_embed.table, resize_embedding(rows[0], (4, 4), (2, 8), "bicubic"))
    load(model, state, grid=(2, 8))
    assert torch.equal(model.pos_embed.table, rows[0])
    assert load(convit(img_size=(16, 64)), model.state_dict()).exact, "our own files are of the model they are read for"


def test_windows_that_are_not_square():
    model = refill(swin(window=(2, 3), img_size=48))
    state = export(model, "official")
    assert load(swin(window=(2, 3), img_size=48), state).exact
    with pytest.raises(ValueError, match=r"needs \(2 H - 1\)\(2 W - 1\) entries.* got 15.* window=\(H, W\)"):
        load(swin(window=4), state)
    other = swin(window=4)
    load(other, state, window=(2, 3), method="linear")
    wanted = model.layers[0].blocks[0].attention.position.resized(Grid(4, 4))
    assert torch.equal(other.layers[0].blocks[0].attention.position.table, wanted.table)


def test_resize_keeps_what_cannot_be_resized_and_says_unknown_methods():
    old, new = refill(swin()).state_dict(), swin(window=6, img_size=48)
    assert resize(old, new)["head.weight"] is old["head.weight"]
    with pytest.raises(ValueError, match=r"needs a method out of 'linear'.*got 'cubic'.*Use"):
        resize(old, new, method="cubic")
