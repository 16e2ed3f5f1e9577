"""Swin v2: Swin with attention by cosine, a bias that fits windows of any size, and norms behind the branches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from locant.call import Positions
from locant.checks import check_types
from locant.grid import Grid
from locant.masks import Mask
from locant.models.placement import Wanted
from locant.models.pyramid import PUBLISHED, Pyramid
from locant.models.rules import SWIN_V2, Rules
from locant.models.swin import sized
from locant.models.vision import Size
from locant.nn.block import Block
from locant.nn.cosine import CosineWindowAttention
from locant.nn.patches import PatchMerging
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
        x = x + self._path(self.norm1(self.attention(x, grid=grid, position=position, mask=mask)), self.gamma1)
        return x + self._path(self.norm2(self.mlp(x)), self.gamma2)


class SwinV2(Pyramid):
    """Swin on `CosineWindowAttention` and `LogCPB`, with norms behind the branches and behind the merging.

    The bias measures offsets by the windows that the model is built for, in each stage the one that fits the map of
    `img_size`: build it for the pictures that the weights were trained on, and call it on others, or take `resized`.
    The published models that were fine-tuned from smaller pictures (`pretrained_window_sizes`) are

        swinv2_base(window=12, img_size=192).resized(window=16, img_size=256)                    # window12to16_192to256

    Both norms of a block start at 0, so that it starts as the identity.

    Where it differs: transformers and torchvision start these norms at 1. The published maps of `img_size` by which
    windows are chosen have ⌊rows / 2^s⌋ rows in transformers, ⌈rows / 2^s⌉ here.
    Source: Swin V2 (arXiv 2111.09883); microsoft/Swin-Transformer `swin_transformer_v2.py`.

    Args and Raises: as `Swin`; the libraries are those of `rules.SWIN_V2`.
    """

    LIBRARIES: ClassVar[Mapping[str, Rules]] = SWIN_V2

    def resized(self, *, img_size: Size | None = None, window: Size | None = None) -> SwinV2:
        """A copy for other pictures or windows: a bias of the offset, still measured by the windows of this model.

        There is no method to choose, for no table is interpolated; vectors per place are, "bicubic" as published.

        Args:
            img_size: that the windows are fitted to; None keeps it.
            window: None keeps it.
        """
        found: SwinV2 = self._resized(img_size, window, lambda old, reach: old.resized(reach), "bicubic", "linear")
        return found

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {n for n, _ in self.named_parameters() if n.endswith("logit_scale")}

    def _attention(self, *args: Any, **options: Any) -> CosineWindowAttention:
        return CosineWindowAttention(*args, **options)

    def _block(self, dim: int, heads: int, **options: Any) -> Block:
        return ResPostNormBlock(dim, heads, **options)

    def _merging(self, dim: int) -> PatchMerging:
        return PatchMerging(dim, norm_first=False)

    def _position(self, reach: Grid, heads: int) -> Position:
        return LogCPB(reach, heads)

    def _cut_position(self, position: LogCPB, reach: Grid) -> Position:
        """Measured by the new reach, unless it was measured by another window than its own before."""
        new = position.resized(reach)
        if position.pretrained == position.grid:
            new.pretrained = new.grid
        return new

    def _init_weights(self) -> None:
        super()._init_weights()
        for stage in self.layers:
            for block in stage.blocks:
                for norm in (block.norm1, block.norm2):
                    nn.init.zeros_(norm.weight)


@check_types
def swinv2_tiny(
    *,
    img_size: Size | None = 256,
    window: Size = 8,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float | None = None,
    position: Wanted | tuple[Wanted, ...] = PUBLISHED,
    like: str | None = None,
    border: str | None = None,
    small: str | None = None,
    patch_border: str | None = None,
    absolute: bool = False,
    stage_norms: bool | tuple[int, ...] = False,
) -> SwinV2:
    """Swin v2-T: 28 million parameters, drop path 0.2 unless `like` has another. Arguments as `SwinV2`."""
    return SwinV2(**sized("tiny", SwinV2.LIBRARIES, locals()))


@check_types
def swinv2_small(
    *,
    img_size: Size | None = 256,
    window: Size = 8,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float | None = None,
    position: Wanted | tuple[Wanted, ...] = PUBLISHED,
    like: str | None = None,
    border: str | None = None,
    small: str | None = None,
    patch_border: str | None = None,
    absolute: bool = False,
    stage_norms: bool | tuple[int, ...] = False,
) -> SwinV2:
    """Swin v2-S: 50 million parameters, drop path 0.3 unless `like` has another. Arguments as `SwinV2`."""
    return SwinV2(**sized("small", SwinV2.LIBRARIES, locals()))


@check_types
def swinv2_base(
    *,
    img_size: Size | None = 256,
    window: Size = 8,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float | None = None,
    position: Wanted | tuple[Wanted, ...] = PUBLISHED,
    like: str | None = None,
    border: str | None = None,
    small: str | None = None,
    patch_border: str | None = None,
    absolute: bool = False,
    stage_norms: bool | tuple[int, ...] = False,
) -> SwinV2:
    """Swin v2-B: 88 million parameters, drop path 0.5 unless `like` has another. Arguments as `SwinV2`."""
    return SwinV2(**sized("base", SwinV2.LIBRARIES, locals()))


@check_types
def swinv2_large(
    *,
    img_size: Size | None = 256,
    window: Size = 8,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float | None = None,
    position: Wanted | tuple[Wanted, ...] = PUBLISHED,
    like: str | None = None,
    border: str | None = None,
    small: str | None = None,
    patch_border: str | None = None,
    absolute: bool = False,
    stage_norms: bool | tuple[int, ...] = False,
) -> SwinV2:
    """Swin v2-L: 197 million parameters, drop path 0.2 unless `like` has another. Arguments as `SwinV2`."""
    return SwinV2(**sized("large", SwinV2.LIBRARIES, locals()))
