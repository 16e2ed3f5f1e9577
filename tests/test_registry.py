"""One registry of models: what can be imported, converted and loaded is what stands there."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest
from small import MODELS
from torch import nn

from locant import models
from locant.registry import BUILDERS, CLASSES, FAMILIES, builder, family

TOOLS = {"TransformerDecoder", "TransformerEncoder", "attention_map", "from_file", "greedy", "non_locality"}


def test_every_family_has_a_small_model_in_the_tests() -> None:
    assert FAMILIES.keys() == MODELS.keys()


def test_the_names_of_locant_models_are_those_of_the_registry() -> None:
    registered = {name for name, module in {**BUILDERS, **CLASSES}.items() if module.startswith("models.")}
    assert sorted(models.__all__) == sorted(registered | TOOLS)
    for name in models.__all__:
        assert getattr(models, name).__name__ == name  # detr is the function, not the file


@pytest.mark.parametrize("path", FAMILIES)
def test_a_line_of_the_registry_is_true(path: str) -> None:
    """Class, builders and names are where it says, and a builder builds that class."""
    module, _, name = path.rpartition(".")
    kind, own = getattr(import_module(f"locant.{module}"), name), FAMILIES[path]
    assert issubclass(kind, nn.Module)
    assert import_module(f"locant.checkpoints.{own.names}").LAYOUTS
    assert family(MODELS[path]()) is own
    for published in own.builders:
        assert inspect.get_annotations(builder(published))["return"] == name
        assert (builder(published).__doc__ or "").strip()
    assert not own.plain or builder(name) is kind


def test_every_public_builder_is_registered() -> None:
    """A function of a module of models that returns one of its classes is a builder."""
    for path, own in FAMILIES.items():
        module, _, name = path.rpartition(".")
        found = vars(import_module(f"locant.{module}"))
        functions = {
            key for key, value in found.items()
            if inspect.isfunction(value) and value.__module__ == f"locant.{module}" and key[0] != "_"
            and value.__annotations__.get("return") == name
        }  # fmt: skip
        assert functions == set(own.builders)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`model` needs a name out of .*swin_tiny.*; got 'swin_huge'. Load other"):
        builder("swin_huge")


def test_a_registry_loads_no_model() -> None:
    code = "import sys, locant.checkpoints; print(*(m for m in sys.modules if m.startswith('locant.models')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
