"""Checkpoints of the peers, read at another size as they read them themselves (rows 8 and 16)."""

from __future__ import annotations

import pytest
import torch
from redrawing import redraw
from torch import nn

from locant.checkpoints import export, load, write
from locant.models.swin import Swin

SIZES = {"depths": (2, 2, 2, 2), "num_classes": 7}


def theirs(timm, img_size, window) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(img_size=img_size, window_size=window, embed_dim=24, num_heads=(1, 2, 4, 8), **SIZES).eval()


def ours(img_size, window) -> Swin:
    heads = (1, 2, 4, 8)
    return Swin(
        dim=24, heads=heads, img_size=img_size, window=window, border="roll-pad", small="per-axis", **SIZES
    ).eval()


@pytest.mark.row(8)
@pytest.mark.row(16)
@pytest.mark.parametrize(("img_size", "window"), [(256, 8), (384, 12), ((192, 320), (6, 10)), (160, 5)])
def test_swin_from_224_to_other_sizes_as_timm_does_it(timm, parity, tmp_path, img_size, window):
    """Windows from 7 to 8, 12, 6 × 10 and 5; the file is timm's, the method its own."""
    from timm.models.swin_transformer import checkpoint_filter_fn

    trained = redraw(theirs(timm, 224, 7))
    write(tmp_path / "in.safetensors", trained.state_dict())
    peer, model = theirs(timm, img_size, window), ours(img_size, window)
    peer.load_state_dict(checkpoint_filter_fn(trained.state_dict(), peer))
    report = load(model, tmp_path / "in.safetensors", method="geometric")
    assert len(report.resized) == 8
    assert report.layout == "timm"
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    x = torch.randn(1, 3, *sides)
    with torch.no_grad():
        wanted, found = peer(x), model(x)
    tolerance = 1e-5 * wanted.abs().max().item()
    where = f"timm swin, 224/7 to {'×'.join(map(str, sides))}, its own resizing"
    parity(8, where, (found - wanted).abs().max().item(), tolerance)
    parity(16, where, (found - wanted).abs().max().item(), tolerance)


@pytest.mark.row(16)
def test_what_we_export_the_peer_loads_strictly(timm, parity):
    """timm recomputes its indices, and keeps none of them in a file."""
    model, peer = redraw(ours(64, 4)), theirs(timm, 64, 4)
    peer.load_state_dict(export(model, "timm"), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted, found = peer(x), model(x)
    parity(16, "timm swin, from our export", (found - wanted).abs().max().item(), 1e-5 * wanted.abs().max().item())


def test_a_timm_file_is_resized_geometrically_unless_told_otherwise(timm):
    state = redraw(theirs(timm, 64, 4)).state_dict()
    assert {line.method for line in load(ours(96, 6), state).resized} == {"geometric"}


@pytest.mark.row(16)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_other_channels_as_timm_adapts_them(timm, parity, channels):
    """The same kernel, and a whole model: timm's own weights brought to other pictures by timm and by `load`."""
    from timm.models._manipulate import adapt_input_conv

    trained = redraw(theirs(timm, 64, 4))
    state = trained.state_dict()
    model = Swin(dim=24, heads=(1, 2, 4, 8), img_size=64, window=4, in_chans=channels, like="timm", **SIZES)
    load(model, state)
    wanted = adapt_input_conv(channels, state["patch_embed.proj.weight"])
    found = model.patch_embed.proj.weight.detach()
    parity(16, f"timm adapt_input_conv, {channels} channels", (found - wanted).abs().max().item(), 1e-6)
