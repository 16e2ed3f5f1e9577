"""Every kind of model is explained: each attention is reached, every row adds up to 1, outputs keep their bits."""

from __future__ import annotations

import numpy as np
import pytest
import small
import torch

from locant.explain import run
from locant.explain.recording import Recorder

INPUTS = {
    "models.aim_swin.AIMSwin": ((3, 4, 32, 32), 3, ("bias",)),
    "models.aim_vit.AIMViT": ((3, 4, 16, 16), 2, ("bias", "embed")),
    "models.convit.ConViT": ((3, 32, 32), 3, ("gate", "embed")),
    "models.deit.DeiT": ((3, 32, 32), 2, ("embed",)),
    "models.mvit_v2.MViTv2": ((3, 32, 32), 3, ("content",)),
    "models.sam_encoder.SAMEncoder": ((3, 48, 48), 2, ("content",)),
    "models.swin.Swin": ((3, 32, 32), 3, ("bias",)),
    "models.swin_v2.SwinV2": ((3, 32, 32), 3, ("bias",)),
    "models.vit.ViT": ((3, 32, 32), 2, ("embed",)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_model_is_explained(name: str) -> None:
    torch.manual_seed(0)
    shape, least, entrances = INPUTS[name]
    model = small.MODELS[name]().eval()
    x = torch.randn(1, *shape)
    with torch.no_grad():
        before = model(x)
        with Recorder(model, [(0.5,) * (len(shape) - 1)], rollout=True).recording():
            after = model(x)
    pairs = zip(before, after, strict=True) if isinstance(before, tuple | list) else [(before, after)]
    assert all(torch.equal(a, b) for a, b in pairs)
    data = run(model, x).data
    assert len(data.layers) >= least
    for layer in data.layers:
        assert layer.entrance in entrances
        assert len(layer.heads) == len(layer.rows[0].both)
        filled = "filled with zeros" in layer.reason
        for row in layer.rows:
            total = row.both.reshape(len(row.both), -1).sum(1) + row.prefix[0].sum(1)
            assert (total <= 1 + 1e-5).all()
            assert filled or np.allclose(total, 1, atol=1e-5)
        assert all(np.isclose(head.position_share + head.content_share, 1) for head in layer.heads)
