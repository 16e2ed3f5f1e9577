"""The same model without places: what is added to tokens for where they are is one vector for all of them.

A vector that was added to a token can't be told from it in q and k. What places do can: the model is run a second time,
with the mean of their vectors in every place, and

    content = the logits of that run          position = logits - content

whose sum is what the softmax is taken of, in every layer. In the first layer that is what the vectors themselves do; in
later ones it holds all that earlier layers made of them. Vectors of the prefix stay. Where q and k of a library's model
are turned by its own module before attention (rotary), all tokens are at place 0 in the second run: nothing is turned.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.explain.embeddings import NAMES, grid_of
from locant.grid import Grid
from locant.positions.position import Embedding


@torch.no_grad()
def without_places(model: nn.Module, grid: Grid) -> nn.Module | None:
    """A copy on the same parameters, but for embeddings of positions; None where none is found, or no copy can be made.

    Args:
        model: is left as it is.
        grid: of the first layer's tokens.
    """
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for owner, tensor in _tables(model):
        level = _level(tensor.flatten(0, -2), grid, _start(owner)).reshape(tensor.shape)
        parameter = isinstance(tensor, nn.Parameter)
        shared[id(tensor)] = nn.Parameter(level, requires_grad=False) if parameter else level
    if not has_places(model) and not turns(model):
        return None
    try:
        alike = copy.deepcopy(model, shared)
    except (RuntimeError, TypeError):  # tensors that are computed from others can't be copied
        return None
    for module in alike.modules():
        if isinstance(module, Embedding):
            vars(module)["forward"] = MethodType(_forward, module)
        elif _is_rotary(module):
            vars(module)["forward"] = MethodType(_unturned, module)
    return alike


def has_places(model: nn.Module) -> bool:
    """Whether it has embeddings of positions that are known."""
    return any(True for _ in _tables(model)) or any(isinstance(module, Embedding) for module in model.modules())


def turns(model: nn.Module) -> bool:
    """Whether modules of its own turn q and k before attention."""
    return any(map(_is_rotary, model.modules()))


def _is_rotary(module: nn.Module) -> bool:
    named = type(module).__name__.endswith("RotaryEmbedding")
    return named and list(inspect.signature(type(module).forward).parameters)[1:3] == ["x", "position_ids"]


def _tables(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    modules = dict(model.named_modules())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        known = any(name == end or name.endswith(f".{end}") for end in NAMES)
        if known and tensor.is_floating_point() and tensor.ndim > 1:
            yield modules[name.rpartition(".")[0]], tensor


def _start(owner: Any) -> int:
    """The first row that a token has: RoBERTa counts from behind its padding, OPT and BART from `offset`."""
    padding = getattr(owner, "padding_idx", None)
    return int(getattr(owner, "offset", 0)) if padding is None else int(padding) + 1


def _level(rows: Float[Tensor, "n dim"], grid: Grid, start: int) -> Float[Tensor, "n dim"]:
    """Every place has the mean of those in use."""
    own = grid_of(len(rows), grid)
    first = own.prefix if own.tokens == len(rows) else 0
    used = rows[first + start :][: grid.cells] if grid.axes == 1 else rows[first:]
    level = used.mean(0, keepdim=True).expand_as(rows).clone()
    level[:first] = rows[:first]
    return level


def _forward(self: Any, *inputs: Any, **named: Any) -> Tensor:
    rows: Tensor = type(self).forward(self, *inputs, **named)
    grid = next((x for x in (*inputs, *named.values()) if isinstance(x, Grid)), getattr(self, "grid", None))
    first = grid.prefix if isinstance(grid, Grid) else 0
    places = rows[..., first:, :].mean(-2, keepdim=True).expand_as(rows[..., first:, :])
    return torch.cat([rows[..., :first, :], places], -2)


def _unturned(self: Any, x: Tensor, position_ids: Tensor, **named: Any) -> Any:
    return type(self).forward(self, x, torch.zeros_like(position_ids), **named)


_forward.__name__ = "forward"
