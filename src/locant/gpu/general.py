"""Forward, and the gradients of k, v and q, for cells of any size; global attention is one cell.

    x = q kᵀ + bias / scale    the tile of biases seeds the product; -inf is what masks say
    p = exp2(c x - c top)      c = scale · log2 e, rescaled as the largest score moves
    dS = p (dP - delta)        delta = Σ dO O - dlse; lse and delta are as long as whole tiles

A program is one tile of rows of one head of one sample, and walks over the columns that its tile may meet. Nothing is
added by atomics: q's gradient has a kernel of its own, and costs two more products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from locant.gpu.tiles import (
    LOG2E,
    biases,
    dropout_key,
    dropout_keys,
    dropout_queries,
    keep,
    load_rows,
    product,
    read,
    store_rows,
    within_segments,
)

# What differs from call to call, and would compile the kernels anew as often.
VARIES = ["count", "heads", "queries", "longer", "vector_h", "hidden", "absent", "free", "free_keys", "limit", "batch"]


@triton.jit
def tokens_of(lists, at, there, PLAIN: tl.constexpr):
    """Which tokens stand at these entries of a list; without windows they are the entries themselves."""
    if PLAIN:
        return at
    else:
        return tl.load(lists + at, mask=there, other=0)


@triton.jit
def places_of(place, tokens, there, missing, HOW: tl.constexpr, PADDED: tl.constexpr):
    if HOW == "single" or PADDED:
        return tl.load(place + tokens, mask=there, other=missing)
    else:
        return tokens


@triton.jit
def statistics(lse, delta, at, there):
    """The log-sum-exp and delta of queries; where none is, weights and dS are 0."""
    return tl.load(lse + at, mask=there, other=float("inf")), tl.load(delta + at, mask=there, other=0.0)


@triton.jit(do_not_specialize=VARIES)
def forward_kernel(
    q, k, v, out, lse, vector, query_place, key_place, pair_place, rows, columns, tiles, ids, key_ids, seed,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot, key_place_b, ids_b, key_ids_b,
    count, heads, queries, vector_h, hidden, absent, free, free_keys, scale, limit, kept,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PLAIN: tl.constexpr, PADDED: tl.constexpr, CUT: tl.constexpr, DROP: tl.constexpr,
    HOW: tl.constexpr, PREC: tl.constexpr, RAW: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Passes: the tile of queries; over its keys; the output and its log-sum-exp."""
    # 1 a tile of queries
    t, row = tl.program_id(0) % count, tl.program_id(0) // count
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    at = tl.load(tiles + 4 * t) + tl.arange(0, BM)
    there = at < tl.load(tiles + 4 * t + 1)
    begin, end = tl.load(tiles + 4 * t + 2), tl.load(tiles + 4 * t + 3)
    i = tokens_of(rows, at, there, PLAIN)
    pi = tl.load(query_place + i, mask=there, other=absent)
    qq = load_rows(q + b * qb + h * qh, i, there, qt, D, BD)
    k += b * kb + (h // GROUP) * kh
    v += b * vb + (h // GROUP) * vh
    vector += h * vector_h
    c = scale * LOG2E
    if CUT:
        own = tl.load(ids + b * ids_b + i, mask=there, other=0)
    if DROP:
        key = dropout_key(tl.load(seed), row)
        a = dropout_queries(key, i)
    m, l = tl.full([BM], -float("inf"), tl.float32), tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BDV], tl.float32)
    # 2 over its keys
    for s in tl.range(begin, end, BN):
        at_j = s + tl.arange(0, BN)
        ok = at_j < end
        j = tokens_of(columns, at_j, ok, PLAIN)
        pj = places_of(key_place + b * key_place_b, j, ok, hidden, HOW, PADDED)
        if PADDED:
            ok = ok & (pj != hidden)  # a NaN that padding hides is not read
        kk, vv = load_rows(k, j, ok, kt, D, BD), load_rows(v, j, ok, vt, DV, BDV)
        if HOW == "pair":
            pj = tl.load(pair_place + s // 2 + tl.arange(0, BN // 2))
        x = product(qq, tl.trans(kk), biases(vector, pi, pj, ok, BM, BN, HOW, False, ASM), PREC, RAW)
        if CUT:
            other = tl.load(key_ids + b * key_ids_b + j, mask=ok, other=0)
            x = within_segments(x, own, other, i, j, free, free_keys)
        top = tl.maximum(m, tl.max(x, 1))
        safe = tl.where(top == -float("inf"), 0.0, top)
        p = tl.exp2(x * c - (safe * c)[:, None])
        fade = tl.exp2((m - safe) * c)
        l = l * fade + tl.sum(p, 1)
        if DROP:
            p = keep(p, a[:, None], dropout_keys(key, j)[None, :], limit, kept)
        acc = product(p.to(vv.dtype), vv, acc * fade[:, None], PREC, RAW)
        m = top
    # 3 a row that saw nothing is 0, its log-sum-exp -inf
    safe = tl.where(m == -float("inf"), 0.0, m)
    store_rows(out + b * ob + h * oh, i, there, ot, acc / tl.where(l == 0, 1.0, l)[:, None], DV, BDV)
    tl.store(lse + row.to(tl.int64) * queries + i, safe * scale + tl.log(l), mask=there)


@triton.jit(do_not_specialize=VARIES)
def key_gradients_kernel(
    q, k, v, do, lse, delta, dk, dv, vector, query_place, key_place, pair_place, rows, columns, tiles, ids, key_ids,
    seed, qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot, gb, gh, gt, wb, wh, wt, key_place_b, ids_b, key_ids_b,
    count, heads, longer, vector_h, hidden, absent, free, free_keys, scale, limit, kept,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PLAIN: tl.constexpr, PADDED: tl.constexpr, CUT: tl.constexpr, DROP: tl.constexpr,
    HOW: tl.constexpr, PREC: tl.constexpr, RAW: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Keys are rows: scores are [BN, BM]. Passes: the tile of keys; each query head of its group, its queries."""
    # 1 a tile of keys
    t, row = tl.program_id(0) % count, tl.program_id(0) // count
    b, hk = (row // (heads // GROUP)).to(tl.int64), (row % (heads // GROUP)).to(tl.int64)
    at = tl.load(tiles + 4 * t) + tl.arange(0, BN)
    there = at < tl.load(tiles + 4 * t + 1)
    begin, end = tl.load(tiles + 4 * t + 2), tl.load(tiles + 4 * t + 3)
    j = tokens_of(rows, at, there, PLAIN)
    pj = tl.load(key_place + b * key_place_b + j, mask=there, other=hidden)
    seen = there & (pj != hidden) if PADDED else there
    kk = load_rows(k + b * kb + hk * kh, j, seen, kt, D, BD)
    vv = load_rows(v + b * vb + hk * vh, j, seen, vt, DV, BDV)
    c = scale * LOG2E
    if CUT:
        other = tl.load(key_ids + b * key_ids_b + j, mask=there, other=0)
    ak, av = tl.zeros([BN, BD], tl.float32), tl.zeros([BN, BDV], tl.float32)
    # 2 dS = p (dP - delta), all of it transposed
    for g in range(GROUP):
        h = hk * GROUP + g
        line = (b * heads + h) * longer
        if DROP:
            key = dropout_key(tl.load(seed), b * heads + h)
            gone_j = dropout_keys(key, j)[:, None]
        for s in tl.range(begin, end, BM):
            at_i = s + tl.arange(0, BM)
            ok = at_i < end
            i = tokens_of(columns, at_i, ok, PLAIN)
            qq = load_rows(q + b * qb + h * qh, i, ok, qt, D, BD)
            dd = load_rows(do + b * ob + h * oh, i, ok, ot, DV, BDV)
            if PLAIN:
                top, de = read(lse + line, i, ASM), read(delta + line, i, ASM)
            else:
                top, de = statistics(lse, delta, line + i, ok)
            if HOW == "pair":
                pi = tl.load(pair_place + s // 2 + tl.arange(0, BM // 2))
            else:
                pi = places_of(query_place, i, ok, absent, HOW, False)
            x = biases(vector + h * vector_h, pj, pi, seen, BN, BM, HOW, True, ASM)
            x = product(kk, tl.trans(qq), x, PREC, RAW)
            if CUT:
                own = tl.load(ids + b * ids_b + i, mask=ok, other=0)
                x = within_segments(x, other, own, j, i, free_keys, free)
            p = tl.exp2(x * c - top[None, :])
            dp = product(vv, tl.trans(dd), tl.zeros([BN, BM], tl.float32), PREC, RAW)
            if DROP:
                gone_i = dropout_queries(key, i)[None, :]
                av = product(keep(p, gone_i, gone_j, limit, kept).to(dd.dtype), dd, av, PREC, RAW)
                dp = keep(dp, gone_i, gone_j, limit, kept)
            else:
                av = product(p.to(dd.dtype), dd, av, PREC, RAW)
            ak = product((p * (dp - de[None, :])).to(qq.dtype), qq, ak, PREC, RAW)
    store_rows(dk + b * gb + hk * gh, j, there, gt, ak * scale, D, BD)
    store_rows(dv + b * wb + hk * wh, j, there, wt, av, DV, BDV)


@triton.jit(do_not_specialize=VARIES)
def query_gradients_kernel(
    q, k, v, do, lse, delta, dq, vector, query_place, key_place, pair_place, rows, columns, tiles, ids, key_ids, seed,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot, gb, gh, gt, key_place_b, ids_b, key_ids_b,
    count, heads, longer, vector_h, hidden, absent, free, free_keys, scale, limit, kept,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PLAIN: tl.constexpr, PADDED: tl.constexpr, CUT: tl.constexpr, DROP: tl.constexpr,
    HOW: tl.constexpr, PREC: tl.constexpr, RAW: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """dq = scale Σ dS k. Passes: the tile of queries; over its keys."""
    # 1 a tile of queries
    t, row = tl.program_id(0) % count, tl.program_id(0) // count
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    at = tl.load(tiles + 4 * t) + tl.arange(0, BM)
    there = at < tl.load(tiles + 4 * t + 1)
    begin, end = tl.load(tiles + 4 * t + 2), tl.load(tiles + 4 * t + 3)
    i = tokens_of(rows, at, there, PLAIN)
    pi = tl.load(query_place + i, mask=there, other=absent)
    qq = load_rows(q + b * qb + h * qh, i, there, qt, D, BD)
    dd = load_rows(do + b * ob + h * oh, i, there, ot, DV, BDV)
    top, de = statistics(lse, delta, row.to(tl.int64) * longer + i, there)
    k += b * kb + (h // GROUP) * kh
    v += b * vb + (h // GROUP) * vh
    c = scale * LOG2E
    if CUT:
        own = tl.load(ids + b * ids_b + i, mask=there, other=0)
    if DROP:
        key = dropout_key(tl.load(seed), row)
        gone_i = dropout_queries(key, i)
    acc = tl.zeros([BM, BD], tl.float32)
    # 2 over its keys
    for s in tl.range(begin, end, BN):
        at_j = s + tl.arange(0, BN)
        ok = at_j < end
        j = tokens_of(columns, at_j, ok, PLAIN)
        pj = places_of(key_place + b * key_place_b, j, ok, hidden, HOW, PADDED)
        if PADDED:
            ok = ok & (pj != hidden)
        kk, vv = load_rows(k, j, ok, kt, D, BD), load_rows(v, j, ok, vt, DV, BDV)
        if HOW == "pair":
            pj = tl.load(pair_place + s // 2 + tl.arange(0, BN // 2))
        x = biases(vector + h * vector_h, pi, pj, ok, BM, BN, HOW, False, ASM)
        x = product(qq, tl.trans(kk), x, PREC, RAW)
        if CUT:
            other = tl.load(key_ids + b * key_ids_b + j, mask=ok, other=0)
            x = within_segments(x, own, other, i, j, free, free_keys)
        p = tl.exp2(x * c - top[:, None])
        dp = product(dd, tl.trans(vv), tl.zeros([BM, BN], tl.float32), PREC, RAW)
        if DROP:
            dp = keep(dp, gone_i[:, None], dropout_keys(key, j)[None, :], limit, kept)
        acc = product((p * (dp - de[:, None])).to(kk.dtype), kk, acc, PREC, RAW)
    store_rows(dq + b * gb + h * gh, i, there, gt, acc * scale, D, BD)
