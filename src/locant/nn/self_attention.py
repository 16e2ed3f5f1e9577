"""Self-attention with one projection to queries, keys and values, on any grid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from locant.attend import attention_packed
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
from locant.nn.linears import bare_weight, project_rows
from locant.positions.position import Embedding


class Attention(nn.Module):
    """y = proj(softmax(s · q kᵀ + bias) v),  [q | k | v] = qkv(x),  s = head_dim ** -0.5.

    x [batch, tokens, dim]; qkv.weight [3 dim, dim], its rows laid out [q | k | v][head][head_dim]; proj.weight
    [dim, dim]. An embedding e among the positions is added to what q and k are projected from, never to v, in every
    layer (DETR): q, k from x + e and v from x, by the same weights.

    What is given at the call takes the place of the module's own, so that one module serves several axes. AIM's
    spatial and temporal attention share qkv and proj, and differ by two arguments on one clip:

        spatial, temporal = RelativeTable(Grid(1, 7, 7), heads), RelativeTable(Grid(T, 1, 1), heads)
        y = attend(x, grid=Grid(T, H, W), position=spatial, mask=Windows((1, 7, 7)))
        z = attend(y, grid=Grid(T, H, W), position=temporal, mask=Windows((T, 1, 1)))

    Where it differs: published code regroups the tokens instead, and takes a scale of 0 for none given.
    Source: Attention Is All You Need (arXiv 1706.03762, eq. 1); AIM (arXiv 2302.03024) `WindowAttention`; DETR
    (arXiv 2005.12872, figure 10).

    Args:
        dim: channels of a token; `heads` divides it.
        heads: how many attend side by side.
        grid: where tokens are, unless the call says otherwise; None is `Grid(tokens)`.
        position: a scheme, or several in a tuple, list or `nn.ModuleList`; learned ones are trained, moved and saved
            with the module.
        mask: who may attend, without tensors (Causal, Windows). Padding and the like are given at the call.
        qkv_bias: whether the first projection has a bias.
        scale: s, if another one is wanted.
        dropout: on the weights, in training only.
        proj_dropout: on the output, in training only.
        kernel: as `locant.attention` takes it.

    Raises:
        ValueError: for sizes that do not divide, a wrong position or mask, and probabilities out of range.
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
        qkv_bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        proj_dropout: float = 0.0,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_heads(name, dim, heads)
        check_probabilities(name, dropout=dropout, proj_dropout=proj_dropout)
        check_own_mask(name, mask)
        self.dim, self.heads, self.grid, self.mask, self.scale = dim, heads, grid, mask, scale
        self.dropout, self.proj_dropout, self.kernel = dropout, proj_dropout, kernel
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.position = position_module(name, position)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend. `grid`, `position` and `mask` take the place of the module's own; `position=()` means none.

        Raises:
            ValueError: if x is not `[batch, tokens, dim]` on that grid, or `locant.attention` refuses the rest.
        """
        out = Attention.merged_heads(self, x, grid=grid, position=position, mask=mask)
        return F.dropout(self.proj(out), self.proj_dropout, self.training)

    def merged_heads(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None,
        position: Positions,
        mask: Mask | None,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """What `proj` reads; arguments as for a call.

        Args:
            project: from tokens to [q | k | v], in place of the module's own map and what follows it.
        """
        check_mask(type(self).__name__, "mask", mask)
        check_tokens(x, self.dim, bare_weight(self.qkv))
        grid = token_grid(x, self.grid if grid is None else grid)
        mask = self.mask if mask is None else mask
        embedding, rest = split_embedding(position, self.position)
        qkv = self._project(x, embedding, grid, mask) if project is None else project(x)
        return attention_packed(
            qkv.unflatten(-1, (3, self.heads, self.dim // self.heads)),
            grid=grid, position=rest, mask=mask, scale=self.scale,
            dropout=self.dropout if self.training else 0.0, kernel=self.kernel,
        )  # fmt: skip

    def _project(
        self, x: Float[Tensor, "batch tokens dim"], embedding: Embedding | None, grid: Grid, mask: Mask | None
    ) -> Float[Tensor, "batch tokens three_dim"]:
        if embedding is None:
            return self.qkv(x)
        qk = project_rows(self.qkv, add_embedding(x, embedding, grid, mask), slice(2 * self.dim))
        return torch.cat([qk, project_rows(self.qkv, x, slice(2 * self.dim, None))], dim=-1)

    def extra_repr(self) -> str:
        said = {"grid": self.grid, "mask": self.mask, "scale": self.scale}
        parts = [f"{name}={value}" for name, value in said.items() if value is not None]
        parts += [f"{name}={getattr(self, name)}" for name in ("dropout", "proj_dropout") if getattr(self, name)]
        parts += [f"kernel={self.kernel!r}"] if self.kernel != "auto" else []
        return ", ".join([f"dim={self.dim}, heads={self.heads}", *parts])
