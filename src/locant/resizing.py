"""Tables and embeddings from grid to grid, by named methods.

    method      axes    new value at index i of n', from an old axis of n
    "linear"    1-3     x[t], t = i (n - 1) / (n' - 1), linear between neighbours, one axis after the other:
                        end points fall on end points, so the centre of an offset table stays its centre and
                        a table that is linear in the offset stays linear
    "clip"      1-3     x at the same distance from the centre, and beyond the old reach the edge: the same pixels on a
                        larger canvas, where "linear" would stretch them (Shaw et al., arXiv 1803.02155, eq. 4)
    "bicubic"   2       torch's bicubic interpolation without aligned corners or antialiasing: what Swin's
                        published loader does to bias tables, and DeiT, MAE and transformers' ViT to positions

A single new cell (n' = 1) is read at the old centre. Sizes are arguments and never the root of a length; equal sizes
give the values back unchanged. float16 and bfloat16 are computed in float32. Every function returns a fresh tensor of
the same dtype and device through which gradients flow.

Published variants that differ: timm resamples positions with antialiasing, and bias tables on a geometric sequence of
distances, so its numbers are not these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def resize_table(
    table: Float[Tensor, "heads *sizes"], sizes: Sequence[int], method: str = "linear"
) -> Float[Tensor, "heads *new_sizes"]:
    """An offset table on other sizes: `[heads, *sizes]`, 2 r + 1 per axis, the zero offset at the centre.

    Args:
        table: one value per head and offset, odd sizes.
        sizes: the new sizes, odd as well, one per axis of the table.
        method: "linear", "clip" or "bicubic".

    Raises:
        ValueError: for sizes that are not odd, or not one per axis; for a method that is unknown or does not work
            on that number of axes.
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
        method: "linear", "clip" or "bicubic".

    Raises:
        ValueError: if the rows do not fill `old_shape`, if the number of axes changes, if a size is below 1; for a
            method that is unknown or does not work on that number of axes.
    """
    old, new = tuple(old_shape), tuple(new_shape)
    if rows.shape[0] != math.prod(old) or len(old) != len(new) or min(*old, *new) < 1:
        raise ValueError(
            f"resize_embedding needs one row per cell of `old_shape`, and as many sizes of at least 1 in `new_shape`; "
            f"got {rows.shape[0]} rows for {old} to {new}. Take the prefix rows off first and give both shapes as "
            "(time, row, column)."
        )
    return _resized(rows.T.reshape(rows.shape[1], *old), new, method).flatten(1).T.contiguous()


def _resized(values: Float[Tensor, "channels *sizes"], sizes: tuple[int, ...], method: str) -> Tensor:
    if method not in METHODS:
        raise ValueError(
            f"resizing needs a method out of {', '.join(map(repr, METHODS))}; got {method!r}. "
            'Use "linear" unless you follow a published recipe.'
        )
    resample, axes = METHODS[method]
    if len(sizes) not in axes:
        works = ", ".join(repr(name) for name, (_, able) in METHODS.items() if len(sizes) in able)
        raise ValueError(
            f"method {method!r} needs {' or '.join(map(str, axes))} axes; got {len(sizes)}: sizes {sizes}. "
            f"Here these work: {works or 'none, for Locant has one to three axes'}."
        )
    if tuple(values.shape[1:]) == sizes:
        return values.clone()
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return resample(wide, sizes).to(values.dtype)


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


def _bicubic(values: Float[Tensor, "channels *sizes"], sizes: tuple[int, ...]) -> Tensor:
    return F.interpolate(values[None], size=sizes, mode="bicubic", align_corners=False)[0]


METHODS: dict[str, tuple[Callable[[Tensor, tuple[int, ...]], Tensor], tuple[int, ...]]] = {
    "linear": (_linear, (1, 2, 3)),
    "clip": (_clip, (1, 2, 3)),
    "bicubic": (_bicubic, (2,)),
}
