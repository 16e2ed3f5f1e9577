"""DETR's sine encoding: positions are counts of real cells, so each picture of a padded batch has its own.

Per axis of a grid, with valid = 1 for a real cell and N = dim / axes channels (N even):

    p     = valid summed along the axis, up to and including the cell       counts from 1; padding repeats or is 0
    p     = (p + offset) / (p_last + 1e-6) * scale                          when normalised; else p + offset
    w_i   = temperature^(2 floor(i / 2) / N)                                i = 0 .. N - 1
    E_i   = sin(p / w_i) for even i, cos(p / w_i) for odd i                 axes joined: (time |) row | column

A mask with holes counts real cells: p is an index among them, not a coordinate. Cells that are padding get numbers
without meaning, which masks must keep out as keys. 2 pi being a full turn, the last real row has the same code as 0 in
the fastest channel.

Where it differs from the published code: a mask is `Padding` (True = real; DETR's own is the inverse), channels come
last, tokens row-major, and everything is computed in float32, or float64 once the module is, never in less: in float16
the counts themselves would be rounded. `offset=-0.5` is Deformable DETR's variant; there and in mmdetection an offset
acts only when normalising. Without a mask every cell is real, where the published code fails.

Sources: arXiv 2005.12872, appendix; facebookresearch/detr `models/position_encoding.py`; on clips VisTR
(arXiv 2011.14503), N = dim / 3; offset: Deformable DETR (arXiv 2010.04159).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from locant.checks import check_tensor, check_types, check_whole
from locant.grid import Grid, check_grid
from locant.masks import Mask, Padding, check_mask
from locant.positions.position import Comparison, Embedding

EPSILON = 1e-6  # an axis without a real cell is 0 / 1e-6, not 0 / 0


class MaskedSine(Embedding):
    """The sine vector of each token, counted over the real cells; zeros for the prefix. Nothing is learned.

    Args:
        dim: all channels: 2 N on pictures, 3 N on clips, N even.
        temperature: the longest wavelength over 2 pi, roughly.
        normalize: whether counts are divided by the last one, so that every picture spans 0 to `scale`.
        scale: what a full extent becomes; None is 2 pi. Only with `normalize`.
        offset: added to the counts; mmdetection's `offset`, -0.5 in Deformable DETR.

    Raises:
        ValueError: for an odd dim, a temperature that is not positive, or a scale without `normalize`.
    """

    compared = Comparison(
        "masked-sine", "mask-aware sine", "waves over the valid part of the picture, added to the tokens (DETR)",
        build=lambda grid, dim, heads: MaskedSine(dim), axes=(2,),
    )  # fmt: skip

    like: Tensor

    @check_types
    def __init__(
        self,
        dim: int,
        *,
        temperature: float = 10000.0,
        normalize: bool = True,
        scale: float | None = None,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        if scale is not None and not normalize:
            raise ValueError(
                f"MaskedSine needs normalize=True for a `scale` to act on; got normalize=False, scale={scale}. "
                "Leave the scale out, or normalise."
            )
        if temperature <= 0:
            raise ValueError(f"MaskedSine needs a `temperature` above 0; got {temperature}. DETR uses 10000.0.")
        self.dim, self.temperature, self.normalize, self.offset = dim, temperature, normalize, offset
        self.scale = 2 * math.pi if scale is None else scale
        self._wavelengths(1)
        self.register_buffer("like", torch.zeros(()), persistent=False)  # follows `.to(...)`: says on which device

    def forward(
        self, grid: Grid, mask: Mask | None = None
    ) -> Float[Tensor, "batch tokens dim"] | Float[Tensor, "tokens dim"]:
        """The vectors of the tokens of `grid`: per sample if `mask` holds a `Padding`, else one set for all.

        Cells are counted on `grid` as it stands: a slice counts from its own first cell.

        Raises:
            ValueError: if dim does not divide over the axes of the grid, or the padding is laid out for another.
        """
        check_grid("MaskedSine", "grid", grid)
        check_mask("MaskedSine", "mask", mask)
        valid = torch.ones(grid.shape, dtype=torch.bool, device=self.like.device)
        for member in () if mask is None else mask.members():
            if isinstance(member, Padding):
                cells = member.bound(grid, grid).valid[:, grid.prefix :]
                valid = valid & cells.reshape(-1, *grid.shape)
        rows = self.encode(valid, axes=grid.axes).flatten(-1 - grid.axes, -2)
        return torch.nn.functional.pad(rows, (0, 0, grid.prefix, 0))

    def encode(self, valid: Bool[Tensor, "*batch_and_grid"], *, axes: int = 2) -> Float[Tensor, "*batch_and_grid dim"]:
        """The vectors of a map of cells, channels last: `[rows, columns]` or `[batch, rows, columns]`.

        Args:
            valid: bool, True = a real cell (the inverse of DETR's mask: pass `~mask`).
            axes: how many of the last dimensions are the grid; 2 is a picture.

        Raises:
            ValueError: if `valid` is not bool or has fewer dimensions, or dim does not divide over the axes.
        """
        check_tensor("MaskedSine.encode", "valid", valid, "a bool map, True = a real cell")
        check_whole("MaskedSine.encode", "axes", axes, most=3)
        if valid.dtype != torch.bool or valid.ndim < axes:
            raise ValueError(
                f"MaskedSine.encode needs a bool map of at least {axes} dimensions as `valid`, True = a real cell; "
                f"got {valid.dtype} of shape {tuple(valid.shape)}. For ones and zeros pass valid.bool(); "
                "for DETR's mask (True = padding) pass ~mask."
            )
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        wavelengths = torch.tensor(self._wavelengths(axes), dtype=dtype, device=valid.device)
        parts = []
        for axis in range(-axes, 0):
            count = valid.cumsum(axis, dtype=dtype)
            place = count + self.offset
            if self.normalize and valid.shape[axis]:
                place = place / (count.narrow(axis, valid.shape[axis] - 1, 1) + EPSILON) * self.scale
            angles = place[..., None] / wavelengths
            parts.append(torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2))
        return torch.cat(parts, dim=-1)

    def extra_repr(self) -> str:
        extent = f"scale={self.scale:.6g}" if self.normalize else "normalize=False"
        offset = f", offset={self.offset}" if self.offset else ""
        return f"dim={self.dim}, temperature={self.temperature}, {extent}{offset}"

    def _wavelengths(self, axes: int) -> list[float]:
        """w of each (sin, cos) pair of one axis."""
        pairs, rest = divmod(self.dim, 2 * axes)
        if rest or pairs < 1:
            near = f"{pairs * 2 * axes} or {(pairs + 1) * 2 * axes}" if pairs else f"{2 * axes}"
            raise ValueError(
                f"MaskedSine shares `dim` out to sin and cos of {axes} {'axes' if axes > 1 else 'axis'}, so it needs a "
                f"multiple of {2 * axes}; got {self.dim}. Use {near}: dim counts all channels, DETR's num_pos_feats "
                "those of one axis."
            )
        return [self.temperature ** (i / pairs) for i in range(pairs)]
