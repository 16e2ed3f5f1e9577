"""spandrel's models of super-resolution, known by their shape alone: SwinIR, DRCT, HAT."""

from __future__ import annotations

import importlib

import accelerated
import pytest
import torch

FILES = {"DRCT": "drct_arch"}
SIZES = {"embed_dim": 24, "window_size": 4, "img_size": 16, "upscale": 2}


@pytest.mark.usefixtures("_peers_load")
@pytest.mark.parametrize("size", [16, 21])
@pytest.mark.parametrize(
    ("name", "more", "count"),
    [
        ("SwinIR", {"depths": [2, 2], "num_heads": [2, 2], "mlp_ratio": 2, "upsampler": "pixelshuffle"}, 4),
        ("HAT", {"depths": [2, 2], "num_heads": [2, 2], "squeeze_factor": 6, "upsampler": "pixelshuffle"}, 6),
        ("DRCT", {"depths": [2, 2], "num_heads": [2, 2], "gc": 8, "upsampler": "pixelshuffle"}, None),
    ],
)
def test_super_resolution(name: str, more: dict, count: int | None, size: int) -> None:
    pytest.importorskip("spandrel")
    module = importlib.import_module(f"spandrel.architectures.{name}.__arch.{FILES.get(name, name)}")
    size = 24 if name == "DRCT" and size == 21 else size  # it fills no picture that windows do not divide
    torch.manual_seed(0)
    accelerated.check(getattr(module, name)(**SIZES, **more), torch.rand(2, 3, size, size), count=count)
