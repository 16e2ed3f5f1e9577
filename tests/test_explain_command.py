"""`locant explain` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from locant import models
from locant.checkpoints.files import write
from locant.cli import app
from locant.integrations import named

RUN = CliRunner()


def test_a_scheme_gets_its_page_and_its_sentences(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = RUN.invoke(app, ["explain", "relative:3x3", "-o", str(page)])
    assert done.exit_code == 0
    first, second, *_ = done.stdout.splitlines()
    assert first == "relative:3x3"
    assert second.startswith("The numbers are random or fixed")
    assert done.stdout.rstrip().endswith(f"Page: {page}")
    assert page.read_text().lower().startswith("<!doctype html>")


def test_two_models_share_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = RUN.invoke(app, ["explain", "alibi:5", "rotary:5", "-q", "-o", str(page)])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(page)
    assert "alibi:5 and rotary:5" in page.read_text()


def test_each_model_has_its_own_weights(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        torch.save({"table": torch.full((2, 5, 5), value)}, tmp_path / f"{name}.pth")
    given = [word for name in "ab" for word in ("--weights", str(tmp_path / f"{name}.pth"))]
    done = RUN.invoke(app, ["explain", "relative:3x3", "relative:3x3", *given, "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0
    assert "The numbers are those of a.pth." in done.stdout
    assert "The numbers are those of b.pth." in done.stdout
    done = RUN.invoke(app, ["explain", "relative:3x3", *given])
    assert done.exit_code == 2
    assert "needs --weights once for each model; it came 2 times for 1" in done.stderr


def test_a_model_of_any_size_is_told_its_pictures(tmp_path: Path) -> None:
    """A file of AIM-Swin says no size of frames; one of AIM-ViT does, also where it is the default."""
    settings = {"frames": 4, "dim": 12, "depths": (2,), "heads": (2,), "window": 4, "num_classes": 3}
    file, page = tmp_path / "aim.safetensors", tmp_path / "page.html"
    about = {"model": "AIMSwin", "layout": "locant", "settings": json.dumps(settings)}
    write(file, models.AIMSwin(**settings).state_dict(), about=about)
    clip = tmp_path / "clip.npy"
    np.save(clip, np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3)).astype(np.uint8))
    done = RUN.invoke(app, ["explain", str(file), str(clip), "-o", str(page)])
    assert done.exit_code == 2
    assert "AIMSwin does not say for which pictures it is. Name their size with --size" in done.stderr
    done = RUN.invoke(app, ["explain", str(file), str(clip), "--size", "16", "-o", str(page)])
    assert done.exit_code == 0, done.stderr
    assert named.example_of(models.AIMSwin(**settings), (16, 24)) == (3, 4, 16, 24)
    vit = models.AIMViT(img_size=(8, 16), patch=8, frames=2, dim=8, depth=1, heads=2, in_chans=1)
    assert named.example_of(vit) == (1, 2, 8, 16)
    with pytest.raises(ValueError, match="made for pictures of 8 × 16; --size says 24. Leave it out"):
        named.example_of(vit, 24)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "MODEL needs timm:NAME"),
        (["relative:3x3", "photo.jpg"], "an input needs a model that takes it"),
        (["relative:3x3", "-o", "page.pdf"], "ends in .html or .svg"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(words: list[str], sentence: str) -> None:
    done = RUN.invoke(app, ["explain", *words])
    assert done.exit_code == 2
    assert done.stderr.startswith("locant: ")
    assert sentence in done.stderr
