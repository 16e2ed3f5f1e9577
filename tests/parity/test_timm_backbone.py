"""What timm's models offer beside their logits, beside timm's own."""

from __future__ import annotations

import torch
from near import apart

from locant import checkpoints
from locant.models import ViT

INPUT = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_layers_are_those_of_timm(timm, tmp_path):
    """The same numbers as timm's own method, weights carried over."""
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=4, num_classes=5
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = ViT(img_size=32, patch=8, dim=16, depth=2, heads=4, num_classes=5, like="timm").eval()
    checkpoints.load(ours, tmp_path / "theirs.pth")
    assert ours.num_features == theirs.num_features
    for options in ({"n": 2}, {"n": [0], "reshape": True}, {"n": 1, "norm": True, "return_prefix_tokens": True}):
        flat = torch.utils._pytree.tree_leaves
        for mine, wanted in zip(
            flat(ours.get_intermediate_layers(INPUT, **options)),
            flat(theirs.get_intermediate_layers(INPUT, **options)),
            strict=True,
        ):
            assert apart(mine, wanted) <= 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
