"""Numbers of maps: how far they look, what part of them is position's, how far two of them are apart."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from locant.explain.data import Profile
from locant.explain.scores import Block
from locant.grid import Grid

Maps = Float[np.ndarray, "heads *offsets"]


def flat(map_: Float[np.ndarray, " *offsets"], seen: np.ndarray | None = None) -> Float[np.ndarray, " *offsets"]:
    """The weights that the map alone gives, where all keys are alike and a query sees every offset (of `seen`)."""
    wide = map_.astype(np.float64)
    wide = wide if seen is None else np.where(seen, wide, -np.inf)
    if np.isnan(wide).any() or not np.isfinite(wide.max()):
        return np.full(map_.shape, np.nan)
    e = np.exp(wide - wide.max())
    return e / e.sum()


def offsets(shape: tuple[int, ...]) -> Float[np.ndarray, "axes *offsets"]:
    """query - key of every place of a map, the zero offset at the centre."""
    lines = [np.arange(size) - size // 2 for size in shape]
    return np.stack(np.meshgrid(*lines, indexing="ij")).astype(np.float64)


def profile(map_: Float[np.ndarray, " *offsets"], weights: Float[np.ndarray, " *offsets"]) -> Profile:
    """By distance, rounded to whole cells."""
    distance = np.rint(np.linalg.norm(offsets(map_.shape), axis=0)).astype(int).ravel()
    count = np.bincount(distance)
    mean = np.bincount(distance, map_.astype(np.float64).ravel()) / np.maximum(count, 1)
    mass = np.cumsum(np.bincount(distance, weights.ravel()))
    there = np.flatnonzero(count)
    return Profile(*(x[there].astype(np.float32) for x in (np.arange(len(count)), mean, mass)))


def looks(weights: Float[np.ndarray, " *offsets"]) -> tuple[float, float, tuple[float, ...]]:
    """Mean distance in cells; anisotropy 1 - (least / most spread) over the axes that there are; mean key - query."""
    apart = offsets(weights.shape)
    axes = tuple(range(1, apart.ndim))
    distance = float((weights * np.linalg.norm(apart, axis=0)).sum())
    mean = (weights * apart).sum(axes)
    live = [axis for axis, size in enumerate(weights.shape) if size > 1]
    uneven = float("nan")
    if len(live) > 1 and np.isfinite(weights).all():
        centred = (apart[live] - mean[live].reshape(-1, *[1] * weights.ndim)).reshape(len(live), -1)
        spread = np.linalg.eigvalsh((weights.ravel() * centred) @ centred.T)
        uneven = float(1 - spread[0] / spread[-1]) if spread[-1] > 0 else 0.0
    return distance, uneven, tuple(float(-x) for x in mean)


def apart(a: Float[np.ndarray, "*n"], b: Float[np.ndarray, "*n"], axes: tuple[int, ...]) -> Float[np.ndarray, "*m"]:
    """Total variation, 0 to 1: half the sum of |a - b|."""
    return np.asarray(np.abs(a - b).sum(axes) / 2)


def split(block: Block, grid: Grid, key_grid: Grid) -> Float[np.ndarray, "5 heads"]:
    """Of each head, the mean over a block's queries of: content's share, position's share, their correlation, the total
    variation between the weights and those by content alone, and the mean distance in cells.

    A share is cov(part, whole) / var(whole) over the keys that a query sees, so that both add up to 1; NaN where all
    logits are equal. Under a gate shares are 1 - g and g, and the correlation is of the two maps.
    """
    weights = block.weights().double()
    nan = torch.full(weights.shape[:1], torch.nan, dtype=torch.float64, device=weights.device)
    content, position = block.by_content(), block.by_position()
    shares, correlation, variation = [nan, nan], nan, nan
    if content is not None and position is not None:
        parts = (content, position) if block.gate is not None else (block.content, block.position)
        shares, correlation = _shares(parts[0].double(), parts[1].double(), block.seen)  # type: ignore[union-attr]
        if block.gate is not None:
            shares = [1 - block.gate[0].double(), block.gate[0].double()]
        variation = ((weights - content.double()).abs().sum(-1) / 2).mean(-1)
    return torch.stack([*shares, correlation, variation, _distance(weights, block, grid, key_grid)]).cpu().numpy()


def _shares(a: Tensor, b: Tensor, seen: Tensor) -> tuple[list[Tensor], Tensor]:
    count = seen.sum(-1, keepdim=True)
    a, b = (torch.where(seen, x - torch.where(seen, x, 0.0).sum(-1, keepdim=True) / count, 0.0) for x in (a, b))
    ab, aa, bb = (a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)
    whole = aa + 2 * ab + bb
    return [((x + ab) / whole).nanmean(-1) for x in (aa, bb)], (ab / (aa * bb).sqrt()).nanmean(-1)


def _distance(weights: Tensor, block: Block, grid: Grid, key_grid: Grid) -> Tensor:
    """ConViT's non-locality of these queries: tokens without a place are left out."""
    queries, keys = grid.select(block.queries[None]), key_grid.select(block.keys[None])
    apart = (queries.coordinates[0, :, None] - keys.coordinates[0]).double().norm(dim=-1)
    weights = weights * keys.placed[0]
    rows = (weights * apart).sum(-1) / weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
    rows = torch.where(queries.placed[0], rows, torch.nan)
    return rows.nanmean(-1)
