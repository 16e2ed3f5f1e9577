"""Attention between two sets of tokens: queries, keys and values with projections of their own."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from locant.attend import attention, weights
from locant.call import Positions
from locant.checks import check_tensor, check_type, check_types
from locant.grid import Grid, check_grid
from locant.masks import Mask, check_mask
from locant.nn.arguments import (
    add_embedding,
    check_heads,
    check_own_mask,
    check_probabilities,
    check_tokens,
    position_module,
    split_embedding,
    token_grid,
)
from locant.nn.heads import merge_heads, split_heads
from locant.nn.linears import bare_weight, input_channels


class MultiHeadAttention(nn.Module):
    """y = out(softmax(s · q(Q) k(K)ᵀ + bias) v(V)),  s = head_dim ** -0.5.

    Q [batch, queries, query_dim], K [batch, keys, key_dim], V [batch, keys, value_dim]; four projections q, k, v
    (to dim) and out [dim, dim]. An embedding is added to Q and K, each on its own grid, never to V (DETR). Where
    queries and keys have embeddings of different kinds, add them to `query` and `key` before the call.

    Where it differs: `nn.MultiheadAttention` packs equal projections into `in_proj_weight`, averages the weights over
    heads, and drops entries of the weights it returns. d2l's is this one without biases: `from_d2l_zh` and `from_d2l`
    take the arguments of its two constructors. The plain one with Wq, Wk, Wv and fc is this one as it stands, called
    with `mask=Pairs.from_kept(mask)` and `need_weights=True`. On rows that see nothing torch's gives NaN, and the other
    two the mean of what is blocked; here they are 0. Masks are named by their sense: `Padding.from_lengths`,
    `Padding.from_key_padding_mask` (True = ignore) and others.
    Source: Attention Is All You Need (arXiv 1706.03762, section 3.2.2); d2l, chapter "Multi-Head Attention".

    Step by step against a cache, project new tokens once and keep what comes out (`locant.models.transformer` does):

        k, v = module.projected(x, x)
        k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        y, _ = module.attend(x, k, v, grid=line[seen:], key_grid=line, mask=Causal())

    Args:
        dim: channels of all heads, and of the output; `heads` divides it.
        heads: how many attend side by side.
        query_dim, key_dim, value_dim: channels of what comes in; None is dim.
        bias: whether the projections have one.
        dropout: on the weights, in training only.
        grid: where queries are, unless the call says otherwise.
        key_grid: where keys are; None is `grid`, where that has as many tokens.
        position: a scheme, or several in a tuple, list or `nn.ModuleList`.
        mask: who may attend, without tensors (Causal, Windows).

    Raises:
        ValueError: for sizes that do not divide, a wrong position or mask, and probabilities out of range.
    """

    @check_types
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
        check_own_mask("MultiHeadAttention", mask)
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.grid, self.key_grid, self.mask = grid, key_grid, mask
        self.q = nn.Linear(dim if query_dim is None else query_dim, dim, bias=bias)
        self.k = nn.Linear(dim if key_dim is None else key_dim, dim, bias=bias)
        self.v = nn.Linear(dim if value_dim is None else value_dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.position = position_module("MultiHeadAttention", position)

    @classmethod
    def from_d2l_zh(
        cls,
        key_size: int,
        query_size: int,
        value_size: int,
        num_hiddens: int,
        num_heads: int,
        dropout: float,
        bias: bool = False,
    ) -> MultiHeadAttention:
        """With the arguments of d2l-zh's `MultiHeadAttention`, in its order: **the key's size comes first**."""
        return cls(
            num_hiddens, num_heads, query_dim=query_size, key_dim=key_size, value_dim=value_size,
            bias=bias, dropout=dropout,
        )  # fmt: skip

    @classmethod
    def from_d2l(cls, num_hiddens: int, num_heads: int, dropout: float, bias: bool = False) -> MultiHeadAttention:
        """With those of d2l's English edition: the first call, or a state dict, says what sizes come in."""
        module = cls(num_hiddens, num_heads, bias=bias, dropout=dropout)
        module.q, module.k, module.v = (nn.LazyLinear(num_hiddens, bias=bias) for _ in range(3))
        return module

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
        for name, x in (("query", query), ("key", key), ("value", value)):
            check_tensor("MultiHeadAttention", name, x, "a tensor [batch, tokens, dim]")
        check_type("MultiHeadAttention", "need_weights", need_weights, bool)
        check_grid("MultiHeadAttention", "key_grid", key_grid, needed=False)
        self._check_channels(query, key, value)
        own = self.grid if grid is None else grid
        where = _locate(self.q, query, own, "query")
        key_where = self.key_grid if key_grid is None else key_grid
        if key_where is None and key.ndim == 3 and key.shape[1] == where.tokens:
            key_where = where
        k, v = self.projected(key, value, key_grid=key_where, position=position, mask=mask)
        return self.attend(
            query, k, v, grid=grid, key_grid=key_grid, position=position, mask=mask, need_weights=need_weights
        )

    def projected(
        self,
        key: Float[Tensor, "batch keys key_dim"],
        value: Float[Tensor, "batch keys value_dim"],
        *,
        key_grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
    ) -> tuple[Float[Tensor, "batch heads keys head_dim"], Float[Tensor, "batch heads keys head_dim"]]:
        """k(K) and v(V) by head: what a cache keeps. An embedding is added to K where `key_grid` says that it lies."""
        check_mask("MultiHeadAttention", "mask", mask)
        embedding, _ = split_embedding(position, self.position)
        key_grid = self.key_grid if key_grid is None else key_grid
        where = _locate(self.k, key, key_grid, "key", "key_grid")
        _locate(self.v, value, where, "value", "key_grid")
        k = self.k(add_embedding(key, embedding, where, self.mask if mask is None else mask))
        return split_heads(k, self.heads), split_heads(self.v(value), self.heads)

    def attend(
        self,
        query: Float[Tensor, "batch queries query_dim"],
        k: Float[Tensor, "batch heads keys head_dim"],
        v: Float[Tensor, "batch heads keys head_dim"],
        *,
        grid: Grid | None = None,
        key_grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch heads queries keys"] | None]:
        """`forward` with keys and values that `projected` has made. Arguments and results are the same."""
        grid = self.grid if grid is None else grid
        key_grid = self.key_grid if key_grid is None else key_grid
        mask = self.mask if mask is None else mask
        check_mask("MultiHeadAttention", "mask", mask)
        embedding, rest = split_embedding(position, self.position)
        where = _locate(self.q, query, grid, "query")
        same = key_grid == where or (key_grid is None and k.shape[2] == where.tokens)
        asks = mask if same else None  # a padding speaks of keys: of queries only if they are the same
        q = split_heads(self.q(add_embedding(query, embedding, where, asks)), self.heads)
        dropout = self.dropout if self.training else 0.0
        # as they were given: `attention` says where it needs a grid that nobody gave
        out = attention(q, k, v, grid=grid, key_grid=key_grid, position=rest, mask=mask, dropout=dropout)
        found = weights(q, k, grid=grid, key_grid=key_grid, position=rest, mask=mask) if need_weights else None
        return self.out(merge_heads(out)), found

    def _check_channels(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Sizes that would fit in another order are a swap, and said to be one."""
        given = (query.shape[-1], key.shape[-1], value.shape[-1])
        pairs = ((self.q, query), (self.k, key), (self.v, value))
        wanted = tuple(input_channels(linear, x) for linear, x in pairs)
        if given != wanted and sorted(given) == sorted(wanted):
            raise ValueError(
                f"MultiHeadAttention needs query, key and value of {', '.join(map(str, wanted))} channels; got "
                f"{', '.join(map(str, given))}: the same in another order. Swap the arguments, or build it with "
                "query_dim=, key_dim= and value_dim=; d2l-zh's order is key_size, query_size, value_size."
            )

    def extra_repr(self) -> str:
        said = {"grid": self.grid, "key_grid": self.key_grid, "mask": self.mask}
        parts = [f"{name}={value}" for name, value in said.items() if value is not None]
        parts += [f"dropout={self.dropout}"] if self.dropout else []
        return ", ".join([f"dim={self.dim}, heads={self.heads}", *parts])


def _locate(linear: nn.Module, x: Tensor, grid: Grid | None, name: str, where: str = "grid") -> Grid:
    """The grid of tokens `x`, which must be what `linear` takes."""
    check_tokens(x, input_channels(linear, x), bare_weight(linear), name)
    return token_grid(x, grid, name, where)
