// Products of bfloat16 on matrix units (AMX): C (+)= A B in float32, sixteen lanes and thirty-two terms at a time; or,
// with LOCANT_TILES_OF_VECTORS, what vectors of pairs (AVX512_BF16) read in the same order.
//
// A tile of A is sixteen rows of thirty-two terms; one of B holds, for each pair of terms, both numbers of sixteen
// lanes side by side; one of C is sixteen rows of sixteen lanes. So C stands as all of attention does here: rows are
// keys or channels, lanes are queries. LOCANT_TILES_EMULATED computes the same without such units, so that what is
// built on them can be tested anywhere.
#pragma once

#include "simd/product.h"

namespace {

#ifdef LOCANT_TILES

static_assert(LANES == 16, "a tile has sixteen lanes");
constexpr int64_t ROWS = 16, TERMS = 32;  // of a tile of A
#ifdef LOCANT_TILES_OF_VECTORS
constexpr int64_t READ_TERMS = 2;
#else
constexpr int64_t READ_TERMS = TERMS;     // that a product reads, or more of them
#endif

INLINE int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Two numbers of every lane, side by side as bfloat16: rounded to the nearest, ties to even.
INLINE ivec pair_as_bfloat16(vec low, vec high) {
#ifdef __AVX512BF16__
    const auto both = _mm512_cvtne2ps_pbh(__m512(high), __m512(low));  // all of low, then all of high
    ivec turns;
    UNROLL(n, LANES) turns[n] = int32_t(n | (n + LANES) << 16);
    return ivec(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(turns), reinterpret_cast<__m512i>(both)));
#else
    const ivec x = reinterpret_cast<ivec>(low), y = reinterpret_cast<ivec>(high);
    const ivec a = x + 0x7fff + (x >> 16 & 1), b = y + 0x7fff + (y >> 16 & 1);
    return (a >> 16 & 0xffff) | (b & ivec(ivec{} - 0x10000));
#endif
}

INLINE void store(uint32_t* to, ivec x) { __builtin_memcpy(to, &x, sizeof x); }

// B from numbers that stand [term][lane]: pairs of terms, zeros beyond them.
inline void pair_terms(int64_t terms, int64_t lanes, const real* from, uint32_t* to) {
    for (int64_t k = 0; k < round_up(terms, READ_TERMS); k += 2, to += lanes)
        for (int64_t l = 0; l < lanes; l += LANES) {
            const real* at = from + k * lanes + l;
            store(to + l, pair_as_bfloat16(k < terms ? load(at) : vec{}, k + 1 < terms ? load(at + lanes) : vec{}));
        }
}

#ifdef LOCANT_TILES_OF_VECTORS

struct TileRegisters { explicit TileRegisters(bool) {} };

#else

#ifdef LOCANT_TILES_EMULATED
struct Tile { uint32_t word[ROWS][LANES]; };
thread_local Tile unit[8];

#define TILE_LOAD(t, from, step)           \
    for (int64_t r = 0; r < ROWS; ++r)     \
        __builtin_memcpy(unit[t].word[r], reinterpret_cast<const char*>(from) + r * (step), 64)
#define TILE_STORE(t, to, step) \
    for (int64_t r = 0; r < ROWS; ++r) __builtin_memcpy(reinterpret_cast<char*>(to) + r * (step), unit[t].word[r], 64)
#define TILE_ZERO(t) __builtin_memset(&unit[t], 0, sizeof(Tile))
#define TILE_MULTIPLY(c, a, b) multiply_emulated(unit[c], unit[a], unit[b])

inline void multiply_emulated(Tile& c, const Tile& a, const Tile& b) {
    for (int64_t m = 0; m < ROWS; ++m)
        for (int64_t n = 0; n < LANES; ++n) {
            float sum;
            __builtin_memcpy(&sum, &c.word[m][n], sizeof sum);
            for (int64_t k = 0; k < TERMS / 2; ++k)
                for (int low = 0; low < 32; low += 16)
                    sum += from_bfloat16(uint16_t(a.word[m][k] >> low)) * from_bfloat16(uint16_t(b.word[k][n] >> low));
            __builtin_memcpy(&c.word[m][n], &sum, sizeof sum);
        }
}

INLINE void memory_barrier() {}
struct TileRegisters { explicit TileRegisters(bool) {} };
#else
#define TILE_LOAD(t, from, step) _tile_loadd(t, from, step)
#define TILE_STORE(t, to, step) _tile_stored(t, to, step)
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_MULTIPLY(c, a, b) _tile_dpbf16ps(c, a, b)

struct alignas(64) TileConfig { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; };

INLINE void memory_barrier() { __asm__ volatile("" ::: "memory"); }  // compilers don't see what the units read

struct TileRegisters {  // the units are ours as long as this lives; then they are as they were: torch uses them too
    bool used;
    TileConfig before;
    explicit TileRegisters(bool use) : used(use) {
        if (!used) return;
        TileConfig config = {};
        config.palette = 1;
        for (int t = 0; t < 8; ++t) config.bytes[t] = 64, config.rows[t] = ROWS;
        _tile_storeconfig(&before);
        memory_barrier();
        _tile_loadconfig(&config);
    }
    ~TileRegisters() {
        if (!used) return;
        memory_barrier();
        if (before.palette) _tile_loadconfig(&before);
        else _tile_release();
    }
};
#endif

// HEIGHT × WIDTH tiles of C, steps in bytes.
template <int HEIGHT, int WIDTH>
INLINE void multiply_bfloat16(int64_t terms, const uint32_t* a, const uint32_t* b, int64_t lanes, real* c, bool added) {
    const int64_t step = terms * 2, row = lanes * 4;
    TILE_ZERO(0);
    if constexpr (WIDTH > 1) TILE_ZERO(1);
    if constexpr (HEIGHT > 1) TILE_ZERO(2);
    if constexpr (HEIGHT > 1 && WIDTH > 1) TILE_ZERO(3);
    if (added) {
        TILE_LOAD(0, c, row);
        if constexpr (WIDTH > 1) TILE_LOAD(1, c + LANES, row);
        if constexpr (HEIGHT > 1) TILE_LOAD(2, c + ROWS * lanes, row);
        if constexpr (HEIGHT > 1 && WIDTH > 1) TILE_LOAD(3, c + ROWS * lanes + LANES, row);
    }
    for (int64_t k = 0; k < terms; k += TERMS, a += TERMS / 2, b += TERMS / 2 * lanes) {
        TILE_LOAD(4, a, step);
        TILE_LOAD(6, b, row);
        TILE_MULTIPLY(0, 4, 6);
        if constexpr (WIDTH > 1) {
            TILE_LOAD(7, b + LANES, row);
            TILE_MULTIPLY(1, 4, 7);
        }
        if constexpr (HEIGHT > 1) {
            TILE_LOAD(5, a + ROWS * terms / 2, step);
            TILE_MULTIPLY(2, 5, 6);
            if constexpr (WIDTH > 1) TILE_MULTIPLY(3, 5, 7);
        }
    }
    TILE_STORE(0, c, row);
    if constexpr (WIDTH > 1) TILE_STORE(1, c + LANES, row);
    if constexpr (HEIGHT > 1) TILE_STORE(2, c + ROWS * lanes, row);
    if constexpr (HEIGHT > 1 && WIDTH > 1) TILE_STORE(3, c + ROWS * lanes + LANES, row);
}

// C[rows][lanes] = or += A[rows][terms] B[terms][lanes]; rows and terms in whole tiles.
inline void multiply_bfloat16(int64_t rows, int64_t lanes, int64_t terms, const uint32_t* a, const uint32_t* b, real* c,
                         bool added) {
    memory_barrier();
    for (int64_t m = 0; m < rows; m += 2 * ROWS)
        for (int64_t n = 0; n < lanes; n += 2 * LANES) {
            const uint32_t *left = a + m * terms / 2, *right = b + n;
            real* to = c + m * lanes + n;
            const bool tall = m + ROWS < rows, wide = n + LANES < lanes;
            if (tall && wide) multiply_bfloat16<2, 2>(terms, left, right, lanes, to, added);
            if (tall && !wide) multiply_bfloat16<2, 1>(terms, left, right, lanes, to, added);
            if (!tall && wide) multiply_bfloat16<1, 2>(terms, left, right, lanes, to, added);
            if (!tall && !wide) multiply_bfloat16<1, 1>(terms, left, right, lanes, to, added);
        }
}

#endif

#else

struct TileRegisters { explicit TileRegisters(bool) {} };

#endif

}  // namespace
