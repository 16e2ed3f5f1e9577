"""What became of a checkpoint: every tensor of the file and of the model is in one of its lists."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

from locant.checkpoints.wording import option


@dataclass(frozen=True)
class Resized:
    """One tensor that was brought to another size: from and to are sizes of the grid, or of the table of offsets."""

    name: str
    old: tuple[int, ...]
    new: tuple[int, ...]
    method: str


@dataclass(repr=False)
class Report:
    """What was done with which tensor. `print(report)` and `report` are for people; the lists are for programs.

    Args:
        model: its class.
        layout: the names that the file has.
        prefix: what they begin with there; all lists have them without it, but for names that do not begin so.
        key: under which torch.save's dictionary holds the tensors that were read.
        others: keys of other dictionaries of tensors in the file, such as an average of the weights.
        skipped: what is no tensor there, and was not made.
        kept: tensors that have the same name in the file and in the model, and were loaded.
        renamed: (our names, their names) of what was loaded, where they differ or one is made of several.
        resized: what had another size.
        dropped: names in the file of what the model recomputes.
        left: names of what was left alone: in the file, of parts that the model does not have; in the model, of tensors
            that were asked to stay as they are.
        missing: names in the model that the file has nothing for.
        unexpected: names in the file that the model has nothing for.
        unfit: (our name, shape in the file, shape in the model), where no resizing helps: not loaded.
        broken: our names of tensors that hold NaN or infinity: not loaded.
        notes: sentences on what the model does otherwise than where the file came from.
        next_step: what to write in Python to have the model of a file that `convert` wrote.
    """

    model: str
    layout: str
    prefix: str = ""
    key: str = ""
    others: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    renamed: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    resized: list[Resized] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    unfit: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next_step: str = ""

    @property
    def exact(self) -> bool:
        """Whether the model has all it needs, and the file no more than that."""
        return not (self.missing or self.unexpected or self.unfit or self.broken)

    @property
    def behind(self) -> str:
        """The prefix, as part of a sentence."""
        return f" behind {self.prefix!r}" if self.prefix else ""

    def faults(self) -> str:
        """What is not exact, as part of a sentence."""
        shapes = [f"{name} {list(old)} for {list(new)}" for name, old, new in self.unfit]
        lists = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": shapes,
            "with NaN or infinity": self.broken,
        }
        return "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in lists.items() if names)

    def leave_out(self, unfit: list[tuple[str, tuple[int, ...], tuple[int, ...]]], broken: list[str]) -> None:
        """Count these among `unfit` and `broken`, and no longer among what was loaded."""
        self.unfit, self.broken = unfit, broken
        gone = {name for name, *_ in unfit} | set(broken)
        self.kept = [name for name in self.kept if name not in gone]
        stays = [(tuple(name for name in ours if name not in gone), theirs) for ours, theirs in self.renamed]
        self.renamed = [(ours, theirs) for ours, theirs in stays if ours]
        self.resized = [line for line in self.resized if line.name not in gone]

    def __str__(self) -> str:
        chapters: dict[str, list[str]] = {
            "renamed": folded(f"{' + '.join(theirs)} → {' + '.join(ours)}" for ours, theirs in self.renamed),
            "resized": folded(f"{r.name}  {_sides(r.old)} → {_sides(r.new)}, {r.method}" for r in self.resized),
            "dropped, for the model does without": folded(self.dropped),
            "left alone": folded(self.left),
            "skipped, for it is no tensor": folded(self.skipped),
            "missing in the file": folded(self.missing),
            "unexpected in the file": folded(self.unexpected),
            "of another shape": folded(
                f"{n}  {_sides(old)} in the file, {_sides(new)} here" for n, old, new in self.unfit
            ),
            "with NaN or infinity": folded(self.broken),
        }
        lines = [f"{self.model} from the layout {self.layout!r}{self.behind}: {self._counts()}"]
        if self.others:
            read = f"{self.key!r} was read" if self.key else "The tensors beside them were read"
            others = ", ".join(option("top", key) for key in self.others)
            lines.append(f"  {read}; the file holds other weights too: {others}")
        for title, names in chapters.items():
            if names:
                lines += [f"  {title}", *(f"    {name}" for name in names)]
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def _counts(self) -> str:
        counts = {
            "kept": len(self.kept),
            "renamed": sum(len(ours) for ours, _ in self.renamed),
            "resized": len(self.resized),
            "dropped": len(self.dropped),
            "left alone": len(self.left),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "of another shape": len(self.unfit),
            "with NaN or infinity": len(self.broken),
        }
        return ", ".join(
            f"{count} {what}" for what, count in counts.items() if count or what in ("missing", "unexpected")
        )


def folded(lines: Iterable[str]) -> list[str]:
    """Lines that differ in numbers and last words of names alone as one: `layers.0-3.blocks.0-5.norm1.*  (24)`."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(_LAST.sub(".*", _NUMBER.sub("\0", line)), []).append(line)
    return [_together(text, members) for text, members in groups.items()]


def _together(text: str, lines: list[str]) -> str:
    if len(lines) == 1:
        return lines[0]
    words = {word for line in lines for word in _LAST.findall(line)}
    ranges = iter([_range(column) for column in zip(*map(_NUMBER.findall, lines), strict=True)])
    text = re.sub("\0", lambda _: next(ranges), text if len(words) > 1 else text.replace(".*", f".{''.join(words)}"))
    return f"{text}  ({len(lines)})"


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_LAST = re.compile(r"\.(weight|bias|running_mean|running_var|num_batches_tracked)(?= |$)")


def _range(numbers: Iterable[str]) -> str:
    found = sorted({int(number) for number in numbers})
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def _sides(sizes: tuple[int, ...]) -> str:
    return " × ".join(map(str, sizes)) or "one number"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
