"""Attention by other scores than products of heads: d2l's masked softmax, its plain dot product, additive scoring.

They take tokens `[batch, tokens, dim]`, have one head, and return what `MultiHeadAttention` does: the output, and the
weights if they are asked for. Scores that are no products (here, in `nadaraya_watson.py` and in Bahdanau's decoder)
share one masked softmax, that of the reference kernel.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from locant.attend import attention, weights
from locant.checks import check_tensor, check_type, check_types, description
from locant.grid import Grid
from locant.masks import Mask, Structure, check_mask
from locant.masks.senses import WHOLE
from locant.nn.arguments import check_probabilities
from locant.nn.linears import bare_weight, input_channels
from locant.softmax import softmax

Pooled = tuple[Float[Tensor, "batch queries value_dim"], Float[Tensor, "batch queries keys"] | None]


def masked_softmax(
    scores: Float[Tensor, "batch queries keys"], mask: Mask | None = None
) -> Float[Tensor, "batch queries keys"]:
    """p_ij = exp(s_ij) / Σ_j exp(s_ij) over the keys j that query i may see, 0 elsewhere; a row that sees none is 0.

    Lengths become masks by `Padding.from_lengths(lengths [batch], keys)` and `Pairs.from_lengths(lengths [batch,
    queries], keys)`. `scores` are left as they are, in any floating dtype.

    Where it differs: d2l's writes into the scores, and spreads a row of length 0 evenly over the keys it hides; that
    one is `masked_softmax_d2l`.
    Source: d2l, chapter "Attention Scoring Functions", `masked_softmax`.

    Raises:
        ValueError: if the mask is of another batch, differs by head, or needs places that nobody gave.
    """
    _check_scores("masked_softmax", scores)
    batch, queries, keys = scores.shape
    return softmax(scores, allowed_pairs(mask, batch, queries, keys, scores.device))[0]


def masked_softmax_d2l(
    scores: Float[Tensor, "batch queries keys"], valid_lens: Int[Tensor, "batch *queries"] | None = None
) -> Float[Tensor, "batch queries keys"]:
    """softmax with -1e6 in place of what lies behind the length, as d2l publishes it: rows of length 0 are uniform.

    `valid_lens` is [batch] or [batch, queries]. In half precision, which has no -1e6, its lowest number stands in.

    Where it differs: `scores` are not written to.
    Source: d2l, chapter "Attention Scoring Functions", `masked_softmax`.

    Raises:
        ValueError: for lengths of another shape, or that are not whole numbers.
    """
    _check_scores("masked_softmax_d2l", scores)
    if valid_lens is None:
        return softmax(scores, None)[0]
    check_tensor("masked_softmax_d2l", "valid_lens", valid_lens, "whole numbers [batch] or [batch, queries]")
    if tuple(valid_lens.shape) not in (scores.shape[:1], scores.shape[:2]) or valid_lens.dtype not in WHOLE:
        raise ValueError(
            f"masked_softmax_d2l needs whole numbers [{scores.shape[0]}] or {list(scores.shape[:2])} as `valid_lens`; "
            f"got {valid_lens.dtype} of shape {list(valid_lens.shape)}. Give a length per sample, or per query."
        )
    hidden = torch.arange(scores.shape[2], device=scores.device) >= valid_lens.reshape(scores.shape[0], -1, 1)
    return softmax(scores.masked_fill(hidden, max(-1e6, torch.finfo(scores.dtype).min)), None)[0]


class DotProductAttention(nn.Module):
    """y = softmax(Q Kᵀ / √dim) V,  Q [batch, queries, dim], K [batch, keys, dim], V [batch, keys, value_dim].

    d2l's class: `locant.attention` with one head. Nothing is learned.

    Where it differs: d2l keeps the weights as an attribute; here they are returned on request. See `masked_softmax`.
    Source: d2l, chapter "Attention Scoring Functions", `DotProductAttention`.

    Args:
        dropout: on the weights, in training only.

    Raises:
        ValueError: for a dropout out of range.
    """

    @check_types
    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        check_probabilities("DotProductAttention", dropout=dropout)
        self.dropout = dropout

    def forward(
        self,
        query: Float[Tensor, "batch queries dim"],
        key: Float[Tensor, "batch keys dim"],
        value: Float[Tensor, "batch keys value_dim"],
        *,
        mask: Mask | None = None,
        need_weights: bool = False,
    ) -> Pooled:
        """Attend. Returns the output, and with `need_weights` the weights before dropout; else None.

        Raises:
            ValueError: for tensors or a mask that do not fit one another.
        """
        check_pooling("DotProductAttention", query, key, value, None, query)
        check_type("DotProductAttention", "need_weights", need_weights, bool)
        q, k, v = query[:, None], key[:, None], value[:, None]
        out = attention(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0)
        return out[:, 0], weights(q, k, mask=mask)[:, 0] if need_weights else None


class AdditiveAttention(nn.Module):
    """y_i = Σ_j p_ij v_j,  p_i = softmax_j(s_i),  s_ij = w_vᵀ tanh(W_q q_i + W_k k_j).

    Q [batch, queries, query_dim], K [batch, keys, key_dim], V [batch, keys, value_dim]; W_q [hidden, query_dim],
    W_k [hidden, key_dim], w_v [1, hidden], without biases. Memory: the sum under tanh is [batch, queries, keys,
    hidden], `hidden` times what the scores of a dot product take.

    Where it differs: d2l's constructor takes the key's size before the query's; here they are named. See
    `masked_softmax`.
    Source: Bahdanau (arXiv 1409.0473, appendix A.1.2); d2l, chapter "Attention Scoring Functions".

    Args:
        hidden: channels under tanh.
        query_dim, key_dim: channels of queries and keys; None is `hidden`.
        dropout: on the weights, in training only.

    Raises:
        ValueError: for a size below 1, or a dropout out of range.
    """

    @check_types
    def __init__(
        self, hidden: int, *, query_dim: int | None = None, key_dim: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        query_dim = hidden if query_dim is None else query_dim
        key_dim = hidden if key_dim is None else key_dim
        check_probabilities("AdditiveAttention", dropout=dropout)
        if min(hidden, query_dim, key_dim) < 1:
            raise ValueError(
                "AdditiveAttention needs `hidden`, `query_dim` and `key_dim` of at least 1; got "
                f"{hidden}, {query_dim} and {key_dim}. Give the channels of the tokens."
            )
        self.dropout = dropout
        self.W_q = nn.Linear(query_dim, hidden, bias=False)
        self.W_k = nn.Linear(key_dim, hidden, bias=False)
        self.w_v = nn.Linear(hidden, 1, bias=False)

    def forward(
        self,
        query: Float[Tensor, "batch queries query_dim"],
        key: Float[Tensor, "batch keys key_dim"],
        value: Float[Tensor, "batch keys value_dim"],
        *,
        mask: Mask | None = None,
        need_weights: bool = False,
    ) -> Pooled:
        """Attend. Returns the output, and with `need_weights` the weights before dropout; else None.

        Raises:
            ValueError: for tensors or a mask that do not fit one another.
        """
        check_type("AdditiveAttention", "need_weights", need_weights, bool)
        check_pooling("AdditiveAttention", query, key, value, (self.W_q, self.W_k), bare_weight(self.W_q))
        allowed = allowed_pairs(mask, len(query), query.shape[1], key.shape[1], query.device)
        key, value = seen(key, allowed), seen(value, allowed)
        out, p = self.attend(query, self.W_k(key), value, allowed)
        return out, p if need_weights else None

    def attend(
        self,
        query: Float[Tensor, "batch queries query_dim"],
        projected: Float[Tensor, "batch keys hidden"],
        value: Float[Tensor, "batch keys value_dim"],
        allowed: Bool[Tensor, "#batch #queries keys"] | None = None,
    ) -> tuple[Float[Tensor, "batch queries value_dim"], Float[Tensor, "batch queries keys"]]:
        """`forward` with W_k k at hand: a decoder makes it once, not at every step. Returns the weights as well."""
        scores = self.w_v(torch.tanh(self.W_q(query)[:, :, None] + projected[:, None]))[..., 0]
        p, _ = softmax(scores, allowed)
        return F.dropout(p, self.dropout, self.training) @ value, p

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}" if self.dropout else ""


def allowed_pairs(
    mask: Mask | None, batch: int, queries: int, keys: int, device: torch.device
) -> Bool[Tensor, "#batch queries keys"] | None:
    """The mask on `Grid(queries)` and `Grid(keys)`, dense."""
    check_mask("attention", "mask", mask)
    if mask is None:
        return None
    structure = Structure.of(mask)
    if queries != keys and (structure.causal or structure.windows):
        raise ValueError(
            f"a mask of places needs queries and keys on one grid; got {queries} queries and {keys} keys, and nobody "
            "said where they lie. Name the pairs: Pairs(mask.allowed(grid, key_grid)[:, 0])."
        )
    found = mask.allowed(Grid(queries), Grid(keys), device)
    if found.shape[0] not in (1, batch) or found.shape[1] != 1:
        raise ValueError(
            f"the mask needs a batch of {batch} (or 1) and no heads; got {found.shape[0]} and {found.shape[1]} heads. "
            "Build it for this batch: these scores have one head."
        )
    return found[:, 0]


def _check_scores(owner: str, scores: Tensor) -> None:
    check_tensor(owner, "scores", scores, "a tensor [batch, queries, keys]")
    if scores.ndim != 3 or not scores.is_floating_point():
        raise ValueError(
            f"{owner} needs `scores` as floating numbers [batch, queries, keys]; got {description(scores)}. "
            "Give them an axis each: heads are samples, scores.flatten(0, 1)."
        )


def seen(x: Tensor, allowed: Tensor | None) -> Tensor:
    """`x` with 0 at keys that no query sees: 0 · NaN is NaN, so what nobody may see must not be there."""
    return x if allowed is None else x.masked_fill(~allowed.any(1)[..., None], 0.0)


def check_pooling(
    module: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    linears: tuple[nn.Module, nn.Module] | None,
    weight: Tensor | None,
) -> None:
    """Tokens [batch, tokens, dim] of one batch and kind, as many values as keys; queries and keys as `linears` take
    them, or without any as wide as one another."""
    three = (query, key, value)
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_tensor(module, name, x, "a tensor [batch, tokens, dim]")
    wide = (key, query) if linears is None else (query, key)
    channels = [x.shape[-1] if x.ndim else 0 for x in wide]
    sizes = tuple(channels if linears is None else map(input_channels, linears, wide))
    fit = all(x.ndim == 3 and x.shape[0] == query.shape[0] for x in three) and key.shape[1] == value.shape[1]
    if not fit or (query.shape[-1], key.shape[-1]) != sizes:
        raise ValueError(
            f"{module} needs query [batch, queries, {sizes[0]}], key [batch, keys, {sizes[1]}] and value [batch, keys, "
            f"value_dim]; got {', '.join(str(list(x.shape)) for x in three)}. Make these agree; plain numbers x [n] "
            "are x[None, :, None]."
        )
    like = query if weight is None else weight
    autocast = query.device.type != "meta" and torch.is_autocast_enabled(query.device.type)
    if any(x.device != like.device or (x.dtype != like.dtype and not autocast) for x in three):
        raise ValueError(
            f"{module} needs query, key and value of {like.dtype} on {like.device}; got "
            f"{', '.join(f'{x.dtype} on {x.device}' for x in three)}. Move them with .to(...)."
        )
