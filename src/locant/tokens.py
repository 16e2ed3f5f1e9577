"""Tokens with their coordinates, and how far they lie apart: the one place where coordinates are subtracted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Tokens(NamedTuple):
    """A choice of tokens of a grid, in equal groups: what masks and tables are asked about.

    The whole grid is one group; under windows each cell is a group. `placed` is False for prefix tokens, whose
    coordinates are zeros without meaning.
    """

    index: Int[Tensor, "groups count"]  # type: ignore[assignment]  # in place of tuple.index, which nobody calls
    coordinates: Int[Tensor, "groups count axes"]
    placed: Bool[Tensor, "groups count"]


def offset(queries: Int[Tensor, "*groups queries"], keys: Int[Tensor, "*groups keys"]) -> Tensor:
    """query - key along one axis, `[*groups, queries, keys]`."""
    return queries[..., :, None] - keys[..., None, :]


def every_offset(reach: tuple[int, ...], device: torch.device | None = None) -> Int[Tensor, "*offsets axes"]:
    """All offsets of up to `reach` along each axis, `[2T+1, 2H+1, 2W+1, axes]`, the zero offset in the centre."""
    lines = [torch.arange(-r, r + 1, device=device) for r in reach]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)
