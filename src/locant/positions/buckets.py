"""A learned bias per bucket of offsets: near ones alone, far ones in ever wider buckets."""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from locant.checks import check_number, check_tensor, check_types, check_whole, description
from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Bias


@final
class T5Buckets(Bias):
    """bias[head, i, j] = table[head, bucket(i - j)],  table [heads, buckets].

    With n buckets per side (buckets / 2 if bidirectional, else all of them), distance d = |i - j| has the bucket

        d                                                             for d < n / 2,
        n / 2 + ⌊log(d / (n / 2)) / log(max_distance / (n / 2)) · n / 2⌋    beyond, at most n - 1

    and keys after their query have n more. One-directional, keys after their query are no case: it needs `Causal`.
    Tokens without a place have bias 0.

    Where it differs: T5 publishes key - query and `relative_attention_bias.weight [buckets, heads]`; the numbers of
    the buckets are the same, so its transpose is our table. In T5 all layers share one table, and attention has no
    scale: pass `scale=1.0`. Published one-directional code gives all keys after the query the bucket of distance 0.
    Source: T5 (arXiv 1910.10683, section 2.1); logarithms in float32, as published, so that no bucket's edge moves.

    Args:
        heads: one bias each.
        buckets: how many, for both sides together; even if bidirectional.
        max_distance: where the last bucket begins, roughly: all beyond are in it.
        bidirectional: whether keys after their query have buckets of their own (T5's encoder) or are masked (decoder).
        init_std: of the normal that the table starts from.

    Raises:
        ValueError: for too few or odd buckets, and a max_distance that the near buckets reach already.
    """

    @check_types
    def __init__(
        self,
        heads: int,
        *,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_whole("T5Buckets", "heads", heads)
        check_number("T5Buckets", "init_std", init_std, least=0.0)
        side = buckets // 2 if bidirectional else buckets
        if side < 2 or (bidirectional and buckets % 2) or max_distance <= side // 2:
            least = 4 if bidirectional else 2
            raise ValueError(
                f"T5Buckets needs {'an even number of ' if bidirectional else ''}`buckets` of at least {least}, and a "
                f"`max_distance` beyond the near ones, which have a bucket each; got {buckets} and {max_distance}. "
                "T5 uses 32 and 128."
            )
        self.heads, self.buckets, self.max_distance, self.bidirectional = heads, buckets, max_distance, bidirectional
        self.table = nn.Parameter(torch.empty(heads, buckets))
        nn.init.normal_(self.table, std=init_std)

    def bucket(self, offsets: Int[Tensor, "*offsets"]) -> Int[Tensor, "*offsets"]:
        """The bucket of each offset (query - key)."""
        check_tensor("T5Buckets.bucket", "offsets", offsets, "a tensor of whole numbers")
        if offsets.is_complex():
            raise ValueError(
                f"T5Buckets.bucket needs `offsets` as real numbers; got {description(offsets)}. Pass query - key."
            )
        side = self.buckets // 2 if self.bidirectional else self.buckets
        exact = side // 2
        distance = offsets.abs() if self.bidirectional else offsets.clamp(min=0)
        ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (ratio * (side - exact)).long()).clamp(max=side - 1)
        found = torch.where(distance < exact, distance, far)
        return found + side * (offsets < 0) if self.bidirectional else found

    def at(self, offset: Int[Tensor, "*pairs axes"]) -> Float[Tensor, "heads *pairs"]:
        return self.table[:, self.bucket(offset[..., 0])]

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        if grid.axes != 1:
            raise ValueError(
                f"T5Buckets knows offsets in a sequence, a grid of one axis; got {grid}. "
                "On images and clips use RelativeTable, LogCPB or ALiBi."
            )
        if not self.bidirectional and not mask.causal:
            raise ValueError(
                "T5Buckets(bidirectional=False) has no buckets for keys after their query, and needs a mask that hides "
                f"them; got {mask.names()}. Pass mask=Causal(), or build it bidirectional."
            )

    def extra_repr(self) -> str:
        side = "" if self.bidirectional else ", bidirectional=False"
        return f"heads={self.heads}, buckets={self.buckets}, max_distance={self.max_distance}{side}"
