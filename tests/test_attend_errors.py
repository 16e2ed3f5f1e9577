"""Every error of attention and of what it is given: what was needed, what came, what to do."""

from __future__ import annotations

import pytest
import torch

from locant import (
    ALiBi,
    Causal,
    Decomposed,
    GatedPosition,
    Grid,
    Learned,
    LogCPB,
    Padding,
    Pairs,
    RelativeTable,
    Rotary,
    Segments,
    Shaw,
    Sinusoid,
    T5Buckets,
    TransformerXL,
    Windows,
    attention,
    nn,
    plan,
    weights,
)
from locant.attend import attention_packed

pytestmark = pytest.mark.plain

ON = Grid(2, 3)
Q = torch.randn(2, 4, 6, 8)
KEEP = torch.ones(2, 6, dtype=torch.bool)


def said(make) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text, "one sentence, and what to do"
    assert text.rstrip().endswith("."), text
    return text


def attend(q=Q, k=None, v=None, **arguments):
    k = q if k is None else k
    return attention(q, k, k if v is None else v, **arguments)


CASES = {
    "three axes": (lambda: attend(Q[0]), "as [batch, heads, tokens, head_dim]", "q [4, 6, 8]", "Reshape them"),
    "batches": (lambda: attend(Q, Q[:1]), "one batch", "k [1, 4, 6, 8]", "Make these agree"),
    "keys and values": (
        lambda: attend(Q, Q, Q[:, :, :5]),
        "as many keys as values",
        "v [2, 4, 5, 8]",
        "Make these agree",
    ),
    "head dims": (lambda: attend(Q, Q[..., :4], Q), "one head_dim for q and k", "k [2, 4, 6, 4]", "Make these agree"),
    "no channels": (lambda: attend(Q[..., :0]), "head_dim of at least 1", "q [2, 4, 6, 0]", "Give heads"),
    "grouped heads": (lambda: attend(Q, Q[:, :3]), "multiple of the heads", "4 and 3", "matching heads"),
    "no key heads": (lambda: attend(Q, Q[:, :0]), "multiple of the heads", "4 and 0", "matching heads"),
    "dtypes": (lambda: attend(Q, Q.double()), "one dtype and one device", "k torch.float64 on cpu", "Convert them"),
    "devices": (lambda: attend(Q, Q.to("meta")), "one dtype and one device", "k torch.float32 on meta", "Convert them"),
    "whole numbers": (lambda: attend(Q.long()), "a floating dtype", "torch.int64", "Convert q, k and v"),
    "dropout 1": (lambda: attend(dropout=1.0), "at least 0 and below 1", "got 1.0", "Pass 0.0"),
    "dropout < 0": (lambda: attend(dropout=-0.1), "at least 0 and below 1", "got -0.1", "Pass 0.0"),
    "grid": (lambda: attend(grid=Grid(2, 4)), "must have 8 tokens", "got 6", "Pass grid="),
    "prefix": (lambda: attend(grid=Grid(2, 3, prefix=1)), "must have 7 tokens", "got 6", "Pass grid="),
    "key grid": (lambda: attend(Q, Q[:, :, :4], grid=ON), "k and v on Grid(2, 3)", "got 4", "Pass key_grid="),
    "key grid that differs": (
        lambda: attend(grid=ON, key_grid=Grid(5)),
        "must have 5 tokens",
        "got 6",
        "Pass key_grid=",
    ),
    "axes": (lambda: attend(grid=ON, key_grid=Grid(6)), "grids of the same dimension", "Grid(6)", "Add axes of size 1"),
    "cache without grids": (
        lambda: attend(Q[:, :, 5:], Q, mask=Causal()),
        "must have 1 tokens",
        "got 6",
        "knows where it lies",
    ),
    "position is a mask": (lambda: attend(position=Causal()), "a position scheme", "got Causal", "use mask="),
    "position is a class": (lambda: attend(position=(ALiBi(4), "rotary")), "a position scheme", "got str", "use mask="),
    "embedding": (lambda: attend(position=Sinusoid(8)), "receives projected heads", "Sinusoid", "locant.nn.Attention"),
    "learned": (
        lambda: attend(position=Learned(Grid(6), 8)),
        "receives projected heads",
        "Learned",
        "locant.nn.Attention",
    ),
    "two rotations": (lambda: attend(position=(Rotary(8), Rotary(8))), "one scheme per entrance", "rotate", "Keep one"),
    "two gates": (
        lambda: attend(grid=ON, position=(GatedPosition(4), GatedPosition(4))),
        "one scheme per entrance",
        "gate",
        "Keep one",
    ),
    "heads of a table": (lambda: attend(position=RelativeTable(Grid(6), 3)), "has 3 heads", "q has 4", "heads=4"),
    "heads of a gate": (lambda: attend(grid=ON, position=GatedPosition(2)), "has 2 heads", "q has 4", "heads=4"),
    "heads of two biases": (lambda: attend(position=(ALiBi(4), ALiBi(2))), "has 2 heads", "q has 4", "heads=4"),
    "lse of a gate": (
        lambda: attend(grid=ON, position=GatedPosition(4), return_lse=True),
        "needs one softmax",
        "gated",
        "without the gate",
    ),
    "mask is bool": (
        lambda: attend(mask=KEEP),
        "`mask` as a Mask",
        "torch.bool tensor",
        "Pairs.from_kept(mask)",
    ),
    "mask is added": (
        lambda: attend(mask=torch.zeros(6, 6)),
        "`mask` as a Mask",
        "float32 tensor",
        "Pairs.from_additive(mask)",
    ),
    "mask is numbers": (
        lambda: attend(mask=KEEP.long()),
        "`mask` as a Mask",
        "int64 tensor",
        "Padding.from_attention_mask(mask)",
    ),
    "mask is a list": (lambda: attend(mask=[Causal(), Padding(KEEP)]), "`mask` as a Mask", "[Causal(", "a & b"),
    "mask is a class": (
        lambda: attend(mask=Causal),
        "`mask` as a Mask",
        "the class Causal",
        "make one, Causal()",
    ),
    "mask is a position": (lambda: attend(mask=ALiBi(4)), "`mask` as a Mask", "ALiBi(", "position="),
    "mask is a word": (lambda: attend(mask="causal"), "`mask` as a Mask", "'causal'", "Make one"),
    "grid is a tuple": (lambda: attend(grid=(2, 3)), "`grid` as a Grid", "got (2, 3)", "Write Grid(2, 3)"),
    "grid is a number": (lambda: attend(grid=6), "`grid` as a Grid", "got 6", "Write Grid(6)"),
    "key grid is a size": (lambda: attend(key_grid=Q.shape[2:3]), "`key_grid` as a Grid", "[6]", "Write Grid(6)"),
    "sizes in a tuple": (lambda: Grid((2, 3)), "sizes one by one", "got (2, 3)", "Write Grid(*sizes)"),
    "numpy": (lambda: attend(Q.numpy(), Q), "`q` as a tensor", "numpy's ndarray of shape", "torch.as_tensor"),
    "mask batch": (lambda: attend(mask=Padding(torch.ones(3, 6).bool())), "a batch of 2", "got 3", "Build the mask"),
    "mask device": (lambda: attend(mask=Padding(KEEP.to("meta"))), "on cpu", "on meta", "Build the mask"),
    "segments batch": (
        lambda: attend(mask=Causal() & Segments(torch.ones(3, 6).long())),
        "a batch of 2",
        "got 3",
        "Build the mask",
    ),
    "pairs heads": (
        lambda: attend(mask=Pairs(torch.ones(2, 3, 6, 6).bool())),
        "Pairs needs 4 heads",
        "got 3",
        "Lay it out",
    ),
    "mask layout": (
        lambda: attend(grid=ON, mask=Padding(torch.ones(2, 3, 2).bool())),
        "[batch, 6]",
        "[2, 3, 2]",
        "Lay it out",
    ),
    "windows axes": (
        lambda: attend(grid=ON, mask=Windows(2)),
        "a size per axis of Grid(2, 3)",
        "got 1",
        "Give one number",
    ),
    "kernel name": (lambda: attend(kernel="flash"), "kernel='flash'", "no kernel of that name", "name another kernel"),
    "reach": (
        lambda: attend(grid=ON, position=RelativeTable(Grid(2, 2), 4)),
        "offsets up to (1, 2)",
        "reaches (1, 1)",
        "resized(Grid(2, 3))",
    ),
    "axes of a table": (
        lambda: attend(grid=ON, position=RelativeTable(Grid(6), 4)),
        "a grid of 1 axes",
        "got Grid(2, 3)",
        "Add axes",
    ),
    "axes of a gate": (lambda: attend(position=GatedPosition(4)), "grids of 2 axes", "got Grid(6)", "axes=1"),
    "distance on a picture": (
        lambda: attend(grid=ON, position=ALiBi(4)),
        "which distance",
        "got none",
        "ALiBi(heads, distance=",
    ),
    "unknown distance": (lambda: ALiBi(4, distance="chess"), 'distance="euclidean"', "got 'chess'", "Name one"),
    "empty table": (lambda: RelativeTable(Grid(0, 3), 4), "at least one cell", "got Grid(0, 3)", "sizes of 1 or more"),
    "resized prefix": (
        lambda: RelativeTable(ON, 4).resized(Grid(4, 6, prefix=1)),
        "exactly if it has them",
        "got Grid(4, 6, prefix=1)",
        "prefix=0",
    ),
    "packed layout": (
        lambda: attention_packed(Q),
        "[batch, *grid, 3, heads, head_dim]",
        "[2, 4, 6, 8]",
        "Reshape the projection",
    ),
    "packed thirds": (
        lambda: attention_packed(torch.zeros(2, 6, 4, 4, 8)),
        "[batch, *grid, 3, heads, head_dim]",
        "[2, 6, 4, 4, 8]",
        "Reshape",
    ),
    "packed grid": (
        lambda: attention_packed(torch.zeros(2, 6, 3, 4, 8), grid=Grid(7)),
        "[batch, 7, 3",
        "[2, 6, 3, 4, 8]",
        "Pass the grid",
    ),
    "packed prefix": (
        lambda: attention_packed(torch.zeros(2, 2, 3, 3, 4, 8), grid=Grid(2, 3, prefix=1)),
        "[batch, 7, 3",
        "[2, 2, 3, 3, 4, 8]",
        "Pass the grid",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_three_parts(name):
    make, needed, came, advice = CASES[name]
    text = said(make)
    at = [text.find(part) for part in (needed, came, advice)]
    assert min(at) >= 0, text
    assert at[2] > max(at[:2]), "what to do comes last"


@pytest.mark.parametrize("verb", [plan, lambda q, k, v, **rest: weights(q, k, **rest)], ids=["plan", "weights"])
def test_the_other_verbs_check_the_same(verb):
    for arguments in ({"grid": Grid(7)}, {"position": RelativeTable(Grid(2), 4)}, {"position": Sinusoid(8)}):
        assert said(lambda a=arguments: verb(Q, Q, Q, **a)) == said(lambda a=arguments: attend(**a))


def test_a_window_makes_the_reach_enough():
    """The sentence about reach offers a smaller window: it works."""
    table = RelativeTable(Grid(2, 2), 4)
    attend(grid=ON, position=table, mask=Windows((2, 2)))
    attend(grid=ON, position=table.resized(Grid(2, 3)))


def test_nothing_is_changed_in_place():
    q, k, v = Q.clone(), Q.clone() + 1, Q.clone() + 2
    valid = KEEP.clone()
    valid[:, 4:] = False
    position = (RelativeTable(ON, 4), Rotary(8, axes=2))
    before = [x.clone() for x in (q, k, v, valid)]
    attention(q, k, v, grid=ON, position=position, mask=Padding(valid) & Windows((2, 2)))
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v, valid), strict=True))


def test_a_scale_of_zero_is_a_scale():
    out = attend(scale=0.0)
    torch.testing.assert_close(out, Q.mean(2, keepdim=True).expand_as(out), atol=1e-6, rtol=0)


@pytest.mark.parametrize("heads", [0, -1])
@pytest.mark.parametrize(
    "make",
    [
        ALiBi, GatedPosition, T5Buckets, lambda n: RelativeTable(ON, n), lambda n: LogCPB(ON, n),
        lambda n: Shaw(n, 8, 2), lambda n: Decomposed(ON, n, 8), lambda n: TransformerXL(8, n),
        lambda n: nn.Attention(8, n), lambda n: nn.MultiHeadAttention(8, n), lambda n: nn.GatedAttention(8, n),
        lambda n: nn.WindowAttention(8, n, 2), lambda n: nn.Block(8, n),
    ],
)  # fmt: skip
def test_a_scheme_has_heads(make, heads):
    text = said(lambda: make(heads))
    assert "heads" in text
    assert str(heads) in text
