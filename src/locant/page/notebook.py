"""What positions, masks and grids show in a notebook's cell: a heading, words, and maps.

Every style stands on its element, and there is no script and no id: it works in any number of cells, in any order,
with scripts forbidden, and nothing of it reaches other cells. Text has the colour of the notebook, light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from locant.page.markup import text
from locant.page.pictures import LOST, quantise, query_map, ramp

SMALL = "margin:.3em 0 0;font-size:85%;opacity:.75"
MOST_HEADS = 24  # maps in a cell; the others are counted


def cell(title: str, sentences: Sequence[str], maps: str = "") -> str:
    """The heading is program text; sentences are escaped; `maps` is HTML (`maps_html`)."""
    words = "".join(f'<p style="{SMALL}">{text(line)}</p>' for line in sentences)
    return (
        '<div style="font:14px/1.45 system-ui,sans-serif;max-width:60em">'
        f'<code style="font-weight:600;white-space:pre-wrap">{text(title)}</code>{words}{maps}</div>'
    )


def maps_html(
    maps: Float[np.ndarray, "heads *grid"], *, kind: str, signed: bool, query: tuple[int, ...] | None = None
) -> str:
    """One map per head in one scale, and its legend; what is no number is crossed out and counted."""
    levels, scale = quantise(maps)
    wide = min(22.0, 6.0 * maps.shape[1]) if maps.ndim == 4 else 6.0 if maps.ndim == 3 else 22.0
    look = f"width:{wide:g}em;max-width:100%;height:" + ("1.2em" if maps.ndim == 2 else "auto")
    figures = []
    for number, head in enumerate(levels[:MOST_HEADS]):
        words = f"head {number + 1}" if len(levels) > 1 else kind
        svg = query_map(head.ravel(), maps.shape[1:], query, words).replace("<svg ", f'<svg style="{look}" ', 1)
        named = f'<figcaption style="{SMALL}">{words}</figcaption>' if len(levels) > 1 else ""
        figures.append(f'<figure style="margin:0">{svg}{named}</figure>')
    bar = ramp(signed).replace("<svg ", '<svg style="width:7em;height:.6em" ', 1)
    most, low = f"{scale:.3g}", f"−{scale:.3g}" if signed else "0"
    notes = [f"{len(levels) - MOST_HEADS} more heads are not shown."] if len(levels) > MOST_HEADS else []
    lost = int((levels == LOST).sum())
    notes += [f"{lost} values are NaN or infinite: crossed out."] if lost else []
    return (
        f'<div style="display:flex;flex-wrap:wrap;gap:.6em .9em;margin-top:.6em">{"".join(figures)}</div>'
        f'<p style="{SMALL}">{text(kind)}: {low} {bar} {most}</p>'
        + "".join(f'<p style="{SMALL}">{note}</p>' for note in notes)
    )
