"""What schemes lower to: a handful of forms, where N schemes and M kernels meet.

Each form comes in two halves. The static half (`OffsetTable`, `AxialVectors`, `Separable`) is hashable and is all that
a planner may read; the tensors (`OffsetValues`, `AxialValues`, `SeparableValues`) are what a kernel reads. Offsets are
query - key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from locant.dispatch import is_open
from locant.grid import Grid
from locant.tokens import Tokens, offset


@dataclass(frozen=True)
class OffsetTable:
    """A bias that depends on the offset alone: one number per head and offset, O(N) in all.

    `values[head, r_0 + dt, r_1 + dy, r_2 + dx]` is read at the offset (query - key), `reach` being r: its centre is
    the zero offset. `prefix` says that tokens without a place have learned rows; else their bias is 0.
    """

    heads: int
    reach: tuple[int, ...]
    prefix: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(2 * r + 1 for r in self.reach)

    @property
    def numbers(self) -> int:
        """How many numbers the form holds."""
        return self.heads * (math.prod(self.sizes) + 3 * self.prefix)


@dataclass(frozen=True)
class OffsetValues:
    """The tensors of an `OffsetTable`.

    `query_prefix` is added where the query is a prefix token and the key has a place, `key_prefix` where the key is
    one and the query has a place, `both` where both are (BEiT's three extra rows, arXiv 2106.08254).
    """

    table: Float[Tensor, "heads *offsets"]
    query_prefix: Float[Tensor, " heads"] | None = None
    key_prefix: Float[Tensor, " heads"] | None = None
    both: Float[Tensor, " heads"] | None = None

    def at(self, queries: Tokens, keys: Tokens) -> Float[Tensor, "heads groups queries keys"]:
        """The bias of chosen pairs. Pairs out of reach read the table's edge: only a mask may leave them there."""
        sizes = self.table.shape[1:]
        index = torch.zeros((), dtype=torch.int64, device=self.table.device)
        for axis, size in enumerate(sizes):
            apart = offset(queries.coordinates[..., axis], keys.coordinates[..., axis])
            index = index * size + (apart + size // 2).clamp(0, size - 1)
        bias = self.table.flatten(1).index_select(1, index.flatten()).unflatten(1, index.shape)
        if self.query_prefix is None or self.key_prefix is None or self.both is None:
            placed = queries.placed[..., None] & keys.placed[..., None, :]
            return torch.where(placed, bias, 0.0)
        both, from_prefix, to_prefix = (
            row[:, None, None, None] for row in (self.both, self.query_prefix, self.key_prefix)
        )
        bias = torch.where(queries.placed[..., None], bias, from_prefix)
        without = torch.where(queries.placed[..., None], to_prefix, both)
        return torch.where(keys.placed[..., None, :], bias, without)

    def dense(self, grid: Grid, key_grid: Grid) -> Float[Tensor, "heads queries keys"]:
        """The whole bias: O(N²)."""
        device = self.table.device
        return self.at(grid.select(device=device), key_grid.select(device=device))[:, 0]


def add_values(values: Sequence[OffsetValues]) -> OffsetValues:
    """The tensors of biases that add up; all were made for one reach."""

    def total(rows: list[Tensor | None]) -> Tensor | None:
        there = [row for row in rows if row is not None]
        return sum(there[1:], there[0]) if there else None

    return OffsetValues(
        sum((v.table for v in values[1:]), values[0].table),
        total([v.query_prefix for v in values]),
        total([v.key_prefix for v in values]),
        total([v.both for v in values]),
    )


@dataclass(frozen=True)
class AxialVectors:
    """A bias that depends on the query's content and on the offset, one axis at a time: a query meets vectors.

    Along each axis there is a vector for every offset of `ranges`, (lowest, highest); offsets beyond are taken for the
    nearest of them. O(Σ sides) vectors, however many tokens there are: what each query makes of them (`AxialTerms`) is
    the kernel's to compute, all at once or a block at a time.
    """

    heads: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(high - low + 1 for low, high in self.ranges)


@dataclass(frozen=True)
class AxialValues:
    """The tensors of an `AxialVectors`, for the offsets of its `ranges`.

        bias[b, h, i, j] = factor · Σ_axis (queries[b, h, i] · vectors[axis][h, o] + biases[axis][h, o])
        o = clamp(offset_axis(i, j), lowest, highest) - lowest

    `vectors` and `biases` have a row per head, or one for all heads. The result is ready to be added to logits: a
    scheme whose scale multiplies its terms makes it the `factor`. Pairs with a token that has no place get 0.
    """

    queries: Float[Tensor, "batch heads queries head_dim"]
    vectors: tuple[Float[Tensor, "heads_or_1 _ head_dim"], ...]
    ranges: tuple[tuple[int, int], ...]
    biases: tuple[Float[Tensor, "heads_or_1 _"], ...] | None = None
    factor: float | Tensor = 1.0

    def __post_init__(self) -> None:
        for axis, (vectors, (low, high)) in enumerate(zip(self.vectors, self.ranges, strict=True)):
            if is_open(vectors.shape[1]):  # asked whether two symbols are equal, a graph would make constants of them
                continue
            if vectors.shape[1] != high - low + 1:
                raise ValueError(
                    f"AxialValues needs a vector for each offset of its ranges, {high - low + 1} on axis {axis} for "
                    f"{(low, high)}; got {vectors.shape[1]}. Hand over those of `form.ranges`."
                )

    def terms(self) -> AxialTerms:
        """The number of every query at every offset: O(N · Σ sides), which on a sequence is O(N²)."""
        lines = []
        for axis, vectors in enumerate(self.vectors):
            shared = vectors[0] if len(vectors) == 1 else vectors  # one matrix for all heads is one product
            line = self.queries @ shared.mT.to(self.queries.dtype)
            if self.biases is not None:
                line = line + self.biases[axis][:, None].to(line.dtype)
            lines.append(line if isinstance(self.factor, float) and self.factor == 1.0 else self.factor * line)
        return AxialTerms(tuple(lines), self.ranges)

    def dense(self, grid: Grid, key_grid: Grid) -> Float[Tensor, "batch heads queries keys"]:
        """The whole bias: O(N²) per sample."""
        return self.terms().dense(grid, key_grid)


@dataclass(frozen=True)
class AxialTerms:
    """What queries make of an `AxialValues`: a number per query and offset, axis by axis.

    bias[b, h, i, j] = Σ_axis lines[axis][b, h, i, o], o as there.
    """

    lines: tuple[Float[Tensor, "batch heads queries _"], ...]
    ranges: tuple[tuple[int, int], ...]

    def at(self, queries: Tokens, keys: Tokens, box: tuple[int, ...]) -> Float[Tensor, "batch heads groups count keys"]:
        """The bias of chosen pairs. Pairs out of range read the nearest term.

        `box` is the shape of the keys that have a place: a row-major box in each group, behind those that have none.
        So each axis is read for its own coordinates alone, and the sum over axes is spread over the box.
        """
        shape = (*self.lines[0].shape[:2], *queries.index.shape)
        before = keys.index.shape[1] - math.prod(box)
        if 0 in box:
            return self.lines[0].new_zeros(*shape, before)
        places = keys.coordinates[:, before:].unflatten(1, box)
        spread = []
        for axis, (line, (low, high)) in enumerate(zip(self.lines, self.ranges, strict=True)):
            own = places[(slice(None), *(slice(None) if a == axis else 0 for a in range(len(box))), axis)]
            apart = offset(queries.coordinates[..., axis], own)
            index = (apart.clamp(low, high) - low).expand(*shape, -1)
            rows = torch.where(queries.placed[..., None], line[:, :, queries.index], 0.0)
            spread.append(rows.gather(-1, index).reshape(*shape, *(n if a == axis else 1 for a, n in enumerate(box))))
        total = sum(spread[1:], spread[0]).flatten(len(shape))
        return torch.nn.functional.pad(total, (before, 0)) if before else total

    def dense(self, grid: Grid, key_grid: Grid) -> Float[Tensor, "batch heads queries keys"]:
        """The whole bias: O(N²) per sample."""
        device = self.lines[0].device
        return self.at(grid.select(device=device), key_grid.select(device=device), key_grid.shape)[:, :, 0]


@dataclass(frozen=True)
class Separable:
    """A map of probabilities from position alone, which is a product of one small softmax per axis.

    softmax over keys of sum_a L_a(i_a, j_a) = prod_a softmax over j_a of L_a(i_a, j_a), exactly, as long as the keys
    that a query may see are a box: the whole grid, or a cell of a window.
    """

    heads: int


@dataclass(frozen=True)
class SeparableValues:
    """The tensors of a `Separable`: logits per axis, and how much of the mixture is position's, per head."""

    logits: tuple[Float[Tensor, "heads _ _"], ...]  # queries and keys of each axis
    share: Float[Tensor, " heads"]

    def dense(self, grid: Grid, key_grid: Grid) -> Float[Tensor, "heads queries keys"]:
        """The logits of the whole map, O(N²); prefix tokens have 0."""
        heads, axes = self.share.shape[0], len(self.logits)
        total = torch.zeros((), dtype=self.share.dtype, device=self.share.device)
        for axis, line in enumerate(self.logits):
            shape = [1] * (2 * axes)
            shape[axis], shape[axes + axis] = line.shape[1], line.shape[2]
            total = total + line.reshape(heads, *shape)
        total = total.reshape(heads, grid.cells, key_grid.cells)
        return torch.nn.functional.pad(total, (key_grid.prefix, 0, grid.prefix, 0))
