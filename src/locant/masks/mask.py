"""The contract of a mask, several masks at once, and what masks that hold tensors share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils import _pytree

from locant.grid import Grid, Tokens


class Mask(ABC):
    """Which query may see which key."""

    @abstractmethod
    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "#batch #heads #groups #queries #keys"]:
        """True where the query may see the key, for tokens chosen in groups."""

    def members(self) -> Iterator[Mask]:
        """The masks that this one joins; itself, if it is a single one."""
        yield self

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        """This mask, checked against the grids it is used on and laid out by token. Raises ValueError."""
        return self

    def allowed(
        self, grid: Grid, key_grid: Grid | None = None, device: torch.device | str | None = None
    ) -> Bool[Tensor, "#batch #heads queries keys"]:
        """The dense truth, for looking at it and for the reference."""
        key_grid = grid if key_grid is None else key_grid
        queries, keys = grid.select(device=device), key_grid.select(device=device)
        pairs = self.bound(grid, key_grid).pairs(queries, keys)[:, :, 0]
        return pairs.expand(*pairs.shape[:2], grid.tokens, key_grid.tokens)

    def __and__(self, other: Mask) -> Mask:
        return Every((*self.members(), *other.members()))

    def __repr__(self) -> str:
        shapes = [f"{name}={list(t.shape)}" for name, t in vars(self).items() if isinstance(t, Tensor)]
        return f"{type(self).__name__}({', '.join(shapes)})"


class Every(Mask):
    """Several masks at once: a pair must be allowed by every one. Written `a & b`."""

    def __init__(self, masks: tuple[Mask, ...]) -> None:
        self.masks = masks

    def members(self) -> Iterator[Mask]:
        return iter(self.masks)

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.masks))

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        return Every(tuple(m.bound(grid, key_grid) for m in self.masks))

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "#batch #heads #groups #queries #keys"]:
        pairs = self.masks[0].pairs(queries, keys)
        for mask in self.masks[1:]:
            pairs = pairs & mask.pairs(queries, keys)
        return pairs


def lay_by_token(what: str, name: str, value: Tensor, grid: Grid, fill: int) -> tuple[Tensor, bool]:
    """`value` as `[batch, tokens]`, and whether it spoke of the prefix itself."""
    if tuple(value.shape[1:]) == (grid.tokens,):
        return value, True
    if tuple(value.shape[1:]) == grid.shape:
        prefix = value.new_full((value.shape[0], grid.prefix), fill)
        return torch.cat([prefix, value.flatten(1)], dim=1), False
    raise ValueError(
        f"{what} on {grid} needs `{name}` of shape [batch, {grid.tokens}] (prefix included) or "
        f"[batch, {', '.join(map(str, grid.shape))}]; got {list(value.shape)}. Lay it out for that grid."
    )


def register_node(kind: type[Mask], names: tuple[str, ...]) -> None:
    """Masks that hold tensors are pytree nodes, so that they pass compile, export and checkpointing."""

    def flatten(mask: Any) -> tuple[list[Any], Any]:
        return [getattr(mask, n) for n in names], getattr(mask, "_literal", None)

    def with_keys(mask: Any) -> tuple[list[Any], Any]:
        children, literal = flatten(mask)
        return [(_pytree.GetAttrKey(n), child) for n, child in zip(names, children, strict=True)], literal

    def unflatten(children: Any, literal: Any) -> Any:
        mask = object.__new__(kind)
        for name, child in zip(names, children, strict=True):
            setattr(mask, name, child)
        if literal is not None:
            setattr(mask, "_literal", literal)  # noqa: B010 (only Segments has it)
        return mask

    name = f"locant.masks.{kind.__name__}"
    _pytree.register_pytree_node(kind, flatten, unflatten, serialized_type_name=name, flatten_with_keys_fn=with_keys)


register_node(Every, ("masks",))
