"""The layers of MViT v2: attention whose queries, keys and values are pooled, and a block that may widen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.attend import attention
from locant.call import Positions
from locant.grid import Grid
from locant.nn.arguments import check_heads, check_tokens, position_module, split_embedding
from locant.nn.block import drop_samples
from locant.nn.linears import bare_weight
from locant.nn.patches import CONVOLUTIONS
from locant.nn.perceptron import Perceptron

POOLINGS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


class PooledAttention(nn.Module):
    """y = proj(softmax(s · q kᵀ + position) v + q),  q, k, v = norm(pool(part of qkv(x))),  s = head_dim ** -0.5.

    x [batch, tokens, dim] on a grid, prefix tokens first; y [batch, tokens of pooled queries, out_dim]. A pool is a
    depthwise convolution over 3 cells per axis (pool_q.weight [head_dim, 1, 3, ..]), shared by all heads, with a
    LayerNorm behind it (norm_q); prefix tokens pass by the convolution. Queries lie on every `stride_q`-th cell. Keys
    lie at the last of the cells that they are pooled from: so published code, where the offset of the last key is zero.

    Source: MViTv2 (arXiv 2112.01526, sections 3.1 and 4.1).

    Args:
        dim, out_dim: channels of a token, before and behind.
        heads: how many attend side by side.
        stride_q, stride_kv: of the pools, cells per axis.
        position: a scheme on the cells of the finer of the two grids, several, or None.
        prefix_residual: whether q is added to prefix tokens as well.

    Raises:
        ValueError: for sizes that do not divide.
    """

    def __init__(
        self, dim: int, out_dim: int, heads: int, stride_q: tuple[int, ...], stride_kv: tuple[int, ...], *,
        position: Positions = None, prefix_residual: bool = True, norm_eps: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__()
        check_heads("PooledAttention", out_dim, heads)
        self.dim, self.out_dim, self.heads, self.prefix_residual = dim, out_dim, heads, prefix_residual
        self.stride_q, self.stride_kv = stride_q, stride_kv
        self.qkv = nn.Linear(dim, 3 * out_dim)
        self.proj = nn.Linear(out_dim, out_dim)
        head_dim, axes = out_dim // heads, len(stride_q)
        for name, stride in (("q", stride_q), ("k", stride_kv), ("v", stride_kv)):
            pool = CONVOLUTIONS[axes - 1](
                head_dim, head_dim, (3,) * axes, stride=stride, padding=(1,) * axes, groups=head_dim, bias=False  # type: ignore[arg-type]
            )  # fmt: skip
            setattr(self, f"pool_{name}", pool)
            setattr(self, f"norm_{name}", nn.LayerNorm(head_dim, eps=norm_eps))
        self.position = position_module("PooledAttention", position)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], *, grid: Grid
    ) -> tuple[Float[Tensor, "batch pooled out_dim"], Grid]:
        """What the pooled queries see, and their grid, counted anew from 0 in steps of 1."""
        check_tokens(x, self.dim, bare_weight(self.qkv))
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        (q, queries), (k, keys), (v, _) = (
            self._pooled(part, name, grid) for part, name in zip(parts, "qkv", strict=True)
        )
        _, rest = split_embedding(None, self.position)
        q_grid, k_grid = pooled_grids(queries, keys, self.stride_q, self.stride_kv, grid.prefix)
        out = attention(q, k, v, grid=q_grid, key_grid=k_grid, position=rest)
        out = out + (q if self.prefix_residual else F.pad(q[:, :, grid.prefix :], (0, 0, grid.prefix, 0)))
        return self.proj(out.transpose(1, 2).flatten(2)), Grid(*queries, prefix=grid.prefix)

    def _pooled(
        self, x: Float[Tensor, "batch heads tokens head_dim"], name: str, grid: Grid
    ) -> tuple[Float[Tensor, "batch heads pooled head_dim"], tuple[int, ...]]:
        front, cells = x.split([grid.prefix, grid.cells], dim=2)
        cells = getattr(self, f"pool_{name}")(cells.flatten(0, 1).transpose(1, 2).unflatten(2, grid.shape))
        shape = tuple(cells.shape[2:])
        cells = cells.flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])
        return getattr(self, f"norm_{name}")(torch.cat([front, cells], dim=2)), shape

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.out_dim}, {self.heads}, stride_q={self.stride_q}, stride_kv={self.stride_kv}"


def pooled_grids(
    queries: Sequence[int], keys: Sequence[int], stride_q: Sequence[int], stride_kv: Sequence[int], prefix: int
) -> tuple[Grid, Grid]:
    """Of pooled queries and keys, in cells of the finer of the two, axis by axis."""
    pairs = [(q // math.gcd(q, k), k // math.gcd(q, k)) for q, k in zip(stride_q, stride_kv, strict=True)]
    steps_q, steps_k = (tuple(pair[i] for pair in pairs) for i in (0, 1))
    return (
        Grid(*queries, prefix=prefix, stride=steps_q),
        Grid(*keys, prefix=prefix, stride=steps_k, origin=tuple(step - 1 for step in steps_k)),
    )


class WideningBlock(nn.Module):
    """x ← skip(x) + path(attention(norm1(x))),  x ← x + path(mlp(norm2(x))),  mlp = fc2 ∘ GELU ∘ fc1.

    skip is max pooling over one cell more than the stride of the queries, where they have one. If `attention.out_dim`
    is not its dim, what is skipped is a linear map of norm1(x) (`shortcut`); if the perceptron ends in other channels,
    of norm2(x). `path` is drop path, as of `Block`.

    Args:
        attention: whose grid the block takes.
        out_dim: channels behind the block.
        mlp_ratio: hidden channels of the perceptron over those of the attention.
        drop_path: in training only.
    """

    shortcut: nn.Linear | None

    def __init__(
        self, attention: PooledAttention, out_dim: int, *, mlp_ratio: float = 4.0, drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__()
        dim, inner = attention.dim, attention.out_dim
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = attention
        self.norm2 = nn.LayerNorm(inner, eps=norm_eps)
        self.mlp = Perceptron(inner, int(inner * mlp_ratio), out_dim=out_dim)
        self.shortcut = nn.Linear(dim, out_dim) if dim != out_dim else None

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], *, grid: Grid
    ) -> tuple[Float[Tensor, "batch pooled out_dim"], Grid]:
        """Both branches, and the grid behind them."""
        early = self.shortcut is not None and self.attention.out_dim != self.attention.dim
        normed = self.norm1(x)
        skipped = self._skipped(self.shortcut(normed) if self.shortcut is not None and early else x, grid)
        attended, grid = self.attention(normed, grid=grid)
        x = skipped + self._path(attended)
        normed = self.norm2(x)
        x = x if self.shortcut is None or early else self.shortcut(normed)
        return x + self._path(self.mlp(normed)), grid

    def _skipped(self, x: Float[Tensor, "batch tokens channels"], grid: Grid) -> Float[Tensor, "batch pooled channels"]:
        stride = self.attention.stride_q
        if max(stride) == 1:
            return x
        size = tuple(s + 1 if s > 1 else 1 for s in stride)
        front, cells = x.split([grid.prefix, grid.cells], dim=1)
        cells = cells.transpose(1, 2).unflatten(2, grid.shape)
        cells = POOLINGS[grid.axes - 1](cells, size, stride, tuple(n // 2 for n in size))
        return torch.cat([front, cells.flatten(2).transpose(1, 2)], dim=1)

    def _path(self, branch: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels"]:
        return drop_samples(branch, self.drop_path) if self.training else branch

    def extra_repr(self) -> str:
        return f"drop_path={self.drop_path}" if self.drop_path else ""
