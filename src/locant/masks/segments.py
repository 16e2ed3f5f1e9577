"""Segments: packed sequences, several pictures in one row."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from locant.checks import check_tensor
from locant.grid import Grid
from locant.masks.mask import Mask, lay_by_token, register_node
from locant.masks.senses import WHOLE
from locant.tokens import Tokens


class Segments(Mask):
    """A query sees keys of its own segment: packed sequences, several pictures in one row.

    Args:
        ids: whole numbers, `[batch, tokens]` with the prefix or `[batch, *grid]`, whose prefix then sees all.
        key_ids: the same for keys on a grid of their own; by default the queries' ids.
    """

    example = "Segments(ids)"
    tensors = ("ids", "key_ids")

    def __init__(self, ids: Int[Tensor, "batch *tokens"], key_ids: Int[Tensor, "batch *keys"] | None = None) -> None:
        key_ids = ids if key_ids is None else key_ids
        for name, value in (("ids", ids), ("key_ids", key_ids)):
            check_tensor("Segments", name, value, "whole numbers [batch, tokens] or [batch, *grid]")
            if value.dtype not in WHOLE or value.ndim < 2:
                raise ValueError(
                    f"Segments needs whole numbers [batch, tokens] or [batch, *grid] as {name}; "
                    f"got {value.dtype} of shape {tuple(value.shape)}. Number the segments 0, 1, 2, ..."
                )
        self.ids, self.key_ids = ids, key_ids
        self._literal = (True, True)  # whether the prefix has ids of its own, set by bound()

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "batch 1 groups queries keys"]:
        q, k = self.ids[:, queries.index], self.key_ids[:, keys.index]
        same = q[..., :, None] == k[..., None, :]
        if not self._literal[0]:
            same = same | ~queries.placed[..., None]
        if not self._literal[1]:
            same = same | ~keys.placed[..., None, :]
        return same[:, None]

    def free(self, grid: Grid, key_grid: Grid) -> tuple[int, int]:
        """How many queries and keys belong to every segment: a prefix without ids of its own."""
        return 0 if self._literal[0] else grid.prefix, 0 if self._literal[1] else key_grid.prefix

    def bound(self, grid: Grid, key_grid: Grid) -> Segments:
        ids, own = lay_by_token("Segments", "ids", self.ids, grid, fill=0)
        key_ids, key_own = lay_by_token("Segments", "key_ids", self.key_ids, key_grid, fill=0)
        literal = (own and self._literal[0], key_own and self._literal[1])  # also if bound before
        return self._with(ids, key_ids, literal)

    def _on(self, device: torch.device) -> Segments:
        return self._with(self.ids.to(device), self.key_ids.to(device), self._literal)

    def cut(self, queries: slice, keys: slice) -> Segments:
        return self._with(self.ids[:, queries], self.key_ids[:, keys], self._literal)

    @staticmethod
    def _with(ids: Tensor, key_ids: Tensor, literal: tuple[bool, bool]) -> Segments:
        made = Segments(ids, key_ids)
        made._literal = literal
        return made


register_node(Segments, Segments.tensors)
