"""Swin: a pyramid of windows, from a picture to classes or to one feature map per stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from locant.grid import Grid
from locant.nn.block import Block
from locant.nn.patches import PatchEmbedding, PatchMerging
from locant.nn.window import WindowAttention, fitted
from locant.positions.position import Position
from locant.positions.table import RelativeTable

Size = int | tuple[int, int]


class Stage(nn.Module):
    """Blocks on one grid, and the merging that leads to the next stage."""

    blocks: Any  # a ModuleList of Block, whose members torch types as bare modules

    def __init__(self, blocks: Sequence[Block], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.checkpointing = False

    def forward(self, x: Float[Tensor, "batch tokens dim"], grid: Grid) -> Float[Tensor, "batch tokens dim"]:
        """Every block in turn; what comes out is not merged yet."""
        for block in self.blocks:
            x = checkpoint(block, x, grid=grid, use_reentrant=False) if self.checkpointing else block(x, grid=grid)
        return x


class Swin(nn.Module):
    """logits = head(mean(norm(x_S))),  x_s = blocks_s(merging_s(x_{s-1})),  x_0 = blocks_0(patch_embed(picture)).

    Pictures [batch, channels, height, width] of any size. Stage s = 0, ..., S works on tokens
    [batch, rows · columns, dim · 2**s] of a grid that is read off the picture: ⌈height / patch / 2**s⌉ rows.
    Its blocks are `Block(attention=WindowAttention)`, every second one shifted by window // 2; block b of all of them
    is dropped with probability drop_path_rate · b / (blocks - 1). Odd sides are filled with a zero row before merging.

    A table reaches as far as its window does on pictures of `img_size`: the window, or less in a stage whose map is
    smaller (rule `small`). The model runs on other sizes, larger and smaller, as long as no table is asked for more;
    `resized` gives a model for larger windows, or for larger pictures where a window had shrunk.

    Names in the state dict are those of the original repository, `attn` being `attention` and its table
    `attention.position.table`; a merging belongs to the stage before it.

    Where it differs: the original classifier fails on maps that windows do not divide; the published rules for them
    are there by name (`border`, `small`), and the default cuts smaller windows at the border. transformers has no drop
    path on the perceptron, starts its tables at zero, fails on maps smaller than a window, and keeps what one small map
    made of its windows and shifts for all later calls.
    Source: Swin (arXiv 2103.14030, sections 3.1 to 3.3); microsoft/Swin-Transformer `swin_transformer.py`.

    Args:
        dim: channels of a token in the first stage; each merging doubles them.
        depths: blocks per stage.
        heads: per stage.
        window: cells per side, or (rows, columns).
        img_size: pixels per side, or (height, width), that the tables are made for; None makes all as wide as windows.
        patch: pixels per side of a token.
        in_chans: channels of a picture.
        num_classes: of the head; 0 is no head, and `forward` gives the mean.
        mlp_ratio: as `Block` takes it.
        drop_path_rate, proj_drop_rate, attn_drop_rate: in training only; the second one behind every projection and
            perceptron layer, the third one on the weights of attention.
        border, small, kernel: as `WindowAttention` takes them. "roll-pad" with "per-axis" is timm, "pad-roll" with
            "joint" transformers and the original, "pad-roll" with "pad" torchvision.
        patch_border: as `PatchEmbedding` takes it; "cut" is torchvision.

    Raises:
        ValueError: for sizes below 1, depths and heads of different lengths, and what the parts refuse; at the call
            for pictures of another shape, and where a table does not reach.
    """

    layers: Any  # a ModuleList of Stage

    _attention: ClassVar[type[WindowAttention]] = WindowAttention
    _block: ClassVar[type[Block]] = Block
    _norm_first: ClassVar[bool] = True

    def __init__(
        self,
        *,
        dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: Size = 7,
        img_size: Size | None = 224,
        patch: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        border: str = "cells",
        small: str = "joint",
        patch_border: str = "pad",
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if len(depths) != len(heads) or not depths or min(*depths, *heads) < 1 or num_classes < 0 or patch < 1:
            raise ValueError(
                f"{name} needs as many `depths` as `heads`, all at least 1, as `patch` is, and `num_classes` of at "
                f"least 0; got depths={depths}, heads={heads}, patch={patch}, num_classes={num_classes}. "
                "Swin-T has depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)."
            )
        self.window, self.small = pair(name, "window", window), small
        self.img_size = None if img_size is None else pair(name, "img_size", img_size)
        self.patch_embed = PatchEmbedding(dim, (patch, patch), channels=in_chans, norm=True, border=patch_border)
        reaches = self._reaches(self.img_size, len(depths))
        stages: list[Stage] = []
        for s, (depth, h, reach) in enumerate(zip(depths, heads, reaches, strict=True)):
            width, blocks = dim * 2**s, []
            for b in range(depth):
                attention = self._attention(
                    width, h, self.window, shift=half(self.window, b), position=self._position(reach, h),
                    border=border, small=small, dropout=attn_drop_rate, proj_dropout=proj_drop_rate, kernel=kernel,
                )  # fmt: skip
                before = sum(depths[:s]) + b
                block = self._block(
                    width, h, mlp_ratio=mlp_ratio, attention=attention, dropout=proj_drop_rate, norm_eps=1e-5,
                    drop_path=drop_path_rate * before / max(1, sum(depths) - 1),
                )  # fmt: skip
                blocks.append(block)
            last = s == len(depths) - 1
            stages.append(Stage(blocks, None if last else PatchMerging(width, norm_first=self._norm_first)))
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else None
        self._draw()

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"] | Float[Tensor, "batch dim"]:
        """Logits, or the mean of the features of a model without a head."""
        mean = self.forward_features(x).mean((2, 3))
        return mean if self.head is None else self.head(mean)

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim rows columns"]:
        """What the head averages: the last stage's map behind `norm`."""
        x, grid = self._stages(x)[-1]
        return _map(self.norm(x), grid)

    def features(
        self, x: Float[Tensor, "batch channels height width"], stages: Sequence[int] | None = None
    ) -> list[Float[Tensor, "batch dim rows columns"]]:
        """The map of each stage, or of those named (0 is the first), before merging and without `norm`."""
        count = len(self.layers)
        wanted = range(count) if stages is None else stages
        if not all(-count <= s < count for s in wanted):
            raise ValueError(
                f"{type(self).__name__} needs `stages` out of 0 to {count - 1}; got {list(wanted)}. "
                "Leave them out for all maps."
            )
        found = self._stages(x)
        return [_map(*found[s]) for s in wanted]

    def resized(self, *, img_size: Size | None = None, window: Size | None = None, method: str = "linear") -> Swin:
        """A copy for other pictures or windows: its tables interpolated (`locant.resizing`), the rest as it is.

        Args:
            img_size: that the tables are made for; None keeps it.
            window: None keeps it.
            method: of the tables.
        """
        return self._resized(img_size, window, lambda position, reach: position.resized(reach, method=method))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that published training does not decay, besides biases and norms."""
        return {name for name, _ in self.named_parameters() if ".position." in name}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass, which saves their memory."""
        for stage in self.layers:
            stage.checkpointing = enable

    def _draw(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _position(self, reach: Grid, heads: int) -> Position:
        return RelativeTable(reach, heads)

    def _resized(self, img_size: Size | None, window: Size | None, resize: Callable[[Any, Grid], Position]) -> Any:
        new, name = copy.deepcopy(self), type(self).__name__
        new.window = self.window if window is None else pair(name, "window", window)
        new.img_size = self.img_size if img_size is None else pair(name, "img_size", img_size)
        for stage, reach in zip(new.layers, new._reaches(new.img_size, len(new.layers)), strict=True):
            for b, block in enumerate(stage.blocks):
                attention = block.attention
                attention.window, attention.shift = new.window, half(new.window, b)
                attention.position = resize(attention.position, reach)
        return new

    def _stages(self, x: Tensor) -> list[tuple[Tensor, Grid]]:
        """The tokens that each stage ends with, and where they are."""
        height, width = x.shape[-2:]
        x, grid = self.patch_embed(x)
        found = []
        for s, stage in enumerate(self.layers):
            reach, wanted = stage.blocks[0].attention.position.grid, self._reach(grid.shape)
            if any(a > b for a, b in zip(wanted.shape, reach.shape, strict=True)):
                raise ValueError(
                    f"{type(self).__name__} on pictures of {height} × {width} needs tables for windows of "
                    f"{wanted.shape} in stage {s}; those there reach {reach.shape}, made for img_size={self.img_size}. "
                    f"Use model.resized(img_size=({height}, {width})), or build it so and load the weights into it."
                )
            x = stage(x, grid)
            found.append((x, grid))
            if stage.downsample is not None:
                x, grid = stage.downsample(x, grid)
        return found

    def _reach(self, shape: tuple[int, ...]) -> Grid:
        """The window on a map of this shape."""
        return Grid(*fitted(self.window, (0, 0), shape, self.small)[0])

    def _reaches(self, img_size: tuple[int, int] | None, stages: int) -> list[Grid]:
        """How far tables reach, per stage, on pictures of this size."""
        if img_size is None:
            return [Grid(*self.window)] * stages
        cut, patch = self.patch_embed.border == "cut", self.patch_embed.patch
        sides = tuple(side // p if cut else -(-side // p) for side, p in zip(img_size, patch, strict=True))
        return [self._reach(tuple(-(-side // 2**s) for side in sides)) for s in range(stages)]

    def extra_repr(self) -> str:
        return f"window={self.window}, img_size={self.img_size}"


def pair(model: str, name: str, size: Size) -> tuple[int, int]:
    """`size` for rows and columns."""
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(
            f"{model} needs `{name}` as one number of at least 1 or as (rows, columns); got {size}. "
            f"Write {name}=(7, 9)."
        )
    return sizes[0], sizes[1]


def half(window: tuple[int, int], block: int) -> tuple[int, int]:
    """The shift of a stage's blocks: none and half a window in turn."""
    return (window[0] // 2, window[1] // 2) if block % 2 else (0, 0)


def _map(x: Float[Tensor, "batch tokens dim"], grid: Grid) -> Float[Tensor, "batch dim rows columns"]:
    return x.transpose(1, 2).unflatten(2, grid.shape)


def swin_tiny(
    *,
    img_size: Size | None = 224,
    window: Size = 7,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.2,
    border: str = "cells",
    small: str = "joint",
    patch_border: str = "pad",
) -> Swin:
    """Swin-T: 28 million parameters."""
    return Swin(
        dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), img_size=img_size, window=window, in_chans=in_chans,
        num_classes=num_classes, drop_path_rate=drop_path_rate, border=border, small=small, patch_border=patch_border,
    )  # fmt: skip


def swin_small(
    *,
    img_size: Size | None = 224,
    window: Size = 7,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.3,
    border: str = "cells",
    small: str = "joint",
    patch_border: str = "pad",
) -> Swin:
    """Swin-S: 50 million parameters."""
    return Swin(
        dim=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), img_size=img_size, window=window, in_chans=in_chans,
        num_classes=num_classes, drop_path_rate=drop_path_rate, border=border, small=small, patch_border=patch_border,
    )  # fmt: skip


def swin_base(
    *,
    img_size: Size | None = 224,
    window: Size = 7,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.5,
    border: str = "cells",
    small: str = "joint",
    patch_border: str = "pad",
) -> Swin:
    """Swin-B: 88 million parameters."""
    return Swin(
        dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), img_size=img_size, window=window, in_chans=in_chans,
        num_classes=num_classes, drop_path_rate=drop_path_rate, border=border, small=small, patch_border=patch_border,
    )  # fmt: skip


def swin_large(
    *,
    img_size: Size | None = 224,
    window: Size = 7,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.2,
    border: str = "cells",
    small: str = "joint",
    patch_border: str = "pad",
) -> Swin:
    """Swin-L: 197 million parameters."""
    return Swin(
        dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), img_size=img_size, window=window, in_chans=in_chans,
        num_classes=num_classes, drop_path_rate=drop_path_rate, border=border, small=small, patch_border=patch_border,
    )  # fmt: skip
