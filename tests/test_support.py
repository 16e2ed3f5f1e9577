"""Pages that are made of results: support.md and exported.md say what their data says, and leave nobody out."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import locant
from locant import models
from locant.positions.position import Position
from locant.registry import CLASSES

ROOT = Path(__file__).parents[1]
NOISE = 64 * torch.finfo(torch.float32).eps  # of a few layers in another order


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def support() -> ModuleType:
    return script("docs/support.py")


@pytest.fixture(scope="module")
def exported() -> ModuleType:
    return script("benchmarks/exported.py")


def test_the_page_of_support_is_what_its_data_says(support) -> None:
    assert support.PAGE.read_text() == support.page(support.read())


def test_a_claim_without_a_test_that_passed_is_refused(support) -> None:
    found = support.read()
    test = next(iter(found["claims"]))
    assert (support.cell((), {}), support.cell((test,), {})) == ("not tried", "not run")
    for kinds in ({}, {"skipped": 3}, {"passed": 2, "failed": 1}):
        with pytest.raises(SystemExit, match=re.escape(f"a claim needs {test} to pass")):
            support.cell((test,), {**found["claims"], test: kinds})
    with pytest.raises(SystemExit, match="no such test"):
        support.cell(("tests/test_support.py::test_of_nothing",), {})


def test_every_claimed_test_is_there(support) -> None:
    assert all(map(support.functions, support.claimed_tests()))


def test_the_page_of_what_was_exported_is_what_its_data_says(exported) -> None:
    assert exported.PAGE.read_text() == exported.page(exported.read())


def test_every_scheme_and_every_model_has_its_row(exported) -> None:
    found = exported.read()["rows"]
    assert list(found) == list(exported.rows())
    public = (getattr(locant, name) for name in locant.__all__)
    schemes = {scheme.__name__ for scheme in public if isinstance(scheme, type) and issubclass(scheme, Position)}
    assert schemes <= {name.split(",")[0] for name in found}
    assert {name for name in CLASSES if hasattr(models, name)} <= set(found)


def test_no_other_numbers_came_out(exported) -> None:
    """Numbers that came out are roundings of eager torch's; a cell that is missing reads "not tried"."""
    for name, cells in exported.read()["rows"].items():
        assert set(cells) <= set(exported.asked_of(name)), name
        for way, told in cells.items():
            assert told.get("error", 0.0) <= NOISE, (name, way)
