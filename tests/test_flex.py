"""flex_attention on the vector of biases, without a GPU: dense in float64, blocks by themselves, compiled forward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import truth
from exactness import MASKS, SMALL
from laws import gradients, same
from schemes import BIASES, NONE, heads, learned, parts
from torch.nn.attention.flex_attention import BlockMask

from locant import Causal, Grid, Padding, RelativeTable, Segments, Windows, plan
from locant.attend import attention
from locant.call import describe, materialise
from locant.kernels import flex
from locant.layout import described
from locant.masks import Structure
from locant.positions.position import Content, Gate
from locant.problem import Problem

pytestmark = pytest.mark.plain  # flex_attention compiles in eager mode too, and graphs carry no shape hook


@pytest.fixture
def dense(monkeypatch):
    """torch refuses a backward on CPUs; its dense one is there, and reads the same score_mod."""
    import torch.nn.attention.flex_attention as module

    monkeypatch.setattr(module, "_validate_device", lambda q, k, v: None)


def by_flex(q, k, v, *, grid, key_grid=None, position=None, mask=None, scale=None, call=flex._call):
    called = describe(q, k, v, grid, key_grid, position, mask, scale, 0.0, True)
    return flex.attend(called.problem, materialise(called), call)


def finite(lse):
    return torch.where(lse.isfinite(), lse, 0.0)


CASES = [
    (scheme, mask)
    for scheme in (NONE, *BIASES)
    if not any(isinstance(p, Content | Gate) for p in parts(scheme.build()))
    for mask in MASKS
    if mask != "pairs"
    and (scheme.name in ("none", "table-2d-prefix", "table-1d", "table-3d") or mask == "shifted+samples")
]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("scheme", "mask"), CASES, ids=lambda x: str(x))
def test_values_and_every_gradient_in_float64(scheme, mask, dense):
    """Against the slow truth: output, log-sum-exp, and the gradients of both; two query heads to a key head."""
    grid = Grid(*SMALL[scheme.grid.axes], prefix=scheme.grid.prefix)
    position, mask = scheme.make(), MASKS[mask](grid)
    q, k, v = (x.requires_grad_() for x in heads(grid, kv_heads=1))
    inputs = (q, k, v, *learned(position))
    found = by_flex(q, k, v, grid=grid, position=position, mask=mask, scale=0.7)
    golden = truth.attention(q, k, v, grid=grid, position=position, mask=mask, scale=0.7)
    assert torch.equal(found[1] == -torch.inf, golden[1] == -torch.inf)
    for x, ref in ((found[0], golden[0]), (finite(found[1]), finite(golden[1]))):
        same(x, ref)
        for one, other in zip(gradients(x, inputs), gradients(ref, inputs), strict=True):
            same(one, other, "gradients")


FAMILIES = {
    "slice of keys": (Grid(40)[30:], Grid(40), Causal()),
    "pooled keys": (Grid(6, 8), Grid(6, 8).pooled(2), None),
    "pooled keys in windows": (Grid(6, 8, prefix=1), Grid(6, 8, prefix=2).pooled(2), Windows((4, 3), (1, 2))),
    "keys in no cell": (Grid(12)[:5], Grid(12), Windows((3,))),
    "two windows": (Grid(9, 10, prefix=1), None, Windows((4, 3), (1, 2)) & Windows((2, 2))),
    "a row of nothing": (Grid(20), None, Padding.from_lengths(torch.tensor([20, 0]), 20)),
    "segments in windows": (Grid(4, 6), None, Windows((2, 3)) & Segments(torch.arange(48).view(2, 4, 6) // 5)),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", FAMILIES)
def test_grids_and_masks_of_all_kinds(family, dense):
    grid, key_grid, mask = FAMILIES[family]
    key_grid = grid if key_grid is None else key_grid
    table = RelativeTable(Grid(*(n + 1 for n in (50,) * grid.axes), prefix=grid.prefix), 2, init_std=0.5).double()
    q, k, v = (x.requires_grad_() for x in heads(grid, key_grid))
    inputs = (q, k, v, *table.parameters())
    arguments = {"grid": grid, "key_grid": key_grid, "position": table, "mask": mask}
    found = by_flex(q, k, v, **arguments)
    golden = attention(q, k, v, kernel="reference", return_lse=True, **arguments)
    assert torch.equal(found[1] == -torch.inf, golden[1] == -torch.inf)
    for x, ref in ((found[0], golden[0]), (finite(found[1]), finite(golden[1]))):
        same(x, ref)
        for one, other in zip(gradients(x, inputs), gradients(ref, inputs), strict=True):
            same(one, other, "gradients")


def test_what_padding_hides_may_be_nan(dense):
    valid = torch.tensor([[True] * 4 + [False] * 2] * 2)
    q, k, v = heads(Grid(6))
    golden, _ = by_flex(q, k, v, grid=Grid(6), mask=Padding(valid))
    for x in (k, v):
        x[:, :, 4:] = torch.nan
    same(by_flex(q, k, v, grid=Grid(6), mask=Padding(valid))[0], golden)


@pytest.mark.parametrize("size", [2, 5, 16])
@pytest.mark.parametrize(
    ("grid", "key_grid", "mask"),
    [
        (Grid(37, prefix=2), None, Causal()), (Grid(40)[30:], Grid(40), Causal()),
        (Grid(6, 8), None, Causal(axis=0)), (Grid(9, 10, prefix=1), None, Windows((4, 3), (1, 2))),
        (Grid(12, 12), None, Windows((4, 4)) & Causal()), (Grid(12)[:5], Grid(12), Windows((3,))),
    ],
)  # fmt: skip
def test_blocks_hold_what_is_seen_and_no_more(grid, key_grid, mask, size):
    key_grid = grid if key_grid is None else key_grid
    numbers = described(grid, key_grid, Structure.of(mask), ())
    order, key_order = flex._orders(numbers)
    assert sorted(order.tolist()) == list(range(grid.tokens))
    assert sorted(key_order.tolist()) == list(range(key_grid.tokens))
    seen = mask.bound(grid, key_grid).allowed(grid, key_grid, torch.device("cpu"))[0, 0].numpy()
    seen = seen[np.ix_(order, key_order)]
    rows, columns = (np.arange(0, n, size) for n in seen.shape)
    golden = np.logical_or.reduceat(np.logical_or.reduceat(seen, rows), columns, 1)
    found = flex.blocks(numbers, size)
    assert (found >= golden).all()
    if mask.members() == (mask,) or not Structure.of(mask).causal:  # one mask alone: exactly
        assert np.array_equal(found, golden) or Structure.of(mask).causal


def test_the_block_mask_is_these_blocks(monkeypatch):
    monkeypatch.setattr(flex, "BLOCK", 16)
    numbers = described(Grid(12, 12), Grid(12, 12), Structure.of(Windows((4, 4))), ())
    made = flex._block_mask(numbers, "cpu", 144, 144)
    assert isinstance(made, BlockMask)
    assert torch.equal(made.to_dense()[0, 0].bool(), torch.eye(9, dtype=torch.bool))
    assert made.shape[-2:] == (144, 144)
    theirs = BlockMask.from_kv_blocks(made.kv_num_blocks, made.kv_indices, BLOCK_SIZE=16, seq_lengths=(144, 144))
    assert torch.equal(made.q_num_blocks, theirs.q_num_blocks)
    assert torch.equal(made.q_indices, theirs.q_indices)


PROBLEM = Problem(2, 4, 2, 64, 64, Grid(6), Grid(6), dtype="bfloat16", device="cuda")
REFUSED = [
    ({"device": "cpu"}, "trains on GPUs alone, and the tensors are on cpu"),
    ({"device": "mps"}, "trains on GPUs alone, and the tensors are on mps"),
    ({"dropout": True}, "has no dropout"),
    ({"dtype": "float64"}, "is compiled for float32, bfloat16 and float16 alone"),
    ({"head_dim": 8}, "needs heads of at least 16 channels; these have 8"),
    ({"mask": Structure(pairs=True)}, "Pairs is dense by nature"),
    ({"mask": Structure(segments=2)}, "knows one Segments"),
    ({"exporting": True}, "under export the graph is made of torch's own operators"),
    ({"transformed": True}, "torch.func transforms need rules"),
    ({"batch": 0}, "at least one sample, head, query and key"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_it_refuses(changes, sentence, monkeypatch):
    monkeypatch.setattr(flex, "find_spec", lambda name: object())
    assert flex.refuses(PROBLEM) is None
    assert sentence in flex.refuses(replace(PROBLEM, **changes))


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(flex, "find_spec", lambda name: None)
    assert "Triton, which is not installed" in flex.refuses(PROBLEM)


def test_the_plan_shows_its_sentence():
    q, k, v = heads(Grid(6))
    assert "trains on GPUs alone" in dict(plan(q, k, v).passed_over)["flex"]
    with pytest.raises(ValueError, match="kernel='flex' was asked for, and it refuses: torch's flex_attention trains"):
        attention(q, k, v, kernel="flex")


def test_its_work_says_what_is_special():
    work = flex.work(replace(PROBLEM, bias_grad=True))
    assert work.flops == 2 * 2 * 4 * 36 * 128
    assert "some 20 seconds" in work.notes[0]
    assert "atomic additions" in work.notes[1]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_one_graph(monkeypatch):
    """Places and blocks are constants of the graph: nothing of them is traced."""
    monkeypatch.setattr(flex, "refuses", lambda problem: None)
    grid, table = Grid(4, 6, prefix=1), RelativeTable(Grid(4, 6, prefix=1), 2)
    q, k, v = (x.float() for x in heads(grid, kv_heads=2))
    for mask in (None, Causal(), Windows((2, 3), (1, 1))):
        arguments = {"grid": grid, "position": table, "mask": mask}
        golden = attention(q, k, v, kernel="reference", **arguments)

        def call(q, k, v, arguments=arguments):
            return attention(q, k, v, kernel="flex", **arguments)

        with torch.no_grad():
            found = torch.compile(call, backend="eager", fullgraph=True)(q, k, v)
        torch.testing.assert_close(found, golden, rtol=0, atol=1e-5)


@pytest.mark.inductor
def test_compiled_forward():
    grid, table = Grid(4, 6, prefix=1), RelativeTable(Grid(4, 6, prefix=1), 2)
    q, k, v = torch.randn(3, 2, 2, grid.tokens, 16).unbind(0)
    mask = Windows((2, 3), (1, 1)) & Padding(torch.rand(2, grid.tokens) > 0.3)
    with torch.no_grad():
        called = describe(q, k, v, grid, None, table, mask, None, 0.0, False)
        out, _ = flex.attend(called.problem, materialise(called), flex._compiled(called.problem))
        golden = attention(q, k, v, grid=grid, position=table, mask=mask)
    torch.testing.assert_close(out, golden, rtol=0, atol=2e-6)
