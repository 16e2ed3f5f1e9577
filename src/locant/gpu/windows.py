"""Windows of at most 64 tokens: a program takes one head and many windows; the biases stay in registers.

The tile of biases seeds the product q kᵀ, so that bias and mask cost nothing in the loop: -inf is part of it, by kind
of frame (locant.frames). Backward is one kernel from q, k, v and dO alone: a window is whole, so that the softmax and
delta = Σ p dP are made again, and seven tensors are moved in all. The table's gradient is the sum of dS over all
windows of a program, written once; the programs' sums are added in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from locant.gpu.tiles import LOG2E, load_rows, product, store_rows

VARIES = ["programs", "batch", "heads", "tokens_in_all"]


@triton.jit
def tile_of_biases(table, place, region, entries, inverse, kind, BW: tl.constexpr, BIAS: tl.constexpr):
    """[BW, BW]: the table at slot - slot, divided by the scale; -inf where a slot is empty or of another region."""
    s = tl.arange(0, BW)
    mine = tl.load(region + kind * BW + s)
    see = (mine[:, None] == mine[None, :]) & (mine >= 0)[None, :]
    if BIAS:
        at = tl.load(place + s)
        x = tl.load(table + (at[:, None] - at[None, :] + entries // 2), mask=see, other=0.0) * inverse
    else:
        x = tl.zeros([BW, BW], tl.float32)
    return tl.where(see, x, -float("inf"))


@triton.jit
def weights(qq, kk, biased, c, PREC: tl.constexpr, RAW: tl.constexpr):
    """exp2(c x - c top) of every row, its sum, and its largest x, 0 where a slot sees nothing."""
    x = product(qq, tl.trans(kk), biased, PREC, RAW)
    top = tl.max(x, 1)
    top = tl.where(top == -float("inf"), 0.0, top)
    p = tl.exp2(x * c - (top * c)[:, None])
    return p, tl.sum(p, 1), top


@triton.jit(do_not_specialize=VARIES)
def forward_kernel(
    q, k, v, out, lse, table, place, region, tokens, start, work, qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot,
    programs, batch, heads, tokens_in_all, entries, scale, inverse,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BW: tl.constexpr, BIAS: tl.constexpr,
    PREC: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    program, h = tl.program_id(0) % programs, (tl.program_id(0) // programs).to(tl.int64)
    kind, part, parts = tl.load(work + 3 * program), tl.load(work + 3 * program + 1), tl.load(work + 3 * program + 2)
    biased = tile_of_biases(table + h * entries, place, region, entries, inverse, kind, BW, BIAS)
    first = tl.load(start + kind)
    many = tl.load(start + kind + 1) - first
    s = tl.arange(0, BW)
    c = scale * LOG2E
    for item in tl.range(part, batch * many, parts):
        b = (item // many).to(tl.int64)
        token = tl.load(tokens + (first + item % many) * BW + s)
        there = token >= 0
        qq = load_rows(q + b * qb + h * qh, token, there, qt, D, BD)
        kk = load_rows(k + b * kb + h * kh, token, there, kt, D, BD)
        vv = load_rows(v + b * vb + h * vh, token, there, vt, DV, BDV)
        p, l, top = weights(qq, kk, biased, c, PREC, RAW)
        o = product(p.to(vv.dtype), vv, tl.zeros([BW, BDV], tl.float32), PREC, RAW)
        store_rows(out + b * ob + h * oh, token, there, ot, o / tl.where(l == 0, 1.0, l)[:, None], DV, BDV)
        tl.store(lse + (b * heads + h) * tokens_in_all + token, top * scale + tl.log(l), mask=there)


@triton.jit(do_not_specialize=VARIES)
def backward_kernel(
    q, k, v, do, dlse, dq, dk, dv, table, partial, place, region, tokens, start, work,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot, eb, eh, et, fb, fh, ft, gb, gh, gt,
    programs, batch, heads, tokens_in_all, entries, scale, inverse,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BW: tl.constexpr, BIAS: tl.constexpr,
    LSE: tl.constexpr, TABLE: tl.constexpr, PREC: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    program, h = tl.program_id(0) % programs, (tl.program_id(0) // programs).to(tl.int64)
    kind, part, parts = tl.load(work + 3 * program), tl.load(work + 3 * program + 1), tl.load(work + 3 * program + 2)
    biased = tile_of_biases(table + h * entries, place, region, entries, inverse, kind, BW, BIAS)
    first = tl.load(start + kind)
    many = tl.load(start + kind + 1) - first
    s = tl.arange(0, BW)
    c = scale * LOG2E
    total = tl.zeros([BW, BW], tl.float32)
    for item in tl.range(part, batch * many, parts):
        b = (item // many).to(tl.int64)
        token = tl.load(tokens + (first + item % many) * BW + s)
        there = token >= 0
        qq = load_rows(q + b * qb + h * qh, token, there, qt, D, BD)
        kk = load_rows(k + b * kb + h * kh, token, there, kt, D, BD)
        vv = load_rows(v + b * vb + h * vh, token, there, vt, DV, BDV)
        dd = load_rows(do + b * ob + h * oh, token, there, ot, DV, BDV)
        p, l, _ = weights(qq, kk, biased, c, PREC, RAW)
        p = p * (1 / tl.where(l == 0, 1.0, l))[:, None]
        av = product(tl.trans(p.to(dd.dtype)), dd, tl.zeros([BW, BDV], tl.float32), PREC, RAW)
        store_rows(dv + b * gb + h * gh, token, there, gt, av, DV, BDV)
        dp = product(dd, tl.trans(vv), tl.zeros([BW, BW], tl.float32), PREC, RAW)
        de = tl.sum(p * dp, 1)
        if LSE:
            de -= tl.load(dlse + (b * heads + h) * tokens_in_all + token, mask=there, other=0.0)
        ds = p * (dp - de[:, None])
        if TABLE:
            total += ds  # 0 in slots without a token: their dO is 0
        low = ds.to(qq.dtype)
        aq = product(low, kk, tl.zeros([BW, BD], tl.float32), PREC, RAW)
        store_rows(dq + b * eb + h * eh, token, there, et, aq * scale, D, BD)
        ak = product(tl.trans(low), qq, tl.zeros([BW, BD], tl.float32), PREC, RAW)
        store_rows(dk + b * fb + h * fh, token, there, ft, ak * scale, D, BD)
    if TABLE:
        own = (program.to(tl.int64) * heads + h) * BW * BW
        tl.store(partial + own + s[:, None] * BW + s[None, :], total)
