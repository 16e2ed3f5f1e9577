"""Masks in parts and on devices: a shard of queries or keys attends under its part of the mask as under the whole."""

from __future__ import annotations

import pytest
import torch

from locant import Causal, Grid, Padding, Pairs, RelativeTable, Segments, Windows, attention

LINE = Grid(12)
PLANE = Grid(4, 3, prefix=1)
DRAW = torch.Generator().manual_seed(3)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randint(0, 3, (2, *shape), generator=DRAW)


MASKS = {
    "line": (LINE, Causal() & Padding(drawn(12) > 0) & Segments(drawn(12), drawn(12))),
    "pairs": (LINE, Pairs(drawn(12, 12) > 0) & Pairs(drawn(1, 12) > 0) & Windows(5, 2)),
    "prefix": (PLANE, Padding(drawn(4, 3) > 0) & Segments(drawn(4, 3))),
    "prefix with ids": (PLANE, Segments(drawn(13), drawn(4, 3)) & Pairs(drawn(2, 13, 1) > 0)),
}


@pytest.mark.parametrize("name", MASKS)
def test_shards_of_keys_join_to_the_whole(name):
    """softmax over parts of the keys, weighted by their log-sum-exps: what a ring of devices computes."""
    grid, mask = MASKS[name]
    table = RelativeTable(grid.without_prefix(), 2).double()
    q, k, v = torch.randn(3, 2, 2, grid.tokens, 8, dtype=torch.float64).unbind(0)
    whole = attention(q, k, v, grid=grid, position=table, mask=mask)
    bound, outs, sums = mask.bound(grid, grid), [], []
    half = len(grid.along(0)) // 2
    first = grid[:half].tokens
    for part, keys in ((grid[:half], slice(0, first)), (grid[half:], slice(first, None))):
        out, lse = attention(
            q, k[:, :, keys], v[:, :, keys], grid=grid, key_grid=part, position=table,
            mask=bound.cut(slice(None), keys), return_lse=True,
        )  # fmt: skip
        outs.append(out)
        sums.append(lse)
    shares = torch.stack(sums).softmax(0).nan_to_num(0.0)[..., None]  # a row that sees no key at all: zeros
    torch.testing.assert_close((torch.stack(outs) * shares).sum(0), whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", MASKS)
def test_shards_of_queries_are_rows_of_the_whole(name):
    grid, mask = MASKS[name]
    q, k, v = torch.randn(3, 2, 2, grid.tokens, 8, dtype=torch.float64).unbind(0)
    whole, bound = attention(q, k, v, grid=grid, mask=mask), mask.bound(grid, grid)
    first = grid[:2].tokens
    for part, rows in ((grid[:2], slice(0, first)), (grid[2:], slice(first, None))):
        out = attention(q[:, :, rows], k, v, grid=part, key_grid=grid, mask=bound.cut(rows, slice(None)))
        torch.testing.assert_close(out, whole[:, :, rows], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", MASKS)
def test_masks_move_to_a_device(name):
    """Tensors go there, and what has none is returned as it is; a mask that is bound stays bound."""
    grid, mask = MASKS[name]
    for one in (mask, mask.bound(grid, grid)):
        moved = one.to("meta")
        assert [type(m) for m in moved.members()] == [type(m) for m in one.members()]
        for member, old in zip(moved.members(), one.members(), strict=True):
            assert all(getattr(member, tensor).is_meta for tensor in member.tensors)
            assert member.tensors or member is old
        assert torch.equal(one.to("cpu").allowed(grid), one.allowed(grid))


@pytest.mark.compiled
def test_masks_move_in_a_graph():
    mask, q = MASKS["line"][1], torch.randn(2, 1, 12, 8)
    run = lambda q, mask: attention(q, q, q, grid=LINE, mask=mask.to(q.device))  # noqa: E731
    torch.testing.assert_close(torch.compile(run, backend="eager", fullgraph=True)(q, mask), run(q, mask))
