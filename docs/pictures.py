"""The pictures of these pages, drawn from the library itself: `python docs/pictures.py [folder]`.

Every number in a picture comes from Locant; only the tables "as it might be learned" are written down here. The same
versions give the same files. Colours are those of Okabe and Ito and mixtures of two of them, told apart by everyone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from sheet import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    RISING,
    ROWS,
    SEEN,
    SIGNED,
    SKY,
    SOFT,
    TILES,
    bare,
    card,
    frames,
    lines,
    outline,
    tiles,
    words,
)
from source_pictures import SOURCES
from torch import Tensor

from locant import ALiBi, Causal, GatedPosition, Grid, Learned, MaskedSine, RelativeTable, Rotary, Sinusoid, Windows
from locant.maps import position_map, query_row
from locant.masks import Mask, Padding, Segments
from locant.resizing import resize_table

IMAGE, QUERY = Grid(14, 14), (5, 4)
CLIP, CLIP_QUERY = Grid(4, 10, 10), (1, 4, 3)
PICTURES: dict[str, Callable[[], Figure]] = {**SOURCES}


def picture(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    PICTURES[draw.__name__.replace("_", "-")] = draw
    return draw


# --- what the schemes say ----------------------------------------------------------------------------------------


def learned_table() -> RelativeTable:
    """A table as it might be learned: near keys, and most of all those one or two cells to the left."""
    table = RelativeTable(IMAGE, heads=1, init_std=0.0)
    y, x = torch.meshgrid(torch.arange(-13.0, 14), torch.arange(-13.0, 14), indexing="ij")
    left = 2.6 * torch.exp(-((x - 2) ** 2) / 3 - y**2 / 1.5) - 1.1 * torch.exp(-((x + 3) ** 2 + y**2) / 8)
    with torch.no_grad():
        table.table.copy_((left - 0.5 * (1 - torch.exp(-(x**2 + y**2) / 60)))[None])
    return table


def seen(mask: Mask, grid: Grid, query: tuple[int, ...]) -> Tensor:
    return query_row(mask.allowed(grid)[0, 0].float(), grid, query)


# --- the pictures ------------------------------------------------------------------------------------------------


@picture
def schemes() -> Figure:
    fig = card(2.45)
    axes = fig.subplots(1, 6)
    codes, waves, cells = Sinusoid(64, base=100.0), Rotary(64, axes=2, base=100.0), Windows((7, 7), (3, 3))
    shown: tuple[tuple[str, str, Tensor, Colormap, object], ...] = (
        ("embed", "Sinusoid:\nhow alike two codes are", position_map(codes, IMAGE)[0], RISING, (0.0, 1.0)),
        ("rotate", "Rotary:\nhow far k turns from q", position_map(waves, IMAGE)[0], RISING, (0.0, 1.0)),
        ("bias", "RelativeTable:\nany pattern of offsets", learned_table()(IMAGE)[0], SIGNED, 2.6),
        ("bias", "ALiBi: a penalty\nfor distance", ALiBi(4, distance="euclidean")(IMAGE)[0], SIGNED, 4.5),
        ("gate", "GatedPosition:\na map of its own", position_map(GatedPosition(9), IMAGE)[3], RISING, (0.0, 0.32)),
        ("mask", "Windows((7, 7),\nshift=(3, 3))", cells.allowed(IMAGE)[0, 0].float(), SEEN, (0.0, 1.0)),
    )  # fmt: skip
    for ax, (title, below, matrix, colours, span) in zip(axes, shown, strict=True):
        tiles(ax, query_row(matrix, IMAGE, QUERY), colours, span, QUERY)  # type: ignore[arg-type]
        words(ax, title, below)
    return fig


@picture
def learned() -> Figure:
    fig = card(1.95)
    spec = fig.add_gridspec(1, 3, width_ratios=(1, 3.7, 3.7))
    shown = ((Grid(6, 6), None, "36 rows"),
             (Grid(4, 6, 6), (1, 2), "36 rows: every frame reads the same ones"),
             (Grid(4, 6, 6), (0,), "4 rows: one per frame"))  # fmt: skip
    for place, (grid, axis, below) in zip(spec, shown, strict=True):
        scheme = Learned(grid, 1, axes=axis, init_std=0.0)
        count = float(len(scheme.table))
        with torch.no_grad():
            scheme.table.copy_(torch.arange(count)[:, None])
        rows = scheme(grid).reshape(grid.shape)
        title = f"{grid}" if axis is None else f"{grid}, axes={axis}"
        if grid.axes == 3:
            frames(fig, place, rows, ROWS, (0.0, count - 1), title, below, None)
        else:
            part = fig.add_subfigure(place, facecolor="none")
            part.suptitle(title, x=0.06, ha="left", fontsize=10, fontweight="bold", color=INK)
            part.supxlabel(below, x=0.06, ha="left", fontsize=8.5, color=SOFT)
            ax = part.subplots()
            tiles(ax, rows, ROWS, (0.0, count - 1))
            ax.set_title(" ", fontsize=8, pad=3)
    return fig


@picture
def sinusoid() -> Figure:
    fig = card(5.6)
    upper, lower = fig.add_gridspec(2, 1, height_ratios=(1, 1.05))
    axes = fig.add_subfigure(upper, facecolor="none").subplots(1, 3, width_ratios=(1.5, 1.3, 1))
    code = Sinusoid(32)(Grid(48)).T
    axes[0].imshow(code.numpy(), cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="none")
    bare(axes[0])
    words(axes[0], "The code of 48 tokens", "token →, channel ↓: sine and cosine in turn, ever slower")
    for query, colour in ((12, BLUE), (30, ORANGE)):
        axes[1].plot(position_map(Sinusoid(32), Grid(48))[0][query].numpy(), color=colour, linewidth=2)
        axes[1].axvline(query, color=colour, linewidth=0.8, linestyle=(0, (2, 2)))
    lines(axes[1], (0, 0.5, 1))
    axes[1].set_xticks([12, 30])
    words(axes[1], "Likeness to tokens 12 and 30", "one curve, moved: only the distance counts")
    tiles(axes[2], query_row(position_map(Sinusoid(64), IMAGE)[0], IMAGE, QUERY), RISING, (0.3, 1.0), QUERY)
    words(axes[2], "On an image", "half of the channels per axis: a cross")
    values = query_row(position_map(Sinusoid(96), CLIP)[0], CLIP, CLIP_QUERY)
    title, below = "On a clip: likeness to one cell of frame 1", "a third of the channels per axis"
    frames(fig, lower, values, RISING, (0.6, 1.0), title, below, CLIP_QUERY)
    return fig


@picture
def masked_sine() -> Figure:
    fig = card(2.7)
    axes = fig.subplots(1, 5)
    valid = torch.zeros(4, 4, dtype=torch.bool)
    valid[:3, :3] = True
    tiles(axes[0], valid.float(), ListedColormap(["#ece8de", SKY]), (0.0, 1.0))
    words(axes[0], "A batch is padded", "3 × 3 real cells of 4 × 4")
    rows, columns = valid.cumsum(0).float(), valid.cumsum(1).float()
    tiles(axes[1], rows, RISING, (0.0, 3.0), numbers=".0f")
    words(axes[1], "Rows counted", "real cells so far, from 1")
    tiles(axes[2], columns, RISING, (0.0, 3.0), numbers=".0f")
    words(axes[2], "Columns counted", "below the picture: 0")
    scaled = rows / (rows[-1:] + 1e-6) * 2 * torch.pi
    tiles(axes[3], scaled, RISING, (0.0, 6.3), numbers=".2f", size=8)
    words(axes[3], "Normalised", "every picture spans 0 to 2π")
    code = MaskedSine(8, normalize=False).encode(valid)
    tiles(axes[4], code[..., 0], SIGNED, 1.0, numbers=".2f", size=8)
    words(axes[4], "First channel", "sin of the row count")
    return fig


@picture
def relative_table() -> Figure:
    fig = card(6.3)
    upper, lower = fig.add_gridspec(2, 1, height_ratios=(1, 0.86))
    axes = fig.add_subfigure(upper, facecolor="none").subplots(1, 3)
    table, window = learned_table().resized(Grid(7, 7)), Grid(7, 7)
    tiles(axes[0], table.table[0], SIGNED, 2.6, (6, 6))
    outline(axes[0], (1, 2), (7, 7), GREEN)
    below = "query − key, the zero offset outlined;\ngreen: what the query (1, 2) reads"
    words(axes[0], "The table: 13 × 13 offsets", below)
    tiles(axes[1], query_row(table(window)[0], window, (1, 2)), SIGNED, 2.6, (1, 2))
    outline(axes[1], (0, 0), (7, 7), GREEN)
    words(axes[1], "The bias of query (1, 2)", "the green part, turned by half a turn:\nkey = query − offset")
    time = RelativeTable(Grid(4), heads=1)
    with torch.no_grad():
        time.table.copy_(torch.arange(7.0)[None])
    tiles(axes[2], time(Grid(4))[0], ROWS, (0, 6), numbers=".0f", size=11)
    words(axes[2], "In time: Grid(4)", "which of 7 entries a pair reads: query ↓,\nkey →; entry 3 is the same frame")
    video = RelativeTable(CLIP, heads=1, init_std=0.0)
    t, y, x = torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-9.0, 10), torch.arange(-9.0, 10), indexing="ij")
    with torch.no_grad():
        video.table.copy_((2 * torch.exp(-((y - t) ** 2 + (x - 2 * t) ** 2) / 4 - (t - 1) ** 2 / 6))[None])
    values = query_row(video(CLIP)[0], CLIP, CLIP_QUERY)
    title = "In a clip: Grid(4, 10, 10), one table over time, row and column"
    below = "as it might be learned: it follows what moves down and to the right"
    frames(fig, lower, values, RISING, (0.0, 2.0), title, below, CLIP_QUERY)
    return fig


@picture
def resizing() -> Figure:
    fig = card(2.85)
    axes = fig.subplots(1, 4)
    table = learned_table().resized(Grid(7, 7)).table
    for ax, name, values in (
        (axes[0], "13 × 13, as trained", table),
        (axes[1], "27 × 27, linear", resize_table(table, (27, 27))),
        (axes[2], "27 × 27, bicubic", resize_table(table, (27, 27), "bicubic")),
    ):
        tiles(ax, values[0], SIGNED, 2.6, (values.shape[1] // 2,) * 2)
        words(ax, name, "the centre stays the centre" if "linear" in name else "")
    for sizes, method, colour in (((13, 13), "linear", INK), ((27, 27), "linear", BLUE), ((27, 27), "bicubic", ORANGE)):
        line = resize_table(table, sizes, method)[0, sizes[0] // 2]
        place = torch.linspace(-1, 1, len(line)).numpy()
        axes[3].plot(place, line.detach().numpy(), color=colour, linewidth=1.6, marker="o", markersize=2.5)
    lines(axes[3], (0, 1, 2))
    axes[3].set_xticks([-1, 0, 1], ["−6", "0", "6"])
    words(axes[3], "Its middle row", "black: trained; blue: linear;\norange: bicubic")
    return fig


@picture
def alibi() -> Figure:
    fig = card(2.95)
    axes = fig.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    bias = ALiBi(8)(Grid(33))
    for head in range(8):
        colour = SIGNED(0.02 + 0.13 * head if head < 4 else 0.55 + 0.06 * head)
        axes[0].plot(range(-16, 17), bias[head, 16].numpy(), color=colour, linewidth=1.6)
    axes[0].set_ylim(-8.4, 0.4)
    lines(axes[0], (-8, -4, 0))
    words(axes[0], "Eight heads, eight slopes", "bias by key − query: blue heads look near, orange far")
    for ax, distance in ((axes[1], "euclidean"), (axes[2], "manhattan")):
        values = query_row(ALiBi(4, distance=distance)(IMAGE)[1], IMAGE, QUERY)  # type: ignore[arg-type]
        tiles(ax, values, SIGNED, 1.1, QUERY)
        words(ax, distance.capitalize(), "on an image, head 1")
    causal = ALiBi(8)(Grid(14))[0].masked_fill(~Causal().allowed(Grid(14))[0, 0], torch.nan)
    tiles(axes[3], causal, SIGNED, 7.0)
    words(axes[3], "As published", "with Causal: query ↓, key →")
    return fig


@picture
def mirror() -> Figure:
    fig = card(2.85)
    axes = fig.subplots(1, 4)
    square, centre = Grid(13, 13), (6, 6)
    table, alibi = learned_table()(square)[0], ALiBi(4, distance="euclidean")(square)[1]
    for place, name, matrix, span in ((0, "ALiBi", alibi, 0.6), (2, "RelativeTable", table, 2.6)):
        values = query_row(matrix, square, centre)
        said = "the same: it cannot tell left from right" if torch.equal(values, values.flip(1)) else "another: it can"
        tiles(axes[place], values, SIGNED, span, centre)
        words(axes[place], name, "the bias of the centre")
        tiles(axes[place + 1], values.flip(1), SIGNED, span, centre)
        words(axes[place + 1], "… in a mirror", said)
    return fig


@picture
def rotary() -> Figure:
    fig = card(5.6)
    upper, lower = fig.add_gridspec(2, 1, height_ratios=(1, 1.05))
    axes = fig.add_subfigure(upper, facecolor="none").subplots(1, 3, width_ratios=(1.3, 1.3, 1))
    offsets = torch.arange(-24, 25)
    for i, colour in ((0, "#e6a36a"), (2, GREEN), (4, BLUE), (6, INK)):
        fine = torch.arange(-24, 24.05, 0.1)
        axes[0].plot(fine, torch.cos(fine * 10000.0 ** (-i / 16)).numpy(), color=colour, linewidth=1.6)
    lines(axes[0], (-1, 0, 1))
    words(axes[0], "Pairs 0, 2, 4 and 6 of 16", "cosine of the angle between q and k, by key − query")
    for base, colour in ((10000.0, BLUE), (100.0, ORANGE)):
        axes[1].plot(offsets, position_map(Rotary(32, base=base), Grid(49))[0][24].numpy(), color=colour, linewidth=2)
    lines(axes[1], (0, 0.5, 1))
    words(axes[1], "The mean over pairs", "blue: base 10000; orange: base 100, for small grids")
    plane = position_map(Rotary(32, axes=2, base=100.0), IMAGE)[0]
    tiles(axes[2], query_row(plane, IMAGE, QUERY), RISING, (0.0, 1.0), QUERY)
    words(axes[2], "On an image", "axial: half of the pairs per axis")
    values = query_row(position_map(Rotary(36, axes=3, base=100.0), CLIP)[0], CLIP, CLIP_QUERY)
    below = "the mean over pairs, which time, row and column share"
    frames(fig, lower, values, RISING, (0.3, 1.0), "On a clip: one cell of frame 1", below, CLIP_QUERY)
    return fig


@picture
def gated() -> Figure:
    fig = card(4.75)
    left, right = fig.subplots(1, 2)
    gate, grid, centre = GatedPosition(9), Grid(9, 9), (4, 4)
    nine = torch.full((29, 29), torch.nan)
    for head in range(9):
        row, column = 10 * (head % 3), 10 * (head // 3)  # the offset along rows changes fastest
        nine[row : row + 9, column : column + 9] = query_row(position_map(gate, grid)[head], grid, centre)
    tiles(left, nine, RISING, (0.0, 0.32))
    for head in range(9):
        outline(left, (10 * (head % 3) + 4, 10 * (head // 3) + 4))
    words(left, "Nine heads at the start", "each looks at a neighbour of the query: a 3 × 3 convolution")
    rows, columns = (torch.softmax(one[8, 4], -1) for one in gate.values(grid, grid).logits)
    both = torch.full((11, 11), torch.nan)
    both[2:, 2:] = query_row(position_map(gate, grid)[8], grid, centre)
    both[2:, 0], both[0, 2:] = rows, columns
    assert torch.allclose(rows[:, None] * columns, both[2:, 2:], atol=1e-6)
    tiles(right, both, RISING, (0.0, 0.6), (6, 6), numbers=".2f", size=7)
    words(right, "Head 8 is a product", "one softmax over rows × one over columns: no N × N map is formed")
    return fig


def partition(grid: Grid, mask: Mask) -> Tensor:
    """A colour number per cell, neighbours differing: cells of the partition are the rows of `allowed` that agree."""
    rows = mask.allowed(grid)[0, 0]
    first = rows.float().argmax(-1)  # the first key that a query sees names its cell
    labels = torch.unique(first, return_inverse=True)[1].reshape(grid.shape)
    across = len(torch.unique(labels[0]))
    return (labels // across % 3 * 3 + labels % across % 3).float()


@picture
def windows() -> Figure:
    fig = card(3.2)
    axes = fig.subplots(1, 4)
    for ax, grid, mask, title, below in (
        (axes[0], IMAGE, Windows((7, 7)), "Windows((7, 7))", "Grid(14, 14): four cells"),
        (axes[1], IMAGE, Windows((7, 7), (3, 3)), "shift=(3, 3)", "nine cells: no roll, no −100 mask"),
        (axes[2], Grid(10, 13), Windows((4, 4), (2, 2)), "Any grid", "Grid(10, 13), 4 × 4:\nborder cells are smaller"),
    ):  # fmt: skip
        tiles(ax, partition(grid, mask), TILES, (0, 8))
        words(ax, title, below)
    tiles(axes[3], seen(Windows((7, 7), (3, 3)), IMAGE, QUERY), SEEN, (0.0, 1.0), QUERY)
    words(axes[3], "What one query sees", "the keys of its own cell")
    return fig


@picture
def aim() -> Figure:
    fig = card(4.7)
    spec = fig.add_gridspec(2, 1)
    grid, query = Grid(6, 8, 8), (2, 4, 2)
    for place, mask, below in (
        (0, Windows((6, 1, 1)), "temporal: its own place in every frame"),
        (1, Windows((1, 4, 4)), "spatial: the window of its own frame"),
    ):
        size = ", ".join(map(str, mask.size))
        frames(fig, spec[place], seen(mask, grid, query), SEEN, (0.0, 1.0), f"Windows(({size}))", below, query)
    return fig


@picture
def masks() -> Figure:
    fig = card(2.8)
    axes = fig.subplots(1, 5)
    grid = Grid(9, prefix=1)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]])
    padding = Padding.from_lengths(torch.tensor([8]), 10)
    for ax, mask, title, below in (
        (axes[0], Causal(), "Causal()", "query ↓, key →; token 0\nis a class token"),
        (axes[1], Windows(3), "Windows(3)", "the class token sees all"),
        (axes[2], Segments(ids), "Segments(ids)", "packed sequences"),
        (axes[3], padding, "Padding(valid)", "two keys are not there"),
        (axes[4], Causal() & Windows(3), "Causal() & Windows(3)", "both must allow it"),
    ):
        tiles(ax, mask.allowed(grid)[0, 0].float(), SEEN, (0.0, 1.0))
        words(ax, title, below)
    return fig


def main(folder: Path) -> None:
    matplotlib.use("agg")
    look = {"svg.hashsalt": "locant", "font.family": "DejaVu Sans", "axes.facecolor": "none"}
    with matplotlib.rc_context(look), torch.no_grad():
        for name, draw in PICTURES.items():
            torch.manual_seed(0)
            fig = draw()
            fig.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(fig)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("pictures"))
