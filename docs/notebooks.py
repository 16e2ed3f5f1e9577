"""Three tutorials as notebooks: `python docs/notebooks.py`; with `--check` it writes nothing.

A cell for the text between two blocks, a cell for each block of Python; what a block prints is left to the one who
runs it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

TUTORIALS = Path(__file__).parent / "tutorials"
NAMES = ("relative-bias", "video", "causal-lm")


def notebook(page: str) -> str:
    """The page as a notebook, in JSON."""
    cells = []
    for part in re.split(r"(```(?:python|text)\n.*?^```$)", page, flags=re.DOTALL | re.MULTILINE):
        code = re.fullmatch(r"```python\n(.*?)\n```", part, re.DOTALL)
        kind, text = ("code", code[1]) if code else ("markdown", part.strip())
        if not text or part.startswith("```text"):
            continue
        cell = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, "source": text.splitlines(keepends=True)}
        cells.append(cell | ({"execution_count": None, "outputs": []} if code else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main(check: bool) -> int:
    stale = 0
    for name in NAMES:
        path, text = TUTORIALS / f"{name}.ipynb", notebook((TUTORIALS / f"{name}.md").read_text())
        if not path.exists() or path.read_text() != text:
            stale = 1
            print(f"{path.name} {'is not what follows from its page' if check else 'written'}")
            if not check:
                path.write_text(text)
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
