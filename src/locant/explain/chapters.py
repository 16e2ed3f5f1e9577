"""The parts of the page that need no script: findings, charts over layers, embeddings, waves, tables, all heads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from locant.explain.data import Data, Embedded, Finding, Head, Layer, Resizing, Waves
from locant.page.markup import code, share, sizes, text
from locant.page.pictures import LEVELS, LOST, query_map, ramp

AXES = {1: ("token",), 2: ("row", "column"), 3: ("time", "row", "column")}
FEW = 12  # findings that are shown unfolded; heads of a resized table
ALONE = (
    "text{font:12px sans-serif;fill:#5b5f63}.rule{stroke:#dedad1}.mean{fill:none;stroke:#8a3b12;stroke-width:1.6}"
    ".head{fill:#2a6cb0;fill-opacity:.6}"
)
READING = "A dot is a head, the line the mean of a layer. Click a dot to see the head."
WIDE, TALL, LEFT, BELOW = 720, 220, 46, 30  # of a chart, in pixels, and its margins


def lead(data: Data, several: bool) -> str:
    """Where the weights are from, and what was found: a finding about a head is a link to it."""
    heading = f"<h2>{text(data.title)}</h2>" if several else ""
    notes = "".join(f"<p>{text(note)}</p>" for note in data.notes)
    found = [_finding(one) for one in data.findings]
    if not found:
        said = "<p>No rule has anything to say: no head stands out.</p>"
    else:
        rest = f"<details><summary>{len(found) - FEW} more</summary>{''.join(found[FEW:])}</details>"
        said = "".join(found[:FEW]) + (rest if len(found) > FEW else "")
    return f'{heading}<div class="weights">{notes}</div><section class="finding" aria-label="Findings">{said}</section>'


def _finding(one: Finding) -> str:
    if one.layer is None or one.head is None:
        return f"<p>{text(one.text)}</p>"
    return f'<p><a href="#layer={one.layer}&amp;head={one.head}">{text(one.text)}</a></p>'


def stage(data: Sequence[Data]) -> str:
    """The frame that the script fills; without one, a sentence."""
    options = "".join(f"<option value={i}>{text(one.title)}</option>" for i, one in enumerate(data))
    return (
        '<section id="look"><h2>Heads, one query at a time</h2>'
        '<p class="instead" data-without>The maps of every head need scripts; what follows does without.</p>'
        f'<div id="stage" hidden data-models="{len(data)}"><template id="models">{options}</template></div></section>'
    )


def sections(data: Sequence[Data]) -> list[tuple[str, str, str]]:
    """(id, heading, body) of each; an empty body where there is nothing to show."""
    return [
        ("layers", "Where position rules", "".join(_over_layers(one, i, len(data) > 1) for i, one in enumerate(data))),
        ("rollout", "What reaches the output", "".join(_rolled(one) for one in data)),
        ("embeddings", "Embeddings of places", "".join(_embedded(e) for one in data for e in one.embeddings)),
        ("waves", "Waves", "".join(_waves(w) for one in data for w in _all_waves(one))),
        ("resized", "Before and after resizing", "".join(_resized(r) for one in data for r in one.resizings)),
        ("unknown", "Not drawn", _unknown(data)),
        ("table", "All heads", "".join(_table(one, len(data) > 1) for one in data)),
    ]


def figures(data: Sequence[Data]) -> dict[str, str]:
    """The charts over layers, as SVG that stands alone."""
    drawn = {f"layers-{i}" if i else "layers": _chart(one)[1] for i, one in enumerate(data)}
    start = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{TALL + 6}" '
    return {
        name: chart.replace("<svg ", start, 1).replace(">", f"><style>{ALONE}</style>", 1)
        for name, chart in drawn.items()
        if chart
    }


def _over_layers(data: Data, number: int, several: bool) -> str:
    caption, chart = _chart(data)
    if not chart:
        return ""
    heading = f"<h3>{text(data.title)}</h3>" if several else ""
    return f"{heading}<figure data-save=layers-{number}>{chart}<figcaption>{text(caption)}</figcaption></figure>"


def _chart(data: Data) -> tuple[str, str]:
    """A dot per head over the layers: position's share where there was an input, else how far heads look."""
    heads = [(layer, head) for layer in data.layers for head in layer.heads]
    if any(math.isfinite(head.position_share) for _, head in heads):
        values = [(layer, head, head.position_share) for layer, head in heads]
        words = "The share of position in what the logits of a head vary by over the keys."
        return f"{words} {READING}", _dots(data, values, "position's share", percent=True)
    values = [(layer, head, head.locality) for layer, head in heads]
    words = "How far a head looks where every key is alike but for its place: the mean distance in cells."
    return f"{words} {READING}", _dots(data, values, "mean distance, cells", percent=False)


def _dots(data: Data, values: Sequence[tuple[Layer, Head, float]], name: str, percent: bool) -> str:
    known = [(layer, head, value) for layer, head, value in values if math.isfinite(value)]
    if not known:
        return ""
    # 1 the scales
    top = max(1.0 if percent else 0.0, *(value for *_, value in known)) or 1.0
    bottom = min(0.0, *(value for *_, value in known))
    bottom = math.floor(bottom * 4) / 4 if percent else bottom
    last = max(1, len(data.layers) - 1)
    x = {layer.index: LEFT + 14 + (WIDE - LEFT - 34) * i / last for i, layer in enumerate(data.layers)}

    def y(value: float) -> float:
        return 10 + (TALL - 10 - BELOW) * (1 - (value - bottom) / (top - bottom))

    # 2 lines and numbers of the axes
    parts = []
    marks = np.arange(bottom, top + 0.01, 0.25 if top - bottom <= 1.5 else 0.5) if percent else None
    for value in np.linspace(bottom, top, 5) if marks is None else marks:
        shown = _whole(value) if percent else f"{value:.2g}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDE}" y1="{y(value):.1f}" y2="{y(value):.1f}" class="rule"/>'
                     f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{shown}</text>')  # fmt: skip
    every = -(-len(data.layers) // 24)
    parts += [f'<text x="{x[layer.index]:.1f}" y="{TALL - 12}" text-anchor="middle">{layer.index}</text>'
              for layer in data.layers[::every]]  # fmt: skip
    parts.append(f'<text x="{WIDE}" y="{TALL}" text-anchor="end">layer →</text>')
    # 3 the mean, and the heads
    bounds = min(v for *_, v in known), max(v for *_, v in known)
    means = {i: np.mean([v for la, _, v in known if la.index == i]) for i in {la.index for la, *_ in known}}
    line = " ".join(f"{x[i]:.1f},{y(float(means[i])):.1f}" for i in sorted(means))
    parts.append(f'<polyline points="{line}" class="mean"/>')
    for layer, head, value in known:
        words = f"layer {layer.index}, head {head.index}: " + (_whole(value) if percent else f"{value:.2f}")
        parts.append(f'<a href="#layer={layer.index}&amp;head={head.index}"><circle cx="{x[layer.index]:.1f}" '
                     f'cy="{y(value):.1f}" r="4" class="head"><title>{words}</title></circle></a>')  # fmt: skip
    return (f'<svg class="chart" viewBox="0 0 {WIDE} {TALL + 6}" role="img" aria-label="{text(name)} over layers, '
            f'from {bounds[0]:.2g} to {bounds[1]:.2g}">{"".join(parts)}</svg>')  # fmt: skip


def _whole(value: float) -> str:
    """A share in whole percent, whose 0 has no sign."""
    return f"{round(100 * value)} %".replace("-", "−")


def _embedded(one: Embedded) -> str:
    """How alike places are: one map a place."""
    maps = []
    for place, values in zip(one.places, one.similarity, strict=True):
        where = ", ".join(f"{axis} {at}" for axis, at in zip(AXES[len(place)], place, strict=True))
        level = np.where(np.isfinite(values), values * LEVELS, LOST).round().astype(np.int8).ravel()
        drawn = query_map(level, one.shape, place, f"{one.name}, {where}")
        maps.append(f'<figure data-save="embedding">{drawn}<figcaption>{text(where)}</figcaption></figure>')
    return (
        f'<h3>{code(one.name)}</h3><p class="note">The cosine of the vector of one place, outlined, with all others, '
        f'on {sizes(one.shape)} places.</p><div class="maps-row">{"".join(maps)}</div>{_legend("−1", "1")}'
    )


def _rolled(data: Data) -> str:
    """Through all layers: which places of the input a query's output is made of, a map per query."""
    if data.input is None:
        return ""
    rollout = data.input.rollout
    if rollout.reason or not len(rollout.maps):
        return f'<p class="instead">{text(rollout.reason)}</p>' if rollout.reason else ""
    most = float(np.nanmax(rollout.maps, initial=0.0)) or 1.0
    maps = []
    for query, values in list(zip(data.input.queries, rollout.maps, strict=True))[:FEW]:
        level = np.where(np.isfinite(values), values / most * LEVELS, LOST).round().astype(np.int8).ravel()
        cell = tuple(min(size - 1, int(at * size)) for at, size in zip(query.where, values.shape, strict=False))
        drawn = query_map(level, values.shape, cell or None, f"rollout of {query.label}")
        maps.append(f'<figure data-save="rollout">{drawn}<figcaption>{text(query.label)}</figcaption></figure>')
    left = len(rollout.maps) - FEW
    more = f'<p class="note">{left} more queries are not drawn.</p>' if left > 0 else ""
    return (
        '<p class="note">Rollout: the product over the layers of half the mean over heads and half the identity, exact '
        f'across windows.</p><div class="maps-row">{"".join(maps)}</div>'
        f"{_legend('0 %', f'{100 * most:.2g} %', signed=False)}{more}"
    )


def _legend(low: str, high: str, signed: bool = True) -> str:
    return f'<p class="legend"><span>{low}</span>{ramp(signed)}<span>{high}</span></p>'


def _all_waves(data: Data) -> Iterable[Waves]:
    seen = set()
    for waves in [*(layer.waves for layer in data.layers), *(e.waves for e in data.embeddings)]:
        key = waves and (waves.name, waves.axis, waves.frequency.tobytes())
        if waves is not None and key not in seen:
            seen.add(key)
            yield waves


def _waves(waves: Waves) -> str:
    """Each wave's length in cells, along its axis, from short to long."""
    axes = AXES[max(waves.axis) + 1 if waves.axis else 1]
    rows = []
    for axis, name in enumerate(axes):
        lengths = sorted(2 * math.pi / f for f, a in zip(waves.frequency, waves.axis, strict=True) if a == axis and f)
        if lengths:
            shown = ", ".join(f"{length:,.3g}" for length in lengths)
            rows.append(f"<tr><th scope=row>{name}</th><td>{len(lengths)}</td><td>{shown}</td></tr>")
    return (
        f'<h3>{text(waves.name)}</h3><div class="wide"><table class="plain"><caption>Lengths of the waves, in cells: '
        "two places that far apart look alike to it.</caption><thead><tr><th>axis</th><th>waves</th><th>length</th>"
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _resized(one: Resizing) -> str:
    """Old and new, a pair per head, and how much of a flat attention moved."""
    pairs = []
    most = max(float(np.nanmax(np.abs(one.old), initial=0)), float(np.nanmax(np.abs(one.new), initial=0))) or 1.0
    for head in range(min(FEW, len(one.new))):
        drawn = []
        for name, values in (("old", one.old[head]), ("new", one.new[head])):
            level = np.where(np.isfinite(values), values / most * LEVELS, LOST).round().astype(np.int8).ravel()
            drawn.append(query_map(level, values.shape, None, f"{one.name}, head {head}, {name}"))
        words = f"head {head}: {share(float(one.changed[head]))} of a flat attention moved"
        pairs.append(f'<figure><div class="twins">{"".join(drawn)}</div><figcaption>{words}</figcaption></figure>')
    left = f'<p class="note">{len(one.new) - FEW} more heads are not drawn.</p>' if len(one.new) > FEW else ""
    worst = float(np.nanmax(one.changed, initial=0))
    return (
        f'<h3>{code(one.name)}</h3><p class="note">{sizes(one.old.shape[1:])} to {sizes(one.new.shape[1:])} by '
        f"{text(one.method)}; at most {share(worst)} of a flat attention moved.</p>"
        f'<div class="maps-row pairs-row">{"".join(pairs)}</div>{_legend(f"−{most:.2g}", f"{most:.2g}")}{left}'
    )


def _unknown(data: Sequence[Data]) -> str:
    rows = [
        f"<li><b>{text(layer.name)}</b>: {text(layer.reason)}</li>"
        for one in data
        for layer in one.layers
        if layer.reason
    ]
    return f"<ul>{''.join(rows)}</ul>" if rows else ""


COLUMNS = ("layer", "head", "looks, cells", "anisotropy", "gate", "position", "content", "correlation", "variation")


def _table(data: Data, several: bool) -> str:
    """Every head in numbers, folded: what a reader without scripts, or with a screen reader, has of them."""
    rows = []
    for layer in data.layers:
        for head in layer.heads:
            gate = float("nan") if head.gate is None else head.gate
            numbers = (head.locality, head.anisotropy, gate, head.position_share, head.content_share, head.correlation,
                       head.variation)  # fmt: skip
            cells = "".join(
                f"<td>{f'{round(n, 2) + 0.0:.2f}'.replace('-', '−') if math.isfinite(n) else '–'}</td>" for n in numbers
            )
            link = f'<a href="#layer={layer.index}&amp;head={head.index}">{layer.index}</a>'
            rows.append(f"<tr><th scope=row>{link}</th><td>{head.index}</td>{cells}</tr>")
    if not rows:
        return ""
    head_row = "".join(f"<th>{name}</th>" for name in COLUMNS)
    words = f"{len(rows)} heads" + (f" of {text(data.title)}" if several else "")
    return (
        f'<details><summary>{words}</summary><div class="wide"><table><thead><tr>{head_row}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )
