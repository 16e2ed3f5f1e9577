"""The reference: a Markdown page for every public name, read from the source without running it.

Public are the names of `locant.__all__` and of the `__all__` of its public packages. A page has the signature, whose
annotations say the shapes, the docstring, the errors in their own words, the methods, and the source. `pages()` gives
all of them; `docs/site_pages.py` builds a site with them, `tests/test_site.py` asks that none is missing or empty.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "locant"
SECTIONS = {"Args": "Arguments", "Raises": "Errors", "Returns": "Returns", "Yields": "Yields"}
Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Name:
    """A public name: where it is used from, what it is there, and the file that defines it."""

    module: str  # locant.nn
    name: str  # Attention
    node: Definition
    path: Path

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def source(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


# --- which names there are, and where they are defined ------------------------------------------------------------


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def file_of(module: str) -> Path:
    """The file of a module or package of locant."""
    parts = module.split(".")[1:]
    folder = PACKAGE.joinpath(*parts)
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def literal(path: Path, name: str) -> object:
    """The value of a constant of a module."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == name for target in node.targets):
            return ast.literal_eval(node.value)
    raise SystemExit(f"{path.relative_to(ROOT)} has no {name} that is written out")


def packages() -> list[str]:
    return ["locant", *(f"locant.{name}" for name in sorted(literal(PACKAGE / "__init__.py", "_PACKAGES")))]  # type: ignore[call-overload]


def imported(path: Path) -> dict[str, str]:
    """What a file imports from locant: name, module."""
    found = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "locant":
            found.update({alias.asname or alias.name: node.module for alias in node.names})
    return found


def defined(module: str, name: str) -> tuple[Definition, Path]:
    """The class or function of this name: the last definition, as the ones before it are overloads."""
    path = file_of(module)
    for node in reversed(tree(path).body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node, path
    source = imported(path).get(name)
    if source is None:
        raise SystemExit(f"{module}.{name} is public, and no class or function that is written in a file of locant")
    return defined(source, name)


def names() -> list[Name]:
    """Every public name, package by package."""
    found = []
    for package in packages():
        for name in literal(file_of(package), "__all__"):  # type: ignore[attr-defined]
            found.append(Name(package, name, *defined(package, name)))
    return found


# --- what a class has from others ---------------------------------------------------------------------------------


def bases(node: ast.ClassDef, path: Path) -> Iterator[tuple[ast.ClassDef, Path]]:
    """A class and those above it that are locant's own, nearest first."""
    yield node, path
    here = {n.name: n for n in tree(path).body if isinstance(n, ast.ClassDef)}
    for base in node.bases:
        name = ast.unparse(base).split("[")[0]
        if name in here:
            yield from bases(here[name], path)
        elif name in imported(path):
            above, there = defined(imported(path)[name], name)
            if isinstance(above, ast.ClassDef):
                yield from bases(above, there)


def methods(node: ast.ClassDef, path: Path) -> dict[str, tuple[ast.FunctionDef, str]]:
    """Methods by name, with the docstring that holds for them: their own, or that of a class above."""
    found: dict[str, tuple[ast.FunctionDef, str]] = {}
    for above, _ in bases(node, path):
        for method in above.body:
            if isinstance(method, ast.FunctionDef):
                old, words = found.get(method.name, (method, ""))
                found[method.name] = old, words or ast.get_docstring(method) or ""
    return found


def words_of(name: Name) -> str:
    return ast.get_docstring(name.node) or ""


# --- pages ----------------------------------------------------------------------------------------------------------


def signature(function: ast.FunctionDef, name: str, *, bound: bool) -> str:
    """As it is written, an argument a line where it is long; annotations say the shapes."""
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    parts = []
    for argument, default in list(zip(positional, defaults, strict=True))[int(bound) :]:
        parts.append(ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}"))
        if argument in arguments.posonlyargs and argument is arguments.posonlyargs[-1]:
            parts.append("/")
    if arguments.vararg is not None:
        parts.append("*" + ast.unparse(arguments.vararg))
    elif arguments.kwonlyargs:
        parts.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parts.append(ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}"))
    if arguments.kwarg is not None:
        parts.append("**" + ast.unparse(arguments.kwarg))
    back = "" if function.returns is None or name[0].isupper() else f" -> {ast.unparse(function.returns)}"
    line = f"{name}({', '.join(parts)}){back}"
    return line if len(line) <= 88 else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){back}"


def construction(name: Name) -> str:
    """The call that makes one: `__init__`, or the fields of a dataclass."""
    node = name.node
    if isinstance(node, ast.FunctionDef):
        return signature(node, name.name, bound=False)
    own = methods(node, name.path).get("__init__")
    if own is not None:
        return signature(own[0], name.name, bound=True)
    fields = [
        ast.unparse(field)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).startswith("ClassVar")
    ]
    line = f"{name.name}({', '.join(fields)})"
    return line if len(line) <= 88 else f"{name.name}(\n" + "".join(f"    {field},\n" for field in fields) + ")"


def escaped(text: str) -> str:
    """Markdown's signs as signs, outside of code."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.DOTALL)
    return "".join(part if n % 2 else re.sub(r"([\\*_<>\[\]|#~$])", r"\\\1", part) for n, part in enumerate(parts))


def prose(text: str) -> str:
    """A docstring's paragraphs as Markdown; a first one that is a formula, and what is indented, as blocks."""
    out = []
    for n, paragraph in enumerate(re.split(r"\n\s*\n", text.strip("\n"))):
        lines = paragraph.splitlines()
        if all(line.startswith("    ") for line in lines) and n:
            out.append("```text\n" + re.sub(r"^    ", "", paragraph, flags=re.MULTILINE) + "\n```")
        elif n == 0 and re.search(r"\w\S* (=|←|→) |^softmax", lines[0]) and "`" not in lines[0].split("=")[0]:
            out.append("```text\n" + paragraph + "\n```")
        else:
            out.append("\n".join(line if re.match(r"\s*- ", line) else escaped(line) for line in lines))
    return "\n\n".join(out)


def split(docstring: str) -> tuple[str, dict[str, str]]:
    """The text of a docstring and its sections by name, margins taken off."""
    pieces = re.split(r"^(Args|Raises|Returns|Yields):\n", docstring, flags=re.MULTILINE)
    text, sections = pieces[0], {}
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        inside, _, after = body.partition("\n\n") if re.search(r"\n\n\S", body) else (body, "", "")
        sections[title] = re.sub(r"^    ", "", inside, flags=re.MULTILINE).rstrip()
        text += "\n\n" + after if after.strip() else ""
    return text, sections


def listed(body: str) -> str:
    """`name: what it is`, one item each; further lines belong to the one before."""
    items: list[str] = []
    for line in body.splitlines():
        found = re.match(r"([\w*][\w*, .]*?): (.*)", line)
        if found and not line.startswith(" "):
            items.append(f"- **`{found[1]}`** {escaped(found[2])}")
        elif items:
            items[-1] += "\n  " + escaped(line.strip())
        else:
            items.append(f"- {escaped(line.strip())}")
    return "\n".join(items)


def refusals(node: ast.AST) -> list[str]:
    """The sentences of the errors that a definition raises itself; `…` stands for a value."""
    found = []
    for raised in ast.walk(node):
        if isinstance(raised, ast.Raise) and isinstance(raised.exc, ast.Call) and raised.exc.args:
            parts = raised.exc.args[0]
            if isinstance(parts, ast.JoinedStr):
                text = "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in parts.values)
            elif isinstance(parts, ast.Constant) and isinstance(parts.value, str):
                text = parts.value
            else:
                continue
            if text.strip("… ") and text not in found:
                found.append(text)
    return found


def errors(name: Name, told: str | None) -> str:
    lines = [] if told is None else [listed(told)]
    said = refusals(name.node)
    if said:
        lines.append("It refuses in these words:\n\n" + "\n".join(f"- {escaped(text)}" for text in said))
    if not lines:
        lines.append("None of its own: what does not fit is refused by what it calls, in one sentence (`ValueError`).")
    return "\n\n".join(lines)


def documented(docstring: str, level: str) -> str:
    text, sections = split(docstring)
    out = [prose(text)]
    out += [f"{level} {SECTIONS[title]}\n\n{listed(body)}" for title, body in sections.items() if title != "Raises"]
    return "\n\n".join(out)


def page(name: Name) -> str:
    """The whole page of one name."""
    _, sections = split(words_of(name))
    out = [
        f"# {name.dotted}",
        f"```python\n{construction(name)}\n```",
        documented(words_of(name), "##"),
        f"## Errors\n\n{errors(name, sections.get('Raises'))}",
    ]
    if isinstance(name.node, ast.ClassDef):
        shown = []
        for method, (node, words) in methods(name.node, name.path).items():
            if words and (not method.startswith("_") or method == "__call__"):
                call = signature(node, method, bound=not static(node))
                told, parts = split(words)
                body = [prose(told), *(f"{SECTIONS[t]}:\n\n{listed(b)}" for t, b in parts.items())]
                shown.append(f"### {method}\n\n```python\n{call}\n```\n\n" + "\n\n".join(body))
        out += ["## Methods", *shown] if shown else []
    place = f"{name.source}, line {name.node.lineno}"
    out.append(f"## Source\n\n[{place}](/{name.source}). Import it as `from {name.module} import {name.name}`.")
    return "\n\n".join(out) + "\n"


def static(node: ast.FunctionDef) -> bool:
    return "staticmethod" in (ast.unparse(mark) for mark in node.decorator_list)


def index(found: list[Name]) -> str:
    """The first page of the reference."""
    out = ["# API reference", "Every public name, from its docstring. Names of modules that are not listed may change."]
    for package in packages():
        mine = [name for name in found if name.module == package]
        about = (ast.get_docstring(tree(file_of(package))) or "").splitlines()[0]
        out.append(f"## {package}\n\n{escaped(about)}\n")
        out.append("\n".join(f"- [`{name.name}`]({name.dotted}.md): {first(words_of(name))}" for name in mine))
    return "\n\n".join(out) + "\n"


def first(words: str) -> str:
    """The first sentence of a docstring."""
    sentence = re.split(r"(?<=[.:])\s|\n\s*\n", words, maxsplit=1)[0].rstrip(":").replace("\n", " ")
    return f"`{sentence}`" if re.search(r"\S = ", sentence) and "`" not in sentence else escaped(sentence)


def pages() -> dict[str, str]:
    """File names and texts of the whole reference."""
    found = names()
    return {"index.md": index(found), **{f"{name.dotted}.md": page(name) for name in found}}
