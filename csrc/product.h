// The matrix product that all of attention is made of: C (+)= A B, with lanes along the columns of B and C.
#pragma once

#include "vector.h"

namespace {

struct A { const real* at; int64_t row, column; };  // one of the two strides is 1
struct B { const real* at; int64_t row; };

struct C { real* at; int64_t row; };

// What a product starts from: row m of C, vector n, is load(row[m] + place[n]), or where `twice` is set that of `other`
// in the lanes of `mask`. So a bias costs a load in place of a zero, wherever it lies.
struct Seeds {
    const real* const* row;
    int64_t place[WIDE], other[WIDE];
    ivec mask[WIDE];
    bool twice;
};

enum class Into {
    fresh,  // C = A B
    seeded, // C = seeds + A B, the seeds first
    added   // C = C + (A B), the product summed from zero: half the rounding error in long sums
};

// Memory that will be needed soon, in pairs of neighbouring lines. Products fetch it as they go, a few lines at a time:
// a burst would fill the few buffers that a core has for what is on its way, and all other loads would wait.
struct Ahead {
    const char** pair;
    int64_t room, count, next;  // pairs at most, those there, and the first that is not fetched
    INLINE void fetch() {
        if (next >= count) return;
        EACH(i, 2) __builtin_prefetch(pair[next + i]), __builtin_prefetch(pair[next + i] + 64);
        next += 2;
    }
};

template <unsigned HEIGHT, unsigned WIDTH, bool ROWS, bool FETCH>
void tile(int64_t depth, const real* a, int64_t step, const real* b, int64_t next, real* c, int64_t row,
          const real* const* seed, const Seeds* seeds, Into into, Ahead* ahead) {
    vec sum[HEIGHT][WIDTH];
    if (into == Into::seeded) {
        EACH(m, HEIGHT) EACH(n, WIDTH) sum[m][n] = load(seed[m] + seeds->place[n]);
        if (seeds->twice)
            EACH(n, WIDTH) {
                const ivec mask = seeds->mask[n];
                EACH(m, HEIGHT) sum[m][n] = mixed(mask, load(seed[m] + seeds->other[n]), sum[m][n]);
            }
    } else {
        EACH(m, HEIGHT) EACH(n, WIDTH) sum[m][n] = vec{};
    }
    const auto advance = [&](int64_t k) INLINED {
        vec line[WIDTH];
        EACH(n, WIDTH) line[n] = load(b + k * next + n * LANES);
        EACH(m, HEIGHT) {
            const vec x = all(ROWS ? a[m * step + k] : a[k * step + m]);
            EACH(n, WIDTH) sum[m][n] += x * line[n];
        }
    };
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
        advance(k), advance(k + 1), advance(k + 2), advance(k + 3);
        if (FETCH) ahead->fetch();
    }
    for (; k < depth; ++k) advance(k);
    real* to = c;
    if (into == Into::added) {
        EACH(m, HEIGHT) {
            EACH(n, WIDTH) store(to + n * LANES, load(to + n * LANES) + sum[m][n]);
            to += row;
        }
    } else {
        EACH(m, HEIGHT) {
            EACH(n, WIDTH) store(to + n * LANES, sum[m][n]);
            to += row;
        }
    }
}

// As many sums as registers hold beside a line of B and a number of A.
template <int WIDTH> constexpr int TALLEST = (REGISTERS - WIDTH - 1) / WIDTH < 12 ? (REGISTERS - WIDTH - 1) / WIDTH : 12;

template <int WIDTH, bool ROWS, bool FETCH, int HEIGHT>
INLINE void tiles(int64_t height, int64_t count, int64_t depth, A& a, B b, C& c, const real* const*& seed,
                  const Seeds* seeds, Into into, Ahead* ahead) {
    if (height == HEIGHT) {
        for (; count > 0; --count) {
            tile<HEIGHT, WIDTH, ROWS, FETCH>(depth, a.at, ROWS ? a.row : a.column, b.at, b.row, c.at, c.row, seed, seeds, into, ahead);
            a.at += HEIGHT * a.row, c.at += HEIGHT * c.row;
            if (seed) seed += HEIGHT;
        }
    } else if constexpr (HEIGHT > 1) {
        tiles<WIDTH, ROWS, FETCH, HEIGHT - 1>(height, count, depth, a, b, c, seed, seeds, into, ahead);
    }
}

// All rows, in tiles of nearly even height: a low tile starves for sums to work on.
template <int WIDTH, bool ROWS, bool FETCH>
void strip(int64_t rows, int64_t depth, A a, B b, C c, const Seeds* seeds, Into into, Ahead* ahead) {
    const real* const* seed = seeds ? seeds->row : nullptr;
    constexpr int tallest = TALLEST<WIDTH>;
    const int64_t count = (rows + tallest - 1) / tallest, low = rows / count, high = rows - count * low;
    if (high) tiles<WIDTH, ROWS, FETCH, tallest>(low + 1, high, depth, a, b, c, seed, seeds, into, ahead);
    tiles<WIDTH, ROWS, FETCH, tallest>(low, count - high, depth, a, b, c, seed, seeds, into, ahead);
}

template <bool ROWS, bool FETCH>
void product(int64_t rows, int64_t vectors, int64_t depth, A a, B b, C c, Into into, Ahead* ahead, const Seeds* seeds) {
    while (vectors > 0) {
        const int64_t width = vectors < WIDE ? vectors : WIDE;
        if constexpr (WIDE >= 4) {
            if (width == 4) strip<4, ROWS, FETCH>(rows, depth, a, b, c, seeds, into, ahead);
            if (width == 3) strip<3, ROWS, FETCH>(rows, depth, a, b, c, seeds, into, ahead);
        }
        if (width == 2) strip<2, ROWS, FETCH>(rows, depth, a, b, c, seeds, into, ahead);
        if (width == 1) strip<1, ROWS, FETCH>(rows, depth, a, b, c, seeds, into, ahead);
        b.at += width * LANES, c.at += width * LANES, vectors -= width;
    }
}

// C[rows, vectors * LANES] from A[rows, depth] and B[depth, vectors * LANES]. With seeds, at most WIDE vectors.
template <bool ROWS>
void product(int64_t rows, int64_t vectors, int64_t depth, A a, B b, C c, Into into, Ahead& ahead,
             const Seeds* seeds = nullptr) {
    if (rows == 0) return;
    if (ahead.next < ahead.count) product<ROWS, true>(rows, vectors, depth, a, b, c, into, &ahead, seeds);
    else product<ROWS, false>(rows, vectors, depth, a, b, c, into, nullptr, seeds);
}

}  // namespace
