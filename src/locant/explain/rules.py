"""Findings in words, by rules that are stated: each has one number, one limit, and one sentence.

| kind | a head or layer is called so where |
| --- | --- |
| positional | position explains at least half of the variance of its logits; under a gate, of its weights |
| before, after, up, down, left, right | a flat attention looks at least half a cell that way on average |
| mirror | the map of every head is its own mirror image along an axis, so that both directions look the same |
| duplicate | the maps of two heads of a layer correlate to at least 0.99 |
| dead | position moves less than 1 % of a flat attention's weight |
| saturated | a flat attention puts at least 99 % of its weight on one offset; a gate is within 1 % of 0 or 1 |
| resizing | at least 10 % of a flat attention's weight lies elsewhere after the table was resized |
| mask | a query sees nothing, or padding hides more keys than it leaves |
| unknown | a layer that could not be read; its reason |

What is dead is never called positional. What heads have in common is one sentence for all layers where the same heads
have it, and so are dead layers.
Layers and heads are counted from 0. Rotations are left out of `mirror`: what is drawn of them is a mean of cosines,
which is even, and their sines are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from locant.explain.data import Finding, Input, Layer, Resizing
from locant.explain.measures import apart, flat

POSITIONAL, HALF_CELL, ALIKE, DEAD, SATURATED, RESIZED, HIDDEN = 0.5, 0.5, 0.99, 0.01, 0.99, 0.1, 0.5
MIRROR = 1e-5  # of the map's range: float32 in two orders of summation
WAYS = {1: (("before", "after"),), 2: (("up", "down"), ("left", "right"))}
WAYS[3] = (*WAYS[1], *WAYS[2])
SENTENCES = {"before": "back", "after": "ahead", "up": "up", "down": "down", "left": "left", "right": "right"}


def find(layers: Sequence[Layer], resizings: Sequence[Resizing] = (), shown: Input | None = None) -> list[Finding]:
    """All findings, what is wrong first, then by rule, the strongest first."""
    found: list[Finding] = []
    for layer in layers:
        found += [*_mask(layer), *_unknown(layer)]
    found += _resized(resizings)
    for rule in (_positional, _direction, _mirror, _saturated, _duplicate):
        own = [one for layer in layers for one in rule(layer)]
        single = [one for one in own if isinstance(one, Finding)]
        joined = _join_groups([one for one in own if isinstance(one, _Group)])
        found += sorted([*single, *joined], key=lambda finding: -finding.value)
    return found + list(_dead(layers))


@dataclass(frozen=True)
class _Group:
    """Heads of one layer that have something in common.

    Attributes:
        kind, limit: of the finding.
        layer, heads: whose it is; `strongest` is the head that the finding leads to.
        values: the least and the largest.
        sentence: of who they are, of both values, and of whether that is so in several layers.
    """

    kind: str
    limit: float
    layer: int
    heads: tuple[int, ...]
    strongest: int
    values: tuple[float, float]
    sentence: Callable[[str, float, float, bool], str]


def _join_groups(groups: Sequence[_Group]) -> Iterator[Finding]:
    """One finding for the same heads of several layers; it leads to the strongest."""
    alike: dict[tuple[str, tuple[int, ...]], list[_Group]] = {}
    for group in groups:
        alike.setdefault((group.kind, group.heads), []).append(group)
    for (kind, own), same in alike.items():
        best = max(same, key=lambda group: group.values[1])
        least, most = min(group.values[0] for group in same), best.values[1]
        text = best.sentence(_who([group.layer for group in same], own), least, most, len(same) > 1)
        yield Finding(kind, text, best.layer, best.strongest, most, best.limit)


def _who(layers: Sequence[int], heads: Sequence[int]) -> str:
    names = ", ".join(map(str, heads[:-1])) + f" and {heads[-1]}" if len(heads) > 1 else str(heads[0])
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {_numbers(layers)}"
    return f"Head{'s' * (len(heads) > 1)} {names} of {where}"


def _positional(layer: Layer) -> Iterator[_Group]:
    dead = _dead_heads(layer)
    shares = {h.index: h.position_share if h.gate is None else h.gate for h in layer.heads if h.index not in dead}
    yield from _several(layer, "positional", shares, POSITIONAL, ("is {} position.", "are {} position."), _percents)


def _direction(layer: Layer) -> Iterator[_Group]:
    causal = () if layer.sight is None else layer.sight.causal
    ways: dict[str, dict[int, float]] = {}
    for head in layer.heads:
        for axis, mean in enumerate(head.direction):
            ordered = any((a or 0) == axis for a in causal)  # who may not look ahead looks back whatever it learns
            if not ordered:
                ways.setdefault(WAYS[len(head.direction)][axis][mean > 0], {})[head.index] = abs(mean)
    for kind, means in ways.items():
        verb = SENTENCES[kind]
        sentences = (f"looks {verb}, by {{}} cells on average.", f"look {verb}, by {{}} cells on average.")
        yield from _several(layer, kind, means, HALF_CELL, sentences, _cells)


def _several(
    layer: Layer, kind: str, values: dict[int, float], limit: float, sentences: tuple[str, str],
    said: Callable[[float, float], str],
) -> Iterator[_Group]:  # fmt: skip
    """The heads whose value reaches the limit."""
    who = {head: value for head, value in values.items() if value >= limit}

    def sentence(names: str, least: float, most: float, _: bool) -> str:
        return f"{names} " + sentences[len(who) > 1].format(said(least, most))

    if who:
        bounds = min(who.values()), max(who.values())
        yield _Group(kind, limit, layer.index, tuple(who), max(who, key=who.__getitem__), bounds, sentence)


def _mirror(layer: Layer) -> Iterator[Finding]:
    maps = [head.map for head in layer.heads if head.map is not None]
    if not maps or "rotate" in layer.entrance or (layer.sight is not None and layer.sight.causal):
        return
    for axis, size in enumerate(maps[0].shape):
        if size == 1 or any(np.isnan(m).any() or np.ptp(m) == 0 for m in maps):
            continue
        uneven = max(float(np.abs(m - np.flip(m, axis)).max() / np.ptp(m)) for m in maps)
        if uneven <= MIRROR:
            first, second = WAYS[maps[0].ndim][axis]
            text = f"Layer {layer.index} can't tell {first} from {second}: every head's map is its own mirror image."
            yield Finding("mirror", text, layer.index, None, uneven, MIRROR)


def _dead_heads(layer: Layer) -> dict[int, float]:
    """Of each head whose position moves next to nothing, how much of a flat attention it moves."""
    dead = {}
    for head in layer.heads:
        if head.map is None or np.isnan(head.map).any() or "rotate" in layer.entrance:
            continue
        weights = flat(head.map)
        moved = float(apart(weights, np.full(weights.shape, 1 / weights.size), tuple(range(weights.ndim))))
        if weights.size > 1 and moved < DEAD:
            dead[head.index] = moved
    return dead


def _dead(layers: Sequence[Layer]) -> Iterator[Finding]:
    found = {layer.index: (layer, _dead_heads(layer)) for layer in layers}
    whole = {index: max(dead.values()) for index, (layer, dead) in found.items() if 1 < len(dead) == len(layer.heads)}
    if whole:
        worst, first = max(whole.values()), min(whole)
        where = f"layer {first}" if len(whole) == 1 else f"layers {_numbers(sorted(whole))}"
        most = "even 0.1 %" if worst < 0.001 else f"more than {_percent(worst)}"
        text = f"Position says nothing in {where}: no head moves {most} of a flat attention."
        yield Finding("dead", text, first, None, worst, DEAD)
    for index, (_, dead) in found.items():
        for head, moved in dead.items() if index not in whole else ():
            where = f"head {head} of layer {index}"
            text = f"Position says nothing in {where}: it moves {_percent(moved)} of a flat attention."
            yield Finding("dead", text, index, head, moved, DEAD)


def _numbers(sorted_: Sequence[int]) -> str:
    """1, 2, 3, 7 as "1 to 3 and 7"."""
    runs: list[list[int]] = []
    for number in sorted_:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]


def _saturated(layer: Layer) -> Iterator[Finding]:
    for head in layer.heads:
        if head.map is not None and head.map.size > 1 and "rotate" not in layer.entrance:
            weights = flat(head.map)
            most = float(weights.max())
            if most >= SATURATED:
                centre = [size // 2 for size in weights.shape]
                place = [
                    c - int(i) for c, i in zip(centre, np.unravel_index(weights.argmax(), weights.shape), strict=True)
                ]
                where = "itself" if not any(place) else f"the key at {tuple(place)} from it"
                text = f"{_who([layer.index], [head.index])} is saturated: by position it looks at {where} alone."
                yield Finding("saturated", text, layer.index, head.index, most, SATURATED)
        if head.gate is not None and max(head.gate, 1 - head.gate) >= SATURATED:
            text = f"The gate of head {head.index} of layer {layer.index} is saturated at {head.gate:.3f}."
            yield Finding("saturated", text, layer.index, head.index, max(head.gate, 1 - head.gate), SATURATED)


def _duplicate(layer: Layer) -> Iterator[_Group]:
    if "rotate" in layer.entrance:  # one map for all heads by definition
        return
    maps = {h.index: h.map.ravel().astype(np.float64) for h in layer.heads if h.map is not None and np.ptp(h.map) > 0}
    centred = {i: (m - m.mean()) / np.linalg.norm(m - m.mean()) for i, m in maps.items()}
    taken: set[int] = set()
    for i in centred:
        same = [j for j in centred if j > i and j not in taken and float(centred[i] @ centred[j]) >= ALIKE]
        if same and i not in taken:
            taken |= set(same)
            least = min(float(centred[i] @ centred[j]) for j in same)
            yield _Group("duplicate", ALIKE, layer.index, (i, *same), i, (least, least), _alike_sentence)


def _alike_sentence(names: str, least: float, most: float, several: bool) -> str:
    return f"{names} have the same map of positions{' within each layer' * several} (correlation {least:.3f})."


def _resized(resizings: Sequence[Resizing]) -> Iterator[Finding]:
    for change in resizings:
        known = change.changed[~np.isnan(change.changed)]
        most = float(known.max()) if len(known) else float("nan")
        if most >= RESIZED:
            head = int(np.nanargmax(change.changed))
            text = (
                f"Resizing {change.name} ({change.method}) moved up to {_percent(most)} of a flat attention, "
                f"in head {head}."
            )
            yield Finding("resizing", text, None, head, most, RESIZED)


def _mask(layer: Layer) -> Iterator[Finding]:
    for row in layer.rows:
        total = row.both.reshape(len(row.both), -1).sum(1) + row.prefix[0].sum(1)
        if (total == 0).all():
            text = f"The query at {row.query} of layer {layer.index} sees nothing: is the mask inverted?"
            yield Finding("mask", text, layer.index, None, 0.0, 0.0)
            return
    hidden = None if layer.sight is None else layer.sight.hidden
    if hidden is not None and hidden.size and hidden.mean() > HIDDEN:
        text = (
            f"Padding hides {_percent(float(hidden.mean()))} of the keys of layer {layer.index}: is the mask inverted?"
        )
        yield Finding("mask", text, layer.index, None, float(hidden.mean()), HIDDEN)


def _unknown(layer: Layer) -> Iterator[Finding]:
    if layer.reason and not layer.heads:
        yield Finding("unknown", f"{layer.name or 'The model'}: {layer.reason}", layer.index)
    broken = [h.index for h in layer.heads if h.map is not None and np.isnan(h.map).any()]
    if broken:
        names = ", ".join(map(str, broken))
        text = f"Layer {layer.index} holds numbers that are not finite, in heads {names}: they are marked, not drawn."
        yield Finding("unknown", text, layer.index, broken[0])


def _percents(least: float, most: float) -> str:
    """Up to 100 %: position explains more than all of a head whose content works against it, which reads as a slip."""
    one, other = _percent(min(least, 1.0)), _percent(min(most, 1.0))
    return one if one == other else f"{one.removesuffix(' %')} to {other}"


def _cells(least: float, most: float) -> str:
    one, other = f"{least:.1f}", f"{most:.1f}"
    return one if one == other else f"{one} to {other}"


def _percent(share: float) -> str:
    return (
        "less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
    )
