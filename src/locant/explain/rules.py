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

Layers and heads are counted from 0. Rotations are left out of `mirror`: what is drawn of them is a mean of cosines,
which is even, and their sines are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from locant.explain.data import Finding, Head, Input, Layer, Resizing
from locant.explain.measures import apart, flat

POSITIONAL, HALF_CELL, ALIKE, DEAD, SATURATED, RESIZED, HIDDEN = 0.5, 0.5, 0.99, 0.01, 0.99, 0.1, 0.5
MIRROR = 1e-5  # of the map's range: float32 in two orders of summation
WAYS = {1: (("before", "after"),), 2: (("up", "down"), ("left", "right"))}
WAYS[3] = (*WAYS[1], *WAYS[2])
SENTENCES = {
    "before": "looks back", "after": "looks ahead", "up": "looks up", "down": "looks down", "left": "looks left",
    "right": "looks right",
}  # fmt: skip


def find(layers: Sequence[Layer], resizings: Sequence[Resizing] = (), shown: Input | None = None) -> list[Finding]:
    """All findings, what is wrong first, then by rule, the strongest first."""
    found: list[Finding] = []
    for layer in layers:
        found += [*_mask(layer), *_unknown(layer)]
    found += _resized(resizings)
    by_rule = (_positional, _direction, _mirror, _dead, _saturated, _duplicate)
    for rule in by_rule:
        own = [finding for layer in layers for finding in rule(layer)]
        found += sorted(own, key=lambda finding: -finding.value) if rule is not _dead else own
    return found


def _who(layer: Layer, head: Head) -> str:
    return f"Head {head.index} of layer {layer.index}"


def _positional(layer: Layer) -> Iterator[Finding]:
    for head in layer.heads:
        share = head.gate if head.gate is not None else head.position_share
        if share >= POSITIONAL:
            text = f"{_who(layer, head)} is {_percent(share)} position."
            yield Finding("positional", text, layer.index, head.index, share, POSITIONAL)


def _direction(layer: Layer) -> Iterator[Finding]:
    causal = () if layer.sight is None else layer.sight.causal
    for head in layer.heads:
        for axis, mean in enumerate(head.direction):
            ordered = any((a or 0) == axis for a in causal)  # who may not look ahead looks back whatever it learns
            if abs(mean) >= HALF_CELL and not ordered:
                kind = WAYS[len(head.direction)][axis][mean > 0]
                text = f"{_who(layer, head)} {SENTENCES[kind]}, by {abs(mean):.1f} cells on average."
                yield Finding(kind, text, layer.index, head.index, abs(mean), HALF_CELL)


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


def _dead(layer: Layer) -> Iterator[Finding]:
    dead = []
    for head in layer.heads:
        if head.map is None or np.isnan(head.map).any() or "rotate" in layer.entrance:
            continue
        weights = flat(head.map)
        moved = float(apart(weights, np.full(weights.shape, 1 / weights.size), tuple(range(weights.ndim))))
        if weights.size > 1 and moved < DEAD:
            dead.append((head.index, moved))
    if len(dead) > 1 and len(dead) == len(layer.heads):
        worst = max(moved for _, moved in dead)
        moved_most = f"no head moves more than {_percent(worst)} of a flat attention"
        text = f"Position says nothing in layer {layer.index}: {moved_most}."
        yield Finding("dead", text, layer.index, None, worst, DEAD)
        return
    for index, moved in dead:
        where = f"head {index} of layer {layer.index}"
        text = f"Position says nothing in {where}: it moves {_percent(moved)} of a flat attention."
        yield Finding("dead", text, layer.index, index, moved, DEAD)


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
                text = f"{_who(layer, head)} is saturated: by position it looks at {where} alone."
                yield Finding("saturated", text, layer.index, head.index, most, SATURATED)
        if head.gate is not None and max(head.gate, 1 - head.gate) >= SATURATED:
            text = f"The gate of head {head.index} of layer {layer.index} is saturated at {head.gate:.3f}."
            yield Finding("saturated", text, layer.index, head.index, max(head.gate, 1 - head.gate), SATURATED)


def _duplicate(layer: Layer) -> Iterator[Finding]:
    if "rotate" in layer.entrance:  # one map for all heads by definition
        return
    maps = {h.index: h.map.ravel().astype(np.float64) for h in layer.heads if h.map is not None and np.ptp(h.map) > 0}
    centred = {i: (m - m.mean()) / np.linalg.norm(m - m.mean()) for i, m in maps.items()}
    taken: set[int] = set()
    for i in centred:
        same = [j for j in centred if j > i and j not in taken and float(centred[i] @ centred[j]) >= ALIKE]
        if same and i not in taken:
            taken |= set(same)
            names = ", ".join(map(str, [i, *same][:-1])) + f" and {same[-1]}"
            least = min(float(centred[i] @ centred[j]) for j in same)
            text = f"Heads {names} of layer {layer.index} have the same map of positions (correlation {least:.3f})."
            yield Finding("duplicate", text, layer.index, i, least, ALIKE)


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


def _percent(share: float) -> str:
    return (
        "less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
    )
