"""How the pictures look: one sheet of paper, one set of colours, maps of cells, curves, and the frames of a clip."""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor

INK, SOFT, PAPER, EDGE = "#22272e", "#636c76", "#fbfaf7", "#d5d2ca"
BLUE, ORANGE, GREEN, SKY = "#0072b2", "#d55e00", "#009e73", "#56b4e9"
RISING = LinearSegmentedColormap.from_list("rising", ["#f1ede3", "#b7d5e6", "#4d9bc8", "#0b5c91", "#062f4d"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#083d63", "#3f93c6", "#f1ede3", "#ee9b55", "#9c3f00"])
ROWS = LinearSegmentedColormap.from_list("rows", ["#062f4d", "#0b5c91", "#56b4e9", "#e9e3d2", "#e69f00", "#8a3800"])
TILES = ListedColormap("#9fcbe6 #f3cf8a #9bd3c0 #e4bcd3 #d9d4c7 #f2b48c #bcd0ea #e8e2a8 #c7c3dc".split())
SEEN = ListedColormap(["#ece8de", BLUE])  # no, yes


def card(height: float) -> Figure:
    """A sheet of paper that is 10 inches wide and reads the same on a light and on a dark page."""
    fig = plt.figure(figsize=(10, height), layout="constrained")
    fig.get_layout_engine().set(rect=(0.017, 0.17 / height, 0.966, 1 - 0.32 / height), w_pad=0.06, h_pad=0.02)
    fig.patch.set_alpha(0)
    box = FancyBboxPatch(
        (0.004, 0.04 / height), 0.992, 1 - 0.08 / height, transform=fig.transFigure, facecolor=PAPER, edgecolor=EDGE,
        linewidth=1, boxstyle="round,pad=0,rounding_size=0.012", mutation_aspect=10 / height, zorder=-9,
    )  # fmt: skip
    box.set_in_layout(False)
    fig.add_artist(box)
    return fig


def words(ax: Axes, title: str, below: str = "") -> None:
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=6)
    ax.set_xlabel(below, fontsize=8.5, color=SOFT, loc="left", labelpad=6, linespacing=1.35)


def tiles(
    ax: Axes, values: Tensor, colours: Colormap = SIGNED, span: float | tuple[float, float] = 1.0,
    query: tuple[int, ...] | None = None, numbers: str = "", size: float = 9,
) -> None:  # fmt: skip
    """A map of cells: one square each, NaN left out, the query outlined, numbers written in if wanted."""
    values = values.detach().double()
    low, high = span if isinstance(span, tuple) else (-span, span)
    ax.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="none")
    rows, columns = values.shape
    cuts = [((-0.5, r - 0.5), (columns - 0.5, r - 0.5)) for r in range(1, rows)]
    cuts += [((c - 0.5, -0.5), (c - 0.5, rows - 0.5)) for c in range(1, columns)]
    ax.add_collection(LineCollection(cuts, colors=PAPER, linewidths=0.7 if max(rows, columns) > 6 else 1.6))
    for r, c in values.isfinite().nonzero().tolist() if numbers else ():
        red, green, blue, _ = colours((float(values[r, c]) - low) / (high - low))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
        text = format(float(values[r, c]), numbers).replace("-", "−")
        ax.text(c, r, text, ha="center", va="center", fontsize=size, color="white" if dark else INK)
    if query is not None:
        outline(ax, query)
    ax.set_anchor("NW")
    bare(ax)


def outline(ax: Axes, query: tuple[int, ...], sides: tuple[int, int] = (1, 1), colour: str = INK) -> None:
    """A frame that stands out on light and on dark cells."""
    for edge, width in ((PAPER, 3.2), (colour, 1.5)):
        corner = (query[1] - 0.5, query[0] - 0.5)
        ax.add_patch(Rectangle(corner, sides[1], sides[0], fill=False, edgecolor=edge, linewidth=width, zorder=4))


def bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def lines(ax: Axes, ticks: tuple[float, ...] = ()) -> None:
    """Axes for curves: nothing that does not say something."""
    for name, side in ax.spines.items():
        side.set_visible(name == "bottom")
        side.set_color(EDGE)
    ax.tick_params(colors=SOFT, labelsize=8, length=0)
    ax.set_yticks(ticks)
    ax.grid(axis="y", color=EDGE, linewidth=0.6)


def frames(
    fig: Figure, spec: SubplotSpec, values: Tensor, colours: Colormap, span: float | tuple[float, float],
    title: str, below: str, query: tuple[int, ...] | None = None,
) -> None:  # fmt: skip
    """A clip: one map per frame, the query outlined in its own."""
    part = fig.add_subfigure(spec, facecolor="none")
    part.suptitle(title, x=0.006, ha="left", fontsize=10, fontweight="bold", color=INK)
    part.supxlabel(below, x=0.006, ha="left", fontsize=8.5, color=SOFT)
    for t, (ax, one) in enumerate(zip(part.subplots(1, len(values)), values, strict=True)):
        tiles(ax, one, colours, span, query[1:] if query is not None and query[0] == t else None)
        ax.set_title(f"t = {t}", loc="left", fontsize=8, color=SOFT, pad=3)
