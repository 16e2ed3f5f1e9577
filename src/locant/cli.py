"""The command line: collects what was asked for, hands it on, prints what comes back.

What the options mean, their defaults and their checks live in `locant.compare` and `locant.bench`, which are imported
inside the commands: `--help` answers at once, without torch. Standard output carries the result and nothing else;
progress and errors go to standard error. Exit codes: 0 done, 1 a kernel gave wrong results (bench), 2 refused with one
sentence, 130 stopped by Ctrl-C, 143 by SIGTERM.
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
    from locant import bench
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

PROBLEM, WHO, MEASURE = "Problem", "Who may attend", "Measurement"
Cells = Annotated[str, _option(PROBLEM, "Where tokens are: 196, 14x14, 8x14x14.", "--grid", metavar="SIZES")]
ManyHeads = Annotated[int | None, _option(PROBLEM, "Heads of the queries; default 8.", "--heads", metavar="N")]
HeadDim = Annotated[int | None, _option(PROBLEM, "Channels of a head; default 64.", metavar="N")]
Samples = Annotated[int | None, _option(PROBLEM, "Default 1.", "--batch", metavar="N")]
Position = Annotated[str | None, _option(PROBLEM, "none, relative, alibi, rotary or gated.", metavar="NAME")]
KvHeads = Annotated[int | None, _option(PROBLEM, "Heads of keys and values, if fewer.", metavar="N")]
ValueDim = Annotated[int | None, _option(PROBLEM, "Channels of a value, if others.", metavar="N")]
Queries = Annotated[
    int | None, _option(PROBLEM, "Only the last N of the first axis: 1 is a cache's newest.", metavar="N")
]
Prefix = Annotated[int | None, _option(PROBLEM, "Class tokens before the grid.", metavar="N")]
Number = Annotated[str | None, _option(PROBLEM, "float32, float64, bfloat16 or float16.", "--dtype", metavar="NAME")]
Window = Annotated[str | None, _option(WHO, "Only inside windows: 7x7.", metavar="SIZES")]
Shift = Annotated[str | None, _option(WHO, "How far windows are moved: 3x3.", metavar="SIZES")]
Order = Annotated[str | None, _option(WHO, "none or causal.", "--mask", metavar="NAME")]
Train = Annotated[
    bool | None, _option(MEASURE, "Forward and backward alone, or forward alone; default both.", "--train/--forward")
]
Cores = Annotated[int | None, _option(MEASURE, "Threads of torch; default its own choice.", "--threads", metavar="N")]
Seconds = Annotated[float | None, _option(MEASURE, "For each of the two; default 5.", metavar="S")]
JsonFile = Annotated[
    str | None, _option(OUTPUT, "File for all figures; - prints them alone.", "--json", metavar="PATH")
]
Terse = Annotated[bool, _option(OUTPUT, "Print only whether the plan picked the fastest.", "--quiet", "-q")]


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
    with _sentences("stopped; go on with --resume"):
        from locant import compare

        with redirect_stdout(sys.stderr):
            result = compare.run(data, **given)
        if os.environ.get("RANK", "0") == "0":  # torchrun starts this command once per process; one of them speaks
            _show(result, json=json, quiet=quiet)


@app.command("bench", epilog="Example: `locant bench --grid 14x14 --heads 12 --head-dim 64 --position relative`")
def _bench(
    grid: Cells,
    heads: ManyHeads = None,
    head_dim: HeadDim = None,
    batch: Samples = None,
    position: Position = None,
    kv_heads: KvHeads = None,
    value_dim: ValueDim = None,
    queries: Queries = None,
    prefix: Prefix = None,
    dtype: Number = None,
    window: Window = None,
    shift: Shift = None,
    mask: Order = None,
    train: Train = None,
    threads: Cores = None,
    seconds: Seconds = None,
    json: JsonFile = None,
    quiet: Terse = False,
) -> None:
    """Which kernel is the fastest on my problem, here?

    Runs the plan's choice and every other kernel that can, in turn, and says whether the plan picked the fastest. Each
    is compared with the definition first: a kernel whose results are wrong gets no speed, and the exit code is 1.
    """
    with _sentences("stopped"):
        from locant import bench

        def tell(sentence: str) -> None:
            print(sentence, file=sys.stderr)

        result = bench.run(
            grid=grid, heads=heads, head_dim=head_dim, batch=batch, position=position, kv_heads=kv_heads,
            value_dim=value_dim, queries=queries, prefix=prefix, dtype=dtype, window=window, shift=shift, mask=mask,
            train=train, threads=threads, seconds=seconds, tell=None if quiet else tell,
        )  # fmt: skip
        if json not in (None, "-"):
            Path(str(json)).write_text(result.json() + "\n", encoding="utf-8")
        _show_bench(result, alone=json == "-", quiet=quiet)
    if result.red:
        raise typer.Exit(1)


def _show_bench(result: bench.Result, *, alone: bool, quiet: bool) -> None:
    if alone:
        print(result.json())
    elif quiet:
        print(*result.verdicts(), sep="\n")
    else:
        from rich.console import Console

        print(result.settings.said())
        Console().print(result.table())
        print(*result.sentences(), sep="\n")
    sys.stdout.flush()


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
def _sentences(stopped: str) -> Iterator[None]:
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
