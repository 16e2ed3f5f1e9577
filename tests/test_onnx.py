"""Programs for other runtimes: every scheme and every model is exported in torch's own operators, to ONNX and OpenVINO.

What runs them is installed by the extra `deploy`; without it the exported programs alone are looked at.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from near import apart
from redrawing import redraw
from schemes import HEADS, PLANE, RAGGED, SCHEMES, WHOLE, parts
from small import MODELS
from torch import Tensor, nn

from locant import Causal, Grid, Padding, Pairs, RelativeTable, Segments
from locant.attend import attention_packed
from locant.nn import Block, WindowAttention

pytestmark = pytest.mark.compiled

NOISE = 64 * torch.finfo(torch.float32).eps  # of numbers about 1, through a few layers in another order
RUNTIMES = all(map(importlib.util.find_spec, ("onnxruntime", "onnxscript", "openvino")))
deployed = pytest.mark.skipif(not RUNTIMES, reason="the extra `deploy` (onnxruntime, onnxscript, openvino) is absent")


class Heads(nn.Module):
    """A layer on heads that are projected already."""

    def __init__(self, position, grid, mask):
        super().__init__()
        self.position = nn.ModuleList(position if isinstance(position, tuple) else [position] if position else [])
        self.grid, self.mask = grid, mask

    def forward(self, qkv: Tensor) -> Tensor:
        return attention_packed(qkv, grid=self.grid, position=self.position, mask=self.mask)


class Padded(nn.Module):
    """A model whose mask is made of a tensor in the graph."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> object:
        *inputs, ignored = inputs
        return self.model(*inputs, mask=Padding.from_key_padding_mask(ignored))


def pixels(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.randn(batch, *shape),)


def ignored(batch: int, *sides: int) -> Tensor:
    mask = torch.zeros(batch, *sides, dtype=torch.bool)
    mask[..., sides[-1] - 2 :] = True
    return mask


def words(batch: int) -> tuple[Tensor, ...]:
    return torch.randint(0, 7, (batch, 6)), torch.randint(0, 9, (batch, 5))


INPUTS: dict[str, Callable[[int], tuple[Tensor, ...]]] = {
    "models.aim_swin.AIMSwin": pixels(3, 4, 32, 32),
    "models.aim_vit.AIMViT": pixels(3, 4, 16, 16),
    "models.bahdanau.Bahdanau": words,
    "models.bert.BertEmbeddings": lambda batch: words(batch)[:1],
    "models.detr.DETR": lambda batch: (torch.randn(batch, 6, 3, 4), ignored(batch, 3, 4)),
    "models.sam_encoder.SAMEncoder": pixels(3, 48, 48),
    "models.transformer.Transformer": lambda batch: (*words(batch), ignored(batch, 6)),
    "models.transformer_xl.MemTransformerLM": lambda batch: words(batch)[:1],
    "nn.multihead.MultiHeadAttention": lambda batch: (torch.randn(batch, 6, 8),) * 3,
    "nn.temporal.TemporalModel": pixels(3, 10, 4, 4),
}


def model_and_inputs(name: str, batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model, inputs = MODELS[name](), INPUTS.get(name, pixels(3, 32, 32))(batch)
    redraw(model)
    return (Padded(model) if inputs[-1].dtype == torch.bool else model).eval(), inputs


def numbers(found: object) -> list[Tensor]:
    return [x.detach() for x in torch.utils._pytree.tree_leaves(found) if isinstance(x, Tensor) and x.numel()]


def runs_in_onnxruntime(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Exported with gradients enabled, as a user does who does not think of them."""
    import onnxruntime

    proto = torch.onnx.export(model, inputs, dynamo=True, verbose=False).model_proto
    assert {node.domain for node in proto.graph.node} <= {"", "pkg.onnxscript.torch_lib.common"}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    agree(found, model(*inputs))


def agree(found: list[np.ndarray], wanted: object) -> None:
    found = [torch.from_numpy(np.asarray(x)) for x in found if np.asarray(x).size]
    for x, ref in zip(found, numbers(wanted), strict=True):
        assert apart(x, ref) <= NOISE * max(1.0, float(ref.abs().max()))


def owned_by_torch(program: torch.export.ExportedProgram) -> None:
    """Functions of Python count sizes and take parts; all else is an operator of torch's."""
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    foreign = {str(f) for f in called if isinstance(f, torch._ops.OpOverload) and f.namespace != "aten"}
    assert not foreign


@pytest.mark.parametrize("name", MODELS)
def test_models_are_exported_in_torchs_operators(name):
    """Traced with gradients enabled, then brought to inference, where torch lays attention out in another way."""
    model, inputs = model_and_inputs(name, 1)
    program = torch.export.export(model, inputs)
    owned_by_torch(program)
    brought = program.run_decompositions().module()
    for x, ref in zip(numbers(brought(*inputs)), numbers(model(*inputs)), strict=True):
        assert apart(x, ref) <= NOISE * max(1.0, float(ref.abs().max()))


@deployed
@pytest.mark.parametrize(("name", "batch"), [*((name, 1) for name in MODELS), ("models.swin.Swin", 2)])
def test_models_run_in_onnxruntime(name, batch):
    runs_in_onnxruntime(*model_and_inputs(name, batch))


WHICH = (  # every scheme and every form once, with tokens in front where they have numbers of their own
    "none", "alibi-1d", "cpb-2d", "decomposed-2d-prefix", "gate-2d", "rotary-2d-prefix", "shaw-1d", "t5-1d", "table-3d",
    "table-2d-prefix", "table+rotary+shaw", "xl-1d",
)  # fmt: skip
RAGGED_UNDER = ("table-2d", "decomposed-3d", "gate-1d")  # every form under windows of several sizes
MASKS = {
    "causal": Causal(),
    "windows-causal": RAGGED[1] & Causal(),
    "segments": Segments(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]])),
    "pairs": Pairs.from_kept(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.3),
}


def cases() -> list[object]:
    """Schemes alone, forms under windows, masks with a table."""
    named = {str(scheme): scheme for scheme in SCHEMES}
    return [
        *(pytest.param(named[name], None, id=name) for name in WHICH),
        *(pytest.param(named[name], RAGGED[named[name].grid.axes], id=f"{name}-windows") for name in RAGGED_UNDER),
        *(pytest.param(named["table-1d"], mask, id=f"table-{name}") for name, mask in MASKS.items()),
    ]


def test_every_scheme_is_among_the_cases():
    """A scheme that is new asks for a case."""
    kinds = {type(p) for scheme in SCHEMES if str(scheme) in WHICH for p in parts(scheme.make())}
    assert kinds == {type(p) for scheme in SCHEMES for p in parts(scheme.make())}


@pytest.mark.parametrize(("scheme", "mask"), cases())
def test_schemes_are_exported_in_torchs_operators(scheme, mask):
    model = Heads(scheme.make(torch.float32), scheme.grid, mask).eval()
    x = torch.randn(1, scheme.grid.tokens, 3, HEADS, 8)
    program = torch.export.export(model, (x,))
    owned_by_torch(program)
    assert apart(program.run_decompositions().module()(x), model(x).detach()) <= NOISE * 8


@deployed
@pytest.mark.parametrize(("scheme", "mask"), cases())
def test_schemes_run_in_onnxruntime(scheme, mask):
    model = Heads(scheme.make(torch.float32), scheme.grid, mask).eval()
    runs_in_onnxruntime(model, (torch.randn(1, scheme.grid.tokens, 3, HEADS, 8),))


def for_aotinductor(what: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    if what == "model":
        return model_and_inputs("models.swin.Swin", 2)
    (scheme,) = (s for s in SCHEMES if str(s) == "table-2d-prefix")
    layer = Heads(scheme.make(torch.float32), scheme.grid, None).eval()
    return layer, (torch.randn(2, scheme.grid.tokens, 3, HEADS, 8),)


@pytest.mark.inductor
@pytest.mark.parametrize("what", ["scheme", "model"])
def test_aotinductor(what, tmp_path):
    """A package of machine code, written, loaded and run."""
    model, inputs = for_aotinductor(what)
    with torch.no_grad():
        program = torch.export.export(model, inputs)
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        (found,), (wanted,) = numbers(torch._inductor.aoti_load_package(path)(*inputs)), numbers(model(*inputs))
    assert apart(found, wanted) <= NOISE * max(1.0, float(wanted.abs().max()))


@deployed
def test_padding_runs_in_onnxruntime_on_other_paddings():
    """A mask is an input of the graph: what it was exported with is not kept."""
    import onnxruntime

    model = Padded(Block(16, 2, position=RelativeTable(Grid(6), 2, init_std=1.0))).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    inputs = torch.randn(2, 6, 16), ignored(2, 6)
    proto = torch.onnx.export(
        model, inputs, dynamo=True, verbose=False, dynamic_shapes={"inputs": ({0: batch}, {0: batch})}
    ).model_proto
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for ends in ([6, 1, 3], [2, 2, 5, 6, 4]):
        x = torch.randn(len(ends), 6, 16)
        mask = torch.arange(6) >= torch.tensor(ends)[:, None]
        agree(session.run(None, dict(zip(names, (x.numpy(), mask.numpy()), strict=True))), model(x, mask))


CONVERTS = """
import sys
import numpy as np, openvino, torch
sys.path.insert(0, sys.argv[1])
import test_onnx
model, inputs = getattr(test_onnx, sys.argv[2])(*sys.argv[3:])
program = torch.export.export(model, inputs)
converted = openvino.compile_model(openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
found = converted([x.numpy() for x in inputs])
test_onnx.agree([found[i] for i in range(len(found))], model(*inputs))
"""


def windowed() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return WindowAttention(16, 2, (4, 4), grid=Grid(8, 8), shift=2).eval(), (torch.randn(1, 64, 16),)


def for_openvino(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return model_and_inputs(name, 1)


@deployed
@pytest.mark.parametrize(
    "asked", [("windowed",), *(("for_openvino", name) for name in MODELS if name.startswith("models."))], ids=" ".join
)
def test_openvino_converts_and_agrees(asked):
    """In a process of its own: its converter divides by the size of an empty tensor, which ends the process."""
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, str(Path(here).parent / "src")])
    done = subprocess.run(
        [sys.executable, "-c", CONVERTS, here, *asked],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_empty_prefix_in_a_graph():
    """OpenVINO's converter divides by its size; nobody needs it."""
    program = torch.export.export(*windowed())
    empty = [
        n
        for n in program.graph.nodes
        if "val" in n.meta and isinstance(n.meta["val"], Tensor) and not n.meta["val"].numel()
    ]
    assert not empty


def test_exported_positions_still_learn():
    """The copy that a learned bias asks for passes gradients on: what is exported can be trained further."""
    layer = Heads(RelativeTable(PLANE, HEADS, init_std=1.0), PLANE, WHOLE[2] & Causal())
    x = torch.randn(2, PLANE.tokens, 3, HEADS, 8)
    program = torch.export.export(layer, (x,)).module()
    program(x).square().sum().backward()
    layer(x).square().sum().backward()
    table = next(p for name, p in program.named_parameters() if name.endswith("table"))
    assert apart(table.grad, layer.position[0].table.grad) <= NOISE * float(table.grad.abs().max())
