"""How far heads look: the mean distance between a query and what it attends to (ConViT's non-locality)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from locant.attend import weights
from locant.grid import Grid
from locant.nn.arguments import add_embedding, check_tokens, split_embedding, token_grid
from locant.nn.gated import GatedAttention
from locant.nn.heads import split_parts
from locant.nn.linears import bare_weight, project_rows
from locant.nn.self_attention import Attention


def non_locality(maps: Float[Tensor, "batch heads queries keys"], grid: Grid) -> Float[Tensor, " heads"]:
    """D[head] = mean over batch and queries i of Σ_j A[head, i, j] · |place(i) - place(j)|, in cells.

    Tokens without a place (the class token) are left out of queries and keys: their rows are dropped, and each row
    that stays is divided by its sum over the keys that stay. 0 is a head where all look at themselves.

    Where it differs: the published metric takes every map for a square of patches without a class token.
    Source: ConViT (arXiv 2103.10697, section 4, "non-locality"); facebookresearch/convit `get_attention_map`.

    Args:
        maps: attention probabilities of one layer on the tokens of `grid`, prefix included.
        grid: where queries and keys are.

    Raises:
        ValueError: if the maps are not [batch, heads, tokens, tokens] on that grid, or the grid has no cell.
    """
    if maps.ndim != 4 or tuple(maps.shape[2:]) != (grid.tokens, grid.tokens) or not grid.cells:
        raise ValueError(
            f"non_locality needs `maps` [batch, heads, {grid.tokens}, {grid.tokens}] for the tokens of {grid}, which "
            f"must have a cell; got {list(maps.shape)}. Pass the grid that the maps were made on."
        )
    maps = maps[..., grid.prefix :, grid.prefix :].to(torch.promote_types(maps.dtype, torch.float32))
    maps = maps / maps.sum(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    places = grid.coordinates(maps.device).to(maps.dtype)
    distances = (places[:, None] - places).norm(dim=-1)
    return torch.einsum("bhij, ij -> h", maps, distances) / (maps.shape[0] * grid.cells)


def attention_map(
    module: Attention | GatedAttention, x: Float[Tensor, "batch tokens dim"], grid: Grid
) -> Float[Tensor, "batch heads queries keys"]:
    """The probabilities with which `module` attends to tokens `x` on `grid`, a gate's mixture included; dense.

    Raises:
        ValueError: for a module that attends in another way, such as `WindowAttention`.
    """
    if type(module) not in (Attention, GatedAttention):  # one made from them may regroup its tokens
        raise ValueError(
            f"attention_map needs an Attention or a GatedAttention; got {type(module).__name__}, whose way to attend "
            "it does not know. Take q and k from its projection, and call locant.weights with its position and mask."
        )
    projection, scale = (module.qk, None) if isinstance(module, GatedAttention) else (module.qkv, module.scale)
    check_tokens(x, module.dim, bare_weight(projection))
    grid = token_grid(x, grid)
    embedding, position = split_embedding(None, module.position)
    x = add_embedding(x, embedding, grid, module.mask)
    qk = project_rows(projection, x, slice(2 * module.dim))  # q and k come first in both
    q, k = split_parts(qk, 2, module.heads)
    return weights(q, k, grid=grid, position=position, mask=module.mask, scale=scale)
