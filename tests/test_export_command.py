"""`locant export MODEL OUT`: a file that was tried, its largest error, and refusals in the command's words."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from near import apart
from redrawing import redraw
from small import vit
from torch import nn
from typer.testing import CliRunner

from locant.cli import app
from locant.integrations import export as exporting
from locant.models.swin import Swin
from locant.models.vit import ViT

pytestmark = pytest.mark.plain
there = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnxruntime", "onnxscript"))), reason="the extra `deploy` is absent"
)


def _run(*words: object):
    return CliRunner().invoke(app, ["export", *map(str, words)])


@there
def test_a_file_with_an_open_batch(tmp_path) -> None:
    import onnxruntime

    path = tmp_path / "swin.onnx"
    done = _run("swin_tiny", path, "--image-size", "32", "--dynamic")
    assert done.exit_code == 0, done.output
    assert "onnxruntime on 3 × 3 × 32 × 32: largest error " in done.stdout
    assert "pixels: 32 × 32 alone (open ones are multiples of 32 from 64 to 2016)" in done.stdout
    assert f"Written: {path}" in done.stdout
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (slot,) = session.get_inputs()
    assert session.run(None, {slot.name: torch.zeros(7, 3, 32, 32).numpy()})[0].shape == (7, 1000)
    assert sorted(p.name for p in tmp_path.iterdir()) in (["swin.onnx"], ["swin.onnx", "swin.onnx.data"])


OPEN = {  # the model, and the least side of a picture where others are taken
    "windows": (lambda: Swin(dim=8, depths=(1, 2), heads=(2, 4), window=4, img_size=64), 64),
    "rotary": (lambda: ViT(img_size=64, patch=8, dim=16, depth=1, heads=2, num_classes=5, position="rotary"), 64),
    "rows of one size": (lambda: vit(64), None),
}


@there
@pytest.mark.parametrize("name", OPEN)
def test_a_file_with_open_pixels(name, tmp_path, monkeypatch) -> None:
    """Tried on two sizes, where the model takes others; else it says why it takes one."""
    import onnxruntime

    build, least = OPEN[name]
    model, path = redraw(build()).eval(), tmp_path / "open.onnx"
    monkeypatch.setattr(exporting, "_model", lambda name, size, weights: (model, (3, 64, 64)))
    done = _run(name, path, "--dynamic")
    assert done.exit_code == 0, done.output
    if least is None:
        assert "pixels: 64 × 64 alone (ViT has positions for 8 × 8 tokens" in done.stdout
        return
    assert f"pixels: {least} to 4096 × {least} to 4096, in steps of 32\n" in done.stdout
    assert f"onnxruntime on 1 × 3 × {least} × {least}: largest error " in done.stdout
    assert "onnxruntime on 3 × 3 × 128 × 160: largest error " in done.stdout
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(2, 3, 192, 96)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = model(x).detach()
    assert apart(torch.from_numpy(found), wanted) <= 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())


@there
def test_wrong_numbers_are_not_written(tmp_path, monkeypatch) -> None:
    class Drawn(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    monkeypatch.setattr(exporting, "_model", lambda name, size, weights: (Drawn(), (4,)))
    done = _run("drawn", tmp_path / "drawn.onnx")
    assert done.exit_code == 1
    assert "Not written, as it is wrong" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("swin_tiny", "swin.pt"), "OUT needs a file ending in .onnx"),
        (("swin_tiny", "nowhere/swin.onnx"), "in a folder that exists"),
    ],
)
def test_refusals(words, sentence, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = _run(*words)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@there
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("swin_huge", "NAME needs a library before it"),
        ("locant:detr", "takes no picture or clip by itself"),
        ("Bahdanau", "NAME needs a library before it"),
    ],
)
def test_models_that_are_refused(name, sentence, tmp_path) -> None:
    done = _run(name, tmp_path / "x.onnx")
    assert done.exit_code == 2
    assert sentence in done.stderr
