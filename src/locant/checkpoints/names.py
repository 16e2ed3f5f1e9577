"""Names of one library's checkpoint for those of another, as data that is read in both directions.

A family of models has one file of data beside this one (`swin.py`, `convit.py`, ...) with `LAYOUTS`, a tuple with one
`Layout` per library and generation of names; `locant.registry` says which model is of which family. A layout is
a list of rules, and a rule pairs our name with theirs:

    from locant.checkpoints.names import Layout, Rule
    from locant.checkpoints.turns import TABLE

    LAYOUTS = (
        Layout(
            "timm",
            rules=(
                Rule("patch_embed.proj.*", "patch_embed.proj.*"),
                Rule("layers.{}.blocks.{}.attention.qkv.*", "layers.{}.blocks.{}.attn.qkv.*"),
                Rule("layers.{}.blocks.{}.attention.position.table",
                     "layers.{}.blocks.{}.attn.relative_position_bias_table", TABLE),
                Rule("layers.{}.downsample.*", "layers.{i+1}.downsample.*"),
                Rule("head.*", "head.fc.*"),
            ),
            recomputed=("*.relative_position_index", "*.attn_mask"),
            top=("model", "state_dict"),
        ),
        ...
    )

Names of a rule are whole names. `{}` is a whole number i, as often as needed, in the same order on both sides; on
their side it may be counted otherwise: `{i+1}`, `{2i+1}`. A final `*` is the rest of a name, alike on both sides:
`weight`, `bias`, `running_mean`, or more. The first rule that fits a name is the one, so special cases come first.

`ours` and `theirs` may be several names. Then the turn makes the tensors of one side out of those of the other, in the
order of the names:

    Rule("blocks.{}.attention.qkv.*", ("layer.{}.query.*", "layer.{}.key.*", "layer.{}.value.*"), JOINED)
    Rule(("q.*", "k.*", "v.*"), "self_attn.in_proj_*", JOINED)                      # in_proj_weight, in_proj_bias

If ours has one `{}` more than theirs, which then is a single tensor for all layers, the turn gets (and gives) ours of
every layer, in their order: `Rule("layers.{}.attention.bias", "r_w_bias", SHARED)`, `Rule(..., "r_emb", STACKED)`.

The turns (TABLE, JOINED, ...) are in `turns.py`, and so is how to write another one.

`turned_in(state, layout, shapes)` reads a state dict of theirs, `turned_out(state, layout)` writes one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from locant.checkpoints.turns import SAME, Shape, Turn


class Rule:
    """Our name, or names, for theirs: patterns as the head of this file says.

    Args:
        ours: a pattern, or several.
        theirs: a pattern, or several.
        turn: how the tensors become one another; `SAME` for one name on either side.
    """

    def __init__(self, ours: str | tuple[str, ...], theirs: str | tuple[str, ...], turn: Turn = SAME) -> None:
        self.ours = tuple(_pattern(name) for name in ((ours,) if isinstance(ours, str) else ours))
        self.theirs = tuple(_pattern(name) for name in ((theirs,) if isinstance(theirs, str) else theirs))
        self.turn = turn
        self.gathers = len(self.ours[0].places) > len(self.theirs[0].places)
        assert turn is not SAME or len(self.ours) == len(self.theirs) == 1, f"{self} needs a turn"
        places = {len(p.places) for p in self.theirs} | {len(p.places) - self.gathers for p in self.ours}
        assert len(places) == 1, f"{self}: numbers do not pair up"
        assert not self.gathers or (len(self.ours), places) == (1, {0}), f"{self} gathers one name into one"
        assert len({p.rest for p in (*self.ours, *self.theirs)}) == 1, f"{self}: a final * on every name, or on none"

    def __repr__(self) -> str:
        return f"Rule({[p.text for p in self.ours]}, {[p.text for p in self.theirs]})"


class Buffer:
    """What their files hold and our models do without, made for a library that loads strictly.

    Args:
        ours: a pattern of the names of our modules that say what it is.
        theirs: of the names that it has there, with as many `{}`.
        make: (our module, the whole model, the numbers) → the tensor, or None for one that they do not have either.
    """

    def __init__(self, ours: str, theirs: str, make: Callable[[Any, Any, tuple[int, ...]], Tensor | None]) -> None:
        self.ours, self.theirs, self.make = _pattern(ours), _pattern(theirs), make
        assert len(self.ours.places) == len(self.theirs.places), f"{theirs}: numbers do not pair up"


@dataclass(frozen=True)
class Layout:
    """The names of one library's checkpoints.

    Args:
        name: as users say it: "official", "timm", "transformers", "torchvision", "mmaction"; an older generation of
            names has a name of its own, such as "transformers 4".
        rules: see the head of this file.
        recomputed: patterns (as of a shell: `*` anywhere) of what their files hold and ours recompute: indices, masks,
            tables of coordinates. Dropped.
        buffers: those of them without which the library's strict loading fails.
        elsewhere: patterns of what belongs to parts that our model does not have, such as a backbone. Left alone.
        fresh: patterns of our names that such files never hold, as another kind of model wrote them: these stay.
        prefix: what their names begin with in a file of the whole model, and in one of the bare part do not: "swin.".
            The rules are written with it; where no name of a file has it, names are read as if they had.
        top: keys under which a file holds its tensors, the most wanted first: "model", "state_dict".
        table_method, rows_method: by which method of `locant.resizing` their own loader resizes bias tables and
            position embeddings; what is used unless another one is asked for.
    """

    name: str
    rules: tuple[Rule, ...]
    recomputed: tuple[str, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    elsewhere: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    prefix: str = ""
    top: tuple[str, ...] = ("model", "state_dict")
    table_method: str = "bicubic"
    rows_method: str = "bicubic"


@dataclass
class Matched:
    """What a layout makes of the names in a file.

    pairs: (rule, their names, our names), for what the model has. The others are their names: `recomputed`,
    `elsewhere`, `unknown` (no rule fits), `absent` (a rule fits, but the model has no tensor of our names, which are
    given), and `incomplete`: some of those that one of ours is made of, each with those that are missing.
    """

    pairs: list[tuple[Rule, tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    incomplete: dict[str, tuple[str, ...]] = field(default_factory=dict)


def matched(keys: Iterable[str], layout: Layout, ours: Iterable[str]) -> Matched:
    """Which of `keys`, their names, are which of `ours`, the names in our model."""
    model, found, taken = list(ours), Matched(), set[str]()
    known = set(model)
    for (rule, numbers, rest), group in _grouped(list(keys), layout, found).items():
        names = _all_layers(rule, rest, model) if rule.gathers else tuple(p.name(numbers, rest) for p in rule.ours)
        if not names or not known.issuperset(names) or taken.intersection(names):
            found.elsewhere += [key for key in group.values() if fits(key, layout.elsewhere)]
            found.absent.update((key, names) for key in group.values() if not fits(key, layout.elsewhere))
        elif len(group) < len(rule.theirs):
            lacking = [p.name(numbers, rest) for i, p in enumerate(rule.theirs) if i not in group]
            found.incomplete.update(dict.fromkeys(group.values(), tuple(lacking)))
        else:
            taken.update(names)
            found.pairs.append((rule, tuple(group[i] for i in range(len(rule.theirs))), names))
    return found


Group = tuple[Rule, tuple[int, ...], str]


def _grouped(keys: list[str], layout: Layout, found: Matched) -> dict[Group, dict[int, str]]:
    """What belongs together: the names by rule, numbers and rest, and which of the rule's names each is."""
    groups: dict[Group, dict[int, str]] = {}
    bare = layout.prefix and not any(key.startswith(layout.prefix) for key in keys)
    for key in keys:
        hit = _hit((layout.prefix + key, key) if bare else (key,), layout)
        if fits(key, layout.recomputed):
            found.recomputed.append(key)
        elif hit is None:
            (found.elsewhere if fits(key, layout.elsewhere) else found.unknown).append(key)
        else:
            rule, position, numbers, rest = hit
            group = groups.setdefault((rule, numbers, rest), {})
            found.unknown.append(key) if position in group else group.setdefault(position, key)
    return groups


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of these patterns, as of a shell, fits a name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def turned_in(state: Mapping[str, Tensor], layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Their tensors as ours, by our names; `shapes` are those that the model has. What has no rule is left out."""
    found: dict[str, Tensor] = {}
    for rule, theirs, ours in matched(state, layout, shapes).pairs:
        try:
            parts = rule.turn.ours(tuple(state[key] for key in theirs), tuple(tuple(shapes[name]) for name in ours))
        except (RuntimeError, IndexError, TypeError) as error:
            sizes = ", ".join(f"{key} {list(state[key].shape)}" for key in theirs)
            raise ValueError(
                f"the layout {layout.name!r} needs {', '.join(theirs)} of shapes that make up "
                f"{', '.join(f'{name} {list(shapes[name])}' for name in ours)}; got {sizes}. "
                "Check that the file is of this model and complete."
            ) from error
        found.update(zip(ours, parts, strict=True))
    return found


def turned_out(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our tensors as theirs, by their names; what their code recomputes is not made.

    Raises:
        ValueError: for a name that the layout has no counterpart for.
    """
    groups: dict[tuple[Rule, tuple[int, ...], str], dict[tuple[int, ...], str]] = {}
    for name in state:
        hit = next(((r, i, *m) for r in layout.rules for i, p in enumerate(r.ours) if (m := p.match(name))), None)
        if hit is None:
            raise ValueError(
                f"the layout {layout.name!r} needs a counterpart for every tensor; got {name!r}, which it has none "
                "for. Save the model in Locant's own layout, or take that part out of `state`."
            )
        rule, position, numbers, rest = hit
        where = (() if rule.gathers else numbers, rest)
        groups.setdefault((rule, *where), {})[numbers if rule.gathers else (position,)] = name
    found: dict[str, Tensor] = {}
    for (rule, numbers, rest), group in groups.items():
        if not rule.gathers and len(group) < len(rule.ours):
            lacking = [p.name(numbers, rest) for i, p in enumerate(rule.ours) if (i,) not in group]
            raise ValueError(
                f"the layout {layout.name!r} needs {', '.join(lacking)} beside {', '.join(group.values())}; "
                "got a state without. Export a whole state dict."
            )
        parts = rule.turn.theirs(tuple(state[group[i]] for i in sorted(group)), len(rule.theirs))
        found.update(zip((p.name(numbers, rest) for p in rule.theirs), parts, strict=True))
    return found


def made(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """The buffers of a layout for a model, which may be on the meta device, by their names."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        for buffer in layout.buffers:
            hit = buffer.ours.match(name)
            tensor = None if hit is None else buffer.make(module, model, hit[0])
            if hit is not None and tensor is not None:
                found[buffer.theirs.name(hit[0], "")] = tensor
    return found


def _hit(names: tuple[str, ...], layout: Layout) -> tuple[Rule, int, tuple[int, ...], str] | None:
    """The first rule that fits one of these, which of the rule's names, the numbers and the rest."""
    for name in names:
        for rule in layout.rules:
            for position, pattern in enumerate(rule.theirs):
                found = pattern.match(name)
                if found is not None:
                    return (rule, position, *found)
    return None


def _all_layers(rule: Rule, rest: str, names: Iterable[str]) -> tuple[str, ...]:
    """Our names of every layer for a rule that gathers, in the order of their numbers."""
    hits = ((rule.ours[0].match(name), name) for name in names)
    return tuple(name for _, name in sorted((hit[0], name) for hit, name in hits if hit is not None and hit[1] == rest))


@dataclass(frozen=True)
class _Pattern:
    text: str
    regex: re.Pattern[str]
    places: tuple[tuple[int, int], ...]
    rest: bool

    def match(self, name: str) -> tuple[tuple[int, ...], str] | None:
        found = self.regex.fullmatch(name)
        if found is None:
            return None
        numbers = []
        for text, (factor, offset) in zip(found.groups(), self.places, strict=False):
            i, over = divmod(int(text) - offset, factor)
            if i < 0 or over:
                return None
            numbers.append(i)
        return tuple(numbers), found.group(len(self.places) + 1) if self.rest else ""

    def name(self, numbers: tuple[int, ...], rest: str) -> str:
        counted = iter(factor * i + offset for i, (factor, offset) in zip(numbers, self.places, strict=True))
        return _PLACE.sub(lambda _: str(next(counted)), self.text.removesuffix("*")) + rest


_PLACE = re.compile(r"\{(?:(\d*)i([+-]\d+)?)?\}")


@functools.cache
def _pattern(text: str) -> _Pattern:
    rest = text.endswith("*")
    words = text.removesuffix("*")
    places = tuple((int(m[1] or 1), int(m[2] or 0)) for m in _PLACE.finditer(words))
    literal = _PLACE.sub("\0", words).split("\0")
    plain = not set("*{}") & set("".join(literal))
    assert plain, f"{text!r}: {{}}, {{i+1}}, {{2i}} and one final *"
    return _Pattern(
        text, re.compile(r"(0|[1-9]\d{0,8})".join(map(re.escape, literal)) + (r"(.+)" if rest else "")), places, rest
    )
