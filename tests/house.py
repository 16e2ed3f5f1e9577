"""The house, measured: rooms and their circles, lengths of files and functions, and the page that lists the files.

`python tests/house.py` prints all of it in one line, and what is too long or untrue below that; tests/test_house.py
holds it. A room is a module or a package of `locant`; floors are the longest way up by imports, late ones included.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "locant"
CORE = ROOT / "csrc"
FILE, PYTHON_FUNCTION, CPP_FUNCTION = 400, 60, 40  # lines
KINDS = {".py", ".cpp", ".h", ".html", ".css", ".js"}

# What is too long today, and must become short: an entry that is no longer needed fails.
KNOWN: set[str] = set()


# --- rooms -----------------------------------------------------------------------------------------------------------


def rooms() -> dict[str, set[str]]:
    """Which rooms each room imports from, wherever in its files."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here == "__init__":  # the lazy names: they load nothing
            continue
        mine = found.setdefault(here, set())
        for node in ast.walk(ast.parse(path.read_text())):
            mine |= {room for room in _imported(node) if room != here and (PACKAGE / room).exists()}
            mine |= {room for room in _imported(node) if room != here and (PACKAGE / f"{room}.py").exists()}
    return found


def _imported(node: ast.AST) -> set[str]:
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("locant.")}


def includes() -> dict[str, set[str]]:
    """Which files of the core each of them includes."""
    files = {path.relative_to(CORE).as_posix(): path for path in CORE.rglob("*") if path.suffix in (".cpp", ".h")}
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for quoted in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            near = (path.parent / quoted).resolve()
            there = near if near.exists() else CORE / quoted
            found[name].add(there.resolve().relative_to(CORE.resolve()).as_posix())
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle, its first member named again at the end; empty without any."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def floors(graph: dict[str, set[str]]) -> int:
    """How many rooms the longest way from the ground to the top passes."""
    height: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(graph).static_order():
        height[room] = 1 + max((height[below] for below in graph.get(room, ())), default=0)
    return max(height.values(), default=0)


# --- lengths ---------------------------------------------------------------------------------------------------------


def python_functions(source: str) -> Iterator[tuple[str, int]]:
    """Functions and their lines from `def` to the end, docstrings left out: formulas and sources may take room."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            words = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            text = 0 if words is None else (words.end_lineno or 0) - words.lineno + 1
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - text


def cpp_functions(source: str) -> Iterator[tuple[str, int]]:
    """Functions of C++ and their lines, from the first of the signature to the closing brace.

    Braces are counted on a text without comments, literals and directives. A brace opens a function if what stands
    before it, outside of any function, ends in parameters; namespaces and classes are entered, initialisers passed by.
    """
    text = _bare(source)
    scopes: list[bool] = []  # for each open brace: is what it holds code, or an initialiser?
    start, header, branches = 0, "", []  # where the header before the next brace begins
    opened: tuple[str, int] | None = None  # the function that is open, and the depth of its brace
    for found in re.finditer(r"[{};]|\x01[\w]+", text):
        mark = found.group()
        if mark[0] == "\x01":  # both branches of a condition may open the same brace: each begins with the same ones
            if mark == "\x01if":
                branches.append(list(scopes))
            elif mark == "\x01endif":
                branches.pop()
            else:
                scopes = list(branches[-1])
                start = found.end() if opened is None else start
            continue
        if opened is None and mark != "}" and not (scopes and scopes[-1]):
            header = text[start : found.start()]
        if mark == "{":
            if opened is None and not (scopes and scopes[-1]):
                name = _function(header)
                if name is not None:
                    opened = name, len(scopes)
                    first = source.count("\n", 0, start + len(header) - len(header.lstrip("\x01 \n"))) + 1
            inside = opened is not None or bool(scopes and scopes[-1]) or not _container(header)
            scopes.append(inside)
            if not inside:
                start = found.end()
        elif mark == "}":
            scopes.pop()
            if opened is not None and len(scopes) == opened[1]:
                yield opened[0], source.count("\n", 0, found.start()) + 2 - first
                opened = None
                start = found.end()
            elif opened is None and not (scopes and scopes[-1]) and not _continues(text[start : found.end()]):
                start = found.end()
        elif opened is None and not (scopes and scopes[-1]):
            start = found.end()


def _bare(source: str) -> str:
    """The text with comments, literals and directives blanked, every line and column where it was.

    Of directives only the conditions are left, as marks of their own.
    """

    def blank(found: re.Match[str]) -> str:
        text = found.group()
        directive = re.match(r"\s*#\s*(if|el|endif)\w*", text)
        kept = "" if directive is None else "\x01" + {"el": "else"}.get(directive[1], directive[1])
        hidden = re.sub(r"[^\n]", " ", text)
        return kept + hidden[len(kept) :] if kept else hidden

    literal = r'R"(?P<tag>[^(\s]*)\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"|(?<![\w])\'(?:\\.|[^\'\\\n])+\''
    comment = r"//[^\n]*|/\*.*?\*/"
    directive = r"^[ \t]*#(?:\\\n|//[^\n]*|[^\n])*"
    return re.sub(f"(?sm:{directive})|(?s:{comment})|(?s:{literal})", blank, source, flags=re.MULTILINE)


def _outside(header: str) -> str:
    """A header without template parameters and without what stands in round or square brackets."""
    header = re.sub(r"\boperator\s*(\(\s*\)|\[\s*\]|[^\s\w(]+)", "operator_", header)
    before = None
    while before != header:
        before, header = header, re.sub(r"\([^()]*\)", "\x02", header.replace("[]", "\x03"))
        header = re.sub(r"\[[^\[\]]*\]", "\x03", header)
    header = re.sub(r"\b(__attribute__|alignas|noexcept|decltype|throw)\s*\x02", " ", header)
    return re.sub(r"\btemplate\s*<[^;{}]*?>(?=\s*(?:\w|$))", " ", header)


def _container(header: str) -> bool:
    """Whether a brace behind this holds declarations: a namespace, a class, `extern "C"`."""
    plain = _outside(header)
    return (
        re.search(r"\b(namespace|class|struct|union|extern)\b", plain) is not None
        and "=" not in plain
        and _function(header) is None
    )


def _function(header: str) -> str | None:
    """The name of the function whose body would follow, or None."""
    plain = _outside(header)
    if re.search(r"\b(namespace|enum)\b", plain):
        return None
    if "=" in plain:  # a variable; its value may be a function without a name
        return "lambda" if re.search(r"=\s*\x03\s*\x02?[\w\s:<>*&,-]*$", plain) else None
    if re.search(r"\b(class|struct|union)\b[^\x02]*$", plain):
        return None
    body = re.search(r"(~?\w+)\s*\x02[\w\s\x02]*(->[\w\s:<>*&]+)?\s*(:[^:].*)?$", plain, re.DOTALL)
    if body is None:
        return None
    initialisers = body[3]
    if initialisers is not None and re.search(r"[\w>]\s*$", initialisers):
        return None  # the brace of one member
    return body[1]


def _continues(text: str) -> bool:
    """Whether a closing brace ends the value of one member, and the constructor's header goes on."""
    return re.search(r"\)\s*(noexcept\s*)?:[^:]", text) is not None


def measured() -> list[tuple[int, int, str]]:
    """(lines, most, what) of every file of src/ and csrc/ and of every function in it."""
    found = []
    for path in sorted(p for top in (ROOT / "src", CORE) for p in top.rglob("*") if p.suffix in KINDS):
        where, source = path.relative_to(ROOT).as_posix(), path.read_text()
        found.append((len(source.splitlines()), FILE, where))
        functions: Iterator[tuple[str, int]] = iter(())
        if path.suffix == ".py":
            functions, most = python_functions(source), PYTHON_FUNCTION
        elif path.suffix in (".cpp", ".h"):
            functions, most = cpp_functions(source), CPP_FUNCTION
        found += [(lines, most, f"{where}: {name}") for name, lines in functions]
    return found


# --- the page --------------------------------------------------------------------------------------------------------


def told(page: str) -> list[str]:
    """The files that docs/architecture.md lists under "Where things are", by path, in its order."""
    block = page[page.index("## Where things are") : page.index("## Arrows")]
    found: list[str] = []
    folders: list[tuple[int, str]] = []  # how far each is indented
    for line in block.splitlines():
        names = re.match(r"( +)((?:[\w./-]+(?:\.(?:py|cpp|h|html|css|js)(?![\w.])|/) *)+)", line)
        if names is None:
            continue
        while folders and folders[-1][0] >= len(names[1]):
            folders.pop()
        above = folders[-1][1] if folders else ""
        for name in names[2].split():
            if name.endswith("/"):
                folders.append((len(names[1]), above + name))
            else:
                found.append(above + name)
    return found


def tree() -> set[str]:
    """The files that the page must list: all but those of the language's own names."""
    files = {path for top in (PACKAGE, CORE) for path in top.rglob("*") if path.suffix in KINDS}
    return {path.relative_to(ROOT).as_posix() for path in files if not path.name.startswith("__")}


def listed_wrongly() -> list[str]:
    """One sentence per path in which the page and the tree disagree."""
    listed, there = told((ROOT / "docs" / "architecture.md").read_text()), tree()
    wrong = [f"docs/architecture.md lists {path}, which is not there" for path in sorted(set(listed) - there)]
    wrong += [f"docs/architecture.md does not list {path}" for path in sorted(there - set(listed))]
    return wrong + [f"docs/architecture.md lists {p} twice" for p in sorted(set(listed)) if listed.count(p) > 1]


# --- all of it -------------------------------------------------------------------------------------------------------


def complaints() -> list[str]:
    """What is wrong with the house."""
    long = {what: (lines, most) for lines, most, what in measured() if lines > most}
    wrong = [f"{what} has {a} lines, and may have {b}" for what, (a, b) in long.items() if what not in KNOWN]
    wrong += [
        f"KNOWN in tests/house.py holds {what}, which is short: take it out" for what in sorted(KNOWN - set(long))
    ]
    for what, graph in (("rooms", rooms()), ("files of csrc", includes())):
        found = circle(graph)
        wrong += [f"a circle of {what}: {' → '.join(found)}"] if found else []
    return wrong + listed_wrongly()


def summary() -> str:
    graph, lengths = rooms(), measured()

    def longest(most: int, function: bool) -> str:
        lines, _, what = max(row for row in lengths if row[1] == most and (": " in row[2]) == function)
        return f"{what.rpartition('/')[2]} ({lines})"

    height = "a circle" if circle(graph) else f"{floors(graph)} floors, no circle"
    return (
        f"{len(graph)} rooms, {height}; longest file {longest(FILE, False)}, longest functions "
        f"{longest(PYTHON_FUNCTION, True)} and {longest(CPP_FUNCTION, True)}"
    )


if __name__ == "__main__":
    found = complaints()
    print(summary() if not found else f"{summary()}; {len(found)} complaints:", *found, sep="\n")
    sys.exit(bool(found))
