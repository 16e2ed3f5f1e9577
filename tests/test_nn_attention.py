"""`locant.nn.Attention` against double loops: layout of qkv, embeddings on q and k, what a call may replace."""

from __future__ import annotations

import math

import pytest
import torch
from near import close
from torch import Tensor

from locant import (
    ALiBi,
    Causal,
    Grid,
    Learned,
    MaskedSine,
    Padding,
    RelativeTable,
    Rotary,
    Sinusoid,
    Windows,
)
from locant.nn import Attention

DIM, HEADS, WIDTH = 12, 3, 4


def slow(module: Attention, x: Tensor, e: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """One sample, head and query at a time; rows of qkv.weight read as [q | k | v][head][width]."""
    weight, offset = module.qkv.weight, module.qkv.bias
    added = x if e is None else x + e
    scale = 1 / math.sqrt(WIDTH)
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for h in range(HEADS):
            rows = [slice(part * DIM + h * WIDTH, part * DIM + (h + 1) * WIDTH) for part in range(3)]
            q, k = (added[b] @ weight[r].T + offset[r] for r in rows[:2])
            v = x[b] @ weight[rows[2]].T + offset[rows[2]]
            for i in range(x.shape[1]):
                logits = [scale * q[i] @ k[j] + (0 if bias is None else bias[h, i, j]) for j in range(x.shape[1])]
                top = max(float(value.detach()) for value in logits)
                powers = [torch.exp(value - top) for value in logits]
                out[b, i, h * WIDTH : (h + 1) * WIDTH] = sum(p * v[j] for j, p in enumerate(powers)) / sum(powers)
    return out @ module.proj.weight.T + module.proj.bias


def tokens(grid: Grid, batch: int = 2) -> Tensor:
    return torch.randn(batch, grid.tokens, DIM, dtype=torch.float64)


def test_the_formula_and_the_layout_of_qkv() -> None:
    module = Attention(DIM, HEADS).double()
    x = tokens(Grid(6))
    close(module(x), slow(module, x))
    assert set(module.state_dict()) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}


def test_a_bias_is_added_after_scaling() -> None:
    grid = Grid(2, 3)
    module = Attention(DIM, HEADS, grid=grid, position=RelativeTable(grid, HEADS, init_std=1.0)).double()
    x = tokens(grid)
    table = module.position.table
    bias = torch.stack(
        [
            torch.stack([table[:, i // 3 - j // 3 + 1, i % 3 - j % 3 + 2] for j in range(6)], dim=-1)
            for i in range(6)
        ],
        dim=-2,
    )  # fmt: skip
    close(module(x), slow(module, x, bias=bias))
    assert "position.table" in module.state_dict()


def test_an_embedding_acts_on_q_and_k_and_never_on_v() -> None:
    grid = Grid(2, 3)
    module = Attention(DIM, HEADS, grid=grid, position=Learned(grid, DIM, init_std=1.0)).double()
    x = tokens(grid)
    close(module(x), slow(module, x, e=module.position.table))
    with torch.no_grad():
        module.qkv.weight[: 2 * DIM] = 0  # no query, no key: what is left of the embedding would be in v
    plain = module(x, position=())
    close(module(x), plain)


def test_an_embedding_without_bias_in_qkv() -> None:
    grid = Grid(5)
    module = Attention(DIM, HEADS, grid=grid, position=Sinusoid(DIM), qkv_bias=False).double()
    same = Attention(DIM, HEADS, grid=grid, position=Sinusoid(DIM)).double()
    same.load_state_dict({**module.state_dict(), "qkv.bias": torch.zeros(3 * DIM)})
    x = tokens(grid)
    close(module(x), same(x))
    assert float((module(x) - module(x, position=())).detach().abs().max()) > 1e-3


def test_a_masked_sine_counts_each_sample_by_its_own_padding() -> None:
    grid = Grid(3, 4)
    valid = torch.zeros(2, 3, 4, dtype=torch.bool)
    valid[0, :2, :3] = True
    valid[1] = True
    module = Attention(DIM, HEADS, grid=grid, position=MaskedSine(DIM)).double()
    x = tokens(grid)
    both = module(x, mask=Padding(valid))
    cropped = x.unflatten(1, grid.shape)[:1, :2, :3].flatten(1, 2)
    alone = module(cropped, grid=Grid(2, 3)).unflatten(1, (2, 3))
    # the encoding is computed in float32 by definition; both sides round it alike
    close(both.unflatten(1, grid.shape)[:1, :2, :3], alone)
    close(both[1:], module(x[1:]))


def test_a_tuple_of_positions_acts_through_every_entrance() -> None:
    grid = Grid(7)
    table, learned = RelativeTable(grid, HEADS, init_std=1.0), Learned(grid, DIM, init_std=1.0)
    module = Attention(DIM, HEADS, grid=grid, position=(table, learned, ALiBi(HEADS))).double()
    assert {"position.0.table", "position.1.table"} <= set(module.state_dict())
    x = tokens(grid)
    distance = torch.tensor([[-abs(i - j) for j in range(7)] for i in range(7)], dtype=torch.float64)
    slopes = -ALiBi(HEADS).double()(grid)[:, 1, 0]
    offsets = torch.tensor([[i - j + 6 for j in range(7)] for i in range(7)])
    close(module(x), slow(module, x, e=learned.table, bias=table.table[:, offsets] + slopes[:, None, None] * distance))


def test_what_the_call_gives_takes_the_place_of_the_modules_own() -> None:
    grid = Grid(6)
    own, other = RelativeTable(grid, HEADS, init_std=1.0), RelativeTable(Grid(9), HEADS, init_std=1.0)
    module = Attention(DIM, HEADS, grid=grid, position=own, mask=Causal()).double()
    bare = Attention(DIM, HEADS).double()
    bare.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("position")})
    other = other.double()
    x = tokens(grid)
    close(module(x), bare(x, grid=grid, position=own, mask=Causal()))
    close(module(x, position=other), bare(x, position=other, mask=Causal()))
    close(module(x, position=(), mask=Windows(2)), bare(x, mask=Windows(2)))
    longer = tokens(Grid(9))
    close(module(longer, grid=Grid(9), position=other), bare(longer, position=other, mask=Causal()))
    assert float((module(x) - module(x, position=other)).detach().abs().max()) > 1e-3


def test_a_rotation_turns_q_and_k() -> None:
    """Moving every token changes nothing; moving one does."""
    module = Attention(DIM, HEADS, position=Rotary(WIDTH)).double()
    x = tokens(Grid(5))
    close(module(x, grid=Grid(5, origin=(40,))), module(x))
    assert float((module(x, grid=Grid(5, stride=(2,))) - module(x)).detach().abs().max()) > 1e-4


def test_a_scale_of_zero_is_a_scale() -> None:
    module = Attention(DIM, HEADS, scale=0.0).double()
    x = tokens(Grid(5))
    mean = (x @ module.qkv.weight[2 * DIM :].T + module.qkv.bias[2 * DIM :]).mean(1, keepdim=True)
    close(module(x), module.proj(mean).expand(-1, 5, -1))


@pytest.mark.parametrize("where", ["dropout", "proj_dropout"])
def test_dropout_acts_in_training_only(where: str) -> None:
    module = Attention(DIM, HEADS, **{where: 0.5}).double()
    x = tokens(Grid(8))
    expected = slow(module, x)
    assert float((module(x) - expected).detach().abs().max()) > 1e-2
    close(module.eval()(x), expected)
    if where == "proj_dropout":  # each entry is 0 or twice what it was
        out = module.train()(x)
        kept = out != 0
        close(out[kept], 2 * expected[kept])
        assert 0.2 < float(kept.double().mean()) < 0.8


def test_a_kernel_by_name_runs_or_says_why_not() -> None:
    module = Attention(DIM, HEADS, kernel="reference").double()
    x = tokens(Grid(5))
    close(module(x), slow(module, x))
    module.kernel = "triton"
    with pytest.raises(ValueError, match="it refuses"):
        module(x)


def test_prefix_tokens_are_tokens() -> None:
    grid = Grid(2, 2, prefix=2)
    module = Attention(DIM, HEADS, grid=grid).double()
    x = tokens(grid)
    close(module(x), slow(module, x))


def test_extra_repr_says_what_is_not_default() -> None:
    module = Attention(8, 2, grid=Grid(4), mask=Causal(), dropout=0.1, kernel="reference")
    assert "dim=8, heads=2, grid=Grid(4), mask=Causal(axis=None), dropout=0.1, kernel='reference'" in repr(module)
    assert Attention(8, 2).extra_repr() == "dim=8, heads=2"


@pytest.mark.plain
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Attention(10, 3), r"`dim` that its `heads` divide.*got dim=10, heads=3.*Use dim=9"),
        (lambda: Attention(8, 0), r"got dim=8, heads=0"),
        (lambda: Attention(8, 2, dropout=1.0), r"`dropout` of at least 0 and below 1; got 1.0"),
        (lambda: Attention(8, 2, proj_dropout=-0.1), r"`proj_dropout` of at least 0 and below 1; got -0.1"),
        (lambda: Attention(8, 2, position=Causal()), r"`position` such as RelativeTable.*got Causal"),
        (lambda: Attention(8, 2, position=(ALiBi(2), "alibi")), r"`position` such as RelativeTable.*got str"),
        (lambda: Attention(8, 2, mask=Padding(torch.ones(1, 4, dtype=torch.bool))), r"keeps a `mask` without tensors"),
    ],
)
def test_a_module_that_cannot_be_is_refused(build: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.plain
@pytest.mark.parametrize(
    ("x", "given", "sentence"),
    [
        (torch.zeros(2, 5, 8), {}, r"`x` on Grid\(2, 3\) must have 6 tokens.*got 5.*Pass grid="),
        (torch.zeros(2, 6, 7), {}, r"`x` must be \[batch, tokens, 8\]; got \[2, 6, 7\]"),
        (torch.zeros(2, 2, 3, 8), {}, r"x\.flatten\(1, -2\)"),
        (torch.zeros(2, 6, 8).double(), {}, r"must be torch.float32 on cpu.*got torch.float64"),
        (torch.zeros(2, 6, 8), {"position": (Sinusoid(8), Sinusoid(8))}, r"got two that embed"),
        (torch.zeros(2, 6, 8), {"position": Learned(Grid(2, 3), 9)}, r"Learned must give vectors.*dim=8"),
        (
            torch.zeros(2, 6, 8),
            {"position": MaskedSine(8), "mask": Padding(torch.ones(3, 6, dtype=torch.bool))},
            r"MaskedSine must give vectors.*a batch of 2",
        ),
        (torch.zeros(2, 6, 8), {"position": RelativeTable(Grid(2, 3), 3)}, r"3 heads and q has 2"),
    ],
)
def test_a_call_that_cannot_be_is_refused(x: Tensor, given: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Attention(8, 2, grid=Grid(2, 3))(x, **given)
