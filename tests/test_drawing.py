"""Positions, masks and grids in a notebook and as SVG: what is drawn is what the scheme says, and cells never clash."""

from __future__ import annotations

import base64
import io
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from schemes import SCHEMES, parts

from locant.bench.result import Result as Benchmark
from locant.checkpoints.report import Report
from locant.compare.beside import Beside
from locant.grid import Grid
from locant.maps import example, middle, one_query
from locant.masks import Causal, Padding, Pairs, Segments, Windows
from locant.page.notebook import cell
from locant.page.pictures import LEVELS, LOST, colours, quantise
from locant.positions.gate import GatedPosition
from locant.positions.shaw import Shaw
from locant.positions.slopes import ALiBi
from locant.positions.table import RelativeTable

ALL = [part for scheme in SCHEMES for part in parts(scheme.build())]


def pixels(shown: str) -> list[np.ndarray]:
    """The images of the maps, without that of the legend, which is the last."""
    data = re.findall(r'href="data:image/png;base64,([^"]+)"', shown)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in data[:-1]]


def table(size: int = 5, heads: int = 2) -> RelativeTable:
    torch.manual_seed(0)
    return RelativeTable(Grid(size, size), heads, init_std=1.0)


def test_a_cell_shows_what_the_query_in_the_middle_meets() -> None:
    scheme = table()
    shown = scheme._repr_html_()
    expected = scheme(Grid(5, 5)).detach().numpy()[:, 12].reshape(2, 5, 5)
    levels, scale = quantise(expected)
    assert scale == pytest.approx(np.abs(expected).max())
    for found, level in zip(pixels(shown), levels, strict=True):
        assert (found == colours(level)).all()
    assert "acts on logits; 162 learned numbers" in shown
    assert f"−{scale:.3g}" in shown


@pytest.mark.parametrize("position", ALL, ids=lambda p: type(p).__name__)
def test_every_scheme_of_the_laws_has_a_cell_and_a_drawing(position) -> None:
    shown = position._repr_html_()
    found = example(position)
    if found is None:
        assert "draw(grid)" in shown
        return
    frames = found[0].shape[0] if found[0].axes == 3 else 1
    assert len(pixels(shown)) == len(found[1]) * frames
    svg = position.draw().svg
    assert svg.startswith("<svg")
    assert svg.count("<image") == len(found[1]) + 1  # the legend's


def test_what_a_content_scheme_can_add_at_most() -> None:
    """Shaw's term is q · vector: by Cauchy and Schwarz the most for a query of length 1 is the vector's length."""
    scheme = Shaw(2, 8, distance=3).double()
    row = one_query(scheme, Grid(9), (4,))
    q = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    added = one_query(scheme, Grid(9), (4,), q=q)
    scale = 8**-0.5 * q[0, :, 4].norm(dim=-1)[:, None]  # attention scales by it, and the length is that of q
    assert (added.abs() <= row * scale + 1e-12).all()
    worst = one_query(scheme, Grid(9), (4,)).argmax(-1)
    assert worst.shape == (2,)
    lengths = {round(float(v), 10) for v in scheme.table.detach().norm(dim=-1).flatten()}
    assert {round(float(v), 10) for v in row.flatten()} <= lengths


def test_what_is_no_number_is_crossed_out_and_counted() -> None:
    scheme = table(3, 1)
    with torch.no_grad():
        scheme.table[0, 2, 2], scheme.table[0, 0, 0] = torch.nan, torch.inf  # the first is read by every query
    shown = scheme._repr_html_()
    lost = ~np.isfinite(scheme(Grid(3, 3)).detach().numpy()[0, 4])
    assert f"{lost.sum()} values are NaN or infinite" in shown
    assert shown.count("l1 1m-1 0l1-1") == lost.sum()
    assert 'class="lost"' not in table()._repr_html_()


def test_levels_keep_zero_and_sign() -> None:
    levels, scale = quantise(np.array([0.0, -2.0, 1.0, np.nan, np.inf]))
    assert (levels.tolist(), scale) == ([0, -LEVELS, 64, LOST, LOST], 2.0)
    assert quantise(np.zeros(2))[1] == 1.0
    assert colours(np.array([[LOST]], np.int8)).tolist() == colours(np.array([[0]], np.int8)).tolist()


@pytest.mark.parametrize(
    "mask",
    [Causal(), Windows(3), Windows((7, 7), (3, 3)), Windows((1, 4, 4)), Causal() & Windows(4),
     Padding.from_lengths(torch.tensor([3, 5]), 6), Segments(torch.tensor([[0, 0, 1]])),
     Pairs.from_kept(torch.eye(4)[None] > 0)],
    ids=repr,
)  # fmt: skip
def test_masks_show_who_is_seen(mask) -> None:
    shown = mask._repr_html_()
    grid = next(grid for grid in mask._examples() if f"on {grid}:" in shown)
    allowed = mask.allowed(grid)[0, 0]
    seen = allowed if grid.axes == 1 else allowed[grid.tokens // 2 + grid.tokens // 2 % 1]
    if grid.axes == 2:
        seen = allowed[grid.shape[0] // 2 * grid.shape[1] + grid.shape[1] // 2].reshape(grid.shape)
    if grid.axes < 3:
        (found,) = pixels(shown)
        assert (found == colours(quantise(seen.double().numpy())[0])).all()
    assert mask.draw(grid, query=middle(grid)).svg.startswith("<svg")


def test_a_grid_shows_the_order_of_its_tokens() -> None:
    shown = Grid(2, 3, prefix=1)._repr_html_()
    assert "7 tokens: 1 without a place, then 6 cells" in shown
    (found,) = pixels(shown)
    assert (found == colours(quantise(np.arange(1.0, 7).reshape(2, 3))[0])).all()
    assert "<svg" not in Grid(0)._repr_html_()


def test_cells_have_no_script_no_id_no_sheet_and_escape_what_they_are_told() -> None:
    hostile = "</code><script>alert(1)</script>\"'&\u202e"
    for shown in (table()._repr_html_(), Causal()._repr_html_(), Grid(4)._repr_html_(), cell(hostile, [hostile])):
        assert not re.search(r"<script|<style|\bid=|class=\"locant|url\(", shown)
        assert "\u202e" not in shown
        assert len(shown) < 20_000


def test_two_drawings_share_no_id_and_the_same_one_has_the_same_text() -> None:
    one, other = table().draw(), ALiBi(4, distance="euclidean").draw(Grid(5, 5))
    ids = [set(re.findall(r'\bid="([^"]+)"', drawing.svg)) for drawing in (one, other)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])
    for drawing, own in zip((one, other), ids, strict=True):
        assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', drawing.svg)) <= own
    assert table().draw().svg == one.svg


def test_a_drawing_is_saved_as_svg_alone(tmp_path) -> None:
    drawing = GatedPosition(4).draw(Grid(4, 4), query=(0, 3))
    assert drawing.save(tmp_path / "a.svg").read_text() == str(drawing) == drawing._repr_svg_()
    with pytest.raises(ValueError, match=r"ends in .svg; got .*a.png"):
        drawing.save(tmp_path / "a.png")


def test_a_masked_drawing_leaves_out_what_is_forbidden() -> None:
    scheme = ALiBi(1)
    plain, masked = scheme.draw(Grid(6)).svg, scheme.draw(Grid(6), mask=Causal()).svg
    crosses = [svg.count('<g id="locant-') and len(re.findall(r"<use ", svg)) for svg in (plain, masked)]
    assert crosses[1] - crosses[0] == 2  # the query in the middle, 3, does not see 4 and 5


@pytest.mark.plain
@pytest.mark.parametrize(
    ("call", "words"),
    [(lambda: table().draw(7), "grid"), (lambda: table().draw(Grid(4, 4), query=(4, 0)), r"from 0; got \(4, 0\)"),
     (lambda: table().draw(Grid(4, 4), query=1), r"indices of a cell of Grid\(4, 4\)"),
     (lambda: table().draw(mask=3), "mask"), (lambda: Causal().draw(None), "grid"),
     (lambda: Causal().draw(Grid(4), query=(9,)), r"Write query=\(2,\)")],
)  # fmt: skip
def test_bad_input_is_one_sentence(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (lambda: table().draw(), lambda: Causal().draw(Grid(4))):
        with pytest.raises(ModuleNotFoundError, match=r"draw draws with matplotlib.*pip install 'locant\[compare\]'"):
            call()
    assert table()._repr_html_()  # which does without


def test_reports_show_themselves() -> None:
    for kind in (Report, Benchmark, Beside):
        assert "_repr_html_" in vars(kind)
