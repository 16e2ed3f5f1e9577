"""Packed copies of weights: kept beside the weight, made anew when it has moved, gone when it goes.

A weight has moved when its address, version, dtype, shape or strides have. What counts no versions (an inference
tensor) is packed at every call, and a write through `.data`, which counts none either, is told by `forget`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor


class _Kept:
    """A packed copy of a weight, and what the weight was when it was made."""

    def __init__(self, weight: Tensor, copy: Tensor, mark: tuple[Any, ...], itemsize: int) -> None:
        self.copy, self.mark, self.bytes = copy, mark, weight.numel() * itemsize
        self.gone = weakref.finalize(weight, _KEPT.pop, id(weight), None)
        self.gone.atexit = False


_KEPT: dict[int, _Kept] = {}


def packed(weight: Tensor, order: Hashable, itemsize: int, pack: Callable[[], Tensor], keep: bool) -> Tensor:
    """The weight in the order of a product, from memory where it is kept and has not moved.

    Args:
        order: whose order it is: another one is another copy.
        itemsize: bytes of a number of the copy.
        pack: makes the copy.
    """
    if not keep or weight.is_inference():
        return pack()
    mark = weight.data_ptr(), weight._version, weight.dtype, weight.shape, weight.stride(), order
    kept = _KEPT.get(id(weight))
    if kept is None or kept.mark != mark:
        if kept is not None:
            kept.gone.detach()
        kept = _KEPT[id(weight)] = _Kept(weight, pack(), mark, itemsize)
    return kept.copy


def forget(weight: Tensor) -> int:
    """Drop the packed copy of a weight, if there is one; returns its bytes."""
    kept = _KEPT.pop(id(weight), None)
    if kept is None:
        return 0
    kept.gone.detach()
    return kept.bytes


def kept_bytes(weight: Tensor) -> int:
    """Bytes of the packed copy that is kept of a weight."""
    kept = _KEPT.get(id(weight))
    return 0 if kept is None else kept.bytes
