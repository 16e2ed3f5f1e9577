// What matrix units, or products of pairs, read in the forward pass, in bfloat16: packed once for several panels and
// blocks.
#pragma once

#include "attention/bias.h"
#include "simd/tiles.h"

namespace {

#ifdef LOCANT_TILES

INLINE bool uses_tiles(const Problem& p) { return p.dtype == Dtype::bf16 && p.value_dim % ROWS == 0; }

// A from rows of terms, as they are stored; zeros beyond `channels` up to a whole tile.
inline void pack_rows(const RowList& list, int64_t channels, uint32_t* to) {
    const int64_t width = round_up(channels, TERMS);
    auto* packed = reinterpret_cast<BFloat16*>(to);
    for (int64_t i = 0; i < list.count; ++i, packed += width) {
        const BFloat16* from = static_cast<const BFloat16*>(list.rows.data) + list.at(i);
        if (list.rows.channel == 1) __builtin_memcpy(packed, from, size_t(channels) * sizeof *from);
        else for (int64_t c = 0; c < channels; ++c) packed[c] = from[c * list.rows.channel];
        for (int64_t c = channels; c < width; ++c) packed[c] = BFloat16{0};
    }
}

// A from the transpose of rows: [channel][token], zeros beyond n up to a whole tile. `from` are the rows as numbers.
inline void pack_transposed(int64_t n, int64_t channels, const real* from, uint32_t* to) {
    const int64_t width = round_up(n, TERMS) / 2;
    for (int64_t k = 0; k < 2 * width; k += TERMS)
        for (int64_t c = 0; c < channels; c += LANES) {
            vec square[LANES];
            UNROLL(r, LANES) {
                const int64_t i = k + 2 * int64_t(r);
                const real* at = from + i * channels + c;
                const vec low = i < n ? load(at) : vec{}, high = i + 1 < n ? load(at + channels) : vec{};
                square[r] = reinterpret_cast<vec>(pair_as_bfloat16(low, high));
            }
            transpose(square);
            UNROLL(r, LANES) store(to + (c + r) * width + k / 2, reinterpret_cast<ivec>(square[r]));
        }
}

#ifdef LOCANT_TILES_OF_VECTORS

// s = factor · k q + seeds, n rows.
INLINE void multiply_keys(int64_t n, int64_t vectors, int64_t channels, const uint32_t* k, const uint32_t* q, real factor,
                          const Seeds* seeds, Prefetches& prefetches, real* s) {
    multiply<true, true>(n, vectors, (channels + 1) / 2, {k, round_up(channels, TERMS) / 2, 1}, {q, vectors * LANES},
                         {s, vectors * LANES}, Into::scaled, prefetches, seeds, factor);
}

// o (+)= v weight, summed over n keys.
INLINE void multiply_values(int64_t channels, int64_t vectors, int64_t n, const uint32_t* v, const uint32_t* weight,
                            bool added, Prefetches& prefetches, real* o) {
    multiply<true, true>(channels, vectors, (n + 1) / 2, {v, round_up(n, TERMS) / 2, 1}, {weight, vectors * LANES},
                         {o, vectors * LANES}, added ? Into::added : Into::fresh, prefetches);
}

#else

// s[j][lane] = factor · s[j][lane] + seed: tiles start from 0, so what a product would start from is added behind.
inline void add_seeds(int64_t n, int64_t vectors, real factor, const Seeds* seeds, real* s) {
    for (int64_t j = 0; j < n; ++j)
        for (int64_t v = 0; v < vectors; ++v, s += LANES) {
            vec seed{};
            if (seeds) seed = load(seeds->row[j] + seeds->place[v]);
            if (seeds && seeds->twice) seed = select(seeds->mask[v], load(seeds->row[j] + seeds->other[v]), seed);
            if (seeds && seeds->more) seed += load(seeds->more[j] + seeds->more_place[v]);
            store(s, load(s) * factor + seed);
        }
}

INLINE void multiply_keys(int64_t n, int64_t vectors, int64_t channels, const uint32_t* k, const uint32_t* q, real factor,
                          const Seeds* seeds, Prefetches&, real* s) {
    multiply_bfloat16(round_up(n, ROWS), vectors * LANES, round_up(channels, TERMS), k, q, s, false);
    add_seeds(n, vectors, factor, seeds, s);
}

INLINE void multiply_values(int64_t channels, int64_t vectors, int64_t n, const uint32_t* v, const uint32_t* weight,
                            bool added, Prefetches&, real* o) {
    multiply_bfloat16(channels, vectors * LANES, round_up(n, TERMS), v, weight, o, added);
}

#endif

struct Units {
    bool on;
    uint32_t *q, *k, *v, *weight;

    Units(const Problem& p, Arena& arena) : on(uses_tiles(p)) {
        const int64_t chunk = on ? CHUNK : 0, block = on ? BLOCK : 0, depth = round_up(p.head_dim, TERMS) / 2;
        q = arena.allocate<uint32_t>(chunk * depth), k = arena.allocate<uint32_t>(block * depth);
        v = arena.allocate<uint32_t>(block / 2 * p.value_dim);
        weight = arena.allocate<uint32_t>(block / 2 * PANEL_LANES);
    }
    void queries(const Problem& p, int64_t lane, int64_t lanes, const real* rows) const {
        pair_terms(p.head_dim, lanes, rows, q + lane * round_up(p.head_dim, TERMS) / 2);
    }
    void keys(const Problem& p, int64_t sample, int64_t kv, const Keys& block, const real* values) const {
        pack_rows(rows_of(p.dtype, p.k, sample, kv, block.token, block.count), p.head_dim, k);
        pack_transposed(block.count, p.value_dim, values, v);
    }
    void scores(const Problem& p, int64_t n, int64_t lane, int64_t vectors, const Seeds* seeds, Prefetches& prefetches,
                real* s) const {
        const uint32_t* of_panel = q + lane * round_up(p.head_dim, TERMS) / 2;
        multiply_keys(n, vectors, p.head_dim, k, of_panel, real(p.scale) * LOG2E, seeds, prefetches, s);
    }
    void values(const Problem& p, int64_t n, int64_t vectors, const real* s, bool added, Prefetches& prefetches,
                real* o) const {
        pair_terms(n, vectors * LANES, s, weight);
        multiply_values(p.value_dim, vectors, n, v, weight, added, prefetches, o);
    }
};

#else

INLINE bool uses_tiles(const Problem&) { return false; }

struct Units {  // none
    static constexpr bool on = false;
    Units(const Problem&, Arena&) {}
    template <class... T> void queries(T...) const {}
    template <class... T> void keys(T...) const {}
    template <class... T> void scores(T&&...) const {}
    template <class... T> void values(T&&...) const {}
};

#endif

}  // namespace
