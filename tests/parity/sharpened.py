"""Published models of Swin v2 in float64, all of them: their coordinates are buffers, rounded to float32 when made."""

from __future__ import annotations

import torch
from torch import nn


def sharpened(theirs: nn.Module) -> nn.Module:
    """`theirs` in float64, with coordinates sign(d) log2(1 + 8 |d| / (side - 1)) / 3 in that precision."""
    theirs.double()
    for module in theirs.modules():
        rounded = getattr(module, "relative_coords_table", None)
        if rounded is not None:
            lines = [torch.linspace(-8, 8, n, dtype=torch.float64) * (n > 1) for n in rounded.shape[1:3]]
            exact = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)[None]
            exact = exact.sign() * torch.log2(exact.abs() + 1) / 3
            assert torch.allclose(exact, rounded, atol=1e-6)
            module.relative_coords_table.copy_(exact)
    return theirs
