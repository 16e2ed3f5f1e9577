"""Python of the user's own: a function in a file, or one that lives in this process alone.

A function of a file is named `/path/my_vit.py:build`. That is text: it stands in settings, worker processes load the
same, and its hash is over that file and the files beside it that it imports. What has no file (a notebook, a lambda, a
function in a function) is kept here under `python:flag:name`, and such a run trains in this process.

What goes wrong inside is one sentence with the file and the line.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

from locant.checks import description
from locant.tasks.task import Refusal

LIVE = "python:"
_kept: dict[str, Any] = {}
_loaded: dict[tuple[str, str], Any] = {}
_loading: list[Path] = []


def reference(name: str, value: object, default: str) -> str:
    """The text that stands for a function: `file.py:name`, or `file.py` for its `default`.

    Args:
        name: of the flag, for messages.
        value: such text, or the function itself.
        default: the name that a file is asked for when none is given.

    Raises:
        Refusal: for text that names no Python file, and for what can't be called.
    """
    if isinstance(value, (str, Path)):
        text = str(value)
        if text.startswith(LIVE):
            return text
        file, colon, function = text.rpartition(":") if text.rpartition(":")[0].endswith(".py") else (text, "", "")
        if not file.endswith(".py"):
            raise Refusal(
                f"--{name} needs a Python file and a function in it; got {text!r}. Write --{name} mine.py:{default}."
            )
        if not Path(file).is_file():
            raise Refusal(f"--{name} needs a Python file; there is no {file!r}. Check the path.")
        return f"{Path(file).resolve()}:{function if colon else default}"
    if not callable(value):
        raise Refusal(
            f"{name}= needs a function, or the name of one such as 'mine.py:{default}'; got {description(value)}. "
            "Pass what can be called."
        )
    return _of_function(name, value)


def _of_function(flag: str, function: Any) -> str:
    file, name = file_of(function), getattr(function, "__qualname__", "")
    module = sys.modules.get(getattr(function, "__module__", ""), None)
    found_again = name.isidentifier() and getattr(module, name, None) is function  # by whoever loads the file
    if found_again and file is not None and Path(file).suffix == ".py" and Path(file).is_file():
        text = f"{Path(file).resolve()}:{name}"
        _loaded[text, digest(text)] = function  # here it is what was given; others load the file
        return text
    return keep(f"{flag}:{name or type(function).__name__}", function)


def keep(name: str, value: Any) -> str:
    """A name for what only this process knows."""
    _kept[f"{LIVE}{name}"] = value
    return f"{LIVE}{name}"


def file_of(function: Any) -> str | None:
    """The file that a function, a class or a callable object was written in."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        return inspect.getfile(function if inspect.isroutine(function) or inspect.isclass(function) else type(function))
    except (TypeError, OSError):
        return None


def is_live(text: str | None) -> bool:
    return text is not None and text.startswith(LIVE)


def find(name: str, text: str) -> Any:
    """What a reference stands for. Raises Refusal."""
    if is_live(text):
        if text not in _kept:
            raise Refusal(
                f"{name}= was given from Python as {name_of(text)!r}, which no file holds; it is not here. "
                f"Pass {name}= again."
            )
        return _kept[text]
    file, _, function = text.rpartition(":")
    key = (text, digest(text))
    if key not in _loaded:
        _loaded[key] = _load(name, Path(file), function)
    return _loaded[key]


def _load(name: str, file: Path, function: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"locant_own_{file.stem}_{abs(hash(file))}", file)
    assert spec is not None, f"{file} is a Python file"
    assert spec.loader is not None, f"{file} is a Python file"
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # as for a script: what lies beside it can be imported
    sys.modules[spec.name] = module  # dataclasses and pickles look there
    _loading.append(file)
    try:
        with blame(str(file), f"--{name} needs a Python file that can be imported"):
            spec.loader.exec_module(module)
    finally:
        _loading.pop()
    if not callable(getattr(module, function, None)):
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == spec.name]
        raise Refusal(
            f"--{name} needs a function in {file.name}; there is no {function!r}, but {', '.join(names) or 'nothing'}. "
            f"Write --{name} {file.name}:{names[-1] if names else 'build'}."
        )
    return getattr(module, function)


def refuse_nested() -> None:
    """Refuses a run that a file starts while it is imported for one: every worker would start it again."""
    if _loading:
        raise Refusal(
            f"compare.run needs to be left out when a file is imported; {_loading[-1].name} calls it. "
            'Put the call under if __name__ == "__main__":.'
        )


def digest(text: str) -> str:
    """sha256 in hex of what is behind a reference. Raises Refusal if a file is gone."""
    whole = hashlib.sha256()
    if is_live(text):
        kept = find(text.removeprefix(LIVE).partition(":")[0], text)
        try:
            whole.update(_of_code(kept.__code__) if hasattr(kept, "__code__") else inspect.getsource(kept).encode())
        except (TypeError, OSError):  # no source: its name must do
            whole.update(text.encode())
        return whole.hexdigest()
    file = Path(text.rpartition(":")[0])
    for path in _with_imports(file, []):
        try:
            whole.update(f"{path.relative_to(file.parent)}\0".encode() + path.read_bytes())
        except OSError as error:
            raise Refusal(f"{str(path)!r} must be readable; it is not: {error.strerror}. Bring it back.") from None
    return whole.hexdigest()


def digest_of_files(path: Path) -> str:
    """sha256 in hex of a file, or of every file in a folder. Raises Refusal if it is gone."""
    whole = hashlib.sha256()
    try:
        for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
            with file.open("rb") as opened:
                whole.update(f"{file.name}\0".encode() + hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        raise Refusal(f"{str(path)!r} must be readable; it is not: {error.strerror}. Bring it back.") from None
    return whole.hexdigest()


def _of_code(code: CodeType) -> bytes:
    """What a function does, wherever it was written: the same lambda on another line is the same."""
    values = [_of_code(value) if isinstance(value, CodeType) else repr(value).encode() for value in code.co_consts]
    return b"\0".join([code.co_code, *(name.encode() for name in code.co_names), *values])


def _with_imports(file: Path, seen: list[Path]) -> list[Path]:
    """The file, and those below its folder that it imports, in turn."""
    if file in seen:
        return seen
    seen.append(file)
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # said when it is loaded
        return seen
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module or ''}.{name}".strip(".") for name in names)]
        for name in filter(None, names):
            stem = seen[0].parent.joinpath(*name.split("."))
            for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                if path.is_file():
                    _with_imports(path, seen)
    return seen


def call(function: Any, needed: str, *arguments: Any) -> Any:
    """Calls a function of the user's. Raises Refusal, which begins with `needed`, for what goes wrong in it."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise Refusal(f"{needed}; {name} can't be called so: {error}. Let it take these arguments.") from None
    except ValueError:  # it has no signature to be read
        pass
    with blame(file_of(function), needed):
        return function(*arguments)


@contextmanager
def blame(file: str | None, needed: str) -> Iterator[None]:
    """Turns an error that comes from the user's file, or from one beside it, into a sentence with the line.

    Args:
        file: the user's; None blames nobody.
        needed: how the sentence begins.

    Raises:
        Refusal: in place of any Exception but another Refusal. One from elsewhere is passed on as it is.
    """
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        place = None if file is None else _place(error, file)
        if place is None:
            raise
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0].removesuffix(".")
        raise Refusal(f"{needed}; {place}: {said}. Correct that line, or what it calls.") from error


def _place(error: Exception, file: str) -> str | None:
    """'my_vit.py, line 12, in build': the last step of the traceback in a file of the user's."""
    if isinstance(error, SyntaxError) and error.filename and _theirs(error.filename, file):
        return f"{Path(error.filename).name}, line {error.lineno}"
    for step in reversed(traceback.extract_tb(error.__traceback__)):
        if _theirs(step.filename, file):
            return f"{Path(step.filename).name}, line {step.lineno}, in {step.name}"
    return None


def _theirs(path: str, file: str) -> bool:
    if path == file:
        return True
    inside = Path(path).is_absolute() and Path(file).is_file() and Path(path).is_relative_to(Path(file).parent)
    ours = Path(__file__).parents[1]
    return inside and "site-packages" not in Path(path).parts and not Path(path).is_relative_to(ours)


def name_of(text: str) -> str:
    """As it may be shown: 'my_vit.py:build', or the name of what has no file."""
    return text.removeprefix(LIVE).rpartition(":")[2] if is_live(text) else Path(text).name
