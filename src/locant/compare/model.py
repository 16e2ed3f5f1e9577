"""The small transformer that every scheme is tried in: patches, layers, mean, classes.

    tokens = patches W + Σ embeddings
    x ← layers(x)
    logits = mean(norm x) W_out

The mean over tokens has no position of its own, so without a scheme the model sees a bag of patches. One scheme puts
causal convolutions in front of it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant import flops
from locant.attend import plan
from locant.compare.layers import Layer, OverTime
from locant.compare.schemes import LayerSpec, Scheme, mask_of
from locant.grid import Grid
from locant.planner import Plan
from locant.positions.position import Entrance, Position
from locant.tasks.kind import Kind

# How what is learned on a grid comes to a larger one, by entrance: what it is called, and a method of locant.resizing.
RESIZED = {"bias": ("table", "clip"), "embed": ("embedding", "linear")}


@runtime_checkable
class Resizable(Protocol):
    """A scheme whose parameters lie on a grid."""

    grid: Grid
    entrance: ClassVar[Entrance]

    def resized(self, grid: Grid, *, method: str) -> Position: ...


class Classifier(nn.Module):
    """The model of one scheme.

    Args:
        kind: of the task, which says where an example has its axes.
        scheme: where position enters.
        item: shape of one example: images `(C, H, W)`, clips `(T, C, H, W)`, sequences `(L, C)`.
        patch: size of a patch, per axis of the grid.
        classes, dim, depth, heads: as usual.
    """

    def __init__(
        self,
        kind: Kind,
        scheme: Scheme,
        item: tuple[int, ...],
        patch: tuple[int, ...],
        classes: int,
        dim: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.kind, self.scheme, self.patch = kind, scheme, patch
        self.grid = grid_of(kind, item, patch)
        shape = LayerSpec(self.grid, dim, heads, depth=depth)
        self.embed = nn.Linear(item[kind.channel] * math.prod(patch), dim)
        self.layers = nn.ModuleList([Layer(scheme, replace(shape, layer=index)) for index in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        self.tokens = nn.ModuleList(scheme.tokens(shape))
        self.ordered = OverTime(dim, self.grid.shape) if scheme.ordered and self.grid.shape[0] > 1 else None
        self._start()

    def _start(self) -> None:
        """All weights but positions' start as normals of 1/sqrt(inputs), from a stream of their own: the seed gives
        every scheme the same start, however many numbers its positions drew. What only some designs have comes last."""
        stream = torch.Generator().manual_seed(torch.initial_seed())
        added_last = {
            id(m) for added in (self.ordered, *(x.adapters for x in self.blocks())) if added for m in added.modules()
        }
        for module in sorted(self.modules(), key=lambda m: id(m) in added_last):
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=stream)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in self.blocks():
            if self.scheme.local and any(position is not None for _, position in layer.passes()):
                nn.init.eye_(layer.attention.qkv.weight.data[-layer.attention.dim :])

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        grid = self.grid_of(tuple(x.shape[1:]))
        x = self.embed(patches(self.kind, x, self.patch))
        for embedding in self.tokens:
            x = x + embedding(grid)
        for layer in self.blocks():
            x = layer(x, grid)
        if self.ordered is not None:
            x = self.ordered(x, grid)
        return self.head(self.norm(x).mean(1))

    def grid_of(self, item: tuple[int, ...]) -> Grid:
        """The grid of an example of this shape."""
        return grid_of(self.kind, item, self.patch)

    def blocks(self) -> list[Layer]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def positions(self) -> list[Position]:
        """Every scheme inside, tokens' first, then layer by layer."""
        modules = [*self.tokens, *(p for layer in self.blocks() for p in layer.positions)]
        return [p for p in modules if isinstance(p, Position)]

    def position_parameters(self) -> int:
        return sum(p.numel() for position in self.positions() for p in position.parameters())

    def moved_to(self, item: tuple[int, ...]) -> tuple[Classifier, str]:
        """A copy that takes larger examples of the same scale, and how it does so: tables keep what they know of each
        offset and repeat their edge beyond it, learned embeddings are stretched."""
        grid = self.grid_of(item)
        moved, how = copy.deepcopy(self), "its own reach"
        if grid.shape == self.grid.shape:
            return moved, "the same grid"
        for modules, fixed in ((moved.tokens, ()), *((x.positions, x.windowed()) for x in moved.blocks())):
            for index, position in enumerate(modules):
                if index not in fixed and isinstance(position, Resizable):
                    larger = _enlarge(position.grid, self.grid, grid)
                    if larger != position.grid:
                        what, method = RESIZED[position.entrance]
                        modules[index] = position.resized(larger, method=method)
                        how = f"{what} resized ({method})"
        moved.grid = grid
        return moved, how

    def plans(self, item: tuple[int, ...], batch: int) -> list[Plan]:
        """How each pass of each layer would attend to examples of this size."""
        grid = self.grid_of(item)
        plans = []
        for layer in self.blocks():
            heads = layer.attention.heads
            q = torch.empty(batch, heads, grid.tokens, layer.attention.dim // heads, device="meta")
            for reach, position in layer.passes():
                plans.append(plan(q, q, q, grid=grid, position=position, mask=mask_of(reach, grid)))
        return plans

    def flops(self, item: tuple[int, ...]) -> int:
        """FLOPs of a forward pass on one example: attention as the plan runs it, two per other multiply-add."""
        counted = flops.count(self, torch.empty(1, *item, device="meta")).parts
        attention = sum(plan.cost.flops for plan in self.plans(item, 1))
        return 2 * (counted.projections + counted.convolution) + attention


def grid_of(kind: Kind, item: tuple[int, ...], patch: tuple[int, ...]) -> Grid:
    """The grid of an example's patches."""
    sizes = kind.sizes(item)
    if any(size % p or size < p for size, p in zip(sizes, patch, strict=True)):
        raise ValueError(
            f"patches of {patch} must divide examples of {sizes}; they don't. Choose --patch or --size so that they do."
        )
    return Grid(*(size // p for size, p in zip(sizes, patch, strict=True)))


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


def _enlarge(scheme: Grid, old: Grid, new: Grid) -> Grid:
    """`own` grown as the model's grid grows, axis by axis; axes of size 1 that the scheme ignores stay so."""
    sizes = [n if mine == o else mine for mine, o, n in zip(scheme.shape, old.shape, new.shape, strict=True)]
    return Grid(*sizes, prefix=scheme.prefix)
