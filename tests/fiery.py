"""FIERY's blocks as the original composes torch's own layers, and what the tests of them share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAP = (4, 6)
Names = dict[str, Tensor]


class Published:
    """Convolutions, BatchNorm and pooling as the original composes them, reading a state dict by its names."""

    def __init__(self, state: Names, training: bool = False) -> None:
        self.state, self.training = state, training
        self.after: Names = {}  # the statistics, once training has written into them

    def norm(self, at: str, x: Tensor) -> Tensor:
        s = self.state
        mean, var = s[f"{at}.running_mean"].clone(), s[f"{at}.running_var"].clone()
        self.after |= {f"{at}.running_mean": mean, f"{at}.running_var": var}
        return F.batch_norm(x, mean, var, s[f"{at}.weight"], s[f"{at}.bias"], self.training)

    def unit(self, at: str, x: Tensor) -> Tensor:
        return torch.relu(self.norm(f"{at}.norm", F.conv3d(x, self.state[f"{at}.conv.weight"])))

    def causal(self, at: str, x: Tensor) -> Tensor:
        weight = self.state[f"{at}.conv.weight"]
        time, height, width = weight.shape[2:]
        filled = F.pad(x, (width // 2, width // 2, height // 2, height // 2, time - 1, 0))
        return torch.relu(self.norm(f"{at}.norm", F.conv3d(filled, weight)))

    def pyramid(self, at: str, x: Tensor, shape: tuple[int, int]) -> Tensor:
        batch, _, time, *size = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)  # torch pools no half precision on a CPU
        pooled = F.avg_pool3d(x.to(wide), (2, *shape), (1, *shape), (1, 0, 0), count_include_pad=False).to(x.dtype)
        y = self.unit(f"{at}.features.0.conv_bn_relu", pooled)[:, :, :-1].contiguous()
        channels, cells = y.shape[1], y.shape[-2:]
        drawn = F.interpolate(y.view(batch * time, channels, *cells), size, mode="bilinear", align_corners=False)
        return drawn.view(batch, channels, time, *size)

    def skip(self, at: str, x: Tensor) -> Tensor:
        weight = self.state.get(f"{at}.projection.0.weight")
        return x if weight is None else self.norm(f"{at}.projection.1", F.conv3d(x, weight))

    def temporal(self, at: str, x: Tensor, shape: tuple[int, int] | None) -> Tensor:
        path = f"{at}.convolution_paths"
        paths = [self.causal(f"{path}.{i}.1", self.unit(f"{path}.{i}.0", x)) for i in (0, 1)]
        paths.append(self.unit(f"{path}.2", x))
        if shape is not None:
            paths.append(self.pyramid(f"{at}.pyramid_pooling", x, shape))
        return self.unit(f"{at}.aggregation.0", torch.cat(paths, 1)) + self.skip(at, x)

    def bottleneck(self, at: str, x: Tensor) -> Tensor:
        y = self.unit(f"{at}.layers.conv_down_project", x)
        y = self.unit(f"{at}.layers.conv_up_project", self.causal(f"{at}.layers.conv", y))
        return y + self.skip(at, x)

    def model(self, x: Tensor, field: int, shape: tuple[int, int] | None) -> Tensor:
        x = x.permute(0, 2, 1, 3, 4)
        for i in range(1 + max((int(name.split(".")[1]) for name in self.state), default=-1)):
            spatial = f"model.{i}.layers.conv.conv.weight" in self.state
            x = self.bottleneck(f"model.{i}", x) if spatial else self.temporal(f"model.{i}", x, shape)
        return x.permute(0, 2, 1, 3, 4)[:, field - 1 :]


def shaken(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Weights, statistics and all, drawn so that each of them shows."""
    module = module.to(dtype)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.normal_(std=0.5)
    return module.eval()


def under(at: str, module: nn.Module) -> Names:
    """The state dict with gradients, its names below `at`."""
    return {f"{at}.{name}": value for name, value in module.state_dict(keep_vars=True).items()}


def frames(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)
