"""Linear layers and perceptrons of any library: their products by packed weights (locant.products).

A plain nn.Linear gets another forward, so that whatever calls it gains: blocks of every model, and the base layer
under an adapter (LoRA). A perceptron is known by its class. It is done a chunk of rows at a time, so that its hidden
layer is never formed, wherever its layers are plain ones and nothing wants a gradient; everywhere else its class's own
forward runs, on linear layers that are packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locant.dispatch import hooks_of
from locant.integrations.family import Family, Offer, class_name, derived_tensors
from locant.integrations.replacing import Replacement, State, runs, state_of
from locant.products import Norm, linear, perceptron

Layers = tuple[Any, str, Any]  # of a perceptron: the first layer, the name of its activation, and the second


def _linear_forward(self: Any, input: Tensor) -> Tensor:
    return linear(input, self.weight, self.bias, keep=not self.training)


_linear_forward.__name__ = "forward"
LINEAR = Replacement({"forward": _linear_forward})
RECOMPUTED = Replacement({"forward": _linear_forward}, State(recompute=True))  # as the first layer of a perceptron


def recomputes(layer: nn.Module) -> bool:
    """Whether a perceptron that begins with this layer keeps nothing of its hidden layer for backward."""
    return bool(getattr(state_of(layer), "recompute", False))


def reason_not_to_pack(layer: nn.Module) -> str | None:
    """Why the product of a linear layer stays as it is, as a sentence; None if its weight is packed."""
    if type(layer) is not nn.Linear:
        return "only a plain nn.Linear is packed; this class does more than its weight says"
    if type(layer.weight) not in (Tensor, nn.Parameter) or "forward" in vars(layer):
        return "its weight is no plain tensor, or its forward was replaced by others: it goes on being called"
    if layer.weight.device.type not in ("cpu", "meta"):
        return f"packed products are for CPUs, and its weight is on {layer.weight.device}"
    if "weight" in derived_tensors(layer):
        return "its weight is made anew before each call (pruning, a norm of it): no packed copy would serve twice"
    return None


def _is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer does what its weight says: a wrapper that came later (LoRA), or a hook, is called."""
    plain = type(layer) is nn.Linear and type(layer.weight) in (Tensor, nn.Parameter)
    return plain and is_unhooked(layer)


def is_unhooked(module: nn.Module) -> bool:
    """Whether torch says that it calls nothing beside the forward; where it does not tell, a module is called."""
    return hooks_of(module) == []


def _are_plain(one: Any, two: Any) -> bool:
    """Of one dtype, too: T5 keeps its second layer in float32 beside halves, and brings the hidden layer to it."""
    return _is_plain(one) and _is_plain(two) and one.weight.dtype == two.weight.dtype


_GELUS = {"GELUActivation": "gelu", "NewGELUActivation": "gelu_tanh", "GELUTanh": "gelu_tanh"}  # of transformers


def is_packed(layer: nn.Module) -> bool:
    """Whether a linear layer is a plain one whose product was replaced by `LINEAR`, and does nothing else."""
    return _is_plain(layer) and runs(layer, "forward", _linear_forward)


def linear_with(layer: Any, x: Tensor, bias: Tensor | None, norm: Norm | None = None) -> Tensor:
    """The layer with a bias of its owner in place of its own; layers that are not plain are called.

    `norm` is one of x in front, for packed layers.
    """
    if is_packed(layer):
        return linear(x, layer.weight, bias, keep=not layer.training, norm=norm)
    if _is_plain(layer):
        return F.linear(x, layer.weight, bias)
    own, out = getattr(layer, "bias", None), layer(x)
    if own is bias:
        return out
    out = out if own is None else out - own
    return out if bias is None else out + bias


def layers_of(one: Any, activation: nn.Module, two: Any) -> Layers | None:
    """Both layers of a perceptron and its activation, where a product may do all of it; else None."""
    act = _activation(activation)
    return None if act is None or not is_unhooked(activation) or not _are_plain(one, two) else (one, act, two)


def parts_of(mlp: Any) -> Layers | None:
    """The same of a perceptron that was replaced, none of whose parts has to be called."""
    names = getattr(state_of(mlp), "parts", None)
    return None if names is None or calls_parts(mlp) else layers_of(*(getattr(mlp, name) for name in names))


def calls_parts(module: nn.Module) -> bool:
    """Whether its parts have to be called: a dropout in it is at work now, or somebody hooked into one."""
    parts = [*module.children()]
    at_work = module.training and any(getattr(part, "p", 0) and "Drop" in type(part).__name__ for part in parts)
    return at_work or not all(map(is_unhooked, parts))


def _activation(module: object) -> str | None:
    """The name by which a product applies it, or None."""
    name = type(module).__name__
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if class_name(type(module)) == "timm.layers.activations.GELU":
        return "gelu"
    if name in _GELUS:
        return _GELUS[name]
    return "relu" if isinstance(module, nn.ReLU) else "silu" if isinstance(module, nn.SiLU) else None


def perceptron_family(names: tuple[str, ...], first: str, activation: str, second: str, *known: str) -> Family:
    """Perceptrons of one source, by the names of their parts; dropouts between them do nothing in evaluation."""

    def forward(self: Any, *inputs: Any) -> Tensor:
        one, two, act = getattr(self, first), getattr(self, second), _activation(getattr(self, activation))
        if act is None or not _are_plain(one, two) or calls_parts(self):
            return type(self).forward(self, *inputs)
        (x,) = inputs
        return perceptron(
            x, one.weight, one.bias, two.weight, two.bias, act, keep=not self.training, recompute=recomputes(one)
        )

    def offer(module: nn.Module) -> Offer | str:
        one, two = getattr(module, first, None), getattr(module, second, None)
        if not (isinstance(one, nn.Linear) and isinstance(two, nn.Linear)):
            return "its layers are no linear ones"
        if _activation(getattr(module, activation)) is None:
            return f"its activation, {type(getattr(module, activation)).__name__}, is not known to the products"
        foreign = [w for w in (one.weight, two.weight) if type(w).__module__.split(".")[0] != "torch"]
        if foreign:  # torch's own, a DTensor, may be a plain tensor by the time of the call (FSDP2)
            return f"a weight of its layers is no plain tensor ({type(foreign[0]).__name__}): they go on being called"
        if one.weight.device.type not in ("cpu", "meta"):
            return f"packed products are for CPUs, and its weights are on {one.weight.device}"
        if not isinstance(getattr(module, "norm", nn.Identity()), nn.Identity):
            return "it has a norm between its layers"
        sizes = f"{one.in_features} → {one.out_features} → {two.out_features}"
        state = State(parts=(first, activation, second))
        return Offer(Replacement({"forward": forward}, state), sizes, _rows_for(first))

    return Family("perceptron", names, ("forward",), offer, frozenset(known))


def _rows_for(first: str) -> Callable[[nn.Module], tuple[Any, ...]]:
    return lambda module: (torch.randn(2, 40, getattr(module, first).in_features, dtype=torch.float64),)


_TRANSFORMERS = tuple(
    f"transformers.models.{name}MLP"
    for name in (
        "swin.modeling_swin.Swin", "beit.modeling_beit.Beit", "vit.modeling_vit.ViT", "deit.modeling_deit.DeiT",
        "dinov2.modeling_dinov2.Dinov2", "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegisters",
        "vit_mae.modeling_vit_mae.ViTMAE", "vit_msn.modeling_vit_msn.ViTMSN", "ijepa.modeling_ijepa.IJepa",
        "vivit.modeling_vivit.Vivit", "audio_spectrogram_transformer.modeling_audio_spectrogram_transformer.AST",
        "siglip.modeling_siglip.Siglip", "clip.modeling_clip.CLIP",
    )
)  # fmt: skip

_T5 = tuple(f"transformers.models.{name}DenseActDense" for name in ("t5.modeling_t5.T5", "umt5.modeling_umt5.UMT5"))

PERCEPTRONS = tuple(
    perceptron_family(*names)
    for names in (
        (("timm.layers.mlp.Mlp",), "fc1", "act", "fc2", "f2fe57510e1eef51"),
        (("torchvision.ops.misc.MLP",), "0", "1", "3", "9038dc4905c5872a"),
        (_TRANSFORMERS, "fc1", "activation_fn", "fc2", "2097f227af29a742"),
        (_T5, "wi", "act", "wo", "8426faba0772b96c"),
        (("monai.networks.blocks.mlp.MLPBlock",), "linear1", "fn", "linear2", "765929a4b820ea3b"),
        (("locant.nn.perceptron.Perceptron",), "fc1", "activation", "fc2", "764e6221e212ae7b"),
    )
)
