"""Attention between two sets of tokens: queries, keys and values with projections of their own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.attend import Positions, attention, weights
from locant.grid import Grid
from locant.masks import Mask
from locant.nn.arguments import check_heads, check_mask, check_probabilities, embedded, parted, placed, registered


class MultiHeadAttention(nn.Module):
    """y = out(softmax(s · q(Q) k(K)ᵀ + bias) v(V)),  s = head_dim ** -0.5.

    Q [batch, queries, query_dim], K [batch, keys, key_dim], V [batch, keys, value_dim]; four projections q, k, v
    (to dim) and out [dim, dim]. An embedding is added to Q and K, each on its own grid, never to V (DETR). Where
    queries and keys have embeddings of different kinds, add them to `query` and `key` before the call.

    Where it differs: `nn.MultiheadAttention` packs equal projections into `in_proj_weight`, averages the weights over
    heads, drops entries of the weights it returns, and gives NaN on rows that see nothing; here such rows are 0.
    d2l's is this one with `bias=False`, its W_q, W_k, W_v, W_o being q, k, v, out. Masks are named by their sense:
    `Padding.from_key_padding_mask` (True = ignore), `Padding.from_lengths`, `Pairs.from_kept` and others.
    Source: Attention Is All You Need (arXiv 1706.03762, section 3.2.2).

    Args:
        dim: channels of all heads, and of the output; `heads` divides it.
        heads: how many attend side by side.
        query_dim, key_dim, value_dim: channels of what comes in; None is dim.
        bias: whether the projections have one.
        dropout: on the weights, in training only.
        grid: where queries are, unless the call says otherwise.
        key_grid: where keys are; None is `grid`, where that has as many tokens.
        position: a scheme, or a tuple of them.
        mask: who may attend, without tensors (Causal, Windows).

    Raises:
        ValueError: for sizes that do not divide, a wrong position or mask, and probabilities out of range.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        query_dim: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        grid: Grid | None = None,
        key_grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
    ) -> None:
        super().__init__()
        check_heads("MultiHeadAttention", dim, heads)
        check_probabilities("MultiHeadAttention", dropout=dropout)
        check_mask("MultiHeadAttention", mask)
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.grid, self.key_grid, self.mask = grid, key_grid, mask
        self.q = nn.Linear(dim if query_dim is None else query_dim, dim, bias=bias)
        self.k = nn.Linear(dim if key_dim is None else key_dim, dim, bias=bias)
        self.v = nn.Linear(dim if value_dim is None else value_dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.position = registered("MultiHeadAttention", position)

    def forward(
        self,
        query: Float[Tensor, "batch queries query_dim"],
        key: Float[Tensor, "batch keys key_dim"],
        value: Float[Tensor, "batch keys value_dim"],
        *,
        grid: Grid | None = None,
        key_grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch heads queries keys"] | None]:
        """Attend. `grid`, `key_grid`, `position` and `mask` take the place of the module's own.

        Returns:
            The output, and with `need_weights` the probabilities before dropout, dense; else None.

        Raises:
            ValueError: if a tensor does not fit its grid, or `locant.attention` refuses the rest.
        """
        grid = self.grid if grid is None else grid
        key_grid = self.key_grid if key_grid is None else key_grid
        mask = self.mask if mask is None else mask
        embedding, rest = parted(position, self.position)
        where = placed(query, self.q.in_features, self.q.weight, grid, "query")
        same = key_grid is None and key.ndim == 3 and key.shape[1] == where.tokens
        key_where = placed(key, self.k.in_features, self.k.weight, where if same else key_grid, "key", "key_grid")
        placed(value, self.v.in_features, self.v.weight, key_where, "value", "key_grid")
        asks = mask if key_where == where else None  # a padding speaks of keys: of queries only if they are the same
        q = self._heads(self.q(embedded(query, embedding, where, asks)))
        k = self._heads(self.k(embedded(key, embedding, key_where, mask)))
        dropout = self.dropout if self.training else 0.0
        # as they were given: `attention` says where it needs a grid that nobody gave
        out = attention(
            q, k, self._heads(self.v(value)),
            grid=grid, key_grid=key_grid, position=rest, mask=mask, dropout=dropout,
        )  # fmt: skip
        assert isinstance(out, torch.Tensor), "only return_lse gives a pair"
        found = weights(q, k, grid=grid, key_grid=key_grid, position=rest, mask=mask) if need_weights else None
        return self.out(out.transpose(1, 2).flatten(2)), found

    def _heads(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens head_dim"]:
        return x.unflatten(-1, (self.heads, self.dim // self.heads)).transpose(1, 2)

    def extra_repr(self) -> str:
        said = {"grid": self.grid, "key_grid": self.key_grid, "mask": self.mask}
        parts = [f"{name}={value}" for name, value in said.items() if value is not None]
        parts += [f"dropout={self.dropout}"] if self.dropout else []
        return ", ".join([f"dim={self.dim}, heads={self.heads}", *parts])
