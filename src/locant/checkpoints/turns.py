"""How the tensors of one checkpoint become those of another: what the rules of `names.py` name as their turn.

A turn is two functions. `ours(parts, shapes)` gets their tensors and the shapes of ours in the model, and returns ours,
one per shape. The model may be of another size than the file (a file made for window 7, a model for window 12): return
tensors as large as the file has them, for resizing comes later. `theirs(parts, count)` gets our tensors and how many of
theirs are wanted, and returns them. Each undoes the other. A turn that a single family needs stands in that family's
file:

    SIGN = Turn(lambda parts, shapes: (-parts[0],), lambda parts, count: (-parts[0],))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from locant.checkpoints.wording import sides as sides_of

Shape = tuple[int, ...]
Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class Turn:
    """How the tensors of a rule become one another.

    Args:
        ours: (their tensors, shapes of ours in the model) → our tensors.
        theirs: (our tensors, how many of theirs) → their tensors.
    """

    ours: Callable[[Parts, tuple[Shape, ...]], Parts]
    theirs: Callable[[Parts, int], Parts]


SAME = Turn(lambda parts, shapes: parts, lambda parts, count: parts)


def _join(parts: Parts, sizes: tuple[int, ...]) -> Parts:
    """Along the first axis: one out of several, or several out of one in the ratio of `sizes`."""
    if len(sizes) == 1:
        return (torch.cat(parts),)
    whole, unit = parts[0].shape[0], sum(sizes)
    if len(parts) != 1 or any(size * whole % unit for size in sizes):
        raise RuntimeError(f"{whole} rows do not part into {sizes}")
    return tuple(part.clone() for part in parts[0].split([size * whole // unit for size in sizes]))


JOINED = Turn(
    lambda parts, shapes: _join(parts, tuple(shape[0] for shape in shapes)),
    lambda parts, count: _join(parts, (1,) * count),
)
"""Several tensors one after the other along the first axis: q, k, v ↔ qkv; in_proj ↔ q, k, v (equal parts outwards)."""

SHARED = Turn(lambda parts, shapes: parts * len(shapes), lambda parts, count: _equal(parts))
"""One tensor of theirs for all layers, of which each of ours has its own."""

STACKED = Turn(lambda parts, shapes: parts[0].unbind(0), lambda parts, count: (torch.stack(parts),))
"""One tensor of theirs, [layers, ...], for ours of every layer."""

FIRST = Turn(lambda parts, shapes: (parts[0].squeeze(0),), lambda parts, count: (parts[0][None],))
"""Theirs [1, ...], ours [...]: embeddings with an axis for the batch."""


def _equal(parts: Parts) -> Parts:
    if not all(torch.equal(part, parts[0]) for part in parts):
        raise ValueError(
            "this layout needs one tensor that all layers share; got layers that differ. "
            "Save the model in Locant's own layout."
        )
    return parts[:1]


def table_sizes(entries: int, sizes: Shape) -> Shape:
    """The sizes of a flat table's axes: those of the model if they fit, else a square one, axes of 1 kept.

    Published flat tables do not say their sides; those of pictures are square. Every other case must be said.
    """
    free = [axis for axis, size in enumerate(sizes) if size != 1]
    if torch.Size(sizes).numel() == entries:
        return sizes
    side = {1: entries, 2: round(entries**0.5)}.get(len(free), 0)
    if side % 2 == 0 or side ** len(free) != entries:
        raise ValueError(
            f"a flat table needs (2 H - 1)(2 W - 1) entries, of the model's sides {list(sizes)} or of a square window; "
            f"got {entries}. Say which window the file was made for: {sides_of('window', 'H, W')}."
        )
    return tuple(side if axis in free else 1 for axis in range(len(sizes)))


def _shaped(flat: Tensor, sizes: Shape) -> Tensor:
    if flat.ndim != 2:
        raise RuntimeError("a flat table has two axes")
    return flat.T.reshape(flat.shape[1], *table_sizes(flat.shape[0], sizes)).contiguous()


def _flat(table: Tensor) -> Tensor:
    return table.flatten(1).T.contiguous()


TABLE = Turn(lambda parts, shapes: (_shaped(parts[0], shapes[0][1:]),), lambda parts, count: (_flat(parts[0]),))
"""A flat bias table [(2H-1)(2W-1), heads] ↔ ours [heads, 2H-1, 2W-1], of one to three axes."""

TABLE_WITH_PREFIX = Turn(
    lambda parts, shapes: (_shaped(parts[0][:-3], shapes[0][1:]), *(row.clone() for row in parts[0][-3:])),
    lambda parts, count: (torch.cat([_flat(parts[0]), torch.stack(parts[1:])]),),
)
"""BEiT: three more rows, class to token, token to class, class to class ↔ (table, query_prefix, key_prefix, both)."""

ROWS_WITH_PREFIX = Turn(
    lambda parts, shapes: tuple(
        p.clone() for p in parts[0].reshape(-1, parts[0].shape[-1]).tensor_split([shapes[0][0]])
    ),
    lambda parts, count: (torch.cat(parts)[None],),
)
"""An embedding [1, prefix + cells, dim], the class token's row first ↔ (prefix [prefix, dim], table [cells, dim])."""
