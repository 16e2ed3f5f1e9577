"""The command line, without the work: what is handed on, what is printed where, and with which exit code."""

from __future__ import annotations

import inspect
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import locant
from locant.cli import app
from locant.tasks.task import Doubt, Reading


class Finished:
    """What `locant.compare.run` gives back."""

    report = Path("runs/x/report.html")

    def table(self) -> str:
        return "the table"

    def json(self) -> str:
        return '{"format": 1}'


Command = Callable[..., tuple[Result, dict[str, Any]]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `locant compare` with a stand-in for `locant.compare`; gives back what it was called with."""

    def call(*arguments: str, raises: BaseException | None = None, chatter: str = "") -> tuple[Result, dict[str, Any]]:
        seen: dict[str, Any] = {}

        def run(data: object = None, **given: object) -> Finished:
            seen.update(given, data=data)
            print(chatter, end="")
            if raises is not None:
                raise raises
            return Finished()

        module = ModuleType("locant.compare")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "locant.compare", module)
        monkeypatch.setitem(vars(locant), "compare", module)
        return CliRunner().invoke(app, ["compare", *arguments]), seen

    return call


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["--version"], ["compare", "--nonsense"]])
def test_answers_without_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from locant.cli import main
sys.argv = ["locant", *{arguments!r}]
try:
    main()
except SystemExit:
    print("loaded:", *sorted({{"torch", "numpy", "jaxtyping", "locant.compare"}} & set(sys.modules)))
"""
    assert _python(code).stdout.splitlines()[-1].strip() == "loaded:"


def test_help_names_every_flag() -> None:
    text = _python(
        "import sys; sys.argv = ['locant', 'compare', '--help']; from locant.cli import main; main()",
        COLUMNS="200", NO_COLOR="1",
    ).stdout  # fmt: skip
    flags = (
        "--task --axes --positions --seeds --steps --epochs --minutes --lr --starts --sensitivity --augment --batch "
        "--share --dim --depth --heads --size --patch --frames "
        "--device --threads --out --resume --add-seeds --quick --strict --json --quiet --config"
    ).split()
    assert [flag for flag in flags if flag not in text] == []
    assert "\x1b" not in text
    assert "which position scheme" in text.lower()


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"locant {locant.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["--epochs", "many"],
        ["--lr", "fast"],
        ["--share", "some"],
        ["--lr", ","],
        ["--seeds", "1.5"],
        ["--patch", "2xy"],
        ["one", "two"],
    ],
)  # fmt: skip
def test_a_slip_is_refused_before_anything_starts(command: Command, arguments: list[str]) -> None:
    result, seen = command(*arguments)
    assert (result.exit_code, result.stdout, seen) == (2, "", {})
    assert result.stderr.strip()


def test_nothing_given_is_none(command: Command) -> None:
    result, seen = command()
    switches = {"quick": False, "strict": False, "quiet": False}
    values = (
        "data task axes positions seeds steps epochs minutes lr starts sensitivity augment batch share recipe metric "
        "autocast model weights freeze dim depth heads size patch frames device threads prefer out config resume "
        "add_seeds"
    ).split()
    assert result.exit_code == 0, result.output
    assert seen == switches | dict.fromkeys(values)


def test_what_is_given_is_handed_on(command: Command) -> None:
    _, seen = command(
        *"photos --task images,clips --task sequences --positions none,relative, --seeds 3 --lr 0.001,3e-3".split(),
        *"--epochs 4 --batch 8 --share 0.1 --dim 16 --depth 2 --heads 2 --size 24x32 --patch 4 --frames 6".split(),
        *"--axes CHW --minutes 2.5 --starts 1 --model m.py:build --no-sensitivity --augment shift,flip".split(),
        *"--steps 9 --recipe r.py --metric m.py:f --autocast off --prefer speed --weights w.pth --freeze".split(),
        *"--device cpu --threads 1 --out o --config c.toml --resume r --add-seeds 7,9 --quick --strict -q".split(),
    )
    assert seen == {
        "data": Path("photos"), "task": ("images", "clips", "sequences"), "positions": ("none", "relative"),
        "axes": "CHW", "seeds": 3, "lr": (0.001, 0.003), "epochs": 4, "steps": 9, "minutes": 2.5, "starts": 1,
        "sensitivity": False, "augment": ("shift", "flip"), "batch": 8, "share": 0.1, "dim": 16, "model": "m.py:build",
        "recipe": "r.py", "metric": "m.py:f", "autocast": "off", "prefer": "speed",
        "weights": "w.pth", "freeze": True,
        "depth": 2, "heads": 2, "size": (24, 32), "patch": 4, "frames": 6, "device": "cpu", "threads": 1,
        "out": Path("o"), "config": Path("c.toml"), "resume": Path("r"), "add_seeds": (7, 9),
        "quick": True, "strict": True, "quiet": True,
    }  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [("5", 5), ("5,", (5,)), ("0,7", (0, 7))])
def test_seeds_are_a_number_or_a_list(command: Command, text: str, value: object) -> None:
    assert command("--seeds", text)[1]["seeds"] == value


def test_every_flag_is_a_parameter_of_run(command: Command) -> None:
    """The command line adds nothing of its own but how results are printed."""
    from locant.compare import run

    parameters = set(inspect.signature(run).parameters)
    assert parameters == set(command()[1]) | {"progress"}


def test_output(command: Command) -> None:
    plain, _ = command(chatter="epoch 1\n")
    assert plain.stdout == "the table\n\nReport: runs/x/report.html\n"
    assert plain.stderr == "epoch 1\n"
    json, seen = command("--json", chatter="epoch 1\n")
    assert (json.stdout, json.stderr, seen["quiet"]) == ('{"format": 1}\n', "epoch 1\n", True)
    quiet, seen = command("-q")
    assert (quiet.stdout, seen["quiet"]) == ("runs/x/report.html\n", True)


def test_one_process_of_torchrun_speaks(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert command()[0].output == ""
    monkeypatch.setenv("RANK", "0")
    assert command()[0].stdout != ""


@pytest.mark.parametrize("arguments", [["--out", "runs/x", "--resume"], ["--resume", "--out", "runs/x"], ["--resume"]])
def test_resume_without_its_folder_is_a_sentence(command: Command, arguments: list[str]) -> None:
    result, seen = command(*arguments)
    assert (result.exit_code, result.stdout, seen) == (2, "", {})
    assert result.stderr.startswith("locant: --resume needs the folder of the run; none came. Write --resume runs/mine")
    assert result.stderr.count("\n") == 1


def _noted(error: BaseException, note: str) -> BaseException:
    error.add_note(note)
    return error


class Refusal(ValueError):
    """As `locant.compare` raises it."""


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (Refusal("the folder holds\none class; two are needed."), 2, "the folder holds one class; two are needed."),
        (ValueError("lr must be above 0; got -1.0."), 2, "lr must be above 0; got -1.0."),
        (OSError(28, "No space left on device", "runs/x/a.safetensors"), 2,
         "No space left on device: runs/x/a.safetensors. Make room there, or name another place."),
        (PermissionError(13, "Permission denied", "runs"), 2,
         "Permission denied: runs. Name another place, or allow it there."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64000 bytes."), 2,
         "this needs more memory than there is: 64,000 bytes could not be had. Ask for less at once."),
        (MemoryError(), 2,
         "this needs more memory than there is: what was asked for could not be had. Ask for less at once."),
        (UnicodeEncodeError("utf-8", "x\udcff", 1, 2, "surrogates not allowed"), 2,
         "names and text files have to be in UTF-8; '\\udcff' is not. Rename it, or save it so."),
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
        (_noted(KeyboardInterrupt(), "go on with: locant compare --resume runs/x"), 130,
         "stopped; go on with: locant compare --resume runs/x"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(command: Command, error: BaseException, code: int, sentence: str) -> None:
    result, _ = command(raises=error)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"locant: {sentence}\n")


DOUBT = Doubt(
    "x is [n, 64, 3]",
    Reading("images of 64 × 3", {"axes": "HW"}),
    Reading("sequences of 64 steps", {"axes": "LC"}),
    Reading("something else", {}, "save it otherwise"),
)


def _ask(monkeypatch: pytest.MonkeyPatch, answers: str, terminal: bool = True) -> Any:
    """What a question on a terminal leads to: settings, or what is raised; and what was printed."""
    from locant import options

    for name, text in (("stdin", answers), ("stderr", "")):
        stream = io.StringIO(text)
        stream.isatty = lambda: terminal  # type: ignore[method-assign]
        monkeypatch.setattr(sys, name, stream)
    try:
        return options.ask(DOUBT), sys.stderr.getvalue()  # type: ignore[attr-defined]
    except ValueError as error:
        return error, sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_a_doubt_is_a_question_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, said = _ask(monkeypatch, "what?\n0\n2\n")
    assert chosen == {"axes": "LC"}
    assert said.startswith(
        "locant: DATA can be taken in 3 ways: x is [n, 64, 3].\n  1  images of 64 × 3 (say --axes HW)\n"
    )
    assert said.count("Which is it? [1 to 3] ") == 3
    assert str(_ask(monkeypatch, "3\n")[0]) == "something else can't be said by a flag: save it otherwise."


def test_a_doubt_is_a_refusal_elsewhere(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    sentence = (
        "DATA can be taken in 3 ways: x is [n, 64, 3]. They are images of 64 × 3 (say --axes HW), or sequences of 64 "
        "steps (say --axes LC), or something else (save it otherwise)."
    )
    assert str(DOUBT) == sentence
    assert _ask(monkeypatch, "1\n", terminal=False) == (DOUBT, "")
    assert _ask(monkeypatch, "")[0] is DOUBT  # the end of input
    with monkeypatch.context() as torchrun:
        torchrun.setenv("RANK", "0")
        assert _ask(torchrun, "1\n") == (DOUBT, "")
    monkeypatch.undo()


def test_the_answer_is_handed_on_as_the_flag_that_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(data: object, **given: Any) -> Finished:
        seen.append(given["axes"])
        if given["axes"] is None:
            raise DOUBT
        return Finished()

    module = ModuleType("locant.compare")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "locant.compare", module)
    monkeypatch.setitem(vars(locant), "compare", module)
    monkeypatch.setattr("locant.cli.ask", lambda doubt: {"axes": "LC"})
    assert CliRunner().invoke(app, ["compare", "x.npz"]).exit_code == 0
    assert seen == [None, "LC"]


def test_a_bug_keeps_its_traceback(command: Command) -> None:
    result, _ = command(raises=ZeroDivisionError("a bug"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_closed_pipe_is_quiet() -> None:
    code = """
import sys, types
from pathlib import Path
finished = types.SimpleNamespace(json=lambda: "x" * 1_000_000)
sys.modules["locant.compare"] = module = types.ModuleType("locant.compare")
module.run = lambda data, **given: finished
sys.argv = ["locant", "compare", "--json"]
import locant
locant.compare = module
from locant.cli import main
main()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        complaint = process.stderr.read()
    assert (process.returncode, complaint) == (1, b"")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("locant ben", ["bench"]),
        ("locant bench --gr", ["--grid"]),
        ("locant bench --dtype b", ["bfloat16"]),
        ("locant compare --positions none,rela", ["none,relative"]),
        ("locant compare --task clips,", ["clips,images", "clips,sequences"]),
    ],
)
def test_the_shell_completes_commands_options_and_names(line: str, offered: list[str]) -> None:
    asked = {"_LOCANT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = _python("from locant.cli import app; app(prog_name='locant')", **asked)
    assert done.stdout.split() == offered
