"""Maps of positions: for one query, what position does to every key, per layer and head.

The page carries every map once, as one signed byte per query and key on the scheme's own scale (0 stays exactly 0),
and a picture of the default query for readers without scripts. Both are coloured by the same stops.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int8, UInt8

from locant.page.markup import sizes, text

# blue to warm through a light grey, equally light on both sides; safe for the common forms of colour blindness
STOPS = ((11, 60, 108), (46, 116, 175), (146, 190, 219), (242, 240, 235), (240, 182, 134), (205, 98, 40), (120, 42, 10))
LEVELS = 127
LOST = -128  # the level of what is no number: it has no colour but that of 0, and is crossed out
MOST_BYTES = 450_000  # of all maps of a page; cards beyond it carry the default query alone
GAP = 0.5  # between the frames of a clip, in cells
KINDS = {
    "bias": "bias",
    "embedding": "cosine similarity",
    "rotation": "mean cosine",
    "gate": "weight",
    "changed": "change",
}

Maps = Float[np.ndarray, "layers heads queries keys"]


def card(
    picture: Mapping[str, Any], *, label: str, words: str, key: str, style: str, picker: int, room: int = MOST_BYTES
) -> tuple[str, dict[str, Any]]:
    """A card with the maps of one scheme as HTML, and what the script needs to redraw them: {} beyond `room` bytes.

    Args:
        picture: `kind` (a key of `KINDS`), `grid`, `query`, and `layers`, each with its number `layer`, its `heads`,
            matrices [queries][keys] or [1][keys] of the query alone, in which None is a key that the query does not
            see; and `changed`, the like of what was added since the start, or None. `alike` is the correlation of
            what is there with the start.
        label, words: the heading of the card, and the sentence below it.
        key: a name of the card that no other card of the page has.
        style: the style class of its colour (`shell.styles`).
        picker: the number of the picker that chooses its query.
    """
    groups, carried, taken = [], {}, 0
    for name, field, title in (("now", "heads", _title_now(picture)), ("changed", "changed", _title_changed(picture))):
        maps = _maps(picture, field)
        if maps is None:
            continue
        scale = float(np.abs(maps).max()) or 1.0
        levels = np.rint(maps * (LEVELS / scale)).astype(np.int8)
        every = levels.shape[-1] == levels.shape[-2] and levels.shape[-1] > 0
        taken += levels.size
        if every and taken <= room:
            carried[f"{key}.{name}"] = {
                "picker": picker, "grid": picture["grid"], "query": picture["query"], "scale": scale,
                "maps": [[_encode(head) for head in layer] for layer in levels],
            }  # fmt: skip
        head = f"<h6>{title}</h6>" if title else ""
        kind = picture["kind"] if name == "now" else "changed"
        body = f"{head}{_rows(picture, levels, f'{key}.{name}')}{_legend(kind, scale)}"
        groups.append(f'<div class="maps" data-group="{key}.{name}">{body}</div>')
    note = "" if carried else '<p class="note">Too large to carry for every query; the page shows one.</p>'
    sides = ' class="sides"' if len(groups) > 1 else ""
    return (
        f'<article class="card axes{len(picture["grid"])} {style}"><h5><i class="mark"></i>'
        f"{text(label)}</h5><p>{text(words)}</p><div{sides}>{''.join(groups)}</div>{note}</article>"
    ), carried


def _title_now(picture: Mapping[str, Any]) -> str:
    return "As trained" if any(layer.get("changed") for layer in picture["layers"]) else ""


def _title_changed(picture: Mapping[str, Any]) -> str:
    alike = picture.get("alike")
    start = "" if alike is None else f" <small>correlation of start and now {alike:.2f}</small>".replace("-", "−")
    return f"Changed since the start{start}"


def picker(number: int, query: Sequence[int]) -> str:
    """Where a reader chooses the query of all cards with this number; without scripts, which query they show."""
    axes = {1: ("token",), 2: ("row", "column"), 3: ("frame", "row", "column")}[len(query)]
    where = ", ".join(f"{axis} {at + 1}" for axis, at in zip(axes, query, strict=True))
    return (
        f'<p data-static="{number}">Shown for the query at {where}.</p>'
        f'<div class="picker" data-picker="{number}" hidden><p>Query: <output aria-live="polite"></output>'
        "<small>Click a cell, here or on any map; point at one for its value and offset (query − key). Keys: tab to a "
        "map, arrows, Enter for the query, N and P for the next map.</small></p><div data-board></div></div>"
    )


def script_data(carried: Mapping[str, Any]) -> dict[str, Any]:
    """What the script needs to redraw maps for another query (`card`)."""
    return {"stops": STOPS, "gap": GAP, "maps": carried}


def drawable(picture: Mapping[str, Any]) -> bool:
    """Whether there is anything to draw."""
    return picture.get("kind") not in (None, "none") and bool(picture.get("layers"))


def _maps(picture: Mapping[str, Any], field: str) -> Maps | None:
    layers = [layer.get(field) for layer in picture["layers"]]
    if any(heads is None for heads in layers):
        return None
    maps = np.array(layers, dtype=np.float64)  # null, from a blocked key, becomes nan
    return np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0)


def _rows(picture: Mapping[str, Any], levels: Int8[np.ndarray, "layers heads queries keys"], key: str) -> str:
    """A row of maps per layer, a map per head."""
    grid, query = picture["grid"], picture["query"]
    place = int(np.ravel_multi_index(tuple(query), tuple(grid))) if levels.shape[2] > 1 else 0
    rows = []
    for number, (layer, heads) in enumerate(zip(picture["layers"], levels, strict=True)):
        shown = "".join(
            f"<figure>{query_map(head[place], grid, query, _words(layer, h, len(heads)), f'{key}.{number}.{h}')}"
            + (f"<figcaption>head {h + 1}</figcaption></figure>" if len(heads) > 1 else "</figure>")
            for h, head in enumerate(heads)
        )
        title = f'<p class="layer">layer {layer["layer"]}</p>' if len(levels) > 1 else ""
        rows.append(f'<div class="layer-row">{title}<div class="heads">{shown}</div></div>')
    return "".join(rows)


def _words(layer: Mapping[str, Any], head: int, heads: int) -> str:
    return f"layer {layer['layer']}" + (f", head {head + 1}" if heads > 1 else "")


def query_map(
    row: Int8[np.ndarray, " keys"], grid: Sequence[int], query: Sequence[int] | None, words: str, key: str = ""
) -> str:
    """One map: a frame is one image of as many pixels as cells, the query a ring about its own cell.

    It needs no style sheet and has no ids, so that any page may hold it, and any number of them. Cells that are no
    number (`LOST`) are crossed out.
    """
    frames, rows, columns = frame_shape(grid)
    cells = row.reshape(frames, rows, columns)
    images = "".join(
        f'<image x="{t * (columns + GAP):g}" y="0" width="{columns}" height="{rows}" preserveAspectRatio="none" '
        f'image-rendering="pixelated" href="{png(colours(cells[t]))}"/>'
        for t in range(frames)
    )
    lost = "".join(f"M{t * (columns + GAP) + x:g} {y}l1 1m-1 0l1-1" for t, y, x in np.argwhere(cells == LOST))
    if lost:
        images += f'<path class="lost" d="{lost}" fill="none" stroke="#808080" vector-effect="non-scaling-stroke"/>'
    ring = ""
    if query is not None:
        at = (*([0] * (3 - len(grid))), *query)
        place = f'x="{at[0] * (columns + GAP) + at[2]:g}" y="{at[1]}" width="1" height="1" fill="none"'
        for name, stroke in (("halo", 'stroke="#fff" stroke-width="4"'), ("query", 'stroke="#111" stroke-width="1.6"')):
            ring += f'<rect class="{name}" {place} {stroke} vector-effect="non-scaling-stroke"/>'
    box = f"0 0 {frames * (columns + GAP) - GAP:g} {rows}"
    stretch = ' preserveAspectRatio="none"' if len(grid) == 1 else ""
    named = f'role="img" aria-label="{text(words)}: map over {sizes(grid)} keys"' + f' data-map="{key}"' * bool(key)
    return f'<svg class="map" viewBox="{box}"{stretch} {named}>{images}{ring}</svg>'


def frame_shape(grid: Sequence[int]) -> tuple[int, int, int]:
    frames, rows, columns = (*([1] * (3 - len(grid))), *grid)
    return frames, rows, columns


def _legend(kind: str, scale: float) -> str:
    low = "0" if kind == "gate" else f"−{scale:.2g}"
    name = KINDS.get(kind, text(kind))
    return (
        f'<p class="legend"><output>{name}</output><span>{low}</span>{ramp(kind != "gate")}<span>{scale:.2g}</span></p>'
    )


def ramp(signed: bool) -> str:
    """The colours of a legend, from the lowest to the highest; those above 0 alone for what has no sign."""
    levels = np.arange(-LEVELS if signed else 0, LEVELS + 1, dtype=np.int8)[None]
    return (
        '<svg class="ramp" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><image width="100" '
        f'height="10" preserveAspectRatio="none" href="{png(colours(levels))}"/></svg>'
    )


def quantise(values: Float[np.ndarray, "*shape"]) -> tuple[np.ndarray, float]:
    """Levels -127..127 on the scale of the largest finite size, LOST for what is no number, and that scale."""
    finite = np.isfinite(values)
    scale = float(np.abs(values[finite]).max()) if finite.any() else 0.0
    scale = scale or 1.0
    levels = np.rint(np.where(finite, values, 0.0) * (LEVELS / scale)).astype(np.int8)
    levels[~finite] = LOST
    return levels, scale


def colours(levels: Int8[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Levels -127..127 to colours, straight lines between the stops; 0 is the middle stop."""
    at = (np.where(levels == LOST, 0, levels).astype(np.float64) / LEVELS + 1) / 2 * (len(STOPS) - 1)
    stops = np.array(STOPS, dtype=np.float64)
    low = np.clip(np.floor(at).astype(int), 0, len(STOPS) - 2)
    part = (at - low)[..., None]
    return np.rint(stops[low] * (1 - part) + stops[low + 1] * part).astype(np.uint8)


def png(pixels: UInt8[np.ndarray, "rows columns 3"]) -> str:
    """A data address of an RGB PNG, written by hand: a few cells need no library, and the bytes never change."""
    rows, columns, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _encode(head: Int8[np.ndarray, "queries keys"]) -> str:
    return base64.b64encode(head.tobytes()).decode()
