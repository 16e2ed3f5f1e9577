"""The page of an explanation: what it carries is what was computed, it loads nothing, and it does as it is told.

What clicks, keys and addresses do is tried in a browser.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import Browser, needs_chromium, opened

from locant.explain import chapters
from locant.explain import page as pages
from locant.explain.data import Data, Finding, Query, Rollout, Row, example
from locant.explain.explanation import Explanation
from locant.page.pictures import LOST

HOSTILE = "</script><script>alert(1)</script>\"'&\u202e\ud800"

OFF = 1 / 254 + 5e-4  # half a level, and the scale in four figures


def unpacked(shown: str) -> tuple[list[dict], bytes]:
    """The JSON of the block, and the bytes behind it."""
    given = json.loads(re.search(r'id="maps">(.*?)</script>', shown).group(1))
    block = zlib.decompress(base64.b64decode(given["block"]), -15)
    size = int.from_bytes(block[:4], "little")
    return json.loads(block[4 : 4 + size]), block[4 + size :]


def values(ref: dict, levels: bytes, head: int = 0) -> np.ndarray:
    size = int(np.prod(ref["shape"]))
    at = ref["at"] + head * size
    found = np.frombuffer(levels[at : at + size], np.int8).reshape(ref["shape"]).astype(float)
    return np.where(found == LOST, np.nan, found / 127 * ref["scale"][head])


def with_nan(data: Data) -> Data:
    """The first head's map has a NaN at its first offset."""
    first = data.layers[0]
    broken = first.heads[0].map.copy()
    broken[0, 0] = np.nan
    heads = (dataclasses.replace(first.heads[0], map=broken), *first.heads[1:])
    return dataclasses.replace(data, layers=(dataclasses.replace(first, heads=heads), *data.layers[1:]))


def with_shares(data: Data, *shares: float) -> Data:
    """Position's share of the heads of the first layer."""
    first = data.layers[0]
    heads = tuple(dataclasses.replace(h, position_share=x) for h, x in zip(first.heads, shares, strict=True))
    return dataclasses.replace(data, layers=(dataclasses.replace(first, heads=heads), *data.layers[1:]))


def with_token(data: Data) -> Data:
    """The token of the prefix asks as well, and sees all of the grid."""
    both = np.full((2, 4, 4), 0.05, np.float32)
    row = Row((), (0, 0), both, both, both, np.full((3, 2, 1), 0.2, np.float32))
    layers = tuple(dataclasses.replace(one, rows=(*one.rows, row)) if one.rows else one for one in data.layers)
    rollout = data.input.rollout
    longer = (np.concatenate([x, x[:1]]) for x in (rollout.maps, rollout.prefix))
    queries = (*data.input.queries, Query((), "class token"))
    shown = dataclasses.replace(data.input, queries=queries, rollout=Rollout(*longer))
    return dataclasses.replace(data, layers=layers, input=shown)


def test_the_block_holds_every_map_to_half_a_level() -> None:
    data = with_nan(example())
    (found,), levels = unpacked(pages.render([data]))
    for layer, own in zip(found["layers"], data.layers, strict=True):
        for head, of in zip(layer["heads"], own.heads, strict=True):
            half = np.nanmax(np.abs(of.map)) * OFF
            assert np.nanmax(np.abs(values(head["map"], levels) - of.map)) <= half
            assert (np.isnan(values(head["map"], levels)) == np.isnan(of.map)).all()
        for row, of in zip(layer["rows"], own.rows, strict=True):
            for part in ("both", "content", "position"):
                for h, weights in enumerate(getattr(of, part)):
                    assert np.abs(values(row[part], levels, h) - weights).max() <= weights.max() * OFF
    assert found["input"]["queries"][1]["label"] == "row 2, column 1"
    assert found["layers"][2]["heads"][0]["content_share"] is None  # NaN is no JSON


def test_findings_come_first_and_lead_to_their_heads() -> None:
    shown = pages.render([example()])
    assert shown.index("The weights are invented.") < shown.index("93 % position") < shown.index('id="look"')
    assert '<a href="#layer=0&amp;head=1">Head 1 of layer 0 is 93 % position.</a>' in shown
    assert "6 heads" in shown  # the table, for readers without scripts


def test_nothing_is_loaded_and_what_users_named_is_escaped() -> None:
    data = dataclasses.replace(example(), title=HOSTILE, notes=(HOSTILE,), findings=(Finding("dead", HOSTILE, 0, 0),))
    shown = pages.render([data])
    assert "alert(1)</script>" not in shown
    assert "\u202e" not in shown
    assert "default-src 'none'" in shown
    assert not re.search(
        r"""(?:src|href)=["'](?!data:|#)""", re.sub(r"<script>.*?</script>", "", shown, flags=re.DOTALL)
    )
    style, script = (re.findall(f"<{tag}>(.*?)</{tag}>", shown, re.DOTALL) for tag in ("style", "script"))
    assert (len(style), len(script)) == (1, 1)
    ids = re.findall(r'\bid="([^"]+)"', shown)
    assert len(ids) == len(set(ids))


def test_rollout_is_drawn_per_query_or_says_why_not() -> None:
    data = example()
    shown = pages.render([data])
    assert shown.count("rollout of row") == 2
    most = float(data.input.rollout.maps.max())
    assert f"{100 * most:.2g} %" in shown
    rollout = data.input.rollout
    none = dataclasses.replace(rollout, maps=rollout.maps[:0], prefix=rollout.prefix[:0], reason="Too large.")
    shown = pages.render([dataclasses.replace(data, input=dataclasses.replace(data.input, rollout=none))])
    assert "Too large." in shown


def test_the_same_data_give_the_same_bytes() -> None:
    assert pages.render([example()]) == pages.render([example()])


def test_a_page_of_more_than_twenty_megabytes_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(pages, "MOST", 50_000)
    with pytest.raises(ValueError, match=r"a page may have 0 MB; this one has 0\.\d MB\. Ask for fewer queries"):
        pages.render([example()])


def test_a_notebook_holds_a_frame_of_its_own() -> None:
    """Ids, styles, scripts, globals and keys end at the frame; a quote in a title does not end the attribute."""
    data = dataclasses.replace(example(), title='a "b" & c')
    shown = pages.cell([data])
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', shown).group(1)) == pages.render([data])
    outside = re.sub(r'srcdoc="[^"]*"', "", shown)
    assert not re.search(r"<style|<script|\bid=", outside)
    assert 'sandbox="allow-scripts allow-downloads"' in outside


def test_large_pictures_are_carried_as_they_are_shown() -> None:
    shown = pages._shrink(np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3), 2)
    assert shown.shape == (2, 2, 3)
    assert shown[0, 0].tolist() == [8, 8, 10]  # 7.5, 8.5, 9.5 to even: the means of 0, 3, 12, 15 and so on


def test_an_explanation_saves_its_page_and_its_chart(tmp_path) -> None:
    found = Explanation(example())
    assert found.save(tmp_path / "page.html").read_text() == found.page == pages.render([example()])
    chart = ElementTree.parse(found.save(tmp_path / "figure.svg")).getroot()
    dots = chart.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(dots) == 4  # of two heads in two layers: the others were not shown the input
    top, bottom = 10, 10 + chapters.TALL - 10 - chapters.BELOW
    shares = [head.position_share for layer in found.data.layers[:2] for head in layer.heads]
    for dot, share in zip(dots, shares, strict=True):
        assert float(dot.get("cy")) == pytest.approx(bottom + (top - bottom) * share, abs=0.06)
    assert found._repr_html_() == pages.cell([example()])
    assert found.figures["layers"].svg == (tmp_path / "figure.svg").read_text()
    assert 'data-models="2"' in found.beside(found)
    with pytest.raises(ValueError, match=r"ends in .html or .svg; got .*a.png"):
        found.save(tmp_path / "a.png")
    empty = Explanation(Data("nothing", (), (), ()))
    with pytest.raises(ValueError, match="nothing has none"):
        empty.save(tmp_path / "b.svg")
    assert "No rule has anything to say" in empty.page


def test_a_share_just_below_zero_is_no_minus_zero() -> None:
    chart = pages.figures([with_shares(example(), -0.003, -0.016)])["layers"]
    assert "head 0: 0 %<" in chart
    assert "head 1: −2 %<" in chart
    shown = pages.render([with_shares(example(), -0.003, -0.016)])
    assert not re.search(r"[-−]0(\.0+)?( %)?<", chart + shown)
    assert "<td>−0.02</td>" in shown


# --- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("pages")
    (made / "one.html").write_text(pages.render([with_nan(example())]), encoding="utf-8")
    (made / "token.html").write_text(pages.render([with_token(example())]), encoding="utf-8")
    (made / "two.html").write_text(pages.render([example(), example()]), encoding="utf-8")
    (made / "plain.html").write_text(pages.render([example(with_input=False)]), encoding="utf-8")
    ready = "<script>addEventListener('load', () => setTimeout(() => { stage.dataset.ready = 'yes'; }, 300))</script>"
    cells = pages.cell([example()]) * 2
    (made / "notebook.html").write_text(f"<div id=stage>{cells}</div>{ready}", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def browser(running) -> Iterator[Browser]:
    """After each test: no error, and nothing asked of anyone."""
    running.errors.clear()
    running.requests.clear()
    yield running
    assert running.errors == []
    assert [r for r in running.requests if not r.startswith(("file:", "data:", "about:", "blob:"))] == []


def heading(browser: Browser, pane: int = 0) -> str:
    return browser.js(f"document.querySelectorAll('.pane')[{pane}].querySelector('h3').textContent")


@needs_chromium
def test_it_opens_at_the_first_finding_and_fits_every_width(browser, folder) -> None:
    for size in ((1280, 900), (390, 800)):
        browser.open(folder / "one.html", size=size)
        assert heading(browser) == "Layer 0, head 1"
        assert browser.js("document.documentElement.scrollWidth") == size[0]
        assert browser.js("document.querySelectorAll('.split figure').length") == 3


@needs_chromium
def test_mouse_and_keys_choose_layer_head_and_query(browser, folder) -> None:
    browser.open(folder / "one.html")
    browser.click('[data-head="0"]')
    assert heading(browser) == "Layer 0, head 0"
    checked = browser.js(
        "[...document.querySelectorAll('[role=radio]')].map((one) => one.getAttribute('aria-checked'))"
    )
    assert checked == ["true", "false"]
    browser.key("ArrowRight")  # the focus stays on the heads
    assert heading(browser) == "Layer 0, head 1"
    browser.key("ArrowDown")
    assert heading(browser) == "Layer 1, head 1"
    browser.click('[aria-label="layer before"]')
    assert heading(browser) == "Layer 0, head 1"
    browser.click(".split .sheet", (0.4, 0.7))  # row 2, column 1 of 4 × 4
    assert browser.js("location.hash") == "#layer=0&head=1&query=2,1"
    browser.js("document.querySelector('.split .sheet').focus()")
    browser.key("ArrowLeft")
    browser.key("ArrowUp")
    assert browser.js("location.hash") == "#layer=0&head=1&query=1,0"
    assert browser.js("document.activeElement.getAttribute('aria-label')").startswith("As the model attends")


@needs_chromium
def test_a_class_token_is_asked_by_its_button(browser, folder) -> None:
    browser.open(folder / "token.html", hash_="#layer=0&head=0&query=2,1")
    pressed = "document.querySelector('.tokens button').getAttribute('aria-pressed')"
    assert browser.js("document.querySelector('.tokens button').textContent") == "class token"
    assert browser.js(pressed) == "false"
    browser.click(".tokens button")
    assert browser.js(pressed) == "true"
    assert browser.js("location.hash") == "#layer=0&head=0&query=t2"
    browser.click(".split .sheet", (0.4, 0.7))  # a place again
    assert browser.js(pressed) == "false"
    assert browser.js("location.hash") == "#layer=0&head=0&query=2,1"
    browser.open(folder / "token.html", hash_="#layer=1&head=1&query=t2")  # and by its address
    assert browser.js(pressed) == "true"


@needs_chromium
@pytest.mark.parametrize(
    ("share", "said"), [(-0.0004, "0 %"), (-0.003, "−0.3 %"), (-0.4, "−40 %"), (0.0126, "1.3 %"), (0.931, "93 %")]
)
def test_shares_are_said_with_their_sign(browser, folder, share: float, said: str) -> None:
    path = folder / f"share{share}.html"
    path.write_text(pages.render([with_shares(example(), share, 0.5)]), encoding="utf-8")
    browser.open(path, hash_="#layer=0&head=0")
    assert browser.js("document.querySelector('.pane dl dd').textContent") == said


@needs_chromium
def test_an_address_is_a_state(browser, folder) -> None:
    browser.open(folder / "one.html", hash_="#layer=1&head=0&query=3,2&with=0.0.1&sort=locality")
    assert (heading(browser), heading(browser, 1)) == ("Layer 1, head 0", "Layer 0, head 1")
    assert browser.js("location.hash") == "#layer=1&head=0&query=3,2&with=0.0.1&sort=locality"
    browser.js("location.hash = '#layer=99&head=-5&query=77,x'")  # what is not there is the nearest that is
    browser.until("document.querySelectorAll('.pane').length === 1")
    assert heading(browser) == "Layer 0, head 0"
    browser.click(".finding a")
    browser.until("document.querySelector('.pane h3').textContent === 'Layer 0, head 1'")


@needs_chromium
def test_what_a_query_sees_is_what_the_mask_says(browser, folder) -> None:
    """Windows of 2 × 2 shifted by (1, 1) on 4 × 4: the query (0, 0) is alone in its cell, (1, 1) is one of four."""
    for query, seen in (("0,0", 1), ("1,1", 4), ("0,2", 2)):
        browser.open(folder / "one.html", hash_=f"#layer=1&head=0&query={query}")
        assert f"sees {seen} of 16 keys" in browser.js("document.querySelector('.sight figcaption').textContent")
    browser.open(folder / "one.html", hash_="#layer=2&head=0&query=3")
    assert "sees 4 of 6 keys" in browser.js("document.querySelector('.sight figcaption').textContent")


@needs_chromium
def test_pixels_have_the_colours_of_the_values_and_nan_has_none(browser, folder) -> None:
    browser.open(folder / "one.html", hash_="#layer=0&head=0")
    got = browser.js(
        "(async () => { const image = new Image(); "
        "image.src = document.querySelector('.figures .cells').getAttribute('href'); await image.decode(); "
        "const c = document.createElement('canvas'); c.width = c.height = 3; const x = c.getContext('2d'); "
        "x.drawImage(image, 0, 0); return [...x.getImageData(0, 0, 3, 3).data]; })()"
    )
    pixels = np.array(got).reshape(3, 3, 4)
    data = with_nan(example()).layers[0].heads[0].map
    assert pixels[0, 0].tolist() == [0, 0, 0, 0]
    assert (pixels[..., 3] == 255).sum() == 8
    for at in np.ndindex(3, 3):
        if at != (0, 0) and abs(data[at]) > 0.2 * np.nanmax(np.abs(data)):
            red, _, blue, _ = pixels[at]
            assert (red > blue) == (data[at] > 0)  # warm is more than 0, blue is less
    assert browser.js("document.querySelectorAll('.figures .lost').length") == 1


@needs_chromium
def test_two_heads_and_two_models_beside_each_other(browser, folder) -> None:
    browser.open(folder / "one.html", hash_="#layer=0&head=0")
    browser.click(".beside")
    assert (heading(browser), heading(browser, 1)) == ("Layer 0, head 0", "Layer 0, head 1")
    browser.open(folder / "two.html")
    assert browser.js("document.querySelectorAll('.pane').length") == 2
    browser.click('.pane [data-head="0"]')  # two models move together
    assert (heading(browser), heading(browser, 1)) == ("Layer 0, head 0", "Layer 0, head 0")
    assert "with=1.0.0" in browser.js("location.hash")


@needs_chromium
def test_both_themes_and_paper(browser, folder) -> None:
    paper = {}
    for dark in (False, True):
        browser.open(folder / "one.html", dark=dark)
        ink, paper[dark] = browser.js(
            "['color', 'backgroundColor'].map((name) => getComputedStyle(document.documentElement)[name])"
        )
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper[dark])]
        assert abs(light[0] - light[1]) > 450
    assert paper[False] != paper[True]
    printed = browser.call("Page.printToPDF", printBackground=True)["data"]
    assert base64.b64decode(printed).startswith(b"%PDF")


@needs_chromium
def test_a_figure_is_downloaded_as_svg(browser, folder) -> None:
    browser.open(folder / "one.html")
    browser.js(
        "window.kept = null; URL.createObjectURL = ((own) => (blob) => { blob.text().then((t) => { kept = t; }); "
        "return own.call(URL, blob); })(URL.createObjectURL)"
    )
    browser.click(".split .save")
    browser.until("window.kept !== null")
    kept = browser.js("window.kept")
    assert kept.startswith("<svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in kept
    assert "data:image/png" in kept


@needs_chromium
def test_everything_has_a_name_and_can_be_reached_by_key(browser, folder) -> None:
    browser.open(folder / "one.html")
    assert browser.js("[...document.querySelectorAll('svg')].filter((one) => !one.getAttribute('aria-label') && "
                      "!one.hasAttribute('aria-hidden')).length") == 0  # fmt: skip
    assert browser.js("[...document.querySelectorAll('#stage button')].filter((one) => "
                      "!one.getAttribute('aria-label') && !one.textContent.trim()).length") == 0  # fmt: skip
    browser.key("Tab")
    assert browser.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@needs_chromium
def test_without_an_input_and_twice_in_a_notebook(browser, folder) -> None:
    browser.open(folder / "plain.html")
    assert browser.js("document.querySelectorAll('.split figure').length") == 0
    assert browser.js("document.querySelectorAll('.figures figure').length") == 2
    browser.open(folder / "notebook.html")
    assert browser.js("document.querySelectorAll('iframe').length") == 2
    assert browser.js("getComputedStyle(document.body).fontFamily").lower().count("iowan") == 0
