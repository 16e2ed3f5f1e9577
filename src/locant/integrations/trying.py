"""Whether a replacement agrees with the module's own methods: both run on the same random input, in float64.

Tried are classes whose source is not the one that was compared line by line, and classes known by their shape alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from locant.dispatch import tree_leaves
from locant.integrations.family import Family
from locant.integrations.replacing import deep_copy

AGREE = 1e-9  # of the largest number: float64 in two orders of summation is 1e-13 apart, another formula 1e-3 or more
ROUNDED = 1e-5  # the same where the module's own softmax rounds to float32


def disagreement(module: nn.Module, family: Family) -> str | None:
    """Why the replacement of `module` must not be used, as a sentence; None if both give the same numbers."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=gpus(module)):
            torch.manual_seed(0)
            own = deep_copy(module).to("cpu", torch.float64)
            own.eval()  # by itself: a class whose `train` gives nothing back is not lost (timm's LeViT and TinyViT)
            _draw_numbers(own)
            offer = family.offer(own)
            if isinstance(offer, str):
                return offer
            tried = offer.trial(own)
            calls = tried if isinstance(tried, list) else [tried]
            before = [own(*arguments) for arguments in calls]
            offer.replacement.put(own)
            after = [own(*arguments) for arguments in calls]
    except Exception as error:  # whatever a class of others does on input that we made up
        return f"it could not be tried on random input ({type(error).__name__}: {first_line(error)})"
    apart, size = difference(before, after)
    if apart <= (ROUNDED if family.rounds else AGREE) * size:
        return None
    return f"on random input it differs from its class's own forward by {apart:.1e} of {size:.1e}"


def gpus(module: nn.Module) -> list[torch.device]:
    """The GPUs that it lies on: a seed for the CPU is one for theirs as well, and their generators are to stay."""
    return sorted({x.device for x in module.state_dict().values() if x.is_cuda}, key=str)


def difference(before: Any, after: Any) -> tuple[float, float]:
    """The largest difference of two outputs, tensor by tensor, and the largest number; inf where they don't match."""
    ours, theirs = ([x for x in tree_leaves(y) if isinstance(x, Tensor)] for y in (after, before))
    if [x.shape for x in ours] != [x.shape for x in theirs] or not theirs:
        return float("inf"), 0.0
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True) if b.numel()]
    if any(not torch.equal(a.isfinite(), b.isfinite()) for a, b in pairs):
        return float("inf"), 0.0
    apart = max((float((a - b).nan_to_num(0, 0, 0).abs().max()) for a, b in pairs), default=0.0)
    size = max((float(b.nan_to_num(0, 0, 0).abs().max()) for _, b in pairs), default=0.0)
    return apart, size


def allowed_error(own_error: float, size: float, dtype: torch.dtype) -> float:
    """How far from float64 another way to compute may be: twice as far as the model's own, sums in another order and
    nothing else; and a few roundings of the largest number, where its own error is none by chance."""
    return 2 * own_error + 8 * torch.finfo(dtype).eps * size


def _draw_numbers(module: nn.Module) -> None:
    """Random numbers for all that is learned: a table of zeros would agree with any other."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0][:200]
