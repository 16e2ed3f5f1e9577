"""A temporary copy of the project to which files are added: what it takes to extend it is counted there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("src", "tests", "docs", "csrc", "benchmarks", "examples", ".ci", ".github")
FILES = (
    "pyproject.toml", "run", "README.md", "CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LOG.md", "NOTICE",
    "SECURITY.md", "CITATION.cff",
)  # fmt: skip


# An editable installation finds the package before any path is asked: its finder has to go.
FIRST = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__]
"""


def environment(home: Path, source: Path) -> dict[str, str]:
    """In which Python, and whatever it starts, imports the package from `source` and from nowhere else.

    The compiled core, which an installation keeps in a folder of its own, comes along.
    """
    core = find_spec("locant._native")
    if core is not None and core.origin is not None and not list((source / "locant").glob("_native*.so")):
        shutil.copy(core.origin, source / "locant")
    first = home / ".first"
    first.mkdir(exist_ok=True)
    (first / "sitecustomize.py").write_text(FIRST)
    return {**os.environ, "PYTHONPATH": f"{first}{os.pathsep}{source}", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


class Copy:
    """The project in another folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in (part for part in PARTS if (ROOT / part).exists()):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for name in (name for name in FILES if (ROOT / name).exists()):
            shutil.copy(ROOT / name, folder / name)

    def add(self, path: str, text: str) -> None:
        """A file that was not there."""
        assert not (self.folder / path).exists(), f"{path} is there already"
        (self.folder / path).write_text(text)

    def replace(self, path: str, old: str, new: str) -> None:
        """One line of a file that was there."""
        text = (self.folder / path).read_text()
        assert text.count(old) == 1, f"{path} holds {old!r} {text.count(old)} times"
        (self.folder / path).write_text(text.replace(old, new))

    def python(self, *arguments: str) -> str:
        """What Python prints when it runs there, and nowhere else."""
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=900, check=False,
            env=environment(self.folder, self.folder / "src"),
        )  # fmt: skip
        assert done.returncode == 0, f"python {' '.join(arguments)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def tests(self, *arguments: str) -> int:
        """How many tests pass there; none may fail."""
        said = self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments)
        return int(said.rpartition(" passed")[0].split()[-1])
