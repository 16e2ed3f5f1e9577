"""`locant.nn.Block`: its formula, drop path per sample, and what goes through to the attention."""

from __future__ import annotations

import math

import pytest
import torch
from near import close
from torch import Tensor

from locant import Causal, Grid, RelativeTable, Windows
from locant.models.swin_v2 import ResPostNormBlock
from locant.nn import Attention, Block, GatedAttention, WindowAttention

DIM, HEADS = 8, 2


def normed(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def branches(block: Block, x: Tensor, **given: object) -> tuple[Tensor, Tensor]:
    """x after the first branch, and the second branch, by hand."""
    x = x + block.attention(normed(x, block.norm1), **given)
    hidden = normed(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x, hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def shaken(block: Block) -> Block:
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return block.double()


def test_the_formula() -> None:
    grid = Grid(2, 3)
    block = shaken(Block(DIM, HEADS, grid=grid, position=RelativeTable(grid, HEADS), mask=Windows((2, 2))))
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    close(block(x), sum(branches(block, x)))
    assert {"norm1.weight", "attention.qkv.weight", "attention.position.table", "norm2.bias", "mlp.fc1.weight",
            "mlp.fc2.bias"} <= set(block.state_dict())  # fmt: skip
    assert block.mlp.fc1.weight.shape == (4 * DIM, DIM)


def test_the_call_reaches_the_attention() -> None:
    block = shaken(Block(DIM, HEADS, mlp_ratio=1.5))
    table = RelativeTable(Grid(3, 3), HEADS, init_std=1.0).double()
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    given = {"grid": Grid(3, 2), "position": table, "mask": Causal()}
    out = block(x, **given)
    close(out, sum(branches(block, x, **given)))
    assert float((out - block(x)).detach().abs().max()) > 1e-3
    assert block.mlp.fc1.weight.shape == (12, DIM)


@pytest.mark.parametrize(
    "attention",
    [
        Attention(DIM, HEADS),
        WindowAttention(DIM, HEADS, (2, 2), shift=1, border="pad-roll"),
        GatedAttention(DIM, HEADS),
    ],
    ids=["attention", "window", "gated"],
)
def test_any_attention_fits(attention: torch.nn.Module) -> None:
    block = shaken(Block(DIM, HEADS, attention=attention))
    x = torch.randn(2, 15, DIM, dtype=torch.float64)
    close(block(x, grid=Grid(3, 5)), sum(branches(block, x, grid=Grid(3, 5))))


def test_drop_path_leaves_out_whole_samples_and_scales_the_rest() -> None:
    block = shaken(Block(DIM, HEADS, drop_path=0.25))
    x = torch.randn(64, 3, DIM, dtype=torch.float64)
    exact_first, _ = branches(block, x)
    out = block(x)
    counts = {"none": 0, "first": 0, "second": 0, "both": 0}
    for b in range(64):
        one = x[b : b + 1]
        after = one + (exact_first[b : b + 1] - one) / 0.75
        choices = {"none": one, "first": after}
        for name, state in (("second", one), ("both", after)):
            hidden = normed(state, block.norm2)
            choices[name] = state + block.mlp(hidden) / 0.75
        fits = [name for name, value in choices.items() if float((out[b] - value[0]).detach().abs().max()) < 1e-10]
        assert len(fits) == 1
        counts[fits[0]] += 1
    assert all(counts.values())  # both branches are drawn by themselves
    kept = (counts["first"] + counts["both"]) / 64
    assert 0.5 < kept < 0.95
    close(block.eval()(x), sum(branches(block, x)))


def test_dropout_acts_on_both_branches_in_training_only() -> None:
    block = shaken(Block(DIM, HEADS, dropout=0.5))
    assert (block.attention.proj_dropout, block.attention.dropout) == (0.5, 0.0)
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    block.eval()
    exact = sum(branches(block, x))
    close(block(x), exact)
    assert float((block.train()(x) - exact).detach().abs().max()) > 1e-2
    with torch.no_grad():
        block.attention.proj.weight.zero_()
        block.attention.proj.bias.zero_()
    block.eval()
    exact = block(x)
    assert float((block.train()(x) - exact).detach().abs().max()) > 1e-2  # the perceptron's own dropout


@pytest.mark.row(57)
def test_layer_scale_multiplies_each_branch_by_channel() -> None:
    """Its two vectors start where they are told to; without it there are none. Drop path acts on what they leave."""
    block = Block(DIM, HEADS, layer_scale=1e-4)
    assert torch.equal(block.gamma1, torch.full((DIM,), 1e-4))
    assert torch.equal(block.gamma2, torch.full((DIM,), 1e-4))
    assert not {"gamma1", "gamma2"} & set(Block(DIM, HEADS).state_dict())
    block, x = shaken(block), torch.randn(2, 5, DIM, dtype=torch.float64)
    first = x + block.gamma1 * block.attention(normed(x, block.norm1))
    exact = first + block.gamma2 * block.mlp(normed(first, block.norm2))
    close(block(x), exact)
    after = shaken(ResPostNormBlock(DIM, HEADS, layer_scale=0.5))
    first = x + after.gamma1 * normed(after.attention(x), after.norm1)
    close(after(x), first + after.gamma2 * normed(after.mlp(first), after.norm2))


def test_extra_repr() -> None:
    assert "drop_path=0.1" in repr(Block(DIM, HEADS, drop_path=0.1))


@pytest.mark.plain
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Block(8, 3), r"`dim` that its `heads` divide.*got dim=8, heads=3"),
        (lambda: Block(8, 2, drop_path=1.0), r"Block needs `drop_path` of at least 0 and below 1; got 1.0"),
        (lambda: Block(8, 2, dropout=-1.0), r"Block needs `dropout`"),
        (lambda: Block(8, 2, layer_scale=float("nan")), r"Block needs `layer_scale` as a number"),
        (lambda: Block(8, 2, mlp_ratio=0.0), r"`mlp_ratio` that leaves a hidden channel; got 0.0"),
        (lambda: Block(8, 2, attention=Attention(8, 2), grid=Grid(4)), r"takes `attention` as it is"),
        (lambda: Block(8, 2, grid=Grid(4))(torch.zeros(1, 5, 8)), r"`x` on Grid\(4\) must have 4 tokens.*got 5"),
    ],
)
def test_wrong_arguments_are_refused(build: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()
