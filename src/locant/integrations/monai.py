"""MONAI: SwinUNETR, and the attention of its ViT, in two and three dimensions. Nothing of MONAI is imported."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from locant.grid import Grid
from locant.integrations.borrowed import BorrowedTable
from locant.integrations.borrowed_content import BorrowedDecomposed
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.halves import residual_perceptron
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import attend_projected, half_of_swin, swin_attention
from locant.masks import Causal, Padding, Windows
from locant.nn.window import fitted


def forward_part1(self: Any, x: Tensor, mask_matrix: Tensor | None) -> Tensor:
    whole, shape = tuple(self.window_size), tuple(x.shape[1:-1])
    window, shift = fitted(whole, tuple(self.shift_size), shape, "per-axis")
    if window[1:] != whole[1:]:  # its bias is that of the whole window's first cells, and no function of the offset
        return type(self).forward_part1(self, x, mask_matrix)
    return swin_attention(self.attn, self.norm1(x), window, shift, "pad-roll", self._locant.position)


def _block_forward(self: Any, x: Tensor, mask_matrix: Tensor | None) -> Tensor:
    whole, shape = tuple(self.window_size), tuple(x.shape[1:-1])
    window, shift = fitted(whole, tuple(self.shift_size), shape, "per-axis")
    half = half_of_swin(x, self.norm1, self.attn, self.drop_path) if window[1:] == whole[1:] else None
    if half is None:
        return type(self).forward(self, x, mask_matrix)
    x = swin_attention(self.attn, x, window, shift, "pad-roll", self._locant.position, half)
    return residual_perceptron(x, self.norm2, self.mlp, self.drop_path)


_block_forward.__name__ = "forward"


def _swin(block: nn.Module) -> Offer:
    module: Any = block
    position = BorrowedTable(module.attn, "relative_position_bias_table", "window_size", module.num_heads)
    window, shift = tuple(module.window_size), tuple(module.shift_size)
    attended = Attended(module.num_heads, module.dim // module.num_heads, position, None, Windows(window, shift))
    what = f"table, windows of {' × '.join(map(str, window))}" + (", shifted" if any(shift) else "")
    replacement = Replacement({"forward_part1": forward_part1, "forward": _block_forward}, State(position=position))
    return Offer(replacement, what, _map, attended, inside=("attn",))


def _map(block: nn.Module) -> tuple[Any, ...]:
    """A map that windows do not divide, and the library's own mask for it."""
    module: Any = block
    window = tuple(module.window_size)
    mask = sys.modules[_SWIN].compute_mask([2 * side for side in window], window, tuple(module.shift_size), "cpu")
    return torch.randn(2, *(2 * side - 1 for side in window), module.dim, dtype=torch.float64), mask.double()


def forward(self: Any, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Of MONAI's SABlock; what makes weights, or fuses, does so."""
    position, tokens = self._locant.position, x.shape[1]
    sides = (tokens,) if position is None else tuple(position.owner.s_input_dims)
    others = self.save_attn or self.use_flash_attention or self.attention_dtype not in (None, x.dtype)
    long = self.causal and (attn_mask is not None or tokens > self.sequence_length)
    if (
        others
        or long
        or x.ndim != 3
        or Grid(*sides).tokens != tokens
        or (attn_mask is not None and attn_mask.ndim != 2)
    ):
        return type(self).forward(self, x, attn_mask)
    projected = self.qkv(x) if self.use_combined_linear else (self.to_q(x), self.to_k(x), self.to_v(x))
    mask = Causal() if self.causal else None if attn_mask is None else Padding(attn_mask != 0)
    dropout = dropout_of(self.drop_weights)
    out = attend_projected(projected, Grid(*sides), mask, position, self.num_heads, self.scale, dropout)
    return self.drop_output(self.out_proj(out) if self.include_fc else out)


def _whole(attn: nn.Module) -> Offer | str:
    module: Any = attn
    if module.use_flash_attention:
        return "it calls torch's attention, and drops weights in evaluation too if it has a dropout"
    owner, inside = module.rel_positional_embedding, tuple[str, ...]()
    position, grid = None, None
    if owner is not None:
        if len(owner.rel_pos_arr) == 3:
            return (
                "in three dimensions MONAI mixes up the axes of queries and keys: its terms are no function of the "
                "offset, and it runs on cubes alone"
            )
        position = BorrowedDecomposed(owner, ("rel_pos_arr.0", "rel_pos_arr.1"), module.num_heads, module.dim_head)
        grid, inside = Grid(*owner.s_input_dims), ("rel_positional_embedding",)
    attended = Attended(module.num_heads, module.dim_head, position, grid, Causal() if module.causal else None)

    def trial(_: nn.Module) -> list[tuple[Any, ...]]:
        tokens = grid.tokens if grid is not None else module.sequence_length if module.causal else 50
        x = torch.randn(2, tokens, module.hidden_input_size, dtype=torch.float64)
        seen = (torch.arange(tokens) < torch.tensor([[tokens], [tokens - tokens // 3]])).long()
        return [(x,)] if module.causal else [(x,), (x, seen)]

    what = "no position" if position is None else "a vector per offset and axis"
    return Offer(Replacement({"forward": forward}, State(position=position)), what, trial, attended, inside)


_SWIN = "monai.networks.nets.swin_unetr"
_BLOCKS = "monai.networks.blocks"

FAMILIES = (
    Family(
        "attention",
        (f"{_SWIN}.SwinTransformerBlock",),
        (
            "forward", "forward_part1", "forward_part2", "WindowAttention", "get_window_size",
            "window_partition", "window_reverse", "compute_mask",
        ),
        _swin,
        frozenset({"883110a7702acb4a"}),
        (("attn", f"{_SWIN}.WindowAttention"),),
    ),
    Family("attention", (f"{_BLOCKS}.selfattention.SABlock",), ("forward",), _whole, frozenset({"5bc522296f91e9f0"})),
)  # 1.6.1  # fmt: skip
