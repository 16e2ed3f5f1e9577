"""The laws bite: every mutant is caught by the law that it names.

`PYTHONPATH=src:tests python tests/test_mutants.py` prints which law catches which mutant.
"""

from __future__ import annotations

import ast

import exactness  # noqa: F401  enters more laws
import pytest
from laws import KERNELS, LAWS
from mutants import COMPILED, MUTANTS, alive
from mutation import Function, changed, function, functions


def broken(law: str) -> bool:
    """Whether the law fails for any of its cases, under any kernel. Only its own complaint counts."""
    law, _, word = law.partition("/")
    check, cases = LAWS[law]
    for case in (case for case in cases if word in str(case)):
        for kernel in KERNELS:
            try:
                check(case, kernel)
            except AssertionError:
                return True
    return False


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, id=str(m), marks=pytest.mark.native if m.compiled else ()) for m in MUTANTS]
)
def test_the_law_bites(mutant):
    with alive(mutant):
        assert broken(mutant.law), f"{mutant.law} does not notice: {mutant.name}"


def test_the_library_is_whole_again():
    """A mutant leaves nothing behind."""
    mutant = next(m for m in MUTANTS if m.name == "key - query")
    with alive(mutant):
        assert broken("aim_is_one_call_under_two_windows")
    assert not broken("aim_is_one_call_under_two_windows")


def test_every_law_is_needed():
    """No mutant has the name of another, and every law named is a law."""
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert {m.law.partition("/")[0] for m in MUTANTS} <= set(LAWS)


def test_what_only_the_compiled_kernels_run_through_is_there():
    assert {f.module for f in functions()} >= COMPILED


def test_a_function_is_named_as_shortly_as_is_clear():
    assert function("Causal.pairs").name == "Causal.pairs"
    assert function("kernels.sdpa.run").module == "locant.kernels.sdpa"
    with pytest.raises(AssertionError, match="write more of its name"):
        function("run")
    with pytest.raises(AssertionError, match=r"no Causal.pears any more; functions of that name: none"):
        function("Causal.pears")


@pytest.mark.parametrize(
    ("source", "old", "new", "result"),
    [
        ("return (a -\n    b)  # so", "a - b", "b - a", "return b - a"),
        ("return x * (query - key)", "_a - _b", "_b - _a", "return x * (key - query)"),
        ("return f(x, y, z, w)", "f(_a, ..., w)", "f(w, ..., _a)", "return f(w, y, z, x)"),
        ("return f(1, scale=s)", "scale=_a", "scale=None", "return f(1, scale=None)"),
        ("p, q = f(a), g(q)", "_p, _q = _f, g(_q)", "_q = g(_q); _p = _f", "q = g(q)\np = f(a)"),
        ("if a:\n    b()", "if a: _b", "pass", "pass"),
        ("return x[..., i, None]", "x[..., i, None]", "y[..., i, None]", "return y[..., i, None]"),
    ],
)
def test_a_change_is_a_change_of_syntax(source, old, new, result):
    node = ast.parse("def f():\n    " + source.replace("\n", "\n    ")).body[0]
    assert "\n".join(map(ast.unparse, changed(Function("m", "f", node), old, new).body)) == result


@pytest.mark.parametrize(("source", "count"), [("return a - b - c", 2), ("return a + b", 0), ("return f(a, a)", 0)])
def test_a_change_that_is_not_clear_is_refused(source, count):
    with pytest.raises(AssertionError, match=f"stands {count} times in m.f"):
        changed(Function("m", "f", ast.parse(f"def f():\n    {source}").body[0]), "_a - _b", "_a")


def test_a_hole_named_twice_takes_the_same_twice():
    node = ast.parse("def f():\n    return g(x, x) + g(x, y)").body[0]
    assert ast.unparse(changed(Function("m", "f", node), "g(_a, _a)", "_a").body[0]) == "return x + g(x, y)"


def table() -> None:
    """Print, mutant by mutant, the law that catches it."""
    for mutant in MUTANTS:
        with alive(mutant):
            found = "caught by" if broken(mutant.law) else "SURVIVES "
        print(f"{mutant.name:36} {found} {mutant.law}", flush=True)


if __name__ == "__main__":
    table()
