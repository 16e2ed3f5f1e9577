"""Graphs: compiled and exported attention is eager attention; autocast, copies and moves change nothing either."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch._dynamo.testing
from laws import gradients, same
from schemes import HEADS, PLANE, RAGGED, SCHEMES, WHOLE, heads, learned, parts

from locant import Causal, GatedPosition, Grid, Padding, Pairs, RelativeTable, Segments, Windows, attention
from locant.attend import attention_packed
from locant.nn import MultiHeadAttention

pytestmark = pytest.mark.compiled

BY_NAME = {s.name: s for s in SCHEMES}
VALID = torch.arange(24)[None] < torch.tensor([[24], [17]])
CASES = [
    ("none", None), ("none", Causal()), ("alibi-1d", Causal()), ("rotary-1d", Causal()), ("table-1d", None),
    ("table-2d", None), ("table-2d", RAGGED[2]), ("table-2d", WHOLE[2] & Causal()), ("table-2d", Padding(VALID)),
    ("table-2d", Segments(VALID.long())), ("table-3d", WHOLE[3]), ("table-2d-prefix", WHOLE[2]),
    ("rotary-2d-prefix", None), ("gate-2d", None), ("gate-2d", RAGGED[2]), ("gate-2d", Padding(VALID)),
    ("table+alibi+rotary", None),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def run(q, k, v, grid, position, mask):
    return attention(q, k, v, grid=grid, position=position, mask=mask)


def equal_to_eager(compiled, scheme, mask):
    position = scheme.make()
    q, k, v = (x.requires_grad_() for x in heads(scheme.grid))
    inputs = (q, k, v, *learned(position))
    found = compiled(q, k, v, scheme.grid, position, mask)
    golden = run(q, k, v, scheme.grid, position, mask)
    same(found, golden)
    weight = torch.randn_like(golden)
    both = [torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True) for out in (found, golden)]
    for x, ref in zip(*both, strict=True):
        same(torch.zeros(()) if x is None else x, torch.zeros(()) if ref is None else ref, "gradients")


@pytest.mark.parametrize(("scheme", "mask"), CASES, ids=lambda x: None if isinstance(x, str) else type(x).__name__)
def test_one_graph(scheme, mask):
    """fullgraph=True, forward and backward; grid, position and mask are arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        equal_to_eager(torch.compile(run, fullgraph=True, backend="aot_eager"), BY_NAME[scheme], mask)


@pytest.mark.parametrize("mask", [None, Causal(), Padding(VALID), Padding(VALID) & Causal()], ids=repr)
def test_one_graph_without_a_grid(mask):
    """Where the grid is left out, it is made within the graph; so is a mask's description."""
    q, k, v = heads(Grid(24))
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, mask=mask), fullgraph=True, backend="eager")
    same(compiled(q, k, v), attention(q, k, v, mask=mask))
    compiled = torch.compile(lambda q, k, v: attention(q[:, :, :5], k, v), fullgraph=True, backend="eager")
    same(compiled(q, k, v), attention(q[:, :, :5], k, v))


def test_module_with_a_mask_and_no_grid():
    layer, x = MultiHeadAttention(16, 2).double(), torch.randn(2, 9, 16, dtype=torch.float64)
    same(
        torch.compile(layer, fullgraph=True, backend="eager")(x, x, x, mask=Causal())[0],
        layer(x, x, x, mask=Causal())[0],
    )


@pytest.mark.native
def test_compiling_is_not_exporting():
    """The compiled kernels are in compiled graphs, and refuse to be exported."""
    q, k, v = heads(Grid(24))
    run = torch.compile(lambda q, k, v: attention(q, k, v, kernel="native"), fullgraph=True, backend="eager")
    same(run(q, k, v), attention(q, k, v, kernel="native"))


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.parametrize(("scheme", "mask"), [("table-2d", WHOLE[2]), ("gate-2d", None)], ids=["windows", "gate"])
def test_inductor(scheme, mask):
    equal_to_eager(torch.compile(run, fullgraph=True), BY_NAME[scheme], mask)


def test_any_batch_is_one_graph():
    count = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(run, fullgraph=True, backend=count, dynamic=True)
    table = RelativeTable(PLANE, HEADS).double()
    for batch in (4, 3, 7):  # no other size is 4: the compiler takes equal sizes for one
        q, k, v = heads(PLANE, batch=batch)
        same(compiled(q, k, v, PLANE, table, WHOLE[2]), run(q, k, v, PLANE, table, WHOLE[2]))
    assert count.frame_count == 1


def test_another_grid_is_another_graph():
    """The grid is a constant of the graph: a second one compiles again and is right."""
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    table = RelativeTable(PLANE, HEADS).double()
    for grid in (PLANE, Grid(3, 5), Grid(6, 4)[1:5], Grid(3, 5)):
        q, k, v = heads(grid)
        same(compiled(q, k, v, grid, table, WHOLE[2]), run(q, k, v, grid, table, WHOLE[2]))


def test_packed():
    table = RelativeTable(PLANE, HEADS).double()
    qkv = torch.randn(2, 4, 6, 3, HEADS, 8, dtype=torch.float64)

    def packed(qkv):
        return attention_packed(qkv, position=table, mask=WHOLE[2])

    same(torch.compile(packed, fullgraph=True, backend="eager")(qkv), packed(qkv))


class Mixer(torch.nn.Module):
    """A layer as a user writes one."""

    def __init__(self, position):
        super().__init__()
        self.position, self.project = position, torch.nn.Linear(16, 3 * HEADS * 8).double()

    def forward(self, x, grid, mask=None):
        qkv = self.project(x).unflatten(-1, (3, HEADS, 8))
        return attention_packed(qkv, grid=grid, position=self.position, mask=mask)


@pytest.mark.private  # exported programs take a grid as an argument where torch lets it be registered
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("name", "mask"), [("table-2d", WHOLE[2]), ("gate-2d", None), ("rotary-2d-prefix", Causal())])
def test_export(name, mask, strict):
    scheme = BY_NAME[name]
    model = Mixer(scheme.make()).eval()
    x = torch.randn(2, scheme.grid.tokens, 16, dtype=torch.float64)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        model, (x, scheme.grid, mask), dynamic_shapes=({0: batch}, [], None if mask is None else []), strict=strict
    )
    same(program.module()(x, scheme.grid, mask), model(x, scheme.grid, mask))
    more = torch.randn(5, scheme.grid.tokens, 16, dtype=torch.float64)
    same(program.module()(more, scheme.grid, mask), model(more, scheme.grid, mask))


@pytest.mark.private
def test_export_takes_masks_as_inputs():
    """Padding is a pytree node: another padding goes through the same program."""
    model = Mixer(BY_NAME["table-2d"].make()).eval()
    x = torch.randn(2, 24, 16, dtype=torch.float64)
    program = torch.export.export(model, (x, PLANE, Padding(VALID)), strict=False)
    for mask in (Padding(VALID), Padding(~VALID | VALID.flip(1))):
        same(program.module()(x, PLANE, mask), model(x, PLANE, mask))
    two = Padding(VALID) & Segments(VALID.long()) & Pairs(torch.ones(2, 24, 24, dtype=torch.bool))
    program = torch.export.export(model, (x, PLANE, two), strict=False)
    same(program.module()(x, PLANE, two), model(x, PLANE, two))


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.name != "none"], ids=str)
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_autocast(scheme, kernel):
    """bfloat16 arithmetic, float32 parameters and gradients; within bfloat16's own error of the plain computation.

    The gradients of one scheme are one tensor: under windows of one frame those in time are 0 but for rounding.
    """
    position = scheme.make(torch.float32)
    q, k, v = (x.requires_grad_() for x in heads(scheme.grid, dtype=torch.float32))
    inputs = (q, k, v, *learned(position))
    arguments = {"grid": scheme.grid, "position": position, "mask": RAGGED[scheme.grid.axes]}
    golden = attention(q, k, v, **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(q, k, v, kernel=kernel, **arguments)
    assert out.dtype == torch.bfloat16
    groups = [(q,), (k,), (v,), *(tuple(part.parameters()) for part in parts(position))]
    pairs = [(out, golden)]
    for group in (group for group in groups if group):
        pairs.append(tuple(torch.cat([g.flatten() for g in gradients(x, group)]) for x in (out, golden)))
    for x, ref in pairs:
        assert x.isfinite().all()
        assert (x.float() - ref).abs().max() <= 0.05 * ref.abs().max() + 0.05
    assert all(p.grad_fn is None and p.dtype == torch.float32 for p in inputs)


def test_autocast_compiled():
    scheme = BY_NAME["table-2d"]
    position = scheme.make(torch.float32)
    q, k, v = heads(scheme.grid, dtype=torch.float32)
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        found, golden = (f(q, k, v, PLANE, position, None) for f in (compiled, run))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, golden)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.name != "none"], ids=str)
def test_copies_and_moves(scheme):
    """deepcopy, pickle and a state dict give the same module; `.half`, `.to` and back one that still works."""
    position = torch.nn.ModuleList(parts(scheme.make()))
    q, k, v = heads(scheme.grid)

    def out(schemes, *x):
        return attention(*(x or (q, k, v)), grid=scheme.grid, position=tuple(schemes))

    golden = out(position)
    again = torch.nn.ModuleList(parts(scheme.build())).double()
    again.load_state_dict(position.state_dict(), strict=True)
    for other in (
        copy.deepcopy(position),
        pickle.loads(pickle.dumps(position)),
        again,
        copy.deepcopy(position).to("cpu"),
    ):
        assert torch.equal(out(other), golden)
    assert set(position.state_dict()) == {name for name, _ in position.named_parameters()}, "learned tensors only"
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        low = out(copy.deepcopy(position).to(dtype), *(x.to(dtype) for x in (q, k, v)))
        assert low.dtype == dtype
        assert (low.double() - golden).abs().max() < 0.1
    assert copy.deepcopy(position).half().state_dict().keys() == position.state_dict().keys()


@pytest.mark.parametrize("scheme", ["table-2d", "gate-2d", "rotary-3d"])
def test_checkpointing_gives_the_same_gradients(scheme):
    scheme = BY_NAME[scheme]
    position = scheme.make()
    q, k, v = (x.requires_grad_() for x in heads(scheme.grid))
    inputs = (q, k, v, *learned(position))
    plain = run(q, k, v, scheme.grid, position, RAGGED[scheme.grid.axes])
    saved = torch.utils.checkpoint.checkpoint(
        run, q, k, v, scheme.grid, position, RAGGED[scheme.grid.axes], use_reentrant=False
    )
    for x, ref in zip(gradients(saved, inputs), gradients(plain, inputs), strict=True):
        assert torch.equal(x, ref)


def test_functional_transforms_of_a_learned_bias():
    """torch's attention on the CPU has no gradient for a bias there: the definition takes over."""
    table = RelativeTable(PLANE, HEADS, init_std=1.0).double()
    q, k, v = heads(PLANE)

    def loss(values):
        moved = torch.func.functional_call(Attend(table), {"position.table": values}, (q, k, v))
        return moved.square().sum()

    golden = torch.autograd.grad(attention(q, k, v, grid=PLANE, position=table).square().sum(), table.table)[0]
    same(torch.func.grad(loss)(table.table.detach()), golden, "gradients")
    many = torch.vmap(lambda q: attention(q, k, v, grid=PLANE, position=table))(torch.stack([q, 2 * q]))
    same(many[1], attention(2 * q, k, v, grid=PLANE, position=table))


class Attend(torch.nn.Module):
    def __init__(self, position):
        super().__init__()
        self.position = position

    def forward(self, q, k, v):
        return attention(q, k, v, grid=PLANE, position=self.position)


def test_functional_transforms():
    """vmap over another batch and grad through a gate."""
    gate = GatedPosition(HEADS).double()
    q, k, v = (x[None].repeat(3, 1, 1, 1, 1) for x in heads(PLANE))

    def loss(q, k, v):
        return attention(q, k, v, grid=PLANE, position=gate, mask=Windows((2, 3))).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(q, k, v)
    golden = torch.func.grad(loss)(q[0], k[0], v[0])
    same(found, golden.expand_as(found))
