"""What a builder is handed: the facts of the task, and what one scheme does, to be placed where the attention is.

    def build(position: Placement) -> nn.Module:    # is called once per scheme, with the same seed
        tokens = position.tokens(dim)               # a module: x ← tokens(x), with what the scheme adds to tokens
        layer = position.layer(index, dim, heads)   # a module: for at in layer(): attention(q, k, v, **at)

`at` is a dictionary with `grid`, `position` and `mask`, for `locant.attention` and for `locant.nn.Attention`. Most
schemes attend once per layer. Some attend twice with the same weights, some inside windows, `none` as torch does: the
loop over passes serves them all. Both modules belong on the model (`self.x = ...`): what they learn is saved with it.

What is handed out is drawn from a stream of its own, so that a seed gives every scheme's model the same other weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.checks import check_types
from locant.compare.schemes import LayerSpec, Pass, Reach, Scheme, mask_of
from locant.grid import Grid
from locant.masks import Windows
from locant.positions.position import Embedding, Entrance, Position
from locant.tasks.kind import Kind

# How what is learned on a grid comes to a larger one, by entrance: what it is called, and a method of locant.resizing.
RESIZED = {"bias": ("table", "clip"), "embed": ("embedding", "linear")}


@runtime_checkable
class Resizable(Protocol):
    """A scheme whose parameters lie on a grid."""

    grid: Grid
    entrance: ClassVar[Entrance]

    def resized(self, grid: Grid, *, method: str) -> Position: ...


class TokenPosition(nn.ModuleList):
    """x ← x + Σ embeddings of the grid's tokens: what a scheme adds to tokens, which for most is nothing.

    x [batch, tokens, dim], the grid's prefix first. The grid may be given at the call, for inputs of another size.
    """

    def __init__(self, embeddings: tuple[Embedding, ...], grid: Grid) -> None:
        super().__init__(embeddings)
        self.grid, self.calls, self.silent = grid, 0, False

    def forward(self, x: Float[Tensor, "batch tokens dim"], grid: Grid | None = None) -> Tensor:
        self.calls += 1
        for embedding in () if self.silent else self:
            x = x + embedding(self.grid if grid is None else grid)
        return x


class LayerPosition(nn.ModuleList):
    """What one layer attends with: its passes, in order, each the keywords of one call of attention.

    Called with a grid, or without for the one that it was made for, it returns
    `[{"grid": ..., "position": ..., "mask": ...}, ...]`.
    """

    def __init__(self, passes: tuple[Pass, ...], spec: LayerSpec) -> None:
        super().__init__([nn.Identity() if position is None else position for _, position in passes])
        self.reaches: tuple[Reach, ...] = tuple(reach for reach, _ in passes)
        self.grid, self.dim, self.heads = spec.grid, spec.dim, spec.heads
        self.calls, self.silent = 0, False

    def forward(self, grid: Grid | None = None) -> list[dict[str, Any]]:
        self.calls += 1
        grid = self.grid if grid is None else grid
        if self.silent:
            return [{"grid": grid, "position": None, "mask": None} for _ in self.reaches]
        return self.passes_at(grid)

    def passes_at(self, grid: Grid) -> list[dict[str, Any]]:
        """The keywords of each call of attention on a grid."""
        return [{"grid": grid, "position": p, "mask": mask_of(reach, grid)} for reach, p in self.passes()]

    def passes(self) -> list[Pass]:
        """Who sees whom, and by which scheme."""
        return [(r, p if isinstance(p, Position) else None) for r, p in zip(self.reaches, self, strict=True)]

    def windowed(self) -> tuple[int, ...]:
        """The passes inside windows, which stay as wide on larger grids."""
        return tuple(index for index, reach in enumerate(self.reaches) if isinstance(reach, Windows))

    @property
    def acts(self) -> bool:
        """Whether it says anything at all: a layer without position that sees all tokens does not."""
        return any(reach != "joint" or position is not None for reach, position in self.passes())


@dataclass(frozen=True)
class Handed:
    """The modules that a builder asked for, in its order."""

    tokens: list[TokenPosition]
    layers: list[LayerPosition]


class Placement:
    """One scheme on one task, ready to be placed.

    Attributes:
        kind: "images", "clips" or "sequences".
        item: shape of one example: images `(C, H, W)`, clips `(T, C, H, W)`, sequences `(L, C)`.
        patch: cells of an example per token and axis, as `--patch` says or the task has it.
        grid: of the tokens that these patches make; a builder that cuts otherwise passes grids of its own.
        classes: how many there are.
        scheme: the name of the scheme, for messages: a model that reads it is no longer compared by position alone.
        start: how wide what the scheme learns starts; None is the published value.
    """

    def __init__(
        self,
        kind: Kind,
        scheme: Scheme,
        item: tuple[int, ...],
        patch: tuple[int, ...],
        classes: int,
        trained: Handed | None = None,
        start: float | None = None,
    ) -> None:
        self.task, self.design = kind, scheme  # for what is built here; a builder of one's own needs neither
        self.kind, self.scheme, self.item, self.patch, self.classes = kind.name, scheme.name, item, patch, classes
        self.handed = Handed([], [])
        self.trained, self.start = trained, start
        self.how = "its own reach"
        self.seed = torch.initial_seed()

    @property
    def channels(self) -> int:
        """Channels of an example."""
        return self.item[self.task.channel]

    @property
    def grid(self) -> Grid:
        return grid_of(self.task, self.item, self.patch)

    @check_types
    def tokens(self, dim: int, grid: Grid | None = None) -> TokenPosition:
        """What the scheme adds to tokens of `dim` channels: a module, called with tokens `[batch, tokens, dim]`.

        Args:
            dim: channels of a token.
            grid: where they are; default `self.grid`. Class tokens are its prefix.
        """
        grid = self.grid if grid is None else grid
        self._check_sizes("tokens", dim=dim)
        spec = LayerSpec(grid, dim, 1, start=self.start)
        earlier = None if self.trained is None else self._earlier(self.trained.tokens, len(self.handed.tokens))
        made = self._draw(lambda: TokenPosition(self.design.tokens(spec), grid)) if earlier is None else earlier
        if earlier is not None:
            self._resize(made, grid, ())
        self.handed.tokens.append(made)
        return made

    @check_types
    def layer(
        self,
        index: int,
        dim: int,
        heads: int,
        *,
        depth: int | None = None,
        grid: Grid | None = None,
        window: Windows | None = None,
    ) -> LayerPosition:
        """What layer `index` attends with: a module that returns its passes.

        Args:
            index: counts from 0; some schemes treat every second layer otherwise.
            dim: channels of a token; a head has dim / heads.
            heads: of the attention.
            depth: how many layers there are; default all up to this one.
            grid: where tokens are; default `self.grid`. Class tokens are its prefix.
            window: the layer's own windows, in which the scheme acts; None is all tokens. On larger examples they stay.
        """
        grid = self.grid if grid is None else grid
        self._check_sizes("layer", dim=dim, heads=heads)
        if index < 0 or dim % heads:
            raise ValueError(
                "position.layer needs the number of a layer, from 0, and a dim that its heads divide; "
                f"got index={index}, dim={dim}, heads={heads}. Write position.layer(0, dim, heads)."
            )
        spec = LayerSpec(grid, dim, heads, layer=index, depth=index + 1 if depth is None else depth, start=self.start)
        earlier = None if self.trained is None else self._earlier(self.trained.layers, len(self.handed.layers))
        made = self._draw(lambda: LayerPosition(self._passes(spec, window), spec)) if earlier is None else earlier
        if earlier is not None:
            self._resize(made, grid, made.windowed())
        self.handed.layers.append(made)
        return made

    def _passes(self, spec: LayerSpec, window: Windows | None) -> tuple[Pass, ...]:
        """The scheme's passes, those over all tokens inside windows that a layer has of its own."""
        if window is None:
            return self.design.passes(spec)
        inside = self.design.passes(replace(spec, grid=Grid(*window.size)))
        return tuple((window if reach == "joint" else reach, position) for reach, position in inside)

    def _draw(self, make: Callable[[], Any]) -> Any:
        """From a stream of its own: the other weights of a model are the same whatever a scheme draws."""
        place = len(self.handed.tokens) + len(self.handed.layers)
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed((self.seed + 0x9E3779B97F4A7C15 * (place + 1)) % 2**63)
            return make()

    def _earlier(self, modules: list[Any], place: int) -> Any:
        """A copy of the trained module that this one stands for."""
        if place >= len(modules):
            raise ValueError(
                "a builder needs to ask for the same positions whatever the size of an example; on a larger one it "
                f"asked for more than {len(modules)}. Build as many layers for every size."
            )
        return copy.deepcopy(modules[place])

    def _resize(self, module: TokenPosition | LayerPosition, grid: Grid, fixed: tuple[int, ...]) -> None:
        """Tables keep what they know of each offset and repeat their edge beyond it, embeddings are stretched."""
        for index, position in enumerate(module):
            if index not in fixed and isinstance(position, Resizable):
                larger = _enlarge(position.grid, module.grid, grid)
                if larger != position.grid:
                    what, method = RESIZED[position.entrance]
                    module[index] = position.resized(larger, method=method)
                    self.how = f"{what} resized ({method})"
        module.grid = grid

    def _check_sizes(self, asked: str, **sizes: int) -> None:
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(
                    f"position.{asked} needs a whole number of at least 1 for {name}; got {size}. "
                    f"Write position.{asked}({'' if asked == 'tokens' else '0, '}{', '.join(sizes)})."
                )


def grid_of(kind: Kind, item: tuple[int, ...], patch: tuple[int, ...]) -> Grid:
    """The grid of an example's patches."""
    sizes = kind.sizes(item)
    if any(size % p or size < p for size, p in zip(sizes, patch, strict=True)):
        raise ValueError(
            f"patches of {patch} must divide examples of {sizes}; they don't. Choose --patch or --size so that they do."
        )
    return Grid(*(size // p for size, p in zip(sizes, patch, strict=True)))


def _enlarge(scheme: Grid, old: Grid, new: Grid) -> Grid:
    """`scheme` grown as the model's grid grows, axis by axis; axes of size 1 that the scheme ignores stay so."""
    sizes = [n if mine == o else mine for mine, o, n in zip(scheme.shape, old.shape, new.shape, strict=True)]
    return Grid(*sizes, prefix=scheme.prefix)
