"""The heart of what Locant promises, in one process without pytest: `python tests/heart.py [kernels]`.

Run where torch lacks names that Locant would like to use (test_dispatch.py). Truth is written out by hand, in float64.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from locant import Causal, Grid, Padding, RelativeTable, Segments, Windows, attention
from locant.masks import Mask

GRID = Grid(4, 6)
VALID = torch.arange(24)[None] < torch.tensor([[24], [17]])
MASKS = (None, Causal(), Windows((2, 3)), Padding(VALID), Segments(VALID.long()), Windows((2, 4), shift=(1, 1)))


def written_out(q: Tensor, k: Tensor, v: Tensor, table: Tensor, mask: Mask | None) -> Tensor:
    """softmax(q kᵀ / √d + table[row offset, column offset]) v, the allowed pairs alone."""
    cells = torch.tensor([[row, column] for row in range(4) for column in range(6)])
    offset = cells[:, None] - cells[None] + torch.tensor([3, 5])
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + table[:, offset[..., 0], offset[..., 1]]
    if mask is not None:
        logits = logits.masked_fill(~mask.allowed(GRID), -torch.inf)
    return logits.softmax(-1) @ v


def check_attention(kernel: str) -> None:
    """Forward, every gradient, every mask."""
    for mask in MASKS:
        q, k, v = (x.requires_grad_() for x in torch.randn(3, 2, 2, 24, 8, dtype=torch.float64).unbind(0))
        position = RelativeTable(GRID, 2, init_std=1.0).double()
        inputs = (q, k, v, position.table)
        found = attention(q, k, v, grid=GRID, position=position, mask=mask, kernel=kernel)
        golden = written_out(q, k, v, position.table, mask)
        weight = torch.randn_like(golden)
        gradients = (torch.autograd.grad((out * weight).sum(), inputs) for out in (found, golden))
        for x, truth in ((found, golden), *zip(*gradients, strict=True)):
            assert (x - truth).abs().max() < 1e-10, (kernel, mask)


def check_transforms() -> None:
    """Under torch.func, sample by sample, the numbers are those of the batch."""
    q, k, v = torch.randn(3, 3, 2, 24, 8, dtype=torch.float64).unbind(0)
    position = RelativeTable(GRID, 2, init_std=1.0).double().requires_grad_(False)

    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q[None], k[None], v[None], grid=GRID, position=position)[0]

    golden = written_out(q, k, v, position.table, None)
    assert (torch.vmap(one)(q, k, v) - golden).abs().max() < 1e-10
    summed = torch.func.grad(lambda q: one(q, k[0], v[0]).square().sum())(q[0])
    copy = q.clone().requires_grad_()
    (truth,) = torch.autograd.grad(written_out(copy, k, v, position.table, None)[0].square().sum(), copy)
    assert (summed - truth[0]).abs().max() < 1e-10


def check_graphs() -> None:
    """One graph, forward and backward; grid, position and mask are arguments of it."""
    position = RelativeTable(GRID, 2, init_std=1.0).double()

    def run(q: Tensor, k: Tensor, v: Tensor, grid: Grid, position: nn.Module, mask: Mask | None) -> Tensor:
        return attention(q, k, v, grid=grid, position=position, mask=mask)

    for mask in (None, Windows((2, 3)), Padding(VALID)):
        torch.compiler.reset()
        q, k, v = (x.requires_grad_() for x in torch.randn(3, 2, 2, 24, 8, dtype=torch.float64).unbind(0))
        found = torch.compile(run, fullgraph=True, backend="aot_eager")(q, k, v, GRID, position, mask)
        golden = written_out(q, k, v, position.table, mask)
        assert (found - golden).abs().max() < 1e-10, mask
        gradients = (torch.autograd.grad(out.square().sum(), (q, k, v, position.table)) for out in (found, golden))
        for x, truth in zip(*gradients, strict=True):
            assert (x - truth).abs().max() < 1e-10, mask


def check_flops() -> None:
    """24 tokens of 16 channels: four projections, and both products with 24 keys."""
    from locant import flops
    from locant.nn import Attention

    layer = Attention(16, 2, grid=GRID, position=RelativeTable(GRID, 2))
    for mask in (None, Padding(VALID)):
        found = flops.count(layer, torch.empty(2, 24, 16), arguments={"mask": mask}).parts
        assert found.projections == 2 * 24 * 4 * 16 * 16
        assert found.logits == found.values == 2 * 24 * 24 * 16


if __name__ == "__main__":
    torch.manual_seed(0)
    for name in sys.argv[1:]:
        if name in ("transforms", "graphs", "flops"):
            globals()[f"check_{name}"]()
        else:
            check_attention(name)
        print(name)
