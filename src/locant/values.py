"""How words of the command line become values, and what else a flag can hold.

Readers raise a ValueError whose sentence goes on behind the flag's name: `needs a whole number; got 'x'.` Nothing here
imports torch or numpy: `--help` answers at once.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Number = TypeVar("Number", int, float, str)


def whole(given: str) -> int:
    """'4' is 4. Raises ValueError."""
    try:
        value = int(given)
    except ValueError:  # more than 4300 digits too
        raise ValueError(f"needs a whole number; got {given!r}.") from None
    if abs(value) >= 2**31:
        raise ValueError(f"needs a whole number below {2**31:,}; got {given}.")
    return value


def threads(given: str) -> int:
    """As `whole`; more than a thousand take down the process. Raises ValueError."""
    value = whole(given)
    if value > 1024:
        raise ValueError(f"needs at most 1024 threads; got {value}.")
    return value


def number(given: str) -> float:
    """'0.5' is 0.5. Raises ValueError."""
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"needs a number; got {given!r}.") from None


def split_words(given: str | list[str], kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """'a,b' or ['a', 'b,c'] as a tuple. Raises ValueError."""
    words = [word.strip() for word in (given if isinstance(given, str) else ",".join(given)).split(",")]
    try:
        values = tuple(kind(word) for word in words if word)
    except ValueError:
        raise ValueError(f"needs numbers with commas between them; got {given!r}.") from None
    if not values:
        raise ValueError("needs at least one; got none.")
    return values


def one_or_more(given: str) -> int | tuple[int, ...]:
    """'3' is the number 3; '3,' and '3,7' are tuples. Raises ValueError."""
    values = split_words(given, int)
    return values if "," in given or len(values) > 1 else values[0]


def sides(given: str) -> int | tuple[int, ...]:
    """'4' is the number 4; '2x4' is rows and columns. Raises ValueError."""
    words = given.replace(",", "x").split("x")
    try:
        values = tuple(int(word) for word in words)
    except ValueError:
        raise ValueError(f"needs whole numbers with x between them; got {given!r}.") from None
    if any(abs(value) >= 2**31 for value in values):
        raise ValueError(f"needs whole numbers below {2**31:,}; got {given}.")
    return values if len(values) > 1 else values[0]


def pair(given: str) -> tuple[int, ...]:
    """'7' and '7x7' are both (7, 7). Raises ValueError."""
    both = sides(given)
    return (both, both) if isinstance(both, int) else both


def place(given: Path) -> Path:
    """A file or a folder. Raises ValueError where blanks stand for it."""
    if not str(given).strip():
        raise ValueError(f"needs a file or a folder; got {str(given)!r}.")
    return given


def assigned(given: list[str]) -> dict[str, Any]:
    """['name=value', ...], the values as Python writes them: 3, 0.5, True, (7, 7), None; anything else is text."""
    values: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"needs NAME=VALUE; got {one!r}.")
        try:
            values[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name.strip()] = value
    return values


@dataclass(frozen=True)
class Value:
    """What a flag holds: the type of one word of the command line, how words are read further, and an example."""

    name: str
    word: Any  # a type
    read: Callable[[Any], Any] | None = None
    example: str = ""  # for the sentence where it can't be read
    many: bool = False  # the flag may be given again


TEXT = Value("text", str)
TEXTS = Value("texts", str, many=True)
PATH = Value("path", Path, place, "as it is called")
PATHS = Value(
    "paths", Path, lambda given: [place(one) for one in given], "as it is called", many=True
)  # a model's each
SWITCH = Value("switch", bool)
CHOICE = Value("choice", bool)  # a switch that may be left open
LIST = Value("list", bool)  # prints names and stops
COUNT = Value("count", int, whole, "8")  # at least 1
THREADS = Value("threads", int, threads, "2")  # at least 1
WHOLE = Value("whole", int, whole, "1")  # at least 0
PART = Value("part", float, number, "0.05")
SECONDS = Value("seconds", float, number, "5")
MINUTES = Value("minutes", float, number, "10")
NAMES = Value("names", str, lambda given: split_words(given, str), "one, or several with commas between them")
TASKS = Value("tasks", str, lambda given: split_words(given, str), "images,clips", many=True)
RATES = Value("rates", str, lambda given: split_words(given, float), "0.003,0.006")
SEEDS = Value("seeds", str, one_or_more, "5, or 3,7,11")
SIDES = Value("sides", str, sides, "48, or 24x32")
PAIR = Value("pair", str, pair, "7, or 8x16")
EACH_SIDES = Value("each model's sides", str, lambda given: [sides(word) for word in given], "384", many=True)
SETTINGS = Value("settings", str, assigned, "position=learned", many=True)
FILE = Value("file", str)  # that must be there
OWN = Value("own", str)  # a name that is known, or Python of the user's own
FOLDERS = Value("folders", tuple[Path, Path])
SIZES = Value("sizes", str)  # of as many axes as the grid has; `bench` reads them
