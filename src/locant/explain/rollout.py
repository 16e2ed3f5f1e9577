"""How far the tokens of the input reach the output: a product of maps over layers, kept block by block.

    r ← r (A + 1) / 2 per layer, from the last to the first, A the mean over heads; e_query at the start

(attention rollout: Abnar and Zuidema, arXiv 2005.00928). Windows make A sparse: a block per cell, shifted or not, is
all of it, so that the product is exact. Where a layer works on a grid that was merged from the one before, a token is
the mean of those that it was merged from; zeros that filled up an odd side are no tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from locant.explain.data import Rollout
from locant.explain.recording import MOST_PAIRS, Seen, Where, token_at
from locant.grid import Grid


def roll_out(layers: Sequence[Seen], queries: Sequence[Where], pairs: int) -> Rollout:
    """The rollout of each query, on the grid of the first layer.

    Args:
        layers: recorded with blocks.
        queries: fractions of the axes; () is a token of the prefix.
        pairs: how many numbers the maps of all layers are.
    """
    reason = _reason(layers, pairs)
    if reason:
        return Rollout(np.zeros((0,), np.float32), np.zeros((0, 0), np.float32), reason)
    last = layers[-1].grid
    row = torch.zeros(len(queries), last.tokens, dtype=torch.float64)
    for i, where in enumerate(queries):
        row[i, token_at(where, last)] = 1.0
    grid = last
    for layer in reversed(layers):
        row, grid = _unmerged(row, grid, layer.grid), layer.grid
        out = torch.zeros_like(row)
        for q, k, weights in layer.blocks or ():
            out.index_add_(1, k.cpu(), row[:, q.cpu()] @ weights.double().cpu())
        row = (row + out) / 2
    maps = row[:, grid.prefix :].unflatten(1, grid.shape)
    return Rollout(maps.float().numpy(), row[:, : grid.prefix].float().numpy())


def _reason(layers: Sequence[Seen], pairs: int) -> str:
    """Why there is none, as a sentence."""
    if not layers:
        return "There is no attention to roll out."
    if pairs > MOST_PAIRS:
        return (
            f"Rollout needs the maps of all layers, {pairs:,} numbers here; at most {MOST_PAIRS:,} are kept. Explain a "
            "smaller input."
        )
    missing = next((layer for layer in layers if layer.blocks is None), None)
    if missing is not None:
        return f"Rollout needs one group of tokens that attends to itself in every layer; {missing.name} has others."
    for before, after in itertools.pairwise(layers):
        same_axes = before.grid.axes == after.grid.axes
        if not same_axes or not all(map(_is_merged, before.grid.shape, after.grid.shape)):
            return f"Rollout can't follow tokens from {before.name}, {before.grid}, to {after.name}, {after.grid}."
    return ""


def _is_merged(finer: int, coarser: int) -> bool:
    """Whether so many cells are so many by an equal number each, the last of them perhaps by fewer."""
    return -(-finer // -(-finer // coarser)) == coarser


def _unmerged(row: Tensor, grid: Grid, finer: Grid) -> Tensor:
    """Shares of tokens handed on to those that they were merged from, in equal parts."""
    if grid == finer:
        return row
    cells = row[:, grid.prefix :].unflatten(1, grid.shape)
    for axis, (many, few) in enumerate(zip(finer.shape, grid.shape, strict=True), start=1):
        into = torch.arange(many) // -(-many // few)
        parts = torch.bincount(into)[into].reshape([-1 if a == axis else 1 for a in range(cells.ndim)])
        cells = cells.index_select(axis, into) / parts
    prefix = torch.zeros(len(row), finer.prefix, dtype=row.dtype)
    kept = min(grid.prefix, finer.prefix)  # what lies in a class token that joins later is followed no further
    prefix[:, :kept] = row[:, :kept]
    return torch.cat([prefix, cells.flatten(1)], 1)
