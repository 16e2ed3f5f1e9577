"""What is compared, on what, for how long: flags over the config file over defaults that are fixed here.

Nothing is chosen by a clock, unless `minutes` asks for it: steps and sizes follow from `tasks/kinds.py` and the number
of examples.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from locant import flags
from locant.compare import sizes, source
from locant.compare.recommendation import PREFERENCES
from locant.compare.sizes import DESIGNS, SIZES
from locant.tasks.kind import AUGMENTED, Kind, Recipe
from locant.tasks.kinds import KINDS
from locant.tasks.task import Refusal, Task

# given anew, they are other data than a config file was written for
OF_DATA = {"data", "axes", "task", "size", "frames"}


@dataclass(frozen=True)
class Settings:
    """A whole run, resolved. `recipes` has one entry per task.

    `positions` are names for all tasks, or names by task; a task that has none takes its kind's. `fingerprints`, by
    task, are those of the data that the settings were written for.
    """

    task: tuple[str, ...]
    recipes: dict[str, Recipe]
    seeds: tuple[int, ...]
    positions: tuple[str, ...] | dict[str, tuple[str, ...]] | None = None
    data: str | None = None
    axes: str | None = None
    device: str = "cpu"
    threads: int = 1
    quick: bool = False
    strict: bool = False
    prefer: str = "reach"
    fingerprints: dict[str, str] | None = None
    sensitivity: bool = False
    minutes: float | None = None
    left: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)  # what the model's size is to say
    cut: bool = field(default=False, compare=False)  # whether the recipes' steps are cut to `minutes` already

    def asked(self, kind: str) -> tuple[str, ...] | None:
        """The schemes that were asked for on a task."""
        return self.positions.get(kind) if isinstance(self.positions, dict) else self.positions

    def flags(self) -> dict[str, Any]:
        """The settings under the names of the flags; what differs by task stands in a table of its own."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("recipes", "cut", "left")}
        return {**plain, **{kind: asdict(recipe) for kind, recipe in self.recipes.items()}}

    def own(self) -> tuple[str, ...]:
        """Every reference to Python of the user's own (`source`)."""
        named = [name for r in self.recipes.values() for name in (r.model, r.recipe, r.metric)]
        return tuple(dict.fromkeys(name for name in named if name is not None and name not in (*SIZES, *DESIGNS)))

    @property
    def lives_here(self) -> bool:
        """Whether some of it lives in this process alone, so that other processes can't train."""
        return any(source.is_live(name) for name in (self.data, *self.own()))

    def digests(self) -> dict[str, str]:
        """What the user's own Python and weights were, by hash: part of the run's identity."""
        files = {recipe.weights for recipe in self.recipes.values() if recipe.weights is not None}
        own = {name: source.digest(name) for name in self.own()}
        return own | {name: source.digest_of_files(Path(name)) for name in sorted(files)}

    @staticmethod
    def of_flags(flags: dict[str, Any]) -> Settings:
        """What `flags` gave, read back from JSON."""
        values = {name: _without_lists(value) for name, value in flags.items() if name not in KINDS}
        return Settings(**values, cut=True, recipes={kind: Recipe.of(flags[kind]) for kind in KINDS if kind in flags})


def resolve(given: dict[str, Any], config: str | Path | None) -> Settings:
    """Settings from the flags that were given (None = not given), the config file, and the defaults.

    Raises:
        Refusal: an unknown name in the config file, or a value out of range.
    """
    # 1 flags over the config file
    values = _read(config) if config is not None else {}
    tables = {kind: values.pop(kind) for kind in KINDS if kind in values}
    filed = {name: values.pop(name) for name in flags.RECIPE if name in values}
    called = {name: given[name] for name in flags.RECIPE if given.get(name) is not None}
    kept = {name: value for name, value in given.items() if name not in flags.RECIPE}
    values.update({name: value for name, value in kept.items() if value is not None and value is not False})
    usual = () if values.get("data") is not None else tuple(kind.name for kind in KINDS.values() if kind.usual)
    tasks = _texts("task", values.pop("task", usual), tuple(KINDS))
    if len(tasks) > 1 and values.get("data") is not None:
        raise Refusal(
            f"your own data are one task; --task names {', '.join(tasks)}. Name one, or none to have it guessed."
        )
    # 2 a recipe per task: flags over its table over what holds for all over its default
    quick = bool(values.pop("quick", False))
    device = _device(str(values.pop("device", "cpu")))
    recipes, left = {}, {}
    for kind in tasks or tuple(KINDS):
        start = KINDS[kind].quick if quick else KINDS[kind].recipe
        start = start if values.get("data") is None else replace(start, steps=None, patch=None)
        levels = (filed, tables.get(kind, {}), called)
        start = replace(start, model=sizes.usual(device, own_data=values.get("data") is not None))
        left[kind] = tuple(name for name in sizes.FITTED if not any(name in level for level in levels))
        recipes[kind] = _recipe(kind, start, levels, alone=len(tasks) == 1)
    # 3 the rest
    positions, minutes, marks = (values.pop(name, None) for name in ("positions", "minutes", "fingerprints"))
    seeds = read_seeds(values.pop("seeds", 1 if quick else flags.SEED_COUNT))
    sensitivity = values.pop("sensitivity", len(seeds) >= flags.SENSITIVE_FROM)
    return Settings(
        task=tasks,
        recipes=recipes,
        seeds=seeds,
        positions=_positions(positions),
        data=_data(values.pop("data", None)),
        axes=values.pop("axes", None),
        device=device,
        left=left,
        threads=_count("threads", values.pop("threads", os.cpu_count() or 1)),
        quick=quick,
        strict=bool(values.pop("strict", False)),
        sensitivity=bool(sensitivity if given.get("sensitivity") is None else given["sensitivity"]),
        minutes=None if minutes is None else _minutes(minutes),
        # a file with minutes and steps is one whose steps were cut: settings.toml gives the same steps again
        cut=given.get("minutes") is None and any("steps" in table for table in (filed, *tables.values())),
        prefer=_preference(values.pop("prefer", "reach")),
        fingerprints=None if OF_DATA & {name for name, value in given.items() if value is not None} else marks,
    )


def complete(chosen: Settings, tasks: dict[str, Task], schemes: dict[str, tuple[str, ...]]) -> Settings:
    """The settings with all that was decided by the data and by kinds: a run from these decides nothing anew.

    Args:
        chosen: what `resolve` gave.
        tasks: the tasks that were opened with it, by kind.
        schemes: the names of their schemes, by kind.
    """
    recipes = {
        kind: _of_data(chosen.recipes[kind], KINDS[kind], tuple(task.train.shape)) for kind, task in tasks.items()
    }
    marks = {kind: task.fingerprint for kind, task in tasks.items()}
    return replace(chosen, task=tuple(tasks), positions=dict(schemes), recipes=recipes, fingerprints=marks)


def _of_data(recipe: Recipe, kind: Kind, item: tuple[int, ...]) -> Recipe:
    """The recipe with the sizes of an example and its patch."""

    def one(values: tuple[int, ...]) -> int | tuple[int, ...]:
        return values[0] if len(set(values)) == 1 else values

    sizes = kind.sizes(item)
    frames = sizes[0] if kind.timed else None
    return replace(
        recipe, size=one(sizes[kind.timed :][-2:]), patch=one(kind.patch(item, recipe.patch)[-2:]), frames=frames
    )


def toml(settings: Settings) -> str:
    """The resolved settings as TOML, which `--config` reads again."""
    lines, tables = [], []
    for name, value in settings.flags().items():
        if isinstance(value, dict):
            rows = (f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in value.items() if v is not None)
            tables += ["", f"[{name}]", *rows]
        elif value is not None:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join([*lines, *tables, ""])


def _read(config: str | Path) -> dict[str, Any]:
    path = Path(config)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Refusal(
            f"--config needs a readable TOML file; {str(path)!r} is not: {error}. Write lines such as steps = 600."
        ) from None
    known = flags.KEPT | set(KINDS)
    strange = [name for name in values if name not in known | {"fingerprints"}]
    strange += [f"{k}.{n}" for k in KINDS for n in values.get(k, {}) if n not in flags.RECIPE]
    by_task = {name: values[name] for name in ("positions", "fingerprints") if isinstance(values.get(name), dict)}
    strange += [f"{name}.{kind}" for name, table in by_task.items() for kind in table if kind not in KINDS]
    if strange:
        raise Refusal(
            f"the config file may name {', '.join(sorted(known))}; {str(path)!r} names {', '.join(strange)}. "
            "Correct or remove that."
        )
    return values


def _recipe(kind: str, base: Recipe, levels: tuple[dict[str, Any], ...], alone: bool) -> Recipe:
    """The recipe of one task: later levels win. `alone`: it is the only task, so that all must fit it."""
    # 1 one budget, from the last level that names any
    values: dict[str, Any] = {}
    for level in levels:
        if {"steps", "epochs"} <= set(level):
            raise Refusal(
                f"a budget is --steps or --epochs; both came: {level['steps']} and {level['epochs']}. Leave one out."
            )
        if {"steps", "epochs"} & set(level):
            values = {**values, "steps": None, "epochs": None}
        values |= level
    budget = {name: values.pop(name) for name in ("steps", "epochs") if values.get(name, 0) is None}
    # 2 what differs from the default
    base = replace(base, **budget)
    recipe = replace(base, **{name: CHECKS[flags.RECIPE[name].value](name, value) for name, value in values.items()})
    if {"dim", "heads"} <= set(values):
        sizes.check(recipe)
    strange = set(recipe.augment or ()) - set(KINDS[kind].augments)
    if strange and alone:
        raise Refusal(
            f"augment for {kind} may name {', '.join(KINDS[kind].augments) or 'nothing'}; got {', '.join(strange)}. "
            "Leave --augment out, or write --augment none."
        )
    return (
        recipe if not strange else replace(recipe, augment=tuple(a for a in recipe.augment or () if a not in strange))
    )


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Refusal(
            f"{name} needs a whole number of at least 1; got {value!r}. "
            f"Write --{name.replace('_', '-')} 4, for example."
        )
    return value


def _rates(name: str, value: Any) -> tuple[float, ...]:
    rates = value if isinstance(value, (list, tuple)) else (value,)
    if not rates or any(not isinstance(r, (int, float)) or not 0 < r < 10 for r in rates):
        raise Refusal(f"{name} needs one or more rates between 0 and 10; got {rates}. Write --{name} 0.003,0.006.")
    return tuple(sorted({float(r) for r in rates}))


def _share(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
        raise Refusal(
            f"{name} needs a part of the training examples, above 0 and at most 1; got {value!r}. "
            f"Write --{name} 0.05 for 5 in 100."
        )
    return float(value)


def _ways(name: str, value: Any) -> tuple[str, ...]:
    """How training examples are varied; 'none' is not at all."""
    ways = _texts(name, value, ("none", *AUGMENTED))
    if "none" in ways and len(ways) > 1:
        raise Refusal(f"{name} needs none, or ways to vary examples; got both: {', '.join(ways)}. Leave one out.")
    return tuple(way for way in ways if way != "none")


def _minutes(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise Refusal(f"minutes needs a number above 0; got {value!r}. Write --minutes 10.")
    return float(value)


def _sides(name: str, value: Any) -> int | tuple[int, ...]:
    """One number for both sides, or rows and columns."""
    if not isinstance(value, (list, tuple)):
        return _count(name, value)
    if len(value) != 2:
        raise Refusal(f"{name} needs one side, or rows and columns; got {value}. Write --{name} 4 or --{name} 4x8.")
    return tuple(_count(name, side) for side in value)


def _data(value: Any) -> str | None:
    """A whole path, or the name of what was given from Python (`datasets.py`)."""
    if value is None or (isinstance(value, str) and source.is_live(value)):
        return value
    return os.path.abspath(value) if isinstance(value, (str, Path)) else source.keep("data", value)


def _autocast(name: str, value: Any) -> str:
    if value not in ("bfloat16", "off"):
        raise Refusal(f"{name} needs bfloat16 or off; got {value!r}. Leave it out for what the device has.")
    return str(value)


def _own(name: str, value: Any) -> str:
    """The reference of a function of the user's; for a model also a size of the built-in one, or a published design."""
    if name != "model":
        return source.reference(name, value, name)
    if isinstance(value, str) and value in (*SIZES, *DESIGNS):
        return value
    try:
        return source.reference(name, value, "build")
    except Refusal as refusal:
        if isinstance(value, str) and ".py" not in value:
            raise Refusal(
                f"--{name} needs {', '.join((*SIZES, *DESIGNS))}, or a builder of your own; got {value!r}. "
                f"Write --{name} my_vit.py:build."
            ) from None
        raise refusal


def _there(name: str, value: Any) -> str:
    """A file or folder, by its whole path: a run may go on from elsewhere."""
    if not isinstance(value, (str, Path)) or not Path(value).exists():
        raise Refusal(f"--{name} needs a file, or a folder with its parts; there is none at {value!r}. Check the path.")
    return str(Path(value).resolve())


def _choice(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise Refusal(f"{name} needs true or false; got {value!r}. Write {name} = true.")
    return value


CHECKS: dict[flags.Value, Callable[[str, Any], Any]] = {  # of what a recipe holds
    flags.COUNT: _count, flags.RATES: _rates, flags.PART: _share, flags.SIDES: _sides, flags.NAMES: _ways,
    flags.OWN: _own, flags.TEXT: _autocast, flags.FILE: _there, flags.CHOICE: _choice,
}  # fmt: skip


MOST_SEEDS = 1000


def read_seeds(value: Any, name: str = "seeds") -> tuple[int, ...]:
    """A count (3 = seeds 0, 1, 2) or the seeds themselves. Raises Refusal."""
    counted = isinstance(value, int)
    seeds = tuple(range(min(_count(name, value), MOST_SEEDS + 1))) if counted else tuple(value)
    if (
        not 0 < len(seeds) <= MOST_SEEDS
        or len(set(seeds)) < len(seeds)
        or any(not isinstance(s, int) or not 0 <= s < 2**31 for s in seeds)
    ):
        option = "--" + name.replace("_", "-")
        raise Refusal(
            f"{name} needs a count, or different whole numbers from 0 to 2³¹ - 1; got {value!r}. "
            f"Write {option} 3 or {option} 0,1,2; at most {MOST_SEEDS}."
        )
    return seeds


def _preference(value: Any) -> str:
    if value not in PREFERENCES:
        raise Refusal(f"prefer must be one of {', '.join(PREFERENCES)}; got {value!r}. Write --prefer reach.")
    return str(value)


def _positions(value: Any) -> tuple[str, ...] | dict[str, tuple[str, ...]] | None:
    """Names for all tasks, or a table of names by task."""
    if isinstance(value, dict):
        return {kind: _texts("positions", names, None) for kind, names in value.items()}
    return None if value is None else _texts("positions", value, None)


def _without_lists(value: Any) -> Any:
    """As it was before JSON, which knows no tuples."""
    if isinstance(value, dict):
        return {name: _without_lists(one) for name, one in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _texts(name: str, value: Any, known: tuple[str, ...] | None) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value)
    strange = [t for t in texts if not isinstance(t, str) or (known is not None and t not in known)]
    if strange:
        raise Refusal(f"{name} must be among {', '.join(known or ())}; got {strange}. Name one or more of these.")
    return tuple(dict.fromkeys(texts))


def _device(name: str) -> str:
    from locant.measuring import machine

    try:
        return machine.check_device(name)
    except ValueError as error:
        raise Refusal(str(error)) from None
