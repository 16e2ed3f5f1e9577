"""Programs for many sizes: batch, tokens and pixels as symbols, against eager attention on every size."""

from __future__ import annotations

import io

import pytest
import torch
from near import apart
from redrawing import redraw
from schemes import HEAD_DIM, HEADS, SCHEMES
from small import MODELS as MODELS_OF_EACH_FAMILY
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.export import Dim

from locant import (
    ALiBi,
    Causal,
    Grid,
    Learned,
    LearnedAxial,
    MaskedSine,
    RelativeTable,
    Rotary,
    Shaw,
    Sinusoid,
    Windows,
    attention,
)
from locant.attend import attention_packed
from locant.masks import Structure
from locant.models.sam_encoder import SAMEncoder
from locant.models.swin import Swin
from locant.models.swin_v2 import SwinV2
from locant.models.vit import ViT
from locant.nn import Attention

pytestmark = [pytest.mark.compiled, pytest.mark.private]  # which sizes are symbols stands in a private module

EXACT = 1e-11


class Placed(nn.Module):
    """Attention on a grid that is read off its input [batch, *grid, 3, heads, head_dim], behind a prefix."""

    def __init__(self, position, mask, prefix=0):
        super().__init__()
        self.position = nn.ModuleList(position if isinstance(position, tuple) else [position] if position else [])
        self.mask, self.prefix = mask, prefix

    def forward(self, qkv: Tensor) -> Tensor:
        grid = Grid(*qkv.shape[1:-3], prefix=self.prefix)
        rows = qkv.flatten(1, -4)
        if self.prefix:
            rows = torch.cat([rows[:, : self.prefix], rows], dim=1)
        return attention_packed(rows, grid=grid, position=self.position, mask=self.mask)


def exported(model, x, dims, strict=False):
    shapes = ({0: Dim("batch", min=1, max=64), **dims},)
    return torch.export.export(model, (x,), dynamic_shapes=shapes, strict=strict).module()


MASKS = {
    1: [None, Causal(), Windows(3, 1), Windows(4)],
    2: [None, Causal(), Windows((2, 3)), Windows((3, 4), (2, 1)), Windows((2, 2), (1, 0)) & Causal()],
    3: [None, Windows((1, 3, 2), (0, 1, 1))],
}


@pytest.mark.parametrize(
    ("scheme", "mask"), [pytest.param(s, m, id=f"{s}-{m}") for s in SCHEMES for m in MASKS[s.grid.axes]]
)
def test_schemes_on_any_size(scheme, mask):
    """One program for every size: up to that of the scheme's own grid, and under windows from more than one on."""
    windows = Structure.of(mask).windows
    least = [size + 1 for size in windows[0].size] if windows else [2] * scheme.grid.axes
    most = [n + 6 for n in least] if windows else scheme.grid.shape
    model = Placed(scheme.make(), mask, scheme.grid.prefix).eval()
    dims = {
        1 + axis: Dim(f"side{axis}", min=low, max=high)
        for axis, (low, high) in enumerate(zip(least, most, strict=True))
        if high > low
    }
    between = [min(low + 1, high) for low, high in zip(least, most, strict=True)]
    program = exported(model, heads_on(3, between), dims)
    for batch, shape in enumerate((least, most, between, [*least[:-1], most[-1]]), start=1):
        x = heads_on(batch, shape)
        assert apart(program(x), model(x)) <= EXACT, shape


STRICT = {  # windows that divide no side among them
    "table-1d": Windows(3, 1), "decomposed-2d-prefix": Windows((3, 4), (2, 1)), "table-2d": Windows((3, 4), (2, 1)),
    "gate-2d": None, "rotary-2d-prefix": Causal(), "table-3d": Windows((1, 3, 2), (0, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", STRICT)
def test_strict_export_on_any_size(name):
    """Read by torch's compiler instead of run: the same program."""
    (scheme,) = (s for s in SCHEMES if str(s) == name)
    mask, axes = STRICT[name], scheme.grid.axes
    model = Placed(scheme.make(), mask, scheme.grid.prefix).eval()
    least = [size + 1 for size in Structure.of(mask).windows[0].size] if Structure.of(mask).windows else [2] * axes
    most = [max(low + 1, size) for low, size in zip(least, scheme.grid.shape, strict=True)]
    dims = {1 + i: Dim(f"side{i}", min=least[i], max=most[i]) for i in range(axes)}
    program = exported(model, heads_on(3, [n - 1 for n in most]), dims, strict=True)
    for batch, shape in enumerate((least, most), start=1):
        x = heads_on(batch, shape)
        assert apart(program(x), model(x)) <= EXACT, shape


def heads_on(batch, shape):
    return torch.randn(batch, *shape, 3, HEADS, HEAD_DIM, dtype=torch.float64)


class Embedded(nn.Module):
    """A layer with an embedding, on a grid that is read off its input [batch, *grid, dim]."""

    def __init__(self, position):
        super().__init__()
        self.attention = Attention(12, 2, position=position)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.flatten(1, -2), grid=Grid(*x.shape[1:-1]))


EMBEDDINGS = {
    "learned": lambda grid: Learned(grid, 12, init_std=1.0),
    "learned-shared": lambda grid: Learned(grid, 12, axes=(grid.axes - 1,), init_std=1.0),
    "learned-axial": lambda grid: LearnedAxial(grid, 12),
    "sinusoid": lambda grid: Sinusoid(12),
    "masked-sine": lambda grid: MaskedSine(12),
}
EMBEDDED = {1: ("learned", "sinusoid"), 2: tuple(EMBEDDINGS), 3: ("learned", "learned-shared")}


@pytest.mark.parametrize(("axes", "name"), [(axes, name) for axes, names in EMBEDDED.items() for name in names])
def test_embeddings_on_any_size(axes, name):
    """Rows are taken up to the whole table: none of its sides is the size that the program is for."""
    largest = (6, 5, 4)[:axes]
    model = redraw(Embedded(EMBEDDINGS[name](Grid(*largest)))).double().eval()
    dims = {1 + axis: Dim(f"side{axis}", min=2, max=high) for axis, high in enumerate(largest)}
    program = exported(model, torch.randn(3, *[n - 1 for n in largest], 12, dtype=torch.float64), dims)
    for batch, shape in enumerate((largest, [2] * axes, [*largest[:-1], 2]), start=1):
        x = torch.randn(batch, *shape, 12, dtype=torch.float64)
        assert apart(program(x), model(x)) <= EXACT, shape


MODELS = {
    "swin": (lambda: Swin(dim=8, depths=(2, 2), heads=(2, 4), window=4, img_size=64, num_classes=5), 32),
    "swin_v2": (lambda: SwinV2(dim=8, depths=(2, 2), heads=(2, 4), window=4, img_size=64, num_classes=5), 32),
    "vit-rotary": (lambda: ViT(img_size=96, patch=8, dim=16, depth=2, heads=4, num_classes=5, position="rotary"), 8),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_on_any_size(name):
    make, step = MODELS[name]
    model = redraw(make()).double().eval()
    dims = {2: step * Dim("rows", min=2, max=96 // step), 3: step * Dim("columns", min=2, max=96 // step)}
    program = exported(model, torch.randn(3, 3, 64, 96, dtype=torch.float64), dims)
    for batch, shape in enumerate([(64, 64), (96, 64), (64, 96), (96, 96)], start=1):
        x = torch.randn(batch, 3, *shape, dtype=torch.float64)
        assert apart(program(x), model(x)) <= EXACT, shape


ONE_SIZE = {
    "ViT has positions for 12 × 12 tokens": lambda: ViT(img_size=96, patch=8, dim=16, depth=1, heads=4, num_classes=5),
    "SAMEncoder has positions for 12 × 12 tokens": lambda: SAMEncoder(
        img_size=96, patch=8, dim=16, depth=2, heads=2, window=4, global_blocks=(1,)
    ),
}


@pytest.mark.parametrize("sentence", ONE_SIZE)
def test_rows_of_pictures_of_one_size_say_so(sentence):
    """Vectors learned per place are for the places that there are: the model's own sentence, not torch's."""
    model = ONE_SIZE[sentence]().eval()
    with pytest.raises(ValueError, match=sentence):
        exported(model, torch.randn(3, 3, 64, 96), {2: 8 * Dim("rows", min=2, max=12)})


def test_a_recurrence_says_that_it_has_one_length():
    """torch would say that a size is constant, not why."""
    model, ids = MODELS_OF_EACH_FAMILY["models.bahdanau.Bahdanau"]().eval(), torch.zeros(3, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="Bahdanau is exported for one length of `source`"):
        torch.export.export(model, (ids, ids), dynamic_shapes=({1: Dim("source", min=2, max=9)}, None))


@pytest.mark.parametrize(
    "name", ["models.aim_vit.AIMViT", "models.mvit_v2.MViTv2", "models.vit.ViT", "models.convit.ConViT"]
)
def test_models_on_any_batch(name):
    model = redraw(MODELS_OF_EACH_FAMILY[name]()).double().eval()
    frames = (4, 16, 16) if "aim" in name else (32, 32)
    program = exported(model, torch.randn(3, 3, *frames, dtype=torch.float64), {})
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, *frames, dtype=torch.float64)
        assert apart(program(x), model(x)) <= EXACT


OLD = {
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "trace": torch.jit.trace,
    "old onnx": lambda model, x: torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False),
}


@pytest.mark.parametrize("way", OLD)
@pytest.mark.filterwarnings("ignore")
def test_old_tracers_are_told_what_works(way):
    """They hand over symbols, or tensors in place of sizes: one sentence names the way that works."""
    with pytest.raises(ValueError, match=r"use torch\.export\.export"):
        OLD[way](MODELS["swin"][0]().eval(), torch.randn(1, 3, 64, 64))


@pytest.mark.filterwarnings("ignore")
def test_linear_maps_may_be_quantised():
    """int8 in place of nn.Linear, by torch's own tool: as near as eight bits are."""
    model, x = redraw(MODELS["swin"][0]()).eval(), torch.randn(1, 3, 64, 64)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    wanted = model(x).detach()
    assert 0 < apart(quantised(x), wanted) <= 0.1 * float(wanted.abs().max())


class Sequence(nn.Module):
    """Attention on as many tokens as come, or of the last one to all of them, as decoding with a cache asks."""

    def __init__(self, position, mask, last):
        super().__init__()
        self.position, self.mask, self.last = position, mask, last

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        line = Grid(k.shape[2])
        own = line[k.shape[2] - 1 :] if self.last else line
        return attention(q, k, k, grid=own, key_grid=line, position=self.position, mask=self.mask)


def graphs(model, calls):
    """How many graphs torch.compile makes for these inputs, without a break; each result is that of eager torch."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=64):
        for inputs in calls:
            assert apart(compiled(*inputs), model(*inputs)) <= 1e-5
    return counters["stats"]["unique_graphs"]


ONE_GRAPH = {
    "alone": (None, None, False),
    "table": (lambda: RelativeTable(Grid(64), 2, init_std=1.0), None, False),
    "alibi-causal": (lambda: ALiBi(2), Causal(), False),
    "rotary": (lambda: Rotary(8), None, False),
    "shaw": (lambda: Shaw(2, 8, 4), None, False),
    "windows": (lambda: RelativeTable(Grid(4), 2, init_std=1.0), Windows(4, 1), False),
    "decoding": (lambda: ALiBi(2), Causal(), True),
}


@pytest.mark.parametrize("name", ONE_GRAPH)
def test_one_graph_serves_twelve_lengths(name):
    """No length is a constant of a compiled graph: a cache that grows by a token compiles nothing anew."""
    position, mask, last = ONE_GRAPH[name]
    model = Sequence(position() if position else None, mask, last)
    calls = [(torch.randn(1, 2, 1 if last else n, 8), torch.randn(1, 2, n, 8)) for n in range(10, 22)]
    assert graphs(model, calls) == 1


def test_one_graph_serves_twelve_batches_of_a_model_of_one_size():
    """Its size is asked for once, in the graph."""
    model = MODELS_OF_EACH_FAMILY["models.convit.ConViT"]().eval()
    with torch.no_grad():
        assert graphs(model, [(torch.randn(2 + i, 3, 32, 32),) for i in range(12)]) == 1


def test_a_few_graphs_serve_twelve_pictures():
    """One for each answer to how a side divides: by what is filled up, and how many windows there are."""
    model = MODELS["swin"][0]().eval()
    with torch.no_grad():
        found = graphs(model, [(torch.randn(1, 3, 64 + 8 * i, 64 + 8 * (i // 2)),) for i in range(12)])
    assert found <= 7
