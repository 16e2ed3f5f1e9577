"""Activations by the names that products know them by."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation of that name (locant.operands.ACTIVATIONS), by torch."""
    if activation == "none":
        return x
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="none" if activation == "gelu" else "tanh")
    return F.relu(x) if activation == "relu" else F.silu(x)
