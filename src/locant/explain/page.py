"""The page of an explanation: what was found in words first, then what any query of any head meets, drawn on request.

Without scripts it shows the findings, the charts over layers, embeddings, waves, resized tables and the table of all
heads; with one, the maps of every layer and head, for any query, one or two beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import numpy as np

from locant.explain import chapters
from locant.explain.data import Data, Input
from locant.explain.packing import pack
from locant.page import shell
from locant.page.markup import text
from locant.page.pictures import GAP, LOST, STOPS, png

MOST = 20_000_000  # bytes of a page
SIDES = {"picture": 320, "array": 320, "film": 160}  # pixels of the longer side that a page carries


def render(data: Sequence[Data], author: str = "locant explain") -> str:
    """The page of one model, or of two beside each other, as text; the same data give the same bytes.

    Raises ValueError for a page of more than 20 MB.
    """
    titles = " and ".join(one.title for one in data)
    stages = chapters.stage(data)
    sections = [(name, title, body) for name, title, body in chapters.sections(data) if body]
    body = stages + "".join(
        f'<section id="{name}"><h2>{text(title)}</h2>{inside}</section>' for name, title, inside in sections
    )
    page = shell.fill(
        title=f"Locant explain: {titles}",
        kicker="Locant explain",
        heading=f"What position does in {titles}",
        lead="".join(chapters.lead(one, several=len(data) > 1) for one in data),
        finding=(),
        links=[("look", "Heads"), *((name, title) for name, title, _ in sections)],
        body=body,
        author=author,
        data=shell.safe_json(
            {
                "stops": STOPS,
                "gap": GAP,
                "lost": LOST,
                "block": pack(data),
                "frames": [_frames(one.input) for one in data],
            }
        ),
        more=resources.files("locant.explain"),
        scripts=("sheets.js", "page.js"),
    )
    size = len(page.encode("utf-8", "replace"))
    if size > MOST:
        raise ValueError(
            f"a page may have {MOST / 1e6:.0f} MB; this one has {size / 1e6:.1f} MB. "
            "Ask for fewer queries of the input, or leave the input out."
        )
    return page


def cell(data: Sequence[Data]) -> str:
    """The page in a frame of its own, for a notebook: styles, scripts, ids, globals and keys of it end at the frame."""
    return (
        f'<iframe title="{text("What position does in " + data[0].title)}" srcdoc="{_attribute(render(data))}" '
        'sandbox="allow-scripts allow-downloads" style="width:100%;height:48rem;border:1px solid #8884;'
        'border-radius:8px" loading="lazy"></iframe>'
    )


def figures(data: Sequence[Data]) -> dict[str, str]:
    """The charts of the page as SVG that stands alone, by name."""
    return chapters.figures(data)


def _attribute(page: str) -> str:
    return page.replace("&", "&amp;").replace('"', "&quot;")


def _frames(shown: Input | None) -> list[str]:
    """The input as PNG, a frame each, no larger than it is shown."""
    if shown is None or shown.pixels is None:
        return []
    pixels = shown.pixels if shown.pixels.ndim == 4 else shown.pixels[None]
    step = -(-max(pixels.shape[1:3]) // SIDES.get(shown.kind, 320))
    return [png(_shrink(frame, step)) for frame in pixels]


def _shrink(frame: np.ndarray, step: int) -> np.ndarray:
    """The mean of every step × step pixels; a rest at the lower and the right border is left out."""
    rows, columns = (max(1, size // step) for size in frame.shape[:2])
    if step == 1:
        return np.ascontiguousarray(frame)
    cut = frame[: rows * step, : columns * step].astype(np.float64)
    mean: np.ndarray = np.rint(cut.reshape(rows, step, columns, step, 3).mean((1, 3))).astype(np.uint8)
    return mean
