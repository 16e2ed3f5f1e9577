"""MViT v2 of timm, and MViT of torchvision, pictures and clips. Nothing of them is imported.

Queries and keys are pooled, each by a stride of its own, and queries meet a vector per offset and axis. Maps that the
strides do not divide run the class's own forward: its offsets are fractions there, which it rounds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locant.attend import attention
from locant.grid import Grid
from locant.integrations.borrowed_content import BorrowedDecomposed
from locant.integrations.family import Attended, Family, Offer
from locant.integrations.replacing import Replacement, State


def _timm_forward(self: Any, x: Tensor, feat_size: Sequence[int]) -> Any:
    library, position = sys.modules[type(self).__module__], self._locant.position
    q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def pooled(x: Tensor, pool: Any, norm: Any) -> tuple[Tensor, Sequence[int]]:
        size = feat_size
        if pool is not None:
            x, token = library.reshape_pre_pool(x, feat_size, self.has_cls_token)
            x, size = library.reshape_post_pool(pool(x), self.num_heads, token)
        return x if norm is None else norm(x), size

    q, q_size = pooled(q, self.pool_q, self.norm_q)
    k, k_size = pooled(k, self.pool_k, self.norm_k)
    grids = _grids(q_size, k_size, int(self.has_cls_token))
    if grids is None or not _fits(position, q_size, k_size):
        return type(self).forward(self, x, feat_size)
    v, _ = pooled(v, self.pool_v, self.norm_v)
    x = attention(q, k, v, grid=grids[0], key_grid=grids[1], position=position, scale=self.scale)
    x = x + q if self.residual_pooling else x
    return self.proj(x.transpose(1, 2).reshape(len(x), -1, self.dim_out)), q_size


def _torchvision_forward(self: Any, x: Tensor, thw: tuple[int, int, int]) -> Any:
    q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    k, k_thw = (k, thw) if self.pool_k is None else self.pool_k(k, thw)
    q, q_thw = (q, thw) if self.pool_q is None else self.pool_q(q, thw)
    grids = _grids(q_thw, k_thw, 1)
    if grids is None:
        return type(self).forward(self, x, thw)
    v = v if self.pool_v is None else self.pool_v(v, thw)[0]
    out = attention(q, k, v, grid=grids[0], key_grid=grids[1], position=self._locant.position, scale=self.scaler)
    if self.residual_pool:
        out = out + (q if self.residual_with_cls_embed else nn.functional.pad(q[:, :, 1:], (0, 0, 1, 0)))
    return self.project(out.transpose(1, 2).reshape(len(x), -1, self.output_dim)), q_thw


_timm_forward.__name__ = _torchvision_forward.__name__ = "forward"


def _grids(queries: Sequence[int], keys: Sequence[int], prefix: int) -> tuple[Grid, Grid] | None:
    """Both on cells of the finer map, axis by axis; None where one is no whole number of times as long as the other.

    Published code lets the offset of the last key be zero: a key lies at the last of the cells that it was pooled from.
    """
    pairs = list(zip(queries, keys, strict=True))
    if not all(q and k and (q % k == 0 or k % q == 0) for q, k in pairs):
        return None
    apart, pooled = [max(k // q, 1) for q, k in pairs], [max(q // k, 1) for q, k in pairs]
    return (
        Grid(*queries, prefix=prefix, stride=tuple(apart)),
        Grid(*keys, prefix=prefix, stride=tuple(pooled), origin=tuple(p - 1 for p in pooled)),
    )


def _fits(position: BorrowedDecomposed | None, queries: Sequence[int], keys: Sequence[int]) -> bool:
    """Whether tables are as long as the map needs: timm reads others from their first row, not from their centre."""
    longest = [2 * max(pair) - 1 for pair in zip(queries, keys, strict=True)]
    return position is None or [len(table) for table in position.parameters()] == longest


def _timm(module: nn.Module) -> Offer:
    m: Any = module
    tables = ("rel_pos_h", "rel_pos_w") if m.rel_pos_type == "spatial" else ()
    return _offer(m, _timm_forward, tables, _strides(m.pool_q, m.pool_k, 2), int(m.has_cls_token))


def _torchvision(module: nn.Module) -> Offer:
    m: Any = module
    tables = () if m.rel_pos_h is None else ("rel_pos_t", "rel_pos_h", "rel_pos_w")
    q, k = (None if pool is None else pool.pool for pool in (m.pool_q, m.pool_k))
    return _offer(m, _torchvision_forward, tables, _strides(q, k, 3), 1)


def _strides(q: Any, k: Any, axes: int) -> list[tuple[int, int]]:
    """Of queries and keys, axis by axis."""
    lines = [(1,) * axes if pool is None else pool.stride for pool in (q, k)]
    return list(zip(*((line,) * axes if isinstance(line, int) else line for line in lines), strict=True))


def _offer(
    m: Any, forward: Callable[..., Any], tables: tuple[str, ...], strides: list[tuple[int, int]], prefix: int
) -> Offer:
    position = BorrowedDecomposed(m, tables, m.num_heads, m.head_dim) if tables else None
    rows = [2 * max(pair) for pair in strides] if position is None else [len(x) for x in position.parameters()]
    attended = Attended(m.num_heads, m.head_dim, position)

    def trial(_: nn.Module) -> list[tuple[Any, ...]]:
        """A map of the size that it was built for, and where the library stretches its tables one of another shape."""
        sizes = [[(n + 1) // 2 * min(pair) for n, pair in zip(rows, strides, strict=True)]]
        if forward is _torchvision_forward:
            sizes.append([n * max(pair) for n, pair in enumerate(strides, 1)])
        counts = [prefix + math.prod(size) for size in sizes]
        tokens = [torch.randn(2, count, m.qkv.in_features, dtype=torch.float64) for count in counts]
        return [(x, tuple(size)) for x, size in zip(tokens, sizes, strict=True)]

    what = "no position" if position is None else "a vector per offset and axis"
    q, k = (" × ".join(str(pair[i]) for pair in strides) for i in (0, 1))
    what += f", pooled by {q} and {k}" if any(max(pair) > 1 for pair in strides) else ""
    return Offer(Replacement({"forward": forward}, State(position=position)), what, trial, attended)


_TIMM, _TORCHVISION = "timm.models.mvitv2", "torchvision.models.video.mvit"

FAMILIES = (
    Family(
        "attention",
        (f"{_TIMM}.MultiScaleAttention",),
        ("forward", "reshape_pre_pool", "reshape_post_pool", "cal_rel_pos_type"),
        _timm,
        frozenset({"7f71fa4f054c4c35"}),  # 1.0.31
    ),
    Family(
        "attention",
        (f"{_TORCHVISION}.MultiscaleAttention",),
        ("forward", "Pool", "_unsqueeze", "_squeeze", "_interpolate", "_add_rel_pos", "_add_shortcut"),
        _torchvision,
        frozenset({"f078e293d03223f7"}),  # 0.28.0
    ),
)
