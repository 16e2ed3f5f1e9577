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
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor

from locant import (
    ALiBi, Causal, GatedPosition, Grid, Learned, MaskedSine, Padding, RelativeTable, Rotary, Segments, Sinusoid, Windows,
)  # fmt: skip
from locant.masks import Mask
from locant.positions.position import Bias, Embedding
from locant.resizing import resize_table

INK, SOFT, PAPER, EDGE = "#22272e", "#636c76", "#fbfaf7", "#d5d2ca"
BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
RISING = LinearSegmentedColormap.from_list("rising", ["#f1ede3", "#b7d5e6", "#4d9bc8", "#0b5c91", "#062f4d"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#083d63", "#3f93c6", "#f1ede3", "#ee9b55", "#9c3f00"])
ROWS = LinearSegmentedColormap.from_list("rows", ["#062f4d", "#0b5c91", "#56b4e9", "#e9e3d2", "#e69f00", "#8a3800"])
TILES = ListedColormap(["#9fcbe6", "#f3cf8a", "#9bd3c0", "#e4bcd3", "#d9d4c7", "#f2b48c", "#bcd0ea", "#e8e2a8", "#c7c3dc"])
SEEN = ListedColormap(["#ece8de", BLUE])
IMAGE, QUERY = Grid(14, 14), (5, 4)
CLIP, CLIP_QUERY = Grid(4, 10, 10), (1, 4, 3)
PICTURES: dict[str, Callable[[], Figure]] = {}


def picture(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    PICTURES[draw.__name__.replace("_", "-")] = draw
    return draw


# --- how things look ---------------------------------------------------------------------------------------------


def card(height: float) -> Figure:
    """A sheet of paper that is 10 inches wide and reads the same on a light and on a dark page."""
    fig = plt.figure(figsize=(10, height), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.09, h_pad=0.1, wspace=0.03)
    fig.patch.set_alpha(0)
    box = FancyBboxPatch(
        (0.004, 0.004 * 10 / height), 0.992, 1 - 0.008 * 10 / height, transform=fig.transFigure, facecolor=PAPER,
        edgecolor=EDGE, linewidth=1, boxstyle="round,pad=0,rounding_size=0.012", mutation_aspect=10 / height, zorder=-9,
    )  # fmt: skip
    fig.add_artist(box)
    return fig


def words(ax: Axes, title: str, below: str = "") -> None:
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=6)
    ax.set_xlabel(below, fontsize=8.5, color=SOFT, loc="left", labelpad=6, linespacing=1.35)


def tiles(
    ax: Axes, values: Tensor, colours: Colormap = SIGNED, span: float | tuple[float, float] | None = None,
    query: tuple[int, ...] | None = None, numbers: str = "", size: float = 9,
) -> None:  # fmt: skip
    """A map of cells: one square each, the query outlined, numbers written in if wanted."""
    values = values.detach().double()
    top = float(values.abs().max()) or 1.0
    low, high = (-top, top) if span is None else span if isinstance(span, tuple) else (-span, span)
    ax.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="none")
    rows, columns = values.shape
    cuts = [((-0.5, r - 0.5), (columns - 0.5, r - 0.5)) for r in range(1, rows)]
    cuts += [((c - 0.5, -0.5), (c - 0.5, rows - 0.5)) for c in range(1, columns)]
    ax.add_collection(LineCollection(cuts, colors=PAPER, linewidths=0.7 if max(rows, columns) > 6 else 1.6))
    for r in range(rows) if numbers else ():
        for c in range(columns):
            share = (float(values[r, c]) - low) / (high - low)
            red, green, blue, _ = colours(share)
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
            text = format(float(values[r, c]), numbers).replace("-", "−")
            ax.text(c, r, text, ha="center", va="center", fontsize=size, color="white" if dark else INK)
    if query is not None:
        ax.add_patch(Rectangle((query[1] - 0.5, query[0] - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.8))
    bare(ax)


def bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def lines(ax: Axes, ticks: tuple[float, ...] = (), zero: bool = True) -> None:
    """Axes for curves: nothing that does not say something."""
    for name, side in ax.spines.items():
        side.set_visible(name == "bottom")
        side.set_color(EDGE)
    ax.tick_params(colors=SOFT, labelsize=8, length=0)
    ax.set_yticks(ticks)
    ax.set_facecolor("none")
    if zero:
        ax.axhline(0, color=EDGE, linewidth=1, zorder=0)


def frames(fig: Figure, spec: object, values: Tensor, colours: Colormap, title: str, below: str, **how: object) -> None:
    """A clip: one map per frame, the query outlined in its own."""
    inner = spec.subgridspec(1, len(values), wspace=0.06)  # type: ignore[attr-defined]
    span = how.pop("span", None) or (float(values.min()), float(values.max()))
    query = how.pop("query", CLIP_QUERY)
    for t, one in enumerate(values):
        ax = fig.add_subplot(inner[t])
        tiles(ax, one, colours, span, query[1:] if query is not None and query[0] == t else None, **how)  # type: ignore[arg-type]
        words(ax, title if t == 0 else "", below if t == 0 else "")
        ax.text(0.98, 1.02, f"t = {t}", transform=ax.transAxes, ha="right", fontsize=8, color=SOFT)
        if t == 0:
            ax.title.set_y(1.12)


# --- what the schemes say ----------------------------------------------------------------------------------------


def row_of(matrix: Tensor, grid: Grid, query: tuple[int, ...]) -> Tensor:
    """What one query is told about every cell."""
    index = 0
    for size, place in zip(grid.shape, query, strict=True):
        index = index * size + place
    return matrix[index].reshape(grid.shape)


def alike(embedding: Embedding, grid: Grid) -> Tensor:
    rows = torch.nn.functional.normalize(embedding(grid), dim=-1)
    return rows @ rows.T


def turned(rotary: Rotary, grid: Grid) -> Tensor:
    """Mean over pairs of the cosine of the angle between query and key."""
    ones = rotary(torch.ones(1, 1, grid.tokens, rotary.head_dim), grid)[0, 0]
    return ones @ ones.T / rotary.head_dim


def mapped(gate: GatedPosition, grid: Grid, head: int) -> Tensor:
    return torch.softmax(gate.values(grid, grid).dense(grid, grid)[head], -1)


def learned_table() -> RelativeTable:
    """A table as it might be learned: near keys, and most of all those one or two cells to the left."""
    table = RelativeTable(IMAGE, heads=1, init_std=0.0)
    y, x = torch.meshgrid(torch.arange(-13.0, 14), torch.arange(-13.0, 14), indexing="ij")
    left = 2.6 * torch.exp(-((x - 2) ** 2) / 3 - y**2 / 1.5) - 1.1 * torch.exp(-((x + 3) ** 2 + y**2) / 8)
    with torch.no_grad():
        table.table.copy_((left - 0.5 * (1 - torch.exp(-(x**2 + y**2) / 60)))[None])
    return table


def seen(mask: Mask, grid: Grid, query: tuple[int, ...]) -> Tensor:
    return row_of(mask.allowed(grid)[0, 0].float(), grid, query)


# --- the pictures ------------------------------------------------------------------------------------------------


@picture
def schemes() -> Figure:
    fig = card(2.25)
    axes = fig.subplots(1, 6)
    shown: tuple[tuple[str, str, Tensor, Colormap, object], ...] = (
        ("embed", "Sinusoid:\nhow alike two codes are", alike(Sinusoid(64, base=100.0), IMAGE), SIGNED, 1.0),
        ("rotate", "Rotary:\nhow far k turns from q", turned(Rotary(64, axes=2, base=100.0), IMAGE), SIGNED, 1.0),
        ("bias", "RelativeTable:\nany pattern of offsets", learned_table()(IMAGE)[0], SIGNED, 2.6),
        ("bias", "ALiBi: a penalty\nfor distance", ALiBi(4, distance="euclidean")(IMAGE)[0], SIGNED, 4.5),
        ("gate", "GatedPosition:\na map of its own", mapped(GatedPosition(9), IMAGE, 3), RISING, (0.0, 0.32)),
        ("mask", "Windows((7, 7),\nshift=(3, 3))", Windows((7, 7), (3, 3)).allowed(IMAGE)[0, 0].float(), SEEN, (0.0, 1.0)),
    )  # fmt: skip
    for ax, (title, below, matrix, colours, span) in zip(axes, shown, strict=True):
        tiles(ax, row_of(matrix, IMAGE, QUERY), colours, span, QUERY)  # type: ignore[arg-type]
        words(ax, title, below)
    return fig


@picture
def learned() -> Figure:
    fig = card(2.5)
    spec = fig.add_gridspec(1, 3, width_ratios=(1, 2.2, 2.2))
    ax = fig.add_subplot(spec[0])
    tiles(ax, torch.arange(36.0).reshape(6, 6), ROWS, (0, 35))
    words(ax, "Grid(6, 6)", "36 rows: one per cell")
    grid = Grid(4, 6, 6)
    for place, axis, below in ((1, (1, 2), "36 rows: every frame reads the same"), (2, (0,), "4 rows: one per frame")):
        scheme = Learned(grid, 1, axes=axis, init_std=0.0)
        with torch.no_grad():
            scheme.table.copy_(torch.arange(float(len(scheme.table)))[:, None])
        rows = scheme(grid).reshape(grid.shape)
        frames(fig, spec[place], rows, ROWS, f"Grid(4, 6, 6), axes={axis}", below, query=None)
    return fig


@picture
def sinusoid() -> Figure:
    fig = card(4.6)
    spec = fig.add_gridspec(2, 3, width_ratios=(1.5, 1.15, 1), height_ratios=(1, 0.85))
    code, ax = Sinusoid(32), fig.add_subplot(spec[0, 0])
    ax.imshow(code(Grid(48)).T.numpy(), cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="none")
    bare(ax)
    words(ax, "The code of 48 tokens", "token →   channels ↓: sine and cosine in turn, slower and slower")
    ax = fig.add_subplot(spec[0, 1])
    for query, colour in ((12, BLUE), (30, ORANGE)):
        ax.plot(alike(code, Grid(48))[query].numpy(), color=colour, linewidth=2)
        ax.axvline(query, color=colour, linewidth=0.8, linestyle=(0, (2, 2)))
    lines(ax, (0, 0.5, 1))
    words(ax, "Likeness to tokens 12 and 30", "the same curve, moved: only the distance counts")
    ax = fig.add_subplot(spec[0, 2])
    tiles(ax, row_of(alike(Sinusoid(64), IMAGE), IMAGE, QUERY), SIGNED, 1.0, QUERY)
    words(ax, "On an image", "half of the channels per axis: a cross")
    values = row_of(alike(Sinusoid(96), CLIP), CLIP, CLIP_QUERY)
    frames(fig, spec[1, :], values, SIGNED, "On a clip", "a third per axis: time, row, column", span=(-1.0, 1.0))
    return fig


@picture
def masked_sine() -> Figure:
    fig = card(2.75)
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
    fig = card(5.6)
    spec = fig.add_gridspec(2, 3, width_ratios=(1.25, 1.25, 1), height_ratios=(1, 0.72))
    table, window = learned_table().resized(Grid(7, 7)), Grid(7, 7)
    ax = fig.add_subplot(spec[0, 0])
    tiles(ax, table.table[0], SIGNED, 2.6, (6, 6))
    ax.add_patch(Rectangle((2 - 0.5, 1 - 0.5), 7, 7, fill=False, edgecolor=GREEN, linewidth=2.2))
    words(ax, "The table: 13 × 13 offsets", "query − key, the zero offset outlined; green: what one query reads")
    ax = fig.add_subplot(spec[0, 1])
    tiles(ax, row_of(table(window)[0], window, (1, 2)), SIGNED, 2.6, (1, 2))
    for side in ax.spines.values():
        side.set(visible=True, edgecolor=GREEN, linewidth=2.2)
    words(ax, "The bias of query (1, 2)", "the green part, turned by half: key = query − offset")
    ax = fig.add_subplot(spec[0, 2])
    time = RelativeTable(Grid(4), heads=1)
    with torch.no_grad():
        time.table.copy_(torch.arange(7.0)[None])
        tiles(ax, time(Grid(4))[0], ROWS, (0, 6), numbers=".0f", size=11)
    words(ax, "In time: Grid(4)", "which of 7 entries a pair reads;\nquery ↓, key →; 3 is the same frame")
    video = RelativeTable(CLIP, heads=1, init_std=0.0)
    t, y, x = torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-9.0, 10), torch.arange(-9.0, 10), indexing="ij")
    with torch.no_grad():
        video.table.copy_((2 * torch.exp(-((y - t) ** 2 + (x - 2 * t) ** 2) / 4 - (t - 1) ** 2 / 6))[None])
    values = row_of(video(CLIP)[0], CLIP, CLIP_QUERY)
    below = "one table over time, row and column: this one follows something that moves right"
    frames(fig, spec[1, :], values, RISING, "In a clip: Grid(4, 10, 10)", below, span=(0.0, 2.0))
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
        values = row_of(ALiBi(4, distance=distance)(IMAGE)[1], IMAGE, QUERY)  # type: ignore[arg-type]
        tiles(ax, values, SIGNED, 1.1, QUERY)
        words(ax, distance.capitalize(), "on an image, head 1")
    causal = ALiBi(8)(Grid(14))[0].masked_fill(~Causal().allowed(Grid(14))[0, 0], torch.nan)
    tiles(axes[3], torch.nan_to_num(causal, nan=0.0).where(~causal.isnan(), torch.tensor(torch.nan)), SIGNED, 7.0)
    words(axes[3], "As published", "with Causal: query ↓, key →")
    return fig


@picture
def mirror() -> Figure:
    fig = card(2.6)
    axes = fig.subplots(1, 4)
    centre = (6, 6)
    square = Grid(13, 13)
    pairs = (("ALiBi", ALiBi(4, distance="euclidean")(square)[1], 0.6), ("RelativeTable", learned_table()(square)[0], 2.6))
    for number, (name, matrix, span) in enumerate(pairs):
        values = row_of(matrix, square, centre)
        for ax, one, what in ((axes[2 * number], values, name), (axes[2 * number + 1], values.flip(1), "… in a mirror")):
            tiles(ax, one, SIGNED, span, centre)
            same = torch.equal(values, values.flip(1))
            words(ax, what, ("the same: it cannot tell left from right" if same else "another: it can") if one is not values else "")
    return fig


@picture
def rotary() -> Figure:
    fig = card(4.6)
    spec = fig.add_gridspec(2, 3, width_ratios=(1.3, 1.3, 1), height_ratios=(1, 0.85))
    ax = fig.add_subplot(spec[0, 0])
    offsets = torch.arange(-24, 25)
    for i, colour in ((0, ORANGE), (2, GREEN), (4, BLUE), (6, INK)):
        ax.plot(offsets, torch.cos(offsets * 10000.0 ** (-i / 16)).numpy(), color=colour, linewidth=1.6)
    lines(ax, (-1, 0, 1))
    words(ax, "Pairs 0, 2, 4 and 6 of 16", "cosine of the angle between q and k, by key − query")
    ax = fig.add_subplot(spec[0, 1])
    for base, colour in ((10000.0, BLUE), (100.0, ORANGE)):
        values = turned(Rotary(32, base=base), Grid(49))[24]
        ax.plot(offsets, values.numpy(), color=colour, linewidth=2)
    lines(ax, (0, 0.5, 1))
    words(ax, "The mean over pairs", "blue: base 10000; orange: base 100, for small grids")
    ax = fig.add_subplot(spec[0, 2])
    tiles(ax, row_of(turned(Rotary(32, axes=2, base=100.0), IMAGE), IMAGE, QUERY), SIGNED, 1.0, QUERY)
    words(ax, "On an image", "axial: half of the pairs per axis")
    values = row_of(turned(Rotary(36, axes=3, base=100.0), CLIP), CLIP, CLIP_QUERY)
    frames(fig, spec[1, :], values, SIGNED, "On a clip", "pairs shared out to time, row and column", span=(-1.0, 1.0))
    return fig


@picture
def gated() -> Figure:
    fig = card(4.5)
    spec = fig.add_gridspec(1, 2, width_ratios=(1, 1.25))
    heads = spec[0].subgridspec(3, 3, wspace=0.02, hspace=0.02)
    gate, grid, query = GatedPosition(9), Grid(9, 9), (4, 4)
    for head in range(9):
        ax = fig.add_subplot(heads[head % 3, head // 3])  # the row offset changes fastest
        tiles(ax, row_of(mapped(gate, grid, head), grid, query), RISING, (0.0, 0.32), query)
        words(ax, "Nine heads at the start: a 3 × 3 convolution" if head == 0 else "", "")
    halves = spec[1].subgridspec(2, 2, width_ratios=(0.12, 1), height_ratios=(0.12, 1), wspace=0.02, hspace=0.02)
    rows, columns = (torch.softmax(one[8, 4], -1) for one in gate.values(grid, grid).logits)
    top, side, both = (fig.add_subplot(halves[place]) for place in ((0, 1), (1, 0), (1, 1)))
    tiles(top, columns[None], RISING, (0.0, 0.7))
    words(top, "One softmax per axis, multiplied", "")
    tiles(side, rows[:, None], RISING, (0.0, 0.7))
    tiles(both, rows[:, None] * columns[None], RISING, (0.0, 0.32), query, numbers=".2f", size=7.5)
    assert torch.allclose(rows[:, None] * columns[None], row_of(mapped(gate, grid, 8), grid, query), atol=1e-6)
    words(both, "", "the map of head 8: no N × N tensor is ever formed")
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
    fig = card(3.15)
    axes = fig.subplots(1, 4)
    for ax, grid, mask, title, below in (
        (axes[0], IMAGE, Windows((7, 7)), "Windows((7, 7))", "Grid(14, 14): four cells"),
        (axes[1], IMAGE, Windows((7, 7), (3, 3)), "shift=(3, 3)", "nine cells: no roll, no −100 mask"),
        (axes[2], Grid(10, 13), Windows((4, 4), (2, 2)), "Any grid", "Grid(10, 13), (4, 4) shifted by (2, 2):\nborder cells are smaller"),
    ):  # fmt: skip
        tiles(ax, partition(grid, mask), TILES, (0, 8))
        words(ax, title, below)
    tiles(axes[3], seen(Windows((7, 7), (3, 3)), IMAGE, QUERY), SEEN, (0.0, 1.0), QUERY)
    words(axes[3], "What one query sees", "the keys of its own cell")
    return fig


@picture
def aim() -> Figure:
    fig = card(3.9)
    spec = fig.add_gridspec(2, 1)
    grid, query = Grid(6, 8, 8), (2, 4, 2)
    for place, mask, below in (
        (0, Windows((1, 4, 4)), "spatial: the window of its own frame"),
        (1, Windows((6, 1, 1)), "temporal: its own place in every frame"),
    ):
        size = ", ".join(map(str, mask.size))
        frames(fig, spec[place], seen(mask, grid, query), SEEN, f"Windows(({size}))", below, query=query, span=(0.0, 1.0))
    return fig


@picture
def masks() -> Figure:
    fig = card(2.5)
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
