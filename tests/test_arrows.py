"""Imports run one way only: read from the source of every file, TYPE_CHECKING and function bodies included."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "locant"

# From the ground up (docs/architecture.md). A file may import from its own layer and from below, never in a circle.
LAYERS = (
    {"dispatch", "processor", "tokens", "caching", "page"},  # pages are words and arrays: they know no scheme
    {"checks", "grid", "costs", "atomic", "registry"},
    {"masks", "cells", "forms", "resizing", "problem", "softmax"},
    {
        "layout",
        "places",
        "frames",
        "gpu",
        "operands",
        "separable",
        "operators",
        "operate",
        "products",
    },  # what kernels share
    {"maps"},  # which know of a scheme how it enters, and nothing else
    {"positions", "kernels"},  # which never know each other: they meet in the forms
    {"planner", "speed"},
    {"call", "hooks"},
    {"attend"},
    {"flops", "multiply_adds", "nn"},
    {"tasks", "measuring"},  # what models are tried on, how things are measured
    {"values"},
    {"flags"},
    {"models", "checkpoints", "integrations", "compare", "bench", "explain", "info"},
    {"cli", "options"},
    {"__main__"},
)
# Members of a family know the contract of the family, and never each other.
CONTRACTS = {"positions": "locant.positions.position", "kernels": "locant.kernels.kernel"}
# Optional or slow to import: only inside the functions that use them.
HEAVY = set(
    "PIL av matplotlib monai mpl_toolkits onnx onnxruntime onnxscript openvino pandas scipy skimage sklearn timm "
    "torchvision transformers triton".split()
)
# Kernels stand in the words of Triton as soon as they are imported: they are as heavy as it is to everyone else.
TRITON = {f"locant.gpu.{name}" for name in ("tiles", "general", "learned", "windows", "launch")}


class Imports(ast.NodeVisitor):
    """What a file imports: (module, name or None, whether it happens as soon as the file is imported)."""

    def __init__(self, source: str) -> None:
        self.found: list[tuple[str, str | None, bool]] = []
        self._lazy = 0
        self.visit(ast.parse(source))

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, None, not self._lazy) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = "." * node.level + (node.module or "")
        self.found += [(module, alias.name, not self._lazy) for alias in node.names]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._later(node)

    def visit_If(self, node: ast.If) -> None:
        checking = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self._later(node) if checking else self.generic_visit(node)

    def _later(self, node: ast.AST) -> None:
        self._lazy += 1
        self.generic_visit(node)
        self._lazy -= 1


def edges(files: dict[str, str]) -> Iterator[tuple[str, str, str | None]]:
    """(importing module, imported module of locant, name or None)."""
    for module, source in files.items():
        for target, name, _ in Imports(source).found:
            if target.split(".")[0] == "locant":
                full = f"{target}.{name}"
                yield (module, full, None) if full in files else (module, target, name)


def room(module: str) -> str:
    """'locant.positions.table' stands in 'positions'."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def violations(files: dict[str, str]) -> list[str]:
    """One sentence per import that runs the wrong way, for modules given as {name: source}."""
    layer = {name: height for height, names in enumerate(LAYERS) for name in names}
    wrong = [f"{module} stands in no layer" for module in files if room(module) and room(module) not in layer]
    wrong += [f"{module} imports relatively" for module, source in files.items() if "from ." in source]
    graph: dict[str, set[str]] = {module: set() for module in files}
    for module, target, name in edges(files):
        if module == "locant":  # the lazy names: they load nothing
            continue
        graph[module].add(target)
        here, there = room(module), room(target)
        if target == "locant":
            if name != "__version__":
                wrong.append(f"{module} imports {name or 'locant'} from the top instead of from where it is defined")
        elif {here, there} == {"positions", "kernels"}:
            wrong.append(f"{module} imports {target}: schemes and kernels meet in the forms")
        elif layer.get(there, 0) > layer.get(here, len(LAYERS)):
            wrong.append(f"{module} imports {target}, which lies above it")
        elif here == there and here in CONTRACTS and module != f"locant.{here}" and target != CONTRACTS[here]:
            wrong.append(f"{module} imports {target}: members of a family never know each other")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        wrong.append(f"a circle: {' → '.join(error.args[1])}")
    return wrong


def eager(source: str) -> set[str]:
    """The heavy packages, and kernels, that a file imports as soon as it is imported itself."""
    found = [(target, name) for target, name, now in Imports(source).found if now]
    packages = {target.split(".")[0] for target, _ in found} & HEAVY
    return packages | {full for target, name in found for full in (target, f"{target}.{name}") if full in TRITON}


def sources() -> dict[str, str]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def test_layers_and_contracts_name_what_is_there() -> None:
    modules = sources()
    assert {name for names in LAYERS for name in names} == {room(module) for module in modules} - {""}
    assert {f"locant.{family}" for family in CONTRACTS} | set(CONTRACTS.values()) <= set(modules)


def test_the_arrows_hold() -> None:
    assert violations(sources()) == []


@pytest.mark.parametrize("module", sources())
def test_heavy_imports_wait_for_their_use(module: str) -> None:
    assert eager(sources()[module]) - ({"triton", *TRITON} if module in TRITON else set()) == set()


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("locant.grid", "from locant.masks import Mask", "above"),
        ("locant.grid", "if TYPE_CHECKING:\n    from locant import masks", "above"),
        ("locant.planner", "def f():\n    import locant.attend", "above"),
        ("locant.nn.block", "from locant.compare.run import run", "above"),
        ("locant.positions.table", "from locant.positions.slopes import ALiBi", "never know each other"),
        ("locant.positions.table", "from locant.positions import slopes", "never know each other"),
        ("locant.kernels.sdpa", "from locant.kernels.reference import run", "never know each other"),
        ("locant.kernels.sdpa", "from locant.positions.table import RelativeTable", "meet in the forms"),
        ("locant.positions.table", "import locant.kernels.sdpa", "meet in the forms"),
        ("locant.attend", "from locant import Grid", "instead of from where it is defined"),
        ("locant.masks", "from locant.forms import Dense", "a circle"),
        ("locant.utils", "", "no layer"),
        ("locant.nn.block", "from .attention import Attention", "relatively"),
    ],
)  # fmt: skip
def test_a_wrong_arrow_is_seen(module: str, source: str, complaint: str) -> None:
    known = "grid masks planner attend compare.run positions positions.slopes positions.table kernels.sdpa".split()
    files = {f"locant.{name}": "" for name in known} | {"locant.forms": "from locant.masks import Mask"}
    assert violations(files) == []
    assert any(complaint in sentence for sentence in violations(files | {module: source}))


def test_an_eager_import_is_seen_and_a_late_one_is_not() -> None:
    assert eager("try:\n    import PIL.Image\nexcept ImportError:\n    pass") == {"PIL"}
    assert eager("class Chart:\n    from matplotlib import pyplot") == {"matplotlib"}
    assert eager("from locant.gpu import launch, chips") == {"locant.gpu.launch"}
    assert eager("def draw():\n    import matplotlib\nif TYPE_CHECKING:\n    import av") == set()
