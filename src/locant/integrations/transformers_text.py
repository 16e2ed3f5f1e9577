"""transformers' models of text: T5, and the encoders of UMT5 and MPNet. Nothing of transformers is imported.

Layers share one table, which comes to them written out for every pair of tokens. Replaced is the stack, which tells its
layers where the table is; a layer that is told nothing runs its class's own forward. The keys of a decoder may come
from a cache that grows with them; another one, whose keys have places of their own, is left to the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from locant.attend import attention
from locant.grid import Grid
from locant.integrations.borrowed import BorrowedBuckets
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.halves import JOINED, conclude, half_of, project, residual_perceptron
from locant.integrations.layers import is_packed
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import attend_projected
from locant.masks import Causal, Mask, Padding


class _Told(NamedTuple):
    """What a stack tells its layers of a call: the table, and which keys are there, of its own tokens and of others."""

    position: BorrowedBuckets
    padding: Mask | None
    others: Mask | None


def _stack_forward(self: Any, *inputs: Any, **named: Any) -> Any:
    own, others = (
        inputs[place] if len(inputs) > place else named.get(name)
        for place, name in ((1, "attention_mask"), (3, "encoder_attention_mask"))
    )
    cache = inputs[5] if len(inputs) > 5 else named.get("cache", named.get("past_key_values"))
    weights = named.get("output_attentions", getattr(self.config, "output_attentions", False))
    # a row of a decoder that sees padding alone is what the library makes of it: its own forward runs on its padding
    known = own is None if self.is_decoder else own is None or _is_padding(own)
    known = known and (others is None or _is_padding(others)) and (cache is None or grows(cache))
    if known and not weights and self.config._attn_implementation == "sdpa":
        own, others = (None if mask is None else Padding(mask != 0) for mask in (own, others))
        named["locant"] = _Told(self._locant.position, own, others)
    return type(self).forward(self, *inputs, **named)


def _is_padding(mask: object) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 2


def grows(cache: Any) -> bool:
    """Whether a cache holds the keys of all tokens so far and nothing else: their number says where they are."""
    parts = (cache.self_attention_cache, cache.cross_attention_cache) if hasattr(cache, "is_updated") else (cache,)
    return all(type(part).__name__ == "DynamicCache" for part in parts)


def with_cache(cache: Any, named: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, a cache among them if there is one: by its older name it may be there already."""
    return named if cache is None else {**named, "cache": cache}


def _shared_forward(
    self: Any, hidden_states: Tensor, mask: Tensor | None = None, key_value_states: Tensor | None = None,
    position_bias: Tensor | None = None, cache: Any = None, *, locant: _Told | None = None, **named: Any,
) -> Any:  # fmt: skip
    if locant is None:
        return type(self).forward(
            self, hidden_states, mask, key_value_states, position_bias, **with_cache(cache, named)
        )
    if key_value_states is None and not self.is_decoder:
        return self.o(_attend(self, hidden_states, locant.position, locant.padding)), None, None
    # 1 queries, and the keys so far
    q = _heads(self.q(hidden_states), self.n_heads)
    k, v = _keys(self, hidden_states if key_value_states is None else key_value_states, key_value_states, cache)
    keys, queries = Grid(k.shape[2]), Grid(q.shape[2])
    # 2 of the decoder's own tokens those before, of another model's all that are there
    position, seen = (None, locant.others)
    if key_value_states is None:
        queries, position, seen = keys[keys.tokens - queries.tokens :], locant.position, Causal()
    dropout = self.dropout if self.training else 0.0
    out = attention(
        q, k, v, grid=queries, key_grid=keys, position=position, mask=seen, scale=self.scaling, dropout=dropout
    )
    return self.o(out.transpose(1, 2).flatten(2)), None, None


def _joined_forward(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, position_bias: Tensor | None = None,
    cache: Any = None, **named: Any,
) -> Any:  # fmt: skip
    """A layer of an encoder's attention, its norm and its sum with it, where nothing of it has to be called."""
    attn, told = self.SelfAttention, cast(Any, named.get("locant"))
    half, layers = None, (attn.q, attn.k, attn.v, attn.o)
    if told is not None and not attn.is_decoder and all(map(is_packed, layers)):
        half = half_of(hidden_states, self.layer_norm, (self.dropout,), (attn, *layers))
    if half is None:
        return type(self).forward(self, hidden_states, attention_mask, position_bias, **with_cache(cache, named))
    projected = [project(layer, hidden_states, half) for layer in layers[:3]]
    grid = Grid(hidden_states.shape[1])
    out = attend_projected(projected, grid, told.padding, told.position, attn.n_heads, attn.scaling, 0.0)
    return conclude(attn.o, None, out, half), None, None


def _fed_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return residual_perceptron(hidden_states, self.layer_norm, self.DenseReluDense, self.dropout)


def _keys(attn: Any, x: Tensor, others: Tensor | None, cache: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of x behind those of a cache; of another model's tokens, which stay, those in it alone."""
    pair = hasattr(cache, "is_updated")
    own = cache if not pair else cache.self_attention_cache if others is None else cache.cross_attention_cache
    if pair and others is not None and cache.is_updated.get(attn.layer_idx):
        kept = own.layers[attn.layer_idx]
        return kept.keys, kept.values
    k, v = (_heads(layer(x), attn.n_heads) for layer in (attn.k, attn.v))
    if own is not None:
        k, v = own.update(k, v, attn.layer_idx)
        if pair and others is not None:
            cache.is_updated[attn.layer_idx] = True
    return k, v


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def _own_forward(
    self: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, cache: Any = None,
    attention_mask: Tensor | None = None, **named: Any,
) -> Any:  # fmt: skip
    others = encoder_hidden_states is not None or cache is not None or attention_mask is not None
    if others or self.config._attn_implementation != "sdpa":
        return type(self).forward(
            self, hidden_states, encoder_hidden_states, attention_mask=attention_mask, **with_cache(cache, named)
        )
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


for _method in (_stack_forward, _shared_forward, _joined_forward, _fed_forward, _own_forward, _lent_forward):
    _method.__name__ = "forward"


def _attend(attn: Any, x: Tensor, position: BorrowedBuckets, mask: Mask | None) -> Tensor:
    projected = attn.q(x), attn.k(x), attn.v(x)
    dropout = attn.dropout if attn.training else 0.0
    return attend_projected(projected, Grid(x.shape[1]), mask, position, attn.n_heads, attn.scaling, dropout)


_CACHED = "a decoder's mask comes to it as numbers for every pair, and its own attention takes it from there"


def _stack(stack: nn.Module) -> Offer | str:
    module: Any = stack
    attns = ["0.SelfAttention"] + ["1.EncDecAttention"] * module.is_decoder
    paths = [f"block.{i}.layer.{attn}" for i in range(len(module.block)) for attn in attns]
    if not paths or any("forward" in vars(module.get_submodule(path)) for path in paths):
        return "it has no layers, or the forward of one was replaced by others"
    return _offer(module, paths, module.block[0].layer[0].SelfAttention, _t5_bucket)


def _feeds(layer: nn.Module) -> Offer:
    module: Any = layer
    trial = (torch.randn(2, 40, len(module.layer_norm.weight), dtype=torch.float64),)
    return Offer(Replacement({"forward": _fed_forward}), JOINED, lambda _: trial)


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
    owners = [path.removesuffix(".SelfAttention") for path in paths if path.endswith(".SelfAttention")]
    own = [path for path in owners if "forward" not in vars(module.get_submodule(path))]
    methods.update({f"{path}.forward": _joined_forward for path in own})
    attended = Attended(first.n_heads, first.key_value_proj_dim, position)

    def trial(stack: nn.Module) -> tuple[Any, ...]:
        if not paths:
            return (torch.randn(2, 40, first.d_model, dtype=torch.float64),)
        ids = torch.arange(80).reshape(2, 40) % first.config.vocab_size
        there = (torch.arange(40) < torch.tensor([[40], [31]])).long()
        return (ids, None, torch.randn(2, 40, first.d_model).double(), there) if first.is_decoder else (ids, there)

    layers = f", {len(module.block)} layers" if paths else ""
    what = f"{first.relative_attention_num_buckets} buckets of offsets{layers}" + ", causal" * first.is_decoder
    return Offer(Replacement(methods, State(position=position)), what, trial, attended, tuple(paths))


def _t5_bucket(owner: Any, apart: Tensor) -> Tensor:
    count, furthest = owner.relative_attention_num_buckets, owner.relative_attention_max_distance
    return owner._relative_position_bucket(apart, not owner.is_decoder, num_buckets=count, max_distance=furthest)


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
    Family("block", (f"{_T5}.T5LayerFF",), ("forward",), _feeds, frozenset({"fad1fde0acba61c3"})),
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
