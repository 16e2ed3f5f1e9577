"""How an option is called by whoever asked: an argument of `load`, one of `convert`, or a flag of the command line.

What to do about an error is said in the words of the call that met it: `fresh=('head.*',)` or `--fresh 'head.*'`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

LOAD, CONVERT, COMMAND = range(3)
NAMES = {
    "classes": ("num_classes", "classes", "--classes"),
    "fresh": ("fresh", "fresh", "--fresh"),
    "grid": ("grid", "from_grid", "--from-grid"),
    "layout": ("layout", "layout", "--layout"),
    "method": ("method", "method", "--method"),
    "model": ("model", "model", "--model"),
    "prefix": ("prefix", "prefix", "--prefix"),
    "strict": ("strict", "strict", "--loose"),
    "to": ("layout", "to", "--to"),
    "top": ("top", "top", "--top"),
    "window": ("window", "from_window", "--from-window"),
}
_asked = ContextVar("_asked", default=LOAD)


@contextmanager
def asked_by(whom: int) -> Iterator[None]:
    """Speak as CONVERT or COMMAND; the command line, which calls `convert`, stays what it is."""
    before = _asked.set(max(whom, _asked.get()))
    try:
        yield
    finally:
        _asked.reset(before)


def word(name: str) -> str:
    """An option by itself, as the subject of a sentence: `layout` or --layout."""
    found = NAMES[name][_asked.get()]
    return found if _asked.get() == COMMAND else f"`{found}`"


def option(name: str, *values: object) -> str:
    """An option with what it is given: layout=, top='model_ema' and fresh=('head.*',), or --top model_ema."""
    found = NAMES[name][_asked.get()]
    if _asked.get() == COMMAND:
        return " ".join(f"{found} {shlex.quote(str(value))}" for value in values) or found
    if name == "strict":
        return "strict=False"
    return f"{found}={tuple(values) if name == 'fresh' and values else ', '.join(map(repr, values))}"


def setting(name: str, value: object) -> str:
    """An argument of the model's builder: like='timm', settings={'like': 'timm'}, or --set like=timm."""
    forms = (f"{name}={value!r}", f"settings={{{name!r}: {value!r}}}", f"--set {name}={shlex.quote(str(value))}")
    return forms[_asked.get()]


def sides(name: str, words: str = "rows, columns") -> str:
    """An option that takes sizes: window=(rows, columns), or --from-window ROWSxCOLUMNS."""
    return (
        f"{option(name)} {words.upper().replace(', ', 'x')}" if _asked.get() == COMMAND else f"{option(name)}({words})"
    )


def in_flags(sentence: str, names: Mapping[str, str]) -> str:
    """A sentence about arguments of a builder, `img_size`, on the command line with the flags for them."""
    if _asked.get() == COMMAND:
        for argument, flag in names.items():
            sentence = sentence.replace(f"`{argument}`", f"--{flag.replace('_', '-')}")
    return sentence
