"""transformers' encoders of speech: Conformers of wav2vec 2.0, W2V-BERT, SeamlessM4T, Parakeet and Nemotron.

Queries meet a vector per distance: Transformer-XL's terms, or Shaw's. The vectors are the library's own, made once for
all layers and projected by each. Replaced is the encoder, which tells its layers what padding there is: to them it
comes written out for every pair. Masks that layers are not told of are taken pair by pair, as they come. A call that
asks for weights, and keys that come from a cache, run the class's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from locant.attend import attention
from locant.grid import Grid
from locant.integrations.borrowed_content import BorrowedVectors
from locant.integrations.family import Attended, Family, Offer
from locant.integrations.layers import perceptron_family
from locant.integrations.replacing import Replacement
from locant.masks import Mask, Padding, Pairs

# --- encoders ---------------------------------------------------------------------------------------------------------


def _conformer_forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
    chunk = getattr(self.config, "speech_encoder_chunk_size", None)
    whole = not hasattr(self, "_apply_chunk_attention") or chunk is None or hidden_states.shape[1] <= chunk
    if whole and attention_mask is not None and attention_mask.ndim == 2:
        kwargs["locant"] = attention_mask != 0
    return type(self).forward(self, hidden_states, attention_mask, **kwargs)


def _parakeet_forward(self: Any, *inputs: Any, **named: Any) -> Any:
    return type(self).forward(self, *inputs, **named, locant="padding")  # its layers get seen & seenᵀ


# --- attention --------------------------------------------------------------------------------------------------------


def _heads_forward(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None,
    relative_position_embeddings: Tensor | None = None, locant: Tensor | None = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """Of wav2vec 2.0's Conformer and its copies."""
    kind, tokens, made = self.position_embeddings_type, hidden_states.shape[1], relative_position_embeddings
    fits = kind != "relative" or (made is not None and made.shape[:2] == (1, 2 * tokens - 1))
    if not fits or not _is_fused(self, attention_mask) or kwargs.get("output_attentions"):
        more = {} if made is None else {"relative_position_embeddings": made}
        return type(self).forward(self, hidden_states, attention_mask, **more, **kwargs)
    # 1 heads; rotary positions turn what is projected
    turned = self._apply_rotary_embedding(hidden_states, made) if kind == "rotary" else hidden_states
    x = (self.linear_q(turned), self.linear_k(turned), self.linear_v(hidden_states))
    q, k, v = (part.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for part in x)
    # 2 what queries meet, by rising distance
    position = None
    if kind == "relative":
        vectors = self.linear_pos(made)[0].unflatten(-1, (-1, self.head_size)).flip(0).transpose(0, 1)
        position = BorrowedVectors(vectors, 1 - tokens, self.num_heads, self.pos_bias_u, self.pos_bias_v)
    elif kind == "relative_key":
        left, right = self.left_max_position_embeddings, self.right_max_position_embeddings
        vectors = self.distance_embedding(torch.arange(left + right, -1, -1, device=x[0].device))
        position = BorrowedVectors(vectors[None], -right, self.num_heads)
    # 3 a told padding is of keys
    if locant is None:
        mask, blind = _pairs(attention_mask)
    else:
        mask, blind = Padding(locant), ~locant.any(-1)[:, None]
    out = _attend(q, k, v, position, mask, blind, self.scaling, self.dropout.p if self.training else 0.0)
    return self.linear_out(out), None


def _cached_forward(
    self: Any, hidden_states: Tensor, position_embeddings: Tensor | None, attention_mask: Tensor | None = None,
    locant: str | None = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """Of Parakeet and Nemotron."""
    tokens, cache = hidden_states.shape[1], (kwargs.get("cache"), kwargs.get("past_key_values"))
    made = position_embeddings
    fits = made is not None and made.shape[1] == 2 * tokens - 1 and cache == (None, None)
    drawn = self.training and getattr(self.config, "dropout_positions", 0.0) > 0  # then they differ by sample
    if not fits or drawn or not _is_fused(self, attention_mask) or kwargs.get("output_attentions"):
        return type(self).forward(self, hidden_states, made, attention_mask, **kwargs)
    assert made is not None
    x = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
    q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in x)
    vectors = self.relative_k_proj(made[0]).unflatten(-1, (-1, self.head_dim)).flip(0).transpose(0, 1)
    position = BorrowedVectors(vectors, 1 - tokens, q.shape[1], self.bias_u, self.bias_v)
    if locant is None or attention_mask is None:
        mask, blind = _pairs(attention_mask)
    else:
        seen = attention_mask[:, 0].diagonal(dim1=-2, dim2=-1)
        mask, blind = Padding(seen), ~seen
    if type(self).__name__.startswith("Nemotron"):  # it fills with -inf: queries that see nothing get zeros
        blind = None
    dropout = self.attention_dropout if self.training else 0.0
    return self.o_proj(_attend(q, k, v, position, mask, blind, self.scaling, dropout)), None


_conformer_forward.__name__ = _parakeet_forward.__name__ = "forward"
_heads_forward.__name__ = _cached_forward.__name__ = "forward"


def _is_fused(attn: Any, mask: Tensor | None) -> bool:
    """Whether torch's attention would run, which hands out no weights and takes masks of bools."""
    return attn.config._attn_implementation == "sdpa" and (
        mask is None or (mask.ndim == 4 and mask.dtype is torch.bool)
    )


def _pairs(mask: Tensor | None) -> tuple[Mask | None, Tensor | None]:
    """A mask of pairs, and the queries that see nothing."""
    return (None, None) if mask is None else (Pairs(mask), ~mask[:, 0].any(-1))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, position: BorrowedVectors | None, mask: Mask | None, blind: Tensor | None,
    scale: float, dropout: float,
) -> Tensor:  # fmt: skip
    """Tokens [batch, tokens, channels]. Published masks are large numbers, so that queries who see nothing see all."""
    out = attention(q, k, v, grid=Grid(q.shape[2]), position=position, mask=mask, scale=scale, dropout=dropout)
    if blind is not None:
        all_alike = _mean(q if position is None else position.queries(q), k, v, scale)
        out = torch.where(blind[:, None, :, None], all_alike, out)
    return out.transpose(1, 2).flatten(2)


def _mean(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(s · q kᵀ - largest number) v: the mean of v, with the gradient of a softmax of equal weights."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    mean = v.mean(2, keepdim=True)
    if torch.is_grad_enabled():
        slope = q @ (k.mT @ (v - mean).detach()) * (scale / k.shape[2])  # in q and k; its value cancels
        mean = mean + (slope - slope.detach())
    return mean


# --- offers -----------------------------------------------------------------------------------------------------------

_WORDS = {
    "relative": "Transformer-XL's terms", "relative_key": "a vector per clipped distance", "rotary": "rotary"
}  # fmt: skip


def _encoder(
    forward: Callable[..., Any], inner: Callable[..., Any], trial: Callable[[Any], list[tuple[Any, ...]]]
) -> Callable[[nn.Module], Offer | str]:
    """What offers both to an encoder and the attention of its layers."""

    def offer(encoder: nn.Module) -> Offer | str:
        module: Any = encoder
        paths = [f"layers.{i}.self_attn" for i in range(len(module.layers))]
        if not paths or any("forward" in vars(module.get_submodule(path)) for path in paths):
            return "it has no layers, or the forward of one was replaced by others"
        if module.config._attn_implementation != "sdpa":
            return _wrong_implementation(module.config)
        methods = {"forward": forward, **{f"{path}.forward": inner for path in paths}}
        what = f"{_what(module.get_submodule(paths[0]))}, {len(paths)} layers"
        attended = _attended(module.get_submodule(paths[0]))
        return Offer(Replacement(methods), what, trial, attended, tuple(paths))

    return offer


def _alone(inner: Callable[..., Any]) -> Callable[[nn.Module], Offer | str]:
    """What offers it to attention that stands elsewhere: in an adapter, or in a layer of its own."""

    def offer(attn: nn.Module) -> Offer | str:
        module: Any = attn
        if module.config._attn_implementation != "sdpa":
            return _wrong_implementation(module.config)
        return Offer(Replacement({"forward": inner}), _what(module), _tokens, _attended(module))

    return offer


def _what(attn: Any) -> str:
    return _WORDS.get(getattr(attn, "position_embeddings_type", "relative"), "no position")


def _attended(attn: Any) -> Attended:
    head_dim = attn.head_size if hasattr(attn, "head_size") else attn.head_dim
    heads = attn.num_heads if hasattr(attn, "num_heads") else attn.config.num_attention_heads
    return Attended(heads, head_dim)


def _tokens(attn: nn.Module) -> list[tuple[Any, ...]]:
    """With a mask that lets each query see others, and one of them none."""
    module: Any = attn
    width = (module.linear_q if hasattr(module, "linear_q") else module.q_proj).in_features
    x, kind = torch.randn(2, 21, width).double(), getattr(module, "position_embeddings_type", "relative")
    made = torch.randn(1, 41, width).double() if kind == "relative" else None
    seen = (torch.rand(2, 1, 21, 21) < 0.5) & (torch.arange(21) != 3)[:, None]
    if kind == "rotary":
        made = torch.randn(2, 21, 1, 1, module.head_size).double()
    if hasattr(module, "q_proj"):
        assert made is not None
        made = made.expand(2, -1, -1)
        return [(x, made), (x, made, seen)]
    return [(x,), (x, seen)] if made is None else [(x, None, made), (x, seen, made)]


def _frames(encoder: Any) -> list[tuple[Any, ...]]:
    x = torch.randn(2, 21, encoder.config.hidden_size).double()
    seen = torch.arange(21) < torch.tensor([[21], [13]])
    return [(x,), (x.clone(), seen)]


def _features(encoder: Any) -> list[tuple[Any, ...]]:
    x = torch.randn(2, 150, encoder.config.num_mel_bins).double()
    return [(x,), (x, torch.arange(150) < torch.tensor([[150], [93]]))]


def _wrong_implementation(config: Any) -> str:
    return (
        f"its attention is set to {config._attn_implementation!r}, which hands out weights or runs elsewhere; "
        'call model.set_attn_implementation("sdpa") first'
    )


_MODELS = "transformers.models"


_XL, _SHAW = "_apply_relative_position_encoding", "_apply_relative_key_position_encoding"
_CONFORMERS = (
    ("wav2vec2_conformer", "Wav2Vec2Conformer", "60e0aa31474b39a0", "9c67c6c7a3e38c6d", (_XL,)),
    ("wav2vec2_bert", "Wav2Vec2Bert", "6b8311a82ec8e79b", "f3ce704fe4d00da9", (_XL, _SHAW)),
    ("seamless_m4t", "SeamlessM4TConformer", "438fc13108e4e9aa", "9c67c6c7a3e38c6d", (_XL,)),
    ("seamless_m4t_v2", "SeamlessM4Tv2Conformer", "b0d52f6ea7396a68", "4793a17c107756aa", ()),
)  # fmt: skip


def _conformers(file: str, name: str, whole: str, alone: str, more: tuple[str, ...]) -> tuple[Family, Family]:
    path, attn = f"{_MODELS}.{file}.modeling_{file}.{name}", f"{name}SelfAttention"
    encoder = _encoder(_conformer_forward, _heads_forward, _frames)
    sources = ("forward", f"{name}EncoderLayer", attn, *more)
    return (
        Family("attention", (f"{path}Encoder",), sources, encoder, frozenset({whole})),
        Family("attention", (f"{path}SelfAttention",), ("forward", *more), _alone(_heads_forward), frozenset({alone})),
    )


_PARAKEET = f"{_MODELS}.parakeet.modeling_parakeet.ParakeetEncoder"
_NEMOTRON = f"{_MODELS}.nemotron_asr_streaming.modeling_nemotron_asr_streaming.NemotronAsrStreamingEncoder"
_FEEDS = tuple(f"{_MODELS}.{file}.modeling_{file}.{name}FeedForward" for file, name, *_ in _CONFORMERS)

FAMILIES = (
    *(family for names in _CONFORMERS for family in _conformers(*names)),
    Family(
        "attention",
        (_PARAKEET,),
        ("forward", "ParakeetEncoderBlock", "ParakeetEncoderAttention"),
        _encoder(_parakeet_forward, _cached_forward, _features),
        frozenset({"ffb358fd8bf6860a"}),
        rounds=True,
    ),
    Family(
        "attention",
        (f"{_PARAKEET}Attention",),
        ("forward", "_rel_shift"),
        _alone(_cached_forward),
        frozenset({"6a2dd4cdd14f2348"}),
    ),
    Family(
        "attention",
        (f"{_NEMOTRON}Attention",),
        ("forward", "_rel_shift"),
        _alone(_cached_forward),
        frozenset({"3673030cbdab1efd"}),
    ),
    perceptron_family(_FEEDS, "intermediate_dense", "intermediate_act_fn", "output_dense", "b4d86b323b652d42"),
    perceptron_family(
        (f"{_PARAKEET}FeedForward", f"{_NEMOTRON}FeedForward"), "linear1", "activation", "linear2", "5a852878b659e682"
    ),
)  # 5.24.0
