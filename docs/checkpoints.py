"""Writes the two tables at the end of checkpoints.md: `python docs/checkpoints.py`.

It runs `locant convert` on a file of each source and on every damaged or hostile one that the tests know.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import torch
from typer.testing import CliRunner

PAGE = Path(__file__).with_suffix(".md")
sys.path.insert(0, str(PAGE.parents[1] / "tests"))

from test_checkpoint_files import HOSTILE  # noqa: E402 (a folder of tests is no package)
from test_convert import SOURCES  # noqa: E402

from locant.cli import app  # noqa: E402


def printed(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["convert", *arguments])
    return done.exit_code, (done.stdout or done.stderr).splitlines()[0]


def sources() -> list[str]:
    """What the first line of the report says of a file of each source."""
    lines = ["| a file of | what `locant convert` printed |", "| --- | --- |"]
    for source, (make, top, wanted, _) in SOURCES.items():
        torch.manual_seed(0)
        state = make()
        torch.save({top: state} if top else state, "in.pth")
        code, line = printed("in.pth", "out.safetensors", *wanted)
        assert code == 0, line
        lines.append(f"| {source} | {line} |")
    return lines


def refusals() -> list[str]:
    """What is said of each damaged or hostile file, without the words that all share."""
    lines = ["| a file with | it was refused: |", "| --- | --- |"]
    for kind, (make, _) in HOSTILE.items():
        Path("in.pt").write_bytes(make())
        code, line = printed("in.pt", "none.safetensors", "--model", "convit_tiny")
        assert code == 2, line
        assert not Path("none.safetensors").exists()
        reason = line.partition("was refused: ")[2].replace("|", "\\|").replace("\x1b", "\\x1b")
        lines.append(f"| {kind} | {reason} |")
    return lines


def main() -> None:
    """Put both tables in their places."""
    page = PAGE.read_text()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for title, lines in (("sources", sources()), ("refusals", refusals())):
            text = "\n".join(lines)
            mark = f"<!-- {title} -->"
            page = re.sub(f"{mark}.*?{mark}", lambda _, t=text, m=mark: f"{m}\n{t}\n{m}", page, flags=re.DOTALL)
        os.chdir(PAGE.parent)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
