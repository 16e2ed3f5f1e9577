"""Content schemes (Transformer-XL, Shaw, decomposed): formulas in loops, and how they meet the rest of attention.

Laws and kernels: tests/laws.py and tests/exactness.py run on them as on every scheme.
"""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from near import close
from redrawing import redraw_alike
from schemes import HEAD_DIM, HEADS, heads
from torch import Tensor

from locant.attend import attention, attention_packed, plan, weights
from locant.forms import AxialTerms, AxialVectors
from locant.grid import Grid
from locant.masks import Causal, Pairs, Windows
from locant.positions.decomposed import Decomposed
from locant.positions.position import Position
from locant.positions.rotary import Rotary
from locant.positions.shaw import Shaw
from locant.positions.table import RelativeTable
from locant.positions.transformer_xl import TransformerXL

MOST = 1e-10
LONG = Grid(9)


def awake(position: Position) -> Position:
    """Numbers that show, in float64, the same every time."""
    torch.manual_seed(1)
    return redraw_alike(position.double())


def wave(distance: int, dim: int) -> Tensor:
    rates = [10000.0 ** (-2 * m / dim) for m in range(dim // 2)]
    return torch.tensor(
        [math.sin(distance * r) for r in rates] + [math.cos(distance * r) for r in rates], dtype=torch.float64
    )


def published(q: Tensor, k: Tensor, v: Tensor, xl: TransformerXL, memory: int, causal: bool) -> Tensor:
    """Transformer-XL's attention, pair by pair: query i stands at memory + i of the keys."""
    u, bias = xl.biases()
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            told = xl.r_net.weight.unflatten(0, (xl.heads, -1))[h]
            for i in range(q.shape[2]):
                logits = []
                for j in range(memory + i + 1 if causal else k.shape[2]):
                    position = (q[b, h, i] + bias[h]) @ (told @ wave(i + memory - j, xl.dim))
                    content = (q[b, h, i] + u[h]) @ k[b, h, j]
                    logits.append((content + position) / math.sqrt(q.shape[3]))
                out[b, h, i] = torch.softmax(torch.stack(logits), 0) @ v[b, h, : len(logits)]
    return out


@pytest.mark.row(44)
def test_distances_are_published_numbers():
    """Halves: sines, then cosines; 10000^(-2j / C)."""
    xl = TransformerXL(8, 2)
    rows = xl.distances(3)
    golden = torch.tensor([0.14112, 0.29552, 0.03, 0.003, -0.98999, 0.95534, 0.99955, 1.0])
    close(rows[6], golden, 1e-5)
    assert rows[3].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    close(rows[0], golden * torch.tensor([-1.0] * 4 + [1.0] * 4), 1e-5)  # R(-3): sines turn, cosines stay


@pytest.mark.row(44)
@pytest.mark.parametrize("memory", [0, 5])
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_transformer_xl(memory, kernel, parity):
    whole = Grid(memory + 4)
    q, k, v = heads(whole[memory:], whole)
    xl = awake(TransformerXL(6, HEADS, HEAD_DIM))
    arguments = {"grid": whole[memory:], "key_grid": whole, "position": xl, "kernel": kernel}
    error = (attention(q, k, v, mask=Causal(), **arguments) - published(q, k, v, xl, memory, True)).abs().max()
    parity(44, f"double loop, memory {memory}", error.item(), MOST)


@pytest.mark.row(45)
@pytest.mark.parametrize("memory", [0, 3])
def test_transformer_xl_both_ways(memory, parity):
    """Distances below 0 are their own: no trick of shifted rows."""
    whole = Grid(memory + 5)
    q, k, v = heads(whole[memory:], whole)
    xl = awake(TransformerXL(6, HEADS, HEAD_DIM))
    found = attention(q, k, v, grid=whole[memory:], key_grid=whole, position=xl)
    parity(45, "double loop", (found - published(q, k, v, xl, memory, False)).abs().max().item(), MOST)


@pytest.mark.row(46)
@pytest.mark.parametrize(("queries", "memory"), [(6, 0), (4, 3), (1, 5), (5, 1)])
def test_the_published_shift_is_ours_where_it_is_right(queries, memory, parity):
    """Pad a zero column, read the rows anew, drop the first: right for j ≤ i + memory, other rows' numbers above."""
    keys = memory + queries
    xl, whole = awake(TransformerXL(6, HEADS, HEAD_DIM)), Grid(keys)
    q, _, _ = heads(whole[memory:], whole)
    told = xl.r_net(xl.distances(keys - 1)[keys - 1 :].flip(0)).unflatten(-1, (HEADS, HEAD_DIM))  # keys - 1 .. 0
    x = torch.einsum("bhid,jhd->bhij", q + xl.v[:, None], told)
    shifted = torch.nn.functional.pad(x, (1, 0)).reshape(*x.shape[:2], keys + 1, queries)[:, :, 1:].reshape(x.shape)
    ours = xl(q, whole[memory:], whole)
    seen = torch.arange(keys) <= torch.arange(queries)[:, None] + memory
    parity(46, "shifted rows, below the diagonal", (shifted - ours)[..., seen].abs().max().item(), MOST)
    if queries > 1:
        assert (shifted - ours)[..., ~seen].abs().max() > 0.1, "above the diagonal they are garbage"


@pytest.mark.row(44)
def test_who_is_scaled():
    """Transformer-XL's and Shaw's scale multiplies the position's term; decomposed terms meet q as it is."""
    q, k, v = heads(LONG)
    even = v.mean(2, keepdim=True).expand(-1, -1, 9, -1)
    for scheme in (TransformerXL(6, HEADS, HEAD_DIM), Shaw(HEADS, HEAD_DIM, 3)):
        close(attention(q, k, v, grid=LONG, position=awake(scheme), scale=0.0), even)
        close(2 * scheme(q, LONG, scale=0.5), scheme(q, LONG))
    decomposed = awake(Decomposed(LONG, HEADS, HEAD_DIM))
    assert torch.equal(decomposed(q, LONG, scale=0.5), decomposed(q, LONG))
    golden = torch.softmax(decomposed(q, LONG), -1) @ v
    close(attention(q, k, v, grid=LONG, position=decomposed, scale=0.0), golden)


@pytest.mark.row(47)
@pytest.mark.parametrize("clamp", [0, 2, 20])
def test_clamped_distances(clamp):
    """clamp_len: the clamped row is that of the clamp, on both sides."""
    q, _, _ = heads(LONG)
    xl = awake(TransformerXL(6, HEADS, HEAD_DIM, clamp=clamp))
    free = awake(TransformerXL(6, HEADS, HEAD_DIM))
    dense = free(q, Grid(60)[25:34], Grid(60))  # every distance from -34 to 33
    for i in range(9):
        for j in range(9):
            distance = max(-clamp, min(clamp, i - j))
            close(xl(q, LONG)[:, :, i, j], dense[:, :, i, 25 + i - distance])


@pytest.mark.row(44)
def test_shared_u_and_v():
    """They stand in the state dict once, are trained once, and stay shared through copies."""
    one = TransformerXL(6, HEADS, HEAD_DIM)
    pair = torch.nn.ModuleList([one, TransformerXL(6, HEADS, HEAD_DIM, shared=one)]).double()
    assert list(pair.state_dict()) == ["0.u", "0.v", "0.r_net.weight", "1.r_net.weight"]
    assert len(list(pair.parameters())) == 4
    q, k, v = heads(LONG)
    for other in (pair, copy.deepcopy(pair), pickle.loads(pickle.dumps(pair)), copy.deepcopy(pair).float().double()):
        first, second = other
        assert second.biases() == first.biases()
        out = attention(q, k, v, grid=LONG, position=second)
        (by_u,) = torch.autograd.grad(out.square().sum(), first.u)
        assert by_u.abs().max() > 1e-3
        with torch.no_grad():
            first.u.fill_(1.0)
        assert (attention(q, k, v, grid=LONG, position=second) - out).abs().max() > 1e-3
    with pytest.raises(ValueError, match="shared between schemes of equal heads and head_dim; got 3 × 2"):
        TransformerXL(6, 3, shared=one)


@pytest.mark.row(48)
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("clamp", [None, 2])
def test_shaw_in_loops(per_head, clamp):
    shaw = awake(Shaw(HEADS, HEAD_DIM, 3, per_head=per_head, clamp=clamp))
    q, _, _ = heads(LONG)
    theirs, found = shaw.table.flip(1), shaw(q, LONG, scale=0.7)  # the paper's index is key - query
    most = 3 if clamp is None else clamp
    for h in range(HEADS):
        for i in range(9):
            for j in range(9):
                row = theirs[h if per_head else 0, max(-most, min(most, j - i)) + 3]
                close(found[:, h, i, j], 0.7 * q[:, h, i] @ row)


@pytest.mark.row(48)
@pytest.mark.parametrize("clamp", [None, 2])
def test_shaw_with_biases_is_attn_type_1(clamp):
    """(q + u)·k + q·a + c, all scaled; published rows end with distance 0, rows that are missing repeat the first."""
    rows = 5
    shaw = awake(Shaw(HEADS, HEAD_DIM, rows - 1, per_head=True, causal=True, biases=True, clamp=clamp))
    r_emb, r_bias = shaw.table.flip(1).transpose(0, 1), shaw.bias.flip(1).T  # [rows, heads, (head_dim)]
    kept = rows if clamp is None else clamp + 1
    r_emb, r_bias = r_emb[-kept:], r_bias[-kept:]
    q, k, v = heads(LONG)
    found = attention(q, k, v, grid=LONG, position=shaw, mask=Causal())
    for h in range(HEADS):
        for i in range(9):
            logits = []
            for j in range(i + 1):
                row = max(0, kept - 1 - (i - j))
                position = torch.einsum("bd,d->b", q[:, h, i], r_emb[row, h]) + r_bias[row, h]
                logits.append(((q[:, h, i] + shaw.u[h]) * k[:, h, j]).sum(-1) + position)
            p = torch.softmax(torch.stack(logits, -1) / math.sqrt(HEAD_DIM), -1)
            close(found[:, h, i], torch.einsum("bj,bjd->bd", p, v[:, h, : i + 1]))


def test_decomposed_on_pooled_keys():
    """Offsets count cells of the finer grid; each axis has a table of its own."""
    grid = Grid(4, 6, prefix=1)
    keys = grid.pooled(2)
    scheme = awake(Decomposed(Grid(4, 6), HEADS, HEAD_DIM))
    q, _, _ = heads(grid)
    found = scheme(q, grid, keys)
    assert (found[:, :, 0] == 0).all()
    assert (found[:, :, :, 0] == 0).all()
    for i in range(24):
        for j in range(6):
            row, column = i // 6 - 2 * (j // 3), i % 6 - 2 * (j % 3)
            golden = q[:, :, 1 + i] @ scheme.tables[0][row + 3] + q[:, :, 1 + i] @ scheme.tables[1][column + 5]
            close(found[:, :, 1 + i, 1 + j], golden)


def test_decomposed_resized():
    scheme = Decomposed(Grid(3, 4), HEADS, HEAD_DIM).double()
    with torch.no_grad():
        for axis, table in enumerate(scheme.tables):
            table.copy_((1.0 + axis) * torch.linspace(-1, 1, len(table))[:, None].expand(-1, HEAD_DIM))
    new = scheme.resized(Grid(5, 7))
    for axis, (table, size) in enumerate(zip(new.tables, (9, 13), strict=True)):
        close(table[:, 0], (1.0 + axis) * torch.linspace(-1, 1, size, dtype=torch.float64), 1e-6)  # as drawn
    q, _, _ = heads(Grid(5, 7))
    with pytest.raises(ValueError, match=r"needs offsets up to \(4, 6\); the Decomposed .*resized\(Grid\(5, 7\)\)"):
        scheme(q, Grid(5, 7))
    assert new(q, Grid(5, 7)).shape == (2, HEADS, 35, 35)
    small, part = heads(Grid(2, 2))[0], awake(Decomposed(Grid(2, 2), HEADS, HEAD_DIM))
    with torch.no_grad():
        for table, wide in zip(part.tables, scheme.tables, strict=True):
            table.copy_(wide[len(wide) // 2 - 1 : len(wide) // 2 + 2])
    assert torch.equal(scheme(small, Grid(2, 2)), part(small, Grid(2, 2))), "the centre is read"


def test_groups_of_cells_read_the_same():
    """`at` for groups is `dense`, pair by pair; the terms of every query are its own; keys without cells give 0."""
    grid = Grid(4, 6, prefix=1)
    terms = tuple(torch.randn(2, HEADS, grid.tokens, size, dtype=torch.float64) for size in (7, 11))
    values = AxialTerms(terms, ((-3, 3), (-5, 5)))
    dense = values.dense(grid, grid)
    for box, chosen in {
        (2, 2): ([[0, 3, 9], [24, 8, 1]], [[0, 1, 2, 7, 8], [0, 17, 18, 23, 24]]),
        (1, 3): ([[5], [6]], [[4, 5, 6], [19, 20, 21]]),
        (0, 2): ([[2], [3]], [[0], [0]]),
    }.items():
        rows, columns = torch.tensor(chosen[0]), torch.tensor(chosen[1])
        found = values.at(grid.select(rows), grid.select(columns), box)
        assert found.shape == (2, HEADS, *rows.shape, columns.shape[1])
        for group in range(2):
            assert torch.equal(found[:, :, group], dense[:, :, rows[group]][..., columns[group]])
    assert (
        values.at(grid.select(torch.tensor([[3]])), grid.select(torch.zeros(1, 0, dtype=torch.int64)), (0, 1)).shape[-1]
        == 0
    )
    assert (dense[:, :, 0] == 0).all()
    assert (dense[..., 0] == 0).all()
    row, column = 2 - 1, 3 - 5  # query (2, 3) is token 16, key (1, 5) token 12
    assert torch.equal(dense[:, :, 16, 12], terms[0][:, :, 16, row + 3] + terms[1][:, :, 16, column + 5])
    assert AxialVectors(2, ((-3, 3), (0, 5))).sizes == (7, 6)


def test_grouped_queries_have_terms_of_their_own():
    """Two query heads share keys and values; what they add to their logits they do not share."""
    position = awake(Shaw(HEADS, HEAD_DIM, 3, per_head=True))
    q, k, v = heads(LONG, kv_heads=1)
    for kernel in ("auto", "reference"):
        found = attention(q, k, v, grid=LONG, position=position, kernel=kernel)
        logits = q @ k.mT / math.sqrt(HEAD_DIM) + position(q, LONG, scale=HEAD_DIM**-0.5)
        close(found, torch.softmax(logits, -1) @ v)


def test_content_meets_q_before_rotation():
    """So that terms depend on offsets alone: turning q first would make them depend on where the query is."""
    q, k, v = heads(LONG)
    shaw, rotary = awake(Shaw(HEADS, HEAD_DIM, 3, biases=True)), Rotary(HEAD_DIM)
    golden = (rotary(q + shaw.u[:, None], LONG) @ rotary(k, LONG).mT + shaw(q, LONG)) / math.sqrt(HEAD_DIM)
    close(attention(q, k, v, grid=LONG, position=(rotary, shaw)), torch.softmax(golden, -1) @ v)
    close(attention(q, k, v, grid=LONG, position=(shaw, rotary)), torch.softmax(golden, -1) @ v)


def test_packed_and_with_a_bias():
    position = (awake(RelativeTable(LONG, HEADS)), awake(TransformerXL(6, HEADS, HEAD_DIM)))
    qkv = torch.randn(2, 9, 3, HEADS, HEAD_DIM, dtype=torch.float64)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = (q + position[1].u[:, None]) @ k.mT / math.sqrt(HEAD_DIM)
    logits = logits + position[1](q, LONG, scale=HEAD_DIM**-0.5) + position[0](LONG)
    golden = (torch.softmax(logits, -1) @ v).transpose(1, 2).flatten(2)
    close(attention_packed(qkv, position=position), golden)
    close(weights(q, k, grid=LONG, position=position), torch.softmax(logits, -1))


@pytest.mark.row(51)
def test_only_offsets_count_with_a_memory():
    """Moving a segment and its memory along the sequence changes nothing: what absolute codes cannot say."""
    xl = awake(TransformerXL(6, HEADS, HEAD_DIM))
    here, there = Grid(9), Grid(9, origin=(1000,))
    q, k, v = heads(here[5:], here)
    found = [attention(q, k, v, grid=grid[5:], key_grid=grid, position=xl, mask=Causal()) for grid in (here, there)]
    assert torch.equal(*found)


@pytest.mark.row(50)
@pytest.mark.parametrize("kind", [torch.uint8, torch.bool], ids=str)
def test_the_published_mask(kind):
    """1 blocks, [queries, keys]: ones above the diagonal that the memory moves."""
    memory, queries = 3, 4
    mask = torch.triu(torch.ones(queries, memory + queries), 1 + memory).to(kind)
    whole, xl = Grid(memory + queries), awake(TransformerXL(6, HEADS, HEAD_DIM))
    q, k, v = heads(whole[memory:], whole)
    arguments = {"grid": whole[memory:], "key_grid": whole, "position": xl}
    close(
        attention(q, k, v, mask=Pairs.from_blocked(mask), **arguments), attention(q, k, v, mask=Causal(), **arguments)
    )


@pytest.mark.native  # what it costs is asked
def test_the_plan_says_the_bytes():
    q, k, v = (x.float() for x in heads(LONG))
    arguments = {"grid": LONG, "position": TransformerXL(6, HEADS, HEAD_DIM), "mask": Causal()}
    here, found = (plan(q, k, v, kernel=kernel, **arguments) for kernel in ("native", "sdpa"))
    assert "makes content's terms where the scores are: 9 vectors per head, 576 bytes" in str(here)
    assert here.cost.held == HEADS * 9 * HEAD_DIM * 4
    pairs, terms = 2 * HEADS * 81 * 4, 2 * HEADS * 9 * 9 * 4
    assert plan(q, k, v, **arguments).kernel == "native"
    assert (
        f"content's terms are {terms:,} bytes; in 1-D that is O(N²); expanded for every pair and sample: {pairs:,} "
        in str(found)
    )
    content = 2 * 2 * HEADS * 81 * 2 * HEAD_DIM - 2 * 2 * HEADS * 81 * (HEAD_DIM - v.shape[3])
    assert found.cost.flops == content + 2 * 2 * HEADS * 9 * 9 * HEAD_DIM
    with torch.no_grad():
        still = plan(q, k, v, kernel="sdpa", **arguments)
    assert still.cost.held == terms + 2 * pairs, "terms, pairs, and the pairs with -inf"
    assert found.cost.held == still.cost.held + 2 * pairs, "torch holds every score while it learns"
    image = Grid(4, 6)
    decomposed = Decomposed(image, HEADS, HEAD_DIM)
    shown = str(plan(*heads(image), grid=image, position=decomposed, mask=Windows((2, 3)), kernel="sdpa"))
    assert "O(N²)" not in shown
    assert f"expanded for every pair and sample: {2 * HEADS * 4 * 36 * 8:,} bytes" in shown


def test_it_learns_through_q_alone():
    """Frozen tables still pass a gradient to q: torch's unfused path, and the plan knows."""
    position = awake(Shaw(HEADS, HEAD_DIM, 3)).requires_grad_(False)
    q, k, v = heads(LONG)
    assert not plan(q, k, v, grid=LONG, position=position).problem.bias_grad
    assert plan(q.requires_grad_(), k, v, grid=LONG, position=position).problem.bias_grad
