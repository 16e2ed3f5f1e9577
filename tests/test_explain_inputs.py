"""What `locant explain` takes: pictures and films brought to the model's size; sentences for the rest."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from locant.explain.inputs import choose_queries, take
from locant.explain.opening import Opened, open_
from locant.explain.resizings import resizing, resizings_of
from locant.explain.run import run
from locant.grid import Grid
from locant.integrations.named import _load
from locant.nn import WindowAttention
from locant.positions.table import RelativeTable

PICTURE = Opened("pictures", "", inputs=(torch.zeros(1, 3, 8, 8),), mean=(0.0,) * 3, std=(1.0,) * 3)
FILM = Opened("films", "", inputs=(torch.zeros(1, 3, 4, 8, 8),), mean=(0.0,) * 3, std=(1.0,) * 3)
CLIP = Opened("clips", "", inputs=(torch.zeros(1, 4, 1, 8, 8),), mean=(0.0,), std=(1.0,), channels=1)


def test_a_picture_is_resized_and_said() -> None:
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, 12:, 0] = 255
    taken = take(pixels, PICTURE)
    (x,) = taken.inputs
    assert x.shape == (1, 3, 8, 8)
    assert float(x[0, 0, 4, 7]) == 1.0
    assert float(x[0, 0, 4, 0]) == float(x[0, 1].max()) == 0.0
    assert taken.note == "Resized from 16 × 24 to 8 × 8."
    assert taken.kind == "picture"


def test_frames_are_spread_and_lie_where_the_model_has_them() -> None:
    pixels = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.full((7, 8, 8, 3), 30, np.uint8)
    for opened, axis in ((FILM, 2), (CLIP, 1)):
        (x,) = take(pixels, opened).inputs
        assert x.shape == opened.inputs[0].shape
        frames = x.movedim(axis, 0).flatten(1).mean(1) * 255 / 30
        assert torch.allclose(frames, torch.tensor([0.0, 2.0, 4.0, 6.0]), atol=1e-5)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((9, 9, 3), 51, np.uint8)).save(path)
    (x,) = take(path, PICTURE).inputs
    assert torch.allclose(x, torch.full((1, 3, 8, 8), 0.2))


def test_queries_are_a_lattice_and_the_class_token() -> None:
    taken = take(np.zeros((8, 8, 3), np.uint8), PICTURE)
    where, labels = choose_queries(taken, 2, True, None)
    assert len(where) == len(labels) == 10
    assert where[-1] == ()
    assert choose_queries(taken, 2, True, [(0.5, 0.25)])[0] == [(0.5, 0.25)]


def test_bad_inputs_are_sentences(tmp_path: Path) -> None:
    empty = tmp_path / "frames"
    empty.mkdir()
    for given, opened, words in (
        (empty, FILM, "a folder without frames"),
        (np.zeros((0, 8, 8, 3), np.uint8), FILM, "a film with frames; it has none"),
        (np.zeros((5, 5)), PICTURE, r"an array \[3, 8, 8\] for pictures; got \[5, 5\]"),
        ("some words", PICTURE, "needs a tokenizer, and pictures has none"),
        ("gone.png", PICTURE, "a file that is there; 'gone.png' is not"),
        (3, PICTURE, "a picture, a film, an array or a line of text; got int"),
    ):
        with pytest.raises(ValueError, match=words):
            take(given, opened)


def test_a_table_comes_from_a_file_in_both_layouts(tmp_path: Path) -> None:
    flat = torch.randn(25, 3)  # as Swin publishes it
    for name, state in (("a", {"relative_position_bias_table": flat}), ("b", {"table": flat.T.reshape(3, 5, 5)})):
        torch.save(state, tmp_path / f"{name}.pth")
        found = run("relative:3x3", weights=tmp_path / f"{name}.pth").data
        assert found.notes == (f"The numbers are those of {name}.pth.",)
        assert np.allclose(found.layers[0].heads[2].map, flat[:, 2].reshape(5, 5))
    with pytest.raises(ValueError, match=r"needs a table \[heads, 3, 3\] or \[9, heads\].*Name the grid of the table"):
        open_("relative:2x2", weights=tmp_path / "a.pth")


def test_resizing_is_measured_against_the_old_table_stretched() -> None:
    torch.manual_seed(0)
    table = RelativeTable(Grid(3, 3), 2, init_std=1.0)
    new = table.resized(Grid(5, 5), method="linear")
    assert np.allclose(resizing("table", table.table, new.table).changed, 0, atol=1e-6)
    with torch.no_grad():
        new.table[1].zero_()
    changed = resizing("table", table.table, new.table).changed
    assert changed[0] < 1e-6
    assert changed[1] > 0.1
    model = nn.ModuleDict({"position": new})
    (found,) = resizings_of(model, {"position.table": table.table})
    assert found.name == "position.table"
    assert np.allclose(found.changed, changed)


def test_a_model_without_attention_says_so() -> None:
    found = run(nn.Linear(4, 4), torch.randn(1, 4)).data
    assert found.layers == ()
    assert "No attention was reached that Locant knows." in found.notes


def test_weights_that_are_not_finite_are_marked_and_the_page_is_there() -> None:
    torch.manual_seed(0)
    model = WindowAttention(16, 2, window=(2, 2), grid=Grid(4, 4)).eval()
    with torch.no_grad():
        model.position.table[0, 1, 1] = torch.nan
    found = run(model, torch.randn(1, 16, 16))
    first, second = found.data.layers[0].heads
    assert np.isnan(first.map[1, 1])
    assert np.isnan(first.locality)
    assert np.isfinite(second.map).all()
    assert any("holds numbers that are not finite, in heads 0" in f.text for f in found.data.findings)
    given = re.search(r'id="maps">(.*?)</script>', found.page).group(1)
    assert "NaN" not in given  # which is no JSON


def test_attention_that_is_not_known_is_a_row_with_the_reason() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    (layer,) = run(nn.Sequential(Own()), torch.randn(1, 4)).data.layers
    assert (layer.name, layer.scheme, layer.heads) == ("0", "not known", ())
    assert layer.reason == "It owns a position bias, and Locant does not know its class."


def test_weights_that_do_not_fit_are_a_sentence(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"a checkpoint of a Swin needs names of one of its layouts.*got 1 names"):
        run("locant:swin_tiny", weights=tmp_path / "other.pth")


def test_weights_of_another_size_ask_for_it(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, tmp_path / "small.pth")
    with pytest.raises(ValueError, match=r"small.pth has 1 of another shape \(weight\). Name the size .* with --size"):
        _load(nn.Linear(4, 2), tmp_path / "small.pth")
