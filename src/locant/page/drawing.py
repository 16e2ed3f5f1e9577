"""Maps drawn by matplotlib, as SVG: what `position.draw(...)` and `mask.draw(...)` hand out, and what pictures of the
documentation are made of. Colours are those of the pages (`pictures.STOPS`).

matplotlib is imported where it is used: it is slow to load, and optional.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from locant.page.pictures import STOPS, frame_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, SOFT, PAPER, EDGE = "#22272e", "#636c76", "#fbfaf7", "#d5d2ca"
HEX = ["#{:02x}{:02x}{:02x}".format(*stop) for stop in STOPS]
COLOURS = {"signed": HEX, "rising": HEX[len(HEX) // 2 :]}
SEEN = ("#ece8de", HEX[1])  # no, yes
ACROSS = 8  # maps beside each other
LOOK: Any = {"svg.hashsalt": "locant", "font.family": "DejaVu Sans", "axes.facecolor": "none"}


@dataclass(frozen=True)
class Drawing:
    """A picture as SVG: notebooks show it, `save` writes it, `str` is its text."""

    svg: str

    def __str__(self) -> str:
        return self.svg

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Writes it to a file whose name ends in .svg; returns the path."""
        path = Path(path)
        if path.suffix.lower() != ".svg":
            raise ValueError(f"Drawing.save needs a name that ends in .svg; got {str(path)!r}. Write picture.svg.")
        path.write_text(self.svg, encoding="utf-8")
        return path


def colormap(name: str) -> Colormap:
    """ "signed", from blue through a light grey at 0 to warm; "rising", its upper half; "seen", no and yes."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    return ListedColormap(SEEN) if name == "seen" else LinearSegmentedColormap.from_list(name, COLOURS[name])


def check_matplotlib(owner: str) -> None:
    """Raises ModuleNotFoundError with what to install, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{owner} draws with matplotlib, which is not installed. Install it: pip install 'locant[compare]'."
        ) from error


def draw_maps(
    maps: Float[np.ndarray, "heads *grid"], *, title: str, below: str, colours: str,
    query: tuple[int, ...] | None = None, names: Sequence[str] = (),
) -> Drawing:  # fmt: skip
    """One map per head over the cells of a grid of one to three axes, in one scale, with its legend.

    Args:
        maps: the values; NaN is crossed out and has no colour.
        title, below: the words above, and what the legend measures.
        colours: "signed", "rising" or "seen".
        query: a cell to outline.
        names: of the heads, where they are not "head 1", "head 2", …
    """
    import matplotlib
    from matplotlib.figure import Figure

    # 1 one sheet per frame beside the next, an empty column between them
    heads, (frames, rows, columns) = len(maps), frame_shape(maps.shape[1:])
    flat = np.full((heads, rows, frames, columns + 1), np.nan)
    flat[..., :columns] = maps.reshape(heads, frames, rows, columns).transpose(0, 2, 1, 3)
    flat = flat.reshape(heads, rows, -1)[..., :-1]
    # 2 as many sheets in a line as fit into 10 inches
    wide = min(10.0, max(1.25, 0.09 * flat.shape[2])) if frames == 1 else 4.6
    across = max(1, min(heads, ACROSS, int(10 // wide)))
    lines = -(-heads // across)
    tall = 0.42 if rows == 1 else wide * rows / flat.shape[2]
    title, below = (textwrap.fill(line, 62 if across * wide < 6 else 120) for line in (title, below))
    more = 0.16 * (title.count("\n") + below.count("\n"))
    size = max(wide * across, 4.4), (tall + 0.34) * lines + 0.95 + more
    largest = float(np.nanmax(np.abs(maps))) if np.isfinite(maps).any() else 0.0
    span = (0.0 if colours != "signed" else -(largest or 1.0), 1.0 if colours == "seen" else largest or 1.0)
    with matplotlib.rc_context(LOOK):
        fig = Figure(figsize=size, layout="compressed")
        fig.patch.set_alpha(0)
        axes = np.atleast_1d(fig.subplots(lines, across, squeeze=False)).ravel()
        for number, ax in enumerate(axes):
            if number >= heads:
                ax.set_axis_off()
                continue
            _draw_sheet(ax, flat[number], colours, span, maps.shape[1:], query)
            if heads > 1 or names:
                ax.set_title(
                    names[number] if names else f"head {number + 1}", loc="left", fontsize=8, color=SOFT, pad=3
                )
        fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)
        _draw_legend(fig, list(axes[:heads]), below, colours)
        return as_svg(fig)


def as_svg(figure: Figure) -> Drawing:
    """The figure as text: the same picture gives the same text, and no two pictures share an id."""
    import matplotlib

    with matplotlib.rc_context(LOOK):
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    own = f"locant-{hashlib.sha256(svg.encode()).hexdigest()[:10]}-"
    return Drawing(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}", svg))


def tiles(
    ax: Axes, values: Tensor | np.ndarray, colours: Colormap, span: float | tuple[float, float] = 1.0,
    query: tuple[int, ...] | None = None, numbers: str = "", size: float = 9,
) -> None:  # fmt: skip
    """A map of cells: one square each, NaN left out, the query outlined, numbers written in if wanted."""
    from matplotlib.collections import LineCollection

    if isinstance(values, Tensor):
        values = values.detach().double().numpy()
    low, high = span if isinstance(span, tuple) else (-span, span)
    ax.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="none")
    rows, columns = values.shape
    cuts = [((-0.5, r - 0.5), (columns - 0.5, r - 0.5)) for r in range(1, rows)]
    cuts += [((c - 0.5, -0.5), (c - 0.5, rows - 0.5)) for c in range(1, columns)]
    ax.add_collection(LineCollection(cuts, colors=PAPER, linewidths=0.7 if max(rows, columns) > 6 else 1.6))
    for r, c in np.argwhere(np.isfinite(values)) if numbers else ():
        red, green, blue, _ = colours((float(values[r, c]) - low) / (high - low))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
        shown = format(float(values[r, c]), numbers).replace("-", "−")
        ax.text(c, r, shown, ha="center", va="center", fontsize=size, color="white" if dark else INK)
    if query is not None:
        outline(ax, query)
    ax.set_anchor("NW")
    bare(ax)


def outline(ax: Axes, query: tuple[int, ...], sides: tuple[int, int] = (1, 1), colour: str = INK) -> None:
    """A frame that stands out on light and on dark cells."""
    from matplotlib.patches import Rectangle

    for edge, width in ((PAPER, 3.2), (colour, 1.5)):
        corner = (query[1] - 0.5, query[0] - 0.5)
        ax.add_patch(Rectangle(corner, sides[1], sides[0], fill=False, edgecolor=edge, linewidth=width, zorder=4))


def bare(ax: Axes) -> None:
    """No ticks and no frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def _draw_sheet(
    ax: Axes, sheet: Float[np.ndarray, "rows columns"], colours: str, span: tuple[float, float],
    grid: tuple[int, ...], query: tuple[int, ...] | None,
) -> None:  # fmt: skip
    """One head: its frames, what is no number crossed out, the query outlined."""
    _, rows, columns = frame_shape(grid)
    at = None if query is None else (*([0] * (3 - len(grid))), *query)
    place = None if at is None else (at[1], at[0] * (columns + 1) + at[2])
    tiles(ax, sheet, colormap(colours), span, place)
    gap = np.arange(sheet.shape[1]) % (columns + 1) == columns
    for row, column in np.argwhere(np.isnan(sheet) & ~gap[None]):
        ax.plot(column, row, marker="x", color=SOFT, markersize=4, markeredgewidth=0.8)
    if rows == 1:
        ax.set_aspect("auto")


def _draw_legend(fig: Figure, axes: list[Axes], below: str, colours: str) -> None:
    bar = fig.colorbar(axes[0].images[0], ax=axes, location="bottom", fraction=0.06, pad=0.03, aspect=40, shrink=0.55,
                       anchor=(0.0, 0.5))  # fmt: skip
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(colors=SOFT, labelsize=7, length=0)
    if colours == "seen":
        bar.set_ticks([0.25, 0.75], labels=["not seen", "seen"])
    bar.set_label(below, fontsize=8, color=SOFT, loc="left")
