"""`attn_implementation="locant"`: attention of any transformers model that asks the AttentionInterface for it.

Models are not known by name here and nothing of them is replaced (`locant.accelerate` does that, and more): what they
hand over is q, k, v, a mask, and a bias that they have written out for every pair. A bias that depends on the
difference of places alone is read back into a table of that many numbers, and runs by the kernels for tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.attend import attention
from locant.cells import check_reach
from locant.checks import check_types
from locant.grid import Grid
from locant.masks import Causal, Mask, Padding, Pairs, Structure
from locant.positions.position import Bias


@check_types
def register(name: str = "locant") -> None:
    """Make `model.set_attn_implementation(name)` and `from_pretrained(..., attn_implementation=name)` mean Locant.

    Exact in q, k, v and the bias, as eager attention is but for rows that may attend to nothing, which give zeros here.
    Attention weights are not returned. Values are read to see what a bias is; while a graph is traced, and where it
    depends on more than a difference of places, transformers' own "sdpa" takes the call.

    Raises:
        ValueError: without transformers 4.48 or newer.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError:
        raise ValueError(
            "register needs transformers with its AttentionInterface and AttentionMaskInterface; got none. "
            "Run pip install -U transformers."
        ) from None
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)


@contextmanager
def interface_attention(model: Any) -> Iterator[bool]:
    """While this lasts, a model of transformers asks Locant for attention; whether it is one that asks at all."""
    asks = getattr(type(model), "_can_set_attn_implementation", None)
    if asks is None or not asks():
        yield False
        return
    register("locant")
    parts = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = [(config, config._attn_implementation) for config in parts.values()]
    try:
        model.set_attn_implementation("locant")
        yield True
    finally:
        for config, own in before:  # outer ones first: setting one sets those within it
            config._attn_implementation = own


class LineTable(Bias):
    """bias[head, i, j] = values[head, i - j + keys - 1] on a sequence of `keys`."""

    def __init__(self, values: Float[Tensor, "heads offsets"], keys: int) -> None:
        super().__init__()
        self.numbers, self.keys, self.heads = values, keys, values.shape[0]

    def at(self, offset: Tensor) -> Tensor:
        # offsets to which no pair belongs (more of one sign than of the other) have no number, and need none
        index = (offset[..., 0] + self.keys - 1).clamp(0, self.numbers.shape[1] - 1)
        return self.numbers[:, index]

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        own = Grid(max(self.keys, self.numbers.shape[1] - self.keys + 1))
        check_reach(type(self).__name__, own, grid, reach, mask, stretches=False)


def attend(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Float[Tensor, "batch_or_1 heads queries keys"] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch queries heads value_dim"], None]:
    """What transformers calls for a module's attention.

    Raises:
        ValueError: for logits that are capped, and sinks: no scheme here has them.
    """
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise ValueError(
                f"attn_implementation='locant' needs attention without `{name}`; got one in {type(module).__name__}. "
                "Use attn_implementation='eager' for this model."
            )
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask, position_bias = _part_mask(attention_mask, position_bias)
    table = None if position_bias is None else _table(position_bias)
    if position_bias is not None and table is None:
        return _by_sdpa(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal,
            position_bias=position_bias, **options,
        )  # fmt: skip
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = _mask(attention_mask, bool(causal) and query.shape[2] > 1)
    out = attention(
        query, key, value, grid=Grid(query.shape[2]), key_grid=Grid(key.shape[2]), position=table, mask=mask,
        scale=scaling, dropout=dropout,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def _by_sdpa(*args: Any, **options: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found: tuple[Tensor, None] = sdpa_attention_forward(*args, **options)
    return found


def _mask(allowed: Tensor | None, causal: bool) -> Mask | None:
    if allowed is None:
        return Causal() if causal else None
    if allowed.ndim == 4 and allowed.shape[1] == allowed.shape[2] == 1:
        return Padding(allowed[:, 0, 0])
    return Pairs(allowed)


def _part_mask(mask: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Who may attend, and what is added beside it, from a mask of numbers that are added to the logits."""
    allowed = mask > torch.finfo(mask.dtype).min / 2
    rest = mask.masked_fill(~allowed, 0)
    if torch.compiler.is_compiling() or bool(rest.any()):
        bias = rest if bias is None else bias + rest
    return allowed, bias


def _table(bias: Tensor) -> LineTable | None:
    """The bias as numbers per difference, if it is that: alike for all samples and along every diagonal."""
    if torch.compiler.is_compiling() or bias.ndim != 4 or 0 in bias.shape:
        return None
    rows = bias.detach()
    if not torch.equal(rows[..., 1:, 1:], rows[..., :-1, :-1]) or not torch.equal(rows, rows[:1].expand_as(rows)):
        return None
    # first row backwards, then first column: differences -(keys - 1) to queries - 1
    return LineTable(torch.cat([bias[0, :, 0].flip(-1), bias[0, :, 1:, 0]], dim=-1), bias.shape[-1])
