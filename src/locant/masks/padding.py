"""Padding: keys that are not there, in the senses that are published."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from locant.checks import check_tensor
from locant.grid import Grid
from locant.masks.mask import Mask, lay_by_token, register_node
from locant.masks.senses import read_additive, read_lengths, read_zeros_and_ones
from locant.tokens import Tokens


class Padding(Mask):
    """Keys that are not there are seen by nobody. Rows of padded queries are still computed.

    Args:
        valid: bool, True = a real token: `[batch, tokens]` over all keys, the prefix included, or
            `[batch, *grid]` over the cells, the prefix then being real.
    """

    example = "Padding.from_lengths(lengths, tokens)"
    tensors = ("valid",)

    def __init__(self, valid: Bool[Tensor, "batch *tokens"]) -> None:
        check_tensor("Padding", "valid", valid, "a bool tensor [batch, tokens] or [batch, *grid]")
        if valid.dtype != torch.bool or valid.ndim < 2:
            raise ValueError(
                "Padding needs a bool tensor [batch, tokens] or [batch, *grid], True for a real token; "
                f"got {valid.dtype} of shape {tuple(valid.shape)}. "
                "For other senses use from_lengths, from_key_padding_mask, from_attention_mask or from_additive."
            )
        self.valid = valid

    @classmethod
    def from_lengths(cls, lengths: Int[Tensor, " batch"], tokens: int) -> Padding:
        """The first `lengths[b]` of `tokens` keys are real (d2l's 1-D `valid_lens`)."""
        check_tensor("Padding.from_lengths", "lengths", lengths, "whole numbers [batch]")
        if lengths.ndim != 1:
            raise ValueError(
                f"Padding.from_lengths needs one length per sample, `lengths` [batch]; got {list(lengths.shape)}. "
                "Lengths per query, [batch, queries], are Pairs.from_lengths(lengths, keys)."
            )
        return cls(read_lengths("Padding.from_lengths", lengths, tokens, "tokens"))

    @classmethod
    def from_key_padding_mask(cls, mask: Bool[Tensor, "batch *tokens"]) -> Padding:
        """True = *ignore* (`nn.MultiheadAttention`, DETR's masks `[batch, rows, columns]`)."""
        check_tensor("Padding.from_key_padding_mask", "mask", mask, "a bool tensor, True = ignore")
        if mask.dtype != torch.bool:
            raise ValueError(
                f"from_key_padding_mask needs a bool tensor, True = ignore; got {mask.dtype}. "
                "If 1 means keep, use from_attention_mask; if it is added to the logits, from_additive."
            )
        return cls(~mask)

    @classmethod
    def from_attention_mask(cls, mask: Shaped[Tensor, "batch *tokens"]) -> Padding:
        """1 = keep, 0 = padding (BERT and the transformers library, its DETR `pixel_mask` included)."""
        return cls(read_zeros_and_ones("from_attention_mask", mask))

    @classmethod
    def from_additive(cls, mask: Float[Tensor, "batch ... tokens"]) -> Padding:
        """0 = keep, a large negative number = padding, `[batch, 1, 1, tokens]` (BERT adds (1 - m) * -10000)."""
        check_tensor("Padding.from_additive", "mask", mask, "a tensor that is added to the logits")
        if mask.ndim < 2 or any(size != 1 for size in mask.shape[1:-1]):
            raise ValueError(
                "Padding.from_additive needs a mask [batch, tokens] or [batch, 1, 1, tokens]; "
                f"got {list(mask.shape)}. If it differs by query or head, use Pairs.from_additive."
            )
        return cls(read_additive("Padding.from_additive", mask).reshape(mask.shape[0], mask.shape[-1]))

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "batch 1 groups 1 keys"]:
        return self.valid[:, keys.index][:, None, :, None, :]

    def bound(self, grid: Grid, key_grid: Grid) -> Padding:
        by_token, _ = lay_by_token("Padding", "valid", self.valid, key_grid, fill=True)
        return Padding(by_token)

    def _on(self, device: torch.device) -> Padding:
        return Padding(self.valid.to(device))

    def cut(self, queries: slice, keys: slice) -> Padding:
        return Padding(self.valid[:, keys])


register_node(Padding, Padding.tensors)
