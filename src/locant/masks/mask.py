"""The contract of a mask, several masks at once, and what masks that hold tensors share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from locant import dispatch
from locant.checks import ADVICE, check_type, description
from locant.grid import Grid, check_cell, check_grid
from locant.tokens import Tokens

if TYPE_CHECKING:
    from locant.page.drawing import Drawing


def _refused(came: str, instead: str) -> Callable[..., Any]:
    """An operator of Python that masks do not have."""

    def operator(*_: object) -> NoReturn:
        raise ValueError(
            f"masks join by & alone, which keeps the pairs that each of them allows; got {came}. Write {instead}."
        )

    return operator


class Mask(ABC):
    """Which query may see which key. Masks join by `&`."""

    example: ClassVar[str]  # how one is written, for errors
    tensors: ClassVar[tuple[str, ...]] = ()  # the names of those that it holds

    @abstractmethod
    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "#batch #heads #groups #queries #keys"]:
        """True where the query may see the key, for tokens chosen in groups."""

    def members(self) -> Iterator[Mask]:
        """The masks that this one joins; itself, if it is a single one."""
        yield self

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        """This mask, checked against the grids it is used on and laid out by token. Raises ValueError."""
        return self

    def cut(self, queries: slice, keys: slice) -> Mask:
        """The part of a mask that is `bound`: for these tokens (prefix included in the count) as if alone.

        What a shard of the sequence, or a step against a cache, attends under. Order and windows are said of
        coordinates, which a slice of a grid keeps: they stay as they are.
        """
        return self

    def to(self, device: torch.device | str | int) -> Mask:
        """The mask with its tensors on `device`; itself where it has none. Raises ValueError for what is no device."""
        check_type("Mask.to", "device", device, torch.device | str | int)
        try:
            where = torch.device(device)
        except RuntimeError as error:
            raise ValueError(
                f"Mask.to needs a `device` of torch's; got {device!r}. Name one such as 'cpu' or 'cuda:0'."
            ) from error
        return self._on(where)

    def _on(self, device: torch.device) -> Mask:
        return self

    def allowed(
        self, grid: Grid, key_grid: Grid | None = None, device: torch.device | str | None = None
    ) -> Bool[Tensor, "#batch #heads queries keys"]:
        """The dense truth, for looking at it and for the reference."""
        check_grid("Mask.allowed", "grid", grid)
        check_grid("Mask.allowed", "key_grid", key_grid, needed=False)
        key_grid = grid if key_grid is None else key_grid
        queries, keys = grid.select(device=device), key_grid.select(device=device)
        pairs = self.bound(grid, key_grid).pairs(queries, keys)[:, :, 0]
        return pairs.expand(*pairs.shape[:2], grid.tokens, key_grid.tokens)

    def draw(self, grid: Grid, *, query: tuple[int, ...] | None = None) -> Drawing:
        """Who may see whom, as SVG by matplotlib: `.svg`, `.save("a.svg")`.

        Args:
            grid: of queries and keys.
            query: the indices of a cell: the keys that it sees, in their places. Without it every query is a row and
                every key a column, the prefix first.

        Of masks with several samples or heads it is the first. Raises ModuleNotFoundError where matplotlib is missing.
        """
        from locant.page import drawing

        owner = f"{type(self).__name__}.draw"
        check_grid(owner, "grid", grid)
        if query is not None:
            check_cell(owner, query, grid)
        drawing.check_matplotlib(owner)
        seen = self._seen(grid, query)
        below = "query ↓, key →" if query is None else f"keys that the query {query} sees"
        return drawing.draw_maps(
            seen[None].double().numpy(), title=f"{self!r} on {grid}", below=below, colours="seen", query=query
        )

    def _repr_html_(self) -> str:
        """Its name, and who may see whom on a grid that it takes."""
        from locant.page.notebook import cell, maps_html

        for grid in self._examples():
            query = None if grid.axes == 1 else tuple(size // 2 for size in grid.shape)
            try:
                seen = self._seen(grid, query)
            except ValueError:
                continue
            words = "query ↓, key →" if query is None else f"what the query {query} sees"
            shown = maps_html(seen[None].double().numpy(), kind="may be seen", signed=False, query=query)
            return cell(repr(self), [f"on {grid}: {words}"], shown)
        return cell(repr(self), ["Its grid is not known here: draw(grid) draws it."])

    def _seen(self, grid: Grid, query: tuple[int, ...] | None) -> Bool[Tensor, "*shape"]:
        """Of the first sample and head: all pairs, or the cells that one query sees."""
        pairs = self.allowed(grid)[0, 0].cpu()
        if query is None:
            return pairs
        place = grid.prefix + sum(at * math.prod(grid.shape[axis + 1 :]) for axis, at in enumerate(query))
        return pairs[place, grid.prefix :].reshape(grid.shape)

    def _examples(self) -> Iterator[Grid]:
        """Grids to show it on: of as many tokens as it speaks of, or small ones."""
        sizes = {
            t.shape[-1] for mask in self.members() for t in vars(mask).values() if isinstance(t, Tensor) and t.ndim
        }
        yield from (Grid(size) for size in sizes if 0 < size <= 256)
        if not sizes:
            yield from (Grid(14), Grid(14, 14), Grid(4, 14, 14))

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            check_mask("a & b", "b", other, needed=True)
        return Every((*self.members(), *other.members()))

    __rand__ = __and__  # called where the left side is no mask
    __or__ = __ror__ = _refused("a | b", "Pairs(a.allowed(grid) | b.allowed(grid)) for what either of them allows")
    __xor__ = __rxor__ = _refused("a ^ b", "Pairs(a.allowed(grid) ^ b.allowed(grid)) for what one of them allows")
    __sub__ = __rsub__ = _refused("a - b", "a & Pairs(~b.allowed(grid)) for what b does not allow")
    __add__ = __radd__ = _refused("a + b", "a & b")
    __invert__ = _refused("~a", "Pairs(~a.allowed(grid)) for what it does not allow")
    __bool__ = _refused("`and`, `or`, `not` or `if`", "a & b to join them, `mask is None` to ask for one")

    def __repr__(self) -> str:
        shapes = [f"{name}={list(t.shape)}" for name, t in vars(self).items() if isinstance(t, Tensor)]
        return f"{type(self).__name__}({', '.join(shapes)})"


class Every(Mask):
    """Several masks at once: a pair must be allowed by every one. Written `a & b`."""

    example = "a & b"

    def __init__(self, masks: tuple[Mask, ...]) -> None:
        if not isinstance(masks, tuple) or not masks or not all(isinstance(m, Mask) for m in masks):
            raise ValueError(
                f"Every needs `masks` as a tuple of masks, one or more; got {description(masks)}. Write a & b."
            )
        self.masks = masks

    def members(self) -> Iterator[Mask]:
        return iter(self.masks)

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.masks))

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        return Every(tuple(m.bound(grid, key_grid) for m in self.masks))

    def cut(self, queries: slice, keys: slice) -> Mask:
        return Every(tuple(m.cut(queries, keys) for m in self.masks))

    def _on(self, device: torch.device) -> Mask:
        return Every(tuple(m._on(device) for m in self.masks))

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "#batch #heads #groups #queries #keys"]:
        pairs = self.masks[0].pairs(queries, keys)
        for mask in self.masks[1:]:
            pairs = pairs & mask.pairs(queries, keys)
        return pairs


def check_mask(owner: str, name: str, value: object, needed: bool = False) -> None:
    """A mask, or None unless it is `needed`. Raises a ValueError that names the constructor that was meant."""
    if (needed or value is not None) and not isinstance(value, Mask):
        check_type(owner, name, value, Mask if needed else Mask | None)


def _meant(value: object) -> str:
    """What to write instead of something that is no mask."""
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        return (
            "Say what True means: Pairs.from_kept(mask) = may take part, Pairs.from_blocked(mask) = may not; for keys "
            "[batch, tokens] Padding(mask) = real, Padding.from_key_padding_mask(mask) = ignore."
        )
    if isinstance(value, Tensor) and value.is_floating_point():
        return (
            "Say what the numbers mean: Pairs.from_additive(mask) = added to logits, Pairs.from_kept(mask) = 1 may "
            "take part; for keys [batch, tokens] Padding.from_additive(mask), Padding.from_attention_mask(mask)."
        )
    if isinstance(value, Tensor):
        return (
            "Say what the numbers mean: Pairs.from_kept(mask) = 1 may take part, Padding.from_attention_mask(mask) = 1 "
            "is a real key, Padding.from_lengths(lengths, tokens), Segments(ids)."
        )
    if isinstance(value, tuple | list) and any(isinstance(m, Mask) for m in value):
        return "Join masks by &: a & b."
    if isinstance(value, type) and issubclass(value, Mask):
        return f"That is the class: make one, {getattr(value, 'example', 'Causal()')}."
    if isinstance(value, nn.Module):
        return "A position is passed as position=."
    return "Make one: Causal(), Windows((7, 7)), or of tensors Padding, Segments or Pairs (see their from_... names)."


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

    def unflatten(children: Any, literal: Any) -> Any:
        mask = object.__new__(kind)
        for name, child in zip(names, children, strict=True):
            setattr(mask, name, child)
        if literal is not None:
            setattr(mask, "_literal", literal)  # noqa: B010 (only Segments has it)
        return mask

    dispatch.register_node(kind, f"locant.masks.{kind.__name__}", names, flatten, unflatten)


register_node(Every, ("masks",))
ADVICE[Mask] = _meant
