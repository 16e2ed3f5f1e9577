"""One new query at a time against a cache of keys equals the full causal run: coordinates say where the query is.

The slice `Grid(length)[t : t + 1]` remembers that it is token t, so rotary angles, ALiBi's distances and the causal
order are those of the whole sequence. No offset is passed anywhere. Keys are turned once, when they are new: a rotation
given as `position` would turn the whole cache again at each step.
"""

from __future__ import annotations

import torch

from locant import ALiBi, Causal, Grid, Rotary, attention

LENGTH, HEADS, KV_HEADS, WIDTH = 32, 4, 2, 16


def main() -> None:
    torch.manual_seed(0)
    line = Grid(LENGTH)
    q = torch.randn(1, HEADS, LENGTH, WIDTH)
    k, v = torch.randn(2, 1, KV_HEADS, LENGTH, WIDTH).unbind(0)  # grouped queries: two heads share keys and values
    rotary, slopes = Rotary(WIDTH), ALiBi(HEADS)
    full = attention(q, k, v, grid=line, position=(rotary, slopes), mask=Causal())

    furthest, turned = 0.0, k[:, :, :0]  # the cache holds keys as they were turned when they were new
    for t in range(LENGTH):
        new = line[t : t + 1]
        turned = torch.cat([turned, rotary.turn(k[:, :, t : t + 1], new)], dim=2)
        step = attention(
            rotary.turn(q[:, :, t : t + 1], new), turned, v[:, :, : t + 1],
            grid=new, key_grid=line[: t + 1], position=slopes, mask=Causal(),
        )  # fmt: skip
        furthest = max(furthest, float((step[:, :, 0] - full[:, :, t]).abs().max()))
    print(f"{LENGTH} steps against the cache, largest difference to the full run: {furthest:.1e}")
    assert furthest < 1e-5

    # a query that takes itself for token 0
    lost = attention(q[:, :, -1:], k, v, grid=Grid(1), key_grid=line, position=(rotary, slopes))
    apart = float((lost[:, :, 0] - full[:, :, -1]).abs().max())
    print(f"with its place forgotten, the last one would be {apart:.2f} off")
    assert apart > 0.1


if __name__ == "__main__":
    main()
