"""Position by order: 3-D convolutions that never look ahead in time, and the blocks that FIERY makes of them.

All take and give [batch, channels, time, height, width] and keep time, height and width.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

POOLS = ("fixed", "cells", "whole")


def pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    """ReLU ∘ BatchNorm ∘ a 1 × 1 × 1 convolution without bias."""
    layers = {
        "conv": nn.Conv3d(in_channels, out_channels, 1, bias=False),
        "norm": nn.BatchNorm3d(out_channels),
        "activation": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


def _skip(in_channels: int, out_channels: int) -> nn.Sequential | None:
    """What the input passes on its way around a block: nothing, unless the channels change."""
    if in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv3d(in_channels, out_channels, 1, bias=False), nn.BatchNorm3d(out_channels))


class CausalConv3d(nn.Module):
    """y = relu(norm(conv(x))):  y_t depends on x_t, x_{t-d}, …, x_{t-(k-1)d}, k and d the kernel and dilation of time.

    Time is filled with zeros on the left alone, by (k-1)·d; height and width on both sides. The convolution has no
    bias; norm is BatchNorm over batch, time and space. Names: conv.weight [out, in, kt, kh, kw], norm.

    Where it differs: the published code fills ((k-1)·d) // 2 on both sides of height and width whatever that is, and
    returns smaller maps when (k-1)·d is odd; here that is an error.
    Source: FIERY (arXiv 2104.10490, section 3.2), `fiery/layers/temporal.py`.

    Args:
        in_channels, out_channels: of the convolution.
        kernel_size: over time, height and width.
        dilation: the same.

    Raises:
        ValueError: for sizes below 1, and even kernels over height or width that no filling makes up for.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int] = (2, 3, 3),
        *,
        dilation: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        reach = [(k - 1) * d for k, d in zip(kernel_size, dilation, strict=True)]
        if min(*kernel_size, *dilation, in_channels, out_channels) < 1:
            raise ValueError(
                "CausalConv3d needs channels, `kernel_size` and `dilation` of at least 1; got "
                f"{in_channels} and {out_channels} channels, {kernel_size} and {dilation}. Use 1 to mix nothing."
            )
        if reach[1] % 2 or reach[2] % 2:
            raise ValueError(
                "CausalConv3d needs a `kernel_size` that has a middle over height and width, so that maps keep their "
                f"size; got {kernel_size} with dilation {dilation}. Use odd sizes there, such as (2, 3, 3)."
            )
        self.past = reach[0]
        space = (0, reach[1] // 2, reach[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, dilation=dilation, padding=space, bias=False)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(
        self, x: Float[Tensor, "batch channels time height width"]
    ) -> Float[Tensor, "batch out_channels time height width"]:
        x = F.pad(x, (0, 0, 0, 0, self.past, 0)) if self.past else x
        return F.relu(self.norm(self.conv(x)))

    def extra_repr(self) -> str:
        return f"past={self.past}"


class Bottleneck3D(nn.Module):
    """y = up(causal(down(x))) + skip(x): a causal convolution on half of the channels.

    down and up are 1 × 1 × 1 with BatchNorm and ReLU; skip is the identity, or 1 × 1 × 1 with BatchNorm where the
    channels change. `TemporalModel` uses kernels (1, 3, 3), which mix space alone. Names: layers.conv_down_project,
    layers.conv, layers.conv_up_project, projection.

    Source: `fiery/layers/temporal.py`.

    Args:
        in_channels: even.
        out_channels: of the output.
        kernel_size: of the causal convolution.

    Raises:
        ValueError: for an odd number of channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int] = (2, 3, 3)) -> None:
        super().__init__()
        _check_even("Bottleneck3D", in_channels, 2)
        half = in_channels // 2
        layers: dict[str, nn.Module] = {
            "conv_down_project": pointwise(in_channels, half),
            "conv": CausalConv3d(half, half, kernel_size),
            "conv_up_project": pointwise(half, out_channels),
        }
        self.layers = nn.Sequential(OrderedDict(layers))
        self.projection = _skip(in_channels, out_channels)

    def forward(
        self, x: Float[Tensor, "batch channels time height width"]
    ) -> Float[Tensor, "batch out_channels time height width"]:
        return self.layers(x) + (x if self.projection is None else self.projection(x))


class PyramidPooling(nn.Module):
    """y_t = conv_bn_relu(the mean of x over frames t - 1 and t and over a map of `shape`), laid out over the map again.

    At t = 0 the mean is over frame 0 alone. `pool` says what maps of another size than `shape` mean:

        "fixed"   an error.
        "cells"   one mean per cell of `shape`, drawn out bilinearly: the published code on maps that are larger. They
                  must be a multiple; published code leaves the rest of the map out without a word.
        "whole"   one mean over the whole map, whatever its size.

    In training there is one step more, T: the mean of the last frame alone. It passes conv_bn_relu and counts in the
    batch statistics before it is dropped. This is published, and kept, so that training goes the same way.

    Where it differs: a comment in the published code says that the present frame is left out; it is not. Names:
    features.0.conv_bn_relu.{conv, norm}.
    Source: `fiery/layers/temporal.py`, `PyramidSpatioTemporalPooling` with one pool of (2, h, w).

    Args:
        in_channels, out_channels: of the 1 × 1 × 1 convolution.
        shape: height and width of the maps it was built for.
        pool: see above.

    Raises:
        ValueError: for an unknown `pool`, and maps of a size that it does not allow.
    """

    def __init__(self, in_channels: int, out_channels: int, shape: tuple[int, int], *, pool: str = "fixed") -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"`pool` must be one of {', '.join(map(repr, POOLS))}; got {pool!r}. Name one.")
        self.shape, self.pool = shape, pool
        layers = {"conv_bn_relu": pointwise(in_channels, out_channels)}
        self.features = nn.Sequential(nn.Sequential(OrderedDict(layers)))

    def forward(
        self, x: Float[Tensor, "batch channels time height width"]
    ) -> Float[Tensor, "batch out_channels time height width"]:
        """Pool, convolve and lay out.

        Raises:
            ValueError: if the map's size is not what `pool` allows.
        """
        size = x.shape[-2:]
        height, width = self._cell(*size)
        frames = x.unflatten(-1, (-1, width)).unflatten(-3, (-1, height)).mean((-3, -1))
        between = (frames[:, :, 1:] + frames[:, :, :-1]) / 2
        last = frames[:, :, -1:] if self.training else frames[:, :, :0]
        y = self.features(torch.cat([frames[:, :, :1], between, last], dim=2))[:, :, : x.shape[2]]
        if y.shape[-2:] == (1, 1):  # one number draws out to itself
            return y.expand(*y.shape[:-2], *size)
        drawn = F.interpolate(y.transpose(1, 2).flatten(0, 1), size, mode="bilinear", align_corners=False)
        return drawn.unflatten(0, (x.shape[0], -1)).transpose(1, 2)

    def _cell(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what is averaged."""
        h, w = self.shape
        if self.pool == "whole":
            return height, width
        if (height, width) == (h, w):
            return h, w
        if self.pool == "cells" and height and width and height % h == 0 and width % w == 0:
            return h, w
        allowed = f"of {h} × {w}" if self.pool == "fixed" else f"whose sides are multiples of {h} × {w}"
        raise ValueError(
            f"the pyramid's `pool={self.pool!r}` needs maps {allowed}, its `input_shape`; got {height} × {width}. "
            'Build it with that input_shape, or with pool="whole" (one mean over any map) or '
            'pool="cells" (one mean per cell of input_shape, as published on larger maps).'
        )

    def extra_repr(self) -> str:
        return f"shape={self.shape}, pool={self.pool!r}"


class TemporalBlock(nn.Module):
    """y = aggregation([a(x), b(x), c(x), pyramid(x)]) + skip(x): one frame of history, without an activation after it.

    With half = in_channels / 2: a is 1 × 1 × 1 to half, then causal (2, 3, 3); b the same with (1, 3, 3); c is
    1 × 1 × 1 to half; the pyramid gives ⌊in_channels / 3⌋ channels. They are joined in this order; aggregation is
    1 × 1 × 1 to out_channels. All of them have BatchNorm and ReLU. skip is the identity, or 1 × 1 × 1 with BatchNorm
    where the channels change. Names: convolution_paths.{0, 1, 2}, pyramid_pooling, aggregation.0, projection.

    Source: FIERY (arXiv 2104.10490, section 3.2), `fiery/layers/temporal.py`; its docstring speaks of dropout, which
    it does not have.

    Args:
        in_channels: even; at least 4 with a pyramid.
        out_channels: of the output.
        shape: height and width for the pyramid; None is no pyramid.
        pool: what other sizes mean to the pyramid (`PyramidPooling`).

    Raises:
        ValueError: for an odd number of channels, or too few.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, shape: tuple[int, int] | None = None, pool: str = "fixed"
    ) -> None:
        super().__init__()
        _check_even("TemporalBlock", in_channels, 2 if shape is None else 4)
        half, pooled = in_channels // 2, 0 if shape is None else in_channels // 3
        self.convolution_paths = nn.ModuleList(
            [
                nn.Sequential(pointwise(in_channels, half), CausalConv3d(half, half, (2, 3, 3))),
                nn.Sequential(pointwise(in_channels, half), CausalConv3d(half, half, (1, 3, 3))),
                pointwise(in_channels, half),
            ]
        )
        self.pyramid_pooling = None if shape is None else PyramidPooling(in_channels, pooled, shape, pool=pool)
        self.aggregation = nn.Sequential(pointwise(3 * half + pooled, out_channels))
        self.projection = _skip(in_channels, out_channels)

    def forward(
        self, x: Float[Tensor, "batch channels time height width"]
    ) -> Float[Tensor, "batch out_channels time height width"]:
        paths = [path(x) for path in self.convolution_paths]
        paths += [] if self.pyramid_pooling is None else [self.pyramid_pooling(x)]
        return self.aggregation(torch.cat(paths, dim=1)) + (x if self.projection is None else self.projection(x))


def _check_even(module: str, channels: int, least: int) -> None:
    if channels < least or channels % 2:
        raise ValueError(
            f"{module} needs an even number of channels, at least {least}, since its paths have half of them; "
            f"got {channels}. Use {max(least, channels + 1)}."
        )
