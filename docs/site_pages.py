"""Builds the site from the Markdown pages of the project: `./run docs`, or `python docs/site_pages.py [folder]`.

Pages are gathered in a folder as they lie in the project, so that their links hold; the reference (docs/reference.py)
is added in `api/`, and each source file that it names as a page with its code. Sphinx makes HTML of that, with search.
Nothing is read from a network.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import reference  # noqa: E402

PAGES = ("*.md", "docs/**/*.md", "csrc/*.md", "tests/README.md", "benchmarks/*.md")
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
# The side bar, from top to bottom; what is not named comes last.
SHELVES = {
    "Begin": ("docs/tutorials/README.md", "docs/accelerate.md", "docs/explain.md", "docs/compare.md", "docs/bench.md"),
    "Use": ("docs/schemes/README.md", "docs/checkpoints.md", "docs/export.md", "docs/coming-from.md", "api/index.md"),
    "Know": ("docs/support.md", "docs/exported.md", "docs/limits.md", "docs/performance.md", "docs/models.md",
             "docs/models-speed.md", "docs/parity.md", "docs/small-data.md", "docs/sources.md"),
    "Project": ("docs/README.md", "docs/architecture.md", "docs/versions.md", "docs/releasing.md", "CHANGELOG.md",
                "CONTRIBUTING.md", "SECURITY.md", "LOG.md"),
}  # fmt: skip


def gather(folder: Path) -> None:
    """All that the site is made of, in a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for glob in PAGES for path in ROOT.glob(glob)}
    texts["examples/README.md"] = examples()
    for name, text in reference.pages().items():
        texts[f"api/{name}"] = text
    sources = set(re.findall(r"\]\(/(src/[^)]+\.py)\)", "".join(texts.values())))
    texts |= {f"{name}.md": code(name) for name in sources}
    listed: set[str] = set()
    for name, text in list(texts.items()):
        texts[name] = relinked(name, text, texts, folder, listed)
    for name in listed:
        texts[name] = listing(name)
    texts["README.md"] += shelves(texts)
    for section, glob in (("docs/schemes/README.md", "docs/schemes/"), ("api/index.md", "api/"),
                          ("docs/tutorials/README.md", "docs/tutorials/")):  # fmt: skip
        if section in texts:
            inside = sorted(name for name in texts if name.startswith(glob) and name != section)
            texts[section] += toctree("", inside)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def relinked(name: str, text: str, texts: dict[str, str], folder: Path, listed: set[str]) -> str:
    """The page with links that hold in the site; pictures and files that it shows are brought along."""
    here = ROOT / Path(name).parent

    def link(found: re.Match[str]) -> str:
        place = unquote(found[2])
        if place.startswith("/"):  # a source file
            return f"{found[1]}{place}.md{found[3]}"
        target = Path(os.path.normpath(here / place))
        inside = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
        if target.is_dir():
            page = f"{inside}/README.md" if inside != "." else "README.md"
            if page not in texts:
                listed.add(page)
            return f"{found[1]}{place.rstrip('/')}/README.md{found[3]}"
        if target.is_file() and inside not in texts:
            bring(target, folder / inside)
        return found[0]

    for shown in re.findall(r'<img src="([^"]+)"', text):
        target = Path(os.path.normpath(here / shown))
        bring(target, folder / target.relative_to(ROOT))
    return LINK.sub(link, text)


def bring(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def listing(name: str) -> str:
    """The page of a folder that has none of its own."""
    folder = ROOT / Path(name).parent
    files = "\n".join(f"- `{path.name}`" for path in sorted(folder.iterdir()) if path.name[0] not in "._")
    return f"# {Path(name).parent.as_posix()}\n\n{files}\n"


def code(name: str) -> str:
    return f"# {name}\n\n````python\n{(ROOT / name).read_text()}````\n"


def examples() -> str:
    """The scripts, one below the other, each with what its docstring says."""
    out = ["# Examples\n\nShort scripts that run in seconds, each asserting its point."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text()
        about = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
        out.append(f"## {path.stem}\n\n{reference.escaped(about)}\n\n````python\n{text}````")
    return "\n\n".join(out) + "\n"


def toctree(caption: str, names: list[str]) -> str:
    lines = "\n".join("/" + name.removesuffix(".md") for name in names)
    title = f":caption: {caption}\n" if caption else ""
    return f"\n```{{toctree}}\n:hidden:\n{title}\n{lines}\n```\n"


def shelves(texts: dict[str, str]) -> str:
    """The side bar's parts; every page is on one, or below one that is."""
    out, taken = "", {"README.md"}
    for caption, names in SHELVES.items():
        there = [name for name in names if name in texts]
        taken |= set(there)
        out += toctree(caption, there)
    below = ("docs/schemes/", "docs/tutorials/", "api/")
    rest = sorted(name for name in texts if name not in taken and not name.startswith(below))
    return out + toctree("More", rest)


def build(out: Path) -> int:
    from sphinx.cmd.build import build_main

    source = out.with_name(out.name + "-pages")
    gather(source)
    failed = build_main(["-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs"), str(source), str(out)])
    shutil.copy(ROOT / "docs" / "site.css", out / "_static")
    shutil.copy(out / "README.html", out / "index.html")  # what a server shows first
    return int(failed)


if __name__ == "__main__":
    begun = time.monotonic()
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site").resolve()
    failed = build(target)
    if not failed:
        print(f"{target / 'README.html'}, {len(list(target.rglob('*.html')))} pages, {time.monotonic() - begun:.0f} s")
    sys.exit(failed)
