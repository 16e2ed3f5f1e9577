"""Which of a model's tensors lie on a grid, and how one that was trained on another grid is brought to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from locant.checkpoints.names import Layout
from locant.checkpoints.report import Resized
from locant.checkpoints.wording import sides, word
from locant.nn.patches import PatchEmbedding
from locant.positions.position import Position
from locant.resizing import Place, resize_embedding, resize_table


def places(model: nn.Module) -> dict[str, Place]:
    """The tensors of a model that can be resized, by their names in its state dict.

    Beside what schemes say of themselves: "kernel", which lies on no grid, [dim, channels, *patch], and its channels.
    """
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        here = module.places() if isinstance(module, Position) else {}
        if isinstance(module, PatchEmbedding):
            here = {"proj.weight": Place("kernel", (module.proj.in_channels,))}
        found.update({f"{prefix}.{name}" if prefix else name: place for name, place in here.items()})
    return found


def brought(
    state: Mapping[str, Tensor],
    model: nn.Module,
    layout: Layout,
    *,
    method: str | None = None,
    grid: Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], list[Resized]]:
    """A state by our names in the sizes of `model`, and what was resized. What cannot be stays as it is.

    Args:
        state: tensors by our names.
        model: whose sizes are wanted.
        layout: names the method that its library uses, for `method=None`.
        method: of `locant.resizing`; "geometric" is for tables, and leaves embeddings to the layout's method.
        grid: the grid that embeddings were trained on, those with as many axes and rows.
    """
    new, lines, wanted = dict(state), [], model.state_dict()
    for name, place in places(model).items():
        if name not in state:
            continue
        tensor, shape = state[name], tuple(wanted[name].shape)
        by = _method(place, layout, method)
        if place.kind == "kernel":
            if tensor.ndim == len(shape) and tensor.shape[1] != shape[1]:
                new[name] = adapt_channels(tensor, shape[1])
                lines.append(Resized(name, (tensor.shape[1],), place.shape, "summed" if shape[1] == 1 else "repeated"))
        elif place.kind == "rows" and tensor.ndim == 2 and tensor.shape[1] == shape[1]:
            old = rows_shape(tensor.shape[0], place.shape, grid)
            if old != place.shape:
                new[name] = resize_embedding(tensor, old, place.shape, by)
                lines.append(Resized(name, old, place.shape, by))
        elif place.kind != "rows" and tensor.ndim == len(shape) and tuple(tensor.shape) != shape:
            line = place.kind == "line"
            table, sizes = (tensor.T, shape[:1]) if line else (tensor, shape[1:])
            if table.shape[0] != (shape[1] if line else shape[0]) or any(n % 2 == 0 for n in table.shape[1:]):
                continue
            found = resize_table(table, sizes, by)
            new[name] = found.T.contiguous() if line else found
            lines.append(Resized(name, tuple(table.shape[1:]), sizes, by))
    return new, lines


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """A kernel [dim, c, *patch] for pictures of another number of channels, as timm does it.

    For one channel all are summed: on a grey picture it gives what the same grey in every channel gave. For others they
    are repeated in turn, cut off, and scaled by c / channels, which keeps the size of what comes out.
    """
    wide = kernel.float() if kernel.dtype in (torch.float16, torch.bfloat16) else kernel
    if channels == 1:
        return wide.sum(1, keepdim=True).to(kernel.dtype)
    turns = torch.arange(channels, device=kernel.device) % kernel.shape[1]
    return (wide[:, turns] * (kernel.shape[1] / channels)).to(kernel.dtype)


def _method(place: Place, layout: Layout, method: str | None) -> str:
    if place.kind == "rows":
        return layout.rows_method if method in (None, "geometric") else method
    return layout.table_method if method is None else method


def rows_shape(count: int, shape: tuple[int, ...], given: Sequence[int] | None = None) -> tuple[int, ...]:
    """The grid of an embedding's rows: the one given or the model's, whichever has as many cells, else a square.

    Raises:
        ValueError: if that leaves a doubt.
    """
    if given is not None and (len(given), math.prod(given)) == (len(shape), count):
        return tuple(given)
    if count == math.prod(shape):
        return shape
    side = math.isqrt(count)
    if len(shape) == 1:
        return (count,)
    if len(shape) != 2 or side * side != count:
        raise ValueError(
            f"an embedding of {count} rows needs its grid, for it is neither the model's {shape} nor a square; got "
            f"{word('grid')} {'None' if given is None else tuple(given)}. Give the one that it was trained on: "
            f"{sides('grid')}."
        )
    return (side, side)


def check_sides(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse to guess: 196 rows of a foreign file may be 14 × 14 or the model's 7 × 28.

    Raises:
        ValueError: where a model that is not square takes what a square would fill as well.
    """
    for name, place in places(model).items():
        if name not in state or place.kind in ("line", "kernel"):
            continue
        tensor = state[name]
        rows = place.kind == "rows"
        sizes = place.shape if rows else tuple(n for n in tensor.shape[1:] if n > 1)
        count = math.prod(sizes)
        side = math.isqrt(count)
        if len(sizes) == 2 and sizes[0] != sizes[1] and side * side == count and (not rows or len(tensor) == count):
            raise ValueError(
                f"{name} needs its sides, for {count} entries are {sizes[0]} × {sizes[1]} or {side} × {side}; got "
                f"a file that does not tell. Say which: {sides('grid' if rows else 'window')}."
            )
