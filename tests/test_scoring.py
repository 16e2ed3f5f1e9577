"""The masked softmax, and what attends by it: dot products and additive scores; what kernels of distance share."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from near import close
from torch import Tensor, nn

from locant import Causal, Grid, Padding, Pairs
from locant.kernels import reference
from locant.nn import nadaraya_watson, scoring
from locant.nn.nadaraya_watson import NadarayaWatson
from locant.nn.scoring import AdditiveAttention, DotProductAttention, masked_softmax, masked_softmax_d2l

LENGTHS = torch.tensor([3, 0, 5])
OF_QUERIES = torch.tensor([[1, 5], [0, 2], [4, 0]])
MASKS = {"1-D": Padding.from_lengths(LENGTHS, 5), "2-D": Pairs.from_lengths(OF_QUERIES, 5)}
SEEN = {"1-D": LENGTHS[:, None].expand(3, 2), "2-D": OF_QUERIES}
DOUBLE = torch.float64


def rows(scores: Tensor, seen: Tensor) -> Tensor:
    """The definition, one number at a time: exp(s_j) / Σ exp(s_j) over the first `seen` keys; nothing is 0."""
    p = torch.zeros_like(scores)
    for b, i in ((b, i) for b in range(scores.shape[0]) for i in range(scores.shape[1])):
        e = [math.exp(s) for s in scores[b, i, : seen[b, i]].tolist()]
        for j, one in enumerate(e):
            p[b, i, j] = one / math.fsum(e)
    return p


@pytest.mark.row(36)
@pytest.mark.parametrize("sense", MASKS)
def test_masked_softmax_is_its_formula_and_leaves_the_scores_alone(sense: str, parity: Callable) -> None:
    scores = 3 * torch.randn(3, 2, 5, dtype=DOUBLE)
    before = scores.clone()
    p = masked_softmax(scores, MASKS[sense])
    parity(36, f"exp(s) / Σ exp(s), {sense} lengths", (p - rows(scores, SEEN[sense])).abs().max(), 1e-10)
    hidden = torch.arange(5) >= SEEN[sense][..., None]
    assert not p[hidden].any()  # exactly 0, and so is every row that sees nothing
    assert torch.equal(scores, before)
    close(masked_softmax(scores), torch.softmax(scores, -1), 1e-14)


@pytest.mark.row(36)
def test_a_row_that_sees_nothing_has_finite_gradients() -> None:
    scores = torch.randn(3, 2, 5, dtype=DOUBLE, requires_grad=True)
    masked_softmax(scores, MASKS["2-D"]).square().sum().backward()
    empty = OF_QUERIES == 0
    assert bool(scores.grad.isfinite().all())
    assert not scores.grad[empty].any()
    assert float(scores.grad[~empty].abs().max()) > 0.01
    assert torch.autograd.gradcheck(lambda s: masked_softmax(s, MASKS["2-D"]), scores)


@pytest.mark.row(36)
@pytest.mark.row(53)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masked_softmax_in_half_precision(dtype: torch.dtype) -> None:
    scores = (8 * torch.randn(3, 2, 5)).to(dtype)
    p = masked_softmax(scores, MASKS["1-D"])
    exact = rows(scores.double(), SEEN["1-D"])
    low = float((torch.softmax(scores[2], -1).double() - exact[2]).abs().max())  # torch's own on the row without mask
    rounding = float((exact.to(dtype).double() - exact).abs().max())
    assert p.dtype == dtype
    assert float((p.double() - exact).abs().max()) <= 2 * low + 2 * max(rounding, torch.finfo(dtype).eps)
    published = masked_softmax_d2l(scores, LENGTHS)
    assert bool(published.isfinite().all())
    assert published[1].tolist() == torch.full((2, 5), 0.2, dtype=dtype).tolist()


@pytest.mark.row(36)
@pytest.mark.row(50)
@pytest.mark.parametrize("lengths", [LENGTHS, OF_QUERIES], ids=["1-D", "2-D"])
def test_the_published_behaviour_has_a_name_of_its_own(lengths: Tensor, parity: Callable) -> None:
    """-1e6 behind the length: the same where something is seen, uniform over hidden keys where nothing is."""
    scores = torch.randn(3, 2, 5, dtype=DOUBLE)
    before = scores.clone()
    published = torch.empty_like(scores)
    for b in range(3):
        for i in range(2):
            length = int(lengths[b] if lengths.ndim == 1 else lengths[b, i])
            line = torch.cat([scores[b, i, :length], torch.full((5 - length,), -1e6, dtype=DOUBLE)])
            published[b, i] = torch.exp(line - line.max()) / torch.exp(line - line.max()).sum()
    found = masked_softmax_d2l(scores, lengths)
    parity(36, "d2l masked_softmax, -1e6", (found - published).abs().max(), 1e-10)
    assert torch.equal(scores, before)
    empty = (lengths if lengths.ndim == 2 else lengths[:, None].expand(3, 2)) == 0
    assert bool((found[empty] == 0.2).all())
    close(masked_softmax(scores, MASKS["1-D" if lengths.ndim == 1 else "2-D"])[~empty], found[~empty], 1e-14)
    close(masked_softmax_d2l(scores), torch.softmax(scores, -1), 1e-14)


@pytest.mark.row(37)
def test_one_masked_softmax_serves_them_all() -> None:
    assert scoring.softmax is nadaraya_watson.softmax is reference.softmax


@pytest.mark.row(37)
def test_d2ls_example_is_the_mean_of_the_keys_that_are_seen() -> None:
    """All keys alike: the values 0, 1, ..., 39 in rows of 4, of which 2 and 6 rows are real."""
    values = torch.arange(40.0, dtype=DOUBLE).reshape(1, 10, 4).repeat(2, 1, 1)
    mask = Padding.from_lengths(torch.tensor([2, 6]), 10)
    golden = torch.tensor([[[2.0, 3, 4, 5]], [[10, 11, 12, 13]]], dtype=DOUBLE)
    additive = AdditiveAttention(8, query_dim=20, key_dim=2, dropout=0.1).double().eval()
    query = torch.randn(2, 1, 20, dtype=DOUBLE)
    close(additive(query, torch.ones(2, 10, 2, dtype=DOUBLE), values, mask=mask)[0], golden)
    query = torch.randn(2, 1, 2, dtype=DOUBLE)
    dot = DotProductAttention(dropout=0.5).eval()
    close(dot(query, torch.ones(2, 10, 2, dtype=DOUBLE), values, mask=mask)[0], golden)


@pytest.mark.row(37)
@pytest.mark.parametrize("sense", MASKS)
def test_additive_attention_is_its_formula(sense: str, parity: Callable) -> None:
    module = AdditiveAttention(6, query_dim=4, key_dim=3).double()
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "W_q.weight": (6, 4), "W_k.weight": (6, 3), "w_v.weight": (1, 6),
    }  # fmt: skip
    query, key, value = (torch.randn(3, n, d, dtype=DOUBLE) for n, d in ((2, 4), (5, 3), (5, 7)))
    scores = torch.zeros(3, 2, 5, dtype=DOUBLE)
    for b in range(3):
        for i in range(2):
            for j in range(5):
                inside = module.W_q.weight @ query[b, i] + module.W_k.weight @ key[b, j]
                scores[b, i, j] = module.w_v.weight[0] @ torch.tanh(inside)
    golden = rows(scores.detach(), SEEN[sense])
    out, p = module(query, key, value, mask=MASKS[sense], need_weights=True)
    close(p, golden)
    parity(37, f"w_vᵀ tanh(W_q q + W_k k), {sense} lengths", (out - golden @ value).detach().abs().max(), 1e-10)
    assert module(query, key, value)[1] is None


@pytest.mark.row(37)
@pytest.mark.parametrize("sense", MASKS)
def test_dot_product_attention_is_its_formula(sense: str, parity: Callable) -> None:
    query, key, value = (torch.randn(3, n, d, dtype=DOUBLE) for n, d in ((2, 4), (5, 4), (5, 7)))
    golden = rows(query @ key.transpose(1, 2) / 4**0.5, SEEN[sense])
    out, p = DotProductAttention()(query, key, value, mask=MASKS[sense], need_weights=True)
    close(p, golden)
    parity(37, f"softmax(q k / √d) v, {sense} lengths", (out - golden @ value).abs().max(), 1e-10)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "dot": lambda: DotProductAttention(),
    "additive": lambda: AdditiveAttention(6, query_dim=4, key_dim=4),
    "gaussian": lambda: NadarayaWatson(w=None),
    "triangular": lambda: NadarayaWatson("triangular", w=None),
    "boxcar": lambda: NadarayaWatson("boxcar", w=0.5),
}


def three(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(3, n, d).to(dtype) for n, d in ((2, 4), (5, 4), (5, 3))]


@pytest.mark.row(36)
@pytest.mark.parametrize("name", MODULES)
def test_what_is_padding_may_be_anything(name: str) -> None:
    """NaN in keys and values that no query sees reaches neither the result nor a gradient."""
    module, (query, key, value) = MODULES[name](), three()
    mask = MASKS["1-D"]
    expected, _ = module(query, key, value, mask=mask)
    assert not expected[1].any()  # length 0
    spoiled = [x.masked_fill(~mask.valid[..., None], torch.nan) for x in (key, value)]
    out, _ = module(query, *spoiled, mask=mask)
    assert torch.equal(out, expected)
    if list(module.parameters()):
        for gradient in torch.autograd.grad(out.sum(), list(module.parameters())):
            assert bool(gradient.isfinite().all())


@pytest.mark.row(53)
@pytest.mark.parametrize("name", MODULES)
def test_gradcheck(name: str) -> None:
    module = MODULES[name]().double()
    tensors = [x.requires_grad_() for x in three(DOUBLE)]
    names, values = list(dict(module.named_parameters())), list(module.parameters())

    def call(query: Tensor, key: Tensor, value: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, state, (query, key, value), {"mask": MASKS["2-D"]})[0]

    assert torch.autograd.gradcheck(call, (*tensors, *values), fast_mode=True)


@pytest.mark.row(53)
@pytest.mark.row(54)
@pytest.mark.parametrize("name", MODULES)
def test_copies_files_and_dtypes(name: str) -> None:
    module, tensors = MODULES[name](), three()
    assert set(module.state_dict()) == {n for n, _ in module.named_parameters()}
    expected, _ = module(*tensors, mask=MASKS["1-D"])
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(*tensors, mask=MASKS["1-D"])[0], expected)
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(module).to(dtype)
        rounded = [x.to(dtype) for x in tensors]
        out, p = half(*rounded, mask=MASKS["1-D"], need_weights=True)
        exact, _ = copy.deepcopy(half).double()(*(x.double() for x in rounded), mask=MASKS["1-D"])
        assert out.dtype == p.dtype == dtype
        if name != "boxcar":  # a step: rounding may put a key on its other side
            assert float((out.double() - exact).detach().abs().max()) <= 32 * torch.finfo(dtype).eps
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = module(*tensors, mask=MASKS["1-D"])
    if name != "boxcar":
        assert float((out.float() - expected).detach().abs().max()) <= 32 * torch.finfo(torch.bfloat16).eps


@pytest.mark.compiled
@pytest.mark.row(55)
@pytest.mark.parametrize(("name", "sense"), [("dot", "1-D"), ("additive", "1-D"), ("triangular", "2-D")])
def test_one_graph(name: str, sense: str) -> None:
    module, tensors = MODULES[name](), three()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    close(compiled(*tensors, mask=MASKS[sense])[0], module(*tensors, mask=MASKS[sense])[0], 1e-6)


def test_dropout_falls_on_the_weights_that_meet_values_alone() -> None:
    for module in (DotProductAttention(dropout=0.5), AdditiveAttention(4, dropout=0.5)):
        query, key = torch.randn(2, 3, 4, dtype=DOUBLE), torch.randn(2, 40, 4, dtype=DOUBLE)
        module.double()
        out, p = module(query, key, torch.ones(2, 40, 1, dtype=DOUBLE), need_weights=True)
        close(p.sum(-1), torch.ones(2, 3, dtype=DOUBLE))
        assert float((out - 1).detach().abs().max()) > 0.01
        out, _ = module.eval()(query, key, torch.ones(2, 40, 1, dtype=DOUBLE))
        close(out, torch.ones(2, 3, 1, dtype=DOUBLE))


def test_they_say_what_they_are() -> None:
    assert "('triangular', w=0.5)" in repr(NadarayaWatson("triangular", w=0.5))
    assert repr(NadarayaWatson(w=None)) == "NadarayaWatson('gaussian')"
    assert "dropout=0.1" in repr(AdditiveAttention(4, dropout=0.1))


@pytest.mark.plain
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: AdditiveAttention(0), ("at least 1", "0, 0 and 0", "channels")),
        (lambda: AdditiveAttention(4, dropout=1.0), ("`dropout`", "1.0", "probability")),
        (lambda: DotProductAttention(dropout=-0.1), ("`dropout`", "-0.1", "probability")),
        (lambda: NadarayaWatson("epanechikov"), ("`kernel` out of", "'epanechikov'", '"triangular"')),
        (lambda: NadarayaWatson("boxcar", w=None), ("learns `w`", "'boxcar'", '"gaussian"')),
        (lambda: masked_softmax(torch.zeros(2, 3, 4), Causal()), ("on one grid", "3 queries and 4 keys", "Pairs(")),
        (lambda: masked_softmax(torch.zeros(2, 3, 5), MASKS["1-D"]), ("a batch of 2", "got 3", "this batch")),
        (
            lambda: masked_softmax(torch.zeros(2, 3, 5), Pairs(torch.ones(1, 2, 3, 5).bool())),
            ("no heads", "2 heads", "one head"),
        ),
        (lambda: masked_softmax(torch.zeros(3, 3, 4), MASKS["1-D"]), ("[batch, 4]", "[3, 5]", "Lay it out")),
        (
            lambda: masked_softmax_d2l(torch.zeros(3, 2, 5), torch.tensor([[1, 2, 3]])),
            ("[3] or [3, 2]", "[1, 3]", "a length per sample"),
        ),
        (lambda: masked_softmax_d2l(torch.zeros(3, 2, 5), torch.ones(3)), ("whole", "torch.float32", "a length")),
        (
            lambda: AdditiveAttention(8, query_dim=20, key_dim=2)(*(torch.zeros(2, 5, n) for n in (2, 20, 3))),
            ("query [batch, queries, 20], key [batch, keys, 2]", "[2, 5, 2], [2, 5, 20]", "agree"),
        ),
        (
            lambda: DotProductAttention()(*(torch.zeros(2, 3, d) for d in (4, 5, 6))),
            ("[batch, keys, 4]", "[2, 3, 5]", "agree"),
        ),
        (
            lambda: DotProductAttention()(*(torch.zeros(2, n, 4) for n in (3, 5, 6))),
            ("value [batch, keys", "[2, 6, 4]", "agree"),
        ),
        (
            lambda: NadarayaWatson()(*(torch.zeros(n) for n in (3, 4, 4))),
            ("[batch, queries", "[3], [4]", "x[None, :, None]"),
        ),
        (
            lambda: NadarayaWatson()(torch.zeros(1, 3, 1), *(torch.zeros(1, 3, 1).double(),) * 2),
            ("torch.float32 on cpu", "torch.float64", ".to("),
        ),
        (
            lambda: NadarayaWatson()(*(torch.zeros(1, n, 1) for n in (3, 4, 4)), exclude_self=True),
            ("as many queries as keys", "3 and 4", "Leave it out"),
        ),
    ],
)  # fmt: skip
def test_errors_have_three_parts(make: Callable[[], object], parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        make()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_mask_of_places_needs_one_grid() -> None:
    scores = torch.randn(1, 4, 4)
    assert torch.equal(masked_softmax(scores, Causal()).triu(1), torch.zeros(1, 4, 4))
    named = Pairs(Causal().allowed(Grid(4)[2:], Grid(4))[:, 0])
    assert torch.equal(masked_softmax(scores[:, 2:], named), masked_softmax(scores, Causal())[:, 2:])


@pytest.mark.row(56)
def test_what_the_text_says_of_masks() -> None:
    """ "A mask makes invalid weights exactly 0": only where a key is valid; -1e9 in half precision is an error."""
    scores = torch.randn(2, 4)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    published = torch.softmax(scores.masked_fill(mask == 0, -1e9), -1)
    assert published[0, 2:].tolist() == [0, 0]
    assert published[1].tolist() == [0.25] * 4
    with pytest.raises(RuntimeError, match="overflow"):
        scores.half().masked_fill(mask == 0, -1e9)
    for dtype in (torch.float32, torch.float16):
        ours = masked_softmax(scores.to(dtype)[None], Pairs.from_kept(mask))[0]
        assert ours[mask == 0].tolist() == [0] * 6
        assert abs(float(ours[0].sum()) - 1) < 1e-3
