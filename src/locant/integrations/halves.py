"""Residual halves of a block, x + f(norm(x)) or x + norm(f(x)), in one pass by rows where only numbers are wanted.

A LayerNorm in front of a product and the sum behind one cost as much memory traffic as attention itself. The kernels
normalise a block of rows on its way in, and multiply by a LayerScale and add x on its way out. That needs every part
to be plain: no hook to call, no dropout or drop path at work, no gradient; else parts are called one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locant.integrations.family import class_name
from locant.integrations.layers import Layers, is_packed, is_unhooked, linear_with, parts_of, recomputes
from locant.integrations.replacing import state_of
from locant.products import Norm, linear, perceptron

JOINED = "norms and sums with their products"  # what a row says of such a block
NORMS = ("torch.nn.modules.normalization.LayerNorm", "timm.layers.norm.LayerNorm")
RMS_NORMS = tuple(f"transformers.models.{name}LayerNorm" for name in ("t5.modeling_t5.T5", "umt5.modeling_umt5.UMT5"))
_DINO = "transformers.models.dinov2"
SCALES = {
    "timm.layers.layer_scale.LayerScale": "gamma",
    f"{_DINO}.modeling_dinov2.Dinov2LayerScale": "lambda1",
    f"{_DINO}_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersLayerScale": "lambda1",
}


class Half(NamedTuple):
    """What stands around f in x + gain ∘ behind(f(norm(x))), and goes with f's first and last products.

    Attributes:
        norm: None where x came through it already, or there is none.
        gain: of a LayerScale.
        residual: x.
        behind: a norm of what f gives.
    """

    norm: Norm | None
    gain: Tensor | None
    residual: Tensor
    behind: Norm | None = None


def norm_of(module: Any) -> Norm | None:
    """Scale, shift and ε of a norm over the last axis that does nothing else."""
    name = class_name(type(module))
    if not is_unhooked(module) or "forward" in vars(module):
        return None
    if name in RMS_NORMS:
        return Norm(module.weight, None, module.variance_epsilon, centred=False)
    if name not in NORMS or getattr(module, "_fast_norm", False) or len(module.normalized_shape) != 1:
        return None
    return None if module.weight is None or module.bias is None else Norm(module.weight, module.bias, module.eps)


def half_of(
    x: Tensor, norm: nn.Module, idle: Sequence[nn.Module], called: Iterable[nn.Module] = (),
    scale: nn.Module | Tensor | None = None, behind: bool = False,
) -> Half | None:  # fmt: skip
    """What goes with the products of a half, or None where its parts have to be called one by one.

    Args:
        behind: the norm comes behind the products, not in front.
        idle: dropouts and drop paths.
        called: other parts that are passed over: no hook on them would be called.
        scale: a LayerScale, its numbers, or nothing.
    """
    # 1 what every part does in evaluation is known
    gain: Any = scale
    known, parts = norm_of(norm), [norm, *idle, *called]
    if isinstance(scale, nn.Module):
        parts.append(scale)
        gain = getattr(scale, SCALES.get(class_name(type(scale)), ""), None)
        if (gain is None and type(scale) is not nn.Identity) or "forward" in vars(scale):
            return None
    if known is None or not all(map(_does_nothing, idle)):
        return None
    if known.scale.dtype != x.dtype and not torch.is_autocast_enabled("cpu"):
        return None  # T5 in halves goes on in float32 behind its last layer, and its norms round what products read
    # 2 and nothing is drawn, recorded or called
    watched = torch.is_grad_enabled() or any(part.training or not is_unhooked(part) for part in parts)
    if watched:
        return None
    return Half(None, gain, x, known) if behind else Half(known, gain, x)


def _does_nothing(part: nn.Module) -> bool:
    """In evaluation."""
    name = type(part).__name__
    return type(part) is nn.Identity or "Drop" in name or name == "StochasticDepth"


# --- first half -------------------------------------------------------------------------------------------------------


def project(layer: Any, x: Tensor, half: Half | None) -> Tensor:
    """layer(norm(x)) in one pass, or layer(x)."""
    return layer(x) if half is None else linear_with(layer, x, layer.bias, half.norm)


def conclude(layer: Any, drop: nn.Module | None, x: Tensor, half: Half | None) -> Tensor:
    """residual + gain ∘ behind(layer(x)) in one pass, or drop(layer(x))."""
    if half is not None:
        return linear(x, layer.weight, layer.bias, True, gain=half.gain, residual=half.residual, behind=half.behind)
    return layer(x) if drop is None else drop(layer(x))


def normalise_filled(x: Tensor, half: Half | None, window: tuple[int, ...]) -> tuple[Tensor, Half | None]:
    """A map [batch, *map, channels]; where windows are filled up with zeros it comes through its norm first."""
    divides = all(side % size == 0 for side, size in zip(x.shape[1:-1], window, strict=True))
    if half is None or half.norm is None or divides:
        return x, half
    scale, shift, epsilon, _ = half.norm
    return F.layer_norm(x, x.shape[-1:], scale, shift, epsilon), half._replace(norm=None)


def residual_attention(
    x: Tensor, norm: nn.Module, attn: nn.Module, drop_path: nn.Module, scale: nn.Module | Tensor | None = None,
    behind: bool = False, **named: Any,
) -> Tensor:  # fmt: skip
    """x + drop_path(scale(attn(norm(x), **named))), or with the norm behind attn.

    An attention whose state names its products takes a `half`.
    """
    layers = [getattr(attn, name) for name in getattr(state_of(attn), "products", ())]
    if layers and all(map(is_packed, layers)):
        parts = dict(attn.named_children())
        idle = [part for part in (drop_path, parts.get("proj_drop")) if part is not None]
        half = half_of(x, norm, idle, (attn, *parts.values()), scale, behind)
        out = None if half is None else attn.forward(x, **named, half=half)
        if out is not None:
            return _first(out)
    out = norm(_first(attn(x, **named))) if behind else _first(attn(norm(x), **named))
    return x + drop_path(_scaled(out, scale))


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _scaled(x: Tensor, scale: nn.Module | Tensor | None) -> Tensor:
    return scale(x) if isinstance(scale, nn.Module) else x if scale is None else scale * x


# --- second half ------------------------------------------------------------------------------------------------------


def run_perceptron(layers: Layers, x: Tensor, half: Half | None = None) -> Tensor:
    """two(activation(one(x))) a chunk of rows at a time."""
    one, activation, two = layers
    norm, gain, residual, behind = half or (None, None, None, None)
    return perceptron(
        x, one.weight, one.bias, two.weight, two.bias, activation, not two.training, gain=gain, residual=residual,
        norm=norm, behind=behind, recompute=recomputes(one),
    )  # fmt: skip


def residual_perceptron(
    x: Tensor, norm: nn.Module, mlp: nn.Module, drop_path: nn.Module, scale: nn.Module | Tensor | None = None,
    dropout: nn.Module | None = None, behind: bool = False,
) -> Tensor:  # fmt: skip
    """x + drop_path(scale(dropout(mlp(norm(x))))), or with the norm behind the dropout."""
    layers, idle = parts_of(mlp), (drop_path,) if dropout is None else (drop_path, dropout)
    half = None if layers is None else half_of(x, norm, idle, (mlp,), scale, behind)
    if layers is not None and half is not None:
        return run_perceptron(layers, x, half)
    out = mlp(x if behind else norm(x))
    out = out if dropout is None else dropout(out)
    return x + drop_path(_scaled(norm(out) if behind else out, scale))
