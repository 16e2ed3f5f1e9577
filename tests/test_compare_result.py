"""A result as it is printed and as a notebook shows it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from reader import Reader
from results import make_results

from locant.compare import Result, recommendation


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return make_results()


def test_printed_it_is_the_table_with_the_answer_before_and_the_finding_after(data: dict[str, Any]) -> None:
    result = Result(data, Path("runs/mine"))
    lines = str(result).splitlines()
    assert repr(result) == str(result)
    assert str(result.table()) in str(result)
    assert "object at" not in str(result)
    assert max(map(len, lines)) <= 100
    assert len(str(result)) < 8_000  # results.json of the same has more than 100,000
    flat = " ".join(str(result).split())
    for task in data["tasks"]:
        costs = data["measured"]["tasks"][task["kind"]]
        said = [" ".join(line.split()) for line in (*recommendation.told(task, costs), *task["finding"])]
        assert [flat.index(line) for line in said] == sorted(flat.index(line) for line in said)
        assert " ".join(task["power"]["sentence"].split()) in flat
        for scheme in task["schemes"]:
            shown = f"{scheme['label']} {100 * scheme['accuracy']['mean']:.1f} ("
            assert shown in flat
    assert "chance 10.0" in flat
    assert lines[-1] == "Report: runs/mine/report.html"


def test_who_is_not_above_chance_is_marked(data: dict[str, Any]) -> None:
    assert "†" not in str(Result(data, Path("run")))
    doubtful = copy.deepcopy(data)
    doubtful["tasks"][0]["schemes"][0]["above_chance"]["shown"] = False
    shown = str(Result(doubtful, Path("run")))
    assert [line for line in shown.splitlines() if "no position" in line and ") †" in line]
    assert "† not shown to be above chance" in shown


def test_a_notebook_shows_the_answer_the_chart_and_a_link(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Result(data, tmp_path / "my runs" / "a")._repr_html_()
    reader = Reader(page)
    text = reader.text
    take = data["tasks"][0]["recommendation"]["sentences"][1]
    assert text.index(" ".join(take.split())) < text.index(data["finding"][0]) < text.index("against the time of")
    assert page.count('class="ring"') == 2 * len(data["tasks"])
    assert [a["href"] for tag, a in reader.tags if tag == "a"] == ["my%20runs/a/report.html"]
    assert "script" not in {tag for tag, _ in reader.tags}
    assert len(page) < 100_000
    away = Result(data, Path("/elsewhere/run"))._repr_html_()
    assert 'href="file:///elsewhere/run/report.html"' in away


def test_the_style_of_a_notebook_cell_reaches_no_further(data: dict[str, Any]) -> None:
    """The sheet styles tables and headings by name: its rules stand in a scope, which ends with the cell."""
    style = Result(data, Path("run"))._repr_html_().split("<style>")[1].split("</style>")[0]
    assert style.startswith("@scope {")
    assert style.count("{") == style.count("}")
    depth = 0
    for letter in style.rstrip()[:-1]:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 1 or letter in "@scope {"
    assert ":root" not in style
