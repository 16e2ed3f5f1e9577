"""transformers' models of text: the encoders of T5, UMT5 and MPNet. Nothing of transformers is imported.

Layers share one table, which comes to them written out for every pair of tokens. Replaced is the stack, which tells its
layers where the table is; a layer that is told nothing runs its class's own forward, as do decoders, whose keys come
from a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from locant.grid import Grid
from locant.integrations.borrowed import BorrowedBuckets
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import attend_projected
from locant.masks import Mask, Padding


def _stack_forward(self: Any, *inputs: Any, **named: Any) -> Any:
    mask = inputs[1] if len(inputs) > 1 else named.get("attention_mask")
    weights = named.get("output_attentions", getattr(self.config, "output_attentions", False))
    padding = Padding(mask != 0) if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if not weights and (mask is None or padding is not None) and self.config._attn_implementation == "sdpa":
        named["locant"] = self._locant.position, padding
    return type(self).forward(self, *inputs, **named)


def _shared_forward(
    self: Any, hidden_states: Tensor, *inputs: Any, locant: tuple[BorrowedBuckets, Mask | None] | None = None,
    **named: Any,
) -> Any:  # fmt: skip
    if locant is None:
        return type(self).forward(self, hidden_states, *inputs, **named)
    return self.o(_attend(self, hidden_states, *locant)), None, None


def _own_forward(
    self: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, cache: Any = None,
    attention_mask: Tensor | None = None, **named: Any,
) -> Any:  # fmt: skip
    others = encoder_hidden_states is not None or cache is not None or attention_mask is not None
    if others or self.config._attn_implementation != "sdpa":
        return type(self).forward(self, hidden_states, encoder_hidden_states, cache, attention_mask, **named)
    return self.o(_attend(self, hidden_states, self._locant.position, None)), None


def compute_position_bias(self: Any, x: Tensor, position_ids: Tensor | None = None, num_buckets: int = 32) -> Any:
    """MPNet's layers get the table in place of the bias of every pair, which is made where one needs it."""
    if position_ids is not None or num_buckets != 32:
        return type(self).compute_position_bias(self, x, position_ids, num_buckets)
    return _Lent(self._locant.position, lambda: type(self).compute_position_bias(self, x))


class _Lent:
    """A table, and the bias of every pair that it stands for, made once for all layers of a call."""

    def __init__(self, position: BorrowedBuckets, dense: Callable[[], Tensor]) -> None:
        self.position, self._dense, self._made = position, dense, cast(Tensor | None, None)

    def dense(self) -> Tensor:
        if self._made is None:
            self._made = self._dense()
        return self._made


def _lent_forward(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, position_bias: Any = None,
    output_attentions: bool = False, **named: Any,
) -> Any:  # fmt: skip
    if not isinstance(position_bias, _Lent) or attention_mask is not None or output_attentions:
        bias = position_bias.dense() if isinstance(position_bias, _Lent) else position_bias
        return type(self).forward(self, hidden_states, attention_mask, bias, output_attentions, **named)
    projected = self.q(hidden_states), self.k(hidden_states), self.v(hidden_states)
    grid, heads, dropout = Grid(hidden_states.shape[1]), self.num_attention_heads, dropout_of(self.dropout)
    return (self.o(attend_projected(projected, grid, None, position_bias.position, heads, None, dropout)),)


for _method in (_stack_forward, _shared_forward, _own_forward, _lent_forward):
    _method.__name__ = "forward"


def _attend(attn: Any, x: Tensor, position: BorrowedBuckets, mask: Mask | None) -> Tensor:
    projected = attn.q(x), attn.k(x), attn.v(x)
    dropout = attn.dropout if attn.training else 0.0
    return attend_projected(projected, Grid(x.shape[1]), mask, position, attn.n_heads, attn.scaling, dropout)


_CACHED = "a decoder's keys come from a cache, and its own attention takes them from there"


def _stack(stack: nn.Module) -> Offer | str:
    module: Any = stack
    if module.is_decoder:
        return _CACHED
    paths = [f"block.{i}.layer.0.SelfAttention" for i in range(len(module.block))]
    if not paths or any("forward" in vars(module.get_submodule(path)) for path in paths):
        return "it has no layers, or the forward of one was replaced by others"
    return _offer(module, paths, module.block[0].layer[0].SelfAttention, _t5_bucket)


def _alone(attn: nn.Module) -> Offer | str:
    module: Any = attn
    if module.is_decoder or not module.has_relative_attention_bias:
        return _CACHED
    return _offer(module, [], module, _umt5_bucket)


def _mpnet(encoder: nn.Module) -> Offer | str:
    module: Any = encoder
    paths = [f"layer.{i}.attention.attn" for i in range(len(module.layer))]
    if not paths or any("forward" in vars(module.get_submodule(path)) for path in paths):
        return "it has no layers, or the forward of one was replaced by others"
    attn = module.get_submodule(paths[0])
    position = BorrowedBuckets(module, module.n_heads, _mpnet_bucket)
    methods: dict[str, Callable[..., Any]] = {f"{path}.forward": _lent_forward for path in paths}
    methods["compute_position_bias"] = compute_position_bias
    attended = Attended(module.n_heads, attn.attention_head_size, position)

    def trial(_: nn.Module) -> tuple[Any, ...]:
        return (torch.randn(2, 40, attn.q.in_features, dtype=torch.float64),)

    what = f"{module.relative_attention_bias.num_embeddings} buckets of offsets, {len(paths)} layers"
    return Offer(Replacement(methods, State(position=position)), what, trial, attended, tuple(paths))


def _offer(module: Any, paths: list[str], first: Any, bucket: Any) -> Offer | str:
    if first.config._attn_implementation != "sdpa":
        return 'its attention hands out weights; call model.set_attn_implementation("sdpa") first'
    position = BorrowedBuckets(first, first.n_heads, bucket)
    methods = {"forward": _stack_forward if paths else _own_forward}
    methods.update({f"{path}.forward": _shared_forward for path in paths})
    attended = Attended(first.n_heads, first.key_value_proj_dim, position)

    def trial(stack: nn.Module) -> tuple[Any, ...]:
        if not paths:
            return (torch.randn(2, 40, first.d_model, dtype=torch.float64),)
        ids = torch.arange(80).reshape(2, 40) % first.config.vocab_size
        return ids, (torch.arange(40) < torch.tensor([[40], [31]])).long()

    what = f"{first.relative_attention_num_buckets} buckets of offsets" + (f", {len(paths)} layers" if paths else "")
    return Offer(Replacement(methods, State(position=position)), what, trial, attended, tuple(paths))


def _t5_bucket(owner: Any, apart: Tensor) -> Tensor:
    count, furthest = owner.relative_attention_num_buckets, owner.relative_attention_max_distance
    return owner._relative_position_bucket(apart, bidirectional=True, num_buckets=count, max_distance=furthest)


def _umt5_bucket(owner: Any, apart: Tensor) -> Tensor:
    return owner._relative_position_bucket(apart)


def _mpnet_bucket(owner: Any, apart: Tensor) -> Tensor:
    return owner.relative_position_bucket(apart, num_buckets=32)


_T5, _UMT5 = "transformers.models.t5.modeling_t5", "transformers.models.umt5.modeling_umt5"
_MPNET = "transformers.models.mpnet.modeling_mpnet"

FAMILIES = (
    Family(
        "attention",
        (f"{_T5}.T5Stack",),
        ("forward", "T5Attention", "T5LayerSelfAttention", "T5Block"),
        _stack,
        frozenset({"aa309f1f0ceaf2e8"}),
    ),
    Family(
        "attention",
        (f"{_UMT5}.UMT5Attention",),
        ("forward", "_relative_position_bucket", "compute_bias"),
        _alone,
        frozenset({"03727ed3c29f6bae"}),
    ),
    Family(
        "attention",
        (f"{_MPNET}.MPNetEncoder",),
        ("forward", "compute_position_bias", "relative_position_bucket", "MPNetSelfAttention", "MPNetAttention"),
        _mpnet,
        frozenset({"74bc30bf2dba9db5"}),
    ),
)  # 5.24.0
