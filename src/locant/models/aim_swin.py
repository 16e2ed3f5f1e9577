"""AIM on Swin: windows in space and a table over time, by one attention, and adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from locant.checks import check_types
from locant.models.aim import AIM, init_as_published
from locant.models.pyramid import Stage, half
from locant.models.vision import Size, drop_path_rates, pair
from locant.nn.patches import PatchEmbedding, PatchMerging
from locant.nn.space_time import SpaceTimeBlock

PATCH = (2, 4, 4)


class AIMSwin(AIM):
    """feature = norm(stages(patch_embed(x))),  [batch, dim · 2^(stages - 1), ⌈time / 2⌉, rows, columns].

    patch_embed maps patches of 2 frames × 4 × 4 pixels to tokens on Grid(T, H, W), T half the frames. Within a stage
    even blocks attend over time first, then within windows of their frame, by one norm1, qkv and proj; odd blocks move
    their windows and leave time alone. Merging halves rows and columns; time keeps its length. Frames may have any
    size: what the patch, the windows or the merging do not divide is filled with zeros at the end, cut into smaller
    windows, and filled again.

    Where it differs: the published model is built for one size, which its windows must divide. A window that a map is
    not longer than shrinks to it and reads the centre of its table; the published one has a smaller table then.
    `causal` counts in tokens, of two frames each.
    Source: AIM (arXiv 2302.03024, section 3); taoyang1122/adapt-image-models `swin2d_adapter.py`,
    `SwinTransformer2D_Adapter` with `t_relative=True`; Swin (arXiv 2103.14030).

    Args:
        frames: the longest clip, an even number.
        dim: channels of a token in the first stage; each stage doubles them.
        depths, heads: of each stage, its blocks and the heads of their attention.
        window: of a frame, one number or (rows, columns).
        mlp_ratio: of the perceptrons.
        adapter_scale: of the adapter beside the perceptron.
        drop_path_rate: of the last block; it grows from 0 at the first.
        num_classes: of the head; 0 is no head.
        in_chans: channels of a frame.
        causal: whether a token sees none of later frames.
        head_dropout: in front of the head.

    Raises:
        ValueError: for sizes that do not divide, and depths and heads of different lengths.
    """

    @check_types
    def __init__(
        self,
        *,
        frames: int = 32,
        dim: int = 128,
        depths: tuple[int, ...] = (2, 2, 18, 2),
        heads: tuple[int, ...] = (4, 8, 16, 32),
        window: Size = 7,
        mlp_ratio: float = 4.0,
        adapter_scale: float = 0.5,
        drop_path_rate: float = 0.2,
        num_classes: int = 400,
        in_chans: int = 3,
        causal: bool = False,
        head_dropout: float = 0.5,
    ) -> None:
        if len(depths) != len(heads) or not depths:
            raise ValueError(
                f"AIMSwin needs `heads` for each of its `depths`; got depths={depths}, heads={heads}. "
                "Swin-B has depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)."
            )
        super().__init__(frames, PATCH[0], dim * 2 ** (len(depths) - 1), num_classes, head_dropout)
        self.patch_embed = PatchEmbedding(dim, PATCH, channels=in_chans, norm=True, border="pad")
        self.window = pair("AIMSwin", "window", window)
        drop, stages = iter(drop_path_rates(drop_path_rate, sum(depths))), []
        for stage, (depth, many) in enumerate(zip(depths, heads, strict=True)):
            wide = dim * 2**stage
            blocks = [
                SpaceTimeBlock(
                    wide, many, frames=None if b % 2 else frames // PATCH[0], window=self.window,
                    shift=half(self.window, b), scale=adapter_scale, causal=causal, mlp_ratio=mlp_ratio,
                    drop_path=next(drop),
                )
                for b in range(depth)
            ]  # fmt: skip
            stages.append(Stage(blocks, PatchMerging(wide) if stage + 1 < len(depths) else None))
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(wide)
        init_as_published(self)

    def _features(
        self, x: Float[Tensor, "batch channels time height width"], real: Bool[Tensor, "batch steps"] | None
    ) -> Float[Tensor, "batch dim steps rows columns"]:
        x, grid = self.patch_embed(x)
        for stage in self._stages():
            x = self._through(stage.blocks, x, grid, real)
            x, grid = (x, grid) if stage.downsample is None else stage.downsample(x, grid)
        return self.norm(x).transpose(1, 2).unflatten(2, grid.shape)

    def resized(self, *, frames: int | None = None, window: Size | None = None, method: str = "linear") -> AIMSwin:
        """A copy for longer clips or other windows, its tables interpolated by a method of `locant.resizing`.

        Args:
            frames: the longest clip, an even number; None keeps it.
            window: None keeps it.
            method: of all tables.

        Raises:
            ValueError: for an odd number of frames, or a method that does not fit.
        """
        new = copy.deepcopy(self)
        new.frames = self.frames if frames is None else self._length(frames)
        new.window = self.window if window is None else pair("AIMSwin", "window", window)
        new.settings.update(frames=new.frames, window=new.window)
        for stage in new._stages():
            for b, block in enumerate(cast("Iterable[SpaceTimeBlock]", stage.blocks)):
                block.attention = block.attention.resized(
                    frames=new.frames // PATCH[0], window=new.window, shift=half(new.window, b), method=method
                )
        new._freeze_as(self)
        return new

    def _stages(self) -> Iterable[Stage]:
        return cast("Iterable[Stage]", self.layers)


@check_types
def aim_swin_base(
    *,
    frames: int = 32,
    window: Size = 7,
    num_classes: int = 400,
    drop_path_rate: float = 0.2,
    in_chans: int = 3,
    causal: bool = False,
) -> AIMSwin:
    """AIM on Swin-B: 96 million parameters without the head, 9 of which learn after `freeze()`."""
    return AIMSwin(**locals())
