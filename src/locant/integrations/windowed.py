"""Attention inside windows on a map [batch, rows, columns, channels], for modules that own qkv, proj and a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.attend import attention, attention_packed
from locant.grid import Grid
from locant.integrations.family import dropout_of
from locant.integrations.halves import Half, conclude, half_of, normalise_filled, project
from locant.integrations.layers import is_packed, linear_with
from locant.masks import Mask, Windows
from locant.nn.cosine import angles, cosine_scale
from locant.nn.window import attend_regrouped
from locant.positions.position import Position
from locant.products import linear

Project = Callable[[Tensor], Tensor | Sequence[Tensor]]


def attend_in_windows(
    x: Float[Tensor, "batch *map dim"], project: Project, window: tuple[int, ...], shift: tuple[int, ...], border: str,
    position: Position | None, heads: int, scale: float | Tensor | None, dropout: float,
) -> Float[Tensor, "batch *map channels"]:  # fmt: skip
    """Self-attention of a map, before the output projection. `project` makes q, k and v of tokens in one tensor,
    [batch, tokens, 3 channels], or as three."""

    def attend(tokens: Tensor, grid: Grid, mask: Mask | None) -> Tensor:
        return attend_projected(project(tokens), grid, mask, position, heads, scale, dropout)

    shape = tuple(x.shape[1:-1])
    if all(side % size == 0 for side, size in zip(shape, window, strict=True)):
        # nothing is filled, and a roll would be the same attention said otherwise: tokens stay where they are
        return attend(x.flatten(1, -2), Grid(*shape), Windows(window, shift)).unflatten(1, shape)
    return attend_regrouped(x, window, shift, border, attend)


def attend_projected(
    projected: Tensor | Sequence[Tensor], grid: Grid, mask: Mask | None, position: Position | None, heads: int,
    scale: float | Tensor | None, dropout: float,
) -> Float[Tensor, "batch tokens channels"]:  # fmt: skip
    """Self-attention of q, k and v, in one tensor [batch, tokens, 3 channels] or as three."""
    if isinstance(projected, Tensor):
        qkv = projected.unflatten(-1, (3, heads, projected.shape[-1] // (3 * heads)))
        return attention_packed(qkv, grid=grid, position=position, mask=mask, scale=scale, dropout=dropout)
    q, k, v = (part.unflatten(-1, (heads, part.shape[-1] // heads)).transpose(1, 2) for part in projected)
    out = attention(q, k, v, grid=grid, position=position, mask=mask, scale=scale, dropout=dropout)
    return out.transpose(1, 2).flatten(2)


def swin_attention(
    attn: nn.Module, x: Float[Tensor, "batch *map dim"], window: tuple[int, ...], shift: tuple[int, ...], border: str,
    position: Position, half: Half | None = None,
) -> Float[Tensor, "batch *map dim"]:  # fmt: skip
    """Of a module with qkv, attn_drop, proj, proj_drop, num_heads and scale, as the original Swin has them."""
    parts: Any = attn
    x, half = normalise_filled(x, half, window)
    out = attend_in_windows(
        x, lambda tokens: project(parts.qkv, tokens, half), window, shift, border, position, parts.num_heads,
        parts.scale, dropout_of(parts.attn_drop),
    )  # fmt: skip
    return conclude(parts.proj, parts.proj_drop, out, half)


def half_of_swin(
    x: Tensor, norm: nn.Module, attn: nn.Module, drop_path: nn.Module, behind: bool = False
) -> Half | None:
    """What goes with its products, which are not called as a whole; None where parts have to be called."""
    parts: Any = attn
    if not (is_packed(parts.qkv) and is_packed(parts.proj)):
        return None
    return half_of(x, norm, (drop_path, parts.proj_drop, parts.attn_drop), (attn,), behind=behind)


def cosine_attention(
    attn: nn.Module, x: Float[Tensor, "batch *map dim"], window: tuple[int, ...], shift: tuple[int, ...], border: str,
    position: Position, bias: Tensor | None, half: Half | None = None,
) -> Float[Tensor, "batch *map dim"]:  # fmt: skip
    """The same by angles, of a module that has a logit_scale too (Swin v2); `bias` is that of qkv."""
    parts: Any = attn
    out = attend_in_windows(
        x, lambda tokens: project_angles(parts.qkv, tokens, bias, parts.logit_scale), window, shift, border, position,
        parts.num_heads, 1.0, dropout_of(parts.attn_drop),
    )  # fmt: skip
    return conclude(parts.proj, parts.proj_drop, out, half)


def project_angles(
    qkv: Any, tokens: Float[Tensor, "batch tokens dim"], bias: Tensor | None, logit_scale: Tensor
) -> Tensor | Sequence[Tensor]:
    """q, k and v, of which q and k have length 1 in every head, and q comes times exp(logit_scale), at most 100."""
    if not is_packed(qkv) or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        q, k, v = linear_with(qkv, tokens, bias).chunk(3, dim=-1)
        return *angles(q, k, logit_scale), v
    dim, heads = qkv.out_features // 3, logit_scale.numel()
    scale = cosine_scale(logit_scale).repeat_interleave(dim // heads)
    gain = torch.cat((scale, scale.new_ones(2 * dim)))
    return linear(tokens, qkv.weight, bias, not qkv.training, gain=gain, units=(dim // heads, 2 * dim))
