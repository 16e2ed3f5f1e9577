"""FIERY's temporal model: the present state of a scene from the frames up to now."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from locant.checks import check_tensor, check_types
from locant.nn.causal import Bottleneck3D, TemporalBlock


class TemporalModel(nn.Module):
    """y_t = f(x_{t-rf+1}, …, x_t),  f a stack of rf - 1 causal blocks,  rf = receptive_field.

    x [batch, time, in_channels, height, width] → y [batch, time - rf + 1, out_channels, height, width]. Position acts
    by order: each block reads its own frame and the one before it. Nothing is dilated, and each convolution keeps time
    by zeros on its left; the first rf - 1 outputs would have seen those zeros and are cut off. So output t depends on
    exactly rf frames, and never on a later one. `rf = 1` is the identity.

    In training BatchNorm's statistics mix all frames, the cut ones included, and the pyramid's hold one step more
    (`PyramidPooling`): as published, kept. What is said of order holds in evaluation.

    Where it differs: published code gives an empty clip for one shorter than rf, and on maps larger than
    `input_shape` the pyramid changes its meaning without a word; here both are errors, and `pool` names the meaning.
    Odd channels, which it rounds down, are an error.
    Source: FIERY (arXiv 2104.10490, section 3.2), `fiery/models/temporal_model.py`. Its full model sets BatchNorm's
    momentum to 0.05, and gives 64 features and 6 of ego-motion, rf = 3 and maps of 200 × 200: 98,473 parameters.

    Names in the state dict, as published: model.{i}, temporal and spatial blocks counted together (`TemporalBlock`,
    `Bottleneck3D`).

    Args:
        in_channels: of a frame; even, at least 4 with the pyramid.
        receptive_field: frames that an output depends on.
        input_shape: height and width of the maps, for the pyramid.
        start_out_channels: of the first block's output.
        extra_in_channels: how many more each further block has.
        n_spatial_layers_between_temporal_layers: bottlenecks of kernel (1, 3, 3) after each block.
        use_pyramid_pooling: whether blocks also see the mean of the map over two frames.
        pool: what maps of another size mean to the pyramid: "fixed" (an error), "cells" or "whole".

    Raises:
        ValueError: for numbers below 1, odd channels and an unknown `pool`.
    """

    @check_types
    def __init__(
        self,
        in_channels: int,
        receptive_field: int,
        input_shape: tuple[int, int],
        *,
        start_out_channels: int = 64,
        extra_in_channels: int = 0,
        n_spatial_layers_between_temporal_layers: int = 0,
        use_pyramid_pooling: bool = True,
        pool: str = "fixed",
    ) -> None:
        super().__init__()
        least = {
            "in_channels": (in_channels, 1),
            "receptive_field": (receptive_field, 1),
            "input_shape": (min(input_shape), 1),
            "start_out_channels": (start_out_channels, 1),
            "extra_in_channels": (extra_in_channels, 0),
            "n_spatial_layers_between_temporal_layers": (n_spatial_layers_between_temporal_layers, 0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise ValueError(
                    f"TemporalModel needs `{name}` of at least {bound}; got {value}. "
                    "FIERY has TemporalModel(70, 3, (200, 200))."
                )
        self.in_channels, self.receptive_field = in_channels, receptive_field
        blocks: list[nn.Module] = []
        self.out_channels, out_channels = in_channels, start_out_channels
        for _ in range(receptive_field - 1):
            shape = input_shape if use_pyramid_pooling else None
            blocks.append(TemporalBlock(self.out_channels, out_channels, shape=shape, pool=pool))
            for _ in range(n_spatial_layers_between_temporal_layers):
                blocks.append(Bottleneck3D(out_channels, out_channels, (1, 3, 3)))
            self.out_channels, out_channels = out_channels, out_channels + extra_in_channels
        self.model = nn.Sequential(*blocks)

    def forward(
        self, x: Float[Tensor, "batch time channels height width"]
    ) -> Float[Tensor, "batch kept_time out_channels height width"]:
        """The state at every frame that has rf - 1 frames before it.

        Raises:
            ValueError: if x is not [batch, time, in_channels, height, width], has fewer frames than the receptive
                field, or maps of a size that `pool` does not allow.
        """
        check_tensor("TemporalModel", "x", x)
        if x.ndim != 5 or x.shape[2] != self.in_channels:
            raise ValueError(
                f"`x` must be [batch, time, {self.in_channels}, height, width]; got {list(x.shape)}. "
                "Channels come after time: x.transpose(1, 2) turns [batch, channels, time, height, width]."
            )
        if x.shape[1] < self.receptive_field:
            raise ValueError(
                f"TemporalModel needs clips of at least receptive_field={self.receptive_field} frames; got "
                f"{x.shape[1]}. Give more frames, or build it with receptive_field={max(1, x.shape[1])}."
            )
        if self.receptive_field == 1:
            return x
        y = self.model(x.transpose(1, 2).contiguous())  # once here, not in each path
        return y.transpose(1, 2)[:, self.receptive_field - 1 :]

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, receptive_field={self.receptive_field}"
        )
