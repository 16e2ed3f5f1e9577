"""What the commands can be told, each flag declared once.

The command line's options, the keys of the config file and of settings.toml, the keywords of `compare.run` and
`bench.run` and what is checked of them follow from `COMPARE`, `BENCH` and `ACCELERATE`. Nothing here imports torch
or numpy: `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from locant.tasks.kind import AUGMENTED
from locant.tasks.kinds import KINDS
from locant.values import (
    CHOICE,
    COUNT,
    EACH_SIDES,
    FILE,
    FOLDERS,
    LIST,
    MINUTES,
    NAMES,
    OWN,
    PAIR,
    PART,
    PATH,
    PATHS,
    RATES,
    SECONDS,
    SEEDS,
    SETTINGS,
    SIDES,
    SIZES,
    SWITCH,
    TASKS,
    TEXT,
    TEXTS,
    THREADS,
    WHOLE,
    Value,
)


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: of the keyword and of the key in a config file; the option is `--name` with dashes.
        value: what it holds.
        panel: the heading that `--help` shows it under; "" is an argument without dashes.
        help: one sentence or two; the default stands at the end.
        metavar: what stands for the value in `--help`.
        options: how it is written on the command line, if not as `--name`.
        into: whether it belongs to a task's recipe, to the settings of a run (both can stand in a config file), or to
            this one call.
        needed: whether it must be given.
        bare: what is said where it comes without its value.
    """

    name: str
    value: Value
    panel: str
    help: str
    metavar: str = ""
    options: tuple[str, ...] = ()
    into: Literal["recipe", "settings", "call"] = "call"
    needed: bool = False
    bare: str = ""


def _default(name: str) -> str:
    """A recipe's default in words, for every kind that differs from the first: '20 (clips 9, sequences 24)'."""
    first, *others = ((kind.name, _spell(getattr(kind.recipe, name))) for kind in KINDS.values())
    different = ", ".join(f"{kind} {value}" for kind, value in others if value != first[1])
    return f"{first[1]} ({different})" if different else first[1]


def _spell(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else "1" if value is None else f"{value:g}"


# --- locant compare ----------------------------------------------------------------------------------------------

WHAT, TRAINING, MODEL, RUN, OUTPUT = "What is compared", "Training", "Model", "Run", "Output"
SEED_COUNT = 3
SENSITIVE_FROM = 5  # seeds
USUAL = ",".join(kind.name for kind in KINDS.values() if kind.usual)
SCHEMES = ",".join(dict.fromkeys(scheme for kind in KINDS.values() for scheme in kind.schemes))

COMPARE = (
    Flag(
        "data", PATH, "",
        "Your data: a folder of class folders of images or clips (under train, val and test folders, if you have "
        "them), or an .npz with x and y. Without it: handwritten digits, as images and as clips.",
        "DATA", into="settings",
    ),
    Flag(
        "task", TASKS, WHAT, f"{','.join(KINDS)}: one or more; default {USUAL}. With DATA: guessed.", "NAMES",
        into="settings",
    ),
    Flag(
        "axes", TEXT, WHAT, "Of x in an .npz, after the first: CTHW, HWC, LC; default by their sizes.",
        "LETTERS", into="settings",
    ),
    Flag("positions", NAMES, WHAT, f"Of {SCHEMES}; default those of the task.", "NAMES", into="settings"),
    Flag(
        "seeds", SEEDS, WHAT, f"How many (3 is 0, 1 and 2), or which: 3,7,11; default {SEED_COUNT}.", "SEEDS",
        into="settings",
    ),
    Flag(
        "steps", COUNT, TRAINING,
        f"Steps of a trial at most; default {_default('steps')}, your data by their number of examples.", "N",
        into="recipe",
    ),
    Flag("epochs", COUNT, TRAINING, "The same, as passes over the training data.", "N", into="recipe"),
    Flag(
        "minutes", MINUTES, TRAINING, "Cut the steps, equally for all schemes, so that the run takes about M minutes.",
        "M", into="settings",
    ),
    Flag(
        "lr", RATES, TRAINING, f"To choose from on validation data; default {_default('lr')}.", "RATES", into="recipe"
    ),
    Flag(
        "starts", COUNT, TRAINING,
        "Starts of what schemes learn to choose from as well; 1 is the published one alone, and a scheme without one "
        f"tries as many more rates; default {_default('starts')}.", "N", into="recipe",
    ),
    Flag(
        "sensitivity", CHOICE, TRAINING,
        "Whether half and double the start and the rate would change the order; default from "
        f"{SENSITIVE_FROM} seeds on.", options=("--sensitivity/--no-sensitivity",), into="settings",
    ),
    Flag(
        "augment", NAMES, TRAINING,
        f"How training examples are varied: {','.join(AUGMENTED)}, or none; default what the task allows.", "NAMES",
        into="recipe",
    ),
    Flag(
        "batch", COUNT, TRAINING, f"Examples per step, over all processes; default {_default('batch')}.", "N",
        into="recipe",
    ),
    Flag(
        "share", PART, TRAINING,
        f"Part of the training examples, drawn anew by each seed: 0.05; default {_default('share')}.", "PART",
        into="recipe",
    ),
    Flag(
        "model", OWN, MODEL,
        "small or base: the built-in transformer, which grows with the data; a published design, such as vit_tiny, "
        "deit_small, swin_tiny, convit_tiny; or a builder of your own, as in my_vit.py:build. Default small, with DATA "
        "on an accelerator base.",
        "NAME", into="recipe",
    ),
    Flag(
        "weights", FILE, MODEL,
        "A checkpoint of any library that a published design starts from, its tables and embeddings resized.", "FILE",
        into="recipe",
    ),
    Flag(
        "freeze", CHOICE, MODEL, "With --weights: train position, the last norm and the head alone; default no.",
        options=("--freeze/--no-freeze",), into="recipe",
    ),
    Flag(
        "recipe", OWN, TRAINING, "An optimiser and a schedule of your own: mine.py:recipe, called with (model, lr, "
        "steps); default AdamW.", "NAME", into="recipe",
    ),
    Flag(
        "metric", OWN, TRAINING, "A score of your own: mine.py:metric, which gives each example 0 to 1, higher is "
        "better; default whether the answer is right.", "NAME", into="recipe",
    ),
    Flag(
        "autocast", TEXT, TRAINING, "bfloat16 or off; default bfloat16 on an accelerator that has it.", "NAME",
        into="recipe",
    ),
    Flag("dim", COUNT, MODEL, f"Channels; default {_default('dim')}.", "N", into="recipe"),
    Flag("depth", COUNT, MODEL, f"Layers; default {_default('depth')}.", "N", into="recipe"),
    Flag("heads", COUNT, MODEL, f"Attention heads; default {_default('heads')}.", "N", into="recipe"),
    Flag(
        "size", SIDES, MODEL, "Side that pictures are brought to: 48, or 24x32; default 32, digits their own.", "SIZE",
        into="recipe",
    ),
    Flag(
        "patch", SIDES, MODEL,
        "Side of a patch, which becomes one token: 4, or 2x4; default a quarter of a picture, digits "
        f"{_default('patch')}.", "SIZE", into="recipe",
    ),
    Flag("frames", COUNT, MODEL, "Frames of a clip; default 8, digits 3.", "N", into="recipe"),
    Flag("device", TEXT, RUN, "cpu, cuda, cuda:1, mps; default cpu.", "NAME", into="settings"),
    Flag(
        "threads", COUNT, RUN, "Trials side by side on a CPU, one thread each; default all cores.", "N",
        into="settings",
    ),
    Flag("out", PATH, RUN, "Folder for results, models and report.html; default a new one in runs.", "FOLDER"),
    Flag(
        "resume", PATH, RUN, "Go on with the run in this folder, with its own settings, from the last step saved.",
        "FOLDER",
        bare="--resume needs the folder of the run; none came. Write --resume runs/mine, without --out: the settings "
        "are read from there.",
    ),
    Flag("beside", FOLDERS, RUN, "Lay two finished runs beside each other; nothing is trained.", "FOLDER FOLDER"),
    Flag("add_seeds", SEEDS, RUN, "With --resume: so many seeds more (3), or which (7,11).", "SEEDS"),
    Flag("quick", SWITCH, RUN, "A first look: one seed, few schemes, no ranking.", into="settings"),
    Flag(
        "prefer", TEXT, RUN, "What the recommendation looks at first: reach, accuracy, speed or memory; default reach.",
        "WHAT", into="settings",
    ),
    Flag("strict", SWITCH, RUN, "Refuse unreadable files instead of listing them.", into="settings"),
    Flag("config", PATH, RUN, "TOML with these names; options given here win.", "FILE"),
    Flag("json", SWITCH, OUTPUT, "Print the results as JSON and nothing else."),
    Flag("quiet", SWITCH, OUTPUT, "Print the path of the report and nothing else.", options=("--quiet", "-q")),
)  # fmt: skip
RECIPE = {flag.name: flag for flag in COMPARE if flag.into == "recipe"}
KEPT = {flag.name for flag in COMPARE if flag.into != "call"}  # what a config file may name


# --- locant bench ------------------------------------------------------------------------------------------------

PROBLEM, WHO, MEASURE = "Problem", "Who may attend", "Measurement"

BENCH = (
    Flag("grid", SIZES, PROBLEM, "Where tokens are: 196, 14x14, 8x14x14; needed.", "SIZES"),
    Flag("heads", COUNT, PROBLEM, "Heads of the queries; default 8.", "N"),
    Flag("head_dim", COUNT, PROBLEM, "Channels of a head; default 64.", "N"),
    Flag("batch", COUNT, PROBLEM, "Default 1.", "N"),
    Flag("position", TEXT, PROBLEM, "none, relative, alibi, rotary or gated; default none.", "NAME"),
    Flag("kv_heads", COUNT, PROBLEM, "Heads of keys and values, if fewer.", "N"),
    Flag("value_dim", COUNT, PROBLEM, "Channels of a value, if others.", "N"),
    Flag("queries", COUNT, PROBLEM, "Only the last N of the first axis: 1 is a cache's newest.", "N"),
    Flag("prefix", WHOLE, PROBLEM, "Class tokens before the grid.", "N"),
    Flag("dtype", TEXT, PROBLEM, "float32, float64, bfloat16 or float16; default float32.", "NAME"),
    Flag("device", TEXT, PROBLEM, "cpu, cuda, cuda:1, mps; default cpu.", "NAME"),
    Flag("window", SIZES, WHO, "Only inside windows: 7x7.", "SIZES"),
    Flag("shift", SIZES, WHO, "How far windows are moved: 3x3.", "SIZES"),
    Flag("mask", TEXT, WHO, "none or causal.", "NAME"),
    Flag(
        "train", CHOICE, MEASURE, "Forward and backward alone, or forward alone; default both.",
        options=("--train/--forward",),
    ),
    Flag("threads", THREADS, MEASURE, "Threads of torch; default its own choice.", "N"),
    Flag("seconds", SECONDS, MEASURE, "For each of the two; default 5.", "S"),
    Flag(
        "write_costs", SWITCH, OUTPUT,
        "Instead: measure linear layers and perceptrons, and keep this machine's constants in the cache folder.",
    ),
    Flag("json", TEXT, OUTPUT, "File for all figures; - prints them alone.", "PATH"),
    Flag("quiet", SWITCH, OUTPUT, "Print only whether the plan picked the fastest.", options=("--quiet", "-q")),
)  # fmt: skip


# --- locant convert ----------------------------------------------------------------------------------------------

WANTED, GIVEN = "The model that is wanted", "The file that is there"

CONVERT = (
    Flag("source", PATH, "", "A .safetensors, .pt or .pth file; of several parts, their folder.", "IN", needed=True),
    Flag("target", PATH, "", "Another file with one of these endings.", "OUT", needed=True),
    Flag("model", TEXT, WANTED, "Its published name: swin_tiny; --models prints all.", "NAME", needed=True),
    Flag("image_size", SIDES, WANTED, "Pixels: 384, or 384x512.", "SIZE"),
    Flag("window", SIDES, WANTED, "Cells per side: 12, or 8x16.", "SIZE"),
    Flag("frames", COUNT, WANTED, "The longest clip.", "N"),
    Flag("classes", COUNT, WANTED, "Of the head: for other ones it starts anew.", "N"),
    Flag("settings", SETTINGS, WANTED, "Any other argument: position=learned.", "NAME=VALUE", options=("--set",)),
    Flag("models", LIST, WANTED, "Print every name that --model takes, and stop."),
    Flag("to", TEXT, WANTED, "Whose names to write: locant (default), timm, ...", "LAYOUT"),
    Flag("layout", TEXT, GIVEN, "Whose names it has; found out by itself.", "LAYOUT"),
    Flag("method", TEXT, GIVEN, "To resize: bicubic, geometric, ...; default: the layout's.", "NAME"),
    Flag("from_window", PAIR, GIVEN, "Its window, if not square: 8x16.", "SIZE"),
    Flag("from_grid", PAIR, GIVEN, "Its grid of patches, if not square.", "SIZE"),
    Flag("fresh", TEXTS, GIVEN, "Names to start anew instead: 'cls_head.*'", "PATTERN"),
    Flag("top", TEXT, GIVEN, "The key that holds the tensors: model_ema.", "KEY"),
    Flag("prefix", TEXT, GIVEN, "What its names begin with: 'backbone.'; found out by itself.", "TEXT"),
    Flag("loose", SWITCH, GIVEN, "Take what fits and list the rest, instead of refusing."),
    Flag("quiet", SWITCH, OUTPUT, "Print nothing but errors.", options=("--quiet", "-q")),
)  # fmt: skip


# --- locant accelerate -------------------------------------------------------------------------------------------

ACCELERATE = (
    Flag("name", TEXT, "", "timm:NAME, torchvision:NAME, locant:NAME, or hf:FOLDER with a config.json.", "NAME",
         needed=True),
    Flag("weights", PATH, MODEL, "File of its state dict; default random weights.", "FILE"),
    Flag("batch", COUNT, MODEL, "Pictures, clips or texts at once; default 1.", "N"),
    Flag("size", SIDES, MODEL, "Default its own: 384, 384x512, 8x224x224 for a clip, tokens of a text.", "SIZE"),
    Flag("dtype", TEXT, MODEL, "float32 or bfloat16; default float32.", "NAME"),
    Flag("train", SWITCH, MEASURE, "Time a training step, and compare gradients as well."),
    Flag("against", NAMES, MEASURE, "compile, onnxruntime, openvino, or none; default all, and absent ones are named.",
         "NAMES"),
    Flag("threads", THREADS, MEASURE, "Threads of torch and of every rival; default torch's own choice.", "N"),
    Flag("seconds", SECONDS, MEASURE, "Of timing in all; default 10.", "S"),
    Flag("json", TEXT, OUTPUT, "File for all figures; - prints them alone.", "PATH"),
    Flag("quiet", SWITCH, OUTPUT, "Print the times and nothing else.", options=("--quiet", "-q")),
)  # fmt: skip


# --- locant explain ----------------------------------------------------------------------------------------------

EXPLAIN = (
    Flag("model", TEXT, "", "timm:NAME, torchvision:NAME, locant:NAME, hf:FOLDER; a scheme such as relative:14x14; the "
         "folder of a comparison; a file that locant convert wrote.", "MODEL", needed=True),
    Flag("input", TEXT, "", "A picture, a film or a folder of frames, an array (.npy), a line of text; or a second "
         "model, to be laid beside the first.", "INPUT"),
    Flag("weights", PATHS, MODEL, "File of its weights; default random ones, or what lies in the folder. Twice: of "
         "each.", "FILE"),
    Flag("size", EACH_SIDES, MODEL, "Pixels that a named model is built for: 384, or 384x512. Twice: of each.",
         "SIZE"),
    Flag("before", PATHS, MODEL, "File of weights before they were resized: tables are compared. Twice: of each.",
         "FILE"),
    Flag("out", PATH, OUTPUT, "The page; default explain.html.", "FILE", options=("--out", "-o")),
    Flag("quiet", SWITCH, OUTPUT, "Print the path of the page and nothing else.", options=("--quiet", "-q")),
)  # fmt: skip


# --- locant export -----------------------------------------------------------------------------------------------

EXPORT = (
    Flag("name", TEXT, "", "swin_tiny, timm:NAME, torchvision:NAME, hf:FOLDER, or a file that locant convert wrote.",
         "MODEL", needed=True),
    Flag("out", PATH, "", "The file to write, ending in .onnx.", "OUT", needed=True),
    Flag("image_size", SIDES, MODEL, "Pixels: 384, 384x512, 8x224x224 for a clip; default its own.", "SIZE"),
    Flag("weights", PATH, MODEL, "File of its state dict; default random weights.", "FILE"),
    Flag("dynamic", SWITCH, MODEL, "Leave batch and, where it takes other sizes, pixels open; default batch 1."),
    Flag("quiet", SWITCH, OUTPUT, "Print nothing but errors.", options=("--quiet", "-q")),
)  # fmt: skip


# What the shell's completion offers behind an option.
OFFERED = {
    "task": tuple(KINDS), "positions": tuple(SCHEMES.split(",")), "augment": (*AUGMENTED, "none"),
    "autocast": ("bfloat16", "off"), "prefer": ("reach", "accuracy", "speed", "memory"),
    "position": ("none", "relative", "alibi", "rotary", "gated"), "mask": ("none", "causal"),
    "dtype": ("float32", "bfloat16", "float64", "float16"), "device": ("cpu", "cuda", "mps"),
    "against": ("compile", "onnxruntime", "openvino", "none"),
}  # fmt: skip
