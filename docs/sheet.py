"""How the pictures look: one sheet of paper, curves, and the frames of a clip. Maps of cells and colours are those of
`position.draw` (`locant.page.drawing`)."""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from locant.page.drawing import EDGE, INK, PAPER, SOFT, bare, colormap, outline, tiles

BLUE, ORANGE, GREEN, SKY = "#0072b2", "#d55e00", "#009e73", "#56b4e9"
RISING, SIGNED, SEEN = map(colormap, ("rising", "signed", "seen"))
ROWS = LinearSegmentedColormap.from_list("rows", ["#062f4d", "#0b5c91", "#56b4e9", "#e9e3d2", "#e69f00", "#8a3800"])
TILES = ListedColormap("#9fcbe6 #f3cf8a #9bd3c0 #e4bcd3 #d9d4c7 #f2b48c #bcd0ea #e8e2a8 #c7c3dc".split())

__all__ = [
    "BLUE", "GREEN", "INK", "ORANGE", "RISING", "ROWS", "SEEN", "SIGNED", "SKY", "SOFT", "TILES", "bare", "card",
    "frames", "lines", "outline", "tiles", "words",
]  # fmt: skip


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
