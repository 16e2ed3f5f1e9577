"""What the commands share: options from declared flags, words turned into values, and errors into a sentence."""

from __future__ import annotations

import errno
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from locant.flags import OFFERED, Flag
from locant.values import LIST, SWITCH

if TYPE_CHECKING:
    from locant.tasks.task import Doubt


def option(panel: str, text: str, *names: str, metavar: str = "") -> Any:
    """One option, under the heading `panel`."""
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


ADVICE = {
    errno.EISDIR: "A file is needed there: name one.",
    errno.ENOTDIR: "A folder is needed on the way there: name another place.",
    errno.ENOENT: "Name one that is there.",
    errno.EACCES: "Name another place, or allow it there.",
    errno.EPERM: "Name another place, or allow it there.",
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.ENOSPC: "Make room there, or name another place.",
}
NO_MEMORY = re.compile("can't allocate memory|out of memory|size calculation overflowed|multiplication overflow")


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
        where = f": {error.filename}" if error.filename else ""
        _stop(
            f"{error.strerror or error}{where}. {ADVICE.get(error.errno or 0, 'Name another place.')}",
            2,
        )
    except (UnicodeEncodeError, UnicodeDecodeError) as error:  # ValueErrors in Python's words
        strange = error.object[error.start : error.end]
        _stop(f"names and text files have to be in UTF-8; {strange!r} is not. Rename it, or save it so.", 2)
    except ValueError as error:
        _stop(str(error), 2)
    except (MemoryError, RuntimeError) as error:  # torch has no class of its own for memory of a CPU
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        asked = re.search(r"allocate (\d+) bytes", str(error))
        much = f"{int(asked[1]):,} bytes" if asked else "what was asked for"
        _stop(
            f"this needs more memory than there is: {much} could not be had. Ask for less at once.",
            2,
        )


def writable(path: Path) -> Path:
    """The file, which can be written: asked before the work, not after it. Raises OSError."""
    new = not path.exists()
    with path.open("ab"):
        pass
    if new:
        path.unlink()
    return path


def _terminate(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _stop(sentence: str, code: int) -> NoReturn:
    words = (word if len(word) <= 1000 else f"{word[:60]}..." for word in sentence.split())
    print("locant:", *words, file=sys.stderr)
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
            command({flag.name: _read(flag, given[flag.name]) for flag in declared})

        call.__signature__ = inspect.Signature([_parameter(flag) for flag in declared])  # type: ignore[attr-defined]
        call.__annotations__, call.__doc__ = {}, command.__doc__
        return call

    return with_options


def command_of(declared: tuple[Flag, ...] = ()) -> type[TyperCommand]:
    """A command with these flags, whose refusals are sentences."""
    bare = {_option_of(flag): flag.bare for flag in declared if flag.bare}

    class Command(TyperCommand):
        def make_context(self, *given: Any, **more: Any) -> Any:
            with _slips(self):
                return super().make_context(*given, **more)

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            options = {name: parameter for parameter in self.params for name in parameter.opts if name[0] == "-"}
            for word, after in zip(args, [*args, ""][1:], strict=True):
                if word in bare and (not after or after.startswith("-")):
                    _stop(bare[word], 2)
                if after in options and word in options and not getattr(options[word], "is_flag", False):
                    _stop(
                        f"{word} needs its value; {after} came. `locant {self.name} --help` says how it is written.", 2
                    )
            return super().parse_args(ctx, args)

    return Command


class Commands(TyperGroup):
    """All commands; a name that is none of them is refused in a sentence."""

    def make_context(self, *given: Any, **more: Any) -> Any:
        with _slips(self):
            return super().make_context(*given, **more)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            known, near = ", ".join(self.commands), suggestion(args[0], self.commands)
            _stop(f"locant has the commands {known}; {args[0]!r} came.{near} `locant --help` says what each does.", 2)
        return super().resolve_command(ctx, args)


@contextmanager
def _slips(command: Any) -> Iterator[None]:
    """What typer refuses, in our words. Its errors have moved between its versions, and kept their names."""
    name = "locant" if isinstance(command, TyperGroup) else f"locant {command.name}"
    example = f" {command.epilog.rstrip('.')}." if command.epilog else ""
    try:
        yield
    except Exception as error:
        slip: Any = error
        match type(error).__name__:
            case "NoSuchOption":
                near = suggestion(slip.option_name, [option for p in command.params for option in p.opts])
                _stop(f"{name} has no option {slip.option_name}.{near} `{name} --help` lists all.", 2)
            case "BadOptionUsage":
                said = "takes no value; one came" if "not take" in slip.message else "needs its value; it did not come"
                _stop(f"{slip.option_name} {said}. `{name} --help` says how it is written.{example}", 2)
            case "MissingParameter":
                given = slip.param
                what = given.metavar if given.param_type_name == "argument" else given.opts[0]
                about = given.help.rstrip(".")
                _stop(f"{name} needs {what}; it did not come ({about[:1].lower()}{about[1:]}).{example}", 2)
            case "UsageError":
                takes = " ".join(p.metavar for p in command.params if p.param_type_name == "argument")
                said = re.sub(r"^Got unexpected extra argument\(?s?\)? \((.*)\)$", r"\1", slip.message)
                _stop(f"{name} takes {takes or 'options'} and no more words; {said} came.{example}", 2)
        raise


def suggestion(name: str, names: Iterable[str]) -> str:
    """' Did you mean ...?', where a name is near to one that is known."""
    near = get_close_matches(name, list(names), 1, 0.7)
    return f" Did you mean {near[0]}?" if near else ""


def _option_of(flag: Flag) -> str:
    return "--" + flag.name.replace("_", "-")


def _parameter(flag: Flag) -> inspect.Parameter:
    """As typer reads it off a function; numbers are words to it, which `_read` reads."""
    word: Any = str if flag.value.word in (int, float) else flag.value.word
    word = list[word] if flag.value.many else word
    if flag.panel:
        about = option(flag.panel, flag.help, *(flag.options or (_option_of(flag),)), metavar=flag.metavar)
    else:
        about = typer.Argument(help=flag.help, metavar=flag.metavar, show_default=False)
    if flag.name in OFFERED:
        about.autocompletion = lambda incomplete: completions(OFFERED[flag.name], incomplete)
    if flag.value is LIST:
        about.callback, about.is_eager = _list_models, True
    default: Any = inspect.Parameter.empty if flag.needed else False if flag.value in (SWITCH, LIST) else None
    kind = word if default is not None else word | None
    annotation: Any = Annotated[kind, about]  # type: ignore[valid-type]
    return inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def completions(words: Iterable[str], begun: str) -> list[str]:
    """What completion offers for a word that was begun; of several with commas between them, for the last."""
    kept, comma, last = begun.rpartition(",")
    return [kept + comma + word for word in words if word.startswith(last) and word not in kept.split(",")]


def _list_models(asked: bool) -> bool:
    if asked:
        from locant.registry import BUILDERS

        typer.echo("\n".join(sorted(BUILDERS, key=lambda name: (name[0].isupper(), name))))
        raise typer.Exit
    return asked


def _read(flag: Flag, given: Any) -> Any:
    """The value of an option from its words; None stays None."""
    if given is None or flag.value.read is None:
        return given
    try:
        return flag.value.read(given)
    except ValueError as error:
        name = _option_of(flag) if flag.panel else flag.metavar
        _stop(f"{name} {error} Write {name} {flag.value.example}.", 2)
