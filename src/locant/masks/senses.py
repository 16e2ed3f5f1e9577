"""How published masks are written down in numbers, read as bool: True = may take part."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKED = -100.0  # Swin writes "blocked" as this finite number; BERT uses -1e4, others -1e9 or -inf: all lie below


def read_zeros_and_ones(what: str, mask: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"{what} needs zeros and ones; the mask ({mask.dtype}) holds other numbers. "
            "If it is added to the logits, use from_additive."
        )
    return mask.bool()


def read_additive(mask: Tensor) -> Tensor:
    free = mask == 0
    if not torch.compiler.is_compiling() and not bool((free | (mask <= BLOCKED)).all()):
        raise ValueError(
            "an additive mask needs zeros (free) and numbers of -100 or less (blocked); it holds others, "
            f"such as {float(mask[~free & ~(mask <= BLOCKED)][0]):.4g}. Numbers between are a bias, not a mask."
        )
    return free
