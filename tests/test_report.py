"""The report: complete in itself, escaped, the same bytes twice, and true to the numbers it was given."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
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
from locant.page import markup, pictures
from locant.page.charts import Scale

CHROMIUM = "/usr/bin/chromium"
HOSTILE = "<script>alert(1)</script>\"'&\n\u202eevil\ud800\x00"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return make_results()


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> str:
    return report.render(results)


def test_the_page_is_well_formed_with_headings_in_order(page: str) -> None:
    reader = Reader(page)
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 or after == 5 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for tag, a in reader.tags if tag == "a" and a.get("href")}
    assert targets <= set(ids)


def test_the_recommendation_comes_first_and_then_the_finding(page: str, results: dict[str, Any]) -> None:
    text = Reader(page).text
    places, at = [], 0
    for task in results["tasks"]:
        take, leave = task["recommendation"]["sentences"]
        label = next(s["label"] for s in task["schemes"] if s["name"] == task["recommendation"]["scheme"])
        for words in (take.split(label, 1)[1].removesuffix("."), leave):  # the clock's figure comes before the point
            at = text.index(" ".join(words.split()), at)
            places.append(at)
    places += [text.index(line) for line in results["finding"]]
    assert places == sorted(places)
    assert places[-1] < text.index("Which digit is it?")


def test_nothing_is_loaded_and_the_policy_allows_only_this_style_and_script(page: str) -> None:
    reader = Reader(page)
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for kind, tag in (("style-src", "style"), ("script-src", "script")):
        source = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(source) == 1
        digest = base64.b64encode(hashlib.sha256(source[0].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    for tag, attributes in reader.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        assert "style" not in attributes, f"<{tag}> has a style that the policy blocks"
        assert not any(name.startswith("on") for name in attributes), f"<{tag}> has a handler"
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, name)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "@import" not in page


def test_the_same_results_give_the_same_bytes(results: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        report.write(json.loads(json.dumps(results)), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.html", "b.html"]


def test_measured_figures_change_nothing_but_their_own_places(results: dict[str, Any], page: str) -> None:
    other = copy.deepcopy(results)
    for schemes in other["measured"]["tasks"].values():
        for cost in schemes.values():
            cost["forward_ms"]["median"] *= 7.7
    other["measured"].update(seconds=999.0, created="never", machine="another")
    differing = [
        (a, b) for a, b in zip(_pieces(page), _pieces(report.render(other)), strict=True) if a != b
    ]  # fmt: skip
    assert differing
    assert all(
        re.fullmatch(r"[\d.]+ (µs|ms|s)|.*(machine|another).*|[+−]\d+\u00a0% of a training step at .*", a)
        for a, _ in differing
    ), differing


def _pieces(page: str) -> list[str]:
    return [piece.strip() for piece in re.split(r"<[^>]*>", page)]


def test_every_accuracy_and_cost_stands_in_the_tables(page: str, results: dict[str, Any]) -> None:
    rows = [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    for task in results["tasks"]:
        for scheme in task["schemes"]:
            mine = [row for row in rows if row.startswith(markup.text(scheme["label"]))]
            a = scheme["accuracy"]
            words = f"{100 * a['mean']:.1f} ± {100 * a['spread']:.1f} {100 * a['low']:.1f} to {100 * a['high']:.1f}"
            assert any(words in row for row in mine)
            for shift in scheme["shifts"].values():
                assert any(f"{100 * shift['mean']:.1f}" in row and shift["how"] in row for row in mine)
            spent = scheme["parameters"]
            assert any(f"{spent['position']:,} of {spent['total']:,} 1.84 M" in row for row in mine)
            cost = results["measured"]["tasks"][task["kind"]][scheme["name"]]
            for what in ("forward_ms", "step_ms"):
                assert any(markup.time(cost[what]["median"]) in row and "17.3 MB" in row for row in mine)


def test_every_comparison_is_said_from_its_better_side(page: str, results: dict[str, Any]) -> None:
    text = Reader(page).text
    labels = {s["name"]: s["label"] for t in results["tasks"] for s in t["schemes"]}
    for task in results["tasks"]:
        for c in task["comparisons"]:
            better, worse = (c["a"], c["b"]) if c["difference"] >= 0 else (c["b"], c["a"])
            first, second = labels[better], labels[worse]
            if c["verdict"] == "no difference shown":
                assert f"{first} and {second} : no difference shown" in text
            else:
                assert f"{first} is higher than {second} : {markup.points(abs(c['difference']))} points" in text


def test_mirror_blind_and_timeless_schemes_are_named(page: str) -> None:
    text = Reader(page).text
    assert "Mirror-blind: ALiBi." in text
    assert "Blind to the order of frames: no position and space." in text


def test_what_users_named_is_escaped_everywhere(results: dict[str, Any]) -> None:
    nasty = copy.deepcopy(results)
    task = nasty["tasks"][0]
    task["classes"] = [HOSTILE, "\u05e2\u05d1\u05e8\u05d9\u05ea", "x" * 300, *task["classes"][3:]]
    task["source"] = task["question"] = HOSTILE
    task["skipped"] = [{"path": HOSTILE, "reason": HOSTILE}]
    task["notes"] = task["finding"] = nasty["finding"] = nasty["limits"] = [HOSTILE]
    task["shifts"][0]["sentence"] = HOSTILE
    for scheme in task["schemes"]:
        scheme["label"] = scheme["sentence"] = scheme["picture"]["what"] = HOSTILE
        scheme["shifts"]["larger canvas"]["why_not"] = HOSTILE
    nasty["settings"] = {HOSTILE: HOSTILE, "data": [HOSTILE]}
    nasty["best"] = dict.fromkeys(("task", "scheme", "seed", "file", "snippet"), HOSTILE)
    nasty["measured"]["tasks"]["images"]["alibi"]["growth"][-1]["stopped"] = HOSTILE
    page = report.render(nasty)
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert "alert(1)" in reader.text
    assert "<script>alert" not in page
    assert "\x00" not in page
    assert page.encode()  # halves of surrogate pairs would not encode
    assert "<bdi>\u05e2" in page
    ours = [a for _, a in reader.tags if any("alert" in (value or "") for value in a.values())]
    assert ours == [], "a name of the user stands in an attribute"


def test_one_seed_is_not_ranked(tmp_path: Path) -> None:
    one = make_results(seeds=1)
    for task in one["tasks"]:
        del task["comparisons"]
        for scheme in task["schemes"]:
            scheme["accuracy"] = {"mean": scheme["accuracy"]["mean"]}
            scheme["shifts"] = {n: {k: s[k] for k in ("mean", "how")} for n, s in scheme["shifts"].items()}
    page = report.render(one)
    text = Reader(page).text
    assert "One seed: no ranking." in text
    assert "±" not in text
    assert "95 %" not in text
    assert 'class="interval"' not in page


def test_what_is_missing_is_left_out(results: dict[str, Any]) -> None:
    bare = {
        "format": 1,
        "tasks": [{"kind": "images", "schemes": [{"name": "none", "label": "no position"},
                                                 {"name": "odd", "label": "odd", "picture": None, "trials": []}]}],
    }  # fmt: skip
    text = Reader(report.render(bare)).text
    assert "There is no finding." in text
    assert "not measured" in text
    assert "None is named." in text
    for field in ("measured", "best", "limits", "settings", "versions"):
        less = {key: value for key, value in results.items() if key != field}
        Reader(report.render(less))
    assert "Written by" in Reader(report.render({"format": 1, "tasks": []})).text


def test_a_scheme_that_cannot_go_there_says_why() -> None:
    page = report.render(make_results({"images": ("none", "gated")}))
    assert page.count("its map is defined on the trained grid alone") == 2  # the table and the chart


def test_a_dense_path_that_stopped_says_so(page: str) -> None:
    assert "relative table at 4,096 tokens stopped: a step would hold 2.1 GB of scores." in Reader(page).text


def test_a_hundred_classes_and_thousands_of_files_stay_readable(results: dict[str, Any]) -> None:
    many = copy.deepcopy(results)
    task = many["tasks"][0]
    task["classes"] = [f"class {i}" for i in range(100)]
    task["classes"][3] = "y" * 300
    task["class_counts"] = {"train": list(range(100))}
    task["skipped"] = [{"path": f"file {i}", "reason": "empty"} for i in range(1000)]
    text = Reader(report.render(many)).text
    assert "class 11 , and 88 more" in text
    assert f" {'y' * 31}… , " in text
    assert "1,000 files skipped" in text
    assert "file 199 " in text
    assert "file 200 " not in text
    assert "… and 800 more" in text


def test_maps_are_carried_exactly_to_a_level_and_zero_stays_zero(page: str, results: dict[str, Any]) -> None:
    data = json.loads(re.search(r'<script type="application/json" id="maps">(.*?)</script>', page).group(1))
    picture = results["tasks"][0]["schemes"][2]["picture"]
    entry = data["maps"]["0.2.now"]
    truth = np.array([layer["heads"] for layer in picture["layers"]])
    assert entry["scale"] == pytest.approx(np.abs(truth).max(), abs=1e-12)
    got = np.array([[np.frombuffer(base64.b64decode(h), np.int8) for h in layer] for layer in entry["maps"]])
    back = got.reshape(truth.shape) / 127 * entry["scale"]
    assert np.abs(back - truth).max() <= entry["scale"] / 254 + 1e-12
    middle = pictures.STOPS[len(pictures.STOPS) // 2]
    assert pictures.colours(np.array([[0, 127, -127]], np.int8)).tolist() == [
        [list(middle), list(pictures.STOPS[-1]), list(pictures.STOPS[0])]
    ]


def test_the_static_picture_is_a_png_of_the_default_query(page: str, results: dict[str, Any]) -> None:
    from io import BytesIO

    from PIL import Image

    drawing = re.search(
        r'data-map="0\.2\.now\.1\.1">.*?href="data:image/png;base64,(.*?)".*?class="query" x="2" y="2"', page
    )
    picture = results["tasks"][0]["schemes"][2]["picture"]
    maps = np.array([layer["heads"] for layer in picture["layers"]])
    levels = np.rint(maps[1, 1, 2 * 4 + 2] * (127 / np.abs(maps).max())).astype(np.int8).reshape(4, 4)
    image = np.asarray(Image.open(BytesIO(base64.b64decode(drawing.group(1)))))
    assert (image == pictures.colours(levels)).all()


def test_maps_too_large_for_the_page_show_one_query(monkeypatch: pytest.MonkeyPatch, results: dict[str, Any]) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 10)
    page = report.render(results)
    assert '"maps":{}' in page
    assert "Too large to carry for every query" in page
    assert "data:image/png" in page


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Scale(0.71, 0.99), [0.75, 0.8, 0.85, 0.9, 0.95]),
        (Scale(-0.03, 0.21), [0.0, 0.05, 0.1, 0.15, 0.2]),
        (Scale(0.8, 120.0, log=True), [1.0, 3.0, 10.0, 30.0, 100.0]),
    ],
)
def test_ticks_are_round_and_few(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks() == pytest.approx(ticks, abs=1e-12)
    assert scale(scale.low) == 0.0
    assert scale(scale.high) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (markup.percent(0.97222), "97.2"),
        (markup.points(-0.0004), "0.0"),
        (markup.points(-0.183), "−18.3"),
        (markup.points(0.183), "+18.3"),
        (markup.time(0.4), "400 µs"),
        (markup.time(1234.0), "1.23 s"),
        (markup.memory(999_999), "1 MB"),
        (markup.memory(0), "0 B"),
        (markup.flops(1_843_200), "1.84 M"),
        (markup.flops(None), "–"),
        (markup.probability(0.00002), "&lt; 0.0001"),
        (markup.probability(0.04), "= 0.04"),
        (markup.text("a\r\nb\x07\ud800\u202e<"), "a⏎b\ufffd\ufffd\ufffd&lt;"),
        (markup.sizes([4, 4]), "4\u00a0×\u00a04"),
        (markup.join_words(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_and_names_have_one_style(got: str, wanted: str) -> None:
    assert got == wanted


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"results of format 1; got 2\. Make them with this version"):
        report.render({"format": 2})


def test_a_failed_write_leaves_the_old_page_and_no_rest(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        report.write(results, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.skipif(not shutil.which(CHROMIUM), reason="needs chromium")
def test_a_browser_finds_no_error_and_the_script_redraws(results: dict[str, Any], tmp_path: Path) -> None:
    """The script un-hides the pickers only after it has drawn every map."""
    report.write(results, tmp_path / "report.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
             "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"]  # fmt: skip
    address = (tmp_path / "report.html").as_uri()
    got = subprocess.run([CHROMIUM, *flags, address], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in got.stderr, got.stderr
    assert len(re.findall(r'data-picker="\d">', got.stdout)) == 2
    assert got.stdout.count('class="cell on"') == 2
