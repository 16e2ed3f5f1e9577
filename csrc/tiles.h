// Products of bfloat16 on matrix units (AMX): C (+)= A B in float32, sixteen lanes and thirty-two terms at a time.
//
// A tile of A is sixteen rows of thirty-two terms; one of B holds, for each pair of terms, both numbers of sixteen lanes
// side by side; one of C is sixteen rows of sixteen lanes. So C stands as all of attention does here: rows are keys or
// channels, lanes are queries. LOCANT_TILES_EMULATED computes the same without such units, to test what is built on them.
#pragma once

#include "panel.h"

namespace {

#ifdef LOCANT_TILES

static_assert(LANES == 16, "a tile has sixteen lanes");
constexpr int64_t ROWS = 16, TERMS = 32;

INLINE int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Whether the forward pass takes the matrix units.
INLINE bool tiled(const Problem& p) { return p.dtype == Dtype::bf16 && p.value_dim % ROWS == 0; }

#ifdef LOCANT_TILES_EMULATED
struct Tile { uint32_t word[ROWS][LANES]; };
thread_local Tile unit[8];

#define TILE_LOAD(t, from, step) \
    for (int64_t r = 0; r < ROWS; ++r) __builtin_memcpy(unit[t].word[r], reinterpret_cast<const char*>(from) + r * (step), 64)
#define TILE_STORE(t, to, step) \
    for (int64_t r = 0; r < ROWS; ++r) __builtin_memcpy(reinterpret_cast<char*>(to) + r * (step), unit[t].word[r], 64)
#define TILE_ZERO(t) __builtin_memset(&unit[t], 0, sizeof(Tile))
#define TILE_MULTIPLY(c, a, b) emulated(unit[c], unit[a], unit[b])

inline void emulated(Tile& c, const Tile& a, const Tile& b) {
    for (int64_t m = 0; m < ROWS; ++m)
        for (int64_t n = 0; n < LANES; ++n) {
            float sum;
            __builtin_memcpy(&sum, &c.word[m][n], sizeof sum);
            for (int64_t k = 0; k < TERMS / 2; ++k)
                for (int half = 0; half < 2; ++half)
                    sum += widened(uint16_t(a.word[m][k] >> 16 * half)) * widened(uint16_t(b.word[k][n] >> 16 * half));
            __builtin_memcpy(&c.word[m][n], &sum, sizeof sum);
        }
}

INLINE void written() {}
struct Tiles { explicit Tiles(bool) {} };
#else
#define TILE_LOAD(t, from, step) _tile_loadd(t, from, step)
#define TILE_STORE(t, to, step) _tile_stored(t, to, step)
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_MULTIPLY(c, a, b) _tile_dpbf16ps(c, a, b)

struct alignas(64) Shape { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; };

INLINE void written() { __asm__ volatile("" ::: "memory"); }  // compilers don't see what the units read

struct Tiles {  // the units are ours as long as this lives; then they are as they were: torch uses them too
    bool used;
    Shape before;
    explicit Tiles(bool use) : used(use) {
        if (!used) return;
        Shape shape = {};
        shape.palette = 1;
        for (int t = 0; t < 8; ++t) shape.bytes[t] = 64, shape.rows[t] = ROWS;
        _tile_storeconfig(&before);
        written();
        _tile_loadconfig(&shape);
    }
    ~Tiles() {
        if (!used) return;
        written();
        if (before.palette) _tile_loadconfig(&before);
        else _tile_release();
    }
};
#endif

// Two numbers of every lane, side by side as bfloat16: rounded to the nearest, ties to even.
INLINE ivec paired(vec low, vec high) {
    const ivec x = reinterpret_cast<ivec>(low), y = reinterpret_cast<ivec>(high);
    const ivec a = x + 0x7fff + (x >> 16 & 1), b = y + 0x7fff + (y >> 16 & 1);
    return (a >> 16 & 0xffff) | (b & ivec(ivec{} - 0x10000));
}

INLINE void store(uint32_t* to, ivec x) { __builtin_memcpy(to, &x, sizeof x); }

// B from numbers that stand [term][lane]: pairs of terms, zeros beyond them up to a whole tile.
inline void pair_terms(int64_t terms, int64_t lanes, const real* from, uint32_t* to) {
    for (int64_t k = 0; k < rounded_up(terms, TERMS); k += 2, to += lanes)
        for (int64_t l = 0; l < lanes; l += LANES) {
            const real* at = from + k * lanes + l;
            store(to + l, paired(k < terms ? load(at) : vec{}, k + 1 < terms ? load(at + lanes) : vec{}));
        }
}

// A from rows of terms, as they are stored; zeros beyond `count` up to a whole tile.
inline void pack_rows(const Rows& rows, int64_t at, const int32_t* tokens, int64_t n, int64_t count, uint32_t* to) {
    const int64_t width = rounded_up(count, TERMS);
    auto* packed = reinterpret_cast<Brain*>(to);
    for (int64_t i = 0; i < n; ++i, packed += width) {
        const Brain* from = static_cast<const Brain*>(rows.data) + at + tokens[i] * rows.token;
        for (int64_t c = 0; c < count; ++c) packed[c] = from[c * rows.channel];
        for (int64_t c = count; c < width; ++c) packed[c] = Brain{0};
    }
}

// A from the same rows turned: [channel][token], zeros beyond n up to a whole tile. `from` are the rows as numbers.
inline void turn_rows(int64_t n, int64_t channels, const real* from, uint32_t* to) {
    const int64_t width = rounded_up(n, TERMS) / 2;
    for (int64_t k = 0; k < 2 * width; k += TERMS)
        for (int64_t c = 0; c < channels; c += LANES) {
            vec square[LANES];
            EACH(r, LANES) {
                const int64_t i = k + 2 * int64_t(r);
                const real* at = from + i * channels + c;
                square[r] = reinterpret_cast<vec>(paired(i < n ? load(at) : vec{}, i + 1 < n ? load(at + channels) : vec{}));
            }
            transpose(square);
            EACH(r, LANES) store(to + (c + r) * width + k / 2, reinterpret_cast<ivec>(square[r]));
        }
}

// HEIGHT × WIDTH tiles of C, steps in bytes.
template <int HEIGHT, int WIDTH>
INLINE void tile_product(int64_t terms, const uint32_t* a, const uint32_t* b, int64_t lanes, real* c, bool added) {
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
inline void tile_product(int64_t rows, int64_t lanes, int64_t terms, const uint32_t* a, const uint32_t* b, real* c,
                         bool added) {
    written();
    for (int64_t m = 0; m < rows; m += 2 * ROWS)
        for (int64_t n = 0; n < lanes; n += 2 * LANES) {
            const uint32_t *left = a + m * terms / 2, *right = b + n;
            real* to = c + m * lanes + n;
            const bool tall = m + ROWS < rows, wide = n + LANES < lanes;
            if (tall && wide) tile_product<2, 2>(terms, left, right, lanes, to, added);
            if (tall && !wide) tile_product<2, 1>(terms, left, right, lanes, to, added);
            if (!tall && wide) tile_product<1, 2>(terms, left, right, lanes, to, added);
            if (!tall && !wide) tile_product<1, 1>(terms, left, right, lanes, to, added);
        }
}

// s[j][lane] = factor · s[j][lane] + seed; what `product` starts from is added behind a tile.
inline void add_seeds(int64_t n, int64_t vectors, real factor, const Seeds* seeds, real* s) {
    for (int64_t j = 0; j < n; ++j)
        for (int64_t v = 0; v < vectors; ++v, s += LANES) {
            vec seed{};
            if (seeds) seed = load(seeds->row[j] + seeds->place[v]);
            if (seeds && seeds->twice) seed = mixed(seeds->mask[v], load(seeds->row[j] + seeds->other[v]), seed);
            store(s, load(s) * factor + seed);
        }
}

// What the units read, for the forward pass: packed once for several panels and blocks.
struct Units {
    bool on;
    uint32_t *q, *k, *v, *weight;

    Units(const Problem& p, Arena& arena) : on(tiled(p)) {
        const int64_t chunk = on ? CHUNK : 0, block = on ? BLOCK : 0, depth = rounded_up(p.head_dim, TERMS) / 2;
        q = arena.take<uint32_t>(chunk * depth), k = arena.take<uint32_t>(block * depth);
        v = arena.take<uint32_t>(block / 2 * p.value_dim), weight = arena.take<uint32_t>(block / 2 * PANEL);
    }
    void queries(const Problem& p, int64_t lane, int64_t lanes, const real* rows) const {
        pair_terms(p.head_dim, lanes, rows, q + lane * rounded_up(p.head_dim, TERMS) / 2);
    }
    void keys(const Problem& p, int64_t sample, int64_t kv, const Keys& block, const real* values) const {
        pack_rows(p.k, offset(p.k, sample, kv, 0), block.token, block.count, p.head_dim, k);
        turn_rows(block.count, p.value_dim, values, v);
    }
    void scores(const Problem& p, int64_t n, int64_t lane, int64_t vectors, const Seeds* seeds, real* s) const {
        const int64_t depth = rounded_up(p.head_dim, TERMS);
        tile_product(rounded_up(n, ROWS), vectors * LANES, depth, k, q + lane * depth / 2, s, false);
        add_seeds(n, vectors, real(p.scale) * LOG2E, seeds, s);
    }
    void values(const Problem& p, int64_t n, int64_t lanes, const real* s, real* o, bool added) const {
        pair_terms(n, lanes, s, weight);
        tile_product(p.value_dim, lanes, rounded_up(n, TERMS), v, weight, o, added);
    }
};

#else

struct Tiles { explicit Tiles(bool) {} };

struct Units {  // none
    static constexpr bool on = false;
    Units(const Problem&, Arena&) {}
    template <class... T> void queries(T...) const {}
    template <class... T> void keys(T...) const {}
    template <class... T> void scores(T...) const {}
    template <class... T> void values(T...) const {}
};

INLINE bool tiled(const Problem&) { return false; }

#endif

}  // namespace
