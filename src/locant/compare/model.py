"""The built-in transformer that every scheme is tried in: patches, layers, mean, classes.

    tokens = patches W + Σ embeddings
    x ← layers(x)
    logits = mean(norm x) W_out

The mean over tokens has no position of its own, so without a scheme the model sees a bag of patches. One scheme puts
causal convolutions in front of it. It is built as a model of one's own would be, from a `Placement`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.compare.layers import Layer, OverTime
from locant.compare.placement import Placement, grid_of
from locant.tasks.kind import Kind


class Classifier(nn.Module):
    """The model of one scheme.

    Args:
        position: the scheme, and the facts of the task.
        dim, depth, heads: as usual.
    """

    def __init__(self, position: Placement, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.kind, self.scheme, self.patch = position.task, position.design, position.patch
        self.grid = position.grid
        self.embed = nn.Linear(position.channels * math.prod(self.patch), dim)
        self.layers = nn.ModuleList([Layer(position, index, dim, depth, heads) for index in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, position.classes)
        self.tokens = position.tokens(dim)
        self.ordered = OverTime(dim, self.grid.shape) if self.scheme.ordered and self.grid.shape[0] > 1 else None
        self._start()

    def _start(self) -> None:
        """All weights but positions' start as normals of 1/sqrt(inputs), from a stream of their own: the seed gives
        every scheme the same start, however many numbers its positions drew. What only some designs have comes last."""
        stream = torch.Generator().manual_seed(torch.initial_seed())
        added_last = {
            id(m) for added in (self.ordered, *(x.adapters for x in self.blocks())) if added for m in added.modules()
        }
        handed = {id(m) for own in (self.tokens, *(x.positions for x in self.blocks())) for m in own.modules()}
        for module in sorted(self.modules(), key=lambda m: id(m) in added_last):
            if isinstance(module, nn.Linear | nn.Conv3d) and id(module) not in handed:
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=stream)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in self.blocks():
            if self.scheme.local and any(position is not None for _, position in layer.positions.passes()):
                nn.init.eye_(layer.attention.qkv.weight.data[-layer.attention.dim :])

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        grid = grid_of(self.kind, tuple(x.shape[1:]), self.patch)
        x = self.tokens(self.embed(patches(self.kind, x, self.patch)), grid)
        for layer in self.blocks():
            x = layer(x, grid)
        if self.ordered is not None:
            x = self.ordered(x, grid)
        return self.head(self.norm(x).mean(1))

    def blocks(self) -> list[Layer]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]


def patches(kind: Kind, x: Float[Tensor, "batch ..."], patch: tuple[int, ...]) -> Float[Tensor, "batch tokens numbers"]:
    """Cut examples into patches, row-major; numbers inside a patch keep their order in the example."""
    cut = dict(zip(kind.axes, patch, strict=True))
    sizes: list[int] = []
    outer: list[int] = []
    inner: list[int] = []
    for axis, size in enumerate(x.shape[1:]):
        if axis in cut:
            outer.append(1 + len(sizes))
            sizes.append(size // cut[axis])
        inner.append(1 + len(sizes))
        sizes.append(cut.get(axis, size))
    return x.reshape(len(x), *sizes).permute(0, *outer, *inner).flatten(1 + len(outer)).flatten(1, len(outer))
