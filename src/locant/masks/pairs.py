"""Pairs: any set of pairs, in the senses that are published."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from locant.checks import check_tensor, check_whole
from locant.grid import Grid
from locant.masks.mask import Mask, register_node
from locant.masks.senses import read_additive, read_lengths, read_zeros_and_ones
from locant.tokens import Tokens


class Pairs(Mask):
    """Any set of pairs, given densely and taken literally, the prefix included. Costs a tensor of its size.

    Args:
        allowed: bool, True = may take part: `[queries, keys]`, `[batch, queries, keys]` or
            `[batch, heads, queries, keys]`, sizes of 1 standing for all.
    """

    example = "Pairs.from_kept(mask)"
    tensors = ("allowed_pairs",)

    def __init__(self, allowed: Bool[Tensor, "*batch queries keys"]) -> None:
        check_tensor("Pairs", "allowed", allowed, "a bool tensor [queries, keys] or of more axes")
        if allowed.dtype != torch.bool or not 2 <= allowed.ndim <= 4:
            raise ValueError(
                "Pairs needs a bool tensor [queries, keys], [batch, queries, keys] or [batch, heads, queries, keys], "
                f"True = may take part; got {allowed.dtype} of shape {tuple(allowed.shape)}. "
                "For other senses use from_kept, from_blocked, from_additive, from_window_mask or from_lengths."
            )
        self.allowed_pairs = allowed

    @classmethod
    def from_kept(cls, mask: Shaped[Tensor, "*batch queries keys"]) -> Pairs:
        """1 or True = keep, 0 = blocked (torch's SDPA bool mask; The Annotated Transformer)."""
        return cls(read_zeros_and_ones("from_kept", mask))

    @classmethod
    def from_blocked(cls, mask: Shaped[Tensor, "*batch queries keys"]) -> Pairs:
        """1 or True = blocked (TensorFlow's tutorial, Transformer-XL, XLNet, MultiheadAttention's bool `attn_mask`)."""
        return cls(~read_zeros_and_ones("from_blocked", mask))

    @classmethod
    def from_additive(cls, mask: Float[Tensor, "*batch queries keys"]) -> Pairs:
        """0 = free, -100 or less = blocked (BERT, float masks of SDPA). Anything between is a bias: refused."""
        return cls(read_additive("Pairs.from_additive", mask))

    @classmethod
    def from_window_mask(cls, mask: Float[Tensor, "windows queries keys"], batch: int) -> Pairs:
        """Swin's `attn_mask` for `batch` pictures whose windows are laid along the batch, picture by picture."""
        check_tensor("Pairs.from_window_mask", "mask", mask, "a tensor [windows, queries, keys]")
        check_whole("Pairs.from_window_mask", "batch", batch, least=0, advice="Give the number of pictures.")
        if mask.ndim != 3:
            raise ValueError(
                f"Pairs.from_window_mask needs a `mask` [windows, queries, keys]; got {list(mask.shape)}. "
                "A mask of another layout is Pairs.from_additive(mask)."
            )
        return cls(read_additive("Pairs.from_window_mask", mask).repeat(batch, 1, 1))

    @classmethod
    def from_lengths(cls, lengths: Int[Tensor, "batch queries"], keys: int) -> Pairs:
        """Query i of sample b sees the first `lengths[b, i]` keys (d2l's 2-D `valid_lens`)."""
        check_tensor("Pairs.from_lengths", "lengths", lengths, "whole numbers [batch, queries]")
        if lengths.ndim != 2:
            raise ValueError(
                f"Pairs.from_lengths needs a length per query, `lengths` [batch, queries]; got {list(lengths.shape)}. "
                "One length per sample, [batch], is Padding.from_lengths(lengths, tokens)."
            )
        return cls(read_lengths("Pairs.from_lengths", lengths, keys, "keys"))

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "#batch #heads groups queries keys"]:
        q, k = queries.index[..., :, None], keys.index[..., None, :]
        rows, columns = self.allowed_pairs.shape[-2:]
        return self.allowed_pairs[:, :, q if rows > 1 else q * 0, k if columns > 1 else k * 0]

    def bound(self, grid: Grid, key_grid: Grid) -> Pairs:
        allowed = self.allowed_pairs
        rows, columns = allowed.shape[-2:]
        if rows not in (1, grid.tokens) or columns not in (1, key_grid.tokens):
            raise ValueError(
                f"Pairs needs {grid.tokens} queries × {key_grid.tokens} keys (prefix included) or sizes of 1; "
                f"got {rows} × {columns}. Lay the mask out for {grid} and {key_grid}."
            )
        allowed = allowed[:, None] if allowed.ndim == 3 else allowed
        return Pairs(allowed.reshape(*(1,) * (4 - allowed.ndim), *allowed.shape))

    def _on(self, device: torch.device) -> Pairs:
        return Pairs(self.allowed_pairs.to(device))

    def cut(self, queries: slice, keys: slice) -> Pairs:
        rows, columns = self.allowed_pairs.shape[-2:]  # sizes of 1 stand for all
        part = self.allowed_pairs[..., queries, :] if rows > 1 else self.allowed_pairs
        return Pairs(part[..., keys] if columns > 1 else part)


register_node(Pairs, Pairs.tensors)
