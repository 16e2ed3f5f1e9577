"""What `locant info` tells, and what is said once where the compiled core is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import locant
from locant import operators
from locant.cli import app
from locant.info import EXTRAS, Info, info

# what an installation without a compiler looks like
WITHOUT_CORE = "import sys; sys.modules['locant._native'] = None\n"
CALL = "import torch, locant; q = torch.zeros(1, 2, 5, 8); "


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )  # fmt: skip


def test_it_tells_what_is_here() -> None:
    found = info()
    assert (found.locant, found.torch, found.threads) == (
        locant.__version__,
        torch.__version__,
        torch.get_num_threads(),
    )
    accelerators = torch.cuda.device_count() + torch.xpu.device_count() + torch.backends.mps.is_available()
    assert found.devices[0] == "cpu"
    assert len(found.devices) == 1 + accelerators
    assert found.core == (not isinstance(operators.built(), str)) == (found.reason is None)
    assert found.missing == ()


@pytest.mark.native
def test_instruction_sets_begin_with_the_one_in_use() -> None:
    core = operators.built()
    assert not isinstance(core, str)
    assert info().instructions[0] == core.isa()
    assert set(info().instructions) == set(core.isas())


def test_json_is_the_same_as_the_text_is_made_of() -> None:
    done = CliRunner().invoke(app, ["info", "--json"])
    assert done.exit_code == 0
    read = json.loads(done.stdout)
    read |= {name: tuple(read[name]) for name in ("instructions", "devices", "missing")}
    assert Info(**read) == info()
    assert CliRunner().invoke(app, ["info"]).stdout == f"{info()}\n"


def test_the_text() -> None:
    found = Info(
        "0.1.0", "abc", False, "no compiler", (), "2.13.0", 1, ("cpu",), ("torch._C._keys",), "3.11", "Linux", "Xeon",
        2, {"video": {"av": None}},
    )  # fmt: skip
    assert str(found).splitlines() == [
        "locant    0.1.0, commit abc",
        "core      none: no compiler",
        "torch     2.13.0, 1 thread, without torch._C._keys",
        "devices   cpu",
        "python    3.11",
        "machine   Xeon, 2 cores, Linux",
        "[video]   av not installed",
    ]


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    assert set(EXTRAS) == set(declared) - {"test", "parity", "interpreter", "docs"}  # of those who work on it
    for extra, packages in EXTRAS.items():
        assert list(packages) == [line.split(">=")[0] for line in declared[extra]]


def test_private_names_that_are_missing_are_listed() -> None:
    code = "from locant.info import info; print(*info().missing)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "LOCANT_PUBLIC_TORCH": "1"},
    )  # fmt: skip
    assert {"torch._C._dispatch_keys", "torch.utils._pytree"} <= set(done.stdout.split())


# --- where the core is missing ---------------------------------------------------------------------------------------


def test_one_warning_at_the_first_use() -> None:
    done = python(f"{WITHOUT_CORE}{CALL}print('before'); [locant.attention(q, q, q) for _ in range(3)]")
    assert done.stderr.count("RuntimeWarning: the compiled kernels are not there") == 1
    assert "attention on CPUs runs on torch's kernels" in done.stderr
    assert "`locant info` shows" in done.stderr


def test_no_warning_before_use_nor_with_the_core() -> None:
    assert "RuntimeWarning" not in python(f"{WITHOUT_CORE}{CALL}locant.nn.Attention(8, 2)").stderr
    told = python(f"{WITHOUT_CORE}from locant.info import info; print(info())")
    assert "RuntimeWarning" not in told.stderr
    assert "core      none: the compiled kernels are not there" in told.stdout


@pytest.mark.native
def test_no_warning_where_the_core_is() -> None:
    assert "RuntimeWarning" not in python(f"{CALL}locant.attention(q, q, q)").stderr
