"""Bahdanau's model: every step by hand, where it looks and why, padding without effect, step by step as the whole."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from near import apart
from torch import Tensor, nn

from locant import Padding
from locant.models.bahdanau import Bahdanau
from locant.models.tokens import greedy

SOURCES, TARGETS, EMBED, HIDDEN, LAYERS = 11, 13, 5, 6, 2
LENGTHS = torch.tensor([6, 3, 0])
DOUBLE = torch.float64


def small(dtype: torch.dtype = DOUBLE, *, dropout: float = 0.0) -> Bahdanau:
    """Every parameter drawn large enough to show."""
    model = Bahdanau(SOURCES, TARGETS, embed=EMBED, hidden=HIDDEN, layers=LAYERS, dropout=dropout)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.to(dtype).eval()


def ids() -> tuple[Tensor, Tensor]:
    return torch.randint(0, SOURCES, (3, 6)), torch.randint(0, TARGETS, (3, 7))


def mask() -> Padding:
    return Padding.from_lengths(LENGTHS, 6)


def gru(rnn: nn.GRU, x: Tensor, state: list[Tensor]) -> list[Tensor]:
    """One step of every layer on one sample (torch's gates: reset, update, new)."""
    new = []
    for layer, h in enumerate(state):
        w, u, b, c = (getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        (ri, zi, ni), (rh, zh, nh) = (w @ x + b).chunk(3), (u @ h + c).chunk(3)
        r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
        x = (1 - z) * torch.tanh(ni + r * nh) + z * h
        new.append(x)
    return new


def by_hand(model: Bahdanau, source: list[int], target: list[int]) -> tuple[Tensor, Tensor]:
    """Logits and weights of one sentence without padding, one step and one key at a time."""
    encoder, decoder = model.encoder, model.decoder
    state, h = [torch.zeros(HIDDEN, dtype=DOUBLE)] * LAYERS, []
    for word in source:
        state = gru(encoder.rnn, encoder.embedding.weight[word], state)
        h.append(state[-1])
    w_q, w_k, w_v = (p.weight for p in (decoder.attention.W_q, decoder.attention.W_k, decoder.attention.w_v))
    logits, weights = [], []
    for word in target:
        scores = [(w_v @ torch.tanh(w_q @ state[-1] + w_k @ one))[0] for one in h]
        p = torch.softmax(torch.stack(scores), 0) if scores else torch.zeros(0, dtype=DOUBLE)
        context = sum((a * one for a, one in zip(p, h, strict=True)), torch.zeros(HIDDEN, dtype=DOUBLE))
        state = gru(decoder.rnn, torch.cat([context, decoder.embedding.weight[word]]), state)
        logits.append(model.head(state[-1]))
        weights.append(p)
    return torch.stack(logits), torch.stack(weights)


@pytest.mark.row(43)
def test_every_step_is_its_formula_and_a_padded_batch_is_each_sentence_alone(parity: Callable) -> None:
    model, (source, target) = small(), ids()
    logits, weights = model(source, target, mask=mask(), need_weights=True)
    for row, length in enumerate(LENGTHS.tolist()):
        golden, p = by_hand(model, source[row, :length].tolist(), target[row].tolist())
        parity(43, "d2l's decoder step by step, logits", apart(logits[row], golden), 1e-10)
        if length:
            parity(43, "d2l's decoder step by step, weights", apart(weights[row, :, :length], p), 1e-10)
        assert not weights[row, :, length:].any()
    assert apart(weights.sum(-1), (LENGTHS > 0).double()[:, None].expand(3, 7)) < 1e-12
    whole, all_weights = model(source, target, need_weights=True)
    golden, p = by_hand(model, source[1].tolist(), target[1].tolist())
    parity(43, "without a mask", max(apart(whole[1], golden), apart(all_weights[1], p)), 1e-10)
    assert model(source, target)[1] is None


@pytest.mark.row(43)
def test_where_to_look_is_settled_before_the_token_is_read() -> None:
    """The query is the state of the step before: y_t changes logits_t, and the weights from t + 1 on."""
    model, (source, target) = small(), ids()
    logits, weights = model(source, target, need_weights=True)
    for t in range(7):
        changed = target.clone()
        changed[:, t] = (changed[:, t] + 1) % TARGETS
        after, looked = model(source, changed, need_weights=True)
        assert torch.equal(after[:, :t], logits[:, :t])
        assert torch.equal(looked[:, : t + 1], weights[:, : t + 1])
        assert float((after - logits)[:, t].detach().abs().amax(-1).min()) > 1e-6
        if t < 6:
            assert float((looked - weights)[:, t + 1].detach().abs().amax(-1).min()) > 1e-9


@pytest.mark.row(43)
@pytest.mark.parametrize("parts", [[1] * 7, [3, 1, 2, 1]])
def test_step_by_step_it_is_the_whole(parts: list[int], parity: Callable) -> None:
    model, (source, target) = small(), ids()
    logits, weights = model(source, target, mask=mask(), need_weights=True)
    state, found = model.start(source, mask=mask()), []
    for part in target.split(parts, dim=1):
        *one, p = model.decode(part, state)
        found.append((one[0], p))
        state = one[1]
    steps, looked = (torch.cat(x, 1) for x in zip(*found, strict=True))
    parity(43, "stepwise = full", max(apart(steps, logits), apart(looked, weights)), 1e-10)


@pytest.mark.row(43)
def test_padding_is_never_read() -> None:
    """d2l's encoder runs on over it, so that its last state depends on how much there is."""
    model, (source, target) = small(), ids()
    together, _ = model(source, target, mask=mask())
    other = source.masked_fill(~mask().valid, 1)
    assert apart(model(other, target, mask=mask())[0], together) == 0
    _, ours = model.encoder(source, mask=mask())
    _, published = model.encoder(source)
    _, alone = model.encoder(source[1:2, :3])
    assert apart(ours[:, 1:2], alone) < 1e-12
    assert apart(published[:, 1:2], alone) > 1e-3
    memory, state = model.encoder(source, mask=mask())
    assert not memory[~mask().valid].any()
    assert not state[:, 2].any()


@pytest.mark.row(43)
def test_greedy_takes_the_likeliest() -> None:
    model, (source, _) = small(), ids()
    made = greedy(model, source, begin=1, end=2, limit=8, mask=mask())
    written = torch.cat([torch.ones(3, 1, dtype=torch.int64), made], 1)
    likeliest = model(source, written, mask=mask())[0][:, :-1].argmax(-1)
    for row in range(3):
        ends = (made[row] == 2).nonzero().flatten().tolist()
        stop = ends[0] + 1 if ends else made.shape[1]
        assert torch.equal(made[row, :stop], likeliest[row, :stop])
        assert bool((made[row, stop:] == 2).all())


@pytest.mark.row(43)
def test_dropout_acts_in_training_alone_and_never_on_the_weights_returned() -> None:
    model, (source, target) = small(dropout=0.4), ids()
    assert apart(model(source, target)[0], model(source, target)[0]) == 0
    model.train()
    first, p = model(source, target, need_weights=True)
    assert apart(first, model(source, target)[0]) > 1e-3
    assert apart(p.sum(-1), torch.ones(3, 7, dtype=DOUBLE)) < 1e-12


@pytest.mark.row(53)
def test_gradcheck() -> None:
    model = Bahdanau(4, 4, embed=2, hidden=3, layers=1).double()
    source, target = torch.randint(0, 4, (2, 3)), torch.randint(0, 4, (2, 3))
    names, values = zip(*model.named_parameters(), strict=True)

    def call(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        options = {"mask": Padding.from_lengths(torch.tensor([2, 0]), 3)}
        return torch.func.functional_call(model, given, (source, target), options)[0]

    assert torch.autograd.gradcheck(call, values, fast_mode=True)


@pytest.mark.row(53)
@pytest.mark.row(54)
def test_copies_files_and_dtypes() -> None:
    model, (source, target) = small(torch.float32), ids()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    expected, _ = model(source, target, mask=mask())
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(source, target, mask=mask())[0], expected)
    assert model(source[:0], target[:0])[0].shape == (0, 7, TARGETS)
    calm = Bahdanau(SOURCES, TARGETS, embed=EMBED, hidden=HIDDEN)  # as it starts
    exact, _ = copy.deepcopy(calm).double()(source, target, mask=mask())
    for dtype in (torch.float16, torch.bfloat16):
        out, p = copy.deepcopy(calm).to(dtype)(source, target, mask=mask(), need_weights=True)
        assert out.dtype == p.dtype == dtype
        # numbers below 1 through 13 steps that contract: some forty roundings
        assert apart(out.double(), exact) <= 64 * torch.finfo(dtype).eps
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = calm(source, target, mask=mask())
        out.float().square().sum().backward()
    assert apart(out.double(), exact) <= 64 * torch.finfo(torch.bfloat16).eps
    assert all(bool(p.grad.isfinite().all()) for p in calm.parameters())


@pytest.mark.compiled
@pytest.mark.row(55)
def test_compiled_it_is_the_same() -> None:
    """torch leaves a GRU out of its graphs, so that there are several."""
    model, (source, target) = small(torch.float32), ids()
    compiled = torch.compile(model, backend="aot_eager")
    target = target[:, :2]
    assert apart(compiled(source, target, mask=mask())[0], model(source, target, mask=mask())[0]) <= 1e-5


@pytest.mark.plain
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Bahdanau(5, 5, hidden=0), ("`hidden`", "5, 5, 256, 0, 2", "d2l has")),
        (lambda: Bahdanau(5, 5, dropout=-1.0), ("`dropout`", "-1.0", "probability")),
        (lambda: small()(torch.zeros(2, 3), torch.zeros(2, 3).long()), ("`source` as whole", "float32", "text.long()")),
        (lambda: small()(torch.zeros(2, 3).long(), torch.zeros(2, 0).long()), ("`target`", "[2, 0]", "Give the ids")),
        (lambda: small()(*ids(), mask=Padding(mask().valid[:, :5])), ("[3, 6]", "[3, 5]", "from_lengths")),
        (lambda: small()(*ids(), mask=Padding(mask().valid.flip(1))), ("comes last", "before a token", "Move it")),
    ],
)  # fmt: skip
def test_errors_have_three_parts(make: Callable[[], object], parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        make()
    assert all(part in str(caught.value) for part in parts), str(caught.value)
