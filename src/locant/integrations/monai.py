"""MONAI: SwinUNETR, in two and three dimensions. Nothing of MONAI is imported: its modules say what they are."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from locant.integrations.borrowed import BorrowedTable
from locant.integrations.family import Attended, Family, Offer
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import swin_attention
from locant.masks import Windows
from locant.nn.window import fitted


def forward_part1(self: Any, x: Tensor, mask_matrix: Tensor | None) -> Tensor:
    whole, shape = tuple(self.window_size), tuple(x.shape[1:-1])
    window, shift = fitted(whole, tuple(self.shift_size), shape, "per-axis")
    if window[1:] != whole[1:]:  # its bias is that of the whole window's first cells, and no function of the offset
        return type(self).forward_part1(self, x, mask_matrix)
    return swin_attention(self.attn, self.norm1(x), window, shift, "pad-roll", self._locant.position)


def _swin(block: nn.Module) -> Offer:
    module: Any = block
    position = BorrowedTable(module.attn, "relative_position_bias_table", "window_size", module.num_heads)
    window, shift = tuple(module.window_size), tuple(module.shift_size)
    attended = Attended(module.num_heads, module.dim // module.num_heads, position, None, Windows(window, shift))
    what = f"table, windows of {' × '.join(map(str, window))}" + (", shifted" if any(shift) else "")
    replacement = Replacement({"forward_part1": forward_part1}, State(position=position))
    return Offer(replacement, what, _map, attended, inside=("attn",))


def _map(block: nn.Module) -> tuple[Any, ...]:
    """A map that windows do not divide, and the library's own mask for it."""
    module: Any = block
    window = tuple(module.window_size)
    mask = sys.modules[_SWIN].compute_mask([2 * side for side in window], window, tuple(module.shift_size), "cpu")
    return torch.randn(2, *(2 * side - 1 for side in window), module.dim, dtype=torch.float64), mask.double()


_SWIN = "monai.networks.nets.swin_unetr"

FAMILIES = (
    Family(
        "attention",
        (f"{_SWIN}.SwinTransformerBlock",),
        (
            "forward", "forward_part1", "WindowAttention", "get_window_size", "window_partition", "window_reverse",
            "compute_mask",
        ),
        _swin,
        frozenset({"4a243e2c19cf39ad"}),
        (("attn", f"{_SWIN}.WindowAttention"),),
    ),
)  # 1.6.1  # fmt: skip
