"""Self-attention inside windows, and the published rules for maps that windows do not divide."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from locant import hooks
from locant.call import Positions
from locant.checks import check_types
from locant.grid import Grid
from locant.masks import Mask, Segments, Windows, check_mask
from locant.nn.arguments import check_tokens, split_embedding, token_grid
from locant.nn.linears import bare_weight
from locant.nn.self_attention import Attention
from locant.positions.position import Position
from locant.positions.table import RelativeTable

BORDERS = ("cells", "pad-roll", "roll-pad")
SMALL = ("joint", "per-axis", "pad", "keep", "rows")


class WindowedAttention(Attention):
    """What both attentions inside windows are made of, rules for borders included. Abstract; as `WindowAttention`."""

    _named: ClassVar[str]  # what `position` builds by name

    @check_types
    def __init__(
        self,
        dim: int,
        heads: int,
        window: int | tuple[int, ...],
        *,
        grid: Grid | None = None,
        shift: int | tuple[int, ...] | None = None,
        position: Positions | str = "table",
        border: str = "cells",
        small: str = "joint",
        qkv_bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        for name, value, known in (("border", border, BORDERS), ("small", small, SMALL)):
            if value not in known:
                raise ValueError(
                    f"{type(self).__name__} needs a `{name}` out of {', '.join(map(repr, known))}; got {value!r}. "
                    "Name one."
                )
        window = (window,) if isinstance(window, int) else tuple(window)
        windows = Windows(window, (shift,) * len(window) if isinstance(shift, int) else shift)  # checks them
        if grid is not None:
            windows.bound(grid, grid)
        if isinstance(position, str):
            if position != self._named:
                raise ValueError(
                    f'{type(self).__name__} knows one `position` by name, "{self._named}"; got {position!r}. '
                    "Build another scheme first and pass it, or None."
                )
            position = self._scheme(Grid(*window), heads)
        super().__init__(
            dim, heads, grid=grid, position=position, qkv_bias=qkv_bias, scale=scale,
            dropout=dropout, proj_dropout=proj_dropout, kernel=kernel,
        )  # fmt: skip
        self.window, self.shift, self.border, self.small = windows.size, windows.shift, border, small

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend inside windows. `grid` and `position` take the place of the module's own; `mask` joins the windows.

        Raises:
            ValueError: if x does not fit the grid; under borders that fill, for a mask, an embedding, a prefix or a
                slice of a grid.
        """
        attend = partial(super().forward, position=position)
        return self._inside(x, grid, position, mask, attend, regroups=self.border != "cells")

    def merged_heads(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None,
        position: Positions,
        mask: Mask | None,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """The same before `proj`, as `Attention` has it; maps that windows divide are left as they are."""
        heads = partial(super().merged_heads, position=position, project=project)
        return self._inside(x, grid, position, mask, heads, regroups=None)

    def _inside(
        self,
        x: Float[Tensor, "batch tokens dim"],
        grid: Grid | None,
        position: Positions,
        mask: Mask | None,
        attend: Callable[..., Tensor],
        regroups: bool | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """`attend`, which takes tokens, a grid and a mask, in windows; None regroups these where zeros fill a map."""
        check_mask(type(self).__name__, "mask", mask)
        check_tokens(x, self.dim, bare_weight(self.qkv))
        grid = token_grid(x, self.grid if grid is None else grid)
        Windows(self.window).bound(grid, grid)
        window, shift = fitted(self.window, self.shift, grid.shape, self.small)
        if self.border != "cells":
            self._check_regrouping(grid, position, mask)
        if not (self.fills(grid) if regroups is None else regroups):
            cells = Windows(window, shift)
            return attend(x, grid=grid, mask=cells if mask is None else cells & mask)

        def regrouped(x: Tensor, grid: Grid, mask: Mask | None) -> Tensor:
            return attend(x, grid=grid, mask=mask)

        return attend_regrouped(x.unflatten(1, grid.shape), window, shift, self.border, regrouped).flatten(1, -2)

    def fills(self, grid: Grid) -> bool:
        """Whether zeros fill a map up. Where windows divide it the rules for borders agree, and no token is moved;
        sizes that a graph leaves open are taken for ones that windows do not divide.
        """
        window, _ = fitted(self.window, self.shift, grid.shape, self.small)
        sides = zip(grid.shape, window, strict=True)
        return self.border != "cells" and any(isinstance(n, torch.SymInt) or n % size for n, size in sides)

    @abstractmethod
    def _scheme(self, window: Grid, heads: int) -> Position:
        """The scheme that `position` names."""

    def _check_regrouping(self, grid: Grid, position: Positions, mask: Mask | None) -> None:
        """Filling and rolling move tokens: what speaks of their true places does not fit."""
        embedding, _ = split_embedding(position, self.position)
        wrong = {
            "a mask": mask is not None,
            f"the embedding {type(embedding).__name__}": embedding is not None,
            f"{grid}, with a prefix, an origin or a stride,": grid != Grid(*grid.shape),
        }
        for what, there in wrong.items():
            if there:
                raise ValueError(
                    f"border={self.border!r} regroups tokens, and needs a whole grid, positions that depend on "
                    f'offsets, and no mask besides; it got {what} as well. Use border="cells", which takes them all.'
                )

    def extra_repr(self) -> str:
        shift = f", shift={self.shift}" if any(self.shift) else ""
        rules = f"border={self.border!r}, small={self.small!r}"
        return f"{super().extra_repr()}, window={self.window}{shift}, {rules}"


class WindowAttention(WindowedAttention):
    """y_i = proj(Σ_j softmax_j(s · q_i·k_j + table[i - j]) v_j),  j in the window of i.

    Coordinate c lies in window ⌊(c - shift) / window⌋ per axis; x is [batch, tokens, dim]. Names in the state dict:
    qkv, proj, position.table [heads, 2H-1, 2W-1]. `border` says what happens where windows do not divide the map:

        "cells"       windows are cut literally: those at the border are smaller, no token is invented. Any grid
                      of one to three axes, prefix tokens and other masks.
        "pad-roll"    zeros fill the map up to a multiple of the window, then it is rolled by -shift: Swin's detection
                      code, transformers, torchvision.
        "roll-pad"    it is rolled first and filled then: timm. Opposite borders meet in one window.

    In the last two the zeros pass through qkv and take part, and a roll's last window is parted at the line where it
    wraps. All three agree on maps that the window divides. `small` says what happens where an axis is no longer than
    its window:

        "joint"       every axis loses its shift, and a square window shrinks to the shorter axis: Swin, transformers.
                      Other windows, for which nothing is published, shrink to the map axis by axis.
        "per-axis"    that axis alone loses its shift, and its window shrinks to it: timm; Video Swin for short clips.
        "pad"         that axis alone loses its shift, and the map is filled up to the window: torchvision on
                      pictures. It differs from "per-axis" only on borders that fill.
        "keep"        window and shift stay, and the map is filled up to the window: Swin's detection code, mmdetection.
        "rows"        a square window shrinks to the rows alone, and no axis is shifted if they are no longer than it:
                      transformers' Swin v2.

    Where it differs: windows that shrink read the centre of the table, which is the part for their offsets; published
    code for pictures builds a smaller table. Video Swin (the original and torchvision) indexes the first N cells of the
    whole window instead, N being as many as the window still has. Where time alone shrinks these are the same cells;
    where rows or columns shrink they are others, and its bias is no function of the offset. A forbidden pair has weight
    0, not exp(-100).
    Source: Swin (arXiv 2103.14030, section 3.2, eq. 4); timm 1.0.31 `swin_transformer.py`; torchvision 0.28
    `swin_transformer.py`; transformers 5.23 `modeling_swin.py`.

    Args:
        dim, heads, grid, qkv_bias, scale, dropout, proj_dropout, kernel: as for `Attention`.
        window: cells per axis; an int on a sequence.
        shift: how far windows are moved, per axis or the same on all; None is not at all. Swin's every second layer
            has window // 2.
        position: "table" is a `RelativeTable` as wide as the window; else a scheme, several, or None.
        border, small: see above.

    Raises:
        ValueError: for unknown names, and a window, shift or grid of different numbers of axes.
    """

    _named: ClassVar[str] = "table"

    def _scheme(self, window: Grid, heads: int) -> Position:
        return RelativeTable(window, heads)


def attend_regrouped(
    x: Float[Tensor, "batch *map dim"], window: tuple[int, ...], shift: tuple[int, ...], border: str,
    attend: Callable[[Tensor, Grid, Mask | None], Tensor],
) -> Float[Tensor, "batch *map dim"]:  # fmt: skip
    """`attend` to a map by a border rule that fills: "pad-roll" or "roll-pad". Window and shift are `fitted`.

    `attend` takes tokens [batch, tokens, dim], their grid and a mask.
    """
    # 1 fill and roll, in the order of the rule; windows stand along the batch
    shape = tuple(x.shape[1:-1])
    rolled_first = border == "roll-pad"
    x = _filled(_rolled(x, shift, -1), window) if rolled_first else _rolled(_filled(x, window), shift, -1)
    sizes = x.shape[1:-1]
    regions = _regions(sizes, window, shift, x.device).repeat(x.shape[0], 1) if any(shift) else None

    mask = None if regions is None else Segments(regions)

    def places() -> Int[Tensor, "windows tokens"]:
        index = torch.arange(1, math.prod(shape) + 1, device=x.device).reshape(1, *shape, 1)  # 0 is filled in
        index = (
            _filled(_rolled(index, shift, -1), window) if rolled_first else _rolled(_filled(index, window), shift, -1)
        )
        return _partitioned(index, window)[..., 0] - 1

    out = hooks.run_regrouped(shape, places, lambda: attend(_partitioned(x, window), Grid(*window), mask))
    # 2 back to the map
    out = _merged(out, x.shape[0], window, sizes)
    return _rolled(_cut(out, shape), shift) if rolled_first else _cut(_rolled(out, shift), shape)


def fitted(
    window: tuple[int, ...], shift: tuple[int, ...], shape: tuple[int, ...], small: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift on a map of `shape`, by the rule `small` for axes that are no longer than their window."""
    short = [side <= size for side, size in zip(shape, window, strict=True)]
    if not any(short) or small == "keep":
        return window, shift
    if small == "rows":
        return tuple(min(size, max(1, shape[0])) for size in window), tuple(0 if short[0] else n for n in shift)
    joint = small == "joint"
    shift = tuple(0 if joint or s else n for s, n in zip(short, shift, strict=True))
    if small == "pad":
        return window, shift
    square = len(window) == 2 and window[0] == window[1]
    sides = (min(shape),) * 2 if joint and square else shape
    return tuple(min(size, max(1, side)) for size, side in zip(window, sides, strict=True)), shift


def window_mask(
    sizes: Sequence[int], window: tuple[int, ...], shift: tuple[int, ...], device: torch.device
) -> Bool[Tensor, "windows tokens tokens"]:
    """Who may attend in the windows of a rolled map, as Swin's `attn_mask` has 0 there and -100 elsewhere."""
    regions = _regions(sizes, window, shift, device)
    return regions[:, :, None] == regions[:, None]


def _filled(x: Shaped[Tensor, "batch *map dim"], window: tuple[int, ...]) -> Tensor:
    """Zeros at the end of every axis, up to a multiple of the window."""
    ends = [0, 0]
    for side, size in zip(reversed(x.shape[1:-1]), reversed(window), strict=True):  # F.pad names the last axis first
        ends += [0, -side % size]
    return F.pad(x, ends) if any(ends) else x


def _rolled(
    x: Shaped[Tensor, "batch *map dim"], shift: tuple[int, ...], sign: int = 1
) -> Shaped[Tensor, "batch *map dim"]:
    return torch.roll(x, [sign * s for s in shift], list(range(1, x.ndim - 1))) if any(shift) else x


def _cut(x: Float[Tensor, "batch *map dim"], shape: tuple[int, ...]) -> Tensor:
    for axis, side in enumerate(shape, start=1):
        x = x.narrow(axis, 0, side)
    return x


def _partitioned(x: Tensor, window: tuple[int, ...]) -> Shaped[Tensor, "windows tokens dim"]:
    """The map's windows along the batch, picture by picture, both they and their cells row-major."""
    axes = len(window)
    for axis, size in enumerate(window):
        x = x.unflatten(1 + 2 * axis, (x.shape[1 + 2 * axis] // size, size))
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), *range(2 * axes + 1, x.ndim))
    return x.permute(order).flatten(axes + 1, 2 * axes).flatten(0, axes)


def _merged(
    x: Float[Tensor, "windows tokens dim"], batch: int, window: tuple[int, ...], sizes: Sequence[int]
) -> Float[Tensor, "batch *map dim"]:
    """The inverse of `_partitioned`."""
    axes = len(window)
    counts = tuple(side // size for side, size in zip(sizes, window, strict=True))
    x = x.reshape(batch, *counts, *window, x.shape[-1])
    order = (0, *(i for axis in range(axes) for i in (1 + axis, 1 + axes + axis)), 2 * axes + 1)
    return x.permute(order).reshape(batch, *sizes, x.shape[-1])


def _regions(
    sizes: Sequence[int], window: tuple[int, ...], shift: tuple[int, ...], device: torch.device
) -> Int[Tensor, "windows tokens"]:
    """Which side of the wrapping line each cell of a rolled map lies on: Swin's 3 × 3 regions, window by window."""
    label = torch.zeros(tuple(sizes), dtype=torch.int64, device=device)
    for axis, (side, size, s) in enumerate(zip(sizes, window, shift, strict=True)):
        line = torch.arange(side, device=device)
        region = (line >= side - size).long() + (line >= side - s)
        label = 3 * label + region.reshape([-1 if a == axis else 1 for a in range(len(sizes))])
    return _partitioned(label[None, ..., None], window)[..., 0]
