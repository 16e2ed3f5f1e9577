"""timm's hybrids of convolutions and attention: MaxViT and CoAtNet, GC ViT, TinyViT, LeViT. timm is not imported.

Their attention takes all tokens that it is handed: a map, or windows that the block has cut before. Those of TinyViT
and LeViT keep the bias of an offset by its distance along each axis, and a copy of it in evaluation, which a write to
the table leaves behind; here the table is read at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from locant.attend import attention
from locant.grid import Grid
from locant.integrations.borrowed import BorrowedTable
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.replacing import Replacement, State
from locant.integrations.timm import relative_position
from locant.integrations.windowed import attend_projected

# --- MaxViT and CoAtNet: q, k and v of one head lie together, or heads of one projection do ---------------------------


def _channels_last_forward(self: Any, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
    position = self._locant.position
    tokens = x.flatten(1, -2)
    if shared_rel_pos is not None or tokens.shape[1] != position.grid.tokens:
        return type(self).forward(self, x, shared_rel_pos)
    out = _attend_heads(self, self.qkv(tokens)).unflatten(1, x.shape[1:-1])
    return self.proj_drop(self.proj(out))


def _channels_first_forward(self: Any, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
    position = self._locant.position
    if shared_rel_pos is not None or tuple(x.shape[2:]) != position.grid.shape:
        return type(self).forward(self, x, shared_rel_pos)
    out = _attend_heads(self, self.qkv(x).flatten(2).transpose(1, 2))
    return self.proj_drop(self.proj(out.transpose(1, 2).unflatten(2, x.shape[2:])))


def _attend_heads(self: Any, qkv: Tensor) -> Tensor:
    if self.head_first:  # [heads, 3, channels]
        qkv = qkv.unflatten(-1, (self.num_heads, 3, self.dim_head)).transpose(-3, -2).flatten(-3)
    position, dropout = self._locant.position, dropout_of(self.attn_drop)
    return attend_projected(qkv, position.grid, None, position, self.num_heads, self.scale, dropout)


def _maxvit(attn: nn.Module) -> Offer | str:
    m: Any = attn
    found = relative_position(m.rel_pos, m.num_heads)
    if isinstance(found, str):
        return found
    position, what = found
    last, width, sides = isinstance(m.qkv, nn.Linear), m.qkv.weight.shape[1], position.grid.shape
    forward = _channels_last_forward if last else _channels_first_forward
    shape = (2, *sides, width) if last else (2, width, *sides)
    return _offer(forward, position, what, m.num_heads, m.dim_head, position.grid, shape, ("rel_pos",))


# --- GC ViT: queries may be the whole picture's -----------------------------------------------------------------------


def _global_forward(self: Any, x: Tensor, q_global: Tensor | None = None) -> Tensor:
    position, dropout = self._locant.position, dropout_of(self.attn_drop)
    if not self.use_global or q_global is None:
        projected: Any = self.qkv(x)
    else:
        k, v = self.qkv(x).chunk(2, dim=-1)
        windows = len(x) // len(q_global)  # those of a picture lie together
        projected = q_global.repeat_interleave(windows, dim=0).reshape_as(k), k, v
    out = attend_projected(projected, position.grid, None, position, self.num_heads, self.scale, dropout)
    return self.proj_drop(self.proj(out))


def _global(attn: nn.Module) -> Offer | str:
    m: Any = attn
    found = relative_position(m.rel_pos, m.num_heads)
    if isinstance(found, str):
        return found
    position, what = found
    grid, width = position.grid, m.qkv.in_features
    offer = _offer(
        _global_forward, position, what, m.num_heads, m.head_dim, grid, (4, grid.tokens, width), ("rel_pos",)
    )
    if not m.use_global:
        return offer

    def trial(_: nn.Module) -> tuple[Any, ...]:
        return tuple(torch.randn(n, grid.tokens, width, dtype=torch.float64) for n in (4, 2))

    return Offer(offer.replacement, f"{what}, queries of the whole picture", trial, offer.attended, offer.inside)


# --- TinyViT and LeViT: a bias for each distance along both axes, values wider than keys ------------------------------


def _wide_forward(self: Any, x: Tensor) -> Tensor:
    return self.proj(_attend_wide(self, self.qkv(self.norm(x) if hasattr(self, "norm") else x)))


def _attend_wide(self: Any, qkv: Tensor) -> Tensor:
    sizes = (self.key_dim, self.key_dim, self.val_dim)
    q, k, v = (x.transpose(1, 2) for x in qkv.unflatten(-1, (self.num_heads, sum(sizes))).split(sizes, dim=-1))
    position = self._locant.position
    out = attention(q, k, v, grid=position.grid, position=position, scale=self.scale)
    return out.transpose(1, 2).flatten(2)


def _downsample_forward(self: Any, x: Tensor) -> Tensor:
    q = self.q(x).unflatten(-1, (self.num_heads, self.key_dim)).transpose(1, 2)
    kv = self.kv(x).unflatten(-1, (self.num_heads, self.key_dim + self.val_dim)).transpose(1, 2)
    k, v = kv.split((self.key_dim, self.val_dim), dim=-1)
    position = self._locant.position
    queries = position.grid.pooled(self.stride)
    out = attention(q, k, v, grid=queries, key_grid=position.grid, position=position, scale=self.scale)
    return self.proj(out.transpose(1, 2).flatten(2))


def _distances(attn: nn.Module) -> Offer | str:
    m: Any = attn
    if getattr(m, "use_conv", False):
        return "its projections are convolutions: only its linear form is replaced"
    position = BorrowedTable(m, "attention_biases", "resolution", m.num_heads, rows=_read_distances)
    first = m.qkv if hasattr(m, "qkv") else m.kv
    width = getattr(first, "linear", first).in_features
    forward = _wide_forward if first is not getattr(m, "kv", None) else _downsample_forward
    shape = (2, position.grid.tokens, width)
    return _offer(forward, position, "table of distances", m.num_heads, m.key_dim, position.grid, shape)


def _read_distances(owner: Any) -> Tensor:
    """[heads, H W] at |query - key|: the rows of all offsets."""
    table = owner.attention_biases.unflatten(1, owner.resolution)
    for axis, side in enumerate(owner.resolution, start=1):
        table = table.index_select(axis, torch.arange(1 - side, side, device=table.device).abs())
    return table.flatten(1).T


for _method in (
    _channels_last_forward, _channels_first_forward, _global_forward, _wide_forward, _downsample_forward,
):  # fmt: skip
    _method.__name__ = "forward"


def _offer(
    forward: Callable[..., Tensor], position: BorrowedTable, what: str, heads: int, head_dim: int, grid: Grid,
    shape: tuple[int, ...], inside: tuple[str, ...] = (),
) -> Offer:  # fmt: skip
    def trial(_: nn.Module) -> tuple[Any, ...]:
        return (torch.randn(shape, dtype=torch.float64),)

    what = f"{what}, {' × '.join(map(str, grid.shape))}"
    attended = Attended(heads, head_dim, position, grid)
    return Offer(Replacement({"forward": forward}, State(position=position)), what, trial, attended, inside)


_BIASES, _SAVED = ("RelPosBias", "RelPosMlp", "RelPosBiasTf"), ("get_attention_biases", "_init_buffers")


def _family(name: str, offer: Callable[[nn.Module], Offer | str], known: str, *methods: str) -> Family:
    return Family("attention", (f"timm.models.{name}",), ("forward", *methods), offer, frozenset({known}))


FAMILIES = (
    _family("maxxvit.AttentionCl", _maxvit, "1ee861a4f17e1ee2", *_BIASES),
    _family("maxxvit.Attention2d", _maxvit, "7369092614408f6d", *_BIASES),
    _family("gcvit.WindowAttentionGlobal", _global, "cf707b537a2240cd", "RelPosBias"),
    _family("tiny_vit.Attention", _distances, "0e692c0375363dcd", *_SAVED),
    _family("levit.Attention", _distances, "65d66590e22bedad", *_SAVED, "_compute_attention_bias_idxs"),
    _family(
        "levit.AttentionDownsample",
        _distances,
        "1a6675d840ee0264",
        *_SAVED,
        "_compute_attention_bias_idxs",
        "Downsample",
    ),
)  # 1.0.31
