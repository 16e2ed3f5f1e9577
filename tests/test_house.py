"""The size and the names of things: a file is read in one sitting, a function at one glance, a name says what is in it.

Long files and drawers called utils are where a second copy of everything ends up; they are kept out from the start.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from house import (
    FILE,
    PYTHON_FUNCTION,
    circle,
    complaints,
    cpp_functions,
    floors,
    python_functions,
    rooms,
    told,
)
from mutants import MUTANTS
from mutation import changed, function

import locant

ROOT = Path(__file__).parents[1]
FILES = sorted(p for top in ("src", "tests", "benchmarks", "examples") for p in (ROOT / top).rglob("*.py"))
DRAWERS = {"utils", "util", "common", "helpers", "helper", "core", "misc", "types"}


def test_the_house_stands() -> None:
    """No circle of rooms, no file of src/ or csrc/ and no function in it too long, and a page that lists the files."""
    assert complaints() == []


def test_files_and_functions_stay_short() -> None:
    """Those of tests, benchmarks and examples as well."""
    long = []
    for path in FILES:
        source = path.read_text()
        long += [path.name] * (len(source.splitlines()) > FILE)
        long += [f"{path.name}: {name}" for name, n in python_functions(source) if n > PYTHON_FUNCTION]
    assert long == []


def test_the_ruler_measures() -> None:
    assert dict(python_functions("def f():\n    '''a\n    b'''\n    x = 1\n    return x\n")) == {"f": 3}
    assert dict(python_functions("async def g():\n    def h(): ...\n    return h\n")) == {"g": 3, "h": 1}


CPP = {
    "int f(int a) {\n  return a;\n}\n": [("f", 3)],
    "int f(int a);\nint x = 3;\nvoid g() {}\n": [("g", 1)],
    "template <int N = 3>\ninline auto f(const A<int>& a, int b = 2)\n    -> int {\n  if (a) {\n  }\n}\n": [("f", 6)],
    "namespace a {\nnamespace {\nstatic void f() { g(); }\n}\n}  // namespace a\nvoid h() {\n}\n": [("f", 1), ("h", 2)],
    'extern "C" {\nint f() {\n}\n}\nextern "C" int g() { return 1; }\n': [("f", 2), ("g", 1)],
    "struct A : B {\n  int x[2] = {1, 2};\n  A(int a) : x{1, 2}, y(a) {\n  }\n  ~A() {}\n  int n{0};\n};\n": [
        ("A", 2),
        ("~A", 1),
    ],
    "struct A {\n  bool operator()(int a) const {\n    return a;\n  }\n  A& operator=(A&&) noexcept { x(); }\n};\n": [
        ("operator_", 3),
        ("operator_", 1),
    ],
    "enum class E : int { a, b };\nconstexpr int t[] = {1, 2};\nstatic const S s{1};\nvoid f() {}\n": [("f", 1)],
    "auto f = [](int a) {\n  return a;\n};\nvoid g() {\n  auto h = [&] {\n    x();\n  };\n}\n": [
        ("lambda", 3),
        ("g", 5),
    ],
    'void f() {  // {\n  /* { */ x("{", \'{\', 1\'000, R"a({)a");\n}\n': [("f", 3)],
    "#define M(a) { \\\n  f(a) {\nvoid f() {\n#if A\n  if (a) {\n#else\n  if (b) {\n#endif\n  }\n}\nvoid g() {}\n": [
        ("f", 8),
        ("g", 1),
    ],
    "MODULE(_native, m) {\n  m.def([](int a) { return a; });\n}\n": [("MODULE", 3)],
    '__attribute__((target("avx2"))) void f()\n{\n}\nalignas(64) static float x[4];\n': [("f", 3)],
    "struct alignas(64) A {\n  void f() {\n  }\n};\nstruct B f(struct A a) {\n}\n": [("f", 2), ("f", 2)],
    "A::A(int a)\n    : b(a) {\n}\nint A::f() const {\n}\nstd::vector<int> g(int n) {\n}\n": [
        ("A", 3),
        ("f", 2),
        ("g", 2),
    ],
}


@pytest.mark.parametrize("source", CPP)
def test_the_ruler_measures_functions_of_cpp(source: str) -> None:
    assert list(cpp_functions(source)) == CPP[source]


def test_the_ruler_finds_the_functions_of_the_core() -> None:
    """As many braces that stand at the end of a signature as functions: a file whose functions are lost would pass."""
    for path in sorted((ROOT / "csrc").rglob("*.h")):
        source = path.read_text()
        ends = re.findall(r"^\}$", source, re.MULTILINE)
        assert len(list(cpp_functions(source))) >= len(ends), path.name


def test_circles_and_floors_are_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) in (
        ["a", "c", "b", "a"],
        ["c", "b", "a", "c"],
        ["b", "a", "c", "b"],
    )
    assert circle({"a": {"b"}, "b": set()}) == []
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": set()}) == 3
    assert {"masks", "grid"} <= rooms()["attend"]
    assert "nn" not in rooms()["grid"]


def test_the_page_is_read_by_path() -> None:
    page = """
## Where things are

    src/locant/
      grid.py         where tokens are: grid.py is no second file here
      nn/
        a.py b.py     two
      page/           what a page is made of
        page.html page.css   of it
    csrc/
      selftest/task.h  problems

## Arrows
"""
    assert told(page) == [
        f"src/locant/{name}" for name in ("grid.py", "nn/a.py", "nn/b.py", "page/page.html", "page/page.css")
    ] + ["csrc/selftest/task.h"]


def test_names_say_what_is_inside() -> None:
    verbs = {name for name in locant.__all__ if name.islower()}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        assert not DRAWERS & set(parts), path
        if parts[0] == "src":
            assert len(parts) <= 4, f"{path}: a subpackage at most: src/locant/family/member.py"
            assert not verbs & set(parts), f"{path}: no file or folder bears the name of a public function"


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


def test_every_mutant_has_its_place() -> None:
    """It names a function that is there, and a piece of it that stands there once."""
    lost = []
    for mutant in MUTANTS:
        try:
            changed(function(mutant.where), mutant.old, mutant.new)
        except AssertionError as error:
            lost.append(f"{mutant.name}: {str(error).splitlines()[0]}")
    assert lost == []


def test_helpers_are_on_the_map() -> None:
    """tests/README.md names every file that is no test, and no file that is gone."""
    page = (ROOT / "tests" / "README.md").read_text()
    told = set(re.findall(r"\w+\.py", page)) | {f"{name}/" for name in re.findall(r"^\| (\w+)/ \|", page, re.MULTILINE)}
    there = {p.name for p in (ROOT / "tests").glob("*.py") if not p.name.startswith("test_")}
    folders = {f"{p.parent.name}/" for p in (ROOT / "tests").glob("*/*.py")}
    assert told == there | folders
