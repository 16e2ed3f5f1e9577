"""The problem that is measured, in the user's words, and how long to measure it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from locant import flags
from locant.grid import Grid
from locant.masks import Causal, Mask, Windows
from locant.measuring import machine
from locant.measuring.workload import Workload
from locant.positions.gate import GatedPosition
from locant.positions.position import Position
from locant.positions.rotary import Rotary
from locant.positions.slopes import ALiBi
from locant.positions.table import RelativeTable
from locant.problem import BYTES

Sides = str | int | tuple[int, ...]
EMBEDDINGS = ("learned", "sinusoid", "masked-sine")
STD = 0.5  # of a table: wide enough for a wrong entry to show


@dataclass(frozen=True)
class Settings:
    """`window` and `shift` are empty without windows; `queries` None means all; `train` None means both."""

    grid: tuple[int, ...]
    heads: int = 8
    head_dim: int = 64
    batch: int = 1
    position: str = "none"
    kv_heads: int | None = None
    value_dim: int | None = None
    queries: int | None = None
    prefix: int = 0
    window: tuple[int, ...] = ()
    shift: tuple[int, ...] = ()
    mask: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    train: bool | None = None
    threads: int = 1
    seconds: float = 5.0

    @property
    def modes(self) -> tuple[str, ...]:
        return {None: ("forward", "train"), False: ("forward",), True: ("train",)}[self.train]

    def workload(self) -> Workload:
        """Its tensors, the same on every run. Raises ValueError where `locant.attention` would."""
        torch.manual_seed(0)
        keys = Grid(*self.grid, prefix=self.prefix)
        grid = keys if self.queries is None else keys[self.grid[0] - self.queries :]
        dtype = getattr(torch, self.dtype)
        position = POSITIONS[self.position](self)
        work = Workload.draw(
            self.batch, self.heads, self.head_dim, grid, key_grid=keys, kv_heads=self.kv_heads,
            value_dim=self.value_dim, position=None if position is None else position.to(dtype), mask=self.mask_value(),
            dtype=dtype,
        ).to(self.device)  # fmt: skip
        work.plan(train=True)  # checks that all of it fits together
        return work

    def mask_value(self) -> Mask | None:
        """Who may attend."""
        masks: list[Mask] = [Windows(self.window, self.shift or None)] if self.window else []
        masks += [Causal()] if self.mask == "causal" else []
        return None if not masks else masks[0] if len(masks) == 1 else masks[0] & masks[1]

    def sentence(self) -> str:
        """The problem as a sentence."""
        cells = " × ".join(map(str, self.grid))
        parts = [f"{cells} tokens" + (f" and {self.prefix} before them" if self.prefix else "")]
        parts += [f"the last {self.queries} as queries"] if self.queries is not None else []
        of = f" of {self.head_dim}" + (f", values of {self.value_dim}" if self.value_dim is not None else "")
        parts += [f"{self.heads} heads{of}" + (f" over {self.kv_heads}" if self.kv_heads is not None else "")]
        parts += [f"batch {self.batch}", "no position" if self.position == "none" else self.position]
        if self.window:
            shifted = f" shifted by {' × '.join(map(str, self.shift))}" if any(self.shift) else ""
            parts += [f"windows of {' × '.join(map(str, self.window))}{shifted}"]
        parts += ["causal"] if self.mask == "causal" else []
        where = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else self.device
        return ", ".join([*parts, self.dtype, where])

    def flags(self) -> dict[str, Any]:
        return asdict(self)


def _table(chosen: Settings) -> Position:
    """As far as the attention reaches: the window, or the grid."""
    sides = chosen.grid
    if chosen.window:
        sides = tuple(min(side, size) for side, size in zip(chosen.grid, chosen.window, strict=True))
    return RelativeTable(Grid(*sides, prefix=chosen.prefix), chosen.heads, init_std=STD)


POSITIONS: dict[str, Callable[[Settings], Position | None]] = {  # the names of `locant compare`
    "none": lambda chosen: None,
    "relative": _table,
    "alibi": lambda chosen: ALiBi(chosen.heads, distance="euclidean"),
    "rotary": lambda chosen: Rotary(chosen.head_dim, axes=len(chosen.grid)),
    "gated": lambda chosen: GatedPosition(chosen.heads, axes=len(chosen.grid)),
}


def resolve(given: dict[str, Any]) -> Settings:
    """Settings from what was given; None = not given.

    Raises:
        ValueError: a name that is not known, a number out of range, sizes that don't fit.
    """
    values = {name: value for name, value in given.items() if value is not None}
    values = {name: CHECKS[name](name, value) for name, value in values.items()}
    for name, known in (("position", tuple(POSITIONS)), ("mask", ("none", "causal")), ("dtype", tuple(BYTES))):
        if name in values and values[name] not in known:
            hint = ": it acts on tokens before attention, and costs attention nothing" * (values[name] in EMBEDDINGS)
            raise ValueError(
                f"{name} must be one of {', '.join(known)}; got {values[name]!r}{hint}. Name one of these."
            )
    chosen = Settings(**{"threads": torch.get_num_threads(), **values})
    machine.check_device(chosen.device)
    _check_fit(chosen)
    return chosen


def _check_fit(chosen: Settings) -> None:
    if len(chosen.grid) not in (1, 2, 3):
        raise ValueError(f"grid needs one to three sizes; got {chosen.grid}. Write --grid 196, 14x14 or 8x14x14.")
    if chosen.shift and not chosen.window:
        raise ValueError(f"shift needs a window to shift; got shift={chosen.shift} alone. Add --window 7x7.")
    for name, given in (("window", chosen.window), ("shift", chosen.shift)):
        if given and len(given) != len(chosen.grid):
            raise ValueError(
                f"{name} needs as many sizes as the grid, {len(chosen.grid)}; got {given}. "
                f"Write --{name} {'x'.join(['7'] * len(chosen.grid))}."
            )
    if chosen.queries is not None and chosen.queries > chosen.grid[0]:
        raise ValueError(
            f"queries counts along the grid's first axis, at most {chosen.grid[0]}; got {chosen.queries}. "
            "Write --queries 1 for the newest token of a cache."
        )


def sides(name: str, value: Sides) -> tuple[int, ...]:
    """'14x14', 196 or (14, 14)."""
    words = value.split("x") if isinstance(value, str) else (value,) if isinstance(value, int) else value
    least = 0 if name == "shift" else 1
    try:
        sizes = tuple(int(word) for word in words)
    except (TypeError, ValueError):
        sizes = ()
    if not sizes or any(n < least for n in sizes):
        raise ValueError(
            f"{name} needs whole numbers of at least {least} with x between them; got {value!r}. "
            f"Write --{name} {'3x3' if name == 'shift' else '14x14'}, for example."
        )
    return sizes


def _count(name: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        flag = name.replace("_", "-")
        raise ValueError(f"{name} needs a whole number of at least {least}; got {value!r}. Write --{flag} {least + 1}.")
    return value


def _whole(name: str, value: Any) -> int:
    return _count(name, value, 0)


def _seconds(name: str, value: Any) -> float:
    if not 0 < value < 86_400:
        raise ValueError(f"{name} needs a time above 0; got {value}. Write --{name} 5, for example.")
    return float(value)


def _unchecked(name: str, value: Any) -> Any:
    return value


BY_VALUE: dict[flags.Value, Callable[[str, Any], Any]] = {
    flags.SIZES: sides, flags.COUNT: _count, flags.THREADS: _count, flags.WHOLE: _whole, flags.SECONDS: _seconds,
}  # fmt: skip
CHECKS = {  # of every flag but those of the output
    flag.name: BY_VALUE.get(flag.value, _unchecked) for flag in flags.BENCH if flag.panel != flags.OUTPUT
}
