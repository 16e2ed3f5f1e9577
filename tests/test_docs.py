"""What the pages say is so: their code runs and prints what they show, their links lead somewhere, examples pass.

In a page, `python` blocks run in order and share their names. A `text` block right below one is what it printed; a
`pycon` block is a doctest; a `toml` block is a config file of `locant compare`. `sh` blocks are not run.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import runpy
import subprocess
import sys
import warnings
import xml.etree.ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from locant import operators
from locant.cli import app
from locant.compare import settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
KNOWN = {"python", "pycon", "text", "toml", "sh"}
PICTURE = 150_000  # bytes
COMPILED = not isinstance(operators.built(), str)


@dataclass(frozen=True)
class Block:
    """A fenced block, and whether it follows the one before it with nothing but an empty line between."""

    language: str
    text: str
    line: int
    follows: bool


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, those inside lists with their margin taken off."""
    end = 0
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", page, re.MULTILINE | re.DOTALL):
        margin, language, text = found.groups()
        text = re.sub(rf"^{margin}", "", text, flags=re.MULTILINE)
        between = page[end : found.start()]
        yield Block(language, text, page[: found.start()].count("\n") + 2, end > 0 and not between.strip())
        end = found.end()


def outline(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(text: str) -> list[str]:
    """Where a page's links and pictures lead, code left out."""
    plain = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", plain) + re.findall(r'(?:src|href)="([^"]+)"', plain)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes
    names: dict[str, object] = {"__name__": "page"}
    printed = ""
    for block in blocks(path.read_text()):
        where = f"{name(path)}:{block.line}"
        assert block.language in KNOWN, f"{where}: a block is one of {sorted(KNOWN)}"
        if block.language == "python":
            out = io.StringIO()
            code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")  # errors then name the page's line
            with contextlib.redirect_stdout(out):
                exec(code, names)
            printed = out.getvalue()
        elif block.language == "pycon":
            test = doctest.DocTestParser().get_doctest(block.text, names, where, name(path), block.line)
            assert doctest.DocTestRunner().run(test).failed == 0
        elif block.language == "text":
            assert block.follows, f"{where}: shows the output of nothing"
            if COMPILED or "kernel    native" not in block.text:  # a plan where the compiled kernels are
                assert printed == block.text, where
        elif block.language == "toml":
            (tmp_path / "config.toml").write_text(block.text)
            assert settings.resolve({}, tmp_path / "config.toml").recipes


def test_blocks_are_found() -> None:
    page = "a\n```python\nx = 1\n```\n\n```text\n1\n```\nb\n\n   ```sh\n   ls\n   ```\n"
    assert [(b.language, b.text, b.line, b.follows) for b in blocks(page)] == [
        ("python", "x = 1\n", 3, False),
        ("text", "1\n", 7, True),
        ("sh", "ls\n", 12, False),
    ]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    lost = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = path.parent / place if place else path
        if not target.exists() or (anchor and anchor not in outline(target.read_text())):
            lost.append(link)
    assert lost == []


def test_links_are_found() -> None:
    assert links('[a](b.md#c) `[no](x)` ![p](q.svg) <img src="r.png">') == ["b.md#c", "q.svg", "r.png"]
    assert outline("# A `b`\n```\n# no\n```\n## Why no −100\n") == {"a-b", "why-no-100"}


def test_every_page_is_linked() -> None:
    linked = {(page.parent / unquote(link)).resolve() for page in PAGES for link in links(page.read_text())}
    assert [name(page) for page in PAGES if page.name != "README.md" and page.resolve() not in linked] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_an_example_asserts_its_point(path: Path) -> None:
    assert "\n    assert " in path.read_text()
    out = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out):
        warnings.simplefilter("error")
        runpy.run_path(str(path), run_name="__main__")
    assert out.getvalue().strip()


def test_pictures_are_those_that_are_drawn(tmp_path: Path) -> None:
    """Drawn anew, they are the files that lie there: by name, and shown in some page. report.png is a screenshot."""
    subprocess.run([sys.executable, ROOT / "docs" / "pictures.py", tmp_path], check=True)
    there = {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == there - {"report.png"}
    shown = {Path(link).name for page in PAGES for link in links(page.read_text())}
    assert there <= shown
    for path in (ROOT / "docs" / "pictures").iterdir():
        assert path.stat().st_size < PICTURE
        if path.suffix == ".svg":
            assert xml.etree.ElementTree.parse(path).getroot().tag.endswith("svg")


def test_every_flag_of_compare_is_told() -> None:
    text = (ROOT / "docs" / "compare.md").read_text()
    plain = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    said = CliRunner().invoke(app, ["compare", "--help"], env=plain).output
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", said))
    assert {"--task", "--resume", "-q"} <= flags
    assert {flag for flag in flags if f"`{flag}`" not in text} == set()


def test_every_scheme_of_compare_is_told() -> None:
    from locant.compare.schemes import SCHEMES
    from locant.tasks.kinds import KINDS

    text = (ROOT / "docs" / "compare.md").read_text()
    table = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE))
    for scheme in SCHEMES:
        usual = ", ".join(kind.name for kind in KINDS.values() if scheme.name in kind.schemes)
        fitting = ", ".join(kind.name for kind in KINDS.values() if scheme.fits(kind))
        assert table[scheme.name] == (usual or "on request, " + fitting)


def test_what_follows_from_the_files_is_written() -> None:
    """Public names of schemes, the index of their pages, and the tree: what docs/index.py writes."""
    done = subprocess.run([sys.executable, ROOT / "docs" / "index.py", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), "run docs/index.py"


def test_every_row_of_parity_is_shown() -> None:
    """docs/parity.md has 64 rows, and names the tests that bear their numbers."""
    marked: dict[int, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for mark in getattr(node, "decorator_list", ()):
                if ast.unparse(mark).startswith("pytest.mark.row("):
                    marked.setdefault(int(ast.literal_eval(mark.args[0])), set()).add(node.name)
    page = (ROOT / "docs" / "parity.md").read_text()
    told = dict(re.findall(r"^- \*\*(\d+)\*\* (.*)$", page, re.MULTILINE))
    assert set(map(int, told)) == set(range(1, 65))
    assert "none" not in told.values()
    for row, names in marked.items():
        assert names - set(re.findall(r"\w+", told[str(row)])) == set(), f"row {row}: run docs/parity.py again"


def test_the_numbers_on_the_first_screen_are_those_of_the_pages() -> None:
    page = (ROOT / "README.md").read_text()
    shown = {row[0]: row[1:] for row in (re.findall(r"[^|]+", line) for line in page.splitlines() if line[:1] == "|")}
    told = (ROOT / "docs" / "models-speed.md").read_text()
    rows = {"timm's Swin-T, 8 pictures": "Swin-T, 224 px (timm) | 8 | float32",
            "timm's Swin-B at 384 pixels, 8 pictures": "Swin-B, 384 px (timm) | 8 | float32"}  # fmt: skip
    for name, row in rows.items():
        medians = re.search(re.escape(f"| {row} | ") + r"([^\n]+)", told)
        assert medians is not None
        plain, _, compiled, onnx, openvino = [cell.split()[0] for cell in medians[1].split(" | ")[:5]]
        assert [cell.strip() for cell in shown[f" {name} "]] == [plain, compiled, onnx, openvino, "1"]
    layer = (ROOT / "docs" / "performance.md").read_text()
    sam = re.escape("| forward, SAM ViT-B global layer, 64 × 64, 12 heads, d 64 | ")
    eager, fused = (re.search(sam + rf"{rival} \| ([\d.]+)", layer) for rival in ("eager", "SDPA, bias materialised"))
    assert eager is not None
    assert fused is not None
    assert shown[" a global layer of SAM ViT-B "][0].strip() == f"{float(eager[1]):.1f}"
    assert f"{float(fused[1]):.1f} for SAM's layer with torch's fused attention" in page
