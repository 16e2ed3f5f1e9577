"""The command line: collects what was asked for, hands it on, prints what comes back.

The options are declared in `flags.py`, read by `values.py`, refused by `options.py`. What they mean and their
checks live in `locant.compare`, `.bench`, `.integrations`, `.explain` and `.checkpoints`, which are imported inside the
commands: `--help` answers at once, without torch. Standard output carries the result and nothing else; progress and
errors go to standard error. Exit codes: 0 done, 1 wrong results (bench, accelerate, export), 2 refused with one
sentence, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from locant import __version__, flags
from locant.flags import OUTPUT
from locant.options import Commands, ask, command_of, option, options_from, sentences, writable

if TYPE_CHECKING:
    from locant import bench
    from locant.compare import Result

app = typer.Typer(
    cls=Commands,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback, without the values of local variables
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


@app.command(
    "compare",
    cls=command_of(flags.COMPARE),
    epilog="Example: `locant compare photos --positions none,relative,rotary --seeds 5`",
)
@options_from(flags.COMPARE)
def _compare(given: dict[str, Any]) -> None:
    """Which position scheme should my model use?

    Trains the same small transformer with each scheme, on your data or on handwritten digits, and writes a table
    and a report page: accuracy with its uncertainty, behaviour on sizes not trained for, cost, and pictures of what
    each scheme learned.

    Ctrl-C at any time: what is printed then goes on from there.
    """
    json, quiet, both = given.pop("json"), given.pop("quiet"), given.pop("beside")
    with sentences("stopped; nothing was written"):
        from locant import compare
        from locant.tasks.task import Doubt

        if both is not None:
            _show_beside(both, given, json=json, quiet=quiet)
            return

        result = None
        while result is None:
            try:
                with redirect_stdout(sys.stderr):
                    result = compare.run(**given, quiet=quiet or json)
            except Doubt as doubt:  # nothing was written yet
                given.update(ask(doubt))
        if os.environ.get("RANK", "0") == "0":  # torchrun starts this command once per process; one of them speaks
            _show(result, json=json, quiet=quiet)


def _show_beside(both: tuple[Path, Path], given: dict[str, Any], *, json: bool, quiet: bool) -> None:
    from locant import compare

    others = [name for name, value in given.items() if value is not None and value is not False]
    if others:
        raise ValueError(
            f"--beside takes two folders, and nothing else but --json and --quiet; {', '.join(others)} came. "
            "Leave that out."
        )
    found = compare.lay_beside(*both)
    if json:
        print(found.json())
    elif quiet:
        print(*found.data["sentences"], sep="\n")
    else:
        from rich.console import Console

        Console().print(found.table())
    sys.stdout.flush()


@app.command(
    "bench",
    cls=command_of(flags.BENCH),
    epilog="Example: `locant bench --grid 14x14 --heads 12 --head-dim 64 --position relative`",
)
@options_from(flags.BENCH)
def _bench(given: dict[str, Any]) -> None:
    """Which kernel is the fastest on my problem, here?

    Runs the plan's choice and every other kernel that can, in turn, and says whether the plan picked the fastest. Each
    is compared with the definition first: a kernel whose results are wrong gets no speed, and the exit code is 1.
    """
    json, quiet, costs = given.pop("json"), given.pop("quiet"), given.pop("write_costs")
    with sentences("stopped"):
        _check_bench(given, costs=costs, json=json)
        file = None if json in (None, "-") else writable(Path(str(json)))
        from locant import bench

        def tell(sentence: str) -> None:
            print(sentence, file=sys.stderr)

        if costs:
            print(bench.write_costs(given["threads"], tell=None if quiet else tell))
            sys.stdout.flush()
            return
        result = bench.run(**given, tell=None if quiet else tell)
        if file is not None:
            file.write_text(result.json() + "\n", encoding="utf-8")
        _show_bench(result, alone=json == "-", quiet=quiet)
    if result.red:
        raise typer.Exit(1)


def _check_bench(given: dict[str, Any], *, costs: bool, json: str | None) -> None:
    said = [name for name, value in {**given, "json": json}.items() if value is not None and name != "threads"]
    if costs and said:
        flag = said[0].replace("_", "-")
        raise ValueError(
            f"--write-costs takes --threads and --quiet, and nothing else; --{flag} came. Leave it out, or leave "
            "--write-costs out to measure one problem."
        )
    if not costs and given["grid"] is None:
        raise ValueError(
            "bench needs --grid, where tokens are; none came. Write --grid 14x14, or --write-costs for this machine's "
            "constants."
        )


@app.command(
    "convert",
    cls=command_of(flags.CONVERT),
    epilog="Example: `locant convert in.pth out.safetensors --model swin_tiny --window 12`",
)
@options_from(flags.CONVERT)
def _convert(given: dict[str, Any]) -> None:
    """Published weights for a model at another size, or under another library's names.

    Renames, drops what is recomputed, resizes tables and embeddings, and prints what was done with which tensor. A
    file that does not fit the model in every tensor is refused; nothing is executed from it, and OUT is whole or not
    there.
    """
    del given["models"]
    quiet, given["strict"] = given.pop("quiet"), not given.pop("loose")
    given |= {"to": given["to"] or "locant", "settings": given["settings"] or {}, "fresh": given["fresh"] or ()}
    with sentences("stopped; nothing was written"):
        from locant import checkpoints
        from locant.checkpoints.wording import COMMAND, asked_by

        with asked_by(COMMAND):
            report = checkpoints.convert(**given)
            if not quiet:
                print(report)
                print(f"\nWritten: {given['target']}\nNext, in Python: {report.next_step}")
                sys.stdout.flush()


@app.command(
    "accelerate",
    cls=command_of(flags.ACCELERATE),
    epilog="Example: `locant accelerate timm:swin_tiny_patch4_window7_224 --batch 8`",
)
@options_from(flags.ACCELERATE)
def _accelerate(given: dict[str, Any]) -> None:
    """How much faster is the model that I have, and is it still the same?

    Builds the model, replaces its attention and its linear layers by Locant's kernels, compares the numbers with
    float64, and times it in turn with the library's own, torch.compile and runtimes that are installed.

    Exit code 1: the accelerated model gave wrong numbers.
    """
    json, quiet = given.pop("json"), given.pop("quiet")
    with sentences("stopped"):
        from locant.integrations import command

        def tell(sentence: str) -> None:
            print(sentence, file=sys.stderr)

        file = None if json in (None, "-") else writable(Path(str(json)))
        with redirect_stdout(sys.stderr):  # exporters print
            found = command.run(**given, tell=None if quiet else tell)
        if file is not None:
            file.write_text(found.json() + "\n", encoding="utf-8")
        print(found.json() if json == "-" else found.contest if quiet else found)
        sys.stdout.flush()
    if found.wrong:
        raise typer.Exit(1)


@app.command(
    "explain",
    cls=command_of(flags.EXPLAIN),
    epilog="Example: `locant explain timm:swin_tiny_patch4_window7_224 photo.jpg -o page.html`",
)
@options_from(flags.EXPLAIN)
def _explain(given: dict[str, Any]) -> None:
    """What does position do in my model?

    Reads every attention of the model exactly, from its weights alone or on your own picture, clip or text: says in
    words which heads are about position, and writes a page to look at them.
    """
    quiet, out, shown = given.pop("quiet"), given.pop("out"), given.pop("input")
    with sentences("stopped; nothing was written"):
        from locant import explain
        from locant.atomic import write_bytes

        path = writable(Path("explain.html") if out is None else out)
        with redirect_stdout(sys.stderr):
            second = shown if explain.names_a_model(shown) else None
            own, others = _of_each(given, models=1 if second is None else 2)
            found = explain.run(given["model"], None if second else shown, **own)
            if second is None:
                found.save(path)
            else:
                other = explain.run(second, **others)
                write_bytes(path, found.beside(other).encode("utf-8", "replace"))
        said = [found] if second is None else [found, other]
        print(path if quiet else "\n\n".join([*map(str, said), f"Page: {path}"]))
        sys.stdout.flush()


def _of_each(given: dict[str, Any], *, models: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the first model and of the second."""
    found: list[dict[str, Any]] = [{}, {}]
    for name in ("weights", "size", "before"):
        values = given[name] or []
        if len(values) > models:
            raise ValueError(
                f"explain needs --{name} once for each model; it came {len(values)} times for {models}. Leave one out, "
                "or name a second model behind the first."
            )
        for own, value in zip(found, values, strict=False):
            own[name] = value
    return found[0], found[1]


@app.command(
    "export",
    cls=command_of(flags.EXPORT),
    epilog="Example: `locant export swin_tiny swin.onnx --image-size 384 --dynamic`",
)
@options_from(flags.EXPORT)
def _export(given: dict[str, Any]) -> None:
    """A model for other runtimes: an ONNX file in standard operators, tried in onnxruntime before it is there.

    Prints its inputs and the largest error against the model in torch. Exit code 1: the numbers were wrong, and nothing
    was written.
    """
    quiet = given.pop("quiet")
    with sentences("stopped; nothing was written"):
        from locant.integrations.export import export

        with redirect_stdout(sys.stderr):  # exporters print
            found = export(**given)
        if not quiet:
            print(found)
        sys.stdout.flush()
    if found.wrong:
        raise typer.Exit(1)


def _show_bench(result: bench.Result, *, alone: bool, quiet: bool) -> None:
    if alone:
        print(result.json())
    elif quiet:
        print(*result.verdicts(), sep="\n")
    else:
        from rich.console import Console

        print(result.settings.sentence())
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


@app.command("info", cls=command_of(), epilog="Example: `locant info --json`")
def _info(json: Annotated[bool, option(OUTPUT, "Print it as JSON.", "--json")] = False) -> None:
    """What is installed here and what it runs on: put it at the head of a report of a fault."""
    from locant.info import info

    with sentences("stopped"):
        found = info()
        print(found.json() if json else found)


def main() -> None:
    """The entry point of the `locant` command."""
    app()
