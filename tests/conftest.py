"""Three parts, one command each: with the shape hook (`pytest`), without it (`pytest --plain`), and Triton's kernels on
CPU tensors (`TRITON_INTERPRET=1 pytest`).

The hook checks every jaxtyping annotation of `locant` at run time, through beartype. Graphs cannot carry such checks,
and a wrong argument would meet them before the library's own sentence: tests marked `compiled` and `plain` therefore
run in the second part. Each part leaves out the other's tests; `./run test` runs both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
from hypothesis import settings

WITHOUT_HOOK = ("compiled", "plain")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # all kernels of the process: only tests of them run

settings.register_profile("locant", deadline=None, derandomize=True, database=None)  # no clock, the same examples
settings.load_profile("locant")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plain", action="store_true", help="without the shape hook: tests marked compiled or plain")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--plain") and not INTERPRETED:
        early = sorted(name for name in sys.modules if name.startswith("locant."))
        assert not early, f"the hook must come before the modules that it checks; already imported: {early}"
        from jaxtyping import install_import_hook

        install_import_hook("locant", "beartype.beartype")
    if hasattr(config, "workerinput"):  # a worker of xdist: as many processes as cores, one thread each
        import torch

        torch.set_num_threads(1)


def pytest_report_header(config: pytest.Config) -> str:
    if INTERPRETED:
        return "part: Triton's interpreter (no shape hook; only tests marked interpreted)"
    if config.getoption("--plain"):
        return "part: plain (no shape hook; only tests marked compiled or plain)"
    return "part: shapes checked (tests marked compiled or plain are left out: run them with --plain)"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    plain = config.getoption("--plain")
    kept, left = [], []
    for item in items:
        without = any(item.get_closest_marker(name) for name in WITHOUT_HOOK)
        interpreted = item.get_closest_marker("interpreted") is not None
        (kept if interpreted == INTERPRETED and (interpreted or without == plain) else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> None:
    """The same random numbers, and no compiled code, whatever ran before on whichever worker."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
        if request.node.get_closest_marker("compiled"):
            torch.compiler.reset()  # else the eighth variant of one function hits the limit on recompiling


@pytest.fixture(autouse=True)
def _compiled_kernels(request: pytest.FixtureRequest) -> None:
    """Tests of the compiled kernels, marked or with a parameter `kernel="native"`, need them."""
    item = request.node
    named = item.callspec.params.get("kernel") if hasattr(item, "callspec") else None
    if named == "native" or item.get_closest_marker("native"):
        from locant import operators

        if isinstance(operators.built(), str):
            pytest.skip(operators.built())


@pytest.fixture(autouse=True)
def _private_names_of_torch(request: pytest.FixtureRequest) -> None:
    """Tests marked private ask for what the public ways of locant/dispatch.py leave out."""
    if request.node.get_closest_marker("private") and os.environ.get("LOCANT_PUBLIC_TORCH") == "1":
        pytest.skip("LOCANT_PUBLIC_TORCH=1 takes torch's private names away")


@pytest.fixture(autouse=True)
def _compiler_of_inductor(request: pytest.FixtureRequest) -> None:
    """Tests of torch's inductor, marked or with a parameter `backend="inductor"`, need a C++ compiler."""
    item = request.node
    named = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
    if named == "inductor" or item.get_closest_marker("inductor"):
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            pytest.skip(f"torch's inductor has no C++ compiler: {error}")


@pytest.fixture
def parity(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """parity(row, reference, error, tolerance): asserts it, and keeps it for docs/parity.md (docs/parity.py)."""
    marked = {mark.args[0] for mark in request.node.iter_markers("row")}

    def compared(row: int, reference: str, error: float, tolerance: float) -> None:
        assert row in marked, f"a comparison for row {row} belongs in a test marked row({row})"
        record_property("parity", (row, reference, float(error), float(tolerance)))
        assert error <= tolerance, f"row {row}, {reference}: off by {error:.2e}, {tolerance:.1e} is allowed"

    return compared
