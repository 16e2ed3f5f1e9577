"""Content and position mixed by a gate per head: ConViT's gated positional self-attention."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.attend import attention
from locant.call import Positions
from locant.checks import check_types
from locant.grid import Grid
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
from locant.nn.heads import merge_heads, split_heads, split_parts
from locant.nn.linears import bare_weight
from locant.positions.gate import GatedPosition
from locant.positions.position import Gate


class GatedAttention(nn.Module):
    """y = proj(((1 - g) · softmax(s · q kᵀ) + g · softmax(R)) v),  [q | k] = qk(x),  v = v(x),  g per head.

    x [batch, tokens, dim]; qk.weight [2 dim, dim] laid out [q | k][head][head_dim]; v and proj [dim, dim]. R is the
    map of `GatedPosition`, from position alone. With `local_init` v starts as the identity, and the positional half as
    a convolution's neighbourhood.

    Where it differs: the published code finds the sides of the map as sqrt(tokens), so that 2 × 8 tokens are taken for
    4 × 4; here the grid says. R runs axis by axis and once for the whole batch. The published division by the row sum
    is by 1, and its `pos_proj.bias` cancels in the softmax: neither has a counterpart.
    Source: ConViT (arXiv 2103.10697, eqs. 5 to 8); timm 1.0.31 `convit.py` `GPSA`.

    Args:
        dim: channels of a token; `heads` divides it.
        heads: each with a gate of its own.
        grid: where tokens are, unless the call says otherwise.
        position: a gate, or several schemes with one; None is `GatedPosition(heads)` on grids of as many axes as
            `grid` has (2 if there is none).
        mask: who may attend, without tensors (Causal, Windows).
        qkv_bias: whether qk and v have a bias.
        dropout: on the mixed map, in training only; above 0 it takes the dense form.
        proj_dropout: on the output, in training only.
        locality: how narrow the local start is.
        local_init: whether to start as a convolution would.

    Raises:
        ValueError: for sizes that do not divide, a position without a gate, and probabilities out of range.
    """

    @check_types
    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        locality: float = 1.0,
        local_init: bool = True,
    ) -> None:
        super().__init__()
        check_heads("GatedAttention", dim, heads)
        check_probabilities("GatedAttention", dropout=dropout, proj_dropout=proj_dropout)
        check_own_mask("GatedAttention", mask)
        self.dim, self.heads, self.grid, self.mask = dim, heads, grid, mask
        self.dropout, self.proj_dropout = dropout, proj_dropout
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        if local_init:
            nn.init.eye_(self.v.weight)
        if position is None:
            axes = 2 if grid is None else grid.axes
            position = GatedPosition(heads, axes=axes, locality=locality, local_init=local_init)
        self.position = position_module("GatedAttention", position)
        self._check_gate(split_embedding(None, self.position)[1])

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend. `grid`, `position` and `mask` take the place of the module's own.

        Raises:
            ValueError: if x is not `[batch, tokens, dim]` on that grid, or `position` has no gate.
        """
        out = self.merged_heads(x, grid=grid, position=position, mask=mask)
        return F.dropout(self.proj(out), self.proj_dropout, self.training)

    def merged_heads(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None,
        position: Positions,
        mask: Mask | None,
        project: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """What `proj` reads; arguments as for a call.

        Args:
            project: from tokens to [q | k] and v, in place of the module's own two maps.
        """
        check_mask("GatedAttention", "mask", mask)
        check_tokens(x, self.dim, bare_weight(self.qk))
        grid = token_grid(x, self.grid if grid is None else grid)
        mask = self.mask if mask is None else mask
        embedding, rest = split_embedding(position, self.position)
        self._check_gate(rest)
        qk, v = (self.qk(add_embedding(x, embedding, grid, mask)), self.v(x)) if project is None else project(x)
        q, k = split_parts(qk, 2, self.heads)
        dropout = self.dropout if self.training else 0.0
        out = attention(q, k, split_heads(v, self.heads), grid=grid, position=rest, mask=mask, dropout=dropout)
        return merge_heads(out)

    @staticmethod
    def _check_gate(position: Positions) -> None:
        members = position if isinstance(position, tuple) else ()
        if not any(isinstance(p, Gate) for p in members):
            named = ", ".join(type(p).__name__ for p in members) or "none that acts inside attention"
            raise ValueError(
                f"GatedAttention needs a `position` with a gate, such as GatedPosition; got {named}. "
                "Add one, or use Attention."
            )

    def extra_repr(self) -> str:
        said = {"grid": self.grid, "mask": self.mask}
        parts = [f"{name}={value}" for name, value in said.items() if value is not None]
        parts += [f"{name}={getattr(self, name)}" for name in ("dropout", "proj_dropout") if getattr(self, name)]
        return ", ".join([f"dim={self.dim}, heads={self.heads}", *parts])
