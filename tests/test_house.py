"""The size and the names of things: a file is read in one sitting, a function at one glance, a name says what is in it.

Long files and drawers called utils are where a second copy of everything ends up; they are kept out from the start.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import locant

ROOT = Path(__file__).parents[1]
FILES = sorted(p for top in ("src", "tests", "benchmarks", "examples") for p in (ROOT / top).rglob("*.py"))
LINES, FUNCTION = 400, 60
DRAWERS = {"utils", "util", "common", "helpers", "helper", "core", "misc", "types"}


def lengths(source: str) -> dict[str, int]:
    """Lines of each function from `def` to its end, its docstring left out: formulas and sources may take room."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            words = first if ast.get_docstring(node, clean=False) is not None else None
            text = 0 if words is None else (words.end_lineno or 0) - words.lineno + 1
            found[node.name] = (node.end_lineno or 0) - node.lineno + 1 - text
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= LINES
    assert {name: n for name, n in lengths(source).items() if n > FUNCTION} == {}


def test_the_ruler_measures() -> None:
    assert lengths("def f():\n    '''a\n    b'''\n    x = 1\n    return x\n") == {"f": 3}
    assert lengths("async def g():\n    def h(): ...\n    return h\n") == {"g": 3, "h": 1}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_say_what_is_inside(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert not DRAWERS & set(parts)
    if parts[0] == "src":
        assert len(parts) <= 4, "a subpackage at most: src/locant/family/member.py"
        packages = {"bench", "checkpoints", "compare", "flops", "models", "nn"}
        functions = {name for name in locant.__all__ if name.islower()} - packages
        assert not functions & set(parts), "no file or folder bears the name of a public function"


def test_every_package_has_an_init() -> None:
    """Without one a folder is a namespace package, which tools see differently."""
    folders = {path.parent for path in FILES if path.is_relative_to(ROOT / "src" / "locant")}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


@pytest.mark.parametrize(("script", "shell"), [("run", "sh"), (".ci/run", "bash")])
def test_scripts_parse_and_may_run(script: str, shell: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert subprocess.run([shell, "-n", str(path)], capture_output=True, check=False).stderr == b""


def test_one_version() -> None:
    """The version stands in the package; the build reads it from there, the changelog names it."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in pyproject
    assert re.search(r"^version\s*=", pyproject, re.MULTILINE) is None
    assert f"## [{locant.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
