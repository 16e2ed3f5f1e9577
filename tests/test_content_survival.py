"""What content schemes, T5's buckets and the log-spaced bias survive: gradients, halves, graphs, wrong arguments."""

from __future__ import annotations

import copy

import pytest
import torch
from near import close
from schemes import HEAD_DIM, HEADS, SCHEMES, heads
from test_content import LONG, awake
from torch import Tensor

from locant.attend import attention, plan
from locant.grid import Grid
from locant.masks import Causal, Padding, Segments, Windows
from locant.positions.buckets import T5Buckets
from locant.positions.decomposed import Decomposed
from locant.positions.field import LogCPB
from locant.positions.position import Content, Position
from locant.positions.shaw import Shaw
from locant.positions.transformer_xl import TransformerXL

SMALL = {
    "xl": lambda: TransformerXL(6, HEADS, 4, clamp=2),
    "shaw": lambda: Shaw(HEADS, 4, 2, per_head=True, causal=True, biases=True),
    "decomposed": lambda: Decomposed(Grid(4), HEADS, 4),
    "t5": lambda: T5Buckets(HEADS, buckets=4, max_distance=3),
    "cpb": lambda: LogCPB(Grid(4), HEADS, hidden=3),
}


class Mixer(torch.nn.Module):
    """Attention as the only layer, with a position that learns."""

    def __init__(self, position: Position, **arguments: object) -> None:
        super().__init__()
        self.position, self.arguments = position, arguments

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, mask: object = None) -> Tensor:
        return attention(q, k, v, grid=grid, position=self.position, mask=mask, **self.arguments)


@pytest.mark.row(53)
@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
@pytest.mark.parametrize("name", SMALL)
def test_gradcheck(name, kernel):
    """q, k, v and every learned number, against finite differences."""
    model = Mixer(awake(SMALL[name]()), key_grid=Grid(4), kernel=kernel)
    valid = torch.tensor([[True, True, False, True], [True] * 4])
    q_k_v = tuple(torch.randn(2, HEADS, n, 4, dtype=torch.float64, requires_grad=True) for n in (2, 4, 4))
    names, numbers = zip(*model.named_parameters(), strict=True)

    def out(q: Tensor, k: Tensor, v: Tensor, *given: Tensor) -> Tensor:
        arguments = (q, k, v, Grid(4)[2:], Causal() & Padding(valid))
        return torch.func.functional_call(model, dict(zip(names, given, strict=True)), arguments)

    assert torch.autograd.gradcheck(out, (*q_k_v, *numbers), fast_mode=True)


@pytest.mark.row(53)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["xl", "shaw", "decomposed"])
def test_half_precision_with_masks(name, dtype):
    """No NaN, with rows that see nothing; near the float64 numbers."""
    position = awake(SMALL[name]())
    q, k, v = (torch.randn(2, HEADS, 4, 4, dtype=torch.float64) for _ in range(3))
    ids, valid = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[False, False, True, True], [True] * 4])
    arguments = {"grid": Grid(4), "mask": Causal() & Segments(ids) & Padding(valid)}
    golden = attention(q, k, v, position=position, **arguments)
    low = copy.deepcopy(position).to(dtype)
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    out = attention(q, k, v, position=low, **arguments)
    assert out.dtype == dtype
    assert (out[0, :, :2] == 0).all()
    assert (out.double() - golden).abs().max() < 0.1
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v, *low.parameters()) if x.grad is not None)


@pytest.mark.row(54)
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("xl", ["u", "v", "r_net.weight"]),
        ("shaw", ["table", "bias", "u"]),
        ("decomposed", ["tables.0"]),
        ("t5", ["table"]),
        ("cpb", ["mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"]),
    ],
)
def test_state_dicts_hold_what_is_learned(name, keys):
    """No inv_freq, no coordinates: they are computed."""
    assert list(SMALL[name]().state_dict()) == keys


@pytest.mark.plain
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: TransformerXL(7, 1), "even `dim` .* got dim=7"),
        (lambda: TransformerXL(8, 3), "`heads` that divide it unless head_dim is given; got dim=8, heads=3"),
        (lambda: TransformerXL(8, 2, clamp=-1), "`clamp` of at least 0, or None for no limit; got -1"),
        (lambda: Shaw(2, 4, -1), "`distance` and `clamp` of at least 0; got 2, 4, -1"),
        (lambda: Decomposed(Grid(3, 3, prefix=1), 2, 4), "without prefix, .* got Grid\\(3, 3, prefix=1\\)"),
        (lambda: Decomposed(Grid(0, 3), 2, 4), "at least one cell"),
        (lambda: T5Buckets(2, buckets=31), "an even number of `buckets` of at least 4, .* got 31 and 128"),
        (lambda: T5Buckets(2, buckets=1, bidirectional=False), "`buckets` of at least 2, .* got 1"),
        (lambda: T5Buckets(2, max_distance=8), "`max_distance` beyond the near ones, .* got 32 and 8"),
        (lambda: LogCPB(Grid(0, 3), 2), "at least one cell"),
        (lambda: LogCPB(Grid(3, 3), 2, pretrained=Grid(3)), "one of as many axes; got Grid\\(3, 3\\) and Grid\\(3\\)"),
    ],
)
def test_what_cannot_be_built(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.plain
@pytest.mark.parametrize(
    ("position", "grid", "sentence"),
    [
        (TransformerXL(6, HEADS, HEAD_DIM), Grid(3, 3), "knows distances in a sequence, .* got Grid\\(3, 3\\)"),
        (Shaw(HEADS, HEAD_DIM, 2), Grid(3, 3), "knows offsets in a sequence, .* got Grid\\(3, 3\\)"),
        (T5Buckets(HEADS), Grid(3, 3), "knows offsets in a sequence, .* got Grid\\(3, 3\\)"),
        (Shaw(HEADS, HEAD_DIM, 2, causal=True), LONG, "needs a mask that hides them; got None. Pass mask=Causal"),
        (T5Buckets(HEADS, bidirectional=False), LONG, "needs a mask that hides them; got None. Pass mask=Causal"),
        (Decomposed(LONG, HEADS, HEAD_DIM), Grid(3, 3), "needs a grid of 1 axes; got Grid\\(3, 3\\)"),
        (LogCPB(LONG, HEADS), Grid(3, 3), "needs a grid of 1 axes; got Grid\\(3, 3\\)"),
        (TransformerXL(6, HEADS, 5), LONG, "vectors of head_dim=5, and q has 8 channels per head. Build it with"),
        (TransformerXL(9 * 4, 3, HEAD_DIM), LONG, "has 3 heads and q has 2"),
        ((Shaw(HEADS, HEAD_DIM, 2), TransformerXL(6, HEADS, HEAD_DIM)), LONG, "one scheme per entrance .* content"),
    ],
)
def test_what_attention_refuses(position, grid, sentence):
    q, k, v = heads(grid)
    for call in (
        lambda: attention(q, k, v, grid=grid, position=position),
        lambda: plan(q, k, v, grid=grid, position=position),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


NAMES = ("xl-1d", "decomposed-2d-prefix", "t5-1d")
GRAPHS = [s for s in SCHEMES if s.name in NAMES]


@pytest.mark.compiled
@pytest.mark.row(55)
@pytest.mark.parametrize("scheme", GRAPHS, ids=str)
def test_compiled_and_exported(scheme):
    """One graph forward and backward; and an exported program: both are eager attention."""
    assert {s.name for s in GRAPHS} == set(NAMES)
    model, mask = Mixer(scheme.make()), Causal() & Windows((3,) * scheme.grid.axes)
    q_k_v = tuple(x.requires_grad_() for x in heads(scheme.grid))
    golden = model(*q_k_v, scheme.grid, mask)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(*q_k_v, scheme.grid, mask)
    close(found, golden)
    inputs = (*q_k_v, *model.parameters())
    for one, other in zip(
        *(torch.autograd.grad(out.square().sum(), inputs, allow_unused=True) for out in (found, golden)), strict=True
    ):
        close(*(torch.zeros(()) if g is None else g for g in (one, other)))
    with torch.no_grad():
        program = torch.export.export(model, (*(x.detach() for x in q_k_v), scheme.grid, mask), strict=False)
        close(program.module()(*(x.detach() for x in q_k_v), scheme.grid, mask), golden)


def test_every_content_scheme_is_here():
    """A scheme that is added is added to these lists as well."""
    here = {type(build()) for build in SMALL.values()}
    assert {kind for kind in Content.__subclasses__() if kind.__module__.startswith("locant.positions")} <= here
