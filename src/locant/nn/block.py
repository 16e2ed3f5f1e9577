"""Attention and a perceptron, each behind a norm, both residual: the block of vision transformers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.call import Positions
from locant.checks import check_number, check_tensor, check_types, description
from locant.grid import Grid
from locant.masks import Mask
from locant.nn.arguments import check_channels, check_probabilities
from locant.nn.perceptron import Perceptron
from locant.nn.self_attention import Attention


def drop_samples(branch: Float[Tensor, "batch tokens dim"], probability: float) -> Float[Tensor, "batch tokens dim"]:
    """0 for whole samples, drawn with this probability, and the others so much larger (drop path)."""
    if probability == 0:
        return branch
    kept = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(1 - probability)
    return branch * kept / (1 - probability)


class Block(nn.Module):
    """x ← x + path(attention(norm1(x))),  x ← x + path(mlp(norm2(x))),  mlp = fc2 ∘ GELU ∘ fc1.

    x [batch, tokens, dim]; fc1 [mlp_ratio · dim, dim], fc2 back; `path` is drop path: in training a sample's whole
    branch is left out with probability p, and divided by 1 - p otherwise, each branch drawn by itself. Under LayerScale
    a branch is first multiplied by one learned number per channel: gamma1 [dim] behind the attention, gamma2 [dim]
    behind the perceptron. Without it there are no such parameters.

    Where it differs: transformers' Swin has no drop path on the perceptron's branch.
    Source: ViT (arXiv 2010.11929, eqs. 2 and 3); drop path: Deep Networks with Stochastic Depth (arXiv 1603.09382);
    LayerScale: CaiT (arXiv 2103.17239, eq. 5).

    Args:
        dim: channels of a token.
        heads: of the attention.
        mlp_ratio: hidden channels of the perceptron over dim, rounded down.
        attention: a module called as `Attention` is, with a width of dim; None builds `Attention(dim, heads)` with
            the grid, position and mask given here, which belong to an attention of one's own otherwise.
        grid, position, mask: of the attention that is built.
        activation: of the perceptron; None is GELU.
        dropout: behind the attention's projection and behind both layers of the perceptron, in training only; on the
            weights of attention there is none unless your own module has it.
        drop_path: p above.
        norm_eps: of both norms.
        layer_scale: what both gammas start from (DeiT III has 1e-6); None is no LayerScale.

    Raises:
        ValueError: for sizes that do not divide, probabilities out of range, or an attention given together with what
            would build one.
    """

    gamma1: nn.Parameter | None
    gamma2: nn.Parameter | None

    @check_types
    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        attention: nn.Module | None = None,
        grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
        activation: nn.Module | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_probabilities("Block", dropout=dropout, drop_path=drop_path)
        if layer_scale is not None:
            check_number("Block", "layer_scale", layer_scale)
        hidden = int(dim * mlp_ratio)
        if hidden < 1:
            raise ValueError(
                f"Block needs an `mlp_ratio` that leaves a hidden channel; got {mlp_ratio} of dim={dim}. "
                f"Use {1 / max(dim, 1):.3g} or more; 4.0 is usual."
            )
        if attention is None:
            attention = Attention(dim, heads, grid=grid, position=position, mask=mask, proj_dropout=dropout)
        elif not (grid is None and position is None and mask is None):
            raise ValueError(
                "Block takes `attention` as it is, and needs grid, position and mask to be left out then; "
                "got one of them as well. Give them to the attention, or at the call."
            )
        self.dim, self.drop_path = dim, drop_path
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Perceptron(dim, hidden, activation=activation, dropout=dropout, out_dropout=dropout)
        for gamma in ("gamma1", "gamma2"):
            start = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.register_parameter(gamma, start)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        grid: Grid | None = None,
        position: Positions = None,
        mask: Mask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Both branches. `grid`, `position` and `mask` go to the attention."""
        check_tensor("Block", "x", x, "a tensor [batch, tokens, dim]")
        if x.ndim != 3 or not x.is_floating_point():
            raise ValueError(
                f"Block needs `x` as floating numbers [batch, tokens, dim]; got {description(x)}. "
                "Lay the cells of the grid along one axis: x.flatten(1, -2)."
            )
        check_channels(x, self.dim)
        x = x + self._path(self.attention(self.norm1(x), grid=grid, position=position, mask=mask), self.gamma1)
        return x + self._path(self.mlp(self.norm2(x)), self.gamma2)

    def _path(
        self, branch: Float[Tensor, "batch tokens dim"], gamma: Float[Tensor, " dim"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        branch = branch if gamma is None else branch * gamma
        return drop_samples(branch, self.drop_path) if self.training else branch

    def extra_repr(self) -> str:
        return f"drop_path={self.drop_path}" if self.drop_path else ""
