"""The command line: collects what was asked for, hands it on, prints what comes back.

The options of compare, bench, accelerate, explain and export are declared in `flags.py`. What they mean and their
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
from locant.options import ask, assigned, command_of, option, options_from, pair, sentences, sides

if TYPE_CHECKING:
    from locant import bench
    from locant.compare import Result

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback, without the values of local variables
    context_settings={"help_option_names": ["-h", "--help"]},
)


WANTED, GIVEN = "The model that is wanted", "The file that is there"
Source = Annotated[
    Path,
    typer.Argument(
        help="A .safetensors, .pt or .pth file; of several parts, their folder.", metavar="IN", show_default=False
    ),
]
Target = Annotated[
    Path, typer.Argument(help="Another file with one of these endings.", metavar="OUT", show_default=False)
]
Model = Annotated[
    str, option(WANTED, "Its published name: swin_tiny, convit_base; --models prints all.", "--model", metavar="NAME")
]
Image = Annotated[str | None, option(WANTED, "Pixels: 384, or 384x512.", "--image-size", metavar="SIZE")]
Cell = Annotated[str | None, option(WANTED, "Cells per side: 12, or 8x16.", "--window", metavar="SIZE")]
Clip = Annotated[int | None, option(WANTED, "The longest clip.", "--frames", metavar="N")]
Classes = Annotated[int | None, option(WANTED, "Of the head: for other ones it starts anew.", metavar="N")]
Others = Annotated[
    list[str] | None, option(WANTED, "Any other argument: position=learned.", "--set", metavar="NAME=VALUE")
]
To = Annotated[str | None, option(WANTED, "Whose names to write: locant (default), timm, ...", metavar="LAYOUT")]
Layout = Annotated[str | None, option(GIVEN, "Whose names it has; found out by itself.", metavar="LAYOUT")]
Method = Annotated[
    str | None, option(GIVEN, "To resize: bicubic, geometric, ...; default: the layout's.", metavar="NAME")
]
OldWindow = Annotated[str | None, option(GIVEN, "Its window, if not square: 8x16.", "--from-window", metavar="SIZE")]
OldGrid = Annotated[str | None, option(GIVEN, "Its grid of patches, if not square.", "--from-grid", metavar="SIZE")]
Fresh = Annotated[list[str] | None, option(GIVEN, "Names to start anew instead: 'cls_head.*'", metavar="PATTERN")]
Top = Annotated[str | None, option(GIVEN, "The key that holds the tensors: model_ema.", "--top", metavar="KEY")]
Behind = Annotated[
    str | None,
    option(GIVEN, "What its names begin with: 'backbone.'; found out by itself.", "--prefix", metavar="TEXT"),
]
Models = Annotated[
    bool,
    typer.Option(
        "--models", callback=lambda asked: _list_models(asked), is_eager=True, metavar="", rich_help_panel=WANTED,
        help="Print every name that --model takes, and stop.",
    ),
]  # fmt: skip
Loose = Annotated[bool, option(GIVEN, "Take what fits and list the rest, instead of refusing.", "--loose")]
Silent = Annotated[bool, option(OUTPUT, "Print nothing but errors.", "--quiet", "-q")]


def _list_models(asked: bool) -> bool:
    if asked:
        from locant.registry import BUILDERS

        typer.echo("\n".join(sorted(BUILDERS, key=lambda name: (name[0].isupper(), name))))
        raise typer.Exit
    return asked


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


@app.command("bench", epilog="Example: `locant bench --grid 14x14 --heads 12 --head-dim 64 --position relative`")
@options_from(flags.BENCH)
def _bench(given: dict[str, Any]) -> None:
    """Which kernel is the fastest on my problem, here?

    Runs the plan's choice and every other kernel that can, in turn, and says whether the plan picked the fastest. Each
    is compared with the definition first: a kernel whose results are wrong gets no speed, and the exit code is 1.
    """
    json, quiet, costs = given.pop("json"), given.pop("quiet"), given.pop("write_costs")
    with sentences("stopped"):
        _check_bench(given, costs=costs, json=json)
        from locant import bench

        def tell(sentence: str) -> None:
            print(sentence, file=sys.stderr)

        if costs:
            print(bench.write_costs(given["threads"], tell=None if quiet else tell))
            sys.stdout.flush()
            return
        result = bench.run(**given, tell=None if quiet else tell)
        if json not in (None, "-"):
            Path(str(json)).write_text(result.json() + "\n", encoding="utf-8")
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


@app.command("convert", epilog="Example: `locant convert in.pth out.safetensors --model swin_tiny --window 12`")
def _convert(
    source: Source,
    target: Target,
    model: Model,
    image_size: Image = None,
    window: Cell = None,
    frames: Clip = None,
    classes: Classes = None,
    settings: Others = None,
    to: To = None,
    layout: Layout = None,
    method: Method = None,
    from_window: OldWindow = None,
    from_grid: OldGrid = None,
    fresh: Fresh = None,
    top: Top = None,
    prefix: Behind = None,
    loose: Loose = False,
    quiet: Silent = False,
    models: Models = False,
) -> None:
    """Published weights for a model at another size, or under another library's names.

    Renames, drops what is recomputed, resizes tables and embeddings, and prints what was done with which tensor. A
    file that does not fit the model in every tensor is refused; nothing is executed from it, and OUT is whole or not
    there.
    """
    with sentences("stopped; nothing was written"):
        from locant import checkpoints
        from locant.checkpoints.wording import COMMAND, asked_by

        with asked_by(COMMAND):
            report = checkpoints.convert(
                source, target, model=model, to=to or "locant", layout=layout, method=method,
                image_size=sides("--image-size", image_size), window=sides("--window", window), frames=frames,
                classes=classes, settings=assigned(settings), from_window=pair("--from-window", from_window),
                from_grid=pair("--from-grid", from_grid), fresh=fresh or (), top=top, prefix=prefix, strict=not loose,
            )  # fmt: skip
            if not quiet:
                print(report)
                print(f"\nWritten: {target}\nNext, in Python: {report.next_step}")
                sys.stdout.flush()


@app.command("accelerate", epilog="Example: `locant accelerate timm:swin_tiny_patch4_window7_224 --batch 8`")
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

        with redirect_stdout(sys.stderr):  # exporters print
            found = command.run(**given, tell=None if quiet else tell)
        if json not in (None, "-"):
            Path(str(json)).write_text(found.json() + "\n", encoding="utf-8")
        print(found.json() if json == "-" else found.contest if quiet else found)
        sys.stdout.flush()
    if found.wrong:
        raise typer.Exit(1)


@app.command("explain", epilog="Example: `locant explain timm:swin_tiny_patch4_window7_224 photo.jpg -o page.html`")
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

        with redirect_stdout(sys.stderr):
            second = shown if explain.names_a_model(shown) else None
            own, others = _of_each(given, models=1 if second is None else 2)
            found = explain.run(given["model"], None if second else shown, **own)
            path = Path("explain.html") if out is None else out
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


@app.command("export", epilog="Example: `locant export swin_tiny swin.onnx --image-size 384 --dynamic`")
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


@app.command("info", epilog="Example: `locant info --json`")
def _info(json: Annotated[bool, option(OUTPUT, "Print it as JSON.", "--json")] = False) -> None:
    """What is installed here and what it runs on: put it at the head of a report of a fault."""
    from locant.info import info

    with sentences("stopped"):
        found = info()
        print(found.json() if json else found)


def main() -> None:
    """The entry point of the `locant` command."""
    app()
