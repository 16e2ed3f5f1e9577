"""Rotary positions: pairs of channels of q and k are turned by angles that grow with the coordinate.

    (a, b) -> (a cos t - b sin t, a sin t + b cos t),    t = coordinate * base^(-i / n),  i = 0 .. n - 1

for the n pairs that an axis has. Turned by t_q and t_k, a pair's part of q.k depends on t_q - t_k alone: the logits
depend on the offset of query and key, per axis, and lengths stay as they are.

    layout          channels of pair i        used by
    "interleaved"   2 i, 2 i + 1              RoFormer, GPT-J
    "halves"        i, i + head_dim / 2       GPT-NeoX, Llama

The head_dim / 2 pairs are dealt out to the axes in order, time, row, column: pairs=(4, 2, 2) turns the first four by
time. On a sequence n = head_dim / 2 and base^(-i / n) = base^(-2i / head_dim), as published. With several axes each
axis has its own full range of frequencies, as in axial rotary embeddings.

Weights trained under one layout need their q and k channels permuted for the other. Values are not rotated.

Sources: RoFormer, arXiv 2104.09864, equations 14, 15 and 34; several axes: arXiv 2403.13298, its "axial frequency".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from locant.checks import check_tensor, check_types
from locant.grid import AXES, Grid, check_grid
from locant.positions.position import Comparison, Rotation

LAYOUTS = ("interleaved", "halves")


class Rotary(Rotation):
    """Rotation of q and k by position. Nothing is learned or stored; prefix tokens are left as they are.

    Angles are taken in float64, the rotation in float32 (float64 for float64), and the result has the input's dtype.

    Args:
        head_dim: channels of a head, even.
        axes: how many axes the grids have.
        pairs: how many channel pairs each axis turns, head_dim / 2 in all; None shares them out evenly, what is left
            going to the last axes.
        layout: which channels form a pair, as above.
        base: the frequencies of an axis fall from 1 towards 1 / base.

    Raises:
        ValueError: for an odd head_dim, pairs that do not add up, an unknown layout, or a base that is not positive.
    """

    compared = Comparison(
        "rotary", "rotary", "queries and keys turned by their coordinates, axis by axis (RoFormer)",
        build=lambda grid, dim, heads: Rotary(dim // heads, axes=grid.axes, base=100.0),
    )  # fmt: skip

    @check_types
    def __init__(
        self,
        head_dim: int,
        *,
        axes: int = 1,
        pairs: tuple[int, ...] | None = None,
        layout: str = "interleaved",
        base: float = 10000.0,
    ) -> None:
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise ValueError(
                f"Rotary turns channels in pairs, so it needs an even `head_dim` of at least 2; got {head_dim}. "
                f"Use {max(2, head_dim - 1)} or {max(2, head_dim - 1) + 2}."
            )
        if axes not in AXES:
            raise ValueError(f"Rotary needs 1, 2 or 3 `axes`; got {axes}. A sequence has 1, an image 2, a clip 3.")
        if layout not in LAYOUTS:
            raise ValueError(
                f"Rotary needs a `layout` out of {', '.join(map(repr, LAYOUTS))}; got {layout!r}. "
                'RoFormer and GPT-J use "interleaved", GPT-NeoX and Llama "halves".'
            )
        if base <= 0:
            raise ValueError(f"Rotary needs a `base` above 0; got {base}. The published value is 10000.0.")
        self.head_dim, self.axes, self.layout, self.base = head_dim, axes, layout, base
        self.pairs = _evenly(head_dim // 2, axes) if pairs is None else tuple(pairs)
        if len(self.pairs) != axes or sum(self.pairs) != head_dim // 2 or min(self.pairs) < 0:
            raise ValueError(
                f"Rotary needs `pairs` for each of {axes} axes, {head_dim // 2} in all (head_dim / 2); "
                f"got {self.pairs}. {_evenly(head_dim // 2, axes)} shares them out evenly."
            )

    def forward(
        self, x: Float[Tensor, "batch heads tokens head_dim"], grid: Grid
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """`turn`."""
        return self.turn(x, grid)

    def turn(
        self, x: Float[Tensor, "batch heads tokens head_dim"], grid: Grid
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """`x` (queries or keys on `grid`), rotated.

        `attention(..., position=rotary)` turns queries and keys. Against a cache, which would be turned anew with each
        new token, turn what is new, keep turned keys, and leave the position out:

            keys = torch.cat([keys, rotary.turn(k, new)], 2)
            out = attention(rotary.turn(q, new), keys, values, grid=new, key_grid=line, mask=Causal())

        Raises:
            ValueError: if the grid has other axes than `axes`, or `x` other tokens or channels.
        """
        check_tensor("Rotary", "x", x, "queries or keys [batch, heads, tokens, head_dim]")
        check_grid("Rotary", "grid", grid)
        if grid.axes != self.axes:
            raise ValueError(
                f"this Rotary needs a grid of {self.axes} {'axes' if self.axes > 1 else 'axis'}; got {grid}, "
                f"which has {grid.axes}. Build it with Rotary({self.head_dim}, axes={grid.axes})."
            )
        if tuple(x.shape[-2:]) != (grid.tokens, self.head_dim):
            raise ValueError(
                f"this Rotary needs `x` [batch, heads, {grid.tokens}, {self.head_dim}] on {grid}; "
                f"got {list(x.shape)}. Pass the grid of these tokens (prefix included) and heads of that size."
            )
        cells = x[..., grid.prefix :, :]
        turned = self._turned(cells.to(torch.promote_types(x.dtype, torch.float32)), grid).to(x.dtype)
        return torch.cat([x[..., : grid.prefix, :], turned], dim=-2) if grid.prefix else turned

    def extra_repr(self) -> str:
        shared = f", axes={self.axes}, pairs={self.pairs}" if self.axes > 1 else ""
        return f"{self.head_dim}{shared}, layout={self.layout!r}, base={self.base}"

    def _turned(self, x: Float[Tensor, "batch heads cells head_dim"], grid: Grid) -> Tensor:
        cos, sin = self._cos_and_sin(grid, x.device).to(x.dtype)
        if self.layout == "interleaved" and not torch.compiler.is_compiling():
            # (a + ib)(cos t + i sin t) in one pass: several times faster on a CPU than the four strided products below,
            # which a compiler fuses itself. Cloned, because a complex view needs even strides and an even offset.
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).clone(memory_format=torch.contiguous_format))
            return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
        pair = -1 if self.layout == "interleaved" else -2
        a, b = x.unflatten(-1, (-1, 2) if pair == -1 else (2, -1)).unbind(pair)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=pair).flatten(-2)

    def _cos_and_sin(self, grid: Grid, device: torch.device) -> Float[Tensor, "2 cells pairs"]:
        parts = []  # taken per axis and spread over the grid: an axis has few coordinates
        for axis, count in enumerate(self.pairs):
            rates = torch.tensor([self.base ** (-i / count) for i in range(count)], dtype=torch.float64, device=device)
            places = grid.line(axis, torch.float64, device)
            angles = places[:, None] * rates
            around = [grid.shape[axis] if a == axis else 1 for a in range(self.axes)]
            waves = torch.stack([angles.cos(), angles.sin()]).reshape(2, *around, count)
            parts.append(waves.expand(2, *grid.shape, count))
        return torch.cat(parts, dim=-1).flatten(1, -2)


def _evenly(pairs: int, axes: int) -> tuple[int, ...]:
    each, rest = divmod(pairs, axes)
    return tuple(each + (axis >= axes - rest) for axis in range(axes))
