"""What every module of `locant.nn` asks of its arguments: sizes, probabilities, tokens on a grid, positions, masks."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.call import Positions, members
from locant.checks import check_tensor, description
from locant.grid import Grid, check_grid
from locant.masks import Mask, Structure, check_mask
from locant.positions.position import Embedding, Position

REGISTERS = 8  # tokens without a place that published models have at most: DINOv2 has 4 and a class token


def check_heads(module: str, dim: int, heads: int) -> None:
    """`heads` must divide `dim`."""
    if heads < 1 or dim < 1 or dim % heads:
        near = dim // heads * heads if 0 < heads <= dim else heads
        raise ValueError(
            f"{module} needs a `dim` that its `heads` divide, both at least 1; got dim={dim}, heads={heads}. "
            f"Use dim={max(near, 1)}, or another number of heads."
        )


def check_probabilities(module: str, **given: float) -> None:
    """Each must be at least 0 and below 1."""
    for name, value in given.items():
        if not 0 <= value < 1:
            raise ValueError(f"{module} needs `{name}` of at least 0 and below 1; got {value}. Give a probability.")


def check_own_mask(module: str, mask: Mask | None) -> None:
    """A module may own a mask that holds for every batch."""
    check_mask(module, "mask", mask)
    structure = Structure.of(mask)
    if structure.padding or structure.segments or structure.pairs:
        raise ValueError(
            f"{module} keeps a `mask` without tensors (Causal, Windows); got one with {structure.beyond_windows()}, "
            "which differs from batch to batch. Give that one at the call: module(x, mask=...)."
        )


def position_module(module: str, position: Positions) -> nn.Module | None:
    """`position` as a submodule: one scheme or an `nn.ModuleList` as it is, any other sequence as a list."""
    for member in members(position):
        if not isinstance(member, Position):
            came = description(member) if isinstance(member, type) else type(member).__name__
            raise ValueError(
                f"{module} needs a `position` such as RelativeTable, a tuple, list or nn.ModuleList of them, or None; "
                f"got {came}. Build the scheme first, and name a mask with mask=."
            )
    return position if position is None or isinstance(position, nn.Module) else nn.ModuleList(position)


def split_embedding(given: Positions, own: Positions | nn.Module) -> tuple[Embedding | None, Positions]:
    """The embedding, which acts before projection, and the rest, which acts inside attention.

    What was given at the call takes the place of the module's own; an empty tuple means no position at all.
    """
    if given is None and not isinstance(own, nn.Module):
        _check_registered(own)
    several = cast("tuple[Position, ...]", members(cast(Positions, own) if given is None else given))
    embeddings = [p for p in several if isinstance(p, Embedding)]
    if len(embeddings) > 1:
        raise ValueError(
            "`position` may hold one scheme per entrance (biases add up); got two that embed. "
            "Keep one, and add the other to the tokens."
        )
    rest = tuple(p for p in several if not isinstance(p, Embedding))
    return (embeddings[0] if embeddings else None), (rest or None)


def _check_registered(position: Positions) -> None:
    """A module's `position`, set after it was built: torch does not look into bare tuples and lists."""
    learned = [p for p in members(position) if isinstance(p, nn.Module) and p.state_dict()]
    if learned:
        raise ValueError(
            "a module's own `position` must be a scheme or an nn.ModuleList of them; got a bare "
            f"{type(position).__name__} with {type(learned[0]).__name__}, whose weights torch would neither train, "
            "move nor save. Write module.position = nn.ModuleList([...])."
        )


def check_channels(x: Tensor, dim: int) -> None:
    """`x` must be `[*batch, dim]`: what meets a norm or a perceptron before it meets attention."""
    check_tensor("this module", "x", x, f"a tensor [batch, tokens, {dim}]")
    if x.ndim == 0 or x.shape[-1] != dim:
        raise ValueError(f"`x` must be [batch, tokens, {dim}]; got {list(x.shape)}. {_tokens_meant(x, dim, 'x')}")


def check_tokens(x: Tensor, dim: int, weight: Tensor | None, name: str = "x") -> None:
    """`x` must be `[batch, tokens, dim]`, of the dtype and on the device of the `weight` that it meets, where known."""
    check_tensor("this module", name, x, f"a tensor [batch, tokens, {dim}]")
    if x.ndim != 3 or x.shape[-1] != dim:
        raise ValueError(f"`{name}` must be [batch, tokens, {dim}]; got {list(x.shape)}. {_tokens_meant(x, dim, name)}")
    if weight is None:
        return
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if x.device != weight.device or (x.dtype != weight.dtype and not autocast):
        raise ValueError(
            f"`{name}` must be {weight.dtype} on {weight.device}, as the weights are; got {x.dtype} on {x.device}. "
            "Move one of them with .to(...), or run under autocast."
        )


def _tokens_meant(x: Tensor, dim: int, name: str) -> str:
    """What to do with a tensor that is not `[batch, tokens, dim]`."""
    if x.ndim > 3 and x.shape[-1] == dim:
        return f"Lay the cells of the grid along one axis: {name}.flatten(1, -2)."
    if x.ndim > 3 and x.shape[1] == dim:
        return f"The channels come last, the cells along one axis: {name}.flatten(2).transpose(1, 2)."
    if x.ndim == 3 and x.shape[1] == dim:
        return f"The channels come last: {name}.transpose(1, 2)."
    if x.ndim == 2 and x.shape[-1] == dim:
        return f"Put a batch first: {name}[None]."
    last = x.shape[-1] if x.ndim else 0
    return f"Give tokens of {dim} channels, or build the module for the {last} that these have."


def token_grid(x: Float[Tensor, "batch tokens dim"], grid: Grid | None, name: str = "x", where: str = "grid") -> Grid:
    """The grid that tokens `x` lie on: `grid`, which must have as many, or a sequence."""
    check_grid("this module", where, grid, needed=False)
    grid = Grid(x.shape[1]) if grid is None else grid
    if grid.tokens != x.shape[1]:
        raise ValueError(
            f"`{name}` on {grid} must have {grid.tokens} tokens (prefix included); got {x.shape[1]}. "
            f"{_prefix_meant(x.shape[1] - grid.tokens, grid)}Pass {where}= for these tokens at the call."
        )
    return grid


def _prefix_meant(more: int, grid: Grid) -> str:
    """Class tokens and registers, if that many are too many or too few."""
    if not (0 < more <= REGISTERS or 0 < -more <= grid.prefix):
        return ""
    meant = Grid(*grid.shape, prefix=grid.prefix + more, origin=grid.origin, stride=grid.stride)
    count, kind = ("One", "a class token") if abs(more) == 1 else (str(abs(more)), "class tokens or registers")
    return f"{count} {f'more: {kind}' if more > 0 else f'fewer: without {kind}'}? {meant}. "


def add_embedding(
    x: Float[Tensor, "batch tokens dim"], embedding: Embedding | None, grid: Grid, mask: Mask | None
) -> Float[Tensor, "batch tokens dim"]:
    """x + E: what queries and keys are projected from. Values never are."""
    if embedding is None:
        return x
    rows = embedding(grid, mask)
    if rows.shape[-1] != x.shape[-1] or (rows.ndim == 3 and rows.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"{type(embedding).__name__} must give vectors that fit tokens of shape {list(x.shape)}; "
            f"got {list(rows.shape)}. Build it with dim={x.shape[-1]}, and its mask for a batch of {x.shape[0]}."
        )
    return x + rows.to(x.dtype)
