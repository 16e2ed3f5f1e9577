"""MViT v2: pictures and clips at four scales, by attention that pools, queries meeting a vector per offset and axis."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from locant.checks import check_types
from locant.grid import Grid
from locant.models.backbone import Backbone
from locant.models.mvit_layers import PooledAttention, WideningBlock
from locant.models.placement import moved
from locant.models.vision import Size, drop_path_rates, init_linears, pair
from locant.nn.arguments import check_probabilities
from locant.nn.patches import CONVOLUTIONS
from locant.positions.decomposed import Decomposed


class MViTv2(Backbone, nn.Module):
    """logits = head(pool(norm(blocks(patch_embed of the picture)))),  pool = class token, or mean over all tokens.

    Pictures [batch, channels, height, width], or with `frames` clips [batch, channels, frames, height, width], of one
    size; logits [batch, classes]. `patch_embed` is a convolution over overlapping patches: 7 × 7 by steps of 4, in time
    3 by steps of 2. The first block of every later stage halves rows and columns, in its queries; keys and values are
    pooled by `stride_kv` in the first stage, and by half of it in each next. Blocks are `WideningBlock`, each with a
    `Decomposed` of its own (`blocks.{}.attention.position.tables.{}`); nothing is added to the tokens.

    Where it differs: tables reach over maps that are not square, and `resized` carries a model to other pictures.
    Source: MViTv2 (arXiv 2112.01526, tables 2 to 4); timm 1.0.31 `mvitv2.py`; torchvision 0.28 `mvit.py`.

    Args:
        img_size: of the pictures, one number or (height, width), each divided by 4 · 2^(stages - 1), and by
            4 · stride_kv.
        frames: of a clip, even; None is for pictures.
        in_chans: channels of a picture.
        num_classes: of the head; 0 is no head, and `forward` gives what it would read.
        dim, heads: of the first stage; every next one has twice as many.
        depths: blocks per stage.
        mlp_ratio: hidden channels of the perceptron over those of the attention.
        stride_kv: of keys and values in the first stage, in rows and columns.
        expand: whether channels double in the attention of a stage's first block, or else in the perceptron of the last
            block before it.
        class_token: whether there is one, which the head reads; else it reads the mean.
        prefix_residual: whether pooled queries are added to the class token's row as well (timm; torchvision not).
        drop_path_rate: of the last block, growing from 0 at the first, in training only.

    Raises:
        ValueError: for sizes that do not divide; at the call for pictures or clips of another size.
    """

    cls_token: nn.Parameter | None
    blocks: Any  # a ModuleList of WideningBlock

    @check_types
    def __init__(
        self,
        *,
        img_size: Size = 224,
        frames: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 96,
        heads: int = 1,
        depths: tuple[int, ...] = (1, 2, 11, 2),
        mlp_ratio: float = 4.0,
        stride_kv: int = 4,
        expand: bool = True,
        class_token: bool = False,
        prefix_residual: bool = True,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_probabilities("MViTv2", drop_path_rate=drop_path_rate)
        self.depths, self.frames, self.stride_kv = tuple(depths), frames, stride_kv
        self.img_size, self.checkpointing = pair("MViTv2", "img_size", img_size), False
        self._check(num_classes, dim)
        # 1 tokens, and where they are
        axes = 2 if frames is None else 3
        size, step, edge = (part[-axes:] for part in ((3, 7, 7), (2, 4, 4), (1, 3, 3)))
        self.patch_embed = nn.ModuleDict({"proj": CONVOLUTIONS[axes - 1](in_chans, dim, size, step, edge)})  # type: ignore[arg-type]
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.grid = self._grid()
        # 2 blocks, scale by scale
        paths = drop_path_rates(drop_path_rate, sum(depths))
        reached, ends = self._reached(), {*accumulate(depths)} - {sum(depths)}
        blocks, width = [], dim
        for index, (stage, rate) in enumerate(zip(self._stages(), paths, strict=True)):
            inner, many = dim * 2**stage, heads * 2**stage
            attention = PooledAttention(
                width, inner, many, *self._strides(index), prefix_residual=prefix_residual,
                position=Decomposed(reached[index], many, inner // many),
            )  # fmt: skip
            width = 2 * inner if not expand and index + 1 in ends else inner
            blocks.append(WideningBlock(attention, width, mlp_ratio=mlp_ratio, drop_path=rate))
        self.blocks = nn.ModuleList(blocks)
        # 3 norm and head
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes) if num_classes else None
        init_linears(self)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(
        self, images: Float[Tensor, "batch channels *size"]
    ) -> Float[Tensor, "batch classes"] | Float[Tensor, "batch dim"]:
        """Logits, or what the head would read."""
        x = self.forward_features(images)
        pooled = x.mean(1) if self.cls_token is None else x[:, 0]
        return pooled if self.head is None else self.head(pooled)

    def forward_features(self, images: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """The tokens of the last scale behind the norm, a class token in front."""
        x = images
        for layer in self._layers(images):  # those before the last one are not held
            x = layer[0]
        return self.norm(x)

    def resized(self, *, img_size: Size, frames: int | None = None, method: str = "bilinear") -> MViTv2:
        """A copy for pictures of another size, or clips of other lengths, its tables by a method of `locant.resizing`.

        Raises:
            ValueError: for sizes that do not divide, or a method that does not fit.
        """
        new = copy.deepcopy(self)
        new.img_size = pair("MViTv2", "img_size", img_size)
        new.frames = self.frames if frames is None else frames
        new.settings.update(img_size=new.img_size, frames=new.frames)
        new._check(0, 1)
        new.grid = new._grid()
        for block, reach in zip(new.blocks, new._reached(), strict=True):
            block.attention.position = moved(block.attention.position, reach.shape, method)
        return new

    def no_weight_decay(self) -> set[str]:
        """Parameters that published training does not decay, besides biases and norms."""
        return {name for name, _ in self.named_parameters() if "cls_token" in name or ".position." in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters lie how deep, as timm's `param_groups_layer_decay` asks; blocks are as coarse as it gets."""
        return {"stem": r"^cls_token|^patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass, which saves their memory."""
        self.checkpointing = enable

    def _layers(self, x: Tensor) -> Iterator[tuple[Tensor, Grid]]:
        sides = (*([] if self.frames is None else [self.frames]), *self.img_size)
        if tuple(x.shape[2:]) != sides:
            raise ValueError(
                f"MViTv2 has tables for an input [batch, channels, {', '.join(map(str, sides))}]; got "
                f"{list(x.shape)}. Make a model for it: model.resized(img_size=(height, width))."
            )
        x, grid = self.patch_embed["proj"](x).flatten(2).transpose(1, 2), self.grid
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        ends = {*accumulate(self.depths)}  # a layer is a scale
        for index, block in enumerate(self.blocks):
            if self.checkpointing:
                x, grid = checkpoint(block, x, grid=grid, use_reentrant=False)
            else:
                x, grid = block(x, grid=grid)
            if index + 1 in ends:
                yield x, grid

    def _last_norm(self) -> nn.LayerNorm:
        return self.norm

    def _stages(self) -> list[int]:
        """The stage of each block."""
        return [stage for stage, depth in enumerate(self.depths) for _ in range(depth)]

    def _strides(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of a block's queries and keys, in cells of its input."""
        stages = self._stages()
        halves = index > 0 and stages[index] > stages[index - 1]
        keys = max(self.stride_kv // 2 ** stages[index], 1)
        time = () if self.frames is None else (1,)
        return (*time, *(2 if halves else 1,) * 2), (*time, keys, keys)

    def _reached(self) -> list[Grid]:
        """The grid that each block's tables reach over: its queries' or its keys', whichever is finer."""
        found, here = [], self.grid.shape
        for index in range(sum(self.depths)):
            steps = self._strides(index)
            queries, keys = (tuple(n // s for n, s in zip(here, step, strict=True)) for step in steps)
            found.append(Grid(*map(max, zip(queries, keys, strict=True))))
            here = queries
        return found

    def _grid(self) -> Grid:
        sides = [side // 4 for side in self.img_size]
        time = [] if self.frames is None else [self.frames // 2]
        return Grid(*time, *sides, prefix=int(self.cls_token is not None))

    def _check(self, num_classes: int, dim: int) -> None:
        if min(self.depths, default=0) < 1 or min(num_classes, dim - 1, self.stride_kv - 1) < 0:
            raise ValueError(
                "MViTv2 needs `depths`, `dim` and `stride_kv` of at least 1, and `num_classes` of at least 0; got "
                f"{self.depths}, {dim}, {self.stride_kv} and {num_classes}. MViTv2-S has depths=(1, 2, 11, 2), dim=96."
            )
        unit = 4 * max(2 ** (len(self.depths) - 1), self.stride_kv)
        if any(side % unit for side in self.img_size) or (self.frames or 0) % 2 or self.frames == 0:
            near = tuple(-(-side // unit) * unit for side in self.img_size)
            raise ValueError(
                f"MViTv2 needs sides that {unit} divides, and an even number of `frames`; got "
                f"img_size={self.img_size}, frames={self.frames}. Use img_size={near}."
            )

    def extra_repr(self) -> str:
        return f"{self.grid}, depths={self.depths}"


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"depths": (1, 2, 5, 2)},
    "small": {"depths": (1, 2, 11, 2)},
    "base": {"depths": (2, 3, 16, 3)},
    "large": {"depths": (2, 6, 36, 4), "dim": 144, "heads": 2},
    "huge": {"depths": (4, 8, 60, 8), "dim": 192, "heads": 3},
}


@check_types
def mvitv2_tiny(
    *, img_size: Size = 224, in_chans: int = 3, num_classes: int = 1000, drop_path_rate: float = 0.0
) -> MViTv2:
    """MViTv2-T: 24 million parameters. Arguments as `MViTv2`."""
    return MViTv2(**SIZES["tiny"], **locals())


@check_types
def mvitv2_small(
    *, img_size: Size = 224, in_chans: int = 3, num_classes: int = 1000, class_token: bool = False,
    drop_path_rate: float = 0.0,
) -> MViTv2:  # fmt: skip
    """MViTv2-S: 35 million parameters. Arguments as `MViTv2`."""
    return MViTv2(**SIZES["small"], **locals())


@check_types
def mvitv2_small_clips(
    *, img_size: Size = 224, frames: int = 16, in_chans: int = 3, num_classes: int = 400, drop_path_rate: float = 0.0
) -> MViTv2:
    """MViTv2-S, 16 × 4, of torchvision and SlowFast, for clips: 34.5 million parameters. Arguments as `MViTv2`."""
    return MViTv2(**SIZES["small"], **locals(), stride_kv=8, class_token=True, prefix_residual=False)


@check_types
def mvitv2_base(
    *, img_size: Size = 224, in_chans: int = 3, num_classes: int = 1000, class_token: bool = False,
    drop_path_rate: float = 0.0,
) -> MViTv2:  # fmt: skip
    """MViTv2-B: 51 million parameters; weights for 19,168 classes have a class token. Arguments as `MViTv2`."""
    return MViTv2(**SIZES["base"], **locals())


@check_types
def mvitv2_large(
    *, img_size: Size = 224, in_chans: int = 3, num_classes: int = 1000, class_token: bool = False,
    drop_path_rate: float = 0.0,
) -> MViTv2:  # fmt: skip
    """MViTv2-L: 218 million parameters; with a class token, as published, channels double in attention (`expand`)."""
    return MViTv2(**SIZES["large"], **locals(), expand=class_token)


@check_types
def mvitv2_huge(
    *, img_size: Size = 224, in_chans: int = 3, num_classes: int = 19168, drop_path_rate: float = 0.0
) -> MViTv2:
    """MViTv2-H, which has a class token: 694 million parameters. Arguments as `MViTv2`."""
    return MViTv2(**SIZES["huge"], **locals(), class_token=True)
