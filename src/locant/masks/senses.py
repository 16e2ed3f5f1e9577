"""How published masks are written down in numbers, read as bool: True = may take part.

What the numbers are is asked of the tensor itself, so it is an operator of torch's: compiled graphs call it like any
other and raise the same sentence, and tensors without numbers (meta, fake) pass. An exported program is made of torch's
own operators alone, and asserts instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from locant.checks import check_tensor, check_whole
from locant.dispatch import assert_in_graph, is_exporting

Rule = Callable[..., tuple[Tensor, Tensor]]  # from the numbers to what is read, and to where they may be read so
BLOCKED = -100.0  # Swin writes "blocked" as this finite number; BERT uses -1e4, others -1e9 or -inf: all lie below
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # dtypes that count


def read_zeros_and_ones(owner: str, mask: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """1 or True as True, 0 as False. Raises ValueError for other numbers, and for what is being learned."""
    check_tensor(owner, "mask", mask, "a tensor of zeros and ones")
    _check_numbers(owner, mask)
    return mask if mask.dtype == torch.bool else _read("zeros_and_ones", mask, owner)


def read_additive(owner: str, mask: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """0 as True, -100 or less as False. Raises ValueError for numbers between, and for what is being learned."""
    check_tensor(owner, "mask", mask, "a tensor that is added to the logits")
    _check_numbers(owner, mask)
    if mask.dtype == torch.bool:
        raise ValueError(
            f"{owner} needs a `mask` of numbers that are added to the logits, 0 = free; got a bool tensor of shape "
            f"{list(mask.shape)}. Say what True means: Pairs.from_kept or Padding(...) if it may take part, "
            "Pairs.from_blocked or Padding.from_key_padding_mask if not."
        )
    return _read("additive", mask, owner)


def read_lengths(owner: str, lengths: Shaped[Tensor, "*shape"], count: int, name: str) -> Bool[Tensor, "*shape count"]:
    """True for the first `lengths[...]` of `count`. Raises ValueError for what is no length from 0 to `count`."""
    check_tensor(owner, "lengths", lengths, "a tensor of whole numbers")
    check_whole(owner, name, count, least=0, advice="Give the number of keys as a plain int.")
    if lengths.dtype not in WHOLE:
        raise ValueError(
            f"{owner} needs whole numbers as `lengths`; got {lengths.dtype} of shape {list(lengths.shape)}. "
            "Count tokens: lengths.long() if these are counts; a mask of zeros and ones is from_attention_mask."
        )
    return _read("first", lengths, count, owner)


def _check_numbers(owner: str, mask: Tensor) -> None:
    """Real, and without a gradient: what asks for one is a bias, though it may be all zeros when training starts."""
    if mask.is_complex():
        raise ValueError(
            f"{owner} needs a `mask` of real numbers; got {mask.dtype} of shape {list(mask.shape)}. Pass mask.real."
        )
    if mask.requires_grad:
        raise ValueError(
            f"{owner} needs a `mask` without a gradient, which a mask cannot pass on; got one that requires grad, of "
            f"shape {list(mask.shape)}. A bias that is learned is a position (RelativeTable); if this is a mask after "
            "all, pass mask.detach()."
        )


def _zeros_and_ones(mask: Tensor) -> tuple[Tensor, Tensor]:
    kept = mask != 0
    return kept, kept == mask


def _additive(mask: Tensor) -> tuple[Tensor, Tensor]:
    free = mask == 0
    return free, free | (mask <= BLOCKED)


def _first(lengths: Tensor, count: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(count, device=lengths.device)
    return places < lengths[..., None], (lengths >= 0) & (lengths <= count)


def _of_zeros_and_ones(mask: Tensor, owner: str, example: str) -> str:
    return (
        f"{owner} needs zeros and ones; the mask ({mask.dtype}) holds other numbers{example}. "
        "If it is added to the logits, use from_additive."
    )


def _of_additive(mask: Tensor, owner: str, example: str) -> str:
    return (
        "an additive mask needs zeros (free) and numbers of -100 or less (blocked); "
        f"it holds others{example}. Numbers between are a bias, not a mask."
    )


def _of_first(lengths: Tensor, count: int, owner: str, example: str) -> str:
    return (
        f"{owner} needs `lengths` from 0 to {count}, the number of keys; it holds others{example}. "
        "Cut the lengths, or give as many keys as the longest has."
    )


# of each operator its arguments, the rule that reads it, and what is wrong where the rule does not hold
SENSES: dict[str, tuple[str, Rule, Callable[..., str]]] = {
    "zeros_and_ones": ("Tensor mask", _zeros_and_ones, _of_zeros_and_ones),
    "additive": ("Tensor mask", _additive, _of_additive),
    "first": ("Tensor lengths, SymInt count", _first, _of_first),
}


def _read(name: str, *given: Any) -> Tensor:
    """The operator `name`; in a program that is exported, the same in torch's own operators."""
    if not is_exporting():
        return getattr(torch.ops.locant, name)(*given)
    _, rule, sentence = SENSES[name]
    found, fine = rule(*given[:-1])
    assert_in_graph(fine.all(), sentence(*given, ""))
    return found


def _define(name: str) -> None:
    """The operator locant::`name`: numbers and the name of who asks; bool, or a ValueError."""
    arguments, rule, sentence = SENSES[name]

    def run(*given: Any) -> Tensor:
        found, fine = rule(*given[:-1])
        if not bool(fine.all()):
            raise ValueError(sentence(*given, f", such as {given[0][~fine][0].item():.4g}"))
        return found.contiguous()

    def fake(*given: Any) -> Tensor:
        return torch.empty_like(rule(*given[:-1])[0], memory_format=torch.contiguous_format)

    def batched(info: Any, dims: tuple[int | None, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        assert dims[0] is not None, "the tensor is all that can be batched"
        return getattr(torch.ops.locant, name)(x.movedim(dims[0], 0), *rest), 0

    # it waits for the device to answer, which a CUDA graph cannot hold
    _LIBRARY.define(f"{name}({arguments}, str owner) -> Tensor", tags=(torch.Tag.cudagraph_unsafe,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"locant::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"locant::{name}", batched, lib=_LIBRARY)


_LIBRARY = torch.library.Library("locant", "FRAGMENT")
for _name in SENSES:
    _define(_name)
