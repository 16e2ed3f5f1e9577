"""Checks of arguments that many share: a ValueError of what was needed, what came and what to do, or nothing.

Nothing is coerced: True is no whole number, 4.0 is none, and an array is no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def is_whole(value: object) -> bool:
    """A plain int, or the size that a graph leaves open."""
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A plain int or float that is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(
    owner: str, name: str, value: object, *, least: int | None = 1, most: int | None = None, advice: str = ""
) -> None:
    """A whole number, from `least` to `most`."""
    if is_whole(value):
        assert isinstance(value, int | torch.SymInt)
        if (least is None or value >= least) and (most is None or value <= most):
            return
    bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
    raise ValueError(
        f"{owner} needs `{name}` as a whole number{bounds}; got {description(value)}. {advice or 'Pass a plain int.'}"
    )


def check_wholes(
    owner: str, name: str, value: object, *, count: int | None = None, least: int | None = 1, advice: str = ""
) -> None:
    """A tuple (or list) of whole numbers, `count` of them."""
    if (
        isinstance(value, tuple | list)
        and count in (None, len(value))
        and all(is_whole(n) and (least is None or n >= least) for n in value)
    ):
        return
    many = "" if count is None else f"{count} "
    bound = "" if least is None else f" of at least {least}"
    raise ValueError(
        f"{owner} needs `{name}` as a tuple of {many}whole numbers{bound}; got {description(value)}. "
        f"{advice or 'Pass plain ints.'}"
    )


def check_number(
    owner: str,
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    advice: str = "",
) -> None:
    """A finite number between bounds: `least` and `most` belong to them, `above` and `below` do not."""
    if is_number(value):
        assert isinstance(value, int | float)
        low = (least is None or value >= least) and (above is None or value > above)
        if low and (below is None or value < below) and (most is None or value <= most):
            return
    words = {"of at least": least, "above": above, "below": below, "of at most": most}
    bounds = " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)
    raise ValueError(
        f"{owner} needs `{name}` as a number{bounds and ' ' + bounds}; got {description(value)}. "
        f"{advice or 'Pass a plain float.'}"
    )


def check_flag(owner: str, name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{owner} needs `{name}` as True or False; got {description(value)}. Pass one of the two.")


def check_choice(owner: str, name: str, value: object, choices: Sequence[str], advice: str = "") -> None:
    """One of these words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{owner} needs `{name}` out of {', '.join(map(repr, choices))}; got {description(value)}. "
            f"{advice or 'Name one of them.'}"
        )


def check_tensor(owner: str, name: str, value: object, needed: str = "a tensor") -> None:
    """A torch tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{owner} needs `{name}` as {needed}; got {description(value)}. Convert it first: torch.as_tensor(...)."
        )


def description(value: object) -> str:
    """What came, in a few words: a tensor by dtype and shape, a class by its name, what is long by its type."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value)
    if kind.__module__.split(".")[0] == "numpy":
        return f"numpy's {kind.__name__} of shape {list(getattr(value, 'shape', ()))}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 and not text.startswith("<") else f"{kind.__name__} {text[:40]}…"
