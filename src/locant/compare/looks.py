"""What a trained scheme looks like: for every query and key, what position alone does, per layer and head."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from locant.compare.model import Classifier
from locant.compare.schemes import mask_of
from locant.grid import Grid
from locant.masks import Windows
from locant.positions.position import Bias, Embedding, Gate, Position
from locant.positions.rotary import Rotary

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
def look(model: Classifier) -> dict[str, Any]:
    """The picture of a model's scheme, as numbers: `layers[i].heads[h]` is a matrix [queries][keys]."""
    grid = model.grid
    if grid.tokens > MOST_TOKENS:
        what = f"Not drawn: {grid.tokens} tokens make a picture of {grid.tokens**2:,} numbers per head."
        return {"kind": "none", "what": what, "grid": list(grid.shape), "layers": []}
    kind, maps, parted = "none", [], False
    if len(model.tokens) and all(p is None for layer in model.inside() for _, p in layer.passes()):
        kind, maps = "embedding", [[_embeddings(model, grid)]]
    for layer in model.inside():
        heads: Tensor | None = None
        for reach, position in layer.passes():
            if position is None:
                continue
            kind = KINDS[position.entrance]
            window = mask_of(reach, grid)
            drawn = _drawn(position, grid, window)
            if window is not None:  # a pass shows what it may see; passes side by side add up to one picture
                drawn, parted = drawn * window.allowed(grid)[0, 0], True
            heads = drawn if heads is None else heads + drawn
        if heads is not None:
            maps.append(list(heads))
    return {
        "kind": kind,
        "what": " ".join([WHAT[kind], *_undrawn(model, kind, parted)]),
        "grid": list(grid.shape),
        "query": [size // 2 for size in grid.shape],
        "layers": [
            {"layer": index + 1, "heads": [_rounded(head) for head in heads]} for index, heads in enumerate(maps)
        ],
    }


def _undrawn(model: Classifier, kind: str, parted: bool) -> list[str]:
    """What the picture leaves out."""
    said = {
        "Keys that a token does not see are drawn as 0.": parted,
        "The learned vectors on the tokens are not drawn.": len(model.tokens) > 0 and kind != "embedding",
        "The convolutions, which tell the order of frames, are not drawn.": model.ordered is not None,
    }
    return [sentence for sentence, holds in said.items() if holds]


def _drawn(position: Position, grid: Grid, window: Windows | None) -> Float[Tensor, "heads queries keys"]:
    if isinstance(position, Bias):
        return position(grid, mask=window)
    if isinstance(position, Gate):
        return torch.softmax(position.values(grid, grid).dense(grid, grid), -1)
    assert isinstance(position, Rotary), f"no picture for {type(position).__name__}"
    ones = torch.ones(1, 1, grid.tokens, position.head_dim)  # every pair of channels alike: the mean over pairs
    turned = position(ones, grid)[0]
    return turned @ turned.transpose(-1, -2) / position.head_dim


def _embeddings(model: Classifier, grid: Grid) -> Float[Tensor, "queries keys"]:
    total = sum(embedding(grid) for embedding in model.tokens if isinstance(embedding, Embedding))
    vectors = torch.nn.functional.normalize(torch.as_tensor(total).float(), dim=-1)
    return vectors @ vectors.T


def _rounded(matrix: Float[Tensor, "queries keys"]) -> list[list[float]]:
    return [[round(value, 4) + 0.0 for value in row] for row in matrix.tolist()]
