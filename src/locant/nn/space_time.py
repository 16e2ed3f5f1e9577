"""Attention over space and over time by one set of weights, and the block that adapts an image model to clips."""

from __future__ import annotations

import copy

from jaxtyping import Float
from torch import Tensor, nn

from locant.call import Positions
from locant.checks import check_type, check_types
from locant.grid import Grid
from locant.masks import Causal, Mask, Windows, check_mask
from locant.nn.adapter import Adapter
from locant.nn.arguments import check_channels, check_tokens, token_grid
from locant.nn.block import Block
from locant.nn.linears import bare_weight
from locant.nn.self_attention import Attention
from locant.nn.window import fitted
from locant.positions.table import RelativeTable


class SpaceTimeAttention(Attention):
    """y_i = proj(Σ_j softmax_j(s · q_i·k_j + table[i - j]) v_j),  j in the window of i.

    x [batch, tokens, dim] on Grid(T, H, W). One attention, called under one of two windows:

        space    Windows((1, *window)), moved by `shift`     position.table  [heads, 1, 2h-1, 2w-1]
        time     Windows((T, 1, 1))                          temporal.table  [heads, 2·frames-1, 1, 1]

    No axis is regrouped, so frames of one clip cannot meet those of another. Without `window` a frame is attended to
    whole, on any grid whose first axis is time, and there are no tables (ViT). A frame's class token is then a token
    like others: Grid(T, 1 + H·W) holds a class token and its patches in each row, and over time it meets the class
    tokens of the other frames.

    Where it differs: the published module ignores the mask over time; here it joins either window. It needs exactly
    `frames` frames; here fewer read the centre of the table. Windows that a map is not longer than lose their shift
    on both axes and shrink to its shorter side, as published; maps that they do not divide are cut into smaller cells
    at the border, where the published code fails. A forbidden pair has weight 0, not exp(-100).
    Source: AIM (arXiv 2302.03024, section 3.2); taoyang1122/adapt-image-models `swin2d_adapter.py`, `WindowAttention`.

    Args:
        dim, heads, grid, qkv_bias, scale, dropout, proj_dropout, kernel: as for `Attention`.
        frames: the most frames that the temporal table serves; None is a module without time.
        window: rows and columns of a window; None is the whole frame, and no tables.
        shift: how far windows are moved, per axis; None is not at all. Swin's every second layer has window // 2.

    Raises:
        ValueError: for sizes that do not divide, frames or windows below 1, a shift without a window; at the call for
            time if it was built without, and for more frames than the table serves.
    """

    @check_types
    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        frames: int | None = None,
        window: tuple[int, int] | None = None,
        shift: tuple[int, int] | None = None,
        grid: Grid | None = None,
        qkv_bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        if frames is not None and frames < 1:
            raise ValueError(
                f"SpaceTimeAttention needs `frames` of at least 1; got {frames}. None is a module without time."
            )
        if window is None and shift is not None:
            raise ValueError(
                f"SpaceTimeAttention moves windows, and needs a `window` for that; got shift={shift} without one. "
                "Write window=(7, 7), shift=(3, 3)."
            )
        windows = None if window is None else Windows(window, shift)  # checks them
        super().__init__(
            dim, heads, grid=grid, position=None if window is None else RelativeTable(Grid(1, *window), heads),
            qkv_bias=qkv_bias, scale=scale, dropout=dropout, proj_dropout=proj_dropout, kernel=kernel,
        )  # fmt: skip
        self.frames, self.windows = frames, windows
        both = window is not None and frames is not None
        self.temporal = RelativeTable(Grid(frames or 1, 1, 1), heads) if both else None

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
        temporal: bool = False,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend over space or, with `temporal`, over time. `position` takes the place of that table; `mask` joins.

        Raises:
            ValueError: if x does not fit the grid, the grid has no axis of time, or the module was built without it.
        """
        check_mask("SpaceTimeAttention", "mask", mask)
        check_tokens(x, self.dim, bare_weight(self.qkv))
        grid = token_grid(x, self.grid if grid is None else grid)
        check_type("SpaceTimeAttention", "temporal", temporal, bool)
        self._check(grid, temporal)
        if position is None and temporal:
            position = () if self.temporal is None else self.temporal
        windows = self._windows(grid, temporal)
        return super().forward(x, grid=grid, position=position, mask=windows if mask is None else windows & mask)

    def resized(
        self,
        *,
        frames: int | None = None,
        window: tuple[int, int] | None = None,
        shift: tuple[int, int] | None = None,
        method: str = "linear",
    ) -> SpaceTimeAttention:
        """A copy for longer clips or other windows, its tables interpolated by a method of `locant.resizing`.

        Args:
            frames: None keeps them, as does a module without time.
            window, shift: None keeps both, as does a module without windows.
            method: of the tables.
        """
        new = copy.deepcopy(self)
        if frames is not None and self.frames is not None:
            new.frames = frames
            new.temporal = None if self.temporal is None else self.temporal.resized(Grid(frames, 1, 1), method=method)
        if window is not None and self.windows is not None:
            new.windows = Windows(window, shift)
            assert isinstance(self.position, RelativeTable), "windows come with a table"
            new.position = self.position.resized(Grid(1, *window), method=method)
        return new

    def _windows(self, grid: Grid, temporal: bool) -> Windows:
        """All along the axes attended over, a single coordinate along the others."""
        if self.windows is not None and not temporal:
            window, shift = fitted(self.windows.size, self.windows.shift, grid.shape[1:], "joint")
            return Windows((1, *window), (0, *shift))
        whole = [max(1, side * step) for side, step in zip(grid.shape, grid.stride, strict=True)]
        return Windows(tuple(n if (axis == 0) == temporal else 1 for axis, n in enumerate(whole)), grid.origin)

    def _check(self, grid: Grid, temporal: bool) -> None:
        axes = (2, 3) if self.windows is None else (3,)
        if grid.axes not in axes or grid.prefix:
            raise ValueError(
                f"SpaceTimeAttention needs a grid of {' or '.join(map(str, axes))} axes, time first, without a prefix; "
                f"got {grid}. Write Grid(frames, rows, columns); a class token per frame makes it "
                "Grid(frames, 1 + rows · columns)."
            )
        if temporal and self.frames is None:
            raise ValueError(
                "SpaceTimeAttention needs `frames` to attend over time; it was built with frames=None and called with "
                "temporal=True. Build it with frames= the length of the longest clip."
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, frames={self.frames}, windows={self.windows}"


class SpaceTimeBlock(Block):
    """Three residual steps on clips, each with an adapter; the rest may stay as an image model was trained.

        x ← x + path(T_Adapter(attention over time of norm1(x)))
        x ← x + S_Adapter(attention over space of norm1(x))
        x ← x + mlp(norm2(x)) + path(scale · MLP_Adapter(norm2(x)))

    x [batch, tokens, dim] on Grid(T, H, W), or Grid(T, 1 + H·W) with a class token per frame. One norm1 and one
    attention serve both axes. S_Adapter keeps its input, the others do not; with `adapters=2` one more, T_Adapter_in,
    stands before the attention over time and keeps its input. New adapters give zero: the block starts as the image
    model's block on each frame. Without `frames` the step over time is left out, as in every second block of Swin.
    `path` is drop path, drawn once per clip.

    Where it differs: drop path of the published ViT draws for each token position, all clips at once, and that of its
    Swin for each place; here for each clip. The published Swin calls the adapter inside the windows S_Adapter2 and the
    one beside the perceptron S_Adapter; here both models have the ViT's names.
    Source: AIM (arXiv 2302.03024, section 3, figure 2); taoyang1122/adapt-image-models `vit_clip.py`,
    `ResidualAttentionBlock`, and `swin2d_adapter.py`, `SwinTransformerBlock`.

    Args:
        dim: channels of a token; `heads` divides it.
        heads: of the attention.
        frames, window, shift: of the attention; see `SpaceTimeAttention`.
        adapters: around the attention over time, 1 or 2.
        scale: of the adapter beside the perceptron.
        causal: whether a frame sees no later one.
        mlp_ratio: hidden channels of the perceptron over dim, rounded down.
        activation: of the perceptron; None is GELU.
        drop_path: the probability that a clip's branch is left out, in training only.
        norm_eps: of both norms.

    Raises:
        ValueError: for sizes that do not divide, probabilities out of range, and another number of adapters.
    """

    attention: SpaceTimeAttention

    @check_types
    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        frames: int | None = None,
        window: tuple[int, int] | None = None,
        shift: tuple[int, int] | None = None,
        adapters: int = 1,
        scale: float = 0.5,
        causal: bool = False,
        mlp_ratio: float = 4.0,
        activation: nn.Module | None = None,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        if adapters not in (1, 2):
            raise ValueError(
                f"SpaceTimeBlock needs `adapters` of 1 (behind the attention over time) or 2 (one more before it); "
                f"got {adapters}. AIM has 1 on Kinetics and 2 on Something-Something."
            )
        attention = SpaceTimeAttention(dim, heads, frames=frames, window=window, shift=shift)
        super().__init__(
            dim, heads, attention=attention, mlp_ratio=mlp_ratio, activation=activation, drop_path=drop_path,
            norm_eps=norm_eps,
        )  # fmt: skip
        self.scale, self.causal = scale, causal
        timed = frames is not None
        self.T_Adapter_in = Adapter(dim, skip=True) if timed and adapters == 2 else None
        self.T_Adapter = Adapter(dim) if timed else None
        self.S_Adapter = Adapter(dim, skip=True)
        self.MLP_Adapter = Adapter(dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """All steps. `grid`, `position` and `mask` go to the attention, over either axis."""
        check_channels(x, self.dim)
        if self.T_Adapter is not None:
            y = self.norm1(x)
            y = y if self.T_Adapter_in is None else self.T_Adapter_in(y)
            y = self.attention(y, grid=grid, position=position, mask=self._ordered(mask), temporal=True)
            x = x + self._path(self.T_Adapter(y))
        x = x + self.S_Adapter(self.attention(self.norm1(x), grid=grid, position=position, mask=mask))
        y = self.norm2(x)
        return x + self.mlp(y) + self._path(self.scale * self.MLP_Adapter(y))

    def _ordered(self, mask: Mask | None) -> Mask | None:
        check_mask("SpaceTimeBlock", "mask", mask)
        if not self.causal:
            return mask
        return Causal(axis=0) if mask is None else Causal(axis=0) & mask

    def extra_repr(self) -> str:
        said = [super().extra_repr(), f"scale={self.scale}", "causal=True" if self.causal else ""]
        return ", ".join(filter(None, said))
