"""Swin v2: Swin with attention by cosine, a bias that fits windows of any size, and norms behind the branches."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from locant.attend import Positions
from locant.grid import Grid
from locant.masks import Mask
from locant.models.swin import Size, Swin
from locant.nn.block import Block
from locant.nn.cosine import CosineWindowAttention
from locant.nn.window import WindowAttention
from locant.positions.field import LogCPB
from locant.positions.position import Position


class ResPostNormBlock(Block):
    """x ← x + path(norm1(attention(x))),  x ← x + path(norm2(mlp(x))): branches are normalised as they join.

    All else is as in `Block`.
    Source: Swin V2 (arXiv 2111.09883, section 3.2 and figure 1), res-post-norm.
    """

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Both branches. `grid`, `position` and `mask` go to the attention."""
        x = x + self._path(self.norm1(self.attention(x, grid=grid, position=position, mask=mask)))
        return x + self._path(self.norm2(self.mlp(x)))


class SwinV2(Swin):
    """Swin on `CosineWindowAttention` and `LogCPB`, with norms behind the branches and behind the merging.

    The bias measures offsets by the windows that the model is built for, in each stage the one that fits the map of
    `img_size`: build it for the pictures that the weights were trained on, and call it on others, or take `resized`.
    The published models that were fine-tuned from smaller pictures (`pretrained_window_sizes`) are

        swinv2_base(window=12, img_size=192).resized(window=16, img_size=256)                    # window12to16_192to256

    Both norms of a block start at 0, so that it starts as the identity.

    Where it differs: transformers and torchvision start these norms at 1. On small maps transformers shrinks windows
    and drops shifts by the rows alone.
    Source: Swin V2 (arXiv 2111.09883); microsoft/Swin-Transformer `swin_transformer_v2.py`.

    Args and Raises: as `Swin`.
    """

    _attention: ClassVar[type[WindowAttention]] = CosineWindowAttention
    _block: ClassVar[type[Block]] = ResPostNormBlock
    _norm_first: ClassVar[bool] = False

    def resized(self, *, img_size: Size | None = None, window: Size | None = None) -> SwinV2:  # type: ignore[override]
        """A copy for other pictures or windows: a bias of the offset, still measured by the windows of this model.

        There is no method to choose, for nothing is interpolated.

        Args:
            img_size: that the windows are fitted to; None keeps it.
            window: None keeps it.
        """
        return self._resized(img_size, window, lambda position, reach: position.resized(reach))

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {n for n, _ in self.named_parameters() if n.endswith("logit_scale")}

    def _draw(self) -> None:
        super()._draw()
        for stage in self.layers:
            for block in stage.blocks:
                for norm in (block.norm1, block.norm2):
                    nn.init.zeros_(norm.weight)

    def _position(self, reach: Grid, heads: int) -> Position:
        return LogCPB(reach, heads)


def swinv2_tiny(
    *,
    img_size: Size | None = 256,
    window: Size = 8,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.2,
    border: str = "cells",
    small: str = "joint",
    patch_border: str = "pad",
) -> SwinV2:
    """Swin v2-T: 28 million parameters."""
    return SwinV2(
        dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), img_size=img_size, window=window, in_chans=in_chans,
        num_classes=num_classes, drop_path_rate=drop_path_rate, border=border, small=small, patch_border=patch_border,
    )  # fmt: skip


def swinv2_small(
    *,
    img_size: Size | None = 256,
    window: Size = 8,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.3,
    border: str = "cells",
    small: str = "joint",
    patch_border: str = "pad",
) -> SwinV2:
    """Swin v2-S: 50 million parameters."""
    return SwinV2(
        dim=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), img_size=img_size, window=window, in_chans=in_chans,
        num_classes=num_classes, drop_path_rate=drop_path_rate, border=border, small=small, patch_border=patch_border,
    )  # fmt: skip


def swinv2_base(
    *,
    img_size: Size | None = 256,
    window: Size = 8,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.5,
    border: str = "cells",
    small: str = "joint",
    patch_border: str = "pad",
) -> SwinV2:
    """Swin v2-B: 88 million parameters."""
    return SwinV2(
        dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), img_size=img_size, window=window, in_chans=in_chans,
        num_classes=num_classes, drop_path_rate=drop_path_rate, border=border, small=small, patch_border=patch_border,
    )  # fmt: skip


def swinv2_large(
    *,
    img_size: Size | None = 256,
    window: Size = 8,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.2,
    border: str = "cells",
    small: str = "joint",
    patch_border: str = "pad",
) -> SwinV2:
    """Swin v2-L: 197 million parameters."""
    return SwinV2(
        dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), img_size=img_size, window=window, in_chans=in_chans,
        num_classes=num_classes, drop_path_rate=drop_path_rate, border=border, small=small, patch_border=patch_border,
    )  # fmt: skip
