"""What the commands share: options from declared flags, words turned into values, and errors into a sentence."""

from __future__ import annotations

import ast
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from locant import flags
from locant.flags import SWITCH, Flag

if TYPE_CHECKING:
    from locant.tasks.task import Doubt


def option(panel: str, text: str, *names: str, metavar: str = "") -> Any:
    """One option, under the heading `panel`."""
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


@contextmanager
def sentences(stopped: str) -> Iterator[None]:
    """What a user can run into, as one sentence and an exit code."""
    with suppress(ValueError):  # only the main thread hears signals
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        notes = getattr(stop, "__notes__", ())  # how to go on, from whoever was stopped
        _stop(
            "; ".join(("stopped", *notes)) if notes else stopped, 128 + (stop.args[0] if stop.args else signal.SIGINT)
        )
    except BrokenPipeError:  # the reader (head, less) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:  # a full disk, a folder that may not be written
        _stop(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    except ValueError as error:
        _stop(str(error), 2)


def _terminate(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _stop(sentence: str, code: int) -> NoReturn:
    print(f"locant: {' '.join(sentence.split())}", file=sys.stderr)
    raise typer.Exit(code) from None


def ask(doubt: Doubt) -> dict[str, Any]:
    """Which of the ways to take the data, asked on a terminal: the settings that say so. Elsewhere the doubt is raised.

    Under torchrun nobody is asked: every process would.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or "RANK" in os.environ:
        raise doubt
    print(f"locant: DATA can be taken in {len(doubt.readings)} ways: {doubt.what}.", file=sys.stderr)
    for number, reading in enumerate(doubt.readings, start=1):
        print(f"  {number}  {reading.words} ({reading.way})", file=sys.stderr)
    while True:
        print(f"Which is it? [1 to {len(doubt.readings)}] ", end="", file=sys.stderr, flush=True)
        said = sys.stdin.readline()
        if not said:
            raise doubt
        if said.strip() in map(str, range(1, len(doubt.readings) + 1)):
            break
    reading = doubt.readings[int(said) - 1]
    if not reading.settings:
        raise ValueError(f"{reading.words} can't be said by a flag: {reading.way}.")
    return dict(reading.settings)


def options_from(declared: tuple[Flag, ...]) -> Callable[[Callable[[dict[str, Any]], None]], Callable[..., None]]:
    """The command with these flags as its options: it gets their values, read, by name; None is not given."""

    def with_options(command: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
        def call(**given: Any) -> None:
            command({flag.name: _read(_option_of(flag), flag.value.read, given[flag.name]) for flag in declared})

        call.__signature__ = inspect.Signature([_parameter(flag) for flag in declared])  # type: ignore[attr-defined]
        call.__annotations__, call.__doc__ = {}, command.__doc__
        return call

    return with_options


def command_of(declared: tuple[Flag, ...]) -> type[TyperCommand]:
    """A command that says in a sentence what is missing where one of these flags comes without its value."""
    bare = {_option_of(flag): flag.bare for flag in declared if flag.bare}

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            for word, after in zip(args, [*args, "-"][1:], strict=True):
                if word in bare and after.startswith("-"):
                    _stop(bare[word], 2)
            return super().parse_args(ctx, args)

    return Command


def _option_of(flag: Flag) -> str:
    return "--" + flag.name.replace("_", "-")


def _parameter(flag: Flag) -> inspect.Parameter:
    """As typer reads it off a function."""
    word: Any = list[flag.value.word] if flag.value.many else flag.value.word  # type: ignore[name-defined]
    if flag.panel:
        about = option(flag.panel, flag.help, *(flag.options or (_option_of(flag),)), metavar=flag.metavar)
    else:
        about = typer.Argument(help=flag.help, metavar=flag.metavar, show_default=False)
    default: Any = inspect.Parameter.empty if flag.needed else False if flag.value is SWITCH else None
    kind = word if default is not None else word | None
    annotation: Any = Annotated[kind, about]  # type: ignore[valid-type]
    return inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _read(name: str, read: Callable[[Any], Any] | None, given: Any) -> Any:
    """The value of an option from its words; None stays None."""
    if given is None or read is None:
        return given
    try:
        return read(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=name) from None


def sides(name: str, given: str | None) -> int | tuple[int, ...] | None:
    """'4' is the number 4; '2x4' is rows and columns."""
    value: int | tuple[int, ...] | None = _read(name, flags.sides, given)
    return value


def pair(name: str, given: str | None) -> tuple[int, ...] | None:
    """'7' and '7x7' are both (7, 7)."""
    both = sides(name, given)
    return (both, both) if isinstance(both, int) else both


def assigned(given: list[str] | None) -> dict[str, Any]:
    """['name=value', ...], the values as Python writes them: 3, 0.5, True, (7, 7), None; anything else is text."""
    values: dict[str, Any] = {}
    for one in given or ():
        name, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"needs NAME=VALUE; got {one!r}.", param_hint="--set")
        try:
            values[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name.strip()] = value
    return values
