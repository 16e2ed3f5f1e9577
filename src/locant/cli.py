"""The command line: collects what was asked for, hands it on, prints what comes back.

What the options mean, their defaults and their checks live in `locant.compare`, which is imported inside the
command: `--help` answers at once, without torch. Standard output carries the result and nothing else; progress and
errors go to standard error. Exit codes: 0 done, 2 refused with one sentence, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from locant import __version__

if TYPE_CHECKING:
    from locant.compare import Result

Value = TypeVar("Value", int, float, str)

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback, without the values of local variables
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _option(panel: str, text: str, *names: str, metavar: str = "") -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


WHAT, TRAINING, MODEL, RUN, OUTPUT = "What is compared", "Training", "Model", "Run", "Output"

DATA_HELP = (
    "Your data: a folder of class folders of images or clips (under train, val and test folders, if you have them), "
    "or an .npz with x and y. Without it: handwritten digits, as images and as clips."
)
Data = Annotated[Path | None, typer.Argument(help=DATA_HELP, metavar="DATA", show_default=False)]
Tasks = Annotated[
    list[str] | None, _option(WHAT, "images,clips,sequences: one or more. With DATA: guessed.", metavar="NAMES")
]
Positions = Annotated[str | None, _option(WHAT, "Schemes, such as none,relative,rotary.", metavar="NAMES")]
Seeds = Annotated[str | None, _option(WHAT, "How many (3 is 0, 1 and 2), or which: 3,7,11.", metavar="SEEDS")]
Epochs = Annotated[int | None, _option(TRAINING, "Passes over the training data.", metavar="N")]
Rates = Annotated[
    str | None, _option(TRAINING, "To choose from on validation data: 0.001,0.003.", "--lr", metavar="RATES")
]
Batch = Annotated[int | None, _option(TRAINING, "Examples per step, over all processes.", metavar="N")]
Dim = Annotated[int | None, _option(MODEL, "Channels.", metavar="N")]
Depth = Annotated[int | None, _option(MODEL, "Layers.", metavar="N")]
Heads = Annotated[int | None, _option(MODEL, "Attention heads.", metavar="N")]
Size = Annotated[str | None, _option(MODEL, "Side that pictures are brought to: 32, or 24x32.", metavar="SIZE")]
Patch = Annotated[str | None, _option(MODEL, "Side of a patch, which becomes one token: 4, or 2x4.", metavar="SIZE")]
Frames = Annotated[int | None, _option(MODEL, "Frames of a clip.", metavar="N")]
Device = Annotated[str | None, _option(RUN, "cpu, cuda, cuda:1, mps.", metavar="NAME")]
Threads = Annotated[
    int | None, _option(RUN, "Trials side by side on a CPU, one thread each; default all cores.", metavar="N")
]
Out = Annotated[Path | None, _option(RUN, "Folder for results, models and report.html.", metavar="FOLDER")]
Resume = Annotated[bool, _option(RUN, "Go on from the last step saved in --out.", "--resume")]
Quick = Annotated[bool, _option(RUN, "A first look: one seed, few schemes, no ranking.", "--quick")]
Strict = Annotated[bool, _option(RUN, "Refuse unreadable files instead of listing them.", "--strict")]
Config = Annotated[Path | None, _option(RUN, "TOML with these names; options given here win.", metavar="FILE")]
Json = Annotated[bool, _option(OUTPUT, "Print the results as JSON and nothing else.", "--json")]
Quiet = Annotated[bool, _option(OUTPUT, "Print the path of the report and nothing else.", "--quiet", "-q")]


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"locant {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _locant(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Print the version and stop."),
    ] = False,
) -> None:
    """Position-aware attention for sequences, images and video."""


@app.command("compare", epilog="Example: `locant compare photos --positions none,relative,rotary --seeds 5`")
def _compare(
    data: Data = None,
    task: Tasks = None,
    positions: Positions = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    lr: Rates = None,
    batch: Batch = None,
    dim: Dim = None,
    depth: Depth = None,
    heads: Heads = None,
    size: Size = None,
    patch: Patch = None,
    frames: Frames = None,
    device: Device = None,
    threads: Threads = None,
    out: Out = None,
    resume: Resume = False,
    quick: Quick = False,
    strict: Strict = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Which position scheme should my model use?

    Trains the same small transformer with each scheme, on your data or on handwritten digits, and writes a table
    and a report page: accuracy with its uncertainty, behaviour on sizes not trained for, cost, and pictures of what
    each scheme learned.

    Ctrl-C at any time: --resume goes on from there.
    """
    given: dict[str, Any] = {
        "task": _listed("--task", task, str),
        "positions": _listed("--positions", positions, str),
        "seeds": _one_or_more("--seeds", seeds),
        "epochs": epochs,
        "lr": _listed("--lr", lr, float),
        "batch": batch,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "size": _sides("--size", size),
        "patch": _sides("--patch", patch),
        "frames": frames,
        "device": device,
        "threads": threads,
        "out": out,
        "resume": resume,
        "quick": quick,
        "strict": strict,
        "config": config,
        "quiet": quiet or json,
    }
    with _sentences():
        from locant import compare

        with redirect_stdout(sys.stderr):
            result = compare.run(data, **given)
        if os.environ.get("RANK", "0") == "0":  # torchrun starts this command once per process; one of them speaks
            _show(result, json=json, quiet=quiet)


def _show(result: Result, *, json: bool, quiet: bool) -> None:
    if json:
        print(result.json())
    elif quiet:
        print(result.report)
    else:
        from rich.console import Console

        Console().print(result.table())
        print(f"\nReport: {result.report}")
    sys.stdout.flush()  # here, where a closed pipe is still caught


@contextmanager
def _sentences() -> Iterator[None]:
    """What a user can run into, as one sentence and an exit code."""
    with suppress(ValueError):  # only the main thread hears signals
        signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    except KeyboardInterrupt as stop:
        _stop("stopped; go on with --resume", 128 + (stop.args[0] if stop.args else signal.SIGINT))
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


def _listed(option: str, given: str | list[str] | None, kind: Callable[[str], Value]) -> tuple[Value, ...] | None:
    """'a,b' or ['a', 'b,c'] as a tuple."""
    if given is None:
        return None
    words = [word.strip() for word in (given if isinstance(given, str) else ",".join(given)).split(",")]
    try:
        found = tuple(kind(word) for word in words if word)
    except ValueError:
        raise typer.BadParameter(f"needs numbers with commas between them; got {given!r}.", param_hint=option) from None
    if not found:
        raise typer.BadParameter("needs at least one; got none.", param_hint=option)
    return found


def _one_or_more(option: str, given: str | None) -> int | tuple[int, ...] | None:
    """'3' is the number 3; '3,' and '3,7' are tuples."""
    found = _listed(option, given, int)
    if found is None or given is None or "," in given or len(found) > 1:
        return found
    return found[0]


def _sides(option: str, given: str | None) -> int | tuple[int, ...] | None:
    """'4' is the number 4; '2x4' is rows and columns."""
    return _one_or_more(option, None if given is None else given.replace("x", ","))


def main() -> None:
    """The entry point of the `locant` command."""
    app()
