"""The verb on timm's numbers: attention under `Windows` is Swin's roll, partition, mask and attention."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from locant import Grid, RelativeTable, Windows, attention

MOST = 1e-5
DIM, HEADS = 24, 3


def agree(what: str, found: torch.Tensor, golden: torch.Tensor) -> None:
    error = (found - golden).abs().max().item()
    print(f"{what}: {error:.2e}")  # shown by `pytest -rP`
    assert error <= MOST, f"{what}: largest error {error:.3g}, allowed {MOST}"


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize(
    ("shape", "window", "shift"),
    [((14, 14), 7, 0), ((14, 14), 7, 3), ((8, 12), 4, 2), ((8, 12), 4, 0), ((4, 4), 2, 1), ((21, 14), 7, 3)],
)
def test_swin_block(timm, shape, window, shift, kernel):
    """timm's block rolls, cuts, masks with -100, attends and rolls back; here it is one call. Gradients as well."""
    swin = import_module("timm.models.swin_transformer")
    block = swin.SwinTransformerBlock(DIM, shape, HEADS, window_size=window, shift_size=shift).eval()
    nn.init.normal_(block.attn.relative_position_bias_table)
    theirs = block.attn
    table = RelativeTable(Grid(window, window), HEADS)
    with torch.no_grad():
        table.table.copy_(theirs.relative_position_bias_table.T.reshape(table.table.shape))
    x = torch.randn(2, *shape, DIM, requires_grad=True)
    golden = block._attn(x)

    q, k, v = theirs.qkv(x).flatten(1, 2).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    mask = Windows((window, window), shift=(shift, shift))
    out = attention(q, k, v, grid=Grid(*shape), position=table, mask=mask, kernel=kernel)
    found = theirs.proj(out.transpose(1, 2).flatten(2)).unflatten(1, shape)
    what = f"Swin {shape}, window {window}, shift {shift}, {kernel}"
    agree(what, found, golden)

    weight = torch.randn_like(golden)
    ours = torch.autograd.grad((found * weight).sum(), (x, table.table))
    published = torch.autograd.grad((golden * weight).sum(), (x, theirs.relative_position_bias_table))
    scale = published[1].abs().max().item()
    agree(f"{what}, gradient of the input", ours[0], published[0])
    agree(f"{what}, gradient of the table", ours[1].flatten(1).T / scale, published[1] / scale)


@pytest.mark.parametrize("window", [(2, 3), (7, 7)])
def test_swin_index(timm, window):
    swin = import_module("timm.models.swin_transformer")
    table = RelativeTable(Grid(*window), 1)
    with torch.no_grad():
        table.table.copy_(torch.arange(table.table.numel()).reshape(table.table.shape))
    assert torch.equal(table(Grid(*window))[0].long(), swin.get_relative_position_index(*window))


@pytest.mark.parametrize("window", [(2, 3), (4, 4)])
def test_beit_prefix_rows(timm, window):
    """timm's index with a class token: M for class to token, M + 1 for token to class, M + 2 for class to class."""
    layers = import_module("timm.layers.pos_embed_rel")
    flat = torch.randn((2 * window[0] - 1) * (2 * window[1] - 1) + 3, HEADS)
    index = layers.gen_relative_position_index(window, class_token=True)
    golden = flat[index].permute(2, 0, 1)
    grid = Grid(*window, prefix=1)
    table = RelativeTable(grid, HEADS)
    rows = {name: flat[row - 3] for row, name in enumerate(("query_prefix", "key_prefix", "both"))}
    table.load_state_dict({"table": flat[:-3].T.reshape(table.table.shape), **rows})
    assert torch.equal(table(grid), golden)
    q, k, v = torch.randn(3, 2, HEADS, grid.tokens, 8).unbind(0)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, golden)
    agree(f"BEiT {window}", attention(q, k, v, grid=grid, position=table), expected)
