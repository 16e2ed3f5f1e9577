"""A candidate: the model of one scheme, whoever built it, and what the comparison asks of it beyond its forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from locant import flops
from locant.attend import plan
from locant.compare.placement import LayerPosition, Placement, TokenPosition
from locant.grid import Grid
from locant.planner import Plan
from locant.positions.position import Position

Builder = Callable[[Placement], nn.Module]


@dataclass(frozen=True)
class Candidate:
    """`net = build(placement)`: called with examples `[batch, *item]`, it answers with logits `[batch, classes]`."""

    net: nn.Module
    placement: Placement
    build: Builder

    @staticmethod
    def of(build: Builder, placement: Placement) -> Candidate:
        """Build it, from torch's seed."""
        return Candidate(build(placement), placement, build)

    def __call__(self, x: Tensor) -> Any:
        with self.blame():
            return self.net(x)

    def blame(self) -> AbstractContextManager[None]:
        """What goes wrong in code of the user's becomes a sentence with file and line."""
        own = getattr(self.build, "blame", None)
        what = f"works on {[*self.placement.item]} with {self.placement.scheme!r}"
        return nullcontext() if own is None else cast(AbstractContextManager[None], own(what))

    @property
    def grid(self) -> Grid:
        """Of the tokens that enter its first layer; class tokens are its prefix."""
        first: list[Any] = [*self.placement.handed.layers, *self.placement.handed.tokens]
        return first[0].grid if first else self.placement.grid

    @property
    def tokens(self) -> list[nn.Module]:
        """The embeddings on its tokens."""
        return [embedding for handed in self.placement.handed.tokens for embedding in handed]

    def blocks(self) -> list[LayerPosition]:
        """What each layer attends with."""
        return self.placement.handed.layers

    def positions(self) -> list[Position]:
        """Every scheme inside, tokens' first, then layer by layer."""
        handed: list[TokenPosition | LayerPosition] = [*self.placement.handed.tokens, *self.placement.handed.layers]
        return [position for module in handed for position in module if isinstance(position, Position)]

    def position_parameters(self) -> int:
        return sum(p.numel() for position in self.positions() for p in position.parameters())

    def moved_to(self, item: tuple[int, ...]) -> tuple[Candidate, str]:
        """The same weights in a model built for larger examples of the same scale, and how position came there.

        Raises:
            ValueError: if the builder cannot, or if weights beside position depend on the size.
        """
        own = self.placement
        placement = Placement(own.task, own.design, item, own.patch, own.classes, trained=own.handed)
        with torch.random.fork_rng(devices=()):  # what is drawn here is written over
            moved = Candidate.of(self.build, placement)
        state, inside = moved.net.state_dict(), moved.names_of_position()
        trained = {name: t for name, t in self.net.state_dict().items() if name not in inside}
        strange = [
            f"{name} {[*state[name].shape] if name in state else 'missing'} instead of {[*t.shape]}"
            for name, t in trained.items()
            if name not in state or state[name].shape != t.shape
        ]
        if strange:
            raise ValueError(
                f"weights beside position need one shape for every size of an example; on {item} there is "
                f"{', '.join(strange[:3])}. Put what depends on the size into position.tokens or position.layer."
            )
        device = next((t.device for t in self.net.state_dict().values()), torch.device("cpu"))
        moved.net.load_state_dict({**state, **trained})
        moved.net.to(device).train(self.net.training)
        same = moved.grid.shape == self.grid.shape
        return moved, "the same grid" if same else placement.how

    def names_of_position(self) -> set[str]:
        """The names in the state dict of all that was handed out."""
        handed = {id(m) for m in (*self.placement.handed.tokens, *self.placement.handed.layers)}
        return {
            f"{name}.{inner}" if name else inner
            for name, module in self.net.named_modules(remove_duplicate=False)
            if id(module) in handed
            for inner in module.state_dict()
        }

    def plans(self, batch: int) -> list[Plan]:
        """How each pass of each layer would attend to so many examples."""
        plans = []
        for layer in self.blocks():
            for at in layer.passes_at(layer.grid):
                q = torch.empty(batch, layer.heads, layer.grid.tokens, layer.dim // layer.heads, device="meta")
                plans.append(plan(q, q, q, **at))
        return plans

    def flops(self) -> int | None:
        """FLOPs of a forward pass on one example: attention as the plan runs it, two per other multiply-add. None for
        a model that can't be counted."""
        try:
            counted = flops.count(self.net, torch.empty(1, *self.placement.item, device="meta")).parts
        except ValueError:
            if self.net.__module__.split(".")[0] == "locant":
                raise
            return None
        attention = sum(plan.cost.flops for plan in self.plans(1))
        return 2 * (counted.projections + counted.convolution) + attention
