// out = softmax_keys(scale · q kᵀ + bias) v, a panel of queries against a block of keys at a time.
//
// Lanes are queries: S, P and O stand transposed, [key or channel][query], so that softmax is plain vector arithmetic
// down a column, a bias is a slice of the table along the queries, and no head_dim is wasted on padding. S is in
// units of log 2. Each column has a whole-numbered reference `top`, from which weights are 2^(s - top); it moves only
// when a block exceeds it by 2^20, and then what was summed is scaled by an exact power of 2.
#pragma once

#include "lone.h"
#include "tiles.h"

namespace {

constexpr int64_t PANELS = CHUNK / PANEL;
constexpr real FAR = sizeof(real) == 4 ? real(1 << 21) : real(1ll << 50);

INLINE int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// Chunks of nearly even size, in whole vectors: how many, and how long.
INLINE int64_t chunks(int64_t queries) { return (queries + CHUNK - 1) / CHUNK; }
INLINE int64_t chunk_size(int64_t queries) { return queries ? padded((queries + chunks(queries) - 1) / chunks(queries)) : 0; }

// The bias of a whole cell, if it is small: alike for all cells of a kind, and made once for several of them.
constexpr int64_t SMALL = 48 * 1024;

INLINE int64_t seeds(const Layout& layout) {
    const int64_t whole = (layout.longest + 2 * PANEL) * layout.longest_keys;
    return whole <= SMALL && whole > BLOCK * PANEL ? whole : BLOCK * PANEL;
}

// Whether what is added to the scores depends on the kind of a cell alone, and fits.
INLINE bool alike(const Problem& p) {
    const Layout& layout = *p.layout;
    return p.table && !p.valid.data && !p.query_id.data && !layout.orders && p.batch * layout.cells > 1 &&
           layout.longest <= CHUNK && (layout.longest + 2 * PANEL) * layout.longest_keys <= SMALL;
}

constexpr int64_t AHEAD = 2048;                // pairs of lines fetched ahead, at most

struct Forward {
    Panel* panel;
    Sight* seen;
    Keys keys;
    const real** row;
    real *q, *k, *v, *s, *seed, *o, *top, *sum, *lines;
    Ahead ahead;
    Units units;

    Forward(const Problem& p, Arena& arena)
        : panel(arena.take<Panel>(PANELS)), seen(arena.take<Sight>(PANELS)),
          keys{0, 0, nullptr, arena.take<int32_t>(BLOCK), arena.take<int32_t>(BLOCK)},
          row(arena.take<const real*>(BLOCK)), q(arena.take<real>(CHUNK * p.head_dim)),
          k(arena.take<real>(BLOCK * p.head_dim)), v(arena.take<real>(BLOCK * p.value_dim)),
          s(arena.take<real>(BLOCK * PANEL)), seed(arena.take<real>(seeds(*p.layout))),
          o(arena.take<real>(CHUNK * p.value_dim)), top(arena.take<real>(CHUNK)), sum(arena.take<real>(CHUNK)),
          lines(arena.take<real>(PANEL * padded(p.head_dim > p.value_dim ? p.head_dim : p.value_dim))),
          ahead{arena.take<const char*>(AHEAD + 1), AHEAD, 0, 0}, units(p, arena) {}
};

struct Lone {                                  // a query on its own (lone.h)
    Queries query;
    real *q, *o, top, sum;
    bool fresh;
    Sight seen;
};

// Scores to weights, in place. `fresh`: nothing was summed before, and o holds nothing yet.
template <unsigned WIDTH>
inline void soften(int64_t keys, real* s, real* top, real* sum, int64_t channels, real* o, bool fresh) {
    constexpr int64_t lanes = WIDTH * LANES;
    vec highest[WIDTH], reference[WIDTH], total[WIDTH];
    EACH(n, WIDTH) highest[n] = all(LOWEST), total[n] = vec{};
    for (int64_t j = 0; j < keys; ++j)
        EACH(n, WIDTH) highest[n] = larger(load(s + j * lanes + n * LANES), highest[n]);
    bool far = false;  // from 0, so that tops are no whole numbers beside MAGIC
    EACH(n, WIDTH) {
        const vec before = fresh ? all(LOWEST) : load(top + n * LANES);
        const ivec above = highest[n] > before + real(20);
        reference[n] = before;
        if (any(above)) {
            reference[n] = above ? rounded(highest[n]) : before;
            const vec factor = exp2(before - reference[n]);
            if (!fresh) {
                store(sum + n * LANES, load(sum + n * LANES) * factor);
                for (int64_t c = 0; c < channels; ++c)
                    store(o + c * lanes + n * LANES, load(o + c * lanes + n * LANES) * factor);
            }
        }
        store(top + n * LANES, reference[n]);
        far = far || any((reference[n] > FAR) | (reference[n] < -FAR) | (reference[n] != reference[n]));
    }
    if (far) {
        for (int64_t j = 0; j < keys; ++j)
            for (unsigned n = 0; n < WIDTH; ++n) {
                const vec weight = exp2(load(s + j * lanes + n * LANES) - reference[n]);
                store(s + j * lanes + n * LANES, weight);
                total[n] += weight;
            }
    } else {
        vec magic[WIDTH], least[WIDTH];
        EACH(n, WIDTH) magic[n] = MAGIC - reference[n], least[n] = reference[n] + SMALLEST;
        for (int64_t j = 0; j < keys; ++j) {
            vec weight[WIDTH];
            EACH(n, WIDTH) weight[n] = load(s + j * lanes + n * LANES);
            exp2<WIDTH>(weight, magic, least);
            EACH(n, WIDTH) store(s + j * lanes + n * LANES, weight[n]), total[n] += weight[n];
        }
    }
    EACH(n, WIDTH) store(sum + n * LANES, fresh ? total[n] : load(sum + n * LANES) + total[n]);
}

INLINE void soften(int64_t vectors, int64_t keys, real* s, real* top, real* sum, int64_t channels, real* o, bool fresh) {
    if (vectors == 1) soften<1>(keys, s, top, sum, channels, o, fresh);
    if (vectors == 2) soften<2>(keys, s, top, sum, channels, o, fresh);
    if constexpr (WIDE >= 4) {
        if (vectors == 3) soften<3>(keys, s, top, sum, channels, o, fresh);
        if (vectors == 4) soften<4>(keys, s, top, sum, channels, o, fresh);
    }
}

// Divide by the sums and write; a query that saw nothing gives zeros and a log-sum-exp of -inf.
inline void finish(const Problem& p, int64_t sample, int64_t head, const Panel& panel, real* o, const real* top,
                   const real* sum, bool fresh, real* lines) {
    const int64_t lanes = panel.lanes();
    real share[PANEL], measure[PANEL];
    for (int64_t l = 0; l < lanes; l += LANES) {
        const vec total = fresh ? vec{} : load(sum + l);
        const ivec empty = total == 0;
        store(share + l, empty ? vec{} : real(1) / total);
        store(measure + l, empty ? all(-INFINITE) : LN2 * (load(top + l) + log2(total)));
    }
    if (fresh) fill(o, 0, lanes * p.value_dim, 0);
    write_lanes(p.dtype, p.out, offset(p.out, sample, head, 0), panel.token, panel.count, lanes, p.value_dim, share,
                lines, o);
    real* lse = static_cast<real*>(p.lse) + (sample * p.heads + head) * p.layout->queries;
    for (int64_t l = 0; l < panel.count; ++l) lse[panel.token[l]] = measure[l];
}

// A query on its own, against the block of keys in `w`.
inline void attend(const Problem& p, int64_t sample, int64_t head, const Forward& w, Lone& one) {
    if (one.seen == Sight::none) return;
    lone_seed(p, sample, head, one.query, w.keys, one.seen, w.s);
    lone_scores(w.keys.count, p.head_dim, one.q, w.k, w.s);
    lone_soften(w.keys.count, w.s, one.top, one.sum, p.value_dim, one.o, one.fresh);
    if (p.dropout > 0) drop(p, sample, head, one.query, w.keys, w.s, 1);
    lone_sum(w.keys.count, p.value_dim, w.s, w.v, one.o, !one.fresh);
    one.fresh = false;
}

inline void finish(const Problem& p, int64_t sample, int64_t head, const Lone& one) {
    const bool empty = one.fresh || one.sum == 0;
    const int64_t token = *one.query.token;
    const real share = empty ? real(0) : real(1) / one.sum;
    if (one.fresh) fill(one.o, 0, p.value_dim, 0);
    for (int64_t c = 0; c < p.value_dim; c += LANES) store(one.o + c, load(one.o + c) * share);
    write_row(p.dtype, p.out, offset(p.out, sample, head, token), p.value_dim, one.o);
    real* lse = static_cast<real*>(p.lse) + (sample * p.heads + head) * p.layout->queries + token;
    *lse = empty ? -INFINITE : LN2 * (one.top + log2(all(one.sum))[0]);
}

// Whether rows lie apart, so that the processor does not fetch the next ones of its own accord.
INLINE bool scattered(const Problem& p) { return p.q.token != p.head_dim || p.layout->cells > 1; }

// The small cell that comes next: its rows are fetched while this one is worked on.
struct Next {
    int64_t sample, head;
    const int32_t *token, *key;
    int64_t count, key_count;
    void expected(const Problem& p, Ahead& ahead) const {
        if (count == 0) return;
        const int64_t kv = head / (p.heads / p.kv_heads);
        expect(p.dtype, p.q, offset(p.q, sample, head, 0), token, count, p.head_dim, ahead);
        expect(p.dtype, p.k, offset(p.k, sample, kv, 0), key, key_count, p.head_dim, ahead);
        expect(p.dtype, p.v, offset(p.v, sample, kv, 0), key, key_count, p.value_dim, ahead);
    }
};

// The queries `token[0 .. count)` of one cell against all of its keys. `again`: the panels and seeds of a cell of the
// same kind are still there.
inline void attend(const Problem& p, int64_t sample, int64_t head, const int32_t* token, int64_t count,
                   const int32_t* key, int64_t key_count, bool again, Next next, Forward& w) {
    const int64_t kv = head / (p.heads / p.kv_heads), few = lone(p, count), many = count - few;
    const int64_t panels = again ? moved(token, many, w.panel) : make_panels(p, token, many, w.panel);
    const bool seeded = p.table || p.query_id.data || p.layout->orders, kept = alike(p);
    real *q[PANELS], *o[PANELS];
    bool fresh[PANELS];
    Lone single[FEW + 1] = {};
    int64_t lane[PANELS + 1] = {0};
    for (int64_t i = 0; i < panels; ++i) {
        const Panel& panel = w.panel[i];
        q[i] = w.q + lane[i] * p.head_dim, o[i] = w.o + lane[i] * p.value_dim, fresh[i] = true;
        read_lanes(p.dtype, p.q, offset(p.q, sample, head, 0), panel.token, panel.count, panel.lanes(), p.head_dim,
                   w.units.on ? real(1) : real(p.scale) * LOG2E, w.lines, q[i]);
        if (w.units.on) w.units.queries(p, lane[i], panel.lanes(), q[i]);
        lane[i + 1] = lane[i] + panel.lanes();
    }
    for (int64_t i = 0; i < few; ++i) {
        const int64_t at = lane[panels] + i;
        single[i] = {lone(p, token + many + i), w.q + at * p.head_dim, w.o + at * p.value_dim, 0, 0, true, Sight::none};
        read_row(p.dtype, p.q, offset(p.q, sample, head, token[many + i]), p.head_dim, real(p.scale) * LOG2E,
                 single[i].q);
    }
    w.ahead.count = w.ahead.next = 0;
    if (next.count && scattered(p)) {
        expect(p.dtype, p.out, offset(p.out, sample, head, 0), token, count, p.value_dim, w.ahead);
        next.expected(p, w.ahead);
    }
    const int64_t blocks = (key_count + BLOCK - 1) / BLOCK;
    for (int64_t block = 0, from = 0, size; block < blocks; ++block, from += size) {
        size = (key_count - from + (blocks - block) - 1) / (blocks - block);
        gather_keys(p, sample, key + from, size, w.keys);
        const int64_t n = w.keys.count;
        bool needed = false;
        for (int64_t i = 0; i < panels; ++i) {
            w.seen[i] = sight(p, sample, w.panel[i], w.keys);
            needed = needed || w.seen[i] != Sight::none;
        }
        for (int64_t i = 0; i < few; ++i) {
            single[i].seen = sight(p, sample, single[i].query, w.keys);
            needed = needed || single[i].seen != Sight::none;
        }
        if (!needed) continue;
        const int64_t more = w.keys.token == key + from ? key_count - from - n : 0;
        if (!w.units.on || few)  // matrix units read their own keys
            read_rows(p.dtype, p.k, offset(p.k, sample, kv, 0), w.keys.token, n, p.head_dim, p.head_dim, w.k, more);
        read_rows(p.dtype, p.v, offset(p.v, sample, kv, 0), w.keys.token, n, p.value_dim, p.value_dim, w.v, more);
        if (w.units.on) w.units.keys(p, sample, kv, w.keys, w.v);
        for (int64_t i = 0; i < panels; ++i) {
            if (w.seen[i] == Sight::none) continue;
            const Panel& panel = w.panel[i];
            const int64_t lanes = panel.lanes();
            real* seed = w.seed + (kept ? from * lane[panels] + lane[i] * n : 0);
            Seeds start;
            if (seeded) start = seeds_of(p, sample, head, panel, w.keys, w.seen[i], kept, again, seed, w.row);
            const Seeds* from_seeds = seeded ? &start : nullptr;
            if (w.units.on)
                w.units.scores(p, n, lane[i], panel.vectors, from_seeds, w.s);
            else
                product<true>(n, panel.vectors, p.head_dim, {w.k, p.head_dim, 1}, {q[i], lanes}, {w.s, lanes},
                              seeded ? Into::seeded : Into::fresh, w.ahead, from_seeds);
            soften(panel.vectors, n, w.s, w.top + i * PANEL, w.sum + i * PANEL, p.value_dim, o[i], fresh[i]);
            if (p.dropout > 0) drop(p, sample, head, panel, w.keys, w.s, lanes);
            if (w.units.on)
                w.units.values(p, n, lanes, w.s, o[i], !fresh[i]);
            else
                product<false>(p.value_dim, panel.vectors, n, {w.v, 1, p.value_dim}, {w.s, lanes}, {o[i], lanes},
                               fresh[i] ? Into::fresh : Into::added, w.ahead);
            fresh[i] = false;
        }
        for (int64_t i = 0; i < few; ++i) attend(p, sample, head, w, single[i]);
    }
    for (int64_t i = 0; i < few; ++i) finish(p, sample, head, single[i]);
    for (int64_t i = 0; i < panels; ++i)
        finish(p, sample, head, w.panel[i], o[i], w.top + i * PANEL, w.sum + i * PANEL, fresh[i], w.lines);
}

}  // namespace
