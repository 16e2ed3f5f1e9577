"""How large the built-in transformer is: it grows with the data, within the size that was asked for.

| `--model` | training examples | tokens | dim, depth, heads | parameters |
| --- | --- | --- | --- | --- |
| small | below 5,000 | 16 | 48, 2, 4 | 0.04 million |
| small | from 5,000 on | 64 | 96, 4, 4 | 0.3 million |
| base | below 5,000 | 196 | 192, 4, 6 | 1.2 million |
| base | from 5,000 on | 196 | 384, 4, 6 | 4.7 million |

Tokens are those of a picture, or of a clip's frames together, at most; sequences have one per step unless `--patch`
says otherwise. The built-in tasks are in the first row unless `--model base` asks for more. Whatever a user gives wins.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from locant.registry import FAMILIES
from locant.tasks.kind import Kind, Recipe
from locant.tasks.task import Refusal

MANY = 5_000  # training examples from which on models are larger
SIDE = 112  # pixels a side that pictures are brought to for `base`: 14 × 14 patches of 8
FITTED = ("lr", "dim", "depth", "heads", "patch")  # what follows from the size unless it is given


CLASSES = ("models.vit.ViT", "models.deit.DeiT", "models.swin.Swin", "models.swin_v2.SwinV2", "models.convit.ConViT")
DESIGNS = tuple(name for path in CLASSES for name in FAMILIES[path].builders)
"""Published designs (`published.py`)."""
DESIGN_SIDES = {"cpu": 64, "accelerator": 224}  # pixels a side that pictures are brought to for them


@dataclass(frozen=True)
class Size:
    """`lr` None is the task's own."""

    dim: int
    depth: int
    heads: int
    tokens: int
    lr: tuple[float, ...] | None = None


LARGE, LARGE_RATES = 500_000, (0.0005, 0.001)  # parameters, and what such models are trained with
TUNING_RATES = (0.0001, 0.0003)  # what weights that are there already are trained on with
SIZES = {
    "small": (Size(48, 2, 4, 16), Size(96, 4, 4, 64)),
    "base": (Size(192, 4, 6, 196, LARGE_RATES), Size(384, 4, 6, 196, LARGE_RATES)),
}


def usual(device: str, own_data: bool) -> str:
    """The size when none is asked for: `base` for a user's data on an accelerator."""
    return "base" if own_data and device.split(":")[0] != "cpu" else "small"


def fit(recipe: Recipe, kind: Kind, item: tuple[int, ...], examples: int, left: Collection[str], quick: bool) -> Recipe:
    """The recipe with what its size says of so many training examples of this shape.

    Args:
        left: what nobody gave, of `FITTED`; the rest stays.

    Raises:
        Refusal: for channels that no number of heads divides.
    """
    if recipe.model not in SIZES or not left:
        return recipe
    size = SIZES[recipe.model][examples >= MANY]
    values: dict[str, Any] = {name: getattr(size, name) for name in ("dim", "depth", "heads")}
    if size.lr is not None:
        values["lr"] = size.lr[-1:] if quick else size.lr
    if size.tokens > SIZES["small"][0].tokens and len(kind.axes) > 1:
        values["patch"] = _patch(kind.sizes(item), size.tokens)
    fitted = replace(recipe, **{name: value for name, value in values.items() if name in left})
    if "heads" in left:
        most = range(min(fitted.heads, fitted.dim), 0, -1)
        fitted = replace(fitted, heads=next((n for n in most if fitted.dim % (2 * n) == 0), fitted.heads))
    return check(fitted)


def rates(parameters: int, usual: tuple[float, ...], quick: bool) -> tuple[float, ...]:
    """The rates to choose from for a model of the user's: those of a built-in one as large."""
    if parameters < LARGE:
        return usual
    return LARGE_RATES[-1:] if quick else LARGE_RATES


def side(recipe: Recipe, device: str) -> int | tuple[int, ...] | None:
    """The side that pictures of class folders are brought to, for a model that says so; None is the task's own."""
    if recipe.size is not None:
        return recipe.size
    if recipe.model in DESIGNS:
        return DESIGN_SIDES["cpu" if device.split(":")[0] == "cpu" else "accelerator"]
    return SIDE if recipe.model == "base" else None


def check(recipe: Recipe) -> Recipe:
    """The recipe, if its heads divide its channels evenly. Raises Refusal."""
    if recipe.dim % recipe.heads or (recipe.dim // recipe.heads) % 2:
        raise Refusal(
            f"dim must be an even multiple of heads; got dim={recipe.dim}, heads={recipe.heads}. "
            f"Use --dim {2 * recipe.heads * max(1, round(recipe.dim / 2 / recipe.heads))}."
        )
    return recipe


def _patch(sizes: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """Rows and columns of a patch: as many patches as divide the sides, at most `tokens` in all frames together."""
    *frames, _, _ = sizes
    a_side = max(1, math.isqrt(tokens // max(1, math.prod(frames))))
    return tuple(next(n for n in range(max(1, -(-side // a_side)), side + 1) if side % n == 0) for side in sizes[-2:])
