"""The site: every public name has a page that says something, every link holds, and it builds without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest

import locant

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import reference  # noqa: E402
import site_pages  # noqa: E402

NAMES = reference.names()
PAGES = reference.pages()


def test_every_public_name_has_a_page() -> None:
    public = {f"locant.{name}" for name in locant.__all__}
    for package in locant._PACKAGES:
        public |= {f"locant.{package}.{name}" for name in import_module(f"locant.{package}").__all__}
    assert {name.dotted for name in NAMES} == public
    assert set(PAGES) == {f"{name}.md" for name in public} | {"index.md"}
    assert all(f"({name}.md)" in PAGES["index.md"] for name in public)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.dotted)
def test_a_page_says_what_it_does_what_it_refuses_and_where_it_is(name: reference.Name) -> None:
    words, page = reference.words_of(name), PAGES[f"{name.dotted}.md"]
    assert len(words) > 10, "a public name has a docstring"
    parts = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    assert {"Errors", "Source"} <= set(parts)
    assert f"/{name.source})" in page
    assert (ROOT / name.source).read_text().splitlines()[name.node.lineno - 1].split("(")[0].endswith(name.name) or (
        name.node.name == name.name
    )
    _, sections = reference.split(words)
    arguments = {n for line in sections.get("Args", "").splitlines() for n in re.findall(r"^(\w+)[,:]", line)}
    code = page.split("```python\n", 1)[1].split("\n```", 1)[0]
    assert {n for n in arguments if not re.search(rf"\b{n}\b", code)} == set(), "arguments that are not there"


@pytest.mark.parametrize("name", [n for n in NAMES if n.name[0].islower()], ids=lambda name: name.dotted)
def test_a_function_that_takes_tensors_says_their_shapes(name: reference.Name) -> None:
    assert isinstance(name.node, reference.ast.FunctionDef)
    for argument in (*name.node.args.args, *name.node.args.kwonlyargs):
        if argument.annotation is not None and reference.ast.unparse(argument.annotation) == "Tensor":
            words = reference.words_of(name)
            assert f"{argument.arg} [" in words or f"`{argument.arg}" in words or "`attention` would" in words


def test_prose_becomes_markdown() -> None:
    assert reference.escaped("a_b [c] `d_e[f]` *g*") == r"a\_b \[c\] `d_e[f]` \*g\*"
    text, sections = reference.split(
        "It adds.\n\nArgs:\n    a, b: two\n        numbers.\n\nRaises:\n    ValueError: never.\n"
    )
    assert text.strip() == "It adds."
    assert reference.listed(sections["Args"]) == "- **`a, b`** two\n  numbers."
    assert reference.listed(sections["Raises"]) == "- **`ValueError`** never."
    node = reference.ast.parse('def f():\n    raise ValueError(f"needs {x} of one; got {y}.")').body[0]
    assert reference.refusals(node) == ["needs … of one; got …."]


def test_links_of_the_gathered_pages_hold(tmp_path: Path) -> None:
    site_pages.gather(tmp_path)
    lost = []
    for page in tmp_path.rglob("*.md"):
        text = re.sub(r"^(`{3,}).*?^\1$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", text):
            place = unquote(link)
            target = tmp_path / place[1:] if place.startswith("/") else page.parent / place
            if not target.is_file():
                lost.append(f"{page.relative_to(tmp_path)}: {link}")
    assert lost == []
    shown = set(re.findall(r"^/(\S+)$", "".join(p.read_text() for p in tmp_path.rglob("*.md")), re.MULTILINE))
    there = {p.relative_to(tmp_path).with_suffix("").as_posix() for p in tmp_path.rglob("*.md")}
    assert there - shown == {"README"}, "every page is in the side bar"


@pytest.mark.slow
def test_the_site_builds_and_asks_no_network(tmp_path: Path) -> None:
    pytest.importorskip("furo", reason="the extra docs makes the site")
    none = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "site_pages.py", tmp_path / "site"],
        capture_output=True, text=True, check=False, env={**os.environ, **none},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "search.html").exists()
    for page in (tmp_path / "site").rglob("*.html"):
        asked = re.findall(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert asked == [], page.name
