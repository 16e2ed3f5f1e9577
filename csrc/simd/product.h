// The matrix product that all of attention is made of: C (+)= A B, with lanes along the columns of B and C.
//
// C is made tile by tile: HEIGHT rows of WIDTH vectors, whose sums stay in registers while A and B pass by once.
#pragma once

#include "simd/prefetch.h"
#include "simd/terms.h"

namespace {

template <bool PAIRS> struct Left { const typename TermOf<PAIRS>::type* at; int64_t row, column; };  // a stride is 1
template <bool PAIRS> struct Right { const typename TermOf<PAIRS>::type* at; int64_t row; };
using A = Left<OF_PAIRS>;
using B = Right<OF_PAIRS>;
struct C { real* at; int64_t row; };

// What a product starts from: row m of C, vector n, is load(row[m] + place[n]), or where `twice` is set that of `other`
// in the lanes of `mask`. So a bias costs a load in place of a zero, wherever it lies. With `more` it is the sum of two
// loads, the other one being load(more[m] + more_place[n]).
struct Seeds {
    const real* const* row;
    int64_t place[MAX_VECTORS], other[MAX_VECTORS];
    ivec mask[MAX_VECTORS];
    bool twice;
    const real* const* more;
    int64_t more_place[MAX_VECTORS];
};

enum class Into {
    fresh,  // C = A B
    seeded, // C = seeds + A B, the seeds first
    scaled, // C = factor · A B + seeds, which may be missing: of pairs, in attention
    added   // C = C + (A B), the product summed from zero: half the rounding error in long sums
};

template <bool PAIRS> struct Product {
    int64_t depth;  // columns of A, rows of B, counted in terms
    Left<PAIRS> a;
    Right<PAIRS> b;
    C c;
    Into into;
    const Seeds* seeds;
    Prefetches* prefetches;
    real factor;
};

// Where a tile begins: its first row of A, of C and of the seeds. It moves down in registers.
template <bool PAIRS> struct Place {
    const typename TermOf<PAIRS>::type* a;
    real* c;
    const real* const* seed;
};

// What rows from `seed` on start from, or end with.
template <unsigned HEIGHT, unsigned WIDTH>
INLINE void load_seeds(const Seeds& seeds, const real* const* seed, vec (&to)[HEIGHT][WIDTH]) {
    UNROLL(m, HEIGHT) UNROLL(n, WIDTH) to[m][n] = load(seed[m] + seeds.place[n]);
    if (seeds.more) {
        const real* const* more = seeds.more + (seed - seeds.row);
        UNROLL(m, HEIGHT) UNROLL(n, WIDTH) to[m][n] += load(more[m] + seeds.more_place[n]);
    }
    if (seeds.twice)
        UNROLL(n, WIDTH) {
            const ivec mask = seeds.mask[n];
            UNROLL(m, HEIGHT) to[m][n] = select(mask, load(seed[m] + seeds.other[n]), to[m][n]);
        }
}

template <unsigned HEIGHT, unsigned WIDTH>
INLINE void store_sums(const vec (&sum)[HEIGHT][WIDTH], bool added, int64_t row, real* to) {
    UNROLL(m, HEIGHT) {
        if (added) {
            UNROLL(n, WIDTH) store(to + n * LANES, load(to + n * LANES) + sum[m][n]);
        } else {
            UNROLL(n, WIDTH) store(to + n * LANES, sum[m][n]);
        }
        to += row;
    }
}

// A row at a time: the sums hold most registers.
template <unsigned HEIGHT, unsigned WIDTH>
INLINE void store_scaled(const Seeds* seeds, const real* const* seed, real factor, const vec (&sum)[HEIGHT][WIDTH],
                         int64_t row, real* to) {
    UNROLL(m, HEIGHT) {
        vec last[1][WIDTH] = {};
        if (seeds) load_seeds<1, WIDTH>(*seeds, seed + m, last);
        UNROLL(n, WIDTH) store(to + n * LANES, sum[m][n] * factor + last[0][n]);
        to += row;
    }
}

// One tile. ROWS: A lies row by row, column by column otherwise. FETCH: there is something to prefetch.
template <unsigned HEIGHT, unsigned WIDTH, bool ROWS, bool FETCH, bool PAIRS>
void multiply_tile(const Product<PAIRS>& x, const typename TermOf<PAIRS>::type* a, real* c, const real* const* seed) {
    const auto* b = x.b.at;
    const int64_t depth = x.depth, step = ROWS ? x.a.row : x.a.column, next = x.b.row;
    vec sum[HEIGHT][WIDTH] = {};
    if (x.into == Into::seeded) load_seeds<HEIGHT, WIDTH>(*x.seeds, seed, sum);
    const auto advance = [&](int64_t k) INLINE_LAMBDA {
        UNROLL(part, TERM_PARTS<PAIRS>) {
            decltype(load_factor(b, part)) line[WIDTH];
            UNROLL(n, WIDTH) line[n] = load_factor(b + k * next + n * LANES, part);
            UNROLL(m, HEIGHT) {
                const auto number = broadcast_factor(ROWS ? a[m * step + k] : a[k * step + m], part);
                UNROLL(n, WIDTH) add_product(sum[m][n], number, line[n]);
            }
        }
    };
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
        advance(k), advance(k + 1), advance(k + 2), advance(k + 3);
        if (FETCH) x.prefetches->fetch();
    }
    for (; k < depth; ++k) advance(k);
    if constexpr (PAIRS && !OF_PAIRS)
        if (x.into == Into::scaled) return store_scaled<HEIGHT, WIDTH>(x.seeds, seed, x.factor, sum, x.c.row, c);
    store_sums<HEIGHT, WIDTH>(sum, x.into == Into::added, x.c.row, c);
}

// As many sums as registers hold beside a line of B and a number of A.
template <int WIDTH>
constexpr int TALLEST = (REGISTERS - WIDTH - 1) / WIDTH < 12 ? (REGISTERS - WIDTH - 1) / WIDTH : 12;

// `count` tiles of so many rows, one below the other.
template <int WIDTH, bool ROWS, bool FETCH, int HEIGHT, bool PAIRS>
INLINE void multiply_tiles(int64_t height, int64_t count, const Product<PAIRS>& x, Place<PAIRS>& at) {
    if (height == HEIGHT) {
        for (; count > 0; --count) {
            multiply_tile<HEIGHT, WIDTH, ROWS, FETCH, PAIRS>(x, at.a, at.c, at.seed);
            at.a += HEIGHT * x.a.row, at.c += HEIGHT * x.c.row;
            if (at.seed) at.seed += HEIGHT;
        }
    } else if constexpr (HEIGHT > 1) {
        multiply_tiles<WIDTH, ROWS, FETCH, HEIGHT - 1>(height, count, x, at);
    }
}

// All rows of WIDTH vectors, in tiles of nearly even height: a low tile has too few sums to hide their latency.
template <int WIDTH, bool ROWS, bool FETCH, bool PAIRS> void multiply_strip(int64_t rows, const Product<PAIRS>& x) {
    constexpr int tallest = TALLEST<WIDTH>;
    const int64_t count = (rows + tallest - 1) / tallest, low = rows / count, high = rows - count * low;
    Place<PAIRS> at{x.a.at, x.c.at, x.seeds ? x.seeds->row : nullptr};
    if (high) multiply_tiles<WIDTH, ROWS, FETCH, tallest>(low + 1, high, x, at);
    multiply_tiles<WIDTH, ROWS, FETCH, tallest>(low, count - high, x, at);
}

template <bool ROWS, bool FETCH, bool PAIRS> void multiply_strips(int64_t rows, int64_t vectors, Product<PAIRS>& x) {
    while (vectors > 0) {
        const int64_t width = vectors < MAX_VECTORS ? vectors : MAX_VECTORS;
        if constexpr (MAX_VECTORS >= 4) {
            if (width == 4) multiply_strip<4, ROWS, FETCH>(rows, x);
            if (width == 3) multiply_strip<3, ROWS, FETCH>(rows, x);
        }
        if (width == 2) multiply_strip<2, ROWS, FETCH>(rows, x);
        if (width == 1) multiply_strip<1, ROWS, FETCH>(rows, x);
        x.b.at += width * LANES, x.c.at += width * LANES, vectors -= width;
    }
}

// C[rows, vectors * LANES] from A[rows, depth] and B[depth, vectors * LANES]. With seeds, at most MAX_VECTORS vectors.
template <bool ROWS, bool PAIRS = OF_PAIRS>
void multiply(int64_t rows, int64_t vectors, int64_t depth, Left<PAIRS> a, Right<PAIRS> b, C c, Into into,
              Prefetches& prefetches, const Seeds* seeds = nullptr, real factor = 1) {
    if (rows == 0) return;
    Product<PAIRS> x{depth, a, b, c, into, seeds, &prefetches, factor};
    if (prefetches.next < prefetches.count) multiply_strips<ROWS, true>(rows, vectors, x);
    else multiply_strips<ROWS, false>(rows, vectors, x);
}

}  // namespace
