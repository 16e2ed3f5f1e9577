"""What the kernels share: products, rows of tokens, tiles of biases, dropout.

A load by Triton in the inner loop is laid out for coalescing and converted through shared memory to the layout of the
products: 17 to 33 barriers for each tile. The same load as a line of PTX stays in the layout in which it is added
(`ASM`). Triton's interpreter and AMD's chips read no PTX and load plainly.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def product(a, b, acc, PREC: tl.constexpr, RAW: tl.constexpr):
    """acc + a b. The interpreter multiplies bfloat16 as if it were uint16: it widens first (`RAW`)."""
    if RAW:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc=acc, input_precision=PREC)


@triton.jit
def load_rows(x, tokens, there, step, D: tl.constexpr, BD: tl.constexpr):
    """[tokens, BD], 0 where a token is not there, and beyond the D channels."""
    d = tl.arange(0, BD)
    at = tl.maximum(tokens, 0).to(tl.int64)[:, None] * step + d[None, :]
    return tl.load(x + at, mask=there[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store_rows(x, tokens, there, step, value, D: tl.constexpr, BD: tl.constexpr):
    d = tl.arange(0, BD)
    at = tl.maximum(tokens, 0).to(tl.int64)[:, None] * step + d[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=there[:, None] & (d < D)[None, :])


@triton.jit
def read(x, at, ASM: tl.constexpr):
    """x[at], past the pipeliner, which would copy one number per thread through shared memory."""
    if not ASM:
        return tl.load(x + at)
    else:
        where = x.to(tl.int64) + at.to(tl.int64) * 4
        return tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [where], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def read_pairs(words, at, ASM: tl.constexpr):
    """Two neighbouring numbers for each index, in one load of 8 bytes: [m, n] → [m, 2 n]."""
    if not ASM:
        first, second = tl.load(words + 2 * at), tl.load(words + 2 * at + 1)
    else:
        where = words.to(tl.int64) + at.to(tl.int64) * 8
        first, second = tl.inline_asm_elementwise(
            "ld.global.nc.v2.f32 {$0, $1}, [$2];", "=f,=f,l", [where], dtype=(tl.float32, tl.float32),
            is_pure=True, pack=1,
        )  # fmt: skip
    return tl.reshape(tl.join(first, second), (at.shape[0], 2 * at.shape[1]))


@triton.jit
def read_singles(vector, rows, columns, TURNED: tl.constexpr, ASM: tl.constexpr):
    """vector[rows - columns], or with `TURNED` vector[columns - rows]: a tile of single numbers."""
    if not ASM:
        if TURNED:
            return tl.load(vector + (columns[None, :] - rows[:, None]))
        else:
            return tl.load(vector + (rows[:, None] - columns[None, :]))
    else:
        if TURNED:
            where = (vector.to(tl.int64) - rows.to(tl.int64) * 4)[:, None] + (columns.to(tl.int64) * 4)[None, :]
        else:
            where = (vector.to(tl.int64) + rows.to(tl.int64) * 4)[:, None] - (columns.to(tl.int64) * 4)[None, :]
        return tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [where], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def biases(
    vector, rows, columns, ok, BM: tl.constexpr, BN: tl.constexpr, HOW: tl.constexpr, TURNED: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """The tile that seeds a product: the vector at differences of places, of tokens or of pairs; or 0, and -inf for
    keys that are not `ok`. Keys are columns, with `TURNED` rows."""
    if HOW == "pair":
        at = columns[None, :] - rows[:, None] if TURNED else rows[:, None] - columns[None, :]
        return read_pairs(vector, at, ASM)
    elif HOW == "single":
        return read_singles(vector, rows, columns, TURNED, ASM)
    else:
        there = ok[:, None] if TURNED else ok[None, :]
        return tl.where(there, tl.zeros([BM, BN], tl.float32), -float("inf"))


@triton.jit
def mix(x):
    """A bijection of 32 bits in which every bit of x moves every bit of the result."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_key(seed, row):
    """What the weights of one head of one sample have in common; seed int64, row = sample · heads + head."""
    low, high = seed.to(tl.uint64).to(tl.uint32), (seed.to(tl.uint64) >> 32).to(tl.uint32)
    return mix(low ^ mix(high ^ mix(row.to(tl.uint32))))


@triton.jit
def dropout_queries(key, tokens):
    return mix(key + tokens.to(tl.uint32) * 0x9E3779B9)


@triton.jit
def dropout_keys(key, tokens):
    return mix((key ^ 0x85EBCA6B) + tokens.to(tl.uint32) * 0x9E3779B9)


@triton.jit
def dropped(query, key, limit):
    """True with probability limit / 2³¹: csrc/attention/dropout.h, bit for bit."""
    x = (query ^ key) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return ((x ^ (x >> 16)) >> 1).to(tl.int32) < limit


@triton.jit
def keep(p, query, key, limit, kept):
    """p where it is not dropped, and larger for it."""
    return tl.where(dropped(query, key, limit), 0.0, p * kept)


@triton.jit
def within_segments(x, own, other, rows, columns, free, free_columns):
    """-inf between tokens of two segments; the first `free` tokens belong to all."""
    same = (own[:, None] == other[None, :]) | (rows < free)[:, None] | (columns < free_columns)[None, :]
    return tl.where(same, x, -float("inf"))
