"""Residual halves of a block, x + f(norm(x)), in one pass by rows where nothing but numbers is wanted of their parts.

A LayerNorm in front of a product and the sum behind one cost as much memory traffic as attention itself. The kernels
normalise a block of rows on its way in and add x on its way out. That needs every part to be plain: no hook to call, no
dropout or drop path at work, no gradient; else None is the answer, and the class's own forward runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from locant.integrations.family import class_name
from locant.integrations.layers import calls_parts, is_unhooked, parts_of
from locant.products import linear, perceptron

Norm = tuple[Tensor, Tensor, float]
NORMS = ("torch.nn.modules.normalization.LayerNorm", "timm.layers.norm.LayerNorm")
SCALES = ("timm.layers.layer_scale.LayerScale",)


def norm_of(module: Any) -> Norm | None:
    """Scale, shift and ε of a LayerNorm over the last axis that does nothing else."""
    plain = class_name(type(module)) in NORMS and is_unhooked(module) and not getattr(module, "_fast_norm", False)
    if not plain or "forward" in vars(module) or len(module.normalized_shape) != 1:
        return None
    return None if module.weight is None or module.bias is None else (module.weight, module.bias, module.eps)


def only_numbers(*parts: nn.Module) -> bool:
    """Whether nothing is drawn, recorded or called in these parts, so that they need not be called one by one."""
    return not torch.is_grad_enabled() and not any(part.training or not is_unhooked(part) for part in parts)


def residual_perceptron(
    x: Tensor, norm: nn.Module, mlp: nn.Module, drop_path: nn.Module, scale: nn.Module | Tensor | None = None
) -> Tensor | None:
    """x + scale(mlp(norm(x))) in one pass, or None. `scale` is a LayerScale, its numbers, or does nothing."""
    called = [part for part in (norm, mlp, drop_path, scale) if isinstance(part, nn.Module)]
    front, parts = norm_of(norm), parts_of(mlp)
    if front is None or parts is None or not only_numbers(*called) or calls_parts(mlp):
        return None
    gain: Any = scale
    if isinstance(scale, nn.Module):
        gain = getattr(scale, "gamma", None)
        if type(scale) is not nn.Identity and class_name(type(scale)) not in SCALES:
            return None
    one, activation, two = parts
    return perceptron(
        x, one.weight, one.bias, two.weight, two.bias, activation, True, gain=gain, residual=x, norm=front
    )


def normalised_linear(x: Tensor, norm: Norm, layer: Any) -> Tensor:
    """layer(norm(x))."""
    return linear(x, layer.weight, layer.bias, True, norm=norm)


def added_linear(x: Tensor, layer: Any, residual: Tensor) -> Tensor:
    """residual + layer(x)."""
    return linear(x, layer.weight, layer.bias, True, residual=residual)
