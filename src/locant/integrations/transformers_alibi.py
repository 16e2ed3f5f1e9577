"""transformers' Bloom and MPT: order, and ALiBi. Nothing of transformers is imported.

ALiBi and the mask come to a layer as numbers for every pair, or for every key. Replaced is the model's loop, which
tells its layers what they stand for. Bloom counts places along the mask, MPT along the keys, and both add a number that
a row has in common: where no padding stands before a token they agree with ALiBi of the distance.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locant.attend import attention
from locant.grid import Grid
from locant.integrations.borrowed import BorrowedSlopes
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.replacing import Replacement, State
from locant.integrations.transformers_text import grows, with_cache
from locant.masks import Causal, Mask, Padding


class _Names(NamedTuple):
    """What a model calls its parts: the path of the table of words, the layers, their attention, the argument that
    brings its bias, the last norm, and the option that says for how many tokens there is a bias."""

    embed: tuple[str, ...]
    layers: str
    attn: str
    bias: str
    norm: str
    most: str


_BLOOM_NAMES = _Names(("word_embeddings", "word_embeddings_layernorm"), "h", "self_attention", "alibi", "ln_f", "")
_MPT_NAMES = _Names(("wte",), "blocks", "attn", "position_bias", "norm_f", "max_seq_len")


class _Told(NamedTuple):
    """What the loop tells its layers of a call."""

    position: BorrowedSlopes
    mask: Mask


def _forward(
    self: Any, input_ids: Tensor | None = None, cache: Any = None, attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None, use_cache: bool | None = None, output_attentions: bool | None = None,
    output_hidden_states: bool | None = None, return_dict: bool | None = None, **named: Any,
) -> Any:  # fmt: skip
    names, config = self._locant.names, self.config
    # 1 what this loop does not do, and padding before tokens, whose rows see nothing: the class's own
    more = output_attentions or config.output_attentions or output_hidden_states or config.output_hidden_states
    more = more or named or (self.gradient_checkpointing and self.training)
    if more or not _is_known(self, input_ids, cache, attention_mask, inputs_embeds):
        given = {
            "input_ids": input_ids, "cache": cache, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds,
            "use_cache": use_cache, "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states, "return_dict": return_dict,
        }  # fmt: skip
        return type(self).forward(self, **{name: x for name, x in given.items() if x is not None}, **named)
    # 2 the loop
    if cache is None and (config.use_cache if use_cache is None else use_cache):
        cache = sys.modules[type(self).__module__].DynamicCache(config=config)
    x = inputs_embeds
    for name in names.embed[x is not None :]:
        x = getattr(self, name)(input_ids if x is None else x)
    told = _Told(self._locant.position, Causal() if attention_mask is None else Causal() & Padding(attention_mask != 0))
    for layer in getattr(self, names.layers):
        x = layer(x, layer_past=cache, attention_mask=None, **{names.bias: told})[0]
    x = getattr(self, names.norm)(x)
    if not (config.return_dict if return_dict is None else return_dict):
        return (x,) if cache is None else (x, cache)
    output = sys.modules[type(self).__module__].BaseModelOutputWithPastAndCrossAttentions
    return output(last_hidden_state=x, cache=cache)


def _is_known(self: Any, ids: Tensor | None, cache: Any, mask: Any, embeds: Tensor | None) -> bool:
    """Whether padding, if there is any, is behind all tokens, and a cache holds what came before. A graph can't ask."""
    given = ids if embeds is None else embeds
    if given is None or (ids is not None and embeds is not None) or not (cache is None or grows(cache)):
        return False
    keys = given.shape[1] + (0 if cache is None else cache.get_seq_length())
    if keys > getattr(self.config, self._locant.names.most, keys):
        return False
    if mask is None:
        return True
    if torch.compiler.is_compiling() or not isinstance(mask, Tensor) or mask.is_meta or mask.shape[1:] != (keys,):
        return False
    there = mask.to(torch.int8)
    return bool((there == mask).all() and (there[:, 0] == 1).all() and (there[:, 1:] <= there[:, :-1]).all())


def _bloom_attention(
    self: Any, hidden_states: Tensor, residual: Tensor, alibi: Any, attention_mask: Tensor | None,
    layer_past: Any = None, use_cache: bool = False, output_attentions: bool = False, **named: Any,
) -> Any:  # fmt: skip
    if not isinstance(alibi, _Told):
        return type(self).forward(
            self, hidden_states, residual, alibi, attention_mask, layer_past, use_cache, output_attentions, **named
        )
    qkv = self.query_key_value(hidden_states).unflatten(-1, (self.num_heads, 3, self.head_dim))
    parts = qkv.permute(3, 0, 2, 1, 4).unbind(0)
    out = _attend(self, parts, layer_past, alibi, self.inv_norm_factor, dropout_of(self.attention_dropout))
    return residual + F.dropout(self.dense(out), self.hidden_dropout, self.training), None


def _mpt_attention(
    self: Any, hidden_states: Tensor, position_bias: Any, cache: Any = None, attention_mask: Tensor | None = None,
    **named: Any,
) -> Any:  # fmt: skip
    if not isinstance(position_bias, _Told):
        return type(self).forward(
            self, hidden_states, position_bias, attention_mask=attention_mask, **with_cache(cache, named)
        )
    qkv = self.Wqkv(hidden_states)
    if self.clip_qkv:
        qkv = qkv.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    parts = qkv.unflatten(-1, (3, self.n_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    dropout = self.attn_dropout_p if self.training else 0.0
    return self.out_proj(_attend(self, parts, cache, position_bias, self.softmax_scale, dropout)), None


for _method in (_bloom_attention, _mpt_attention, _forward):
    _method.__name__ = "forward"


def _attend(attn: Any, parts: Sequence[Tensor], cache: Any, told: _Told, scale: float, dropout: float) -> Tensor:
    q, k, v = parts
    if cache is not None:
        k, v = cache.update(k, v, attn.layer_idx)
    keys = Grid(k.shape[2])
    queries = keys[keys.tokens - q.shape[2] :]
    out = attention(
        q, k, v, grid=queries, key_grid=keys, position=told.position, mask=told.mask, scale=scale, dropout=dropout
    )
    return out.transpose(1, 2).flatten(2)


# --- offers -----------------------------------------------------------------------------------------------------------


def _bloom(model: nn.Module) -> Offer | str:
    config: Any = model.config
    if config.pretraining_tp > 1 and config.slow_but_exact:
        return "its output projection is summed in slices, as its training was (pretraining_tp, slow_but_exact)"
    return _offer(model, _BLOOM_NAMES, _bloom_attention, BorrowedSlopes(config.n_head, _bloom_slopes))


def _mpt(model: nn.Module) -> Offer | str:
    config: Any = model.config
    return _offer(model, _MPT_NAMES, _mpt_attention, BorrowedSlopes(config.n_heads, _mpt_slopes))


def _bloom_slopes(heads: int, device: torch.device) -> Tensor:
    return sys.modules[_BLOOM]._get_alibi_slopes(heads, device)


def _mpt_slopes(heads: int, device: torch.device) -> Tensor:
    return -sys.modules[_MPT].build_mpt_alibi_tensor(heads, 2, device=device)[:, 0, 0]


def _offer(model: nn.Module, names: _Names, forward: Callable[..., Any], position: BorrowedSlopes) -> Offer | str:
    module: Any = model
    paths = [f"{names.layers}.{i}.{names.attn}" for i in range(len(getattr(module, names.layers)))]
    if not paths or any("forward" in vars(module.get_submodule(path)) for path in paths):
        return "it has no layers, or the forward of one was replaced by others"
    methods: dict[str, Callable[..., Any]] = {f"{path}.forward": forward for path in paths}
    state = State(names=names, position=position)
    width = module.config.hidden_size // position.heads

    def trial(_: nn.Module) -> list[tuple[Any, ...]]:
        ids = torch.arange(80).reshape(2, 40) % module.config.vocab_size
        return [(ids,), (ids, None, (torch.arange(40) < torch.tensor([[40], [31]])).long())]

    return Offer(
        Replacement(methods | {"forward": _forward}, state), f"ALiBi, causal, {len(paths)} layers", trial,
        Attended(position.heads, width, position, None, Causal()), tuple(paths),
    )  # fmt: skip


_BLOOM, _MPT = "transformers.models.bloom.modeling_bloom", "transformers.models.mpt.modeling_mpt"

FAMILIES = (
    Family(
        "attention",
        (f"{_BLOOM}.BloomModel",),
        ("forward", "build_alibi_tensor", "_get_alibi_slopes", "dropout_add", "BloomAttention", "BloomBlock"),
        _bloom,
        frozenset({"d775e7e5acbf2789"}),
        rounds=True,
    ),
    Family(
        "attention",
        (f"{_MPT}.MptModel",),
        ("forward", "build_mpt_alibi_tensor", "MptAttention", "MptBlock"),
        _mpt,
        frozenset({"c61217791c6ba52d"}),
        rounds=True,
    ),
)  # 5.24.0
