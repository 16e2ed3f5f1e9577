"""AIM on CLIP's vision transformer: an attention shared by space and time, and adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from locant.checks import check_types
from locant.grid import Grid
from locant.models.aim import AIM, init_as_published
from locant.models.vision import Size, drop_path_rates, patch_grid
from locant.nn.patches import PatchEmbedding
from locant.nn.space_time import SpaceTimeBlock
from locant.positions.learned import Learned


class QuickGELU(nn.Module):
    """x · σ(1.702 x): the approximation that CLIP was trained with."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Element by element."""
        return x * torch.sigmoid(1.702 * x)


class AIMViT(AIM):
    """feature[t] = ln_post(class token of frame t after the blocks),  [batch, dim, time, 1, 1].

    A frame's tokens are [class_embedding | conv1 of its patches] + positional_embedding + temporal_embedding[t], then
    ln_pre. A class token per frame is no prefix of the clip: it belongs to its frame. So a frame is a row of
    Grid(T, 1 + H·W), and the blocks attend under Windows((1, 1 + H·W)) in space and Windows((T, 1)) in time, where
    class tokens meet class tokens, and each patch itself. The attention has no bias: position acts by the embeddings.
    The perceptrons have CLIP's QuickGELU, the adapters GELU.

    Where it differs: published qkv weights start Xavier-uniform, these normal (0.02); that matters only without the
    weights of an image model. A clip may be shorter than `frames`: it reads the first rows of the temporal embedding.
    Source: AIM (arXiv 2302.03024, section 3); taoyang1122/adapt-image-models `vit_clip.py`, `ViT_CLIP`; CLIP
    (arXiv 2103.00020).

    Args:
        img_size: of a frame, one number or (height, width).
        patch: side of a patch, which divides it.
        frames: the longest clip.
        dim, depth, heads: of the blocks.
        num_tadapter: adapters around the attention over time: 1 (Kinetics) or 2 (Something-Something).
        adapter_scale: of the adapter beside the perceptron: 0.5 (Kinetics) or 1 (Something-Something).
        drop_path_rate: of the last block; it grows from 0 at the first.
        num_classes: of the head; 0 is no head.
        in_chans: channels of a frame.
        causal: whether a frame sees no later one.
        head_dropout: in front of the head.

    Raises:
        ValueError: for sizes that do not divide; at the call for frames of another size.
    """

    @check_types
    def __init__(
        self,
        *,
        img_size: Size = 224,
        patch: int = 16,
        frames: int = 32,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        num_tadapter: int = 1,
        adapter_scale: float = 0.5,
        drop_path_rate: float = 0.2,
        num_classes: int = 400,
        in_chans: int = 3,
        causal: bool = False,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__(frames, 1, dim, num_classes, head_dropout)
        self.patch, self.cells = patch, patch_grid("AIMViT", img_size, patch, prefix=1)
        self.conv1 = PatchEmbedding(dim, (1, patch, patch), channels=in_chans, bias=False)
        self.class_embedding = nn.Parameter(dim**-0.5 * torch.randn(dim))
        self.positional_embedding = Learned(self.cells, dim, init_std=dim**-0.5)
        self.temporal_embedding = Learned(Grid(frames), dim, init_std=0.0)
        self.ln_pre = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(
            SpaceTimeBlock(
                dim, heads, frames=frames, adapters=num_tadapter, scale=adapter_scale, causal=causal,
                activation=QuickGELU(), drop_path=rate,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )  # fmt: skip
        self.ln_post = nn.LayerNorm(dim)
        init_as_published(self)

    def _features(
        self, x: Float[Tensor, "batch channels time height width"], real: Bool[Tensor, "batch time"] | None
    ) -> Float[Tensor, "batch dim time 1 1"]:
        frames, sides = x.shape[2], tuple(side * self.patch for side in self.cells.shape)
        if tuple(x.shape[3:]) != sides:
            raise ValueError(
                f"AIMViT has positions for frames of {sides[0]} × {sides[1]}; got {x.shape[3]} × {x.shape[4]}. "
                f"Make a model for them: model.resized(img_size={tuple(x.shape[3:])})."
            )
        x, _ = self.conv1(x)
        x = x.unflatten(1, (frames, -1))
        x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], frames, 1, -1), x], dim=2)
        x = x + self.positional_embedding() + self.temporal_embedding(Grid(frames))[:, None]
        grid = Grid(frames, x.shape[2])
        x = self._through(self.blocks, self.ln_pre(x).flatten(1, 2), grid, real)
        tokens = self.ln_post(x.unflatten(1, grid.shape)[:, :, 0])
        return tokens.transpose(1, 2)[..., None, None]

    def resized(self, *, frames: int | None = None, img_size: Size | None = None, method: str = "linear") -> AIMViT:
        """A copy for clips of another length or size, its embeddings interpolated by a method of `locant.resizing`.

        Args:
            frames: the longest clip; None keeps it.
            img_size: of a frame; None keeps it.
            method: of both embeddings.

        Raises:
            ValueError: if the patch does not divide `img_size`, or the method does not fit.
        """
        new = copy.deepcopy(self)
        if img_size is not None:
            new.cells = patch_grid("AIMViT", img_size, self.patch, prefix=1)
            new.settings["img_size"] = img_size
            new.positional_embedding = new.positional_embedding.resized(new.cells, method=method)
        if frames is not None:
            new.frames = self._length(frames)
            new.settings["frames"] = new.frames
            new.temporal_embedding = new.temporal_embedding.resized(Grid(frames), method=method)
            for block in cast("Iterable[SpaceTimeBlock]", new.blocks):
                block.attention = block.attention.resized(frames=frames)
        new._freeze_as(self)
        return new


SIZES: dict[str, dict[str, Any]] = {
    "base": {"patch": 16, "dim": 768, "depth": 12, "heads": 12},
    "large": {"patch": 14, "dim": 1024, "depth": 24, "heads": 16},
}
"""CLIP's vision transformers, by which the published models are named."""


@check_types
def aim_vit_base(
    *,
    frames: int = 32,
    img_size: Size = 224,
    num_classes: int = 400,
    num_tadapter: int = 1,
    adapter_scale: float = 0.5,
    drop_path_rate: float = 0.2,
    in_chans: int = 3,
    causal: bool = False,
) -> AIMViT:
    """AIM on CLIP's ViT-B/16: 97 million parameters, 11 of which learn after `freeze()`."""
    return AIMViT(**SIZES["base"], **locals())


@check_types
def aim_vit_large(
    *,
    frames: int = 32,
    img_size: Size = 224,
    num_classes: int = 400,
    num_tadapter: int = 1,
    adapter_scale: float = 0.5,
    drop_path_rate: float = 0.2,
    in_chans: int = 3,
    causal: bool = False,
) -> AIMViT:
    """AIM on CLIP's ViT-L/14: 341 million parameters, 38 of which learn after `freeze()`."""
    return AIMViT(**SIZES["large"], **locals())
