"""Every scheme that attention takes, made small and wide awake: the rows of the tables `laws x schemes`.

A file here is the test case of one scheme: `OF`, its class; `SCHEMES`, how it is built and on which grids it is tried;
and its formula for one pair of tokens, written again from the paper and read off plain fields, without anything of the
library's arithmetic. The formula bears the name of the entrance:

    bias(position, head, query, key)                    what is added to a logit; query and key are places
    term(position, head, q, scale, query, key)          the same of content, for the vector q of one query
    met(position, q)                                    content again: what meets the keys, q unless said otherwise
    turned(position, x, place)                          one vector, rotated
    logit(position, head, query, key)                   of a gate's own map

Files are found by themselves: a new scheme adds its own and touches no other.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import torch
from torch import Tensor

from locant.grid import Grid
from locant.positions.position import Bias, Position
from schemes.scheme import (
    CLIP,
    GRIDS,
    HEAD_DIM,
    HEADS,
    LINE,
    PLACED,
    PLANE,
    RAGGED,
    VALUE_DIM,
    WHOLE,
    Place,
    Positions,
    Scheme,
    learned,
    parts,
)

FILES = tuple(
    importlib.import_module(f"schemes.{found.name}")
    for found in pkgutil.iter_modules(__path__)
    if found.name != "scheme"
)
NONE = Scheme("none", PLANE, lambda: None, blind=True)
SCHEMES = (NONE, *(scheme for file in FILES for scheme in file.SCHEMES))
BIASES = tuple(s for s in SCHEMES if any(isinstance(p, Bias) for p in parts(s.build())))
UNPLACED = tuple(s for s in SCHEMES if s.grid.prefix)
PURE = tuple(s for s in SCHEMES if not s.grid.prefix)


def case(position: Position) -> ModuleType:
    """The test case of a scheme, which holds its formula."""
    for file in FILES:
        if getattr(file, "OF", None) is type(position):
            return file
    raise AssertionError(f"{type(position).__name__} has no test case: a file in tests/schemes with OF and SCHEMES")


def heads(
    grid: Grid,
    key_grid: Grid | None = None,
    *,
    batch: int = 2,
    kv_heads: int = HEADS,
    dtype: torch.dtype = torch.float64,
    seed: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v for these grids, the same every time."""
    draw = torch.Generator().manual_seed(seed)
    keys = (grid if key_grid is None else key_grid).tokens
    shapes = ((HEADS, grid.tokens, HEAD_DIM), (kv_heads, keys, HEAD_DIM), (kv_heads, keys, VALUE_DIM))
    q, k, v = (torch.randn(batch, *shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


__all__ = [
    "BIASES", "CLIP", "GRIDS", "HEADS", "HEAD_DIM", "LINE", "NONE", "PLACED", "PLANE", "PURE", "RAGGED", "SCHEMES",
    "UNPLACED", "VALUE_DIM", "WHOLE", "Place", "Positions", "Scheme", "case", "heads", "learned", "parts",
]  # fmt: skip
