"""Linear maps that others may wrap, hook, quantise or shard: called, unless their weight alone says what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from locant.dispatch import hooks_of

Hook = TypeVar("Hook", bound=Callable[..., Any])


def bare_weight(module: nn.Module) -> Tensor | None:
    """The weight that `module` works with, if calling it does nothing else; None where it has to be called.

    None for wrappers and subclasses of torch's classes (LoRA, parametrizations, FSDP2 per layer, quantised layers), for
    a `forward` of the instance (accelerate), hooks of any kind, those on all modules included (DeepSpeed, tensor
    parallelism, profilers), and weights that are tensors of another class (DTensor, torchao). Only such a module
    itself knows what dtype and device it takes.
    """
    of_torch = type(module).__module__.startswith("torch.nn.modules.")
    if not of_torch or "forward" in module.__dict__ or _has_hooks(module):
        return None
    weight = module.weight
    return weight if isinstance(weight, Tensor) and not hasattr(type(weight), "__tensor_flatten__") else None


def project_rows(linear: nn.Module, x: Float[Tensor, "*batch dim"], rows: slice) -> Float[Tensor, "*batch rows"]:
    """`linear(x)[..., rows]`. Only a bare linear saves the products that are cut away."""
    weight = bare_weight(linear)
    if weight is None:
        return linear(x)[..., rows]
    return F.linear(x, weight[rows], linear.bias[rows] if isinstance(linear.bias, Tensor) else None)


def input_channels(linear: nn.Module, x: Tensor) -> int:
    """What `linear` takes. One that does not say (a wrapper, or one that is lazy) takes x whatever it is."""
    if isinstance(linear, nn.LazyLinear) and not is_lazy(linear.weight):  # loaded, and not yet called
        return linear.weight.shape[-1]
    return getattr(linear, "in_features", 0) or (x.shape[-1] if x.ndim else 0)


def only_watches(hook: Hook) -> Hook:
    """`hook`, marked as one that neither changes anything nor has to be called: a bare module stays bare under it."""
    vars(hook)["only_watches"] = True
    return hook


def _has_hooks(module: nn.Module) -> bool:
    """True also where torch does not tell: then every module is called."""
    hooks = hooks_of(module)
    return hooks is None or any(not hasattr(hook, "only_watches") for hook in hooks)
