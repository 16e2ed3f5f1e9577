"""What is built for a release: pyproject.toml, the workflow and docs/releasing.md say the same."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import locant

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEELS = PROJECT["tool"]["cibuildwheel"]
WORKFLOW = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
PAGE = (ROOT / "docs" / "releasing.md").read_text()


def test_one_python_builds_for_all_later_ones() -> None:
    oldest = re.sub(r"\D", "", PROJECT["project"]["requires-python"])
    assert WHEELS["build"] == f"cp{oldest}-*"
    assert PROJECT["tool"]["scikit-build"]["wheel"]["py-api"] == f"cp{oldest}"
    assert f"STABLE_ABI_VERSION {oldest[0]}.{oldest[1:]}" in (ROOT / "CMakeLists.txt").read_text()
    assert f'python-version: "{oldest[0]}.{oldest[1:]}"' in WORKFLOW


def test_a_platform_is_in_all_three() -> None:
    linux = {WHEELS["linux"][f"manylinux-{arch}-image"] for arch in ("x86_64", "aarch64")}
    assert linux == {"manylinux_2_28"}
    told = set(re.findall(r"`cp311-abi3-(\w+)`", PAGE))
    macos = WHEELS["macos"]["environment"]["MACOSX_DEPLOYMENT_TARGET"].replace(".", "_")
    assert told == {f"{image}_{arch}" for image in linux for arch in ("x86_64", "aarch64")} | {
        f"macosx_{macos}_{WHEELS['macos']['archs']}"
    }
    runners = re.search(r"os: \[(.+)\]", WORKFLOW)
    assert runners is not None
    assert [name.split("-")[0] for name in runners[1].split(", ")] == ["ubuntu", "ubuntu", "macos"]
    assert "windows" not in WORKFLOW.split("jobs:")[1].split("pure:")[0]  # the pure one, as the page says


def test_a_wheel_without_its_core_is_not_built_by_accident() -> None:
    assert WHEELS["environment"]["LOCANT_CORE"] == WHEELS["macos"]["environment"]["LOCANT_CORE"] == "1"
    assert "--exclude libgomp.so.1" in WHEELS["linux"]["repair-wheel-command"]
    for setting, value in (("cmake", "false"), ("platlib", "false"), ("py-api", "py3")):
        assert f"-C wheel.{setting}={value}" in WORKFLOW


def test_nothing_is_published() -> None:
    assert "contents: read" in WORKFLOW
    assert not re.search(r"twine upload|pypi-publish|id-token", WORKFLOW)
    assert "twine upload" in PAGE


def test_commands_of_the_workflow_are_there() -> None:
    for script in re.findall(r"python ([\w/]+\.py)", WORKFLOW + WHEELS["test-command"].replace("{project}/", "")):
        assert (ROOT / script).is_file()


@pytest.mark.parametrize(("tag", "code"), [(f"v{locant.__version__}", 0), ("v99.0", 1), ("main", 0)])
def test_a_tag_is_that_of_the_version(tag: str, code: int) -> None:
    done = subprocess.run([sys.executable, ROOT / "tests" / "wheel.py", "--tag", tag], capture_output=True, check=False)
    assert done.returncode == code


@pytest.mark.native
def test_the_core_runs_by_its_integers() -> None:
    done = subprocess.run([sys.executable, ROOT / "tests" / "wheel.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_report_of_a_fault_asks_for_info() -> None:
    assert "`locant info`" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "fault.md").read_text()


def test_notebooks_follow_from_their_pages() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "notebooks.py", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), "run docs/notebooks.py"
