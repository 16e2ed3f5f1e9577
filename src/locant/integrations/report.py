"""What `locant.accelerate` did: a row for each part of the model, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html import escape
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from locant import products
from locant.integrations.replacing import Replacement


@dataclass(frozen=True)
class Row:
    """One part of a model.

    Attributes:
        path: of the module; of several that are alike, with `*` in place of their numbers.
        kind: "attention", "perceptron", "linear" or "block".
        cls: its class.
        what: scheme, windows, sizes.
        kernel: what runs now: "native", "sdpa", "packed"; None where nothing was replaced.
        predicted: how many times as fast as the library's own way, by measured constants; None where there are none,
            or where the example does not call the part as a module.
        why: the sentence: why not, or what to know.
    """

    path: str
    kind: str
    cls: str
    what: str = ""
    kernel: str | None = None
    predicted: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Checked:
    """What was seen on the user's own example.

    Attributes:
        difference: the largest of the outputs, and with `training` of the gradients.
        size: the largest number among them.
        error, own_error: the largest error against the same model in float64, of the replaced one and of its own.
        seconds, own_seconds: medians of one call, in turn.
    """

    difference: float
    size: float
    error: float
    own_error: float
    seconds: float
    own_seconds: float

    @property
    def ratio(self) -> float:
        return self.own_seconds / self.seconds


@dataclass
class Report:
    """What was replaced, by what, and why not the rest. It undoes all of it, also as a context manager."""

    rows: tuple[Row, ...]
    model: nn.Module = field(repr=False)
    dry: bool = False
    checked: Checked | None = None
    measured: str = ""  # what predictions of products are for, and where their constants come from
    _back: list[Callable[[], None]] = field(default_factory=list, repr=False)
    _packs: list[nn.Module] = field(default_factory=list, repr=False)

    @property
    def replaced(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.kernel is not None)

    @property
    def packed_bytes(self) -> int:
        """Of the packed copies that are kept beside weights now."""
        return sum(products.kept_bytes(weight) for weight in self._weights())

    def _weights(self) -> list[Tensor]:
        """Those of which packed copies are kept in evaluation mode, each once."""
        return [*{id(p): p for module in self._packs for p in module.parameters() if p.ndim == 2}.values()]

    def _memory(self) -> str:
        most = sum(weight.numel() * weight.itemsize for weight in self._weights())
        return f"Packed copies of weights: {self.packed_bytes / 1e6:.1f} MB now, at most {most / 1e6:.1f} MB."

    def put(self, module: nn.Module, replacement: Replacement) -> None:
        """Replace methods of a module, to be put back by `undo`."""
        self._back.append(replacement.put(module))

    def undo(self) -> None:
        """Put every forward back, and drop the packed copies. A second time does nothing."""
        while self._back:
            self._back.pop()()
        self.refresh()

    def refresh(self) -> None:
        """Drop the packed copies: after a weight was written through `.data`, which no counter sees."""
        for weight in self._weights():
            products.forget(weight)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [self.summary()]
        if self.checked is not None:
            lines.append(_said(self.checked))
        shown = _merged(self.rows)
        if shown:
            table = [("part", "kind", "class", "what", "kernel", "×"), *(_cells(row, alike) for row, alike in shown)]
            widths = [max(len(line[column]) for line in table) for column in range(6)]
            for number, line in enumerate(table):
                lines.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
                if number and shown[number - 1][0].why:
                    lines.append(f"    {shown[number - 1][0].why}")
        lines += self._below()
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("part", "kind", "class", "what", "kernel", "×", "why"))
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in (*_cells(row, alike), row.why)) + "</tr>"
            for row, alike in _merged(self.rows)
        )
        said = "" if self.checked is None else f"<p>{escape(_said(self.checked))}</p>"
        below = "".join(f"<p>{escape(line)}</p>" for line in self._below())
        return f"<p>{escape(self.summary())}</p>{said}<table><tr>{head}</tr>{body}</table>{below}"

    def _below(self) -> list[str]:
        """What is said under the table."""
        return [line for line in (self.measured, self._memory() if self._packs else "") if line]

    def summary(self) -> str:
        """How much was replaced, in a sentence."""
        counts = [
            (kind, [row for row in self.rows if row.kind == kind]) for kind in ("attention", "perceptron", "linear")
        ]
        parts = [
            f"{sum(row.kernel is not None for row in rows)} of {len(rows)} {kind}{'s' * (kind != 'attention')}"
            for kind, rows in counts
            if rows
        ]
        if not parts:
            return (
                f"{type(self.model).__name__}: nothing to replace: it holds no attention that Locant knows, and no "
                "plain linear layer."
            )
        verb = "would be replaced" if self.dry else "replaced"
        return f"{type(self.model).__name__}: {', '.join(parts)} {verb}."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checked = None if self.checked is None else {**vars(self.checked), "ratio": self.checked.ratio}
        return {
            "summary": self.summary(),
            "dry_run": self.dry,
            "rows": [vars(row) for row in self.rows],
            "checked": checked,
            "predicted_for": self.measured,
            "packed_bytes": self.packed_bytes,
        }


def _said(checked: Checked) -> str:
    return (
        f"On the example: {checked.ratio:.2f} times as fast ({1e3 * checked.own_seconds:.1f} to "
        f"{1e3 * checked.seconds:.1f} ms); largest difference {checked.difference:.1e} of {checked.size:.1e}; "
        f"errors against float64 {checked.error:.1e}, before {checked.own_error:.1e}."
    )


def _cells(row: Row, alike: list[Row]) -> tuple[str, ...]:
    path, ratios = row.path or "(the model)", [x.predicted for x in alike if x.predicted is not None]
    low, high = (f"{end(ratios):.1f}" if ratios else "" for end in (min, max))
    return (
        path if len(alike) == 1 else f"{path} ({len(alike)})", row.kind, row.cls.rpartition(".")[2], row.what,
        row.kernel or "–", low if low == high else f"{low} to {high}",
    )  # fmt: skip


def _merged(rows: tuple[Row, ...]) -> list[tuple[Row, list[Row]]]:
    """Rows whose paths differ by numbers alone, as one with all of them; of layers the smallest and largest sizes."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        pattern = ".".join("*" if part.isdigit() else part for part in row.path.split("."))
        what = row.what if row.kind == "attention" else ""
        found.setdefault((pattern, row.kind, row.cls, what, row.kernel, row.why), []).append(row)
    merged = []
    for (pattern, *_), alike in found.items():
        first, last = alike[0], alike[-1]
        what = first.what if first.what == last.what else f"{first.what}, ..., {last.what}"
        merged.append((replace(first, path=first.path if len(alike) == 1 else pattern, what=what), alike))
    return merged
