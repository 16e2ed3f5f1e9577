"""`locant.nn.MultiHeadAttention` against torch's own and double loops."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from near import close
from torch import Tensor, nn

from locant import ALiBi, Causal, Grid, Learned, MaskedSine, Padding, Pairs, RelativeTable, Sinusoid
from locant.nn import MultiHeadAttention

DIM, HEADS = 12, 3


def torchs(module: MultiHeadAttention) -> nn.MultiheadAttention:
    """nn.MultiheadAttention with the same weights."""
    kdim, vdim = module.k.in_features, module.v.in_features
    other = nn.MultiheadAttention(DIM, HEADS, kdim=kdim, vdim=vdim, batch_first=True).double().eval()
    with torch.no_grad():
        if other.in_proj_weight is None:
            other.q_proj_weight.copy_(module.q.weight)
            other.k_proj_weight.copy_(module.k.weight)
            other.v_proj_weight.copy_(module.v.weight)
        else:
            other.in_proj_weight.copy_(torch.cat([module.q.weight, module.k.weight, module.v.weight]))
        other.in_proj_bias.copy_(torch.cat([module.q.bias, module.k.bias, module.v.bias]))
        other.out_proj.weight.copy_(module.out.weight)
        other.out_proj.bias.copy_(module.out.bias)
    return other


@pytest.mark.parametrize(("key_dim", "value_dim"), [(None, None), (7, 5), (9, None)])
@pytest.mark.parametrize("ignored", [False, True])
def test_it_is_torchs_module(key_dim: int | None, value_dim: int | None, ignored: bool) -> None:
    module = MultiHeadAttention(DIM, HEADS, key_dim=key_dim, value_dim=value_dim).double()
    query = torch.randn(2, 4, DIM, dtype=torch.float64)
    key = torch.randn(2, 6, key_dim or DIM, dtype=torch.float64)
    value = torch.randn(2, 6, value_dim or DIM, dtype=torch.float64)
    ignore = torch.zeros(2, 6, dtype=torch.bool)
    ignore[0, 4:], ignore[1, 1] = True, True
    mask = Padding.from_key_padding_mask(ignore) if ignored else None
    out, weights = module(query, key, value, mask=mask, need_weights=True)
    expected = torchs(module)(
        query, key, value, key_padding_mask=ignore if ignored else None, average_attn_weights=False
    )
    close(out, expected[0])
    close(weights, expected[1])
    assert module(query, key, value, mask=mask)[1] is None
    if ignored:
        inverse, _ = module(query, key, value, mask=Padding(ignore))
        assert float((inverse - out).detach().abs().max()) > 1e-3  # the sense matters


def test_a_causal_mask_and_a_blocked_one_are_torchs() -> None:
    module = MultiHeadAttention(DIM, HEADS, mask=Causal()).double()
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    blocked = torch.ones(5, 5).triu(1).bool()
    expected, _ = torchs(module)(x, x, x, attn_mask=blocked)
    close(module(x, x, x)[0], expected)
    close(module(x, x, x, mask=Pairs.from_blocked(blocked))[0], expected)


def test_a_row_that_sees_nothing_is_zero_and_has_finite_gradients() -> None:
    """torch gives NaN here when the weights are asked for."""
    module = MultiHeadAttention(DIM, HEADS).double()
    x = torch.randn(2, 3, DIM, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([0, 3])
    out, weights = module(x, x, x, mask=Padding.from_lengths(lengths, 3), need_weights=True)
    close(out[0], module.out.bias.expand(3, -1))
    assert float(weights[0].detach().abs().max()) == 0
    out.sum().backward()
    assert bool(x.grad.isfinite().all())


@pytest.mark.row(38)
def test_d2l_form() -> None:
    """No bias, sizes of their own, lengths per sample; scores over √(dim / heads)."""
    module = MultiHeadAttention(100, 5, query_dim=20, key_dim=30, value_dim=40, bias=False).double()
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {
        "q.weight": (100, 20), "k.weight": (100, 30), "v.weight": (100, 40), "out.weight": (100, 100),
    }  # fmt: skip
    sizes = ((2, 4, 20), (2, 6, 30), (2, 6, 40))
    query, key, value = (torch.randn(size, dtype=torch.float64) for size in sizes)
    lengths = torch.tensor([3, 2])
    out, weights = module(query, key, value, mask=Padding.from_lengths(lengths, 6), need_weights=True)
    heads = torch.zeros(2, 4, 100, dtype=torch.float64)
    for b in range(2):
        for h in range(5):
            rows = slice(20 * h, 20 * h + 20)
            q, k, v = (x[b] @ w[rows].T for x, w in zip((query, key, value), module.parameters(), strict=False))
            p = torch.softmax((q @ k.T / 20**0.5)[:, : lengths[b]], -1)
            heads[b, :, rows] = p @ v[: lengths[b]]
            close(weights[b, h, :, : lengths[b]], p)
            assert float(weights[b, h, :, lengths[b] :].detach().abs().max()) == 0
    close(out, heads @ module.out.weight.T)


SIZES = {"key": 30, "query": 20, "value": 40}


def given() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(
        torch.randn(2, n, SIZES[name], dtype=torch.float64) for name, n in (("query", 4), ("key", 6), ("value", 6))
    )


@pytest.mark.row(38)
def test_d2l_constructors_by_their_own_orders() -> None:
    """d2l-zh names the key's size first; d2l's English edition takes all three from the data."""
    zh = MultiHeadAttention.from_d2l_zh(SIZES["key"], SIZES["query"], SIZES["value"], 100, 5, 0.5).double().eval()
    named = MultiHeadAttention(100, 5, query_dim=20, key_dim=30, value_dim=40, bias=False, dropout=0.5).double().eval()
    lazy = MultiHeadAttention.from_d2l(100, 5, 0.5).double().eval()
    assert [tuple(p.shape) for p in zh.parameters()] == [(100, 20), (100, 30), (100, 40), (100, 100)]
    assert zh.dropout == lazy.dropout == 0.5
    query, key, value = given()
    lazy(query, key, value)
    mask = Padding.from_lengths(torch.tensor([3, 2]), 6)
    expected, _ = zh(query, key, value, mask=mask)
    for module in (named, lazy):
        module.load_state_dict(zh.state_dict())
        close(module(query, key, value, mask=mask)[0], expected, 0)
    assert MultiHeadAttention.from_d2l_zh(8, 8, 8, 8, 2, 0.0, True).q.bias is not None
    assert MultiHeadAttention.from_d2l(8, 2, 0.0, bias=True).v.bias is not None


@pytest.mark.row(38)
@pytest.mark.row(54)
def test_sizes_from_the_data_survive_files_and_copies() -> None:
    """A state dict says the sizes, too; before either, the module may be copied, pickled and moved."""
    zh = MultiHeadAttention.from_d2l_zh(30, 20, 40, 100, 5, 0.0).double()
    lazy = pickle.loads(pickle.dumps(copy.deepcopy(MultiHeadAttention.from_d2l(100, 5, 0.0)))).double()
    lazy.load_state_dict(zh.state_dict())
    tensors = given()
    with pytest.raises(ValueError, match=r"query, key and value of 20, 30, 40 channels; got 30, 20, 40"):
        lazy(tensors[1][:, :4], tensors[0][:, [0, 1, 2, 3, 0, 1]], tensors[2])
    close(lazy(*tensors)[0], zh(*tensors)[0], 0)
    assert type(lazy.q) is nn.Linear


@pytest.mark.plain
@pytest.mark.row(38)
@pytest.mark.row(56)
def test_sizes_in_another_order_are_said_to_be_swapped() -> None:
    """A constructor of (query, key, value) is what readers expect; d2l's goes unnoticed when all are equal."""
    swapped = MultiHeadAttention.from_d2l_zh(20, 30, 40, 100, 5, 0.0).double()
    query, key, value = given()
    with pytest.raises(ValueError, match=r"of 30, 20, 40 channels; got 20, 30, 40: .*key_size, query_size, value_size"):
        swapped(query, key, value)
    right = MultiHeadAttention.from_d2l_zh(30, 20, 40, 100, 5, 0.0).double()
    with pytest.raises(ValueError, match=r"of 20, 30, 40 channels; got 20, 40, 30.*Swap the arguments"):
        right(query, value, key)
    with pytest.raises(ValueError, match=r"needs a `dim` that its `heads` divide"):
        MultiHeadAttention.from_d2l(100, 3, 0.0)  # d2l fails in a reshape


@pytest.mark.row(39)
@pytest.mark.row(50)
@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (2, 3, 4, 6), (2, 1, 1, 6), (1, 1, 4, 6)])
def test_plain_attention_by_a_double_loop(shape: tuple[int, ...]) -> None:
    """Wq, Wk, Wv and fc with biases, 0 = blocked, weights returned; a row that is blocked whole gives 0, not a mean."""
    module = MultiHeadAttention(DIM, HEADS).double()
    query, key = torch.randn(2, 4, DIM, dtype=torch.float64), torch.randn(2, 6, DIM, dtype=torch.float64)
    mask = (torch.rand(shape) > 0.4).long()
    mask[0, 0, 0] = 0
    out, weights = module(query, key, key, mask=Pairs.from_kept(mask), need_weights=True)
    width, kept = DIM // HEADS, mask.expand(2, HEADS, 4, 6)
    q, k, v = module.q(query), module.k(key), module.v(key)
    merged = torch.zeros(2, 4, DIM, dtype=torch.float64)
    for b, h, i in ((b, h, i) for b in range(2) for h in range(HEADS) for i in range(4)):
        part = slice(h * width, (h + 1) * width)
        seen = [j for j in range(6) if kept[b, h, i, j]]
        close(weights[b, h, i, [j for j in range(6) if j not in seen]].sum(), torch.zeros((), dtype=torch.float64), 0)
        if seen:
            scores = torch.stack([q[b, i, part] @ k[b, j, part] for j in seen]) / width**0.5
            close(weights[b, h, i, seen], torch.softmax(scores, 0))
            merged[b, i, part] = torch.softmax(scores, 0) @ v[b, seen, part]
    close(out, module.out(merged))


@pytest.mark.row(42)
def test_keys_and_values_may_be_projected_before() -> None:
    """What a cache holds: in two parts, the later query on a slice that knows its place."""
    table, learned = RelativeTable(Grid(6), HEADS, init_std=1.0), Learned(Grid(6), DIM, init_std=1.0)
    for position in (None, Sinusoid(DIM), table, learned):
        module = MultiHeadAttention(DIM, HEADS, position=position).double()
        x, line = torch.randn(2, 6, DIM, dtype=torch.float64), Grid(6)
        whole, weights = module(x, x, x, grid=line, mask=Causal(), need_weights=True)
        first = module.projected(x[:, :4], x[:, :4], key_grid=line[:4])
        then = module.projected(x[:, 4:], x[:, 4:], key_grid=line[4:])
        k, v = (torch.cat(parts, 2) for parts in zip(first, then, strict=True))
        out, p = module.attend(x[:, 4:], k, v, grid=line[4:], key_grid=line, mask=Causal(), need_weights=True)
        close(out, whole[:, 4:])
        close(p, weights[:, :, 4:])


def test_an_embedding_is_added_to_queries_and_keys_each_on_its_own_grid() -> None:
    grid, key_grid = Grid(4, 4)[1:3], Grid(4, 4)
    learned = Learned(Grid(4, 4), DIM, init_std=1.0)
    module = MultiHeadAttention(DIM, HEADS, grid=grid, key_grid=key_grid, position=learned).double()
    query, key, value = (torch.randn(2, n, DIM, dtype=torch.float64) for n in (8, 16, 16))
    rows = learned.table
    expected, _ = module(query + rows[4:12], key + rows, value, position=())
    close(module(query, key, value)[0], expected)


def test_sinusoids_of_different_lengths_need_no_grid() -> None:
    module = MultiHeadAttention(DIM, HEADS, position=Sinusoid(DIM)).double()
    query, key = torch.randn(1, 3, DIM, dtype=torch.float64), torch.randn(1, 5, DIM, dtype=torch.float64)
    e = module.position(Grid(5))
    close(module(query, key, key)[0], module(query + e[:3], key + e, key, position=())[0])


def test_detrs_encoder_counts_by_the_padding() -> None:
    """Positions added to q and k of the encoder, keys of padding ignored, padded queries still computed."""
    grid = Grid(3, 4)
    ignore = torch.zeros(2, 3, 4, dtype=torch.bool)
    ignore[0, :, 2:] = True
    sine = MaskedSine(DIM)
    module = MultiHeadAttention(DIM, HEADS, grid=grid, position=sine).double()
    x = torch.randn(2, 12, DIM, dtype=torch.float64)
    e = sine.encode(~ignore).flatten(1, 2)
    expected, _ = torchs(module)(x + e, x + e, x, key_padding_mask=ignore.flatten(1))
    close(module(x, x, x, mask=Padding.from_key_padding_mask(ignore))[0], expected)


def test_a_padding_speaks_of_keys_and_counts_theirs_alone() -> None:
    grid, key_grid = Grid(2, 2), Grid(3, 4)
    mask = Padding(torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]]).bool())
    sine = MaskedSine(DIM)
    module = MultiHeadAttention(DIM, HEADS, grid=grid, key_grid=key_grid, position=sine).double()
    query, key = torch.randn(1, 4, DIM, dtype=torch.float64), torch.randn(1, 12, DIM, dtype=torch.float64)
    expected, _ = module(query + sine(grid), key + sine(key_grid, mask), key, position=(), mask=mask)
    close(module(query, key, key, mask=mask)[0], expected)


def test_a_table_between_a_slice_and_its_whole() -> None:
    grid, key_grid = Grid(6)[4:], Grid(6)
    table = RelativeTable(Grid(6), HEADS, init_std=1.0)
    module = MultiHeadAttention(DIM, HEADS, position=table).double()
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    whole, p = module(x, x, x, need_weights=True)
    part, last = module(x[:, 4:], x, x, grid=grid, key_grid=key_grid, need_weights=True)
    close(part, whole[:, 4:])
    close(last, p[:, :, 4:])


def test_weights_are_not_dropped() -> None:
    module = MultiHeadAttention(DIM, HEADS, dropout=0.5).double()
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    out, weights = module(x, x, x, need_weights=True)
    close(weights.sum(-1), torch.ones(2, HEADS, 7, dtype=torch.float64))
    exact, same = module.eval()(x, x, x, need_weights=True)
    close(weights, same)
    assert float((out - exact).detach().abs().max()) > 1e-3


def test_extra_repr() -> None:
    module = MultiHeadAttention(8, 2, grid=Grid(2), key_grid=Grid(4), dropout=0.1)
    assert "dim=8, heads=2, grid=Grid(2), key_grid=Grid(4), dropout=0.1" in repr(module)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: MultiHeadAttention(8, 3), r"MultiHeadAttention needs a `dim`.*got dim=8, heads=3"),
        (lambda: MultiHeadAttention(8, 2, dropout=1.5), r"`dropout` of at least 0"),
        (lambda: MultiHeadAttention(8, 2, position=3), r"`position` such as RelativeTable.*got int"),
    ],
)
def test_a_module_that_cannot_be_is_refused(build: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.plain
@pytest.mark.parametrize(
    ("sizes", "given", "sentence"),
    [
        (((2, 4, 9), (2, 6, 8), (2, 6, 8)), {}, r"`query` must be \[batch, tokens, 8\]; got \[2, 4, 9\]"),
        (((2, 4, 8), (2, 6, 9), (2, 6, 8)), {}, r"`key` must be \[batch, tokens, 8\]; got \[2, 6, 9\]"),
        (((2, 4, 8), (2, 6, 8), (2, 5, 8)), {}, r"`value` on Grid\(6\) must have 6 tokens.*got 5"),
        (((2, 4, 8), (2, 6, 8), (2, 6, 8)), {"grid": Grid(2, 3)}, r"`query` on Grid\(2, 3\) must have 6.*Pass grid="),
        (((2, 6, 8), (2, 4, 8), (2, 4, 8)), {"key_grid": Grid(5)}, r"`key` on Grid\(5\) must have 5.*Pass key_grid="),
        (((2, 6, 8), (2, 4, 8), (2, 4, 8)), {"grid": Grid(2, 3)}, r"Pass key_grid="),
        (((2, 6, 8), (2, 4, 8), (2, 4, 8)), {"position": ALiBi(2)}, r"Pass key_grid="),
        (((2, 6, 8), (3, 6, 8), (3, 6, 8)), {}, r"one batch"),
    ],
)
def test_a_call_that_cannot_be_is_refused(sizes: tuple, given: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MultiHeadAttention(8, 2)(*(torch.zeros(size) for size in sizes), **given)
