"""Locant's own blocks: norms, gammas and sums with their products. Their attention is Locant's already."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from locant.call import Positions
from locant.grid import Grid
from locant.integrations.family import Family, Offer, class_name
from locant.integrations.halves import JOINED, Half, conclude, half_of, norm_of, project, run_perceptron
from locant.integrations.layers import is_packed, parts_of
from locant.integrations.replacing import Replacement
from locant.integrations.windowed import project_angles
from locant.masks import Mask
from locant.nn.arguments import split_embedding, token_grid

_NN = "locant.nn"
ATTENTIONS = {f"{_NN}.self_attention.Attention", f"{_NN}.gated.GatedAttention"} | {
    f"{_NN}.{name}" for name in ("window.WindowAttention", "cosine.CosineWindowAttention")
}


def _joined_block(behind: bool) -> Callable[..., Tensor]:
    """A forward whose norms stand in front of the branches, or behind them."""

    def forward(
        self: Any, x: Tensor, *, grid: Grid | None = None, position: Positions = None, mask: Mask | None = None
    ) -> Tensor:
        attention, layers = self.attention, parts_of(self.mlp)
        joined = layers is not None and _joins(attention, position) and _is_like(x, self.dim)
        half = half_of(x, self.norm1, (), (self.norm2, attention, self.mlp), self.gamma1, behind) if joined else None
        second = norm_of(self.norm2)
        if half is None or layers is None or second is None:
            return type(self).forward(self, x, grid=grid, position=position, mask=mask)
        # 1 attention; zeros that fill a map up come behind its norm
        if half.norm is not None and _fills(attention, x, grid):
            x, half = self.norm1(x), half._replace(norm=None)
        out = attention.merged_heads(x, grid=grid, position=position, mask=mask, project=_projection(attention, half))
        x = conclude(attention.proj, None, out, half)
        # 2 perceptron
        half = Half(None, self.gamma2, x, second) if behind else Half(second, self.gamma2, x)
        return run_perceptron(layers, x, half)

    return forward


def _is_like(x: Any, dim: int) -> bool:
    """Whether x is what a block takes; if not, its own forward says so."""
    return isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point() and x.shape[-1] == dim


def _joins(attention: Any, position: Positions) -> bool:
    """Whether its products take what stands around them: q, k and v are projected from the same tokens then."""
    if class_name(type(attention)) not in ATTENTIONS or "forward" in vars(attention):
        return False
    layers = [getattr(attention, name) for name in ("qkv", "qk", "v", "proj") if hasattr(attention, name)]
    return all(map(is_packed, layers)) and split_embedding(position, attention.position)[0] is None


def _fills(attention: Any, x: Tensor, grid: Grid | None) -> bool:
    return hasattr(attention, "fills") and attention.fills(token_grid(x, attention.grid if grid is None else grid))


def _projection(attention: Any, half: Half) -> Callable[[Tensor], Any]:
    if hasattr(attention, "qk"):
        return lambda tokens: (project(attention.qk, tokens, half), project(attention.v, tokens, half))
    if not hasattr(attention, "logit_scale"):
        return partial(project, attention.qkv, half=half)
    bias = None
    if attention.q_bias is not None:
        bias = torch.cat((attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias))
    return lambda tokens: project_angles(attention.qkv, tokens, bias, attention.logit_scale)


def _family(name: str, behind: bool, known: str) -> Family:
    forward = _joined_block(behind)

    def offer(block: nn.Module) -> Offer:
        owner: Any = block
        trial = (torch.randn(2, 9, owner.dim, dtype=torch.float64),)
        return Offer(Replacement({"forward": forward}), JOINED, lambda _: trial)

    return Family("block", (name,), ("forward", "_path"), offer, frozenset({known}))


FAMILIES = (
    _family(f"{_NN}.block.Block", False, "18b39dbe679d366c"),
    _family("locant.models.swin_v2.ResPostNormBlock", True, "0680e2e507c6db9c"),
)
