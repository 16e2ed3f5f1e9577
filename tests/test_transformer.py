"""The encoder–decoder Transformer: causal always, token by token as in one piece, padding without effect; greedy."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from near import apart
from torch import Tensor
from torch.utils import _pytree

from locant import Padding
from locant.models.tokens import greedy
from locant.models.transformer import AddNorm, State, Transformer, TransformerDecoder, TransformerEncoder

SOURCES, TARGETS, DIM, HEADS = 11, 13, 12, 3
LENGTHS = torch.tensor([6, 3, 0])
DOUBLE = torch.float64


def small(*, pre_norm: bool = False, dropout: float = 0.0, depth: int = 2, dtype: torch.dtype = DOUBLE) -> Transformer:
    """Every parameter drawn large enough to show."""
    model = Transformer(
        SOURCES, TARGETS, dim=DIM, heads=HEADS, hidden=20, depth=depth, dropout=dropout, bias=True, pre_norm=pre_norm
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def ids(batch: int = 3, source: int = 6, target: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randint(0, SOURCES, (batch, source)), torch.randint(0, TARGETS, (batch, target))


def mask() -> Padding:
    return Padding.from_lengths(LENGTHS, 6)


def stepwise(model: Transformer, source: Tensor, target: Tensor, parts: list[int], mask: Padding | None) -> Tensor:
    state, logits = model.start(source, mask=mask), []
    for part in target.split(parts, dim=1):
        found, state = model.decode(part, state)
        logits.append(found)
    return torch.cat(logits, 1)


@pytest.mark.row(42)
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("parts", [[1] * 7, [3, 1, 2, 1], [7]])
def test_step_by_step_it_is_the_whole(pre_norm: bool, parts: list[int], parity: Callable) -> None:
    source, target = ids()
    model = small(pre_norm=pre_norm)
    whole = model(source, target, mask=mask())
    parity(42, "stepwise = full, float64", apart(stepwise(model, source, target, parts, mask()), whole), 1e-10)
    model = model.float()
    whole = model(source, target, mask=mask())
    error = apart(stepwise(model, source, target, parts, mask()), whole)
    parity(42, "stepwise = full, float32", error, 1e-5 * float(whole.detach().abs().max()))


@pytest.mark.row(42)
@pytest.mark.parametrize("training", [False, True])
def test_the_future_changes_nothing_in_evaluation_either(training: bool) -> None:
    model, (source, target) = small().train(training), ids()
    before = model(source, target)
    for t in range(7):
        changed = target.clone()
        changed[:, t:] = (changed[:, t:] + 1) % TARGETS
        after = model(source, changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert float((after - before)[:, t:].detach().abs().amax(-1).min()) > 1e-6  # and the past reaches everywhere


@pytest.mark.row(42)
def test_a_token_knows_how_many_came_before_it() -> None:
    """The published prediction puts every token at position 0: the same word twice would be the same query."""
    model = small()
    twice = torch.full((1, 2), 4)
    decoder = model.decoder
    here, next_ = decoder.embed(twice), decoder.embed(twice[:, :1], 1)
    assert apart(next_[:, 0], here[:, 1]) == 0
    assert apart(here[:, 1], here[:, 0]) > 0.1
    state = model.start(torch.tensor([[1, 2]]))
    _, state = model.decode(twice[:, :1], state)
    assert state.seen == 1
    forgetful = decoder.embed(twice[:, :1])
    assert apart(forgetful, next_) > 0.1


@pytest.mark.row(40)
@pytest.mark.row(42)
def test_tokens_enter_as_embedding_times_root_of_dim_and_a_sine() -> None:
    encoder = small().encoder
    found = encoder.embed(torch.tensor([[3, 5, 3]]), 2)[0]
    for t, word in enumerate((3, 5, 3)):
        for i in range(DIM // 2):
            angle = (t + 2) / 10000 ** (2 * i / DIM)
            for channel, wave in ((2 * i, math.sin(angle)), (2 * i + 1, math.cos(angle))):
                golden = math.sqrt(DIM) * encoder.embedding.weight[word, channel].item() + wave
                assert abs(found[t, channel].item() - golden) < 1e-7  # the sine's buffer is float32 until it is moved
    start = TransformerEncoder(2000, dim=64, depth=1).embedding.weight
    assert abs(float(start.detach().std()) * 8 - 1) < 0.02  # of std 1 / √dim


@pytest.mark.row(42)
def test_a_state_keeps_keys_and_values() -> None:
    model, (source, target) = small(), ids()
    state = model.start(source, mask=mask())
    assert (state.seen, state.own) == (0, ())
    memory = model.encoder(source, mask=mask())
    for block, (k, v) in zip(model.decoder.blocks, state.source, strict=True):
        heads = block.cross_attention
        assert apart(k.transpose(1, 2).flatten(2), heads.k(memory)) == 0
        assert apart(v.transpose(1, 2).flatten(2), heads.v(memory)) == 0
    _, state = model.decode(target[:, :4], state)
    assert state.seen == 4
    first = model.decoder.blocks[0].attention
    x = model.decoder.embed(target[:, :4])
    assert apart(state.own[0][0].transpose(1, 2).flatten(2), first.k(x)) < 1e-12
    assert [tuple(k.shape) for k, _ in state.own] == [(3, HEADS, 4, DIM // HEADS)] * 2
    again, later = model.decode(target[:, 4:], state)
    assert (state.seen, later.seen) == (4, 7)  # the old state still stands: beams may part here
    assert apart(model.decode(target[:, 4:], state)[0], again) == 0


@pytest.mark.row(42)
def test_rows_of_a_state_may_be_chosen() -> None:
    """Beam search keeps some rows of all that a state holds."""
    model, (source, target) = small(), ids()
    _, state = model.decode(target[:, :3], model.start(source, mask=mask()))
    order = torch.tensor([1, 1, 0])
    chosen: State = _pytree.tree_map(lambda x: x[order], state)
    found, _ = model.decode(target[order, 3:], chosen)
    assert apart(found, model(source, target, mask=mask())[order, 3:]) < 1e-12


@pytest.mark.row(42)
@pytest.mark.row(50)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_padded_batch_is_each_sentence_alone(pre_norm: bool) -> None:
    model, (source, target) = small(pre_norm=pre_norm), ids()
    together = model(source, target, mask=mask())
    other = source.masked_fill(~mask().valid, 1)
    assert apart(model(other, target, mask=mask()), together) == 0
    for row in (0, 1):
        alone = model(source[row : row + 1, : LENGTHS[row]], target[row : row + 1])
        assert apart(together[row : row + 1], alone) < 1e-10
    assert bool(together[2].isfinite().all())  # nothing to read: the decoder goes by its own words
    assert apart(model(source, target), together) > 1e-3


@pytest.mark.row(42)
def test_greedy_takes_the_likeliest_and_stops_at_the_end() -> None:
    model, (source, _) = small(), ids()
    made = greedy(model, source, begin=1, end=2, limit=9, mask=mask())
    written = torch.cat([torch.ones(3, 1, dtype=torch.int64), made], 1)
    likeliest = model(source, written, mask=mask())[:, :-1].argmax(-1)
    for row in range(3):
        ends = (made[row] == 2).nonzero().flatten().tolist()
        stop = ends[0] + 1 if ends else made.shape[1]
        assert torch.equal(made[row, :stop], likeliest[row, :stop])
        assert bool((made[row, stop:] == 2).all())
    end = int(made[0, 0])  # a word that is written at once in row 0
    short = greedy(model, source[:1], begin=1, end=end, limit=9, mask=Padding(mask().valid[:1]))
    assert short.tolist() == [[end]]
    mixed = greedy(model, source, begin=1, end=end, limit=9, mask=mask())
    assert mixed[0].unique().tolist() == [end]
    assert greedy(model, source, begin=1, end=2, limit=1, mask=mask()).shape == (3, 1)


@pytest.mark.row(42)
def test_dropout_acts_in_training_alone() -> None:
    model, (source, target) = small(dropout=0.3), ids()
    assert apart(model(source, target), model(source, target)) == 0
    model.train()
    assert apart(model(source, target), model(source, target)) > 1e-3
    norm = AddNorm(4, dropout=0.5).double()
    x, y = torch.randn(1, 2000, 4, dtype=DOUBLE), torch.ones(1, 2000, 4, dtype=DOUBLE)
    with torch.no_grad():
        norm.pre_norm = True
        assert sorted((norm.after(x, y) - x).round(decimals=9).unique().tolist()) == [0.0, 2.0]
        norm.pre_norm = False
        assert apart(norm.eval().after(x, y), torch.nn.functional.layer_norm(x + y, (4,))) < 1e-12


@pytest.mark.row(53)
def test_gradcheck() -> None:
    model = Transformer(5, 5, dim=4, heads=2, hidden=3, depth=1, dropout=0.0, bias=True).double()
    source, target = torch.randint(0, 5, (2, 3)), torch.randint(0, 5, (2, 3))
    names, values = zip(*model.named_parameters(), strict=True)

    def call(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        options = {"mask": Padding.from_lengths(torch.tensor([2, 0]), 3)}
        return torch.func.functional_call(model, given, (source, target), options)

    assert torch.autograd.gradcheck(call, values, fast_mode=True)


@pytest.mark.row(53)
@pytest.mark.row(54)
def test_copies_files_and_dtypes() -> None:
    model, (source, target) = small(dtype=torch.float32), ids()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    expected = model(source, target, mask=mask())
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(source, target, mask=mask()), expected)
    calm = Transformer(SOURCES, TARGETS, dim=DIM, heads=HEADS, hidden=20, depth=1, dropout=0.0)  # as it starts
    exact = copy.deepcopy(calm).double()(source, target, mask=mask())
    most = 64 * max(1.0, float(exact.detach().abs().max()))  # some twenty roundings of numbers of a few units
    for dtype in (torch.float16, torch.bfloat16):
        out = copy.deepcopy(calm).to(dtype)(source, target, mask=mask())
        assert out.dtype == dtype
        assert apart(out.double(), exact) <= most * torch.finfo(dtype).eps
    with torch.autocast("cpu", torch.bfloat16):
        out = calm(source, target, mask=mask())
        out.float().square().sum().backward()
    assert apart(out.double(), exact) <= 64 * torch.finfo(torch.bfloat16).eps * max(
        1.0, float(exact.detach().abs().max())
    )
    assert all(bool(p.grad.isfinite().all()) for p in calm.parameters())


@pytest.mark.compiled
@pytest.mark.row(55)
def test_one_graph_for_the_whole_and_for_a_step() -> None:
    model, (source, target) = small(dtype=torch.float32, depth=1), ids()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert apart(compiled(source, target, mask=mask()), model(source, target, mask=mask())) <= 1e-5
    step = torch.compile(model.decode, fullgraph=True, backend="aot_eager")
    _, state = model.decode(target[:, :2], model.start(source, mask=mask()))
    assert apart(step(target[:, 2:], state)[0], model(source, target, mask=mask())[:, 2:]) <= 1e-5


@pytest.mark.plain
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Transformer(5, 5, dim=10, heads=3), ("`dim` that its `heads` divide", "heads=3", "Use dim=9")),
        (lambda: Transformer(5, 5, dim=9, heads=3), ("Sinusoid", "got 9", "Use 8 or 10")),
        (lambda: Transformer(5, 5, depth=0), ("`depth`", "0 and 2048", "depth=6")),
        (lambda: TransformerDecoder(0), ("vocabulary", "got 0", "depth=6")),
        (lambda: Transformer(5, 5, dropout=1.0), ("`dropout`", "1.0", "probability")),
        (lambda: small()(torch.zeros(2, 3), torch.zeros(2, 3).long()), ("`ids` as whole", "float32", "text.long()")),
        (lambda: small()(torch.zeros(2, 3).long(), torch.zeros(3).long()), ("`ids`", "[3]", "text[None]")),
        (lambda: small()(torch.zeros(2, 0).long(), torch.zeros(2, 3).long()), ("1 token or more", "[2, 0]", "Give")),
        (lambda: small()(*ids(), mask=Padding(mask().valid[:, :5])), ("[batch, 6]", "[3, 5]", "Lay it out")),
        (lambda: small()(*ids(2), mask=mask()), ("a batch of 2", "got 3", "Build the mask")),
        (lambda: greedy(small().train(), ids()[0], begin=1, end=2, limit=3), ("evaluation", "training", "eval()")),
        (lambda: greedy(small(), ids()[0], begin=1, end=2, limit=0), ("`limit` of at least 1", "got 0", "how many")),
    ],
)  # fmt: skip
def test_errors_have_three_parts(make: Callable[[], object], parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        make()
    assert all(part in str(caught.value) for part in parts), str(caught.value)
