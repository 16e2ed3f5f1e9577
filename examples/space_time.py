"""AIM: one attention over time, then over space, by two windows on one clip. No axis is regrouped.

The published code folds frames into the batch for space, and places into the batch for time.
"""

from __future__ import annotations

import torch

from locant import Grid, RelativeTable, Windows
from locant.nn import Attention

FRAMES, ROWS, COLUMNS, DIM, HEADS = 4, 6, 6, 24, 3


def main() -> None:
    torch.manual_seed(0)
    clip = Grid(FRAMES, ROWS, COLUMNS)
    attend = Attention(DIM, HEADS, grid=clip)  # one qkv, one projection
    space = RelativeTable(Grid(1, 3, 3), HEADS, init_std=1.0)
    time = RelativeTable(Grid(FRAMES, 1, 1), HEADS, init_std=1.0)
    x = torch.randn(2, clip.tokens, DIM)

    y = attend(x, position=time, mask=Windows((FRAMES, 1, 1)))
    z = attend(y, position=space, mask=Windows((1, 3, 3)))

    # the same in time, regrouped by hand: places into the batch, a temporal table on a sequence of frames
    line = RelativeTable(Grid(FRAMES), HEADS)
    line.load_state_dict({"table": time.table.detach().flatten(1)})
    places = x.unflatten(1, (FRAMES, -1)).transpose(1, 2).flatten(0, 1)
    regrouped = attend(places, grid=Grid(FRAMES), position=line)
    regrouped = regrouped.unflatten(0, (2, -1)).transpose(1, 2).flatten(1, 2)
    apart = float((y - regrouped).abs().max().detach())
    print(f"largest difference to regrouping: {apart:.1e}")
    assert apart < 1e-5

    weights = sum(p.numel() for p in attend.parameters())
    tables = space.table.numel() + time.table.numel()
    print(f"{weights} weights serve both passes; the tables add {tables}")
    assert tables == HEADS * (5 * 5 + 2 * FRAMES - 1)

    first, moved = clip[:1].tokens, y.clone()
    moved[:, first:] += 1.0  # change every frame but the first
    again = attend(moved, position=space, mask=Windows((1, 3, 3)))
    assert torch.equal(again[:, :first], z[:, :first])  # space does not see other frames
    print("the spatial pass of frame 0 sees frame 0 alone")


if __name__ == "__main__":
    main()
