"""Tables before and after they were resized, and how much of a flat attention that moved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.checkpoints import contents
from locant.explain.data import Resizing
from locant.explain.measures import apart, flat
from locant.resizing import resize_table


def resizings_of(model: nn.Module, before: Any) -> Iterator[Resizing]:
    """Every table of the model that `before`, a state dict or a file, has in another size, by the same name."""
    found: Mapping[str, Tensor] = before if isinstance(before, Mapping) else contents.read(Path(before))
    for name, new in model.state_dict().items():
        old = found.get(name)
        if old is None or old.shape == new.shape or "table" not in name.rpartition(".")[2]:
            continue
        pair = [as_table(x) for x in (old, new)]
        if pair[0] is not None and pair[1] is not None and pair[0].ndim == pair[1].ndim:
            yield resizing(name, pair[0], pair[1])


def as_table(x: Tensor) -> Float[Tensor, "heads *offsets"] | None:
    """[heads, *offsets]; of the flat one [offsets, heads] that is square; None for another tensor."""
    if x.ndim in (2, 3, 4) and all(size % 2 for size in x.shape[1:]) and x.ndim != 2:
        return x
    side = math.isqrt(len(x)) if x.ndim == 2 else 0
    return x.T.reshape(-1, side, side) if side % 2 and side * side == len(x) else None


def resizing(
    name: str, old: Float[Tensor, "heads *old"], new: Float[Tensor, "heads *new"], method: str = "as the model has it"
) -> Resizing:
    """The change, against the old table stretched linearly over the new reach, both as a flat attention reads them."""
    stretched = resize_table(old.detach().float(), new.shape[1:], "linear").cpu().numpy()
    was, now = old.detach().float().cpu().numpy(), new.detach().float().cpu().numpy()
    axes = tuple(range(now.ndim - 1))
    changed = [float(apart(flat(a), flat(b), axes)) for a, b in zip(stretched, now, strict=True)]
    return Resizing(name, method, was, now, np.array(changed, np.float32))


@torch.no_grad()
def resized(position: Any, grid: Any, method: str = "linear") -> Resizing:
    """What `position.resized(grid, method=method)` does to its table."""
    new = position.resized(grid, method=method)
    return resizing(type(position).__name__, position.table, new.table, method)
