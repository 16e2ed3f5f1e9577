"""BERT's input: the sum by its formula, which position each token reads, and that positions are trained."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from near import apart
from torch import Tensor

from locant import Grid
from locant.models.bert import BertEmbeddings

WORDS, DIM, TOKENS = 17, 6, 9


def small(dtype: torch.dtype = torch.float64) -> BertEmbeddings:
    module = BertEmbeddings(WORDS, DIM, tokens=TOKENS, dropout=0.0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module.to(dtype).eval()


def by_hand(module: BertEmbeddings, word: int, kind: int, place: int) -> Tensor:
    x = module.word_embeddings.weight[word] + module.token_type_embeddings.weight[kind] + module.position.table[place]
    mean = x.sum() / DIM
    spread = math.sqrt(((x - mean) ** 2).sum().item() / DIM + 1e-12)
    return (x - mean) / spread * module.norm.weight + module.norm.bias


@pytest.mark.row(41)
def test_the_sum_is_its_formula() -> None:
    module, ids = small(), torch.randint(0, WORDS, (2, 5))
    kinds, places = torch.randint(0, 2, (2, 5)), torch.randint(0, TOKENS, (2, 5))
    plain, chosen = module(ids), module(ids, types=kinds, places=places)
    for b in range(2):
        for t in range(5):
            word = int(ids[b, t])
            assert apart(plain[b, t], by_hand(module, word, 0, t)) < 1e-10
            golden = by_hand(module, word, int(kinds[b, t]), int(places[b, t]))
            assert apart(chosen[b, t], golden) < 1e-10
    assert apart(module(ids[:, 2:], grid=Grid(5)[2:]), plain[:, 2:]) < 1e-12  # behind others: a slice knows its place


@pytest.mark.row(41)
def test_padding_on_the_left_needs_places() -> None:
    module, ids = small(), torch.randint(0, WORDS, (2, 5))
    valid = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    places = (valid.cumsum(1) - 1).clamp(min=0)
    alone = module(ids[:1, 2:])
    assert apart(module(ids, places=places)[:1, 2:], alone) < 1e-12
    assert apart(module(ids)[:1, 2:], alone) > 1e-2
    assert apart(module(ids, places=places)[1], module(ids)[1]) < 1e-12


@pytest.mark.row(41)
def test_positions_are_trained() -> None:
    """d2l-zh adds their data, so that no gradient reaches them."""
    module = small()
    module(torch.randint(0, WORDS, (2, 5))).square().sum().backward()
    assert float(module.position.table.grad[:5].abs().min()) > 0
    assert not module.position.table.grad[5:].any()


@pytest.mark.row(41)
@pytest.mark.row(54)
def test_longer_text_by_resized_positions() -> None:
    module, ids = small(), torch.randint(0, WORDS, (1, 17))
    module.position = module.position.resized(Grid(17))
    assert module(ids).shape == (1, 17, DIM)
    assert apart(module(ids)[0, 16], by_hand(module, int(ids[0, 16]), 0, 16)) < 1e-10
    assert apart(module(ids[:, 16:], places=torch.tensor([[16]])), module(ids)[:, 16:]) < 1e-12
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {
        "word_embeddings.weight": (WORDS, DIM), "token_type_embeddings.weight": (2, DIM),
        "position.table": (17, DIM), "norm.weight": (DIM,), "norm.bias": (DIM,),
    }  # fmt: skip
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


@pytest.mark.row(41)
def test_it_starts_as_published() -> None:
    module = BertEmbeddings(1000, 64)
    for rows in (module.word_embeddings.weight, module.position.table):
        assert abs(float(rows.detach().std()) - 0.02) < 0.0006  # five standard errors of 32,768 numbers
        assert float(rows.detach().abs().max()) < 2
    assert (module.norm.eps, module.dropout, len(module.position.table)) == (1e-12, 0.1, 512)
    x = module(torch.randint(0, 1000, (4, 50)))
    assert 0.05 < float((x == 0).double().mean()) < 0.15  # dropout, in training
    assert not bool((module.eval()(torch.randint(0, 1000, (4, 50))) == 0).any())


@pytest.mark.row(53)
@pytest.mark.row(54)
def test_copies_files_and_dtypes() -> None:
    module, ids = small(torch.float32), torch.randint(0, WORDS, (2, 5))
    expected = module(ids)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(ids), expected)
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(module).to(dtype)
        exact = copy.deepcopy(half).double()(ids)
        # a norm divides by the spread, which is at least 1/4 here: some ten roundings of numbers up to 4
        assert half(ids).dtype == dtype
        assert apart(half(ids).double(), exact) <= 64 * torch.finfo(dtype).eps
    with torch.autocast("cpu", torch.bfloat16):
        assert apart(module(ids).float(), expected) <= 64 * torch.finfo(torch.bfloat16).eps


@pytest.mark.compiled
@pytest.mark.row(55)
def test_one_graph() -> None:
    module, ids = small(torch.float32), torch.randint(0, WORDS, (2, 5))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    places = torch.tensor([[0, 0, 0, 1, 2], [4, 3, 2, 1, 0]])
    for options in ({}, {"places": places}):
        assert apart(compiled(ids, **options), module(ids, **options)) <= 1e-6


@pytest.mark.plain
@pytest.mark.row(41)
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: BertEmbeddings(0), ("vocabulary", "0, 768, 512 and 2", "30522")),
        (lambda: BertEmbeddings(5, 4, dropout=2.0), ("`dropout`", "2.0", "probability")),
        (lambda: small()(torch.zeros(1, 10).long()), ("tokens 0 to 8", "asks for 0 to 9", "`resized(grid)`")),
        (lambda: small()(torch.zeros(1, 2)), ("`ids` as whole", "float32", "text.long()")),
        (lambda: small()(torch.zeros(1, 2).long(), types=torch.zeros(1, 2)), ("`types`", "float32", "text.long()")),
        (
            lambda: small()(torch.zeros(1, 2).long(), places=torch.tensor([[0, 9]])),
            ("places 0 to 8", "0 to 9", "`position.resized(grid)`"),
        ),
        (lambda: small()(torch.zeros(1, 2).long(), places=torch.tensor([[-1, 0]])), ("0 to 8", "-1 to 0", "resized")),
        (
            lambda: small()(torch.zeros(1, 2).long(), places=torch.tensor([[0, 1]]), grid=Grid(2)),
            ("`places` or `grid`", "got both", "Leave one out"),
        ),
    ],
)
def test_errors_have_three_parts(make: Callable[[], object], parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        make()
    assert all(part in str(caught.value) for part in parts), str(caught.value)
