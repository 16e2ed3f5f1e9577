"""Multiply-adds by formula: of one attention, of one operator of torch; and the figures that others publish.

    logits     heads · pairs · head_dim         pairs of a query and a key that lie in one window
    values     heads · pairs · value_dim
    position   of a gate: heads · pairs · (axes + 1), once for the batch
               of content: heads · head_dim · (keys on each axis), per query; Transformer-XL's W_r besides, once

Windows count as they are cut, smaller at borders. Order, padding and other masks take no pair away, as is usual.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from locant.cells import cells
from locant.problem import Problem


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds by part; FLOPs are twice as many. They add up."""

    projections: int = 0
    logits: int = 0
    values: int = 0
    position: int = 0
    convolution: int = 0

    @property
    def total(self) -> int:
        return sum(astuple(self))

    @property
    def flops(self) -> int:
        return 2 * self.total

    def __add__(self, other: MultiplyAdds) -> MultiplyAdds:
        return MultiplyAdds(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def attention(problem: Problem) -> MultiplyAdds:
    """Of one call of `locant.attention`, without what a scheme computes for itself (a perceptron, W_r R)."""
    rows, grid, key_grid = problem.batch * problem.heads, problem.grid, problem.key_grid
    lines = []  # pairs of coordinates, axis by axis
    for axis in range(grid.axes):
        along = cells(problem.mask.windows, axis, grid, key_grid)
        lines.append(sum((c.queries[1] - c.queries[0]) * (c.keys[1] - c.keys[0]) for c in along))
    pairs, position = math.prod(lines), 0
    if problem.gate is not None:
        position += (grid.axes + 1) * problem.heads * pairs
    if problem.content is not None:
        met = sum(line * grid.cells // side for line, side in zip(lines, grid.shape, strict=True) if side)
        position += rows * met * problem.head_dim
    pairs += key_grid.prefix * grid.cells + grid.prefix * key_grid.tokens
    return MultiplyAdds(
        logits=rows * pairs * problem.head_dim, values=rows * pairs * problem.value_dim, position=position
    )


def distances(problem: Problem, clamp: int | None = None) -> int:
    """How many distances query - key there are in a sequence, those beyond `clamp` being one; under order none < 0."""
    found = []
    for cell in cells(problem.mask.windows, 0, problem.grid, problem.key_grid):
        q, k = problem.grid.along(0)[slice(*cell.queries)], problem.key_grid.along(0)[slice(*cell.keys)]
        found += [q[0] - k[-1], q[-1] - k[0]] if q and k else []
    if not found:
        return 0
    low, high = min(found), max(found)
    low = max(low, 0) if problem.mask.causal else low
    if clamp is not None:
        low, high = max(low, -clamp), min(high, clamp)
    return max(0, high - low + 1)


def published_aim(dim: int, heads: int, N: int, T: int, temporal: bool = False) -> int:  # noqa: N803
    """What AIM's `WindowAttention.flops(N, T, temporal)` returns: 2 h ⌊C/h⌋ N² T, or 2 C N T² over time.

    Multiply-adds of q kᵀ and A v alone, for one window of N tokens in all of its T frames; `count` and `aim_window`
    say what the rest costs. Its own comment speaks of one window of N tokens, and texts about it of qkv, projections
    and maps [N, T, T]: the first two are commented out, and the maps are [T, h, N, N] in space, [N, h, T, T] in time.
    Source: taoyang1122/adapt-image-models `swin2d_adapter.py`.
    """
    return 2 * dim * N * T * T if temporal else 2 * heads * (dim // heads) * N * N * T


def published_aim_swin(
    shape: tuple[int, int] = (56, 56),
    *,
    dim: int = 128,
    depths: tuple[int, ...] = (2, 2, 18, 2),
    heads: tuple[int, ...] = (4, 8, 16, 32),
    window: int = 7,
    frames: int = 16,
) -> int:
    """What AIM's whole Swin adapter returns: `published_aim` per window and block, over time in even blocks alone.

    Patches, merging, perceptrons, adapters, qkv and projections count 0 there. The published number of windows is
    rows · columns / window², a fraction where it does not divide.
    """
    total = 0.0
    for stage, (depth, h) in enumerate(zip(depths, heads, strict=True)):
        windows = shape[0] * shape[1] / 4**stage / window**2
        for block in range(depth):
            axes = (False, True) if block % 2 == 0 else (False,)
            total += windows * sum(published_aim(dim * 2**stage, h, window**2, frames, time) for time in axes)
    return round(total)


def published_swin(dim: int, heads: int, N: int) -> int:  # noqa: N803
    """What Swin's `WindowAttention.flops(N)` returns, in multiply-adds: 4 N C² + 2 h ⌊C/h⌋ N², for one window.

    This one is right, and equals `aim_window(dim, N, 1)`.
    Source: microsoft/Swin-Transformer `swin_transformer.py`.
    """
    return 4 * N * dim * dim + 2 * heads * (dim // heads) * N * N


def aim_window(dim: int, N: int, T: int, temporal: bool = False, *, with_qkv: bool = True) -> MultiplyAdds:  # noqa: N803
    """What one window of N tokens costs in all of its T frames: T (4 N C² + 2 N² C), or over time N (4 T C² + 2 T² C).

    Args:
        dim: C, channels of a token.
        N: tokens of a window; over time the positions that attend, each to itself.
        T: frames.
        temporal: whether the attention is over time.
        with_qkv: whether there are projections at all.
    """
    pairs = N * T * T if temporal else T * N * N
    return MultiplyAdds(projections=4 * N * T * dim * dim * with_qkv, logits=pairs * dim, values=pairs * dim)


# --- one operator of torch -------------------------------------------------------------------------------------------


def _trilinear(a: Tensor, b: Tensor, c: Tensor, *expanded: list[int] | int, **_: Any) -> int:
    """nn.Bilinear: each weight once per sample. `expanded` names the axes of size 1 that a, b and c are given."""
    shapes = []
    for x, axes in zip((a, b, c), expanded, strict=False):
        shape = list(x.shape)
        for axis in sorted(axes if isinstance(axes, list) else [axes]):
            shape.insert(axis, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


# what torch's own registry (torch.utils.flop_counter) leaves out, by name: arguments and `out` → multiply-adds
_FORMULAS: dict[str, Callable[..., int]] = {
    "mv": lambda a, *_, **__: a.numel(),
    "addmv": lambda _, a, *__, **___: a.numel(),
    "dot": lambda a, *_, **__: a.numel(),
    "vdot": lambda a, *_, **__: a.numel(),
    "linear": lambda x, weight, *_, **__: x.numel() * weight.shape[0],
    "addbmm": lambda _, a, b, **__: a.numel() * b.shape[-1],
    "addr": lambda *_, out, **__: out.numel(),
    "_int_mm": lambda a, b, **_: a.numel() * b.shape[-1],
    "_trilinear": _trilinear,
    "conv_tbc": lambda _, weight, *__, out, **___: out.numel() * math.prod(weight.shape[:2]),
    "_cdist_forward": lambda a, *_, out, **__: out.numel() * a.shape[-1],  # a difference and its square per channel
    "_euclidean_dist": lambda a, *_, out, **__: out.numel() * a.shape[-1],
    "_pdist_forward": lambda a, *_, out, **__: out.numel() * a.shape[-1],
}  # fmt: skip
# names of operators that multiply tensors with each other, and of those among them that work number by number
_PRODUCT = re.compile(
    r"linalg|_fft_|cholesky|geqrf|ormqr|lstsq|lu_solve|triangular_solve|matrix_exp|(mm|mv)(_|$)|matmul|conv(?!ert)|rnn|"
    r"lstm|gru|attention|encoder_layer|(^|_)linear"
)
_BY_NUMBER = re.compile(
    r"upsample|check_errors|cross|diagonal|norm|powsum|vecdot|fused_\w+_cell|flatten_weight|reorder"
)
_OWN = ("aten", "prims", "locant")


def packet_of(overload: Any) -> Any:
    """torch.ops.aten.mm of its overload aten::mm.default, and of aten::mm_, which works in place."""
    space, found, name = overload.name().partition("::")
    if not found:  # an operator of higher order has no overloads
        return overload
    packets, name = getattr(torch.ops, space), name.partition(".")[0]
    plain = name.removesuffix("_")
    return getattr(packets, plain if plain and hasattr(packets, plain) else name)


def of_operator(packet: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Multiply-adds of `out = packet(*args, **kwargs)`; 0 for what works number by number; None for what is unknown."""
    space, _, name = str(packet).rpartition(".")
    if (formula := flop_registry.get(packet)) is not None:
        return int(formula(*args, **kwargs, out_val=out)) // 2
    if space == "aten" and name in _FORMULAS:
        return _FORMULAS[name](*args, **{**kwargs, "out": out})
    multiplies = _PRODUCT.search(name) is not None and _BY_NUMBER.search(name) is None
    return None if multiplies or space not in _OWN else 0
