"""From channels to heads and back."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def split_heads(x: Float[Tensor, "batch tokens channels"], heads: int) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Head h has channels h · head_dim and on."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def split_parts(
    x: Float[Tensor, "batch tokens channels"], parts: int, heads: int
) -> tuple[Float[Tensor, "batch heads tokens head_dim"], ...]:
    """The same of each part, channels laid out [part][head][head_dim], as one projection to q, k and v gives them."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch tokens channels"]:
    """The inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)
