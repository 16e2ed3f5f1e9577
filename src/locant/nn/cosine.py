"""Window attention by cosine, its bias read off the offset by a perceptron: Swin v2."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.call import Positions
from locant.checks import check_types
from locant.grid import Grid
from locant.masks import Mask
from locant.nn.arguments import check_heads
from locant.nn.window import WindowedAttention
from locant.positions.field import LogCPB
from locant.positions.position import Embedding, Position
from locant.products.around import to_unit_length

LARGEST = math.log(100)


class CosineWindowAttention(WindowedAttention):
    """y_i = proj(Σ_j softmax_j(s · cos(q_i, k_j) + bias[i - j]) v_j),  s = exp(min(logit_scale, ln 100)) per head.

    [q | k | v] = qkv(x) + [q_bias | 0 | v_bias], j in the window of i. qkv.weight [3 dim, dim], q_bias and v_bias
    [dim], logit_scale [heads, 1, 1], which starts at ln 10. q and k are brought to length 1, q is multiplied by s, and
    the attention's own scale is 1. Half precisions are brought to length 1 in float32.

    Where it differs: published code blocks a pair with -100 (transformers, by accident, with -200), while logits of one
    row may lie 2 s + 16 apart: from s = 42 on, blocked pairs can have weight. Here it is exactly 0. A map's
    filling has keys of zeros, for there is no k_bias: published code divides them by 1e-12, which is 0 in float16, and
    multiplies their gradient by 1e12, which is infinite there. Here they stay zeros.
    Source: Swin V2 (arXiv 2111.09883, section 3.2, eq. 2); timm 1.0.31 `swin_transformer_v2.py`.

    Args:
        dim, heads, window, grid, shift, border, small, dropout, proj_dropout, kernel: as for `WindowAttention`.
        position: "log-cpb" is a `LogCPB` as wide as the window; else a scheme, several, or None.
        qkv_bias: whether there are q_bias and v_bias.

    Raises:
        ValueError: as `WindowAttention`.
    """

    _named: ClassVar[str] = "log-cpb"

    q_bias: nn.Parameter | None
    v_bias: nn.Parameter | None

    @check_types
    def __init__(
        self,
        dim: int,
        heads: int,
        window: int | tuple[int, ...],
        *,
        grid: Grid | None = None,
        shift: int | tuple[int, ...] | None = None,
        position: Positions | str = "log-cpb",
        border: str = "cells",
        small: str = "joint",
        qkv_bias: bool = True,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        check_heads("CosineWindowAttention", dim, heads)
        super().__init__(
            dim, heads, window, grid=grid, shift=shift, position=position, border=border, small=small,
            qkv_bias=False, scale=1.0, dropout=dropout, proj_dropout=proj_dropout, kernel=kernel,
        )  # fmt: skip
        for name in ("q_bias", "v_bias"):
            self.register_parameter(name, nn.Parameter(torch.zeros(dim)) if qkv_bias else None)
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))

    def _scheme(self, window: Grid, heads: int) -> Position:
        return LogCPB(window, heads)

    def _project(
        self, x: Float[Tensor, "batch tokens dim"], embedding: Embedding | None, grid: Grid, mask: Mask | None
    ) -> Float[Tensor, "batch tokens three_dim"]:
        projected = super()._project(x, embedding, grid, mask)
        q, k, v = projected.chunk(3, dim=-1)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias.to(q.dtype), v + self.v_bias.to(v.dtype)
        q, k = angles(q, k, self.logit_scale)
        return torch.cat([q, k, v], dim=-1)


def cosine_scale(logit_scale: Tensor) -> Float[Tensor, " heads"]:
    """What cosines are multiplied by: exp(logit_scale), at most 100, of each head."""
    return logit_scale.reshape(-1).clamp(max=LARGEST).exp()


def angles(
    q: Float[Tensor, "batch tokens dim"], k: Float[Tensor, "batch tokens dim"], logit_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """q and k so that their products are cosines times exp(logit_scale), at most 100, of each head."""
    heads, dtype = logit_scale.numel(), k.dtype
    q, k = (to_unit_length(part.unflatten(-1, (heads, -1))) for part in (q, k))
    q = q * cosine_scale(logit_scale)[:, None].to(q.dtype)
    return q.flatten(2).to(dtype), k.flatten(2).to(dtype)
