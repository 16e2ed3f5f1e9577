"""torchvision: Swin, Swin v2 and Video Swin. Nothing of torchvision is imported: its modules say what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locant.integrations.borrowed import BorrowedTable
from locant.integrations.family import Attended, Family, Offer
from locant.integrations.halves import (
    JOINED,
    Half,
    conclude,
    normalise_filled,
    project,
    residual_attention,
    residual_perceptron,
)
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import Project, attend_in_windows, project_angles
from locant.masks import Windows
from locant.nn.window import fitted


def _pictures(self: Any, x: Tensor, half: Half | None = None) -> Tensor:
    window, shift = fitted(tuple(self.window_size), tuple(self.shift_size), tuple(x.shape[1:-1]), "pad")
    return _attend_joined(self, x, window, shift, half)


def _clips(self: Any, x: Tensor, half: Half | None = None) -> Tensor | None:
    whole = tuple(self.window_size)
    window, shift = fitted(whole, tuple(self.shift_size), tuple(x.shape[1:-1]), "per-axis")
    if window[1:] != whole[1:]:  # its bias is that of the whole window's first cells, and no function of the offset
        return None if half else type(self).forward(self, x)
    return _attend_joined(self, x, window, shift, half)


def _angles(self: Any, x: Tensor, half: Half | None = None) -> Tensor:
    window, shift = fitted(tuple(self.window_size), tuple(self.shift_size), tuple(x.shape[1:-1]), "pad")
    bias = self.qkv.bias
    if bias is not None:
        q, k, v = bias.chunk(3)
        bias = torch.cat((q, torch.zeros_like(k), v))

    def enter(tokens: Tensor) -> Tensor | Sequence[Tensor]:
        return project_angles(self.qkv, tokens, bias, self.logit_scale)

    return _attend(self, x, enter, window, shift, 1.0, half)


def _attend_joined(
    self: Any, x: Tensor, window: tuple[int, ...], shift: tuple[int, ...], half: Half | None
) -> Tensor:  # fmt: skip
    x, half = normalise_filled(x, half, window)
    return _attend(self, x, lambda tokens: project(self.qkv, tokens, half), window, shift, None, half)


def _attend(
    self: Any, x: Tensor, enter: Project, window: tuple[int, ...], shift: tuple[int, ...], scale: float | None,
    half: Half | None = None,
) -> Tensor:  # fmt: skip
    dropout = self.attention_dropout if self.training else 0.0
    position = self._locant.position
    out = attend_in_windows(x, enter, window, shift, "pad-roll", position, self.num_heads, scale, dropout)
    return F.dropout(conclude(self.proj, None, out, half), self.dropout, self.training)


def _block_forward(self: Any, x: Tensor) -> Tensor:
    x = residual_attention(x, self.norm1, self.attn, self.stochastic_depth)
    return residual_perceptron(x, self.norm2, self.mlp, self.stochastic_depth)


def _v2_block_forward(self: Any, x: Tensor) -> Tensor:
    x = residual_attention(x, self.norm1, self.attn, self.stochastic_depth, behind=True)
    return residual_perceptron(x, self.norm2, self.mlp, self.stochastic_depth, behind=True)


_METHODS: tuple[Any, ...] = (_pictures, _clips, _angles, _block_forward, _v2_block_forward)
for _method in _METHODS:
    _method.__name__ = "forward"


def _offer(module: nn.Module, forward: Any, position: BorrowedTable, what: str) -> Offer:
    m: Any = module
    window, shift = tuple(m.window_size), tuple(m.shift_size)
    attended = Attended(m.num_heads, m.qkv.in_features // m.num_heads, position, None, Windows(window, shift))
    what = f"{what}, windows of {' × '.join(map(str, window))}" + (", shifted" if any(shift) else "")
    state = State(position=position, products=("qkv", "proj"))
    return Offer(Replacement({"forward": forward}, state), what, _map, attended)


def _block(block: nn.Module, forward: Any) -> Offer:
    module: Any = block
    return Offer(Replacement({"forward": forward}), JOINED, lambda _: _map(module.attn))


def _table(module: nn.Module, forward: Any) -> Offer:
    m: Any = module
    position = BorrowedTable(m, "relative_position_bias_table", "window_size", m.num_heads)
    return _offer(m, forward, position, "table")


def _field(module: nn.Module) -> Offer:
    m: Any = module
    position = BorrowedTable(m, "cpb_mlp", "window_size", m.num_heads, rows=_read_field)
    return _offer(m, _angles, position, "log-CPB by angles")


def _read_field(owner: Any) -> Tensor:
    return 16 * torch.sigmoid(owner.cpb_mlp(owner.relative_coords_table).view(-1, owner.num_heads))


def _map(module: nn.Module) -> tuple[Any, ...]:
    """A map that windows do not divide."""
    m: Any = module
    return (torch.randn(2, *(2 * side - 1 for side in m.window_size), m.qkv.in_features, dtype=torch.float64),)


def _blocks(name: str, forward: Any, known: str) -> Family:
    source = (f"{_PICTURES}.{name}",)
    return Family("block", source, ("forward",), lambda block: _block(block, forward), frozenset({known}))


_PICTURES, _VIDEO = "torchvision.models.swin_transformer", "torchvision.models.video.swin_transformer"

FAMILIES = (
    Family(
        "attention",
        (f"{_PICTURES}.ShiftedWindowAttention",),
        ("forward", "get_relative_position_bias", "_get_relative_position_bias", "shifted_window_attention"),
        lambda module: _table(module, _pictures),
        frozenset({"f19bbd3af579ec3a"}),  # 0.28.0
    ),
    Family(
        "attention",
        (f"{_PICTURES}.ShiftedWindowAttentionV2",),
        ("forward", "get_relative_position_bias", "_get_relative_position_bias", "shifted_window_attention"),
        _field,
        frozenset({"0bc312605d17fe05"}),  # 0.28.0
    ),
    Family(
        "attention",
        (f"{_VIDEO}.ShiftedWindowAttention3d",),
        (
            "forward", "get_relative_position_bias", "_get_relative_position_bias", "shifted_window_attention_3d",
            "_get_window_and_shift_size", "_compute_pad_size_3d", "_compute_attention_mask_3d",
        ),
        lambda module: _table(module, _clips),
        frozenset({"16c2f0abebe8ab60"}),  # 0.28.0
    ),
    _blocks("SwinTransformerBlock", _block_forward, "044bd0b0f882f27f"),
    _blocks("SwinTransformerBlockV2", _v2_block_forward, "81c3d2902f5f73b4"),
)  # fmt: skip
