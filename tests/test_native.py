"""The compiled kernels as operators: what torch asks of one, gradients by finite differences, the same bits always."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from laws import gradients, same
from redrawing import redraw_alike
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from locant import Causal, Grid, Padding, RelativeTable, Segments, Windows, attention, operators
from locant.attend import attention_packed
from locant.positions.decomposed import Decomposed
from locant.positions.position import Position
from locant.positions.shaw import Shaw
from locant.positions.transformer_xl import TransformerXL

pytestmark = pytest.mark.native

MODULE = operators.built()
ISAS = ("none",) if isinstance(MODULE, str) else MODULE.isas()  # those that this machine and this build have
PREFIXED = Grid(3, 4, prefix=2)
VALID = torch.tensor([[True] * 11 + [False] * 3, [False, True] * 7])
IDS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]]).reshape(1, 3, 4)


@pytest.fixture
def threads():
    """Sets how many threads run, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def table(grid: Grid, heads: int = 2, dtype: torch.dtype = torch.float64) -> RelativeTable:
    torch.manual_seed(1)
    made = RelativeTable(grid, heads, init_std=0.5)
    for row in made.parameters():
        torch.nn.init.normal_(row, std=0.5)
    return made.to(dtype)


def content(position: Position) -> Position:
    torch.manual_seed(1)
    return redraw_alike(position.double())


class Recorder(TorchDispatchMode):
    """Keeps what torch is given for `locant::attend`: a mode that looks on takes calls through the operator."""

    given: tuple = ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.locant.attend.default:
            self.given = args
        return function(*args, **(kwargs or {}))


def recorded(q: Tensor, k: Tensor, v: Tensor, *, seed: int = 7, **arguments) -> tuple:
    """What a call of `attention` gives the operator, with this seed if it drops weights."""
    with torch.no_grad(), Recorder() as recorder:
        attention(q, k, v, kernel="native", **arguments)
    return (*recorder.given[:-1], torch.tensor([seed]) if arguments.get("dropout") else None)


def operands(grid: Grid, position=None, mask=None, dropout: float = 0.0, key_grid: Grid | None = None, kv: int = 2):
    """What `locant::attend` is given, q, k and v first, the table and its rows leaves that learn."""
    torch.manual_seed(2)
    keys = (key_grid or grid).tokens
    shapes = (2, grid.tokens, 4), (kv, keys, 4), (kv, keys, 3)
    q, k, v = (torch.randn(2, *shape, dtype=torch.float64) for shape in shapes)
    given = recorded(q, k, v, grid=grid, key_grid=key_grid, position=position, mask=mask, dropout=dropout)
    leaves = [x if x is None else x.detach().contiguous().requires_grad_() for x in given[:8]]
    return (*leaves, *given[8:])


OPERANDS = {
    "alone": lambda: operands(Grid(9)),
    "table, windows": lambda: operands(Grid(3, 4), table(Grid(3, 4)), Windows((2, 2), (1, 0))),
    "rows, padding": lambda: operands(PREFIXED, table(PREFIXED), Padding(VALID), kv=1),
    "segments, order": lambda: operands(PREFIXED, table(Grid(3, 4)), Segments(IDS) & Causal()),
    "dropout": lambda: operands(PREFIXED, table(PREFIXED), Windows((2, 3)), dropout=0.4),
    "pooled keys": lambda: operands(Grid(4, 4), table(Grid(4, 4)), key_grid=Grid(4, 4).pooled(2)),
    "content, prefix": lambda: operands(PREFIXED, content(Decomposed(Grid(3, 4), 2, 4))),
    "content beside a table": lambda: operands(
        Grid(3, 4), (content(Decomposed(Grid(2, 2), 2, 4)), table(Grid(3, 4))), Windows((2, 2), (1, 0))
    ),
    "content of its own": lambda: operands(Grid(9), content(TransformerXL(6, 2, 4)), Causal()),
    "content with numbers": lambda: operands(Grid(9), content(Shaw(2, 4, 3, biases=True)), kv=1),
}


def packed(arguments) -> tuple:
    """The same with q, k and v as parts of one projection."""
    q, k, v = (x.detach() for x in arguments[:3])
    kv = torch.nn.functional.pad(v, (0, q.shape[3] - v.shape[3]))
    qkv = torch.stack([x.expand_as(q).transpose(1, 2) for x in (q, k, kv)], dim=2)
    return (qkv.contiguous().requires_grad_(), *arguments[3:])


def given(operator, arguments, lse: bool) -> tuple:
    """What the gradient's operator is given after a call of `operator`."""
    plain = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
    out, total = operator(*plain)
    total = total.clone()
    return torch.randn_like(out), torch.randn_like(total) if lse else None, out, total, True, True, *plain


@pytest.mark.parametrize("name", OPERANDS)
def test_opcheck(name):
    """Schema, registration, fake tensors and autograd of all four operators; for two cases dynamic shapes as well."""
    ops, arguments = torch.ops.locant, OPERANDS[name]()
    calls = [(ops.attend, arguments), (ops.attend_backward, given(ops.attend, arguments, lse="table" in name))]
    if name != "pooled keys":
        parts = packed(arguments)
        calls += [
            (ops.attend_packed, parts),
            (ops.attend_packed_backward, given(ops.attend_packed, parts, "rows" in name)),
        ]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, operands in calls:
        torch.library.opcheck(operator, operands, test_utils=tests[: 4 if name in ("rows, padding", "dropout") else 3])


@pytest.mark.parametrize("name", OPERANDS)
def test_gradcheck(name):
    """Every gradient, those of the log-sum-exp included; with dropout, for one seed."""
    arguments = OPERANDS[name]()
    leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]

    def run(operator, arguments):
        def of(*numbers):
            rest = iter(numbers)
            used = [next(rest) if isinstance(x, Tensor) and x.requires_grad else x for x in arguments]
            out, lse = operator(*used)
            return out, lse.masked_fill(lse == -math.inf, 0.0)

        return of

    assert torch.autograd.gradcheck(run(torch.ops.locant.attend, arguments), leaves, fast_mode=True)
    if name != "pooled keys":
        arguments = packed(arguments)
        leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
        assert torch.autograd.gradcheck(run(torch.ops.locant.attend_packed, arguments), leaves, fast_mode=True)


def test_a_second_gradient_is_an_error_not_a_zero():
    q, *rest = OPERANDS["alone"]()
    out, _ = torch.ops.locant.attend(q, *rest)
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), q)


def test_gradients_that_nobody_asks_for_are_not_made():
    """With a frozen table its gradient is empty; gradients of the log-sum-exp alone work as well."""
    arguments = OPERANDS["rows, padding"]()
    q, k, v, *_ = arguments
    out, lse = torch.ops.locant.attend(*arguments)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    plain = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
    backward = torch.ops.locant.attend_backward
    _, _, _, dtable, drows, *_ = backward(dout, dlse, out.detach(), lse.detach(), False, False, *plain)
    assert (dtable.numel(), drows.numel()) == (0, 0)
    there = lse > -math.inf
    alone = torch.autograd.grad(lse[there].sum(), (q, k), retain_graph=True)
    ones = there.to(lse.dtype)
    both = backward(torch.zeros_like(out), ones, out.detach(), lse.detach(), False, False, *plain)
    for found, golden in zip(alone, both[:2], strict=True):
        assert torch.equal(found, golden)
    assert torch.autograd.grad(lse[there].sum(), v, allow_unused=True)[0].abs().max() == 0


# --- the same bits --------------------------------------------------------------------------------------------------

BITS = {
    "global": (Grid(200), (2, 2), 2, None),
    "few heads, keys split": (Grid(23, 31), (1, 1), 1, None),
    "grouped heads": (Grid(130), (4, 2), 1, Causal()),
    "windows": (Grid(15, 16), (3, 3), 2, Windows((7, 7), (3, 3))),
    "prefix and windows": (Grid(9, 10, prefix=2), (2, 1), 3, Windows((4, 4), (1, 2))),
    "samples": (Grid(70), (2, 2), 2, Padding(torch.arange(140).reshape(2, 70) % 11 > 0)),
    # the first block of keys is of one segment, and hidden from some vectors of queries that share a panel with others
    "packed sequences": (Grid(190), (2, 2), 1, Segments((torch.arange(190)[None] >= 72).long())),
}


def everything(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Output, log-sum-exp and every gradient."""
    grid, (heads, kv), batch, mask = BITS[name]
    position, draw = table(grid, heads, dtype), torch.Generator().manual_seed(3)
    shapes = ((heads, 16), (kv, 16), (kv, 24))
    q, k, v = (torch.randn(batch, n, grid.tokens, d, generator=draw).to(dtype).requires_grad_() for n, d in shapes)
    arguments = {"grid": grid, "position": position, "mask": mask, "kernel": "native"}
    out, lse = attention(q, k, v, return_lse=True, **arguments)
    inputs = (q, k, v, *position.parameters())
    return [out, lse, *gradients(out, inputs), *gradients(lse.masked_fill(lse == -math.inf, 0.0), inputs)]


@pytest.mark.parametrize("name", BITS)
def test_the_same_bits_on_any_number_of_threads(name, threads):
    """50 times on 1, 2 and 3 threads in turn: output and every gradient, the table's included."""
    first = everything(name)
    assert all(x.isfinite().all() for x in first)
    for repeat in range(50):
        threads(count := 1 + repeat % 3)
        assert all(torch.equal(x, y) for x, y in zip(everything(name), first, strict=True)), f"{count} threads"


def leave_nan_behind(dtype: torch.dtype) -> None:
    """In the memory that a thread keeps for its next call."""
    x = torch.full((1, 2, 800, 40), torch.nan, dtype=dtype, requires_grad=True)
    out = attention(x, x, x, grid=Grid(800), position=table(Grid(800), dtype=dtype), kernel="native")
    torch.autograd.grad(out.sum(), x)


@pytest.mark.parametrize("name", BITS)
def test_the_same_bits_whatever_lay_in_memory(name):
    """What was never written, or by another call, plays no part: here it is filled with NaN."""
    first, before = everything(name), torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        assert torch.empty(3).isnan().all()
        leave_nan_behind(torch.float32)
        assert all(torch.equal(x, y) for x, y in zip(everything(name), first, strict=True))
    finally:
        torch.use_deterministic_algorithms(before)


# --- dropout ---------------------------------------------------------------------------------------------------------


def dropped(seed: int, tokens: int = 32, p: float = 0.25) -> Tensor:
    """Which weights were dropped, [batch, heads, queries, keys]: values that are rows of the unit matrix show them."""
    q = torch.zeros(2, 3, tokens, 4)
    eye = torch.eye(tokens).expand(2, 3, -1, -1)
    out, _ = torch.ops.locant.attend(*recorded(q, q, eye, dropout=p, seed=seed))
    kept = out[out != 0]
    assert torch.allclose(kept, torch.full_like(kept, 1 / (tokens * (1 - p))))
    return out == 0


def test_dropout_is_fair():
    """Each weight is dropped at its rate, whatever its neighbours, its head, its sample and the last seed do."""
    p, draws = 0.25, 200
    seeds = torch.randint(2**62, (draws,), generator=torch.Generator().manual_seed(0)).tolist()
    many = torch.stack([dropped(seed, p=p) for seed in (*seeds[:-1], seeds[0] + 1)]).double()
    count = many.numel()
    assert abs(many.mean() - p) < 5 * math.sqrt(p * (1 - p) / count)
    deviation = (many.mean(0) - p) / math.sqrt(p * (1 - p) / draws)
    assert deviation.abs().max() < 6, "some weight is dropped too often or too rarely"
    assert 0.9 < deviation.std() < 1.1
    centred = (many - p) / math.sqrt(p * (1 - p))
    for axis, step in itertools.product(range(5), (1, 2)):  # seeds, samples, heads, queries, keys
        one, other = (
            centred.narrow(axis, 0, many.shape[axis] - step),
            centred.narrow(axis, step, many.shape[axis] - step),
        )
        assert not one.numel() or abs((one * other).mean()) < 5 / math.sqrt(one.numel()), f"axis {axis}, step {step}"
    mirrored = (centred * centred.transpose(3, 4)).triu(1).sum() / (count * 31 / 64)
    assert abs(mirrored) < 5 / math.sqrt(count * 31 / 64), "queries and keys swapped"


def test_dropout_is_that_of_the_whole_under_windows_and_in_every_dtype():
    """A weight's fate depends on its tokens, not on the block, cell or thread that meets it."""
    q = torch.randn(1, 2, 90, 8, dtype=torch.float64)
    eye, seen = torch.eye(90, dtype=torch.float64).expand(1, 2, -1, -1), Windows(32).allowed(Grid(90))
    fates = []
    for mask, dtype in ((None, torch.float64), (None, torch.float32), (Windows(32), torch.float64)):
        torch.manual_seed(4)
        arguments = {"mask": mask, "dropout": 0.5, "kernel": "native", "grid": Grid(90)}
        fates.append(attention(q.to(dtype), q.to(dtype), eye.to(dtype), **arguments) != 0)
    assert torch.equal(fates[0], fates[1])
    assert torch.equal(fates[0] & seen, fates[2])
    assert not torch.equal(fates[0][:, 0], fates[0][:, 1])
    assert torch.equal(attention_packed(torch.zeros(1, 4, 3, 2, 8), kernel="native"), torch.zeros(1, 4, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_table_of_another_dtype(dtype):
    """A float32 or half table beside float64 queries is used as it stands, not rounded once more."""
    grid = Grid(40)
    position, wide = table(grid, dtype=dtype), table(grid, dtype=dtype).double()
    q = torch.randn(1, 2, 40, 8, dtype=torch.float64)
    arguments = {"grid": grid, "kernel": "native"}
    found, golden = (attention(q, q, q, position=p, **arguments) for p in (position, wide))
    same(found, golden)
    weight = torch.randn_like(golden)
    one, other = (torch.autograd.grad((x * weight).sum(), p.table)[0] for x, p in ((found, position), (golden, wide)))
    assert one.dtype == dtype
    assert torch.equal(one, other.to(dtype))
