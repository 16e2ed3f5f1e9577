"""The compiled kernels in graphs: Swin's and ViT's blocks, export, fake and meta tensors, autocast, checkpoints."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from exactness import BY_NAME
from schemes import HEADS, PLANE, RAGGED, heads
from torch import nn
from torch._subclasses import FakeTensorMode

from locant import Grid, Padding, RelativeTable, Windows, attention, plan
from locant.attend import attention_packed
from locant.nn import Attention, Block, WindowAttention

pytestmark = [pytest.mark.compiled, pytest.mark.native]


def swin() -> nn.Module:
    """Two layers of a Swin stage, the second one shifted."""
    grid = Grid(10, 9)
    layers = [WindowAttention(12, 3, (4, 4), grid=grid, shift=shift, kernel="native") for shift in (None, (2, 2))]
    return nn.Sequential(*layers)


def vit() -> nn.Module:
    """Two blocks of a ViT with a learned table in each, and a class token."""
    return nn.Sequential(*(block(Grid(5, 6, prefix=1)) for _ in range(2)))


def block(grid: Grid, dropout: float = 0.0) -> nn.Module:
    position = RelativeTable(grid, 3)
    return Block(12, 3, attention=Attention(12, 3, grid=grid, position=position, dropout=dropout, kernel="native"))


MODELS = {"swin": (swin, 90), "vit": (vit, 31)}


def built(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, tokens = MODELS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, RelativeTable):
            for row in module.parameters():
                nn.init.normal_(row, std=0.5)
    return model.double(), torch.randn(2, tokens, 12, dtype=torch.float64)


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and every gradient of one step."""
    out = model(x := x.clone().requires_grad_())
    return [out, *torch.autograd.grad(out.square().sum(), (x, *model.parameters()))]


class Kept:
    """A backend that keeps its graphs."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        self.graphs.append(graph)
        return graph


@pytest.mark.parametrize("name", MODELS)
def test_one_graph_without_breaks(name):
    """fullgraph=True, with the operators in it; not even a warning of the tracer."""
    model, x = built(name)
    kept = Kept()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=kept)
        assert torch.equal(compiled(x), model(x))
    (graph,) = kept.graphs
    assert sum("locant.attend" in str(node.target) for node in graph.graph.nodes) == 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_step_is_that_of_eager(name, backend):
    model, x = built(name)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    for found, golden in zip(step(compiled, x), step(model, x), strict=True):
        assert (found - golden).abs().max() <= 1e-10


def test_compiled_dropout_is_the_same_forward_and_backward():
    """Values that are rows of the unit matrix show what was dropped."""
    eye = torch.eye(24, dtype=torch.float64).expand(2, HEADS, -1, -1)
    q, k, _ = heads(PLANE)

    def run(q, v):
        return attention(q, k, v, grid=PLANE, dropout=0.4, kernel="native")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    q, eye = q.requires_grad_(), eye.clone().requires_grad_()
    out = compiled(q, eye)
    p = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    golden = torch.where(out != 0, p / 0.6, 0.0) @ eye
    assert 0.5 < (out != 0).double().mean() < 0.7
    assert (out - golden).abs().max() <= 1e-10
    weight = torch.randn_like(out)
    for found, ref in zip(*(torch.autograd.grad((x * weight).sum(), (q, eye)) for x in (out, golden)), strict=True):
        assert (found - ref).abs().max() <= 1e-10
    assert not torch.equal(compiled(q, eye) != 0, out != 0), "another call, another draw"


def test_export_takes_torchs_own_operators_and_the_plan_says_so(monkeypatch):
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = RelativeTable(PLANE, HEADS).double()

        def forward(self, q, k, v):
            return attention(q, k, v, grid=PLANE, position=self.position, mask=RAGGED[2])

    q_k_v, model = heads(PLANE), Mixer()
    program = torch.export.export(model, q_k_v, strict=False)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("locant" in target for target in targets)
    assert any("scaled_dot_product_attention" in target for target in targets)
    assert (program.module()(*q_k_v) - model(*q_k_v)).abs().max() <= 1e-10
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    found = plan(*q_k_v, grid=PLANE, position=model.position, mask=RAGGED[2])
    assert found.kernel == "sdpa"
    assert dict(found.passed_over)["native"].startswith("under export the graph is made of torch's own operators")
    assert "under export these are torch's own operators" in str(found)


def like(found: torch.Tensor, real: torch.Tensor) -> bool:
    return (found.shape, found.stride(), found.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_fake_and_meta_tensors_have_the_shapes_of_real_ones(dtype):
    """Sizes, strides and dtypes of outputs, log-sum-exps and gradients, without a number."""
    scheme = BY_NAME["table-2d-prefix"]
    valid = torch.ones(2, scheme.grid.tokens, dtype=torch.bool)

    def run(q, k, v, position, valid):
        arguments = {"grid": scheme.grid, "position": position, "mask": Padding(valid) & Windows((2, 3))}
        out, lse = attention(q, k, v, return_lse=True, kernel="native", **arguments)
        inputs = (q, k, v, *position.parameters())
        return [out, lse, *torch.autograd.grad(out.sum() + lse.sum(), inputs)]

    q_k_v = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in heads(scheme.grid, dtype=dtype)]
    real = run(*(x.requires_grad_() for x in q_k_v), scheme.make(dtype), valid)
    meta = run(
        *(x.detach().to("meta").requires_grad_() for x in q_k_v), scheme.make(dtype).to("meta"), valid.to("meta")
    )
    position = scheme.make(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        q_k_v = [mode.from_tensor(x).requires_grad_() for x in q_k_v]
        fake = run(*q_k_v, position, mode.from_tensor(valid))
    assert all(x.is_meta for x in meta)
    for found in (meta, fake):
        assert [like(x, y) for x, y in zip(found, real, strict=True)] == [True] * len(real)


def test_autocast_casts_what_comes_in_and_nothing_else():
    """bfloat16 in and out, the log-sum-exp and the table's gradient in float32; a packed projection as well."""
    scheme = BY_NAME["table-2d"]
    position, arguments = scheme.make(torch.float32), {"grid": scheme.grid, "kernel": "native"}
    q, k, v = heads(scheme.grid, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = attention(q, k, v, position=position, return_lse=True, **arguments)
    half = [x.bfloat16() for x in (q, k, v)]
    golden, golden_lse = attention(*half, position=position, return_lse=True, **arguments)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, golden)
    assert torch.equal(lse, golden_lse)
    (by_table,) = torch.autograd.grad(out.float().sum(), position.table)
    assert by_table.dtype == torch.float32
    qkv = torch.randn(2, 4, 6, 3, HEADS, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_packed(qkv, position=position, kernel="native")
    assert torch.equal(found, attention_packed(qkv.bfloat16(), position=position, kernel="native"))


def test_checkpointing_with_dropout_draws_the_same_again():
    """A block with dropout, recomputed: the same gradients, bit for bit, as without."""
    torch.manual_seed(0)
    layer, x, found = block(Grid(5, 6), dropout=0.3), torch.randn(2, 30, 12), []
    for again in (False, True):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        out = torch.utils.checkpoint.checkpoint(layer, leaf, use_reentrant=False) if again else layer(leaf)
        found.append([out, *torch.autograd.grad(out.square().sum(), (leaf, *layer.parameters()))])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
