"""Masks made of numbers: what is no such mask is refused in eager, in graphs and in exported programs alike."""

from __future__ import annotations

import pytest
import torch

from locant import Grid, Padding, Pairs, attention

QUERIES = torch.randn(2, 1, 4, 8)
RIGHT = {  # constructors that read numbers: of a right tensor, of a wrong one, and a word of the error
    "Padding.from_attention_mask": (Padding.from_attention_mask, torch.ones(2, 4), torch.full((2, 4), 3.0), "zeros"),
    "Padding.from_additive": (Padding.from_additive, torch.zeros(2, 4), torch.full((2, 4), -3.0), "-100 or less"),
    "Padding.from_lengths": (
        lambda n: Padding.from_lengths(n, 4), torch.tensor([4, 0]), torch.tensor([5, 0]), "from 0 to 4",
    ),
    "Pairs.from_kept": (Pairs.from_kept, torch.ones(4, 4).long(), torch.full((4, 4), -1), "zeros and ones"),
    "Pairs.from_blocked": (Pairs.from_blocked, torch.zeros(4, 4), torch.full((4, 4), -1e4), "zeros and ones"),
    "Pairs.from_additive": (Pairs.from_additive, torch.zeros(4, 4), torch.full((4, 4), 0.5), "-100 or less"),
    "Pairs.from_window_mask": (
        lambda m: Pairs.from_window_mask(m, 2), torch.zeros(1, 4, 4), torch.full((1, 4, 4), -1.0), "-100 or less",
    ),
    "Pairs.from_lengths": (
        lambda n: Pairs.from_lengths(n, 4), torch.tensor([[4, 0, 1, 2]]), torch.tensor([[4, 0, 1, -2]]), "from 0 to 4",
    ),
}  # fmt: skip


@pytest.mark.compiled
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_graphs_read_numbers_as_carefully(name, backend):
    """One graph, and what eager refuses is refused with the same sentence: a wrong sense must not be inverted."""
    make, right, wrong, word = RIGHT[name]
    attend = lambda m: attention(QUERIES, QUERIES, QUERIES, grid=Grid(4), mask=make(m))  # noqa: E731
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(right), attend(right))
    said = []
    for run in (attend, compiled):
        with pytest.raises(ValueError, match=word) as caught:
            run(wrong)
        said.append(str(caught.value))
    assert said[0] == said[1]


class Reads(torch.nn.Module):
    """A model that makes its mask itself."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, m):
        return attention(QUERIES, QUERIES, QUERIES, grid=Grid(4), mask=self.make(m))


@pytest.mark.compiled
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_exported_programs_assert(name, strict):
    """Of torch's own operators alone, so that they run without Locant; numbers that don't fit stop them."""
    make, right, wrong, word = RIGHT[name]
    program = torch.export.export(Reads(make), (right,), strict=strict)
    assert "locant" not in str(program.graph)
    torch.testing.assert_close(program.module()(right), Reads(make)(right))
    with pytest.raises(RuntimeError, match=word):
        program.module()(wrong)


def test_numbers_are_read_where_there_are_none_and_sample_by_sample():
    """Tensors without numbers pass, as shapes; under vmap each sample is read like the whole."""
    assert Pairs.from_additive(torch.empty(4, 4, device="meta")).allowed_pairs.shape == (4, 4)
    lengths = torch.tensor([[1, 4], [0, 3]])
    found = torch.func.vmap(lambda n: Padding.from_lengths(n, 4).valid, in_dims=1)(lengths)
    assert torch.equal(found.sum(-1), lengths.T)
    with pytest.raises(ValueError, match="such as 4"):
        torch.func.vmap(lambda n: Padding.from_lengths(n, 3).valid)(lengths)


LEARNED = torch.zeros(1, 4, 5, 5, requires_grad=True)  # a bias before its first step


@pytest.mark.plain
@pytest.mark.parametrize(
    "learned", [LEARNED, LEARNED * 1, torch.nn.Parameter(torch.zeros(5, 5))], ids=["leaf", "made", "parameter"]
)
@pytest.mark.parametrize("read", [Pairs.from_additive, Pairs.from_kept, Pairs.from_blocked])
def test_what_is_learned_is_no_mask(read, learned):
    """Its numbers would pass while they are zero, and train nothing."""
    with pytest.raises(ValueError, match=r"without a gradient.*requires grad.*RelativeTable.*detach"):
        read(learned)
    read(learned.detach())
