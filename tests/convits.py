"""Small ConViTs with every parameter drawn anew, and what they compute, written out pair by pair."""

from __future__ import annotations

import math

import torch
from redrawing import redraw
from torch import Tensor, nn

from locant import GatedPosition
from locant.models.convit import ConViT
from locant.nn import Attention, GatedAttention

DIM, HEADS, PATCH = 8, 4, 2


def built(rows: int, columns: int, **given: object) -> ConViT:
    sizes = {"img_size": (PATCH * rows, PATCH * columns), "patch": PATCH, "in_chans": 1, "num_classes": 5, "dim": DIM,
             "depth": 4, "heads": HEADS, "local_up_to_layer": 2} | given  # fmt: skip
    return redraw(ConViT(**sizes).double())


def pictures(rows: int, columns: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, PATCH * rows, PATCH * columns, dtype=torch.float64)


def features(rows: int, columns: int) -> Tensor:
    """[queries, keys, 3]: (dx, dy, dx² + dy²) of key - query, pair by pair."""
    n = rows * columns
    found = torch.zeros(n, n, 3, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            dx, dy = j % columns - i % columns, j // columns - i // columns
            found[i, j] = torch.tensor([dx, dy, dx * dx + dy * dy])
    return found


def published_weight(position: GatedPosition) -> Tensor:
    """pos_proj.weight [heads, 3]."""
    return torch.stack([-position.direction[:, 1], -position.direction[:, 0], position.spread], dim=1)


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def attended(module: GatedAttention | Attention, x: Tensor, rows: int, columns: int) -> Tensor:
    """Head by head, query by query, key by key."""
    width, gated = DIM // HEADS, isinstance(module, GatedAttention)
    projections = (module.qk.weight, module.v.weight) if gated else (module.qkv.weight,)
    q, k, v = torch.cat([x @ p.T for p in projections], dim=-1).split(DIM, dim=-1)
    out, pairs = torch.zeros_like(x), features(rows, columns)
    for b in range(x.shape[0]):
        for h in range(HEADS):
            part = slice(h * width, (h + 1) * width)
            for i in range(x.shape[1]):
                shares = torch.stack([q[b, i, part] @ k[b, j, part] for j in range(x.shape[1])]) * width**-0.5
                shares = torch.softmax(shares, 0)
                if gated:
                    share = torch.sigmoid(module.position.gate[h])
                    place = torch.softmax(pairs[i] @ published_weight(module.position)[h], 0)
                    shares = (1 - share) * shares + share * place
                out[b, i, part] = sum(shares[j] * v[b, j, part] for j in range(x.shape[1]))
    return out @ module.proj.weight.T + module.proj.bias


def by_hand(model: ConViT, images: Tensor, rows: int, columns: int) -> Tensor:
    patches = []
    for r in range(rows):
        for c in range(columns):
            cut = images[:, :, PATCH * r : PATCH * (r + 1), PATCH * c : PATCH * (c + 1)].flatten(1)
            patches.append(cut @ model.patch_embed.proj.weight.flatten(1).T + model.patch_embed.proj.bias)
    x = torch.stack(patches, dim=1) + model.pos_embed.table
    for index, block in enumerate(model.blocks):
        if index == model.local_up_to_layer:
            x = torch.cat([model.cls_token.expand(len(x), 1, DIM), x], dim=1)
        x = x + attended(block.attention, normed(x, block.norm1), rows, columns)
        hidden = normed(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    return normed(x, model.norm)[:, 0] @ model.head.weight.T + model.head.bias
