"""Sines and cosines of the coordinates: the fixed encoding of the Transformer, on sequences, images and clips.

Per axis, p = coordinate + start, n = dim / (2 axes) frequencies, angle a_j = p f_j, j = 0 .. n - 1:

    layout          f_j                  channels of a sequence             several axes
    "interleaved"   base^(-j / n)        sin a_0, cos a_0, sin a_1, ...     time | row | column, each interleaved
    "halves"        base^(-j / n)        sin a_0 .. sin a_n-1, cos a_0 ..   time | row | column, each in halves
    "t2t"           base^(-j / (n - 1))  as "halves"                        as "halves", n = floor(dim / (2 axes));
                                                                            channels left over are zeros
    "timm"          base^(-j / n)        as "halves"                        sin row | sin column | cos row | cos column
    "mae"           base^(-j / n)        as "halves"                        sin column | cos column | sin row | cos row

In a sequence base^(-j / n) = 10000^(-2j / dim). A fixed step in p turns every (sin, cos) pair by a fixed angle, so dot
products of two encodings depend on their distance alone.

Sources: "interleaved" arXiv 1706.03762, section 3.5, and d2l; "halves" Transformer-XL's R (arXiv 1901.02860) and
Marian; "t2t" tensor2tensor `common_attention.py`, `get_timing_signal_1d` and `add_timing_signal_nd`; "timm"
`build_sincos2d_pos_embed` (its default options); "mae" facebookresearch/mae `util/pos_embed.py`, which names its
halves h and w but fills them with columns first. The last two are published on images; on a clip "timm" goes time, row,
column and "mae" column, row, time.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from locant.checks import check_types
from locant.grid import Grid, check_grid
from locant.masks import Mask, check_mask
from locant.positions.position import Comparison, Embedding

LAYOUTS = ("interleaved", "halves", "t2t", "timm", "mae")


class Sinusoid(Embedding):
    """The fixed sinusoidal vector of each token; zeros for the prefix. Nothing is learned or stored.

    Angles are taken in float64 and rounded once, to the dtype the module was moved to, so that far positions are as
    exact as near ones (float32 angles are off by 0.004 at position 100,000).

    Args:
        dim: length of a vector; a multiple of 2 per axis, any number under "t2t".
        layout: one of the table above.
        base: ratio of the slowest to the fastest wavelength, roughly (exactly under "t2t").
        start: position of coordinate 0.

    Raises:
        ValueError: for an unknown layout, an odd dim (but for "t2t") or a base that is not positive.
    """

    compared = Comparison(
        "sinusoid", "sinusoid", "fixed waves per axis, added to the tokens (Vaswani et al.)",
        build=lambda grid, dim, heads: Sinusoid(dim),
    )  # fmt: skip

    like: Tensor

    @check_types
    def __init__(self, dim: int, *, layout: str = "interleaved", base: float = 10000.0, start: int = 0) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(
                f"Sinusoid needs a `layout` out of {', '.join(map(repr, LAYOUTS))}; got {layout!r}. "
                'The Transformer\'s paper and d2l use "interleaved".'
            )
        if base <= 0:
            raise ValueError(f"Sinusoid needs a `base` above 0; got {base}. The published value is 10000.0.")
        self.dim, self.layout, self.base, self.start = dim, layout, base, start
        self._frequencies(1)
        # no values: it only follows `.to(...)`, and so says on which device and in which dtype to answer
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, grid: Grid, mask: Mask | None = None) -> Float[Tensor, "tokens dim"]:
        """The vectors of the tokens of `grid`, read off its coordinates. The mask plays no part.

        Raises:
            ValueError: if dim does not divide over the axes of the grid.
        """
        check_grid("Sinusoid", "grid", grid)
        check_mask("Sinusoid", "mask", mask)
        frequencies = self._frequencies(grid.axes)
        rates = torch.tensor(frequencies, dtype=torch.float64, device=self.like.device)
        waves = []  # per axis [*grid, sin or cos, frequency]: an axis has few coordinates, so few sines are taken
        for axis in range(grid.axes):
            angles = (grid.line(axis, torch.float64, rates.device) + self.start)[:, None] * rates
            wave = torch.stack([angles.sin(), angles.cos()], dim=1).to(self.like.dtype)
            around = [grid.shape[axis] if a == axis else 1 for a in range(grid.axes)]
            waves.append(wave.reshape(*around, *wave.shape[1:]).expand(*grid.shape, *wave.shape[1:]))
        rows = self._laid_out(waves).reshape(grid.cells, 2 * grid.axes * len(frequencies))
        # on top the prefix, on the right what "t2t" leaves over
        return torch.nn.functional.pad(rows, (0, self.dim - rows.shape[1], grid.prefix, 0))

    def extra_repr(self) -> str:
        start = f", start={self.start}" if self.start else ""
        return f"dim={self.dim}, layout={self.layout!r}, base={self.base}{start}"

    def _laid_out(self, waves: list[Float[Tensor, "*grid 2 frequencies"]]) -> Tensor:
        if self.layout == "interleaved":
            return torch.stack([wave.transpose(-1, -2) for wave in waves], dim=-3)
        if self.layout == "timm":
            return torch.stack(waves, dim=-2)
        return torch.stack(waves[::-1] if self.layout == "mae" else waves, dim=-3)

    def _frequencies(self, axes: int) -> list[float]:
        count, rest = divmod(self.dim, 2 * axes)
        if count < 1 or (rest and self.layout != "t2t"):
            below, above = max(count, 1) * 2 * axes, (count + 1) * 2 * axes
            near = f"{below} or {above}" if count else f"{below}"
            raise ValueError(
                f"Sinusoid shares `dim` out to sin and cos of {axes} {'axes' if axes > 1 else 'axis'}, so it needs a "
                f"multiple of {2 * axes}; got {self.dim}. Use {near}"
                + (', or layout="t2t", which pads with zeros.' if count else ".")
            )
        last = max(count - 1, 1) if self.layout == "t2t" else count
        return [self.base ** (-j / last) for j in range(count)]
