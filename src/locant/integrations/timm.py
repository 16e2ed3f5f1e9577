"""timm: Swin, BEiT, ViT with a table, ConViT. Nothing of timm is imported: its modules say what they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from locant.grid import Grid
from locant.integrations.borrowed import BorrowedTable
from locant.integrations.family import Attended, Family, Offer
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import swin_attention
from locant.masks import Windows


def _attn(self: Any, x: Tensor) -> Tensor:
    window, shift = tuple(self.window_size), tuple(self.shift_size)
    return swin_attention(self.attn, x, window, shift, "roll-pad", self._locant.position)


def _swin(block: nn.Module) -> Offer | str:
    module: Any = block
    attn = module.attn
    position = BorrowedTable(attn, "relative_position_bias_table", "window_size", attn.num_heads)
    window, shift = tuple(module.window_size), tuple(module.shift_size)
    attended = Attended(
        attn.num_heads, round(attn.scale**-2), position, Grid(*module.input_resolution), Windows(window, shift)
    )
    what = f"table, windows of {window[0]} × {window[1]}" + (", shifted" if any(shift) else "")
    return Offer(Replacement({"_attn": _attn}, State(position=position)), what, _map, attended, inside=("attn",))


def _map(block: nn.Module) -> tuple[Any, ...]:
    """A map of the size that the block was built for: its mask is."""
    module: Any = block
    return (torch.randn(2, *module.input_resolution, module.dim, dtype=torch.float64),)


FAMILIES = (
    Family(
        "attention",
        ("timm.models.swin_transformer.SwinTransformerBlock",),
        ("forward", "_attn", "get_attn_mask"),
        _swin,
        frozenset({"368f9abb815d102f"}),  # 1.0.31
    ),
)
