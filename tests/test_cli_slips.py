"""Every option of every command, given wrongly: exit code 2 and one sentence of its own, never a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from locant import flags, values
from locant.cli import app
from locant.flags import Flag

COMMANDS = {
    "compare": flags.COMPARE, "bench": flags.BENCH, "convert": flags.CONVERT, "accelerate": flags.ACCELERATE,
    "explain": flags.EXPLAIN, "export": flags.EXPORT,
}  # fmt: skip
HUGE = "9" * 30
WRONG = {
    int: ["", " ", "abc", "nan", "inf", "1.5", "1e9", "1,2", HUGE, "9" * 5000],
    float: ["", "abc", "1,2", "--"],
    values.SEEDS: ["", "abc", "1.5", ",", "9" * 5000],
    values.RATES: ["", "fast", ","],
    values.SIDES: ["", "abc", "x", "2x", "2xy", "1.5", "nan", "7*7", HUGE, "9" * 5000],
    values.NAMES: ["", ","],
    values.SETTINGS: ["", "q", "=3"],
    values.PATH: [" "],
}  # fmt: skip
WRONG |= {values.PAIR: WRONG[values.SIDES], values.EACH_SIDES: WRONG[values.SIDES], values.TASKS: WRONG[values.NAMES],
          values.PATHS: WRONG[values.PATH]}  # fmt: skip


def _words(flag: Flag) -> str:
    return flag.options[0].split("/")[0] if flag.options else "--" + flag.name.replace("_", "-")


def _needed(declared: tuple[Flag, ...], besides: Flag) -> list[str]:
    """What must be given, without the one that is tried; files that are not there."""
    named = [
        word for flag in declared if flag.needed and flag.panel and flag != besides for word in (_words(flag), "x")
    ]
    return named + ["x" for flag in declared if flag.needed and not flag.panel and flag != besides]


def _slips() -> Iterator[tuple[str, list[str], str]]:
    """A command, its words, and what the sentence has to name."""
    for command, declared in COMMANDS.items():
        yield command, ["--nonsense"], "--nonsense"
        yield command, ["a", "b", "c", "d"], "convert" if command == "convert" else "d came"
        for flag in declared:
            name = _words(flag)
            if not flag.panel or flag.value in (values.SWITCH, values.CHOICE, values.LIST):
                continue
            yield command, [*_needed(declared, flag), name], name
            for text in WRONG.get(flag.value, WRONG.get(flag.value.word, [])):
                yield command, [*_needed(declared, flag), name, text], name


def _refused(arguments: list[str]) -> str:
    """The sentence; all else about a refusal is asserted."""
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"locant: .+\n", result.stderr), "one line"
    assert len(result.stderr) < 2000
    assert not re.search(r"Traceback|Input should|codec|NoneType|unpack|\[Errno", result.stderr), "the command's words"
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_given_wrongly_is_a_sentence(command: str) -> None:
    tried = [(words, named) for name, words, named in _slips() if name == command]
    assert len(tried) > len(COMMANDS[command])
    for words, named in tried:
        said = _refused([command, *words])
        assert named in said, words
        assert re.search(r"[;:(].+[.)] (?:.*`locant|Write|Example|Did you)", said), (
            f"what was needed, came, to do: {said}"
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["benc"], "locant has the commands compare, bench, convert, accelerate, explain, export, info; 'benc' came. "
         "Did you mean bench? `locant --help` says what each does."),
        (["--verson"], "locant has no option --verson. Did you mean --version? `locant --help` lists all."),
        (["info", "x"], "locant info takes options and no more words; x came. Example: `locant info --json`."),
        (["bench", "--quiet=3"], "--quiet takes no value; one came. `locant bench --help` says how it is written."),
        (["compare", "--config", "--quick"], "--config needs its value; --quick came."),
        (["bench", "--grid", "4", "--heads", "abc"], "--heads needs a whole number; got 'abc'. Write --heads 8."),
        (["bench", "--grid", "4", "--threads", "99999"], "--threads needs at most 1024 threads; got 99999."),
        (["explain", "relative:99999999x2"], "a scheme is drawn on at most 1,048,576 tokens; got '99999999x2'"),
        (["bench"], "bench needs --grid, where tokens are; none came."),
        (["convert"], "locant convert needs IN; it did not come"),
        (["convert", "in.pth"], "locant convert needs OUT; it did not come (another file with one of these endings)."),
        (["compare", "--lr", "fast"],
         "--lr needs numbers with commas between them; got 'fast'. Write --lr 0.003,0.006."),
        (["convert", " ", "o.pth", "--model", "vit_tiny"], "IN needs a file or a folder; got ' '."),
    ],
)  # fmt: skip
def test_a_slip_is_said_in_the_words_of_the_command(arguments: list[str], sentence: str) -> None:
    assert _refused(arguments).startswith(f"locant: {sentence}")
