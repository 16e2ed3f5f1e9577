"""Files that `locant convert --to` writes, loaded strictly by the library whose names they have (row 16)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from locant.checkpoints import convert, export, write
from locant.models.convit import ConViT
from locant.models.swin import Swin
from locant.models.swin_v2 import SwinV2
from locant.nn import MultiHeadAttention

SWIN: dict[str, Any] = {
    "dim": 24, "depths": (2, 2), "heads": (1, 2), "window": 4, "img_size": 64, "num_classes": 5
}  # fmt: skip
CONVIT: dict[str, Any] = {
    "img_size": 32, "patch": 8, "dim": 16, "depth": 3, "heads": 4, "local_up_to_layer": 2, "num_classes": 5
}  # fmt: skip
OURS = {"Swin": (Swin, SWIN), "SwinV2": (SwinV2, SWIN), "ConViT": (ConViT, CONVIT)}


def _timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(img_size=64, window_size=4, embed_dim=24, num_heads=(1, 2), depths=(2, 2), num_classes=5)


def _timm_swin_v2() -> nn.Module:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return SwinTransformerV2(img_size=64, window_size=4, embed_dim=24, num_heads=(1, 2), depths=(2, 2), num_classes=5)


def _timm_convit() -> nn.Module:
    from timm.models.convit import ConVit

    return ConVit(
        img_size=32, patch_size=8, embed_dim=4, depth=3, num_heads=4, local_up_to_layer=2, num_classes=5
    )  # fmt: skip


def _transformers(version: str) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{version}Config")(
        image_size=64, window_size=4, embed_dim=24, num_heads=(1, 2), depths=(2, 2), num_labels=5
    )
    return getattr(transformers, f"{version}ForImageClassification")(config)


def _torchvision(**parts: str) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    return swin.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[1, 2], window_size=[4, 4], num_classes=5,
        **{name: getattr(swin, part) for name, part in parts.items()},
    )  # fmt: skip


V2 = {"block": "SwinTransformerBlockV2", "downsample_layer": "PatchMergingV2"}
PEERS: dict[tuple[str, str], Callable[[], nn.Module]] = {
    ("Swin", "timm"): _timm_swin,
    ("SwinV2", "timm"): _timm_swin_v2,
    ("ConViT", "timm"): _timm_convit,
    ("Swin", "transformers"): lambda: _transformers("Swin"),
    ("SwinV2", "transformers"): lambda: _transformers("Swinv2"),
    ("Swin", "torchvision"): _torchvision,
    ("SwinV2", "torchvision"): lambda: _torchvision(**V2),
}


@pytest.mark.row(16)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(("name", "to"), PEERS, ids=lambda word: word)
def test_what_convert_writes_loads_strictly(name, to, ending, timm, transformers, parity, tmp_path: Path):
    """`load_state_dict(torch.load(path))` and no other word; then both give the same numbers."""
    import safetensors.torch

    torch.manual_seed(0)
    kind, settings = OURS[name]
    model, peer = kind(**settings).eval(), PEERS[name, to]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    write(tmp_path / "in.safetensors", model.state_dict())
    target = tmp_path / f"out.{ending}"
    convert(tmp_path / "in.safetensors", target, model=name, to=to, settings=settings)
    state = torch.load(target) if ending == "pth" else safetensors.torch.load_file(target)
    peer.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, *2 * [settings["img_size"]])
    with torch.no_grad():
        wanted = peer(x)
        wanted = getattr(wanted, "logits", wanted)
        err = (model(x) - wanted).abs().max().item()
    parity(16, f"{name} to {to}, from a converted .{ending}", err, 1e-5 * wanted.abs().max().item())


def test_torchs_attention_takes_ours_strictly():
    nn.MultiheadAttention(8, 2).load_state_dict(export(MultiHeadAttention(8, 2), "torch", buffers=True), strict=True)


def test_masks_and_indices_are_those_of_the_peers(timm):
    """Microsoft keeps attn_mask in its files; timm, which does not, computes the same one."""
    model, peer = Swin(**SWIN), _timm_swin()
    state = export(model, "official", buffers=True)
    names = {name for name in state if name.endswith(("attn_mask", "relative_position_index"))}
    assert names == {
        *(f"layers.{s}.blocks.{b}.attn.relative_position_index" for s in (0, 1) for b in (0, 1)),
        *(f"layers.{s}.blocks.1.attn_mask" for s in (0, 1)),
    }
    for s in (0, 1):
        block = peer.layers[s].blocks[1]
        assert torch.equal(state[f"layers.{s}.blocks.1.attn_mask"], block.attn_mask)
        assert torch.equal(
            state[f"layers.{s}.blocks.1.attn.relative_position_index"], block.attn.relative_position_index
        )
    assert not any("mask" in name for name in export(Swin(**{**SWIN, "img_size": 16}), "official", buffers=True))
