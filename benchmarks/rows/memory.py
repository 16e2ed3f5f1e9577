"""How much memory attention takes besides its operands. Each figure in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch.nn.functional import scaled_dot_product_attention

from locant import Grid, RelativeTable, attention
from locant.measuring.memory import extra, peak
from locant.measuring.workload import Workload
from rows.row import Row, Setting, exact, fresh
from rows.whole import biased, drawn, flat_index

GB = 1e9


def forward(setting: Setting) -> Iterator[Row]:
    """Against the size of q, k and v; torch's own, bias included, beside it."""
    batch, heads, side, head_dim = 1, 8, 56, 64
    work = drawn(batch, heads, side, head_dim)
    size = sum(x.nbytes for x in (work.q, work.k, work.v))
    small = drawn(1, 8, 7, head_dim)
    small.forward("native"), torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # threads and their buffers are there
    ours = extra(lambda: work.forward("native"))
    flat, index = work.position.table.detach().flatten(1).T.contiguous(), flat_index(side)
    q, k, v = (x.detach() for x in (work.q, work.k, work.v))
    theirs = extra(lambda: scaled_dot_product_attention(q, k, v, biased(flat, index, side * side)))
    if ours is None or theirs is None:
        return
    exact(work, train=False)
    yield Row(
        "memory", f"extra memory, forward, table, N = {side * side:,}, {heads} heads, d {head_dim}",
        f"the size of q + k + v ({size / 1e6:.0f} MB)", ours / size, target=1.5, most=True,
        note=f"SDPA with the bias of the same table: {theirs / size:.0f} ×",
    )  # fmt: skip


def long(setting: Setting) -> Iterator[Row]:
    """65,536 tokens with a table, trained, beyond what importing takes."""
    before = peak()
    fresh()
    grid, heads, head_dim = Grid(256, 256), 1, 16
    work = Workload.draw(1, heads, head_dim, grid, position=RelativeTable(grid, heads, init_std=0.5))
    work.gradients("native")
    after = peak()
    if before is None or after is None:
        return
    rows = slice(100, 102)  # two lines of the map against the definition
    tokens = slice(100 * 256, 102 * 256)
    with torch.no_grad():
        dense = attention(
            work.q[:, :, tokens].double(), work.k.double(), work.v.double(), grid=grid[rows], key_grid=grid,
            position=copy.deepcopy(work.position).double(), kernel="reference",
        )  # fmt: skip
        error = (work.forward("native")[:, :, tokens] - dense).abs().max() / dense.abs().max()
    if not error <= 1e-5:
        raise SystemExit(f"native is RED on {grid}: off by {error:.1e} of the largest number.")
    yield Row(
        "long", f"forward + backward, table, N = {grid.tokens:,}, 1 head, d {head_dim}",
        f"beyond what import takes; an N × N bias is {4 * grid.tokens**2 / GB:.0f} GB",
        (after - before) / GB, target=0.5, most=True, unit="GB",
    )  # fmt: skip
