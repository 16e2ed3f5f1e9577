"""Triton's kernels in graphs: models under torch.compile, and what a CUDA graph asks of a call.

TRITON_INTERPRET=1 pytest tests/test_triton_graphs.py.
"""

from __future__ import annotations

import itertools

import pytest
import small
import torch
from test_triton import FAMILIES, HEADS, close
from torch._dynamo.backends.debugging import aot_eager

from locant import hooks, planner, speed
from locant.cells import reach
from locant.gpu import lists
from locant.layout import described
from locant.masks import Structure
from locant.measuring.exactness import plainly
from locant.models.vit import ViT

pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tried here")
from locant.gpu import general, launch, learned, windows

pytestmark = pytest.mark.interpreted

MODELS = {  # what is run, and how many attentions it has
    "a Swin stage": (lambda: small.swin(window=(4, 3)), 3),
    "a ViT": (lambda: ViT(img_size=32, patch=8, dim=32, depth=2, heads=2, num_classes=5, position="relative"), 2),
}


@pytest.fixture
def measured(monkeypatch):
    """Constants by which a plan takes Triton's kernels, on every chip."""
    keys = itertools.product(("cpu", "sm90"), ("triton",), ("float32", "bfloat16"), ("forward", "learned"))
    table = dict.fromkeys(keys, (0.0,) * 7)
    monkeypatch.setattr(speed, "SECONDS", table)
    monkeypatch.setattr(planner, "SECONDS", table)


def one_graph(model, x, seen):
    def backend(graph, inputs):
        seen.append([str(node.target) for node in graph.graph.nodes])
        return aot_eager(graph, inputs)

    return torch.compile(model, backend=backend, fullgraph=True)(x)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_one_graph(name, measured):
    """Shifted windows and the whole plane: values and gradients are those of torch's attention."""
    make, count = MODELS[name]
    model, x, seen = make().eval(), torch.randn(1, 3, 32, 32), []
    found = one_graph(model, x, seen)
    gradients = torch.autograd.grad(found.square().sum(), list(model.parameters()), allow_unused=True)
    assert [sum("locant.attend" in node for node in graph) for graph in seen] == [count]
    planner._remembered.cache_clear()
    with hooks.attending(plainly):
        golden = model(x)
    expected = torch.autograd.grad(golden.square().sum(), list(model.parameters()), allow_unused=True)
    pairs = [(a, b) for a, b in zip((found, *gradients), (golden, *expected), strict=True) if b is not None]
    assert len(pairs) > 20
    close(*zip(*pairs, strict=True))


@pytest.mark.parametrize("name", ["attend", "attend_packed", "attend_backward", "attend_packed_backward"])
def test_the_operators_have_an_implementation_for_gpus(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"locant::{name}", "CUDA")


@pytest.mark.parametrize("family", ["2-D prefix", "causal", "segments", "windows of 49, shifted", "windows of 70"])
def test_a_cuda_graph_can_hold_a_call(family, monkeypatch):
    """On meta tensors, kernels left out: asking for a value is an error, and a second call moves no list there."""
    grid, _, mask = FAMILIES[family]
    structure, moved = Structure.of(mask), []
    needed = reach(grid, grid, structure.windows)
    numbers = tuple(described(grid, grid, structure, needed))
    for module in (general, learned, windows):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Silent())
    monkeypatch.setattr(launch, "chip_of", lambda device: "sm90")
    monkeypatch.setattr(lists, "processors", lambda device: 132)
    monkeypatch.setattr(lists, "_tensor", lambda x, device: moved.append(x) or torch.from_numpy(x.copy()).to(device))
    cached = [x for x in vars(lists).values() if hasattr(x, "cache_clear")]
    for each in cached:
        each.cache_clear()
    with torch.device("meta"):
        q, k, v, dout = (torch.empty(2, HEADS, grid.tokens, 32, dtype=torch.bfloat16) for _ in range(4))
        table = torch.empty(HEADS, *(2 * n + 1 for n in needed))
        rows = torch.empty(3, HEADS) if grid.prefix else None
        ids = torch.empty(2, grid.tokens, dtype=torch.int64) if structure.segments else None
        dropout = 0.0 if family.startswith("windows of 49") else 0.1
        seed = torch.empty(1, dtype=torch.int64) if dropout else None
        rest = (table, rows, None, ids, ids, numbers, (0, 0), 0.25, dropout, seed)
        for _ in range(2):
            before = len(moved)
            out, lse = launch.forward(q, k, v, *rest)
            into = tuple(torch.empty_like(x) for x in (q, k, v))
            dtable, drows = launch.backward(into, dout, torch.empty_like(lse), out, lse, True, q, k, v, *rest)
    assert before > 0 == len(moved) - before
    assert all(x.is_meta for x in (out, lse, dtable, drows))
    assert (dtable.shape, drows.shape) == (table.shape, (3, HEADS) if grid.prefix else (0,))
    for each in cached:
        each.cache_clear()


class Silent:
    """A kernel that is launched and does nothing."""

    def __getitem__(self, programs):
        assert len(programs) == 1
        assert 0 < programs[0] < 2**31
        return lambda *operands, **constants: None
