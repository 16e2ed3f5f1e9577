"""What the scheme of a layer does to its heads, from weights alone: maps over offsets, and what they say.

Bias: the table. Gate: position's own logits. Rotation: the mean cosine of its turns, times √head_dim as logits (what
vectors of ones would have). A scheme that acts through the queries: the lengths of its vectors, and the map that a
query of zeros meets, where that is not 0 (Transformer-XL's v).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from locant.cells import reach
from locant.explain.data import Head, Sight, Waves
from locant.explain.measures import flat, looks, offsets, profile
from locant.explain.recording import Seen
from locant.forms import AxialVectors
from locant.grid import Grid
from locant.masks import Causal, Padding, Structure, Windows
from locant.positions.position import Content, Gate, Rotation


@torch.no_grad()
def heads_of(seen: Seen, measures: Sequence[Float[np.ndarray, "5 heads"]] = ()) -> tuple[Head, ...]:
    """Every head of a layer; `measures` of queries as `measures.split` has them, whose mean is taken."""
    structure = Structure.of(seen.mask)
    needed = reach(*(seen.reached or (seen.grid, seen.key_grid)), structure.windows)
    maps, sharp = _maps(seen, needed)
    lines = _lines(seen, needed)
    prefix, gates = _prefix(seen), None
    if seen.schemes.gate is not None:
        gates = seen.schemes.gate.values(seen.grid, seen.key_grid).share
    visible = None if maps is None else _visible(maps.shape[1:], structure)
    shown = _mean(measures, seen.heads)
    heads = []
    for index in range(seen.heads):
        own = None if maps is None else maps[index]
        weights = None if own is None else flat(own * sharp, visible)
        far, uneven, direction = (float("nan"), float("nan"), ()) if weights is None else looks(weights)
        heads.append(
            Head(
                index, own, tuple(line[min(index, len(line) - 1)] for line in lines),
                None if prefix is None else prefix[index],
                None if own is None or weights is None else profile(own, weights), far, uneven, direction,
                None if gates is None else float(gates[index]), *(float(x) for x in shown[:, index]),
            )
        )  # fmt: skip
    return tuple(heads)


def _mean(measures: Sequence[np.ndarray], heads: int) -> np.ndarray:
    if not measures:
        return np.full((5, heads), np.nan)
    stacked = np.stack(measures)
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def _maps(seen: Seen, needed: tuple[int, ...]) -> tuple[Float[np.ndarray, "heads *offsets"] | None, float]:
    """Over offsets query - key, and what they are multiplied with to be logits."""
    schemes = seen.schemes
    added: list[Tensor | None] = [bias.within(needed) for bias in schemes.biases]
    added += [] if schemes.content is None else [_content_map(schemes.content, needed, seen)]
    there = [x for x in added if x is not None]
    if there:
        return _array(sum(there[1:], there[0])), 1.0
    if schemes.gate is not None:
        return _array(_gate_map(schemes.gate, needed)), 1.0
    if schemes.rotation is not None:
        one = rotation_map(schemes.rotation, needed)
        return np.broadcast_to(one, (seen.heads, *one.shape)), schemes.rotation.head_dim**0.5
    return None, 1.0


def _array(x: Tensor) -> Float[np.ndarray, "heads *offsets"]:
    found: np.ndarray = x.detach().float().cpu().numpy().copy()
    found[~np.isfinite(found)] = np.nan  # marked, and not drawn as a colour
    return found


def rotation_map(position: Rotation, needed: tuple[int, ...]) -> Float[np.ndarray, " *offsets"]:
    """The mean cosine between the turns of a query and of a key at every offset."""
    grid = Grid(*(2 * r + 1 for r in needed))
    turned = position(torch.ones(1, 1, grid.tokens, position.head_dim), grid)[0, 0]
    cosines = (turned @ turned[grid.tokens // 2]) / position.head_dim
    return _array(
        cosines.unflatten(0, grid.shape).flip(*range(grid.axes))
    )  # of key - centre, so the offset is its negative


def _gate_map(position: Gate, needed: tuple[int, ...]) -> Float[Tensor, "heads *offsets"]:
    keys = Grid(*(2 * r + 1 for r in needed))
    one = Grid(*(1 for _ in needed), origin=needed)
    values = position.values(one, keys)
    total = torch.zeros(())
    for axis, line in enumerate(values.logits):
        total = total + _along(line[:, 0], axis, len(needed))
    return total.flip(*range(1, total.ndim))


def _zero_query(position: Content, needed: tuple[int, ...], seen: Seen) -> tuple[AxialVectors, Tensor]:
    form = AxialVectors(position.heads, position.ranges(needed))
    device = next((x.device for x in (*position.parameters(), *position.buffers())), None)
    return form, torch.zeros(1, position.heads, 1, position.head_dim, device=device)


def _content_map(position: Content, needed: tuple[int, ...], seen: Seen) -> Float[Tensor, "heads *offsets"] | None:
    form, q = _zero_query(position, needed, seen)
    scale = seen.scale if isinstance(seen.scale, float) else seen.scale.float()
    terms = position.values(form, q, scale).terms()
    if not any(bool(line.any()) for line in terms.lines):
        return None
    total = torch.zeros(())
    for axis, (line, (low, high), r) in enumerate(zip(terms.lines, terms.ranges, needed, strict=True)):
        at = (torch.arange(-r, r + 1, device=line.device).clamp(low, high) - low).to(line.device)
        total = total + _along(line[0, :, 0][:, at], axis, len(needed))
    return total


def _along(line: Float[Tensor, "heads n"], axis: int, axes: int) -> Tensor:
    """A line of each head laid along one axis of a map."""
    return line.reshape(len(line), *(line.shape[1] if a == axis else 1 for a in range(axes)))


def _lines(seen: Seen, needed: tuple[int, ...]) -> list[Float[np.ndarray, "heads_or_1 offsets"]]:
    """Per axis the lengths of the vectors that queries meet."""
    if seen.schemes.content is None:
        return []
    form, q = _zero_query(seen.schemes.content, needed, seen)
    return [_array(v.norm(dim=-1)) for v in seen.schemes.content.values(form, q, 1.0).vectors]


def _prefix(seen: Seen) -> list[tuple[float, float, float]] | None:
    rows = [row for bias in seen.schemes.biases if (row := bias.prefix_rows()) is not None]
    if not rows:
        return None
    total = [sum(float(x[h]) for x in part) for part in zip(*rows, strict=True) for h in range(seen.heads)]
    n = seen.heads
    return [(total[h], total[n + h], total[2 * n + h]) for h in range(n)]


def _visible(shape: tuple[int, ...], structure: Structure) -> Bool[np.ndarray, " *offsets"] | None:
    """Offsets that an order leaves: query - key is not below 0, on its axis or in row-major order."""
    if not structure.causal:
        return None
    apart, seen = offsets(shape), np.ones(shape, bool)
    for causal in structure.causal:
        if causal.axis is not None:
            seen &= apart[causal.axis] >= 0
            continue
        rank = np.zeros(shape)
        for line, size in zip(apart, shape, strict=True):
            rank = rank * (2 * size) + line
        seen &= rank >= 0
    return seen


def sight_of(seen: Seen) -> Sight:
    """Who sees whom, said of coordinates."""
    members = () if seen.mask is None else tuple(seen.mask.members())
    windows = tuple((m.size, m.shift) for m in members if isinstance(m, Windows))
    causal = tuple(m.axis for m in members if isinstance(m, Causal))
    hidden = None
    for m in members:
        if isinstance(m, Padding):
            valid = m.valid[0, seen.key_grid.prefix :].reshape(seen.key_grid.shape).cpu().numpy()
            hidden = ~valid if hidden is None else hidden | ~valid
    keys, grid = seen.key_grid, seen.grid
    words = [f"Windows of {_x(size)}" + (f", shifted by {_x(shift)}" if any(shift) else "") for size, shift in windows]
    words += ["keys up to the query" if axis is None else f"keys up to the query on axis {axis}" for axis in causal]
    words += [] if hidden is None else ["keys that are there"]
    others = [type(m).__name__ for m in members if not isinstance(m, Windows | Causal | Padding)]
    words += [f"what {' and '.join(others)} allow, which is not drawn"] if others else []
    if seen.regrouped:
        words.append("windows cut from a map that they do not divide, filled with zeros")
    sentence = "; ".join(words) or "every query sees every key"
    return Sight(
        grid.shape, keys.shape, tuple(q - k for q, k in zip(grid.origin, keys.origin, strict=True)), grid.stride,
        grid.prefix, windows, causal, hidden, f"{sentence[0].upper()}{sentence[1:]}.",
    )  # fmt: skip


def waves_of(seen: Seen) -> Waves | None:
    """The frequencies of a rotary, measured: the angle by which one step along an axis turns each pair."""
    rotation = seen.schemes.rotation
    if rotation is None:
        return None
    axes, found = seen.grid.axes, []
    for axis in range(axes):
        grid = Grid(*(2 if a == axis else 1 for a in range(axes)))
        basis = torch.eye(rotation.head_dim, dtype=torch.float64)[:, None, None].expand(-1, 1, 2, -1)
        turned = rotation(basis, grid)[:, 0]
        first, second = turned[:, 0], turned[:, 1]
        cosine = (first * second).sum(-1).clamp(-1, 1)
        found += [
            (axis, float(a)) for a in sorted(set(np.round(torch.arccos(cosine).numpy(), 7)), reverse=True) if a > 0
        ]
    return Waves("rotary", tuple(a for a, _ in found), np.array([f for _, f in found], np.float32))


def _x(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
