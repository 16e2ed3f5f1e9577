"""Causal: order, of tokens or along one axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from locant.checks import check_whole
from locant.dispatch import register_constant
from locant.grid import Grid
from locant.masks.mask import Mask
from locant.tokens import Tokens


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees keys that do not come after it.

    Args:
        axis: None compares the order of tokens (row-major coordinates); an axis compares that coordinate alone,
            so that `Causal(axis=0)` on a clip lets a frame see itself and all earlier frames whole.
    """

    axis: int | None = None
    example = "Causal()"

    def __post_init__(self) -> None:
        if self.axis is not None:
            check_whole("Causal", "axis", self.axis, least=None, advice="Name an axis of the grid, 0 for the first.")

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "1 1 groups queries keys"]:
        axes = range(queries.coordinates.shape[-1]) if self.axis is None else (self.axis,)
        past = torch.ones((), dtype=torch.bool, device=queries.index.device)
        for axis in reversed(axes):  # lexicographic: an earlier axis decides before a later one
            q, k = queries.coordinates[..., axis, None], keys.coordinates[..., None, :, axis]
            past = (k < q) | ((k == q) & past)
        past = past & queries.placed[..., None]  # a prefix query sees the prefix only
        return (past | ~keys.placed[..., None, :])[None, None]

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        if self.axis is not None and self.axis not in range(grid.axes):
            raise ValueError(
                f"Causal(axis=...) needs an axis of the grid, 0 to {grid.axes - 1} for {grid}; it got {self.axis}. "
                "Name one of those, or leave it out for the order of tokens."
            )
        return self


register_constant(Causal)
