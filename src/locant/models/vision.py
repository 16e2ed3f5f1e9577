"""What models of pictures and clips share: sides, patches, drop path that grows with depth, how linear maps start."""

from __future__ import annotations

from torch import nn

from locant.grid import Grid

Size = int | tuple[int, ...]  # one number, or (rows, columns): `pair` says so where there are others


def pair(model: str, name: str, size: Size) -> tuple[int, int]:
    """`size` for rows and columns."""
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(
            f"{model} needs `{name}` as one number of at least 1 or as (rows, columns); got {size}. "
            f"Write {name}=(7, 9)."
        )
    return sizes[0], sizes[1]


def patch_grid(model: str, img_size: Size, patch: int, *, prefix: int = 0) -> Grid:
    """The patches of a picture, which they fill.

    Raises:
        ValueError: for a patch that does not divide both sides, and sizes below 1.
    """
    if not isinstance(img_size, int) and len(img_size) != 2:
        pair(model, "img_size", img_size)  # says so
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if patch < 1 or min(height, width) < 1 or height % patch or width % patch:
        near = tuple(max(1, round(side / max(1, patch))) * max(1, patch) for side in (height, width))
        raise ValueError(
            f"{model} needs an `img_size` that `patch` divides, both at least 1; got img_size={img_size}, "
            f"patch={patch}. Use img_size={near}."
        )
    return Grid(height // patch, width // patch, prefix=prefix)


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Drop path grows in equal steps from 0 at the first block to `last` at the last."""
    return [last * i / max(1, blocks - 1) for i in range(blocks)]


def init_linears(model: nn.Module) -> None:
    """Start every linear map of a model from a truncated normal (0.02), and its bias from zero, in place."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
