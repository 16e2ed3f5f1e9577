"""What content is made of: vectors of the offsets that can be seen, and sinusoids that are made once."""

from __future__ import annotations

import pytest
import torch
from near import close
from redrawing import redraw_alike
from schemes import HEAD_DIM, HEADS, heads

from locant.attend import attention, plan
from locant.forms import AxialValues, AxialVectors
from locant.grid import Grid
from locant.masks import Causal, Windows
from locant.positions import transformer_xl
from locant.positions.decomposed import Decomposed
from locant.positions.shaw import Shaw
from locant.positions.transformer_xl import TransformerXL

LONG = Grid(9)


def test_sinusoids_are_made_once(monkeypatch):
    """For all schemes of a size, after calls without gradients too; who is handed R may write into it."""
    made, make = [], transformer_xl._sinusoids
    monkeypatch.setattr(transformer_xl, "_sinusoids", lambda *asked: made.append(asked) or make(*asked))
    q, k, v = heads(LONG)
    first, second = (TransformerXL(10, HEADS, HEAD_DIM).double() for _ in range(2))
    with torch.inference_mode():
        out = attention(q, k, v, grid=LONG, position=first)
    assert len(made) == 1
    first.distances(LONG.tokens - 1).zero_()
    assert torch.equal(attention(q, k, v, grid=LONG, position=first), out)
    attention(q, k, v, grid=LONG, position=second).sum().backward()
    assert second.r_net.weight.grad.abs().max() > 1e-6
    assert len(made) == 2  # the one that was asked for by name
    with monkeypatch.context() as few:
        few.setattr(transformer_xl, "KEPT", 1)
        attention(q, k, v, grid=LONG, position=first)
    assert len(made) == 3


def test_the_form_asks_for_the_offsets_that_can_be_seen():
    """A clip, a clamp and an order leave fewer vectors; what a form asks for is what a scheme hands over."""
    q = heads(LONG)[0]
    for position, mask, ranges in (
        (TransformerXL(6, HEADS, HEAD_DIM), None, ((-8, 8),)),
        (TransformerXL(6, HEADS, HEAD_DIM), Causal(), ((0, 8),)),
        (TransformerXL(6, HEADS, HEAD_DIM, clamp=3), None, ((-3, 3),)),
        (TransformerXL(6, HEADS, HEAD_DIM, clamp=3), Causal(), ((0, 3),)),
        (Shaw(HEADS, HEAD_DIM, 4, biases=True), None, ((-4, 4),)),
        (Shaw(HEADS, HEAD_DIM, 4, biases=True, clamp=2), Causal(), ((0, 2),)),
        (Shaw(HEADS, HEAD_DIM, 20, biases=True), Causal(), ((0, 8),)),
        (Shaw(HEADS, HEAD_DIM, 4, causal=True), Causal(), ((0, 4),)),
    ):
        form = plan(q, q, q, grid=LONG, position=position, mask=mask).problem.content
        assert form == AxialVectors(HEADS, ranges), position
        found = redraw_alike(position.double()).values(form, q, 0.5)
        whole = position.values(AxialVectors(HEADS, position.ranges((8,))), q, 0.5)
        assert found.vectors[0].shape[1:] == (form.sizes[0], HEAD_DIM)
        close(found.vectors[0], whole.vectors[0][:, -form.sizes[0] :])
        if found.biases is not None:
            assert torch.equal(found.biases[0], whole.biases[0][:, -form.sizes[0] :])
    for query_grid, position, ranges in (
        (LONG[6:], TransformerXL(6, HEADS, HEAD_DIM), ((-2, 8),)),
        (LONG[8:], TransformerXL(6, HEADS, HEAD_DIM), ((0, 8),)),
        (LONG[:1], TransformerXL(6, HEADS, HEAD_DIM), ((-8, 8),)),
        (LONG[6:], Shaw(HEADS, HEAD_DIM, 4), ((-2, 4),)),
    ):
        few = heads(query_grid)[0]
        arguments = {"grid": query_grid, "key_grid": LONG, "position": position.double()}
        assert plan(few, q, q, **arguments).problem.content == AxialVectors(HEADS, ranges)
    far = {"grid": LONG[8:], "key_grid": LONG[:2], "position": Shaw(HEADS, HEAD_DIM, 4)}  # offsets 7 and 8 are 4
    few, met = heads(far["grid"])[0], heads(far["key_grid"])[0]
    assert plan(few, met, met, **far).problem.content == AxialVectors(HEADS, ((4, 4),))
    image = Grid(4, 6)
    decomposed = Decomposed(image, HEADS, HEAD_DIM)
    rows, columns = Causal(0), Causal(1)
    for mask, ranges in (
        (rows, ((0, 3), (-5, 5))), (columns, ((-3, 3), (0, 5))), (rows & columns, ((0, 3), (0, 5))),
        (Causal(), ((0, 3), (-5, 5))), (Windows((2, 3)), ((-1, 1), (-2, 2))),
    ):  # fmt: skip
        q = heads(image)[0]
        form = plan(q, q, q, grid=image, position=decomposed, mask=mask).problem.content
        assert form.ranges == ranges
        for line, table, (low, high) in zip(
            decomposed.values(form, q, 0.5).vectors, decomposed.tables, ranges, strict=True
        ):
            assert torch.equal(line[0], table[len(table) // 2 + low : len(table) // 2 + high + 1])


def test_vectors_are_those_of_the_ranges():
    """The kernels read as many as the ranges say."""
    q = heads(LONG)[0]
    with pytest.raises(ValueError, match=r"each offset of its ranges, 17 on axis 0 for \(-8, 8\); got 16\. Hand over"):
        AxialValues(q, (torch.zeros(1, 16, HEAD_DIM, dtype=q.dtype),), ((-8, 8),))
