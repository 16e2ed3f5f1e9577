"""Which position a model has: a word, or a function that builds it for a grid; on the tokens, or in every layer.

A published model has one position; another one takes its place by `position=`. What embeds is added to the tokens,
once; all else acts in every layer, each layer with its own. Words are those of `locant compare --positions`, so that
they can stand in a file's settings; a function may build anything:

    vit_small(position="rotary")
    vit_small(position=lambda grid, dim, heads: (Learned(grid, dim), RelativeTable(grid, heads)))
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from locant import positions
from locant.call import Positions, members
from locant.checks import description
from locant.grid import Grid
from locant.positions.position import Comparison, Embedding, Position

Build = Callable[[Grid, int, int], Positions]  # of the grid of the tokens, their channels, and the number of heads
Wanted = str | Build | None


@functools.cache
def named() -> dict[str, Build]:
    """What builds the schemes of `locant.positions` that `locant compare` has names for; they start as published."""
    found: dict[str, Build] = {}
    for file in pkgutil.iter_modules(positions.__path__):
        module = importlib.import_module(f"{positions.__name__}.{file.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, Position) and value.__module__ == module.__name__
            if own and value.compared is not None:
                found[value.compared.name] = _build(value.compared)
    return found


def _build(own: Comparison) -> Build:
    return lambda grid, dim, heads: own.build(grid, dim, heads, *own.starts[:1])


def check_wanted(model: str, wanted: Any, *more: str) -> None:
    """A word out of `named()` or `more`, a function, or None.

    Raises:
        ValueError: for anything else, such as a scheme that is built already: it could serve one layer alone.
    """
    words = (*more, *(name for name in named() if name not in more))
    one = isinstance(wanted, nn.Module | type)
    if one or not (wanted is None or callable(wanted) or (isinstance(wanted, str) and wanted in words)):
        came = repr(wanted) if isinstance(wanted, str) else description(wanted)
        raise ValueError(
            f"{model} needs a `position` out of {', '.join(map(repr, words))}, a function of (grid, dim, heads) that "
            f"builds one or several for a layer, or None; got {came}. "
            "Write position=lambda grid, dim, heads: RelativeTable(grid, heads)."
        )


def built(model: str, wanted: Wanted, grid: Grid, dim: int, heads: int) -> tuple[Position, ...]:
    """The schemes that are wanted on a grid, freshly drawn.

    Raises:
        ValueError: for what is no scheme.
    """
    if wanted is None:
        return ()
    found = members(named()[wanted](grid, dim, heads) if isinstance(wanted, str) else wanted(grid, dim, heads))
    for one in found:
        if not isinstance(one, Position):
            raise ValueError(
                f"{model} needs a `position` that builds schemes of locant.positions, or None; got {description(one)}. "
                "Return RelativeTable(grid, heads), a tuple of several, or None."
            )
    return cast("tuple[Position, ...]", found)


def on_tokens(found: tuple[Position, ...]) -> tuple[Embedding, ...]:
    """Those that are added to the tokens."""
    return tuple(one for one in found if isinstance(one, Embedding))


def in_layers(found: tuple[Position, ...]) -> tuple[Position, ...]:
    """Those that act inside attention."""
    return tuple(one for one in found if not isinstance(one, Embedding))


def one_or_several(found: tuple[Position, ...]) -> Any:
    """As modules keep them: none, the only one, or a list."""
    return None if not found else found[0] if len(found) == 1 else nn.ModuleList(found)


def moved(position: nn.Module | None, shape: tuple[int, ...], method: str) -> Any:
    """A position, or a list of them, for a grid of another shape: what lies on one is resized.

    Tables that are read off the offset by a perceptron reach as far as they are told to; they take no method.
    """
    if isinstance(position, nn.ModuleList):
        return nn.ModuleList(moved(one, shape, method) for one in position)
    resized, own = getattr(position, "resized", None), getattr(position, "grid", None)
    if resized is None or not isinstance(position, Position) or not isinstance(own, Grid):
        return position
    grid = Grid(*shape, prefix=own.prefix)
    return resized(grid, method=method) if position.places() else resized(grid)


def added(model: str, x: Float[Tensor, "batch tokens dim"], embeddings: nn.Module | None, grid: Grid) -> Tensor:
    """Tokens with their embeddings; those without rows for the prefix leave it as it is.

    A module of another kind is called with the tokens and their grid, and gives them back.

    Raises:
        ValueError: for another grid than that of an embedding with a row per place, of which a smaller one would read a
            corner.
    """
    if embeddings is not None and not isinstance(embeddings, Embedding) and type(embeddings) is not nn.ModuleList:
        return cast(Tensor, embeddings(x, grid))
    several = embeddings if isinstance(embeddings, nn.ModuleList) else () if embeddings is None else (embeddings,)
    for one in cast("Iterable[Embedding]", several):
        own = getattr(one, "grid", None)
        if own is not None and one.places() and own.shape != grid.shape:
            raise ValueError(
                f"{model} has positions for {_sides(own)} tokens; got pictures of {_sides(grid)}. "
                "Make a model for them: model.resized(img_size=(height, width)) of these pictures."
            )
        rows = one(Grid(*grid.shape, prefix=own.prefix if own is not None else 0))
        x = x + nn.functional.pad(rows, (0, 0, grid.tokens - rows.shape[-2], 0)).to(x.dtype)
    return x


def _sides(grid: Grid) -> str:
    return " × ".join(map(str, grid.shape))
