"""Charts: plain SVG beside real text, coloured by the page's style sheet.

Along the page every place is a percentage and down the page a number of pixels, so a chart takes any width while its
text keeps its size; curves stand in a stretched inner drawing whose strokes do not stretch. One class (`s0`, `s1`, …)
carries the colour of a scheme in all charts.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from locant.page import markup
from locant.page.markup import Number, percent, points, text

LONGEST = 18  # letters on a line of a name beside a curve
LINE = 14  # pixels from one such line to the next
WIDE = 1000  # width of the stretched inner drawing of curves, in its own units

Point = tuple[Number, Number]
Known = tuple[Number, Number | None, Number | None]  # a value, its low and its high end


@dataclass(frozen=True)
class Scale:
    """Values to 0..100 along an axis."""

    low: Number
    high: Number
    log: bool = False

    def __call__(self, value: Number) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return 50.0 if high == low else 100 * (at - low) / (high - low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the scale, `most` of them at most."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        for step in _steps(self.high - self.low):
            first = math.ceil(self.low / step - 1e-9)
            last = math.floor(self.high / step + 1e-9)
            if last - first < most:
                return [step * i for i in range(first, last + 1)]
        return []


@dataclass(frozen=True)
class Mark:
    """One scheme in a row chart: its mean, and what is known around it."""

    style: str
    name: str
    mean: Number | None
    spread: Number | None = None
    low: Number | None = None
    high: Number | None = None
    seeds: tuple[Number, ...] = ()
    before: Number | None = None  # where it came from: accuracy on the test set, in charts of shifts
    instead: str | None = None  # a sentence, where there is no value


@dataclass(frozen=True)
class Line:
    """One scheme in a chart of curves."""

    style: str
    name: str
    points: tuple[Point, ...]
    stopped: bool = False


@dataclass(frozen=True)
class Place:
    """One scheme in a chart of two values: each with the interval that is known of it."""

    style: str
    name: str
    across: Known
    up: Known
    taken: bool = False
    ruled_out: bool = False


def figure(body: str, caption: str) -> str:
    """A chart with its words below; both are HTML."""
    return f"<figure>{body}<figcaption>{caption}</figcaption></figure>"


def side_by_side(panels: Sequence[str]) -> str:
    """Charts beside each other where there is room."""
    return f'<div class="pair-up">{"".join(panels)}</div>'


def scale_of(values: Sequence[Number], least: float = 0.04) -> Scale:
    """A linear scale around accuracies, with air at both ends, within 0..1."""
    low, high = min(values), max(values)
    air = max(0.06 * (high - low), (least - (high - low)) / 2, 0.004)
    return Scale(max(0.0, low - air), min(1.0, high + air))


def marks(rows: Sequence[Mark], scale: Scale, chance: Sequence[Number] = ()) -> str:
    """One row a scheme: name, strip with mean, spread, interval and every seed, and the number. `chance` is dashed; a
    mean to the left of the scale is an arrow."""
    return f'<div class="rows">{"".join(_mark_row(row, scale, chance) for row in rows)}{_axis(scale, percent)}</div>'


def differences(rows: Sequence[Mark]) -> str:
    """One row a pair: the difference and its corrected interval about zero."""
    ends = [v for row in rows for v in (row.low, row.high, row.mean, 0.0) if v is not None]
    air = 0.05 * (max(ends) - min(ends)) or 0.01
    scale = Scale(min(ends) - air, max(ends) + air)
    body = []
    for row in rows:
        strip = _grid(scale, 26) + _rule(scale(0.0), 26, "zero") + _whisker(row, scale, 13) + _dot(row, scale, 13)
        value = f"{points(row.mean or 0.0)} <small>{points(row.low or 0.0)} to {points(row.high or 0.0)}</small>"
        body.append(_row(f"pair {row.style}", row.name, _strip(strip, 26), value))
    return f'<div class="rows pairs">{"".join(body)}{_axis(scale, points)}</div>'


def curves(lines: Sequence[Line], seeds: Sequence[Sequence[Sequence[Point]]], height: int = 110) -> str:
    """Small multiples: a panel a scheme with its mean, its seeds as thin lines, and the other schemes in grey."""
    places = [p for line in lines for p in line.points] + [p for one in seeds for s in one for p in s]
    across = Scale(min(x for x, _ in places), max(x for x, _ in places))
    up = Scale(min(0.0, *(y for _, y in places)), 1.0)
    grid = "".join(_level(100 - up(y), height, f"{100 * y:.0f}") for y in (0.0, 0.5, 1.0))
    panels = []
    for line, runs in zip(lines, seeds, strict=True):
        others = "".join(_path(o.points, across, up, height, "ghost") for o in lines if o is not line)
        thin = "".join(_path(run, across, up, height, "seed") for run in runs)
        body = f"{grid}{_stretch(others + thin + _path(line.points, across, up, height, 'mean'), height)}"
        last = f"<small>{percent(line.points[-1][1])}</small>"
        panels.append(
            f'<div class="panel {line.style}"><p>{_name(line.name)} {last}</p>'
            f'<svg class="plot" width="100%" height="{height}" aria-hidden="true">{body}</svg>'
            f'<p class="ends" aria-hidden="true"><span>{across.low:.0f}</span>'
            f"<span>{across.high:.0f} epochs</span></p></div>"
        )
    return f'<div class="panels">{"".join(panels)}</div>'


def growth(title: str, lines: Sequence[Line], unit: Callable[[Number | None], str]) -> str:
    """Cost against tokens on two logarithmic axes, with the name at the end of each line."""
    places = [p for line in lines for p in line.points]
    height = max(230, _needed(lines))
    across = Scale(min(x for x, _ in places), max(x for x, _ in places), log=True)
    up = Scale(0.8 * min(y for _, y in places), 1.25 * max(y for _, y in places), log=True)
    levels = [(height * (1 - up(y) / 100), unit(y)) for y in up.ticks(6)]
    at = [height * (1 - up(line.points[-1][1]) / 100) for line in lines]
    columns = sorted({x for x, _ in places})
    columns = columns if len(columns) <= 6 else columns[:: -(-len(columns) // 6)]
    grid = "".join(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>' for y, _ in levels)
    drawn = _stretch("".join(_path(o.points, across, up, height, f"mean {o.style}") for o in lines), height)
    dots = "".join(_points(line, across, up, height) for line in lines)
    side = "".join(f'<text x="100%" y="{y + 4:.1f}" text-anchor="end">{label}</text>' for y, label in levels)
    feet = "".join(_tick(across(x), markup.whole(x), "middle") for x in columns)
    return (
        f'<div class="growth"><h5>{text(title)}</h5><div class="frame" aria-hidden="true">'
        f'<svg class="side" height="{height}">{side}</svg>'
        f'<svg class="plot" height="{height}">{grid}{drawn}{dots}</svg>'
        f'<svg class="names" height="{height}">{_ends(lines, at, height)}</svg>'
        f'<svg class="feet" height="18">{feet}</svg></div></div>'
    )


def places(title: str, shown: Sequence[Place], unit: Callable[[Number], str], chance: Sequence[Number] = ()) -> str:
    """Accuracy, up, against another value, across: a dot each with its intervals, and its name at the right.

    The one that is taken is ringed, those that are ruled out are hollow; `chance` is dashed where the scale has it.
    """
    height = max(250, _needed(shown))
    across = _around([v for place in shown for v in place.across if v is not None])
    up = scale_of([v for place in shown for v in place.up if v is not None] + list(chance))
    levels = [(height * (1 - up(y) / 100), percent(y).removesuffix(".0")) for y in up.ticks(6)]
    at = [height * (1 - up(place.up[0]) / 100) for place in shown]
    grid = "".join(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>' for y, _ in levels)
    grid += "".join(_flat(0, 100, height * (1 - up(y) / 100), "chance") for y in chance)
    drawn = "".join(_place(place, across, up, height) for place in shown)
    side = "".join(f'<text x="100%" y="{y + 4:.1f}" text-anchor="end">{label}</text>' for y, label in levels)
    feet = "".join(_tick(across(x), unit(x), "middle") for x in across.ticks(4))
    return (
        f'<div class="growth"><h5>{text(title)}</h5><div class="frame" aria-hidden="true">'
        f'<svg class="side" height="{height}">{side}</svg>'
        f'<svg class="plot" height="{height}">{grid}{drawn}</svg>'
        f'<svg class="names" height="{height}">{_ends(shown, at, height)}</svg>'
        f'<svg class="feet" height="18">{feet}</svg></div></div>'
    )


def _around(values: Sequence[Number]) -> Scale:
    air = 0.08 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 0.1
    return Scale(max(0.0, min(values) - air), max(values) + air)


def _place(place: Place, across: Scale, up: Scale, height: int) -> str:
    (x, left, right), (y, low, high) = place.across, place.up
    at, level = across(x), height * (1 - up(y) / 100)
    parts = [_flat(at, 100, level, "lead")]
    if left is not None and right is not None:
        parts.append(_flat(across(left), across(right), level, "span"))
    if low is not None and high is not None:
        ends = (f"{height * (1 - up(v) / 100):.1f}" for v in (low, high))
        parts.append('<line class="interval" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'.format(f"{at:.2f}%", *ends))
    if place.taken:
        parts.append(f'<circle class="ring" cx="{at:.2f}%" cy="{level:.1f}" r="10.5"/>')
    kind = "before" if place.ruled_out else "dot"
    parts.append(f'<circle class="{kind}" cx="{at:.2f}%" cy="{level:.1f}" r="5.5"/>')
    return f'<g class="{place.style}">{"".join(parts)}</g>'


def _flat(start: Number, stop: Number, y: Number, kind: str) -> str:
    return f'<line class="{kind}" x1="{start:.2f}%" x2="{stop:.2f}%" y1="{y:.1f}" y2="{y:.1f}"/>'


def _mark_row(row: Mark, scale: Scale, chance: Sequence[Number]) -> str:
    if row.mean is None:
        return _row(row.style, row.name, f'<span class="instead">{text(row.instead or "not measured")}</span>', "")
    if row.mean < scale.low:
        arrow = '<text class="beyond" x="0" y="16">◂</text>'
        return _row(row.style, row.name, _strip(_grid(scale, 24) + arrow, 24), percent(row.mean))
    height, middle = 34, 13 if row.seeds else 17
    parts = [_grid(scale, height)]
    parts += [_rule(scale(level), height, "chance") for level in chance if scale.low <= level <= scale.high]
    if row.before is not None:
        parts.append(_bar(scale(row.before), scale(row.mean), middle, "path"))
        parts.append(f'<circle class="before" cx="{scale(row.before):.2f}%" cy="{middle}" r="4.5"/>')
    if row.spread is not None and row.before is None:
        ends = (scale(max(scale.low, row.mean - row.spread)), scale(min(scale.high, row.mean + row.spread)))
        parts.append(_bar(*ends, middle, "spread"))
    parts += [_whisker(row, scale, middle), _dot(row, scale, middle)]
    parts += [f'<circle class="seed" cx="{scale(v):.2f}%" cy="26" r="2.6"/>' for v in row.seeds]
    known = row.before is None and row.spread is not None
    small = f"± {percent(row.spread)}" if known else "" if row.before is None else points(row.mean - row.before)
    return _row(row.style, row.name, _strip("".join(parts), height), f"{percent(row.mean)} <small>{small}</small>")


def _row(style: str, name: str, strip: str, value: str) -> str:
    who = f'<span class="who">{_name(name)}</span>'
    return f'<div class="row {style}">{who}{strip}<span class="value">{value}</span></div>'


def _name(name: str) -> str:
    return f'<i class="mark"></i><span>{text(name)}</span>'


def _strip(body: str, height: int) -> str:
    return f'<svg class="strip" width="100%" height="{height}" aria-hidden="true">{body}</svg>'


def _axis(scale: Scale, label: Callable[[Number], str]) -> str:
    ticks = "".join(_tick(scale(v), label(v).removesuffix(".0"), "middle") for v in scale.ticks())
    return f'<div class="row axis" aria-hidden="true"><span class="who"></span>{_strip(ticks, 18)}<span></span></div>'


def _tick(at: float, label: str, anchor: str) -> str:
    return f'<text x="{at:.2f}%" y="13" text-anchor="{anchor}">{label}</text>'


def _grid(scale: Scale, height: int) -> str:
    return "".join(_rule(scale(v), height, "grid") for v in scale.ticks())


def _rule(at: float, height: int, kind: str) -> str:
    return f'<line class="{kind}" x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="{height}"/>'


def _bar(start: float, stop: float, y: Number, kind: str) -> str:
    return f'<line class="{kind}" x1="{start:.2f}%" x2="{stop:.2f}%" y1="{y}" y2="{y}"/>'


def _whisker(row: Mark, scale: Scale, y: Number) -> str:
    if row.low is None or row.high is None:
        return ""
    return _bar(scale(row.low), scale(row.high), y, "interval")


def _dot(row: Mark, scale: Scale, y: Number) -> str:
    return f'<circle class="dot" cx="{scale(row.mean or 0.0):.2f}%" cy="{y}" r="5.5"/>'


def _level(at: float, height: int, label: str) -> str:
    y = at * height / 100
    words = f'<text x="-7" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    return f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>{words}'


def _stretch(body: str, height: int) -> str:
    box = f'viewBox="0 0 {WIDE} {height}" preserveAspectRatio="none"'
    return f'<svg class="curves" width="100%" height="{height}" {box}>{body}</svg>'


def _path(line: Sequence[Point], across: Scale, up: Scale, height: int, kind: str) -> str:
    places = (f"{WIDE * across(x) / 100:.0f},{height * (1 - up(y) / 100):.1f}" for x, y in line)
    return f'<polyline class="{kind}" points="{" ".join(places)}"/>'


def _points(line: Line, across: Scale, up: Scale, height: int) -> str:
    dots = "".join(
        f'<circle class="{line.style} dot" cx="{across(x):.2f}%" cy="{height * (1 - up(y) / 100):.1f}" r="3"/>'
        for x, y in line.points
    )
    if not line.stopped:
        return dots
    at, y = across(line.points[-1][0]), height * (1 - up(line.points[-1][1]) / 100)
    rest = f'<line class="stopped {line.style}" x1="{at:.2f}%" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{rest}{dots}<text class="stop {line.style}" x="{at:.2f}%" y="{y + 5:.1f}" text-anchor="middle">✕</text>'


def _ends(named: Sequence[Line | Place], wanted: Sequence[float], height: int) -> str:
    """Names at the right, whole, in the order of their places, pushed apart, with a hair line to where they belong."""
    ranked = sorted(zip(wanted, named, strict=True), key=lambda pair: pair[0])
    tall = [LINE * len(_lines(one.name)) + 3 for _, one in ranked]
    middle: list[float] = []
    free = 0.0  # pixels from the top that are taken
    for (y, _), needed in zip(ranked, tall, strict=True):
        middle.append(max(y, free + needed / 2))
        free = middle[-1] + needed / 2
    limit = float(height)
    for i in reversed(range(len(middle))):
        middle[i] = min(middle[i], limit - tall[i] / 2)
        limit = middle[i] - tall[i] / 2
    return "".join(
        f'<line class="lead {one.style}" x1="3" x2="16" y1="{y:.1f}" y2="{at:.1f}"/>{_label(one, at)}'
        for (y, one), at in zip(ranked, middle, strict=True)
    )


def _label(one: Line | Place, middle: float) -> str:
    words = _lines(one.name)
    top = middle + 4 - LINE * (len(words) - 1) / 2
    spans = "".join(f'<tspan x="20" y="{top + LINE * i:.1f}">{text(line)}</tspan>' for i, line in enumerate(words))
    taken = " taken" if isinstance(one, Place) and one.taken else ""
    return f'<text class="end {one.style}{taken}">{spans}</text>'


def _lines(name: str) -> list[str]:
    """A name in lines that its column holds: never cut."""
    return textwrap.wrap(name, LONGEST) or [""]


def _needed(named: Sequence[Line | Place]) -> int:
    """Pixels that the names take, one below the other."""
    return sum(LINE * len(_lines(one.name)) + 3 for one in named) + 8


def _steps(span: Number) -> list[float]:
    size = 10.0 ** math.floor(math.log10(span or 1.0) - 2)
    return [size * factor * 10**power for power in range(4) for factor in (1, 2, 5)]


def _log_ticks(low: Number, high: Number, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: -(-len(ticks) // most)]
