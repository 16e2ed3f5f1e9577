"""Transformer-XL: the published algorithm (length first, shifted rows), and what memory must and must not do."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from near import apart
from torch import Tensor

from locant.attend import attention
from locant.grid import Grid
from locant.models.transformer_xl import (
    MemTransformerLM,
    transformer_xl_enwik8_base,
    transformer_xl_enwik8_large,
    transformer_xl_wt103_base,
)
from locant.positions.sinusoid import Sinusoid
from locant.positions.transformer_xl import TransformerXL

MOST = 1e-10
WORDS, DIM, LAYERS, HEADS, HIDDEN = 11, 12, 2, 3, 20
TYPES = pytest.mark.parametrize("attn_type", [0, 1, 2, 3])


def built(attn_type: int = 0, **given: object) -> MemTransformerLM:
    """Small, in evaluation, with numbers that show."""
    options = {"mem_len": 9, "max_len": 20, "head_dim": 5} | given
    torch.manual_seed(1)
    model = MemTransformerLM(WORDS, DIM, LAYERS, HEADS, HIDDEN, attn_type=attn_type, **options).double().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3, mean=float("norm" in name and name.endswith("weight")))
    return model


def drawn(length: int, batch: int = 2) -> Tensor:
    return torch.randint(0, WORDS, (batch, length), generator=torch.Generator().manual_seed(3))


def waves(distances: Tensor) -> Tensor:
    rates = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    angles = distances[:, None].double() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def shifted(x: Tensor) -> Tensor:
    """The published trick on [queries, keys, batch, heads]."""
    padded = torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)
    return padded.reshape(x.shape[1] + 1, x.shape[0], *x.shape[2:])[1:].reshape(x.shape)


def blocked(model: MemTransformerLM, queries: int, keys: int) -> Tensor:
    mask = torch.triu(torch.ones(queries, keys), 1 + keys - queries)
    if model.same_length:
        over = keys - model.mem_len
        mask = mask + torch.tril(torch.ones(queries, keys), -(queries - over if over > 0 else queries))
    return mask.bool()


def scores(model: MemTransformerLM, number: int, q: Tensor, k: Tensor) -> Tensor:
    """[queries, keys, batch, heads], before scaling and mask. All type 0 layers read u and v of the first."""
    position, length = model.layers[number].attention.position, k.shape[0]
    clamp = model.clamp_len
    if model.attn_type > 1:
        return torch.einsum("ibnd,jbnd->ijbn", q, k)
    if model.attn_type == 0:
        own = position if position.u is not None else model.layers[0].attention.position
        back = torch.arange(length - 1, -1, -1)
        r = waves(back if clamp is None else back.clamp(max=clamp)) @ position.r_net.weight.T
        place = torch.einsum("ibnd,jnd->ijbn", q + own.v, r.unflatten(-1, (HEADS, -1)))
        return torch.einsum("ibnd,jbnd->ijbn", q + own.u, k) + shifted(place)
    r_emb, r_bias = position.table.flip(1).transpose(0, 1), position.bias.flip(1).T  # published: farthest first
    r_emb, r_bias = (x if clamp is None else x[-clamp:] for x in (r_emb, r_bias))
    r_emb, r_bias = (torch.cat([x[:1].expand(length, *x.shape[1:]), x])[-length:] for x in (r_emb, r_bias))
    place = torch.einsum("ibnd,jnd->ijbn", q, r_emb) + r_bias[None, :, None]
    return torch.einsum("ibnd,jbnd->ijbn", q + position.u, k) + shifted(place)


def published(model: MemTransformerLM, tokens: Tensor, memory: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The original's order of work, with copies where it writes into the memory. Memory is [earlier, batch, dim]."""
    x = model.word_emb.weight[tokens.T] * math.sqrt(DIM)
    kept = [x]
    for number, layer in enumerate(model.layers):
        past, now, length = memory[number], x, memory[number].shape[0] + x.shape[0]
        back = torch.arange(length - 1, -1, -1)
        rows = None
        if model.attn_type == 2 and number == 0:
            rows = waves(back if model.clamp_len is None else back.clamp(max=model.clamp_len))[:, None]
        elif model.attn_type == 3:
            r_emb = model.positions[number].table
            rows = torch.cat([r_emb[:1].expand(length, -1), r_emb])[-length:, None]
        if rows is not None:
            past, now = past + rows[: len(past)], now + rows[len(past) :]
        whole = torch.cat([past, now])
        normed = layer.norm1(whole) if layer.pre_norm else whole
        q, k, v = (y.unflatten(-1, (HEADS, -1)) for y in layer.attention.qkv(normed).chunk(3, dim=-1))
        logits = scores(model, number, q[-len(x) :], k) / math.sqrt(q.shape[-1])
        p = logits.masked_fill(blocked(model, len(x), length)[..., None, None], -math.inf).softmax(1)
        out = layer.attention.proj(torch.einsum("ijbn,jbnd->ibnd", p, v).flatten(2))
        x = now + out
        x = x if layer.pre_norm else layer.norm1(x)
        inner = layer.mlp(layer.norm2(x) if layer.pre_norm else x)
        x = x + inner if layer.pre_norm else layer.norm2(x + inner)
        kept.append(x)
    end = length - model.ext_len
    return (
        (x @ model.word_emb.weight.T + model.head_bias).transpose(0, 1),
        [torch.cat(pair)[max(0, end - model.mem_len) : end] for pair in zip(memory, kept, strict=True)],
    )


OPTIONS = (
    {},
    {"pre_norm": True},
    {"clamp_len": 3},
    {"same_length": True, "mem_len": 5},
    {"mem_len": 3, "ext_len": 2},
    {"max_len": 4},
    {"untie_r": True, "head_dim": None},
)


@pytest.mark.row(44)
@pytest.mark.row(47)
@pytest.mark.row(48)
@TYPES
@pytest.mark.parametrize("options", OPTIONS, ids=lambda given: ",".join(given) or "plain")
def test_three_segments_are_the_published_ones(attn_type, options, parity):
    model = built(attn_type, **options)
    ours, theirs = None, [torch.zeros(0, 2, DIM, dtype=torch.float64)] * (LAYERS + 1)
    worst = 0.0
    for tokens in drawn(13).split((4, 6, 3), dim=1):
        logits, ours = model(tokens, ours)
        golden, theirs = published(model, tokens, theirs)
        worst = max(worst, apart(logits, golden))
        for memory, expected in zip(ours, theirs, strict=True):
            worst = max(worst, apart(memory, expected.transpose(0, 1)))
    parity(48 if attn_type else 44, f"published algorithm, attn_type {attn_type}", worst, MOST)
    parity(47, f"published algorithm with memory, attn_type {attn_type}", worst, MOST)


@pytest.mark.row(47)
@pytest.mark.parametrize("attn_type", [0, 1])
@pytest.mark.parametrize("options", [{}, {"pre_norm": True}, {"clamp_len": 2}], ids=str)
@pytest.mark.parametrize("cuts", [(4, 5), (1,) * 9, (2, 6, 1)], ids=str)
def test_segments_with_memory_are_one_shot(attn_type, options, cuts, parity):
    model, tokens = built(attn_type, **options), drawn(9)
    whole, _ = model(tokens)
    memory, parts = None, []
    for segment in tokens.split(cuts, dim=1):
        logits, memory = model(segment, memory)
        parts.append(logits)
    parity(47, f"one shot, {len(cuts)} segments", apart(torch.cat(parts, 1), whole), MOST)


@pytest.mark.row(47)
def test_memory_is_cut_and_detached():
    model = built(mem_len=5)
    _, memory = model(drawn(4))
    assert [tuple(m.shape) for m in memory] == [(2, 4, DIM)] * (LAYERS + 1)
    before = [m.clone() for m in memory]
    logits, later = model(drawn(3), memory)
    assert all(torch.equal(m[:, -2:], new[:, :2]) for m, new in zip(memory, later, strict=True)), "the last 5 of 7"
    assert all(m.shape[1] == 5 and not m.requires_grad for m in later)
    assert all(torch.equal(m, old) for m, old in zip(memory, before, strict=True)), "nothing is written into it"
    assert logits.requires_grad
    assert [m.shape[1] for m in built(mem_len=0)(drawn(4))[1]] == [0] * (LAYERS + 1)
    _, short = built(mem_len=5, ext_len=2)(drawn(4))
    assert torch.equal(short[0], before[0][:, :2]), "the last two come again"


@pytest.mark.row(47)
def test_same_length():
    """With it, each query leans on mem_len embedded tokens, itself included, wherever it stands."""
    model = built(same_length=True, mem_len=3)
    model.layers = model.layers[:1]
    x = torch.randn(1, 7, DIM, dtype=torch.float64, requires_grad=True)
    out, _ = model.forward_features(x)
    for i in range(7):
        (leans,) = torch.autograd.grad(out[0, i].square().sum(), x, retain_graph=True)
        seen = leans[0].abs().amax(-1) > 0
        assert seen.tolist() == [i - 3 < j <= i for j in range(7)]
    model.reset_length(mem_len=3)
    (leans,) = torch.autograd.grad(model.forward_features(x)[0][0, 6].square().sum(), x)
    assert (leans[0].abs().amax(-1) > 0).all()


@pytest.mark.row(47)
def test_clamped_distances_are_alike():
    """Beyond clamp_len, swapping two memories changes nothing; without it does."""
    model, tokens = built(clamp_len=2), drawn(1)
    model.layers = model.layers[:1]
    _, memory = built()(drawn(5))
    memory = memory[:2]
    swapped = [m[:, [1, 0, 2, 3, 4]] for m in memory]
    assert apart(model(tokens, memory)[0], model(tokens, swapped)[0]) <= MOST
    model.reset_length(mem_len=9)
    assert apart(model(tokens, memory)[0], model(tokens, swapped)[0]) > 1e-3


@pytest.mark.row(48)
@pytest.mark.parametrize("attn_type", [2, 3])
def test_absolute_positions_do_not_pile_up(attn_type):
    """The published code adds them to the memory in place: the same call twice gives two results there."""
    model = built(attn_type)
    _, memory = model(drawn(4))
    before = [m.clone() for m in memory]
    once, twice = model(drawn(3), memory)[0], model(drawn(3), memory)[0]
    assert torch.equal(once, twice)
    assert all(torch.equal(m, old) for m, old in zip(memory, before, strict=True))
    plain = model.word_emb(drawn(4)) * DIM**0.5
    assert apart(memory[0], plain) <= MOST, "what is kept has no positions in it"


@pytest.mark.row(56)
def test_absolute_positions_repeat_by_segment():
    """The article is right: codes counted in each segment cannot tell its token k from that of another segment."""
    torch.manual_seed(2)
    one, two = torch.randn(2, 1, 2, 5, 8, dtype=torch.float64).unbind(0)
    q = torch.randn(1, 2, 1, 8, dtype=torch.float64)
    code, line = Sinusoid(8).double()(Grid(5)), Grid(11)
    xl = TransformerXL(8, 2, 8, init_std=0.5).double()

    def last(first: Tensor, second: Tensor, k: Tensor, position: TransformerXL | None) -> Tensor:
        keys = torch.cat([k, q], dim=2)
        values = torch.cat([first, second, q], dim=2)
        return attention(q, keys, values, grid=line[10:], key_grid=line, position=position)

    coded = last(one, two, torch.cat([one + code, two + code], 2), None)
    other = last(two, one, torch.cat([two + code, one + code], 2), None)
    assert apart(coded, other) <= MOST, "two segments in the other order: the same"
    by_distance = last(one, two, torch.cat([one, two], 2), xl)
    assert apart(by_distance, last(two, one, torch.cat([two, one], 2), xl)) > 1e-3


@pytest.mark.row(45)
def test_both_ways():
    """Without order every token sees all; distances have their sign, so the mirror image is another sequence."""
    model, tokens = built(causal=False), drawn(6)
    x = torch.randn(1, 6, DIM, dtype=torch.float64, requires_grad=True)
    out, _ = model.forward_features(x)
    (leans,) = torch.autograd.grad(out[0, 0].square().sum(), x)
    assert (leans[0].abs().amax(-1) > 0).all()
    logits, memory = model(tokens)
    assert apart(model(tokens.flip(1))[0].flip(1), logits) > 1e-3
    assert apart(model(tokens, memory)[0], logits) > 1e-3, "the memory is seen"


@pytest.mark.row(44)
@pytest.mark.parametrize(
    ("build", "millions"),
    [(transformer_xl_enwik8_base, 41), (transformer_xl_enwik8_large, 277), (transformer_xl_wt103_base, 151)],
)
def test_published_sizes(build, millions):
    with torch.device("meta"):
        model = build()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


@pytest.mark.row(54)
def test_names_in_the_state_dict():
    """What is learned, u and v once; no inv_freq."""
    names = list(built().state_dict())
    assert names == [name for name, _ in built().named_parameters()]
    layer = ["norm1.weight", "norm1.bias", "attention.qkv.weight", "attention.proj.weight"]
    rest = ["norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"]
    first = [f"layers.0.{n}" for n in (*layer, *(f"attention.position.{x}" for x in ("u", "v", "r_net.weight")), *rest)]
    second = [f"layers.1.{n}" for n in (*layer, "attention.position.r_net.weight", *rest)]
    assert names == ["head_bias", "word_emb.weight", *first, *second]
    assert "layers.1.attention.position.u" in built(untie_r=True).state_dict()
    assert "head.weight" in built(tie_weight=False).state_dict()


@TYPES
def test_one_training_step(attn_type):
    """Every number learns, with dropout everywhere, and none through the memory."""
    model = built(attn_type, dropout=0.1, dropatt=0.1, tie_weight=False).train()
    first, second = drawn(10).split(5, dim=1)
    _, memory = model(first)
    logits, _ = model(second, memory)
    logits.square().sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert idle == set()
    unread = set(range(WORDS)) - set(second.unique().tolist())
    assert all(model.word_emb.weight.grad[word].abs().max() == 0 for word in unread)
    assert apart(model(second, memory)[0], model(second, memory)[0]) > 1e-3, "dropout in training"


@pytest.mark.row(53)
@TYPES
@pytest.mark.parametrize("pre_norm", [False, True])
def test_gradcheck(attn_type, pre_norm):
    model = built(attn_type, pre_norm=pre_norm)
    x, *memory = torch.randn(LAYERS + 2, 1, 3, DIM, dtype=torch.float64).unbind(0)
    assert torch.autograd.gradcheck(lambda x: model.forward_features(x, memory)[0], x.requires_grad_(), fast_mode=True)


@pytest.mark.row(53)
@TYPES
def test_survival(attn_type):
    """Copies are equal; halves and autocast are finite and near."""
    model, (first, second) = built(attn_type), drawn(10).split(5, dim=1)

    def out(m: MemTransformerLM) -> Tensor:
        return m(second, m(first)[1])[0]

    golden = out(model)
    again = built(attn_type)
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    again.load_state_dict(model.state_dict(), strict=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again):
        assert torch.equal(out(other), golden)
    for dtype in (torch.float16, torch.bfloat16):
        low = out(copy.deepcopy(model).to(dtype))
        assert low.dtype == dtype
        assert apart(low.double(), golden) <= 0.1 * golden.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        low = out(copy.deepcopy(model).float())
    assert apart(low.double(), golden) <= 0.1 * golden.abs().max()


@pytest.mark.compiled
@pytest.mark.row(55)
def test_compiled_and_exported():
    model, tokens = built(same_length=True, mem_len=4), drawn(5)
    model.layers = model.layers[:1]
    _, memory = model(drawn(4))
    golden, later = model(tokens, memory)
    found, kept = torch.compile(model, fullgraph=True, backend="aot_eager")(tokens, memory)
    assert apart(found, golden) <= MOST
    assert max(apart(a, b) for a, b in zip(kept, later, strict=True)) <= MOST
    with torch.no_grad():
        program = torch.export.export(model, (tokens, memory), strict=False)
        assert apart(program.module()(tokens, memory)[0], golden) <= MOST


@pytest.mark.plain
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"attn_type": 4}, "an `attn_type` of 0 .* got 4"),
        ({"attn_type": 1, "max_len": None}, "attn_type=1 learns one vector per distance, .* got None"),
        ({"attn_type": 3, "max_len": 0}, "attn_type=3 learns one vector per distance, .* got 0"),
        ({"attn_type": 1, "causal": False}, "attn_type=1 learns distances back alone"),
        ({"head_dim": 0}, "sizes of at least 1 .* head_dim=0"),
        ({"mem_len": -1}, "`mem_len` and `ext_len` of at least 0, .* got -1"),
        ({"clamp_len": -1}, "a `clamp_len` of at least 1 or None; got .* -1. Published scripts write"),
        ({"same_length": True, "mem_len": 0}, "needs a memory, and causal=True; got mem_len=0"),
        ({"same_length": True, "causal": False}, "got mem_len=9, causal=False"),
        ({"dropout": 1.0}, "`dropout` of at least 0 and below 1"),
    ],
    ids=str,
)
def test_what_cannot_be_built(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        built(**given)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("tokens", "memory", "sentence"),
    [
        (torch.zeros(2, 3), None, "`tokens` as whole numbers"),
        (torch.zeros(3, dtype=torch.int64), None, "`tokens` as whole numbers"),
        (drawn(3), [torch.zeros(2, 4, DIM).double()], "`memory` must be 3 tensors of equal shape \\[2, earlier, 12\\]"),
        (drawn(3), [torch.zeros(4, 2, DIM).double()] * 3, "got \\[\\[4, 2, 12\\], .* Pass what the last call returned"),
        (drawn(3), [], "`memory` must be 3 tensors"),
    ],
    ids=range(5),
)
def test_what_it_refuses(tokens, memory, sentence):
    with pytest.raises(ValueError, match=sentence):
        built()(tokens, memory)
