"""The examples of `progress=` with the packages that they are for, which stand in here: what is handed to them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
EVENTS = [
    {"key": "images-none-seed0", "step": 17, "steps": 34, "epoch": 1.0, "loss": 2.0, "validation": 0.25},
    {"key": "images-rotary-seed0", "step": 17, "steps": 34, "epoch": 1.0, "loss": 1.5, "validation": 0.5},
    {"key": "images-none-seed0", "step": 34, "steps": 34, "epoch": 2.0, "loss": 1.0, "validation": 0.75},
]


class Recorder:
    """Every call, by the name of the method."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.calls: list[tuple[Any, ...]] = [("made", *given, named)]

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: self.calls.append((name, *given, *([named] if named else [])))


def example(name: str, monkeypatch: pytest.MonkeyPatch, **modules: Any) -> dict[str, Any]:
    """The names of an example, where these modules are installed."""
    found = runpy.run_path(str(EXAMPLES / name))
    for path, values in modules.items():
        module = ModuleType(path.replace("__", "."))
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, path.replace("__", "."), module)
    monkeypatch.setitem(found["listener"].__globals__, "find_spec", lambda name: object())
    return found


def test_tensorboard_gets_a_curve_per_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = {"SummaryWriter": Recorder}
    names = example("progress_tensorboard.py", monkeypatch, torch__utils__tensorboard=writer)
    made = names["writer_into"](tmp_path)
    assert made.calls == [("made", str(tmp_path), {})]
    tell = names["listener"](made)
    for event in EVENTS:
        tell(event)
    assert made.calls[1:] == [
        ("add_scalar", "images-none-seed0/validation", 0.25, 17),
        ("add_scalar", "images-none-seed0/loss", 2.0, 17),
        ("add_scalar", "images-rotary-seed0/validation", 0.5, 17),
        ("add_scalar", "images-rotary-seed0/loss", 1.5, 17),
        ("add_scalar", "images-none-seed0/validation", 0.75, 34),
        ("add_scalar", "images-none-seed0/loss", 1.0, 34),
    ]


def test_wandb_gets_steps_of_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = example("progress_wandb.py", monkeypatch, wandb={"init": Recorder})
    run = names["run_into"](tmp_path)
    assert run.calls == [("made", {"project": "locant compare", "dir": str(tmp_path)})]
    tell = names["listener"](run)
    for event in EVENTS:
        tell(event)
    assert run.calls[1:3] == [
        ("define_metric", "images-none-seed0/*", {"step_metric": "images-none-seed0/step"}),
        ("log", {f"images-none-seed0/{name}": EVENTS[0][name] for name in ("step", "validation", "loss")}),
    ]
    assert [call[0] for call in run.calls[3:]] == ["define_metric", "log", "log"]


def test_without_the_packages_lists_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in (("progress_tensorboard.py", "writer_into"), ("progress_wandb.py", "run_into")):
        names = runpy.run_path(str(EXAMPLES / name))
        monkeypatch.setitem(names[make].__globals__, "find_spec", lambda name: None)
        points = names[make](tmp_path)
        names["listener"](points)(EVENTS[0])
        assert len(points) == (2 if make == "writer_into" else 1)
