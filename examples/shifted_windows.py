"""Swin's shifted windows as a partition of coordinates, against the published roll, −100 mask and roll back.

Both give the same numbers where the window divides the map. The partition also takes maps that it does not divide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from locant import Grid, RelativeTable, Windows, attention

SIDE, WINDOW, SHIFT, HEADS, WIDTH = 14, 7, 3, 2, 8


def published(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Roll by −shift, cut into windows, add the bias and the mask of nine regions, attend, put all back."""

    def cut(x: Tensor) -> Tensor:
        x = torch.roll(x.unflatten(2, (SIDE, SIDE)), (-SHIFT, -SHIFT), (2, 3))
        x = x.unflatten(2, (-1, WINDOW)).unflatten(4, (-1, WINDOW))  # [batch, heads, rows, 7, columns, 7, width]
        return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5)  # [batch, rows, columns, heads, 49, width]

    line = torch.arange(SIDE)
    region = (line >= SIDE - WINDOW).long() + (line >= SIDE - SHIFT)
    label = (3 * region[:, None] + region).unflatten(0, (-1, WINDOW)).unflatten(2, (-1, WINDOW))
    label = label.permute(0, 2, 1, 3).flatten(2)
    mask = torch.where(label[..., :, None] == label[..., None, :], 0.0, -100.0)[:, :, None]

    rows, columns = (torch.arange(WINDOW**2) // WINDOW, torch.arange(WINDOW**2) % WINDOW)
    down, right = (x[:, None] - x + WINDOW - 1 for x in (rows, columns))  # query − key
    bias = table[:, down, right]

    q, k, v = cut(q), cut(k), cut(v)
    out = torch.softmax(q @ k.transpose(-1, -2) * WIDTH**-0.5 + bias + mask, -1) @ v
    out = out.unflatten(4, (WINDOW, WINDOW)).permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return torch.roll(out, (SHIFT, SHIFT), (2, 3)).flatten(2, 3)


def main() -> None:
    torch.manual_seed(0)
    grid = Grid(SIDE, SIDE)
    q, k, v = torch.randn(3, 2, HEADS, grid.tokens, WIDTH).unbind(0)
    position = RelativeTable(Grid(WINDOW, WINDOW), HEADS, init_std=1.0)
    mask = Windows((WINDOW, WINDOW), shift=(SHIFT, SHIFT))
    ours = attention(q, k, v, grid=grid, position=position, mask=mask)
    apart = float((ours - published(q, k, v, position.table)).abs().max().detach())
    print(f"largest difference to roll and mask: {apart:.1e}")
    assert apart < 1e-5

    odd = Grid(10, 13)  # no padding either: cells at the border are smaller
    q, k, v = torch.randn(3, 1, HEADS, odd.tokens, WIDTH).unbind(0)
    out = attention(q, k, v, grid=odd, position=position, mask=mask)
    seen = mask.allowed(odd)[0, 0, 0].nonzero().flatten()
    print(f"on {odd} the first token sees {len(seen)} tokens: {seen.tolist()}")
    assert seen.tolist() == [13 * row + column for row in range(3) for column in range(3)]
    corner = attention(q[:, :, seen], k[:, :, seen], v[:, :, seen], grid=Grid(3, 3), position=position)
    assert float((out[:, :, seen] - corner).abs().max().detach()) < 1e-5  # that cell by itself


if __name__ == "__main__":
    main()
