"""The laws bite: every mutant is caught by the law that it names.

`PYTHONPATH=src:tests python tests/test_mutants.py` prints which law catches which mutant.
"""

from __future__ import annotations

import exactness  # noqa: F401  enters more laws
import pytest
from laws import KERNELS, LAWS
from mutants import MUTANTS, alive


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


def table() -> None:
    """Print, mutant by mutant, the law that catches it."""
    for mutant in MUTANTS:
        with alive(mutant):
            found = "caught by" if broken(mutant.law) else "SURVIVES "
        print(f"{mutant.name:36} {found} {mutant.law}", flush=True)


if __name__ == "__main__":
    table()
