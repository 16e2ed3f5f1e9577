"""The public names: fixed, sorted, documented, and resolved only when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import locant

PUBLIC = """
    ALiBi Causal Decomposed GatedPosition Grid Learned LearnedAxial LogCPB MaskedSine Padding Pairs RelativeTable Rotary
    Segments Shaw Sinusoid T5Buckets TransformerXL Windows
    accelerate attention attention_packed plan weights
""".split()
PACKAGES = "bench checkpoints compare explain flops models nn".split()


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_names_are_the_promised_ones_and_sorted() -> None:
    """What was promised, and every scheme that has been added since (docs/index.py writes them)."""
    added = {name for name, module in locant._MODULES.items() if module.startswith("locant.positions.")}
    assert locant.__all__ == sorted({*PUBLIC, *added})
    assert dir(locant) == sorted({*PUBLIC, *added, *PACKAGES})


def test_a_star_takes_no_names_of_others() -> None:
    """`nn` is torch's by custom, and models, compare, flops are words of many."""
    code = "from torch import nn; models = 1; from locant import *; print(nn.__name__, models, ALiBi)"
    assert _python(code) == "torch.nn 1 <class 'locant.positions.slopes.ALiBi'>"
    assert not set(PACKAGES) & set(locant.__all__)


@pytest.mark.parametrize("name", [*locant.__all__, *PACKAGES])
def test_each_name_resolves_and_is_documented(name: str) -> None:
    found = getattr(locant, name)
    assert found is getattr(locant, name)
    assert found.__name__.rpartition(".")[2] == name
    assert (found.__doc__ or "").strip(), f"{name} has no docstring"


def test_nothing_else_leaks() -> None:
    leaked = _python("import locant; print(*(n for n in vars(locant) if n[0] != '_' and n not in dir(locant)))").split()
    assert set(leaked) <= {"annotations", "TYPE_CHECKING", "Any", "import_module"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Attention'"):
        _ = locant.Attention


def test_importing_loads_nothing_heavy() -> None:
    loaded = _python("import locant, sys; print(*{m.split('.')[0] for m in sys.modules})").split()
    assert "locant" in loaded
    assert not {"torch", "numpy", "jaxtyping", "typer", "rich", "safetensors"} & set(loaded)
    assert _python("import locant, sys; print(*(m for m in sys.modules if m.startswith('locant')))") == "locant"


def test_a_name_loads_its_own_module_and_no_other_scheme() -> None:
    loaded = _python(
        "import sys; from locant import Grid; print(*(m for m in sys.modules if m.startswith('locant')))"
    ).split()
    assert sorted(loaded) == ["locant", "locant.checks", "locant.dispatch", "locant.grid", "locant.tokens"]


def test_type_checkers_see_the_same_names() -> None:
    """The TYPE_CHECKING block is written by hand next to the table; they may not drift apart."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(locant.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == dir(locant)
    assert {name: module for name, module in seen.items() if module != "locant"} == locant._MODULES
