"""The examples that the source texts work through, for sources.md: drawn with the other pictures, by pictures.py."""

from __future__ import annotations

import torch
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from sheet import INK, RISING, ROWS, SIGNED, SKY, SOFT, bare, card, outline, tiles, words
from torch import Tensor

from locant import GatedPosition, Grid, MaskedSine, RelativeTable

CELL = (2, 1)


def features(grid: Grid) -> Tensor:
    """ConViT's dx, dy and dx² + dy² of key - query [3, N, N]: a gate of three heads that weigh one of them each."""
    gate = GatedPosition(3)
    gate.direction.copy_(torch.tensor([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]]))
    gate.spread.copy_(torch.tensor([0.0, 0.0, 1.0]))
    return gate.values(grid, grid).dense(grid, grid)


def entries(grid: Grid) -> Tensor:
    """Which entry of a flat table each pair reads [N, N]: a table whose entries are their own numbers."""
    table = RelativeTable(grid, 1)
    table.table.copy_(torch.arange(float(table.table.numel())).reshape(table.table.shape))
    return table(grid)[0]


def maps(grid: Grid) -> list[tuple[Tensor, Colormap, tuple[float, float]]]:
    """ConViT's three features and Swin's index, each with its colours."""
    (dx, dy, square), index, far = features(grid), entries(grid), 1.3 * (grid.shape[0] - 1)
    spans = (-far, far), (-far, far), (0.0, float(square.max())), (0.0, float(index.max()))
    return list(zip((dx, dy, square, index), (SIGNED, SIGNED, RISING, ROWS), spans, strict=True))


def source_offsets() -> Figure:
    fig = card(6.2)
    axes = fig.subplots(2, 4)
    below = (
        "columns, key − query;\nquery ↓, key →",
        "rows, key − query",
        "the squared distance",
        "query − key; 4 is itself",
    )
    small = zip(axes[0], ("2 × 2: dx", "dy", "dx² + dy²", "Swin's index"), below, maps(Grid(2, 2)), strict=True)
    for ax, title, text, (values, colours, span) in small:
        tiles(ax, values, colours, span, numbers=".0f", size=11)
        words(ax, title, text)
    below = (
        "−13 … 13: one block, 14 × 14 times",
        "−13 … 13: each number of that block\nas a square of 14 × 14",
        "0 … 338",
        "0 … 728: a table of 27 × 27",
    )
    large = zip(axes[1], ("14 × 14: dx", "dy", "dx² + dy²", "Swin's index"), below, maps(Grid(14, 14)), strict=True)
    for ax, title, text, (values, colours, span) in large:
        ax.imshow(values.numpy(), cmap=colours, vmin=span[0], vmax=span[1], interpolation="none")  # too many for tiles
        ax.set_anchor("NW")
        bare(ax)
        words(ax, title, text)
    return fig


def source_mask() -> Figure:
    fig = card(7.2)
    upper, lower = fig.add_gridspec(2, 1, height_ratios=(1, 1.75))
    valid = torch.zeros(4, 4, dtype=torch.bool)
    valid[:3, :3] = True
    code, published = MaskedSine(20, normalize=False).encode(valid), MaskedSine(20).encode(valid)
    y, x = (torch.atan2(code[..., i], code[..., i + 1]) for i in (0, 10))  # counts below pi: the first wave tells them
    scaled = torch.atan2(published[..., 2], published[..., 3]) * 10000.0**0.2  # below 2 pi: the second wave does
    axes = fig.add_subfigure(upper, facecolor="none").subplots(1, 4)
    tiles(axes[0], valid.float(), ListedColormap(["#ece8de", SKY]), (0.0, 1.0), CELL)
    for row in range(4):
        for column in range(4):
            text = "False" if valid[row, column] else "True"
            axes[0].text(column, row, text, ha="center", va="center", fontsize=9, color=INK)
    words(axes[0], "1. The mask", "True = padding; 3 × 3 cells are real")
    for ax, counts, numbers, title, below in (
        (axes[1], y, ".0f", "2. y: counted downwards", "cumsum over axis 0, from 1"),
        (axes[2], x, ".0f", "x: counted to the right", "cumsum over axis 1, from 1"),
        (axes[3], scaled, ".2f", "y as DETR has it", "normalised: a picture spans 0 to 2π"),
    ):
        tiles(ax, counts, RISING, (0.0, 8.0 if ax is axes[3] else 4.0), CELL, numbers=numbers, size=10)
        words(ax, title, below)
    whole, one = fig.add_subfigure(lower, facecolor="none").subplots(2, 1, height_ratios=(16, 5))
    tiles(whole, code.flatten(0, 1), SIGNED, 1.0)
    outline(whole, (4 * CELL[0] + CELL[1], 0), (1, 20))
    whole.axvline(9.5, color=INK, linewidth=1.5)
    whole.set_yticks(range(0, 16, 4), [f"({row}, 0)" for row in range(4)], fontsize=8.5, color=SOFT)
    words(
        whole,
        "3. The encoding: 16 cells ↓, 20 channels →",
        "left of the line the 10 channels of y, right of it those of x",
    )
    tiles(one, code[CELL].unflatten(0, (2, 10)), SIGNED, 1.0, numbers=".3f", size=9)
    one.set_yticks([0, 1], ["y", "x"], fontsize=9, color=SOFT)
    words(one, "Cell (2, 1), its 20 channels in two lines", "sin, cos, sin, cos, …: slower and slower waves")
    for ax in (whole, one):
        ax.set_aspect("auto")
        ax.tick_params(length=0)
    return fig


def source_time() -> Figure:
    fig = card(3.25)
    axes = fig.subplots(1, 3, width_ratios=(1, 1.05, 1))
    table = RelativeTable(Grid(4), 1)
    learned = torch.tensor([-0.6, 0.1, 0.7, 1.2, 0.9, 0.4, -0.2])
    tiles(axes[0], entries(Grid(4)), ROWS, (0.0, 6.0), numbers=".0f", size=11)
    words(axes[0], "The index", "t(i, j) = i − j + 3:\nquery frame i ↓, key frame j →")
    table.table.copy_(learned[None])
    said = "key 3 frames later", "2 later", "1 later", "same frame", "1 earlier", "2 earlier", "3 earlier"
    tiles(axes[1], table.table.T, SIGNED, 1.4, numbers=".1f", size=9)
    for entry, text in enumerate(said):
        axes[1].text(-0.8, entry, str(entry), ha="right", va="center", fontsize=10, color=SOFT)
        axes[1].text(0.8, entry, text, ha="left", va="center", fontsize=9, color=SOFT)
    words(axes[1], "The table: learned", "one head, as it might be;\na row per signed offset")
    tiles(axes[2], table(Grid(4))[0], SIGNED, 1.4, numbers=".1f", size=10)
    words(axes[2], "The bias: table[index]", "constant along diagonals (Toeplitz);\nnot symmetric, not causal")
    return fig


SOURCES = {"source-offsets": source_offsets, "source-mask": source_mask, "source-time": source_time}
