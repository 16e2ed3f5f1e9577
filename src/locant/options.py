"""What the commands share: options with their help, words turned into values, and errors into a sentence."""

from __future__ import annotations

import ast
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import typer

Value = TypeVar("Value", int, float, str)


def option(panel: str, text: str, *names: str, metavar: str = "") -> Any:
    """One option, under the heading `panel`."""
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


@contextmanager
def sentences(stopped: str) -> Iterator[None]:
    """What a user can run into, as one sentence and an exit code."""
    with suppress(ValueError):  # only the main thread hears signals
        signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    except KeyboardInterrupt as stop:
        _stop(stopped, 128 + (stop.args[0] if stop.args else signal.SIGINT))
    except BrokenPipeError:  # the reader (head, less) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:  # a full disk, a folder that may not be written
        _stop(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    except ValueError as error:
        _stop(str(error), 2)


def _terminated(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _stop(sentence: str, code: int) -> NoReturn:
    print(f"locant: {' '.join(sentence.split())}", file=sys.stderr)
    raise typer.Exit(code) from None


def listed(name: str, given: str | list[str] | None, kind: Callable[[str], Value]) -> tuple[Value, ...] | None:
    """'a,b' or ['a', 'b,c'] as a tuple."""
    if given is None:
        return None
    words = [word.strip() for word in (given if isinstance(given, str) else ",".join(given)).split(",")]
    try:
        found = tuple(kind(word) for word in words if word)
    except ValueError:
        raise typer.BadParameter(f"needs numbers with commas between them; got {given!r}.", param_hint=name) from None
    if not found:
        raise typer.BadParameter("needs at least one; got none.", param_hint=name)
    return found


def one_or_more(name: str, given: str | None) -> int | tuple[int, ...] | None:
    """'3' is the number 3; '3,' and '3,7' are tuples."""
    found = listed(name, given, int)
    if found is None or given is None or "," in given or len(found) > 1:
        return found
    return found[0]


def sides(name: str, given: str | None) -> int | tuple[int, ...] | None:
    """'4' is the number 4; '2x4' is rows and columns."""
    return one_or_more(name, None if given is None else given.replace("x", ","))


def pair(name: str, given: str | None) -> tuple[int, ...] | None:
    """'7' and '7x7' are both (7, 7)."""
    found = sides(name, given)
    return (found, found) if isinstance(found, int) else found


def assigned(given: list[str] | None) -> dict[str, Any]:
    """['name=value', ...], the values as Python writes them: 3, 0.5, True, (7, 7), None; anything else is text."""
    found: dict[str, Any] = {}
    for one in given or ():
        name, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"needs NAME=VALUE; got {one!r}.", param_hint="--set")
        try:
            found[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name.strip()] = value
    return found
