"""Whose names a file has, and what they begin with: found from the names alone.

A file is read by the one layout that has a place for every name in it. Where there is none, a model that holds ours may
have written it: Lightning puts `model.` before the names of its network, detectors `backbone.`, DistributedDataParallel
`module.`. Then it is the one prefix behind which a layout has a place for every name, and names without it belong to
parts that our model does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from locant.checkpoints.names import Layout, Matched, fits, matched
from locant.checkpoints.wording import option

DEPTH = 4  # words of a prefix: module.model.backbone.net.


@dataclass(frozen=True)
class Reading:
    """One way to read the names of a file.

    layout: whose names they are.
    prefix: what they begin with.
    state: the tensors of names that have it, by the rest of their names.
    others: the names without it.
    found: what the layout makes of the names.
    """

    layout: Layout
    prefix: str
    state: dict[str, Tensor]
    others: tuple[str, ...]
    found: Matched

    @property
    def covered(self) -> int:
        """How many of the model's tensors are there."""
        return sum(len(ours) for _, _, ours in self.found.pairs)

    @property
    def strange(self) -> int:
        """How many names the model has nothing for."""
        return len(self.found.unknown) + len(self.found.absent)

    @property
    def clean(self) -> bool:
        """Whether the layout has a place for every name, and the model a tensor for most."""
        return self.covered > len(self.found.absent) and not self.found.unknown

    @property
    def sources(self) -> frozenset[str]:
        """The names in the file of what would be loaded."""
        return frozenset(self.prefix + key for _, keys, _ in self.found.pairs for key in keys)

    @property
    def pairing(self) -> frozenset[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Which of our names are made of which in the file."""
        return frozenset((ours, tuple(self.prefix + key for key in keys)) for _, keys, ours in self.found.pairs)


def read_names(
    theirs: Mapping[str, Tensor],
    layouts: Sequence[Layout],
    ours: Iterable[str],
    model: str,
    *,
    prefix: str | None = None,
    fresh: Sequence[str] = (),
    strict: bool = True,
) -> Reading:
    """The one way to read a file's names as those of a model.

    Args:
        theirs: the file's tensors by their names.
        layouts: that may be meant.
        ours: the names in our model.
        model: its class, for errors.
        prefix: what the names begin with; None finds out.
        fresh: patterns of our names that the file need not have.
        strict: whether the layout must have a place for every name behind the prefix.

    Raises:
        ValueError: if there is no such way, or there are two that differ.
    """
    names = tuple(ours)
    # 1. As the names are, or behind the prefix that was said: among layouts the one by which most of ours are there.
    plain = _readings(theirs, layouts, names, prefix or "")
    if prefix and not plain[0].state:
        raise ValueError(
            f"names that begin with {option('prefix', prefix)} were needed; got {', '.join(list(theirs)[:3])} and no "
            "such name. Correct it, or leave it out to have it found."
        )
    best = _cleanest(plain)
    if best:
        return _only(best, model)
    # 2. Behind any other prefix, if it holds at least half of what the model needs.
    readings = list(plain)
    if prefix is None:
        readings += [one for start in _prefixes(theirs) for one in _readings(theirs, layouts, names, start)]
    needed = {one.layout: sum(not fits(name, (*fresh, *one.layout.fresh)) for name in names) for one in plain}
    best = _cleanest([one for one in readings if 2 * one.covered >= needed[one.layout]])
    if best:
        _check_rivals(best[0], readings, model)
        return _only(best, model)
    # 3. Of those that have names too many: the only layout there is, or the closest where not all need fit.
    closest = min(readings, key=lambda one: (-one.covered, one.strange, len(one.prefix)))
    if len(layouts) == 1 or (not strict and 2 * closest.covered >= needed[closest.layout]):
        _check_rivals(closest, readings, model)
        return closest
    raise _nothing(
        theirs, layouts, names, model, max(plain, key=lambda one: one.covered - len(one.found.unknown)), closest
    )


def _readings(
    theirs: Mapping[str, Tensor], layouts: Sequence[Layout], names: tuple[str, ...], prefix: str
) -> list[Reading]:
    state = {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}
    others = tuple(name for name in theirs if not name.startswith(prefix))
    return [Reading(layout, prefix, state, others, matched(state, layout, names)) for layout in layouts]


def _prefixes(theirs: Iterable[str]) -> list[str]:
    """Whatever names begin with, up to a dot; shorter ones first."""
    words = [name.split(".") for name in theirs]
    found = {".".join(parts[:n]) + "." for parts in words for n in range(1, min(DEPTH, len(parts) - 1) + 1)}
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def _cleanest(readings: Sequence[Reading]) -> list[Reading]:
    """Those by which most of our tensors are there, if they have a place for every name; of the shortest prefix."""
    most = max((one.covered for one in readings), default=0)
    found = [one for one in readings if one.covered == most and one.clean]
    return [one for one in found if one.prefix == found[0].prefix]


def _only(readings: Sequence[Reading], model: str) -> Reading:
    if len({one.pairing for one in readings}) > 1:
        raise ValueError(
            f"a checkpoint of a {model} needs names that say which layout it has; got names that "
            f"{' and '.join(repr(one.layout.name) for one in readings)} read differently. Say which with "
            f"{option('layout')}."
        )
    return readings[0]


def _check_rivals(best: Reading, readings: Iterable[Reading], model: str) -> None:
    """Refuse to choose between two sets of weights in one file, such as those of a teacher and a student."""
    sources = best.sources
    rivals = [one for one in readings if 2 * one.covered >= best.covered > 0 and not one.sources & sources]
    if rivals:
        starts = dict.fromkeys(one.prefix for one in (best, max(rivals, key=lambda one: one.covered)))
        raise ValueError(
            f"a checkpoint of one {model} was needed; got a file with several, whose names begin with "
            f"{' and '.join(map(repr, starts))}. Say which with {option('prefix')}."
        )


def _nothing(
    theirs: Mapping[str, Tensor],
    layouts: Sequence[Layout],
    names: tuple[str, ...],
    model: str,
    most: Reading,
    closest: Reading,
) -> ValueError:
    most = closest if closest.covered > most.covered else most
    known = ", ".join(dict.fromkeys(repr(one.name) for one in layouts))
    behind = f" behind {most.prefix!r}" if most.prefix else ""
    lacking = ", ".join([*most.found.unknown, *most.found.absent][:3]) or "the others"
    return ValueError(
        f"a checkpoint of a {model} needs names of one of its layouts, {known}; got {len(theirs)} names, most like "
        f"{most.layout.name!r}{behind}, by which {most.covered} of the model's {len(names)} are there, and which has "
        f"none for {lacking}. Check that it is this model's, or name its {option('layout')}, and {option('strict')} to "
        "load what fits."
    )
