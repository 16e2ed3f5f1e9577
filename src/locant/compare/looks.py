"""What a trained scheme looks like: for every query and key, what position alone does, per layer and head, and what of
it changed since the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from locant.compare.candidate import Candidate
from locant.compare.schemes import mask_of
from locant.maps import likeness, position_map

MOST_MAPS = 32  # of one scheme: of more layers, as many as that, evenly from the first to the last
MOST_NUMBERS = 150_000  # of one scheme; beyond it only the query in the middle is kept
SAME = 5e-5  # what rounding to four places calls no change

KINDS = {"bias": "bias", "gate": "gate", "rotate": "rotation"}
WHAT = {
    "none": "Nothing in this model depends on where a token is.",
    "bias": "The bias that each head adds to the logit of a key, seen from the chosen query.",
    "gate": "The share of attention that position alone gives to each key, seen from the chosen query.",
    "rotation": "How alike the turns of a key and of the chosen query are: the mean cosine of their angles.",
    "embedding": "How alike the added vectors of a key and of the chosen query are: the cosine between them.",
}


@dataclass(frozen=True)
class Drawing:
    """The maps of one model: `maps[layer]` is [heads, queries, keys] over the cells of one grid."""

    kind: str
    maps: dict[int, Float[Tensor, "heads queries keys"]]
    left_out: tuple[str, ...]


@torch.no_grad()
def look(model: Candidate, start: Candidate | None = None) -> dict[str, Any]:
    """The picture of a model's scheme, as numbers: `layers[i].heads[h]` is a matrix [queries][keys], and
    `layers[i].changed[h]` what was added to it since the `start`: the same model before its first step.

    Of large models it keeps some layers, and the query in the middle alone (then [1][keys]); `what` says so. `alike` is
    the correlation of all that is drawn with the start; None where nothing changed, or nothing varies.
    """
    grid, now = model.grid, draw(model)
    before = draw(start).maps if start is not None else {}
    query = [size // 2 for size in grid.shape]
    picture: dict[str, Any] = {"kind": now.kind, "grid": list(grid.shape), "query": query, "alike": None, "layers": []}
    if not now.maps:
        return {**picture, "what": " ".join([WHAT["none"] if now.kind == "none" else WHAT[now.kind], *now.left_out])}
    # 1 as many layers and queries as a page can carry
    said, kept = _choose(now.maps)
    place = int(np.ravel_multi_index(tuple(query), tuple(grid.shape)))
    cells = len(next(iter(now.maps.values()))[0])
    rows = slice(None) if sum(len(now.maps[n]) for n in kept) * cells**2 <= MOST_NUMBERS else slice(place, place + 1)
    # 2 what is there, and what was added to the start
    changed = {n: now.maps[n] - before[n] for n in kept if n in before}
    moved = any(float(change.abs().max()) > SAME for change in changed.values())
    picture["layers"] = [
        {
            "layer": n + 1,
            "heads": _round(now.maps[n][:, rows]),
            "changed": _round(changed[n][:, rows]) if moved else None,
        }
        for n in kept
    ]
    if moved:
        picture["alike"] = _correlation([now.maps[n] for n in kept], [before[n] for n in kept])
    fixed = ["It is fixed: training changes nothing of it."] if changed and not moved else []
    return {**picture, "what": " ".join([WHAT[now.kind], *now.left_out, *said, *fixed])}


def draw(model: Candidate) -> Drawing:
    """All maps of a model over the cells of the grid that its first layer has; class tokens are left out."""
    grid, blocks = model.grid, model.blocks()
    own = [layer for layer in blocks if layer.grid.shape == grid.shape]
    kind, maps, cut, strange = "none", {}, False, len(own) < len(blocks)
    if len(model.tokens) and all(p is None for layer in blocks for _, p in layer.passes()):
        total = sum(embedding(grid) for embedding in model.tokens)
        kind, maps = "embedding", {0: likeness(torch.as_tensor(total))}
    through_queries = False
    for number, layer in enumerate(blocks):
        heads: Tensor | None = None
        for reach, position in layer.passes() if layer in own else ():
            if position is None:
                continue
            if position.entrance not in KINDS:
                through_queries = True
                continue
            kind = KINDS[position.entrance]
            window = mask_of(reach, layer.grid)
            shown = position_map(position, layer.grid, window)
            if window is not None:  # a pass shows what it may see; passes side by side add up to one picture
                shown, cut = shown * window.allowed(layer.grid)[0, 0], True
            heads = shown if heads is None else heads + shown
        if heads is not None:
            maps[number] = heads
    holds = {
        "Keys that a token does not see are drawn as 0.": cut,
        "The learned vectors on the tokens are not drawn.": len(model.tokens) > 0 and kind != "embedding",
        "The convolutions, which tell the order of frames, are not drawn.": (
            getattr(model.net, "ordered", None) is not None
        ),
        "Layers on other grids are not drawn.": strange,
        "What acts through the queries is not drawn.": through_queries,
    }
    first = grid.prefix
    cells = {number: heads[:, first:, first:] for number, heads in maps.items()}
    return Drawing(kind, cells, tuple(sentence for sentence, so in holds.items() if so))


def _choose(maps: dict[int, Tensor]) -> tuple[list[str], list[int]]:
    """The layers that are kept, the first and the last among them, and a sentence on the others."""
    layers = sorted(maps)
    most = max(1, MOST_MAPS // max(len(heads) for heads in maps.values()))
    if len(layers) <= most:
        return [], layers
    kept = sorted({layers[round(i)] for i in np.linspace(len(layers) - 1, 0, most)})
    return [f"Of {len(layers)} layers {len(kept)} are drawn."], kept


def _correlation(now: list[Tensor], before: list[Tensor]) -> float | None:
    """Pearson's, of all numbers; None where one of both does not vary."""
    pair = torch.stack([torch.cat([m.flatten() for m in maps]).double() for maps in (now, before)])
    value = float(torch.corrcoef(pair)[0, 1])
    return value if value == value else None


def _round(heads: Float[Tensor, "heads queries keys"]) -> list[list[list[float]]]:
    return [[[round(value, 4) + 0.0 for value in row] for row in head] for head in heads.tolist()]
