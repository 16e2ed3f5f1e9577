"""Explanation: what was found, as values, in words, as a page and as figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from locant.atomic import write_bytes
from locant.explain import page
from locant.explain.data import Data
from locant.page.drawing import Drawing


@dataclass(frozen=True)
class Explanation:
    """What position does in a model.

    Attributes:
        data: all of it, as plain values and arrays (locant.explain.data).
    """

    data: Data

    def __str__(self) -> str:
        said = [self.data.title, *self.data.notes, *(f"- {finding.text}" for finding in self.data.findings)]
        return "\n".join(said)

    @property
    def page(self) -> str:
        """The page, complete in itself, as text. Raises ValueError if it has more than 20 MB."""
        return page.render([self.data])

    @property
    def figures(self) -> dict[str, Drawing]:
        """The charts of the page by name, as SVG that stands alone; the page itself saves those of single heads."""
        return {name: Drawing(svg) for name, svg in page.figures([self.data]).items()}

    def save(self, path: str | Path) -> Path:
        """Writes the page to a name that ends in .html, the chart over layers to one that ends in .svg: whole, or not.

        Raises:
            ValueError: for another ending, for a page of more than 20 MB, and for a chart where there is none.
            OSError: if the folder cannot be written.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind not in (".html", ".svg"):
            raise ValueError(
                f"Explanation.save needs a name that ends in .html or .svg; got {str(path)!r}. "
                "Write page.html for the page, figure.svg for the chart over layers."
            )
        if kind == ".svg" and not self.figures:
            raise ValueError(
                f"Explanation.save needs heads whose position is known for a chart; {self.data.title} has none. "
                "Save the page: page.html."
            )
        shown = self.page if kind == ".html" else self.figures["layers"].svg
        write_bytes(path, shown.encode("utf-8", "replace"))
        return path

    def beside(self, other: Explanation) -> str:
        """The page of two models beside each other."""
        return page.render([self.data, other.data])

    def _repr_html_(self) -> str:
        return page.cell([self.data])
