"""Patches of a picture, cut from it or merged by fours: one product, its norm with it. Of timm, torchvision, Locant.

A convolution of small patches costs most where its output is brought from channels-first to the order that everything
behind it reads, and through a norm: a product by rows writes that order at once.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.grid import Grid
from locant.integrations.family import Family, Offer
from locant.integrations.halves import JOINED, norm_of
from locant.integrations.layers import is_packed, is_unhooked
from locant.integrations.replacing import Replacement
from locant.products import linear

WIDEST = 8  # pixels of a patch's side up to which a product is faster in float32: at 16 a convolution takes as long


def _cut_forward(self: Any, x: Tensor) -> Any:
    """timm's PatchEmbed in evaluation, of pictures that patches divide."""
    y = _cut_and_multiply(self, x) if _is_expected(self, x) else None
    if y is None:
        return type(self).forward(self, x)
    return y.flatten(1, 2) if self.flatten else y


def _own_cut_forward(self: Any, x: Tensor) -> tuple[Tensor, Grid]:
    """Locant's."""
    y = _cut_and_multiply(self, x) if isinstance(x, Tensor) else None
    return type(self).forward(self, x) if y is None else (y.flatten(1, 2), Grid(*y.shape[1:3]))


def _is_expected(self: Any, x: Tensor) -> bool:
    return self.img_size is None or not self.strict_img_size or tuple(x.shape[2:]) == tuple(self.img_size)


def _cut_and_multiply(self: Any, x: Tensor) -> Float[Tensor, "batch h w dim"] | None:
    """Patches through `proj` and `norm`; None where these have to be called, or a convolution is the faster way."""
    conv = self.proj
    has_norm = not (self.norm is None or isinstance(self.norm, nn.Identity))
    norm = norm_of(self.norm) if has_norm else None
    known = (norm is not None or not has_norm) and is_unhooked(conv) and (self.norm is None or is_unhooked(self.norm))
    watched = torch.is_grad_enabled() or self.training or torch.is_autocast_enabled("cpu")
    if not known or watched or "forward" in vars(conv) or not _fits(conv, x):
        return None
    return linear(cut(x, conv.kernel_size), conv.weight.flatten(1), conv.bias, keep=False, behind=norm)


def _fits(conv: Any, x: Tensor) -> bool:
    """Whether patches divide the pictures, and a product of this dtype is the faster way."""
    if x.ndim != 4 or x.shape[1] != conv.in_channels or x.dtype != conv.weight.dtype or 0 in x.shape:
        return False
    if max(conv.kernel_size) > WIDEST and x.dtype != torch.bfloat16:
        return False
    return all(side % patch == 0 for side, patch in zip(x.shape[2:], conv.kernel_size, strict=True))


def cut(x: Float[Tensor, "batch channels height width"], patch: tuple[int, ...]) -> Float[Tensor, "batch h w numbers"]:
    """The numbers of each patch in the order of a convolution's weight: channel, row, column."""
    batch, channels, height, width = x.shape
    rows, columns = patch
    x = x.reshape(batch, channels, height // rows, rows, width // columns, columns)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // rows, width // columns, channels * rows * columns)


def merge(x: Float[Tensor, "*batch height width channels"]) -> Float[Tensor, "*batch h w four_channels"]:
    """Cells by fours side by side, (0, 0), (1, 0), (0, 1), (1, 1); an odd side is filled up with zeros."""
    height, width = x.shape[-3:-1]
    if height % 2 or width % 2:  # torch copies the map where nothing is filled up, too
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    x = x.unflatten(-3, (-1, 2)).unflatten(-2, (-1, 2))  # [*batch, h, 2, w, 2, channels]
    return x.movedim(-4, -2).flatten(-3)


def _merging_with(norm_stands: str) -> Any:
    """A forward whose norm stands in front of the product ("norm") or behind it ("behind")."""

    def forward(self: Any, x: Tensor) -> Tensor:
        norm, layer = norm_of(self.norm), self.reduction
        if norm is None or not is_packed(layer):
            return type(self).forward(self, x)
        around: dict[str, Any] = {norm_stands: norm}
        return linear(merge(x), layer.weight, layer.bias, keep=not layer.training, **around)

    return forward


def _own_merging_forward(self: Any, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    norm, layer = norm_of(self.norm), self.reduction
    if norm is None or not is_packed(layer):
        return type(self).forward(self, x, grid)
    x, merged = self.quadrants(x, grid)
    around: dict[str, Any] = {"norm" if self.norm_first else "behind": norm}
    return linear(x, layer.weight, None, keep=not layer.training, **around), merged


_CUT = "patches and their norm in one product"
for _method in (_cut_forward, _own_cut_forward, _own_merging_forward):
    _method.__name__ = "forward"


def _cut(module: nn.Module) -> Offer | str:
    embed: Any = module
    conv = embed.proj
    if type(conv) is not nn.Conv2d or conv.kernel_size != conv.stride or embed.dynamic_img_pad:
        return "its patches overlap, or pictures are filled up for them"
    if any(conv.padding) or conv.groups != 1 or set(conv.dilation) != {1}:
        return "its convolution has padding, groups or a dilation"
    if not embed.flatten and str(getattr(embed.output_fmt, "value", "")) != "NHWC":
        return "what it gives is ordered channels first"
    sides = embed.img_size or (4 * conv.kernel_size[0], 6 * conv.kernel_size[1])
    trial = (torch.randn(2, conv.in_channels, *sides, dtype=torch.float64),)
    return Offer(Replacement({"forward": _cut_forward}), _CUT, lambda _: trial)


def _own_cut(module: nn.Module) -> Offer | str:
    embed: Any = module
    if len(embed.patch) != 2:
        return "its patches are no pictures'"
    trial = (torch.randn(2, embed.channels, *(4 * side for side in embed.patch), dtype=torch.float64),)
    return Offer(Replacement({"forward": _own_cut_forward}), _CUT, lambda _: trial)


def _own_merging(module: nn.Module) -> Offer:
    owner: Any = module
    trial = (torch.randn(2, 70, owner.dim, dtype=torch.float64), Grid(7, 10))
    return Offer(Replacement({"forward": _own_merging_forward}), JOINED, lambda _: trial)


def _merging_family(name: str, norm_stands: str, known: str, *methods: str) -> Family:
    forward = _merging_with(norm_stands)

    def offer(module: nn.Module) -> Offer:
        owner: Any = module
        trial = (torch.randn(2, 7, 10, owner.reduction.in_features // 4, dtype=torch.float64),)
        return Offer(Replacement({"forward": forward}), JOINED, lambda _: trial)

    return Family("block", (name,), ("forward", *methods), offer, frozenset({known}))


_OWN = "locant.nn.patches"
_TIMM, _VISION = "timm.models.swin_transformer", "torchvision.models.swin_transformer.PatchMerging"

FAMILIES = (
    Family("block", ("timm.layers.patch_embed.PatchEmbed",), ("forward",), _cut, frozenset({"e25dd38e7dbebc1f"})),
    Family("block", (f"{_OWN}.PatchEmbedding",), ("forward", "_bordered"), _own_cut, frozenset({"931e54345e0124f1"})),
    Family("block", (f"{_OWN}.PatchMerging",), ("forward", "quadrants"), _own_merging, frozenset({"25aa6bd907583616"})),
    _merging_family(f"{_TIMM}.PatchMerging", "norm", "ee285b87195c6208"),
    _merging_family(f"{_TIMM}_v2.PatchMerging", "behind", "8f6a5989cf527a1a"),
    _merging_family(_VISION, "norm", "5c8bbff8c88367a4", "_patch_merging_pad"),
    _merging_family(f"{_VISION}V2", "behind", "078eb416549274f4", "_patch_merging_pad"),
)
