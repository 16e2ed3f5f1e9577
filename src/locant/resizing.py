"""Tables and embeddings from grid to grid, by named methods, on one to three axes.

    method          new value at index i of n', from an old axis of n
    "linear"        x[t], t = i (n - 1) / (n' - 1), linear between neighbours, one axis after the other: end points
                    fall on end points, so the centre of an offset table stays its centre and a table that is linear
                    in the offset stays linear
    "clip"          x at the same distance from the centre, and beyond the old reach the edge: the same pixels on a
                    larger canvas, where "linear" would stretch them (Shaw et al., arXiv 1803.02155, eq. 4)
    "bilinear"      x[t], t = (i + 1/2) n / n' - 1/2, linear between neighbours, the edge beyond the borders
    "bicubic"       at the same t by cubic convolution over four neighbours: what Swin's published loader and timm's
                    `resize_rel_pos_bias_table_simple` do to bias tables, and DeiT, MAE and transformers' ViT to
                    positions
    "antialiased"   the same, the kernel widened by n / n' where that is above 1: what timm does to positions
                    (`resample_abs_pos_embed`) and LeViT's and TinyViT's loaders to tables (timm's `_levit`)
    "geometric"     the old value of distance j from the centre lies at 1 + q + ... + q^(j-1), with the q between 1.01
                    and 1.5 for which the outermost lies at the new reach; linear between them, and the edge beyond:
                    what timm's `resize_rel_pos_bias_table` does unless told otherwise. Tables only. Made for growing
                    ones: a smaller table is read near the centre, at its old scale

A single new cell lies at the old centre. Sizes are arguments and never the root of a length; equal sizes
give the values back unchanged. float16 and bfloat16 are computed in float32. Every function returns a fresh tensor of
the same dtype and device through which gradients flow.

Axes of one cell that stay one cell play no part: a table [heads, 1, 13, 13] is resized as a picture's. On three axes
the cubic methods act on rows and columns and then along time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Resample = Callable[[Tensor, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Place:
    """How a tensor lies on a grid.

    kind: "table" [heads, 2 s - 1 per axis], "line" [2 s - 1, dim], "rows" [cells, dim].
    shape: the sizes s.
    """

    kind: str
    shape: tuple[int, ...]


def resize_table(
    table: Float[Tensor, "heads *sizes"], sizes: Sequence[int], method: str = "linear"
) -> Float[Tensor, "heads *new_sizes"]:
    """An offset table on other sizes: `[heads, *sizes]`, 2 r + 1 per axis, the zero offset at the centre.

    Args:
        table: one value per head and offset, odd sizes.
        sizes: the new sizes, odd as well, one per axis of the table.
        method: one of those above.

    Raises:
        ValueError: for sizes that are not odd, or not one per axis; for an unknown method.
    """
    old, new = tuple(table.shape[1:]), tuple(sizes)
    if len(new) != len(old) or not all(n >= 1 and n % 2 for n in (*old, *new)):
        raise ValueError(
            f"resize_table needs odd sizes (2 r + 1), one per axis, for the table and for `sizes`; got {old} to {new}. "
            "A table that reaches r cells has 2 r + 1 entries per axis; embeddings go through resize_embedding."
        )
    return _resized(table, new, method)


def resize_embedding(
    rows: Float[Tensor, "cells dim"], old_shape: Sequence[int], new_shape: Sequence[int], method: str = "linear"
) -> Float[Tensor, "new_cells dim"]:
    """Embedding rows of the cells of one grid (row-major, no prefix) on a grid of another shape.

    Args:
        rows: one vector per cell of `old_shape`.
        old_shape: sizes of the grid that the rows belong to.
        new_shape: sizes of the grid that they are wanted for, as many.
        method: one of those above, but "geometric", which is for distances from a centre.

    Raises:
        ValueError: if the rows do not fill `old_shape`, if the number of axes changes, if a size is below 1; for a
            method that is unknown or not for embeddings.
    """
    old, new = tuple(old_shape), tuple(new_shape)
    if rows.shape[0] != math.prod(old) or len(old) != len(new) or min(*old, *new) < 1:
        raise ValueError(
            f"resize_embedding needs one row per cell of `old_shape`, and as many sizes of at least 1 in `new_shape`; "
            f"got {rows.shape[0]} rows for {old} to {new}. Take the prefix rows off first and give both shapes as "
            "(time, row, column)."
        )
    if method == "geometric":
        raise ValueError(
            'resize_embedding needs a method for places; got "geometric", which is for a table of distances. '
            'Use "antialiased", as timm does for positions, or "linear".'
        )
    return _resized(rows.T.reshape(rows.shape[1], *old), new, method).flatten(1).T.contiguous()


def _resized(values: Float[Tensor, "channels *sizes"], sizes: tuple[int, ...], method: str) -> Tensor:
    if method not in METHODS:
        raise ValueError(
            f"resizing needs a method out of {', '.join(map(repr, METHODS))}; got {method!r}. "
            'Use "linear" unless you follow a published recipe.'
        )
    if tuple(values.shape[1:]) == sizes:
        return values.clone()
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    live = [axis for axis, pair in enumerate(zip(values.shape[1:], sizes, strict=True)) if pair != (1, 1)]
    wide = wide.reshape(values.shape[0], *(values.shape[1 + axis] for axis in live))
    resized = METHODS[method](wide, tuple(sizes[axis] for axis in live))
    return resized.reshape(values.shape[0], *sizes).to(values.dtype)


def _linear(values: Float[Tensor, "channels *sizes"], sizes: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(sizes, start=1):
        old = values.shape[axis]
        if old == size:
            continue
        # t = steps / span in whole numbers: ends and centre are met exactly, not within a rounding
        i = torch.arange(size, device=values.device)
        steps, span = (i * (old - 1), size - 1) if size > 1 else (i + old - 1, 2)
        low = steps // span
        part = ((steps % span).to(values.dtype) / span).reshape(-1, *[1] * (values.ndim - 1 - axis))
        below = values.index_select(axis, low)
        above = values.index_select(axis, (low + 1).clamp(max=old - 1))
        values = below + part * (above - below)
    return values


def _clip(values: Float[Tensor, "channels *sizes"], sizes: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(sizes, start=1):
        old = values.shape[axis]
        i = torch.arange(size, device=values.device) + (old - size) // 2
        values = values.index_select(axis, i.clamp(0, old - 1))
    return values


def _geometric(values: Float[Tensor, "channels *sizes"], sizes: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(sizes, start=1):
        if values.shape[axis] == 1:
            values = values.repeat_interleave(size, axis)
            continue
        places = torch.tensor(_progression(values.shape[axis] // 2, size // 2), dtype=values.dtype)
        wanted = torch.arange(-(size // 2), size // 2 + 1).to(values.dtype).clamp(places[0], places[-1])
        low = (torch.searchsorted(places, wanted) - 1).clamp(min=0)
        part = ((wanted - places[low]) / (places[low + 1] - places[low])).to(values.device)
        part = part.reshape(-1, *[1] * (values.ndim - 1 - axis))
        below, above = (values.index_select(axis, i.to(values.device)) for i in (low, low + 1))
        values = torch.lerp(below, above, part)  # exact at both ends: the centre stays what it was
    return values


def _progression(old: int, new: int) -> list[float]:
    """Where distances -old ... old lie: in steps of 1, q, q², ..., `old` of which add up to new, by bisection."""
    low, high, q = 1.01, 1.5, 1.255
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**old) / (1 - q) > new else (q, high)
    right = list(itertools.accumulate(q**i for i in range(old)))
    return [*(-place for place in reversed(right)), 0.0, *right]


def _interpolated(mode: str, *, antialias: bool = False) -> Resample:
    """torch's own, without aligned corners, one axis at a time, the last first, as torch does it on pictures.

    Each is laid along rows: with antialiasing torch 2.13 gives wrong numbers for columns of a map one cell wide.
    """

    def resample(values: Float[Tensor, "channels *sizes"], sizes: tuple[int, ...]) -> Tensor:
        for axis in range(len(sizes), 0, -1):
            last = values.movedim(axis, -1)
            line, size = last.flatten(0, -2)[None, :, None], (1, sizes[axis - 1])
            line = F.interpolate(line, size=size, mode=mode, align_corners=False, antialias=antialias)
            values = line.view(*last.shape[:-1], size[1]).movedim(-1, axis)
        return values

    return resample


METHODS: dict[str, Resample] = {
    "linear": _linear,
    "clip": _clip,
    "bilinear": _interpolated("bilinear"),
    "bicubic": _interpolated("bicubic"),
    "antialiased": _interpolated("bicubic", antialias=True),
    "geometric": _geometric,
}
