// The matrix product that all of attention is made of: C (+)= A B, with lanes along the columns of B and C.
//
// C is made tile by tile: HEIGHT rows of WIDTH vectors, whose sums stay in registers while A and B pass by once.
#pragma once

#include "simd/prefetch.h"
#include "simd/terms.h"

namespace {

struct A { const term* at; int64_t row, column; };  // one of the two strides is 1
struct B { const term* at; int64_t row; };
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
    added   // C = C + (A B), the product summed from zero: half the rounding error in long sums
};

struct Product {
    int64_t depth;  // columns of A, rows of B, counted in terms
    A a;
    B b;
    C c;
    Into into;
    const Seeds* seeds;
    Prefetches* prefetches;
};

// Where a tile begins: its first row of A, of C and of the seeds. It moves down in registers.
struct Place {
    const term* a;
    real* c;
    const real* const* seed;
};

template <unsigned HEIGHT, unsigned WIDTH>
INLINE void start_sums(const Product& x, const real* const* seed, vec (&sum)[HEIGHT][WIDTH]) {
    if (x.into != Into::seeded) {
        UNROLL(m, HEIGHT) UNROLL(n, WIDTH) sum[m][n] = vec{};
        return;
    }
    UNROLL(m, HEIGHT) UNROLL(n, WIDTH) sum[m][n] = load(seed[m] + x.seeds->place[n]);
    if (x.seeds->more) {
        const real* const* more = x.seeds->more + (seed - x.seeds->row);
        UNROLL(m, HEIGHT) UNROLL(n, WIDTH) sum[m][n] += load(more[m] + x.seeds->more_place[n]);
    }
    if (x.seeds->twice)
        UNROLL(n, WIDTH) {
            const ivec mask = x.seeds->mask[n];
            UNROLL(m, HEIGHT) sum[m][n] = select(mask, load(seed[m] + x.seeds->other[n]), sum[m][n]);
        }
}

template <unsigned HEIGHT, unsigned WIDTH>
INLINE void store_sums(const Product& x, const vec (&sum)[HEIGHT][WIDTH], real* to) {
    const int64_t row = x.c.row;
    if (x.into == Into::added) {
        UNROLL(m, HEIGHT) {
            UNROLL(n, WIDTH) store(to + n * LANES, load(to + n * LANES) + sum[m][n]);
            to += row;
        }
    } else {
        UNROLL(m, HEIGHT) {
            UNROLL(n, WIDTH) store(to + n * LANES, sum[m][n]);
            to += row;
        }
    }
}

// One tile. ROWS: A lies row by row, column by column otherwise. FETCH: there is something to prefetch.
template <unsigned HEIGHT, unsigned WIDTH, bool ROWS, bool FETCH>
void multiply_tile(const Product& x, const term* a, real* c, const real* const* seed) {
    const term* b = x.b.at;
    const int64_t depth = x.depth, step = ROWS ? x.a.row : x.a.column, next = x.b.row;
    vec sum[HEIGHT][WIDTH];
    start_sums<HEIGHT, WIDTH>(x, seed, sum);
    const auto advance = [&](int64_t k) INLINE_LAMBDA {
        UNROLL(part, TERM_PARTS) {
            factor line[WIDTH];
            UNROLL(n, WIDTH) line[n] = load_factor(b + k * next + n * LANES, part);
            UNROLL(m, HEIGHT) {
                const factor number = broadcast_factor(ROWS ? a[m * step + k] : a[k * step + m], part);
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
    store_sums<HEIGHT, WIDTH>(x, sum, c);
}

// As many sums as registers hold beside a line of B and a number of A.
template <int WIDTH>
constexpr int TALLEST = (REGISTERS - WIDTH - 1) / WIDTH < 12 ? (REGISTERS - WIDTH - 1) / WIDTH : 12;

// `count` tiles of so many rows, one below the other.
template <int WIDTH, bool ROWS, bool FETCH, int HEIGHT>
INLINE void multiply_tiles(int64_t height, int64_t count, const Product& x, Place& at) {
    if (height == HEIGHT) {
        for (; count > 0; --count) {
            multiply_tile<HEIGHT, WIDTH, ROWS, FETCH>(x, at.a, at.c, at.seed);
            at.a += HEIGHT * x.a.row, at.c += HEIGHT * x.c.row;
            if (at.seed) at.seed += HEIGHT;
        }
    } else if constexpr (HEIGHT > 1) {
        multiply_tiles<WIDTH, ROWS, FETCH, HEIGHT - 1>(height, count, x, at);
    }
}

// All rows of WIDTH vectors, in tiles of nearly even height: a low tile has too few sums to hide their latency.
template <int WIDTH, bool ROWS, bool FETCH> void multiply_strip(int64_t rows, const Product& x) {
    constexpr int tallest = TALLEST<WIDTH>;
    const int64_t count = (rows + tallest - 1) / tallest, low = rows / count, high = rows - count * low;
    Place at{x.a.at, x.c.at, x.seeds ? x.seeds->row : nullptr};
    if (high) multiply_tiles<WIDTH, ROWS, FETCH, tallest>(low + 1, high, x, at);
    multiply_tiles<WIDTH, ROWS, FETCH, tallest>(low, count - high, x, at);
}

template <bool ROWS, bool FETCH> void multiply_strips(int64_t rows, int64_t vectors, Product& x) {
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
template <bool ROWS>
void multiply(int64_t rows, int64_t vectors, int64_t depth, A a, B b, C c, Into into, Prefetches& prefetches,
              const Seeds* seeds = nullptr) {
    if (rows == 0) return;
    Product x{depth, a, b, c, into, seeds, &prefetches};
    if (prefetches.next < prefetches.count) multiply_strips<ROWS, true>(rows, vectors, x);
    else multiply_strips<ROWS, false>(rows, vectors, x);
}

}  // namespace
