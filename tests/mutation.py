"""How a mutant is made: a function found by its name, and one small change to its syntax.

A function is named as shortly as is clear, `Causal.pairs` or `operate._masks`, and found wherever it stands in the
package: a mutant follows a function that moves to another file. The change is a piece of Python and what stands in its
place, compared as syntax, so that lines may break elsewhere. A name of an underscore and one letter is a hole, which
takes any expression and gives it back; `...` in a list of arguments takes any number of them. `name=value` is an
assignment, or an argument by name.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import copy
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import locant

SOURCE = Path(locant.__file__).parent
HOLE = re.compile(r"_[a-z]")
Holes = dict[str, Any]  # what the holes took; under "...", what the ellipses took, in their order


@dataclass(frozen=True)
class Function:
    """A function of the package, as it is written and where it hangs."""

    module: str
    name: str  # within the module: "Causal.pairs"
    node: ast.FunctionDef

    @property
    def owner(self) -> Any:
        """Its class or module."""
        owner: Any = importlib.import_module(self.module)
        for part in self.name.split(".")[:-1]:
            owner = getattr(owner, part)
        return owner

    @property
    def own_name(self) -> str:
        return self.name.rpartition(".")[2]


@cache
def functions() -> tuple[Function, ...]:
    """Every function and method of the package; those inside functions belong to the outer one."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join((SOURCE.name, *path.relative_to(SOURCE).with_suffix("").parts))
        found += list(_functions_of(ast.parse(path.read_text()).body, module.removesuffix(".__init__"), ""))
    return tuple(found)


def _functions_of(body: Sequence[ast.stmt], module: str, prefix: str) -> Iterator[Function]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield Function(module, prefix + node.name, node)
        elif isinstance(node, ast.ClassDef):
            yield from _functions_of(node.body, module, f"{prefix}{node.name}.")


def function(name: str) -> Function:
    """The one function whose full name ends so."""
    found = [f for f in functions() if f"{f.module}.{f.name}".endswith(f".{name}")]
    listed = ", ".join(f"{f.module}.{f.name}" for f in found)
    alike = ", ".join(f"{f.module}.{f.name}" for f in functions() if f.own_name == name.rpartition(".")[2])
    assert found, f"there is no {name} any more; functions of that name: {alike or 'none'}"
    assert len(found) == 1, f"{name} may be any of {listed}: write more of its name"
    return found[0]


def changed(where: Function, old: str, new: str) -> ast.FunctionDef:
    """The syntax of the function, `old` replaced by `new` at the one place where it stands."""
    pattern, made = _syntax(old), _syntax(new)
    node = copy.deepcopy(where.node)
    places = [(spot, holes) for spot in _spots(node) if (holes := matched(pattern, spot)) is not None]
    told = f"{len(places)} times in {where.module}.{where.name}, and should stand there once: rewrite the mutant"
    assert len(places) == 1, f"`{old}` stands {told}"
    ((spot, holes),) = places
    filled = _filled(made, holes)
    if isinstance(spot, ast.keyword):
        filled = [ast.keyword(spot.arg, filled[0].value)]
    elif isinstance(spot, ast.expr):
        filled = [filled[0].value]
    _Replacement(spot, filled).visit(node)
    return ast.fix_missing_locations(node)


def _syntax(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def _spots(node: ast.FunctionDef) -> Iterator[ast.AST]:
    """What may be replaced: statements, expressions and arguments by name, of the body alone."""
    for statement in node.body:
        for spot in ast.walk(statement):
            if isinstance(spot, ast.stmt | ast.expr | ast.keyword):
                yield spot


def matched(pattern: list[ast.stmt], spot: ast.AST) -> Holes | None:
    """What the holes of the pattern take at this spot; None if it is something else."""
    (wanted,) = pattern
    holes: Holes = {}
    if isinstance(wanted, ast.Expr):
        return holes if isinstance(spot, ast.expr) and _fits(wanted.value, spot, holes) else None
    if isinstance(spot, ast.keyword):
        named = isinstance(wanted, ast.Assign) and isinstance(wanted.targets[0], ast.Name)
        same = named and wanted.targets[0].id == spot.arg
        return holes if same and _fits(wanted.value, spot.value, holes) else None
    return holes if _fits(wanted, spot, holes) else None


def _fits(wanted: Any, there: Any, holes: Holes) -> bool:
    if isinstance(wanted, ast.Name) and HOLE.fullmatch(wanted.id):
        if not isinstance(there, ast.expr):
            return False
        before = holes.setdefault(wanted.id, there)
        return ast.unparse(before) == ast.unparse(there)
    if isinstance(wanted, list):
        return isinstance(there, list) and _all_fit(wanted, there, holes)
    if not isinstance(wanted, ast.AST):
        return type(wanted) is type(there) and wanted == there
    if type(wanted) is not type(there):
        return False
    fields = (name for name in wanted._fields if name not in ("ctx", "type_comment", "kind", "type_params"))
    return all(_fits(getattr(wanted, name), getattr(there, name), holes) for name in fields)


def _all_fit(wanted: list[Any], there: list[Any], holes: Holes) -> bool:
    """Lists, in which an ellipsis takes any number of members: the fewest that will do."""
    if not wanted:
        return not there
    first, *rest = wanted
    if isinstance(first, ast.Constant) and first.value is ...:
        for count in range(len(there) + 1):
            trial = {**holes, "...": [*holes.get("...", []), there[:count]]}
            if _all_fit(rest, there[count:], trial):
                holes.update(trial)
                return True
        return False
    return bool(there) and _fits(first, there[0], holes) and _all_fit(rest, there[1:], holes)


def _filled(made: list[ast.stmt], holes: Holes) -> list[Any]:
    """A replacement with what the holes took."""
    ellipses = iter(holes.get("...", []))

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return copy.deepcopy(holes[node.id]) if HOLE.fullmatch(node.id) else node

        def visit_Constant(self, node: ast.Constant) -> Any:
            return copy.deepcopy(next(ellipses)) if node.value is ... else node

    return [_in_context(Fill().visit(statement)) for statement in copy.deepcopy(made)]


def _in_context(statement: ast.stmt) -> ast.stmt:
    """What a hole took on the left of a `=` may have been read before, and the other way round: parsed again."""
    (again,) = ast.parse(ast.unparse(ast.fix_missing_locations(statement))).body
    return again


class _Replacement(ast.NodeTransformer):
    def __init__(self, spot: ast.AST, filled: list[Any]) -> None:
        self.spot, self.filled = spot, filled

    def visit(self, node: ast.AST) -> Any:
        if node is self.spot:
            return self.filled if isinstance(node, ast.stmt) else self.filled[0]
        return self.generic_visit(node)


@contextlib.contextmanager
def replaced(where: Function, old: str, new: str) -> Iterator[None]:
    """The library with this change in it, wherever the function was imported, for as long as the block lasts."""
    real = inspect.getattr_static(where.owner, where.own_name)
    modules = [module for name, module in sys.modules.items() if name.startswith("locant.")]
    caches = [(m, name, x) for m in modules for name, x in list(vars(m).items()) if hasattr(x, "cache_clear")]
    places = [(m, name) for m in modules for name, x in list(vars(m).items()) if x is real]
    places += [(module, name) for module, name, held in caches if held.__wrapped__ is real]  # they hold the real one
    places += [(where.owner, where.own_name)] if inspect.isclass(where.owner) else []
    before = [(holder, name, inspect.getattr_static(holder, name)) for holder, name in places]
    fake = _built(changed(where, old, new), real)
    try:
        for holder, name, _ in before:
            setattr(holder, name, fake)
        for _, _, held in caches:
            held.cache_clear()
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)
        for _, _, held in caches:
            held.cache_clear()


def _built(node: ast.FunctionDef, real: Any) -> Any:
    """The changed function, built in the module of the real one."""
    while not inspect.isfunction(real):  # a class method, a property, a cache
        real = next(x for x in (getattr(real, n, None) for n in ("__func__", "fget", "__wrapped__")) if x is not None)
    names: dict[str, Any] = {}
    module = ast.Module(body=[node], type_ignores=[])
    code = compile(module, "<mutant>", "exec", __future__.annotations.compiler_flag)
    exec(code, inspect.unwrap(real).__globals__, names)
    return names[node.name]
