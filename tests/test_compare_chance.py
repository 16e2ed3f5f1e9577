"""A run on noise, from the data to the page: nothing was learned, and nothing is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from locant import compare


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    x, y = rng.random((240, 8, 8), np.float32), np.arange(240) % 4
    np.savez(folder / "noise.npz", x=x, y=y)
    return compare.run(
        folder / "noise.npz", positions=["none", "learned", "relative"], steps=30, seeds=3, lr=0.003, batch=32, dim=16,
        depth=1, heads=2, threads=1, out=folder / "run", quiet=True,
    )  # fmt: skip


def test_the_first_sentence_says_that_nothing_was_learned_and_what_to_try(noise) -> None:
    (first,) = noise.data["finding"]
    assert first.startswith("Images: no scheme is shown to be above chance (25.0\u00a0%), so nothing can be said of ")
    assert "Try --steps 120, more examples (it trained on 144)" in first
    assert noise.data["tasks"][0]["finding"] == [first]


def test_no_scheme_and_no_model_is_named(noise) -> None:
    (task,) = noise.data["tasks"]
    assert task["chance"] == {"uniform": 0.25, "majority": 0.25, "level": 0.25}
    assert [scheme["above_chance"]["shown"] for scheme in task["schemes"]] == [False, False, False]
    assert (task["recommendation"], noise.data["best"]) == (None, None)
    assert task["why_none"] == "No scheme is shown to be above chance, so none is recommended."
    assert not list(noise.folder.glob("best-*"))
    assert json.loads((noise.folder / "results.json").read_text()) == noise.data


def test_page_table_and_notebook_say_so_and_name_none(noise) -> None:
    page = noise.report.read_text()
    box = page.split('<div class="warn">')[1].split("</div>")[0]
    assert "no scheme is shown to be above chance" in box
    assert page.index('<div class="warn">') < page.index("<nav")
    printed = str(noise)
    assert " ".join(printed.split()).startswith(" ".join(noise.data["finding"][0].split()))
    for shown in (page, printed, noise._repr_html_()):
        assert "nothing can be said of position here" in " ".join(shown.replace("\u00a0", " ").split())
        assert "Take " not in shown
    assert printed.count("†") == 3 + 1
