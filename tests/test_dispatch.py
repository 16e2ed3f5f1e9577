"""torch's private names: in one file, and not needed there. Without them all is right, only slower."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from locant import dispatch

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "locant"
OF_TORCH_C = """
    _dispatch_keys _len_torch_dispatch_stack _len_torch_function_stack _get_tracing_state
    _are_functorch_transforms_active
""".split()


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined(tree: ast.AST) -> set[str]:
    """What the file itself gives a private name: functions, classes, variables, attributes it assigns."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


def foreign(sources: dict[str, str]) -> list[str]:
    """Private names that are read from objects or modules, and that no file of ours defines."""
    trees = {name: ast.parse(source) for name, source in sources.items()}
    ours = set().union(*map(defined, trees.values()))
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in ours:
                found.append(f"{name}: .{node.attr}")
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("locant", "__future__")):
                words = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found += [f"{name}: {word}" for word in words if private(word)]
            elif isinstance(node, ast.Import):
                found += [f"{name}: {a.name}" for a in node.names if any(map(private, a.name.split(".")))]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                words = [x.value for x in node.args if isinstance(x, ast.Constant) and isinstance(x.value, str)]
                found += [f"{name}: {word}" for word in words if private(word) and word not in ours]
    return found


def test_private_names_of_others_stand_in_one_file() -> None:
    found = foreign({str(path.relative_to(SOURCE)): path.read_text() for path in SOURCE.rglob("*.py")})
    found.remove("compare/worker.py: ._exit")  # Python's own, documented
    # integrations read those of the libraries that they know, whose source they compare; torch's they read in dispatch
    libraries = {
        "_attn_implementation", "_relative_position_bucket", "_apply_chunk_attention", "_apply_rotary_embedding",
        "_get_alibi_slopes", "_active_collector", "_gradient_checkpointing_func",
        "_can_set_attn_implementation",  # of transformers
        "_fast_norm",  # of timm
    }  # fmt: skip
    theirs = [
        line for line in found if line.startswith("integrations/") and line.split(": ")[1].lstrip(".") in libraries
    ]
    found = [line for line in found if line not in theirs]
    assert [line for line in found if not line.startswith("dispatch.py")] == []
    assert any("_dynamo_marked_constant" in path.read_text() for path in [SOURCE / "dispatch.py"])


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._C._x(1)", "from torch.utils import _pytree", "from torch._dynamo import disable",
        "import torch._dynamo", "y = x.untyped_storage()._cdata", "getattr(torch, '_check')",
    ],
)  # fmt: skip
def test_a_private_name_is_seen(source: str) -> None:
    assert foreign({"a": source, "b": "class _C: ...\nself._own = 1\nself._own.x"})


# --- without them -----------------------------------------------------------------------------------------------------


def heart(*parts: str, public: bool = True, before: str = "") -> str:
    """tests/heart.py in a process of its own, after other code."""
    run = f"import runpy, sys\nsys.argv = ['heart', *{parts!r}]\nrunpy.run_path('heart.py', run_name='__main__')"
    environment = {**os.environ, "LOCANT_PUBLIC_TORCH": str(int(public)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{before}\n{run}"],
        capture_output=True, text=True, timeout=280, check=False, env=environment, cwd=TESTS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("parts", [("auto", "sdpa", "reference"), ("transforms", "flops")], ids=" ".join)
def test_right_without_private_names(parts: tuple[str, ...]) -> None:
    assert heart(*parts).split() == list(parts)


@pytest.mark.native
def test_the_compiled_kernels_without_private_names() -> None:
    assert heart("native").split() == ["native"]


@pytest.mark.compiled
def test_graphs_without_private_names() -> None:
    assert heart("graphs").split() == ["graphs"]


def test_the_reference_where_torch_itself_has_lost_them() -> None:
    gone = f"import torch\nfor name in {OF_TORCH_C}: delattr(torch._C, name)\ndel torch._C._autograd._profiler_enabled"
    assert heart("reference", public=False, before=gone).split() == ["reference"]


def test_no_private_name_is_asked_for() -> None:
    """LOCANT_PUBLIC_TORCH=1 leaves nothing of torch's own in the file."""
    code = "from locant import dispatch as d; print(d._pytree, d._keys, d._PLAIN, d._assert_async, *d._WATCHERS)"
    found = heart(before=code).split()
    assert set(found) == {"None"}


def test_the_way_past_the_dispatcher_is_for_plain_tensors_alone() -> None:
    """Also where the library was first imported under another default device: a meta tensor has no numbers to read."""
    code = """if True:
        import torch
        with torch.device("meta"):
            from locant import dispatch
        assert dispatch.is_unwatched((torch.empty(3), torch.nn.Parameter(torch.empty(3)), None, 1))
        assert not dispatch.is_unwatched((torch.empty(3, device="meta"),))
        assert not dispatch.is_unwatched((torch._neg_view(torch.empty(3)),))
        with torch.profiler.profile():
            assert not dispatch.is_unwatched((torch.empty(3),))
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_refused_function_tells_of_a_transform() -> None:
    """The public way round agrees with the private name."""
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append((dispatch._is_function_refused(), dispatch.is_transformed()))
        return x.sum()

    x = torch.randn(3)
    look(x), torch.func.grad(look)(x), torch.vmap(look)(torch.randn(2, 3)), torch.func.jvp(look, (x,), (x,))
    assert seen == [(False, False), (True, True), (True, True), (True, True)]


def test_constants_are_marked_as_torch_marks_them() -> None:
    def marked(decorate: object) -> dict[str, object]:
        function = lambda: 1  # noqa: E731
        return vars(decorate(function))

    assert marked(dispatch.constant_to_graphs) == marked(torch.compiler.assume_constant_result)


def test_importing_attention_leaves_the_compiler_out() -> None:
    code = "from locant import attention; import sys; print('torch._dynamo' in sys.modules)"
    assert heart(public=False, before=code).split() == ["False"]
