"""What a trained scheme looks like: for every query and key, what position alone does, per layer and head."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from locant.compare.candidate import Candidate
from locant.compare.schemes import mask_of
from locant.maps import likeness, position_map

MOST_TOKENS = 144  # a picture holds tokens² numbers per head

KINDS = {"bias": "bias", "gate": "gate", "rotate": "rotation"}
WHAT = {
    "none": "Nothing in this model depends on where a token is.",
    "bias": "The bias that each head adds to the logit of a key, seen from the chosen query.",
    "gate": "The share of attention that position alone gives to each key, seen from the chosen query.",
    "rotation": "How alike the turns of a key and of the chosen query are: the mean cosine of their angles.",
    "embedding": "How alike the added vectors of a key and of the chosen query are: the cosine between them.",
}


@torch.no_grad()
def look(model: Candidate) -> dict[str, Any]:
    """The picture of a model's scheme, as numbers: `layers[i].heads[h]` is a matrix [queries][keys]."""
    grid = model.grid
    if grid.tokens > MOST_TOKENS:
        what = f"Not drawn: {grid.tokens} tokens make a picture of {grid.tokens**2:,} numbers per head."
        return {"kind": "none", "what": what, "grid": list(grid.shape), "layers": []}
    kind, maps, cut, elsewhere = "none", [], False, False
    if len(model.tokens) and all(p is None for layer in model.blocks() for _, p in layer.passes()):
        total = sum(embedding(grid) for embedding in model.tokens)
        kind, maps = "embedding", [list(likeness(torch.as_tensor(total)))]
    for layer in model.blocks():
        elsewhere = elsewhere or layer.grid != grid
        if layer.grid != grid:  # one picture has one grid
            continue
        heads: Tensor | None = None
        for reach, position in layer.passes():
            if position is None:
                continue
            kind = KINDS[position.entrance]
            window = mask_of(reach, grid)
            shown = position_map(position, grid, window)
            if window is not None:  # a pass shows what it may see; passes side by side add up to one picture
                shown, cut = shown * window.allowed(grid)[0, 0], True
            heads = shown if heads is None else heads + shown
        if heads is not None:
            maps.append(list(heads))
    return {
        "kind": kind,
        "what": " ".join([WHAT[kind], *_left_out(model, kind, cut, elsewhere)]),
        "grid": list(grid.shape),
        "query": [size // 2 for size in grid.shape],
        "layers": [
            {"layer": index + 1, "heads": [_round(head[grid.prefix :, grid.prefix :]) for head in heads]}
            for index, heads in enumerate(maps)
        ],
    }


def _left_out(model: Candidate, kind: str, cut: bool, elsewhere: bool) -> list[str]:
    """What the picture leaves out."""
    ordered = getattr(model.net, "ordered", None) is not None
    holds = {
        "Keys that a token does not see are drawn as 0.": cut,
        "The learned vectors on the tokens are not drawn.": len(model.tokens) > 0 and kind != "embedding",
        "The convolutions, which tell the order of frames, are not drawn.": ordered,
        "Layers on other grids are not drawn.": elsewhere,
        "Tokens without a place are not drawn.": model.grid.prefix > 0 and kind != "none",
    }
    return [sentence for sentence, so in holds.items() if so]


def _round(matrix: Float[Tensor, "queries keys"]) -> list[list[float]]:
    return [[round(value, 4) + 0.0 for value in row] for row in matrix.tolist()]
