"""The command line: collects what was asked for, hands it on, prints what comes back.

What the options mean, their defaults and their checks live in `locant.compare`, `locant.bench` and
`locant.checkpoints`, which are imported inside the commands: `--help` answers at once, without torch. Standard output
carries the result and nothing else; progress and errors go to standard error. Exit codes: 0 done, 1 a kernel gave wrong
results (bench), 2 refused with one sentence, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from locant import __version__
from locant.options import assigned, listed, one_or_more, option, pair, sentences, sides

if TYPE_CHECKING:
    from locant import bench
    from locant.compare import Result

app = typer.Typer(
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback, without the values of local variables
    context_settings={"help_option_names": ["-h", "--help"]},
)


WHAT, TRAINING, MODEL, RUN, OUTPUT = "What is compared", "Training", "Model", "Run", "Output"

DATA_HELP = (
    "Your data: a folder of class folders of images or clips (under train, val and test folders, if you have them), "
    "or an .npz with x and y. Without it: handwritten digits, as images and as clips."
)
Data = Annotated[Path | None, typer.Argument(help=DATA_HELP, metavar="DATA", show_default=False)]
Tasks = Annotated[
    list[str] | None, option(WHAT, "images,clips,sequences: one or more. With DATA: guessed.", metavar="NAMES")
]
Positions = Annotated[str | None, option(WHAT, "Schemes, such as none,relative,rotary.", metavar="NAMES")]
Seeds = Annotated[str | None, option(WHAT, "How many (3 is 0, 1 and 2), or which: 3,7,11.", metavar="SEEDS")]
Epochs = Annotated[int | None, option(TRAINING, "Passes over the training data.", metavar="N")]
Rates = Annotated[
    str | None, option(TRAINING, "To choose from on validation data: 0.001,0.003.", "--lr", metavar="RATES")
]
Batch = Annotated[int | None, option(TRAINING, "Examples per step, over all processes.", metavar="N")]
Share = Annotated[
    float | None, option(TRAINING, "Part of the training examples, drawn anew by each seed: 0.05.", metavar="PART")
]
Dim = Annotated[int | None, option(MODEL, "Channels.", metavar="N")]
Depth = Annotated[int | None, option(MODEL, "Layers.", metavar="N")]
Heads = Annotated[int | None, option(MODEL, "Attention heads.", metavar="N")]
Size = Annotated[str | None, option(MODEL, "Side that pictures are brought to: 32, or 24x32.", metavar="SIZE")]
Patch = Annotated[str | None, option(MODEL, "Side of a patch, which becomes one token: 4, or 2x4.", metavar="SIZE")]
Frames = Annotated[int | None, option(MODEL, "Frames of a clip.", metavar="N")]
Device = Annotated[str | None, option(RUN, "cpu, cuda, cuda:1, mps.", metavar="NAME")]
Threads = Annotated[
    int | None, option(RUN, "Trials side by side on a CPU, one thread each; default all cores.", metavar="N")
]
Out = Annotated[Path | None, option(RUN, "Folder for results, models and report.html.", metavar="FOLDER")]
Resume = Annotated[bool, option(RUN, "Go on from the last step saved in --out.", "--resume")]
Quick = Annotated[bool, option(RUN, "A first look: one seed, few schemes, no ranking.", "--quick")]
Strict = Annotated[bool, option(RUN, "Refuse unreadable files instead of listing them.", "--strict")]
Config = Annotated[Path | None, option(RUN, "TOML with these names; options given here win.", metavar="FILE")]
Json = Annotated[bool, option(OUTPUT, "Print the results as JSON and nothing else.", "--json")]
Quiet = Annotated[bool, option(OUTPUT, "Print the path of the report and nothing else.", "--quiet", "-q")]

PROBLEM, WHO, MEASURE = "Problem", "Who may attend", "Measurement"
Cells = Annotated[str, option(PROBLEM, "Where tokens are: 196, 14x14, 8x14x14.", "--grid", metavar="SIZES")]
ManyHeads = Annotated[int | None, option(PROBLEM, "Heads of the queries; default 8.", "--heads", metavar="N")]
HeadDim = Annotated[int | None, option(PROBLEM, "Channels of a head; default 64.", metavar="N")]
Samples = Annotated[int | None, option(PROBLEM, "Default 1.", "--batch", metavar="N")]
Position = Annotated[str | None, option(PROBLEM, "none, relative, alibi, rotary or gated.", metavar="NAME")]
KvHeads = Annotated[int | None, option(PROBLEM, "Heads of keys and values, if fewer.", metavar="N")]
ValueDim = Annotated[int | None, option(PROBLEM, "Channels of a value, if others.", metavar="N")]
Queries = Annotated[
    int | None, option(PROBLEM, "Only the last N of the first axis: 1 is a cache's newest.", metavar="N")
]
Prefix = Annotated[int | None, option(PROBLEM, "Class tokens before the grid.", metavar="N")]
Number = Annotated[str | None, option(PROBLEM, "float32, float64, bfloat16 or float16.", "--dtype", metavar="NAME")]
Window = Annotated[str | None, option(WHO, "Only inside windows: 7x7.", metavar="SIZES")]
Shift = Annotated[str | None, option(WHO, "How far windows are moved: 3x3.", metavar="SIZES")]
Order = Annotated[str | None, option(WHO, "none or causal.", "--mask", metavar="NAME")]
Train = Annotated[
    bool | None, option(MEASURE, "Forward and backward alone, or forward alone; default both.", "--train/--forward")
]
Cores = Annotated[int | None, option(MEASURE, "Threads of torch; default its own choice.", "--threads", metavar="N")]
Seconds = Annotated[float | None, option(MEASURE, "For each of the two; default 5.", metavar="S")]
JsonFile = Annotated[str | None, option(OUTPUT, "File for all figures; - prints them alone.", "--json", metavar="PATH")]
Terse = Annotated[bool, option(OUTPUT, "Print only whether the plan picked the fastest.", "--quiet", "-q")]

WANTED, GIVEN = "The model that is wanted", "The file that is there"
Source = Annotated[Path, typer.Argument(help="A .safetensors, .pt or .pth file.", metavar="IN", show_default=False)]
Target = Annotated[Path, typer.Argument(help="A file with one of these endings.", metavar="OUT", show_default=False)]
Model = Annotated[str, option(WANTED, "Its published name: swin_tiny, convit_base, detr.", "--model", metavar="NAME")]
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
Fresh = Annotated[list[str] | None, option(GIVEN, "Names to start anew instead: cls_head.*", metavar="PATTERN")]
Top = Annotated[str | None, option(GIVEN, "The key that holds the tensors: model_ema.", "--top", metavar="KEY")]
Loose = Annotated[bool, option(GIVEN, "Take what fits and list the rest, instead of refusing.", "--loose")]
Silent = Annotated[bool, option(OUTPUT, "Print nothing but errors.", "--quiet", "-q")]


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
    share: Share = None,
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
        "task": listed("--task", task, str),
        "positions": listed("--positions", positions, str),
        "seeds": one_or_more("--seeds", seeds),
        "epochs": epochs,
        "lr": listed("--lr", lr, float),
        "batch": batch,
        "share": share,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "size": sides("--size", size),
        "patch": sides("--patch", patch),
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
    with sentences("stopped; go on with --resume"):
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
    with sentences("stopped"):
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
    loose: Loose = False,
    quiet: Silent = False,
) -> None:
    """Published weights for a model at another size, or under another library's names.

    Renames, drops what is recomputed, resizes tables and embeddings, and prints what was done with which tensor. A
    file that does not fit the model in every tensor is refused; nothing is executed from it, and OUT is whole or not
    there.
    """
    with sentences("stopped; nothing was written"):
        from locant import checkpoints

        report = checkpoints.convert(
            source, target, model=model, to=to or "locant", layout=layout, method=method,
            image_size=sides("--image-size", image_size), window=sides("--window", window), frames=frames,
            classes=classes, settings=assigned(settings), from_window=pair("--from-window", from_window),
            from_grid=pair("--from-grid", from_grid), fresh=fresh or (), top=top, strict=not loose,
        )  # fmt: skip
        if not quiet:
            print(report)
            print(f"\nWritten: {target}")
            sys.stdout.flush()


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


def main() -> None:
    """The entry point of the `locant` command."""
    app()
