"""The answer on the page: what to take, chance, what changed since the start, and names that are whole."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reader import Reader
from results import make_results

from locant.compare import report

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return make_results()


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> str:
    return report.render(results)


def test_where_nothing_is_above_chance_a_box_says_so_and_nothing_is_named() -> None:
    """Guesses in ten classes: the first words of the page are that nothing can be said, and what to try."""
    noise = make_results({"images": ("none", "learned", "relative")}, truth=0.1)
    assert noise["tasks"][0]["recommendation"] is None
    assert noise["best"] is None
    page = report.render(noise)
    text = Reader(page).text
    first = text.split("Which position scheme should this model use? ")[1]
    assert first.startswith(
        "Images: no scheme is shown to be above chance (10.0 %), so nothing can be said of position"
    )
    assert text.count("nothing can be said of position here") == 1
    assert '<div class="warn"><p>Images: no scheme' in page
    assert "Take " not in text
    assert "None is named." in text
    assert text.count("not shown to be above chance") == 3  # in the table, each
    assert page.count('class="chance"') == 3 + 2  # a dashed line for each scheme's row, and in both charts of places


def test_the_recommended_is_ringed_and_who_is_ruled_out_is_hollow(page: str, results: dict[str, Any]) -> None:
    tasks = results["tasks"]
    out = sum(len(task["recommendation"]["ruled_out"]) for task in tasks)
    everyone = sum(len(task["schemes"]) for task in tasks)
    charts = re.findall(r'<svg class="plot"[^>]*>(?:(?!</svg>).)*class="ring".*?</svg>', page)
    assert len(charts) == 2 * len(tasks)
    assert sum(chart.count('class="ring"') for chart in charts) == 2 * len(tasks)
    assert sum(chart.count('class="before"') for chart in charts) == 2 * out
    assert sum(chart.count('class="dot"') for chart in charts) == 2 * (everyone - out)


def test_chance_stands_in_the_table_and_in_the_chart_and_the_commonest_class_where_it_is_more() -> None:
    uneven = make_results({"images": ("none", "learned")})
    uneven["tasks"][0]["chance"] = {"uniform": 0.1, "majority": 0.6, "level": 0.6}
    page = report.render(uneven)
    text = Reader(page).text
    assert "chance without a look at the example 10.0" in text
    assert "the commonest class without a look at the example 60.0" in text
    assert "Dashed: the commonest class (60.0). Arrow: to the left of this axis." in text
    assert page.count('class="beyond"') == 1


def test_no_name_is_cut_in_the_charts(results: dict[str, Any]) -> None:
    long = copy.deepcopy(results)
    label = "shared weights, two tables and a design of one's own"
    long["tasks"][0]["schemes"][2]["label"] = label
    page = report.render(long)
    assert "…" not in page
    ends = re.findall(r'<text class="end [^"]*">(.*?)</text>', page)
    spans = [html.unescape(" ".join(re.findall(r"<tspan[^>]*>(.*?)</tspan>", end))) for end in ends]
    assert spans.count(label) == 2 + 4  # the charts of places, and of growth
    assert all(
        len(line) <= 18 for end in ends for line in re.findall(r"<tspan[^>]*>([^<]*)</tspan>", html.unescape(end))
    )
    for names in re.findall(r'<svg class="names" height="(\d+)">(.*?)</svg>', page):
        places = [float(y) for y in re.findall(r'<tspan x="20" y="([\d.]+)"', names[1])]
        assert all(b - a >= 14 - 0.11 for a, b in pairwise(places))  # one below the other, rounding aside
        assert min(places) >= 8
        assert max(places) <= int(names[0])


def test_what_changed_since_the_start_is_drawn_beside_what_is_there(page: str, results: dict[str, Any]) -> None:
    data = json.loads(re.search(r'<script type="application/json" id="maps">(.*?)</script>', page).group(1))
    layers = results["tasks"][0]["schemes"][2]["picture"]["layers"]
    truth = np.array([layer["changed"] for layer in layers])
    entry = data["maps"]["0.2.changed"]
    got = np.array([[np.frombuffer(base64.b64decode(h), np.int8) for h in layer] for layer in entry["maps"]])
    back = got.reshape(truth.shape) / 127 * entry["scale"]
    assert np.abs(back - truth).max() <= np.abs(truth).max() / 254 + 1e-12
    assert "Changed since the start correlation of start and now 0.98" in Reader(page).text
    assert "0.3.changed" not in data["maps"]  # ALiBi is fixed


def test_the_maps_of_a_page_stay_below_a_megabyte(results: dict[str, Any]) -> None:
    """Two tasks of seven schemes with 144 tokens, 2 layers of 8 heads: 14 x 2 x 16 x 144² bytes would be 9 MB."""
    rng = np.random.default_rng(0)
    large = copy.deepcopy(results)
    for task in large["tasks"]:
        task |= {"recommendation": None, "comparisons": []}
        task["schemes"] = [copy.deepcopy(task["schemes"][2]) for _ in range(7)]
        for scheme in task["schemes"]:
            maps = rng.standard_normal((2, 8, 144, 144)).round(2)
            layers = [{"layer": i, "heads": m.tolist(), "changed": m.tolist()} for i, m in enumerate(maps)]
            scheme["picture"] |= {"grid": [12, 12], "query": [6, 6], "layers": layers}
    page = report.render(large)
    assert len(page.encode()) < 1_000_000
    assert "Too large to carry for every query" in page


ACTS = """
const say = (name, words) => { document.body.dataset[name] = words; };
const group = document.querySelector('[data-group="0.2.now"]');
const [first, second] = group.querySelectorAll("svg.map");
const spoken = () => group.querySelector("output").textContent;
const pressed = (name) => new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true });
const key = (node, name) => node.dispatchEvent(pressed(name));
const box = first.getBoundingClientRect();
const at = { clientX: box.left + 0.9 * box.width, clientY: box.top + 0.1 * box.height, bubbles: true };
first.dispatchEvent(new PointerEvent("pointermove", at));
say("hover", spoken());
first.dispatchEvent(new PointerEvent("pointerleave"));
say("away", spoken());
key(first, "ArrowDown");
key(first, "ArrowLeft");
say("arrows", spoken());
key(first, "Enter");
say("query", document.querySelector(".picker output").textContent);
say("enter", spoken());
key(first, "n");
say("next", String(document.activeElement === second && second.getAttribute("tabindex") === "0"));
"""


@pytest.mark.skipif(not shutil.which(CHROMIUM), reason="needs chromium")
def test_a_browser_says_value_and_offset_under_the_pointer_and_by_keys(
    page: str, results: dict[str, Any], tmp_path: Path
) -> None:
    """The query is row 3, column 3 of 4 x 4: the key at row 1, column 4 lies at the offset (+2, -1)."""
    allowed = base64.b64encode(hashlib.sha256(ACTS.encode()).digest()).decode()
    acting = page.replace("script-src '", f"script-src 'sha256-{allowed}' '").replace(
        "</body>", f"<script>{ACTS}</script></body>"
    )
    (tmp_path / "page.html").write_text(acting, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
             "--virtual-time-budget=3000", "--dump-dom"]  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *flags, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    body = re.search(r"<body ([^>]*)>", done.stdout)
    assert body is not None
    said = dict(re.findall(r'data-(\w+)="([^"]*)"', body.group(1)))
    head = np.array(results["tasks"][0]["schemes"][2]["picture"]["layers"][0]["heads"][0])
    step = np.abs([layer["heads"] for layer in results["tasks"][0]["schemes"][2]["picture"]["layers"]]).max() / 127

    def holds(words: str, place: str, query: int, key: int) -> None:
        where, value = words.split(": ")
        assert where == place
        got = float(value.replace("−", "-"))
        assert abs(got - head[query, key]) <= step / 2 + 0.05 * abs(head[query, key])  # a level, and two figures

    holds(said["hover"], "key at row 1, column 4, offset +2, −1", 10, 3)
    assert said["away"] == "bias"
    holds(said["arrows"], "key at row 2, column 3, offset +1, 0", 10, 6)
    assert said["query"] == "row 2, column 3"
    holds(said["enter"], "key at row 2, column 3, offset 0, 0", 6, 6)
    assert said["next"] == "true"
