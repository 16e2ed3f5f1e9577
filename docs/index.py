"""Writes what follows from the files of the package alone: `python docs/index.py`; with `--check` it writes nothing.

A scheme is a class in a file of `locant/positions`, on one of the bases of `position.py`. From it follow its public
name (src/locant/__init__.py), its entry in the index of its entrance (docs/schemes/README.md, docs/architecture.md),
its row among the schemes that are compared (docs/compare.md); and from every new file of src/locant or csrc a line in
the tree of docs/architecture.md, made of its first sentence.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import house  # noqa: E402

PACKAGE = ROOT / "src" / "locant"
SCHEMES = ROOT / "docs" / "schemes"
ENTRANCES = {"Embedding": "embed", "Rotation": "rotate", "Bias": "bias", "Content": "content", "Gate": "gate"}


@dataclass(frozen=True)
class Scheme:
    """A class of positions/, where it stands, and the page that tells of it."""

    name: str
    entrance: str
    module: str
    compared: tuple[str, str, tuple[int, ...]] | None  # name and sentence in `locant compare`, and for which axes

    @property
    def page(self) -> str:
        """The page that names it most often."""
        counts = {
            path.name: len(re.findall(rf"\b{self.name}\b", path.read_text()))
            for path in sorted(SCHEMES.glob("*.md"))
            if path.name not in ("README.md", "masks-and-windows.md")
        }
        page = max(counts, key=lambda name: counts[name])
        if counts[page] == 0:
            raise SystemExit(f"no page of docs/schemes tells of {self.name}: write one")
        return page


def schemes() -> list[Scheme]:
    """Every scheme, by entrance and name."""
    found = []
    for path in sorted((PACKAGE / "positions").glob("*.py")):
        for node in ast.parse(path.read_text()).body if path.stem != "position" else ():
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            for base in bases:
                if base in ENTRANCES:
                    module = f"locant.positions.{path.stem}"
                    found.append(Scheme(node.name, ENTRANCES[base], module, comparison(node)))
    return sorted(found, key=lambda s: (list(ENTRANCES.values()).index(s.entrance), s.name))


def comparison(scheme: ast.stmt) -> tuple[str, str, tuple[int, ...]] | None:
    """What a class says in `compared = Comparison(...)`."""
    for node in ast.walk(scheme):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Comparison":
            name, _, sentence, *_ = (ast.literal_eval(argument) for argument in node.args)
            axes = next((ast.literal_eval(k.value) for k in node.keywords if k.arg == "axes"), (1, 2, 3))
            return name, sentence, axes
    return None


def names(text: str) -> str:
    """src/locant/__init__.py with the schemes among its names: the list, the modules, and what type checkers see."""
    old = set(re.findall(r'^    "(\w+)": "locant\.positions\.', text, re.MULTILINE))
    modules = {scheme.name: scheme.module for scheme in schemes()}

    def listed(block: re.Match[str]) -> str:
        rest = set(re.findall(r'"(\w+)"', block[2])) - old
        return block[1] + "".join(f'    "{name}",\n' for name in sorted(rest | set(modules))) + "]"

    def mapped(block: re.Match[str]) -> str:
        rest = {k: v for k, v in re.findall(r'"(\w+)": "([\w.]+)"', block[2]) if k not in old}
        return block[1] + "".join(f'    "{k}": "{v}",\n' for k, v in sorted((rest | modules).items())) + "}"

    by_module: dict[str, list[str]] = {}
    for name, module in modules.items():
        by_module.setdefault(module, []).append(name)
    imports = "".join(
        f"    from {module} import {', '.join(sorted(by_module[module]))}\n" for module in sorted(by_module)
    )
    text = re.sub(r"(__all__ = \[\n)((?:    .*\n)*)\]", listed, text)
    text = re.sub(r"(_MODULES = \{\n)((?:    .*\n)*)\}", mapped, text)
    return re.sub(r"(?:    from locant\.positions\.\w+ import .*\n)+", imports, text)


def linked(text: str) -> str:
    """docs/schemes/README.md: the index, entrance by entrance."""
    for entrance in ENTRANCES.values():
        links = ", ".join(f"[`{s.name}`]({s.page})" for s in schemes() if s.entrance == entrance)
        text = re.sub(rf"^(\| {entrance} \| [^|]* \|) .* \|$", rf"\1 {links} |", text, flags=re.MULTILINE)
    return text


def compared(text: str) -> str:
    """docs/compare.md: a row for each scheme that says how it is compared and has none, after the others."""
    table = re.search(r"^\| name \| is \| default on \|\n(?:\|.*\n)*", text, re.MULTILINE)
    if table is None:
        raise SystemExit("docs/compare.md has no table of schemes")
    rows = ""
    for scheme in schemes():
        if scheme.compared is not None and f"| `{scheme.compared[0]}` |" not in table[0]:
            name, sentence, axes = scheme.compared
            kinds = ", ".join(kind for count, kind in ((2, "images"), (3, "clips"), (1, "sequences")) if count in axes)
            rows += f"| `{name}` | {sentence} | on request, {kinds} |\n"
    return text.replace(table[0], table[0] + rows)


def placed(text: str) -> str:
    """docs/architecture.md: the table of entrances, and the tree with the files that it lacks."""
    for entrance in ENTRANCES.values():
        listed = ", ".join(f"`{s.name}`" for s in schemes() if s.entrance == entrance)
        text = re.sub(rf"^(   \| {entrance} \| [^|]* \|) .* \|$", rf"\1 {listed} |", text, flags=re.MULTILINE)
    start, end = text.index("## Where things are"), text.index("## Arrows")
    lines = text[start:end].splitlines(keepends=True)
    for name in sorted(house.tree() - set(house.told(text))):
        path = ROOT / name
        margin, last = behind(lines, path.parent)
        lines.insert(last, f"{margin}{path.name:<20}{sentence(path)}\n")
    return text[:start] + "".join(lines) + text[end:]


def behind(lines: list[str], path: Path) -> tuple[str, int]:
    """How far the files of a folder are indented in the tree, and the number of the line behind the last."""
    name = "src/locant/" if path == PACKAGE else f"{path.name}/"
    first = next((n for n, line in enumerate(lines) if re.match(rf" *{re.escape(name)}(\s|$)", line)), None)
    if first is None:
        raise SystemExit(f"docs/architecture.md has no {name} under 'Where things are': write its line")
    depth = len(lines[first]) - len(lines[first].lstrip())
    last = first + 1
    while last < len(lines) and lines[last].strip() and len(lines[last]) - len(lines[last].lstrip()) > depth:
        last += 1
    return " " * (depth + 2), last


def sentence(path: Path) -> str:
    """The first sentence of a file, a scheme's name before it."""
    found = re.search(r'(?:^"""|^// )(.+?)(?:[.:] |\.?$|""")', path.read_text(), re.MULTILINE)
    words = "" if found is None else found[1]
    own = [
        scheme.name
        for scheme in schemes()
        if scheme.module.endswith(f".{path.stem}") and path.parent.name == "positions"
    ]
    return f"{', '.join(own)}: {words[0].lower()}{words[1:]}" if own and words else words


WRITTEN = {
    PACKAGE / "__init__.py": names,
    SCHEMES / "README.md": linked,
    ROOT / "docs" / "compare.md": compared,
    ROOT / "docs" / "architecture.md": placed,
}


def main(check: bool) -> int:
    stale = [path for path, write in WRITTEN.items() if write(path.read_text()) != path.read_text()]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is not what follows from the files' if check else 'written'}")
        if not check:
            path.write_text(WRITTEN[path](path.read_text()))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
