"""What comes before the gradients, and the gradient of the table, summed in whole numbers: the same bits every time.

dS is the gradient of a bias. Pairs of tiles with equal offsets (locant.places.alike) add theirs in registers, over all
samples as well; what leaves is a whole number of units, by atomic additions of 64 bits, and whole numbers add up to the
same in any order. |Σ dS| <= samples · queries · (2 max‖dO‖₁ max|v| / (1 - dropout) + max|dlse|), for a query meets an
offset once and its weights add up to 1; so the unit is 2^-60 of that, as a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from locant.gpu.general import VARIES, statistics, tokens_of
from locant.gpu.tiles import (
    LOG2E,
    biases,
    dropout_key,
    dropout_keys,
    dropout_queries,
    keep,
    load_rows,
    product,
    within_segments,
)


@triton.jit(do_not_specialize=VARIES)
def delta_kernel(
    out, do, lse, dlse, delta, ready, norm, ob, oh, ot, gb, gh, gt, count, heads, queries, longer,
    DV: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """delta = Σ dO O - dlse, 0 behind the end; lse in powers of two, inf for a row of nothing and behind the end;
    norm, the largest ‖dO‖₁ of the tile."""
    t, row = tl.program_id(0) % count, tl.program_id(0) // count
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    i = t * BM + tl.arange(0, BM)
    ok = i < queries
    o = load_rows(out + b * ob + h * oh, i, ok, ot, DV, BDV).to(tl.float32)
    g = load_rows(do + b * gb + h * gh, i, ok, gt, DV, BDV).to(tl.float32)
    own, line = row.to(tl.int64) * queries, row.to(tl.int64) * longer
    de = tl.sum(o * g, 1)
    if LSE:
        de -= tl.load(dlse + own + i, mask=ok, other=0.0)
    x = tl.load(lse + own + i, mask=ok, other=-float("inf"))
    tl.store(ready + line + i, tl.where(x == -float("inf"), float("inf"), x * LOG2E), mask=i < longer)
    tl.store(delta + line + i, tl.where(ok, de, 0.0), mask=i < longer)
    tl.store(norm + tl.program_id(0), tl.max(tl.sum(tl.abs(g), 1), 0))


@triton.jit(do_not_specialize=VARIES)
def table_gradients_kernel(
    q, k, v, do, lse, delta, vector, dvector, unit, query_place, key_place, base_place, pair_place, rows, columns,
    row_start, column_start, groups, ids, key_ids, seed,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot, key_place_b, ids_b, key_ids_b,
    count, parts, batch, heads, longer, vector_h, dvector_h, hidden, absent, free, free_keys, scale, limit, kept,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PLAIN: tl.constexpr, PADDED: tl.constexpr, CUT: tl.constexpr, DROP: tl.constexpr,
    HOW: tl.constexpr, PREC: tl.constexpr, RAW: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """A program is one group, head and part of the samples. The biases of a group are those of its first pair of tiles,
    and stay in registers. Passes: the first pair; all of them; the sum leaves."""
    # 1 the first pair of tiles: their offsets serve all
    t, rest = tl.program_id(0) % count, tl.program_id(0) // count
    h, part = (rest % heads).to(tl.int64), rest // heads
    groups += 8 * t
    row, column, cell, many = tl.load(groups), tl.load(groups + 2), tl.load(groups + 4), tl.load(groups + 5)
    down, right = tl.load(groups + 6), tl.load(groups + 7)
    there, here = tl.arange(0, BM) < tl.load(groups + 1), tl.arange(0, BN) < tl.load(groups + 3)
    at, at_j = row + tl.arange(0, BM), column + tl.arange(0, BN)
    if not PLAIN:
        at, at_j = at + tl.load(row_start + cell), at_j + tl.load(column_start + cell)
    i, j = tokens_of(rows, at, there, PLAIN), tokens_of(columns, at_j, here, PLAIN)
    pi = tl.load(query_place + i, mask=there, other=absent)
    base = tl.load(base_place + j, mask=here, other=hidden)  # the same for all samples, padded or not
    pj = tl.load(pair_place + column // 2 + tl.arange(0, BN // 2)) if HOW == "pair" else base
    fixed = biases(vector + h * vector_h, pi, pj, here, BM, BN, HOW, False, ASM)
    c, total = scale * LOG2E, tl.zeros([BM, BN], tl.float32)
    # 2 over samples, and over the pairs of tiles that are alike
    for item in tl.range(part, batch * many, parts):
        b, one = (item // many).to(tl.int64), item % many
        if PLAIN:
            i, j = at + one * down, at_j + one * right
        else:
            i = tokens_of(rows, at + tl.load(row_start + cell + one) - tl.load(row_start + cell), there, PLAIN)
            j = tokens_of(
                columns, at_j + tl.load(column_start + cell + one) - tl.load(column_start + cell), here, PLAIN
            )
        seen = here
        if PADDED:
            seen = here & (tl.load(key_place + b * key_place_b + j, mask=here, other=hidden) != hidden)
        qq = load_rows(q + b * qb + h * qh, i, there, qt, D, BD)
        dd = load_rows(do + b * ob + h * oh, i, there, ot, DV, BDV)
        kk = load_rows(k + b * kb + (h // GROUP) * kh, j, seen, kt, D, BD)
        vv = load_rows(v + b * vb + (h // GROUP) * vh, j, seen, vt, DV, BDV)
        top, de = statistics(lse, delta, (b * heads + h) * longer + i, there)
        x = product(qq, tl.trans(kk), fixed, PREC, RAW)
        if PADDED:
            x = tl.where(seen[None, :], x, -float("inf"))
        if CUT:
            own = tl.load(ids + b * ids_b + i, mask=there, other=0)
            other = tl.load(key_ids + b * key_ids_b + j, mask=here, other=0)
            x = within_segments(x, own, other, i, j, free, free_keys)
        p = tl.exp2(x * c - top[:, None])
        dp = product(dd, tl.trans(vv), tl.zeros([BM, BN], tl.float32), PREC, RAW)
        if DROP:
            key = dropout_key(tl.load(seed), b * heads + h)
            dp = keep(dp, dropout_queries(key, i)[:, None], dropout_keys(key, j)[None, :], limit, kept)
        total += p * (dp - de[:, None])
    # 3 the sum leaves
    to = dvector + h * dvector_h + (pi[:, None] - base[None, :])
    tl.atomic_add(to, (total * tl.load(unit)).to(tl.int64), mask=there[:, None] & here[None, :], sem="relaxed")
