// The gradients of a chunk of queries, from q, k, v, out and the log-sum-exp alone: scores and weights are computed
// again, block by block.
//
//     P = 2^(S - lse)            dV = Pᵀ dO
//     dP = dO Vᵀ                 dS = P ∘ (dP - δ),  δ = Σ_channels dO ∘ O - dlse
//     dQ = scale · dS K          dK = scale · dSᵀ Q          d table[query - key] = Σ dS
//
// As in the forward pass lanes are queries, and S, P, dP and dS stand transposed.
#pragma once

#include "forward.h"

namespace {

constexpr int64_t RANGES = 16;  // work items per key head, at most, and in all, at least, if the work can be cut so

// Whether an item has several cells of a kind, whose gradients of scores are summed before they go to the table.
INLINE bool summed(const Problem& p) { return alike(p) && p.batch * p.layout->cells > RANGES; }

struct Backward {
    Panel* panel;
    Sight* seen;
    bool begun[PANELS];  // whether dq holds anything yet
    Keys keys;
    int64_t wide, tall;  // head_dim and value_dim, rounded up to whole vectors
    const real** row;
    real *q, *qt, *o, *ot, *dq, *lse, *delta, *k, *v, *s, *d, *seed, *total, *dk, *dv, *shared_k, *shared_v, *lines,
        *ones;
    Ahead ahead;

    Backward(const Problem& p, Arena& arena)
        : panel(arena.take<Panel>(PANELS)), seen(arena.take<Sight>(PANELS)),
          keys{0, 0, nullptr, arena.take<int32_t>(BLOCK), arena.take<int32_t>(BLOCK)}, wide(padded(p.head_dim)),
          tall(padded(p.value_dim)) {
        const int64_t most = p.layout->longest_keys;
        row = arena.take<const real*>(BLOCK);
        q = arena.take<real>(CHUNK * wide), qt = arena.take<real>(CHUNK * p.head_dim);
        o = arena.take<real>(CHUNK * tall), ot = arena.take<real>(CHUNK * p.value_dim);
        dq = arena.take<real>(CHUNK * p.head_dim), lse = arena.take<real>(CHUNK), delta = arena.take<real>(CHUNK);
        k = arena.take<real>(BLOCK * p.head_dim), v = arena.take<real>(BLOCK * p.value_dim);
        s = arena.take<real>(BLOCK * PANEL), d = arena.take<real>(BLOCK * PANEL);
        seed = arena.take<real>(seeds(*p.layout)), total = arena.take<real>(summed(p) ? seeds(*p.layout) : 0);

        dk = arena.take<real>(most * wide), dv = arena.take<real>(most * tall);
        const int64_t shared = p.layout->shared_keys ? p.layout->keys : 0;
        shared_k = arena.take<real>(shared * wide), shared_v = arena.take<real>(shared * tall);
        lines = arena.take<real>(PANEL * (wide > tall ? wide : tall));
        ones = arena.take<real>(CHUNK);
        ahead = {arena.take<const char*>(AHEAD + 1), AHEAD, 0, 0};
    }
};

struct Sums {  // one head's partial sums of the table; null if nobody learns it
    real *table, *rows;
};

// s: scores -> weights; d: gradients of weights -> gradients of scores. With a table they are added, while they are at
// hand, to the slices that the bias was read from. Keys from the four quarters of the block take turns: neighbouring keys
// touch overlapping slices, and a load waits for a store that it half overlaps.
template <unsigned WIDTH, bool TABLE>
inline void harden(const Panel& panel, const Keys& keys, const real* lse, const real* delta, real* table, real* s,
                   real* d) {
    constexpr int64_t lanes = WIDTH * LANES;
    vec sum[WIDTH], less[WIDTH], magic[WIDTH], least[WIDTH];
    EACH(n, WIDTH) sum[n] = load(lse + n * LANES), less[n] = load(delta + n * LANES);
    EACH(n, WIDTH) magic[n] = all(MAGIC), least[n] = all(SMALLEST);
    const auto key = [&](int64_t j) INLINED {
        vec weight[WIDTH];
        EACH(n, WIDTH) weight[n] = load(s + j * lanes + n * LANES) - sum[n];
        exp2<WIDTH>(weight, magic, least);
        EACH(n, WIDTH) store(s + j * lanes + n * LANES, weight[n]);
        EACH(n, WIDTH) weight[n] *= load(d + j * lanes + n * LANES) - less[n];
        EACH(n, WIDTH) store(d + j * lanes + n * LANES, weight[n]);
        if constexpr (TABLE) {
            if (j < keys.prefix) return;
            real* to = table - keys.place[j];
            EACH(n, WIDTH) {
                for (int64_t i = panel.slices[n]; i < panel.slices[n + 1]; ++i) {
                    real* at = to + panel.slice[i].place;
                    store(at, load(at) + only(panel.slice[i].lanes, weight[n]));
                }
            }
        }
    };
    const int64_t quarter = keys.count / 4;
    for (int64_t j = 0; j < quarter; ++j) key(j), key(j + quarter), key(j + 2 * quarter), key(j + 3 * quarter);
    for (int64_t j = 4 * quarter; j < keys.count; ++j) key(j);
}

template <bool TABLE>
INLINE void harden(const Panel& panel, const Keys& keys, const real* lse, const real* delta, real* table, real* s,
                   real* d) {
    if (panel.vectors == 1) harden<1, TABLE>(panel, keys, lse, delta, table, s, d);
    if (panel.vectors == 2) harden<2, TABLE>(panel, keys, lse, delta, table, s, d);
    if constexpr (WIDE >= 4) {
        if (panel.vectors == 3) harden<3, TABLE>(panel, keys, lse, delta, table, s, d);
        if (panel.vectors == 4) harden<4, TABLE>(panel, keys, lse, delta, table, s, d);
    }
}

// The gradients of the three numbers that hold between tokens without a place and the others.
inline void collect_prefix(const Panel& panel, const Keys& keys, const real* d, real* rows) {
    if (keys.prefix == 0 && panel.prefix == 0) return;
    for (int64_t j = 0; j < keys.count; ++j)
        for (int64_t l = 0; l < panel.count; ++l) {
            const bool query = l < panel.prefix, key = j < keys.prefix;
            if (query || key) rows[query && key ? 2 : key ? 1 : 0] += d[j * panel.lanes() + l];
        }
}

// delta[i] = Σ_channels dO[i] · O[i] for rows `width` apart, whole vectors.
INLINE void inner(const real* dout, const real* out, int64_t n, int64_t lanes, int64_t width, real* delta) {
    for (int64_t i = 0; i < lanes; i += LANES) {
        vec square[LANES];
        EACH(r, LANES) {
            square[r] = vec{};
            if (i + r < n)
                for (int64_t c = 0; c < width; c += LANES)
                    square[r] += load(dout + (i + r) * width + c) * load(out + (i + r) * width + c);
        }
        transpose(square);
        vec sum = square[0];
        EACH(r, LANES) if (r > 0) sum += square[r];
        store(delta + i, sum);
    }
}

// Rows and lanes of a chunk of queries, and what a row's weights are measured by.
inline void prepare(const Problem& p, int64_t sample, int64_t head, int64_t panels, Backward& w) {
    const real *lse = static_cast<const real*>(p.lse), *dlse = static_cast<const real*>(p.dlse);
    const int64_t first = (sample * p.heads + head) * p.layout->queries, wide = w.wide, tall = w.tall;
    for (int64_t i = 0, at = 0; i < panels; at += w.panel[i++].lanes()) {
        const Panel& panel = w.panel[i];
        const int64_t lanes = panel.lanes(), n = panel.count;
        const int64_t more = w.panel[panels - 1].token + w.panel[panels - 1].count - panel.token - n;
        real *q = w.q + at * w.wide, *o = w.o + at * w.tall, *own = w.lse + at, *delta = w.delta + at;
        read_rows(p.dtype, p.q, offset(p.q, sample, head, 0), panel.token, n, p.head_dim, w.wide, q, more);
        turn([=](int64_t r) { return q + r * wide; }, n, lanes, p.head_dim, real(p.scale) * LOG2E, w.qt + at * p.head_dim);
        read_rows(p.dtype, p.dout, offset(p.dout, sample, head, 0), panel.token, n, p.value_dim, w.tall, o, more);
        turn([=](int64_t r) { return o + r * tall; }, n, lanes, p.value_dim, real(1), w.ot + at * p.value_dim);
        read_rows(p.dtype, p.out, offset(p.out, sample, head, 0), panel.token, n, p.value_dim, w.tall, w.lines, more);
        inner(o, w.lines, n, lanes, w.tall, delta);
        fill(own, 0, lanes, INFINITE);  // weights of 0, for lanes without a query and rows that see nothing
        for (int64_t l = 0; l < n; ++l) {
            const real x = lse[first + panel.token[l]];
            own[l] = x == -INFINITE ? INFINITE : x * LOG2E;
            if (dlse) delta[l] -= dlse[first + panel.token[l]];
        }
    }
}

// A query on its own (lone.h): its rows, and what its weights are measured by.
struct Learner {
    Queries query;
    real *q, *scaled, *dout, *dq, lse, delta;
    bool begun;
    Sight seen;
};

inline Learner prepared(const Problem& p, int64_t sample, int64_t head, const int32_t* token, int64_t at, Backward& w) {
    const int64_t row = (sample * p.heads + head) * p.layout->queries + *token;
    Learner one{lone(p, token), w.q + at * w.wide, w.qt + at * p.head_dim, w.o + at * w.tall, w.dq + at * p.head_dim,
                static_cast<const real*>(p.lse)[row], 0, false, Sight::none};
    one.lse = one.lse == -INFINITE ? INFINITE : one.lse * LOG2E;  // weights of 0, where nothing is seen
    read_row(p.dtype, p.q, offset(p.q, sample, head, *token), p.head_dim, real(1), one.q);
    for (int64_t c = 0; c < p.head_dim; c += LANES) store(one.scaled + c, load(one.q + c) * (real(p.scale) * LOG2E));
    read_row(p.dtype, p.dout, offset(p.dout, sample, head, *token), p.value_dim, real(1), one.dout);
    read_row(p.dtype, p.out, offset(p.out, sample, head, *token), p.value_dim, real(1), w.lines);
    vec sum{};
    for (int64_t c = 0; c < p.value_dim; c += LANES) sum += load(one.dout + c) * load(w.lines + c);
    one.delta = across(sum, [](vec a, vec b) INLINED { return a + b; })[0];
    if (p.dlse) one.delta -= static_cast<const real*>(p.dlse)[row];
    return one;
}

// It against the block of keys in `w`.
inline void alone(const Problem& p, int64_t sample, int64_t head, Sums sums, real* dk, real* dv, Backward& w,
                  Learner& one) {
    if (one.seen == Sight::none) return;
    const int64_t n = w.keys.count;
    lone_seed(p, sample, head, one.query, w.keys, one.seen, w.s);
    lone_scores(n, p.head_dim, one.scaled, w.k, w.s);
    fill(w.d, 0, padded(n), 0);
    lone_scores(n, p.value_dim, one.dout, w.v, w.d);
    if (p.dropout > 0) drop(p, sample, head, one.query, w.keys, w.d, 1);
    lone_harden(n, one.lse, one.delta, w.s, w.d);
    if (sums.table) lone_collect(p, one.query, w.keys, w.d, sums.table, sums.rows);
    if (p.dropout > 0) drop(p, sample, head, one.query, w.keys, w.s, 1);
    product<true>(n, w.tall / LANES, 1, {w.s, 1, 1}, {one.dout, w.tall}, {dv, w.tall}, Into::added, w.ahead);
    product<true>(n, w.wide / LANES, 1, {w.d, 1, 1}, {one.q, w.wide}, {dk, w.wide}, Into::added, w.ahead);
    lone_sum(n, p.head_dim, w.d, w.k, one.dq, one.begun);
    one.begun = true;
}

// Gradients of scores of cells of one kind, summed before they go to the table.
INLINE void gain(int64_t count, const real* d, bool again, real* total) {
    if (again)
        for (int64_t x = 0; x < count; x += LANES) store(total + x, load(total + x) + load(d + x));
    else
        for (int64_t x = 0; x < count; x += LANES) store(total + x, load(d + x));
}

// What `gain` summed, to the table, number by number: it happens once for many cells, and slices of neighbouring keys
// overlap, which a processor pays for dearly.
inline void collect_kind(const Problem& p, const int32_t* token, int64_t count, const int32_t* key, int64_t low,
                         int64_t high, Sums sums, Backward& w) {
    const Layout& layout = *p.layout;
    const int64_t panels = make_panels(p, token, count - lone(p, count), w.panel);
    int64_t all = 0;
    for (int64_t i = 0; i < panels; ++i) all += w.panel[i].lanes();
    for (int64_t from = low; from < high; from += BLOCK) {
        const int64_t n = high - from < BLOCK ? high - from : BLOCK;
        for (int64_t i = 0, at = 0; i < panels; at += w.panel[i++].lanes()) {
            const Panel& panel = w.panel[i];
            const real* d = w.total + from * all + at * n;
            for (int64_t j = 0; j < n; ++j, d += panel.lanes()) {
                const int32_t other = key[from + j];
                real* to = sums.table - layout.key_place[other];
                for (int64_t l = 0; l < panel.count; ++l) {
                    const bool query = l >= panel.prefix, placed = other >= layout.key_prefix;
                    if (query && placed) to[layout.query_place[panel.token[l]]] += d[l];
                    else sums.rows[query ? 1 : placed ? 0 : 2] += d[l];
                }
            }
        }
    }
}

// A chunk of queries against the keys [low, high) of their cell: adds to dk, dv and the table, writes dq.
inline void chunk(const Problem& p, int64_t sample, int64_t head, const int32_t* token, int64_t count,
                  const int32_t* key, int64_t low, int64_t high, bool again, Rows dq, Dtype dtype, Sums sums,
                  Backward& w) {
    const int64_t kv = head / (p.heads / p.kv_heads), few = lone(p, count), many = count - few;
    const int64_t panels = again ? moved(token, many, w.panel) : make_panels(p, token, many, w.panel);
    const bool seeded = p.table || p.query_id.data || p.layout->orders, kept = summed(p);
    prepare(p, sample, head, panels, w);
    int64_t all = 0;
    for (int64_t i = 0; i < panels; ++i) all += w.panel[i].lanes();
    for (int64_t i = 0; i < panels; ++i) w.begun[i] = false;
    Learner single[FEW + 1] = {};
    for (int64_t i = 0; i < few; ++i) single[i] = prepared(p, sample, head, token + many + i, all + i, w);
    for (int64_t from = low; from < high; from += BLOCK) {
        gather_keys(p, sample, key + from, high - from < BLOCK ? high - from : BLOCK, w.keys);
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
        const int64_t more = w.keys.token == key + from ? high - from - n : 0;
        read_rows(p.dtype, p.k, offset(p.k, sample, kv, 0), w.keys.token, n, p.head_dim, p.head_dim, w.k, more);
        read_rows(p.dtype, p.v, offset(p.v, sample, kv, 0), w.keys.token, n, p.value_dim, p.value_dim, w.v, more);
        for (int64_t i = 0, at = 0; i < panels; at += w.panel[i++].lanes()) {
            if (w.seen[i] == Sight::none) continue;
            const Panel& panel = w.panel[i];
            const int64_t lanes = panel.lanes();
            const int64_t corner = kept ? from * all + at * n : 0;  // of this part of the cell's scores
            Seeds start;
            if (seeded)
                start = seeds_of(p, sample, head, panel, w.keys, w.seen[i], kept, again, w.seed + corner, w.row);
            product<true>(n, panel.vectors, p.head_dim, {w.k, p.head_dim, 1}, {w.qt + at * p.head_dim, lanes},
                          {w.s, lanes}, seeded ? Into::seeded : Into::fresh, w.ahead, seeded ? &start : nullptr);
            product<true>(n, panel.vectors, p.value_dim, {w.v, p.value_dim, 1}, {w.ot + at * p.value_dim, lanes},
                          {w.d, lanes}, Into::fresh, w.ahead);
            if (p.dropout > 0) drop(p, sample, head, panel, w.keys, w.d, lanes);
            if (sums.table && !kept)
                harden<true>(panel, w.keys, w.lse + at, w.delta + at, sums.table, w.s, w.d);
            else
                harden<false>(panel, w.keys, w.lse + at, w.delta + at, nullptr, w.s, w.d);
            if (p.dropout > 0) drop(p, sample, head, panel, w.keys, w.s, lanes);
            product<true>(n, w.tall / LANES, panel.count, {w.s, lanes, 1}, {w.o + at * w.tall, w.tall},
                          {w.dv + from * w.tall, w.tall}, Into::added, w.ahead);
            product<true>(n, w.wide / LANES, panel.count, {w.d, lanes, 1}, {w.q + at * w.wide, w.wide},
                          {w.dk + from * w.wide, w.wide}, Into::added, w.ahead);
            product<false>(p.head_dim, panel.vectors, n, {w.k, 1, p.head_dim}, {w.d, lanes},
                           {w.dq + at * p.head_dim, lanes}, w.begun[i] ? Into::added : Into::fresh, w.ahead);
            w.begun[i] = true;
            if (!sums.table) continue;
            if (kept) gain(n * lanes, w.d, again, w.total + corner);
            else collect_prefix(panel, w.keys, w.d, sums.rows);
        }
        for (int64_t i = 0; i < few; ++i)
            alone(p, sample, head, sums, w.dk + from * w.wide, w.dv + from * w.tall, w, single[i]);
    }
    for (int64_t i = 0; i < few; ++i) {
        Learner& one = single[i];
        if (!one.begun) fill(one.dq, 0, p.head_dim, 0);
        for (int64_t c = 0; c < p.head_dim; c += LANES) store(one.dq + c, load(one.dq + c) * real(p.scale));
        write_row(dtype, dq, offset(dq, sample, head, *one.query.token), p.head_dim, one.dq);
    }
    for (int64_t l = 0; l < CHUNK; ++l) w.ones[l] = real(p.scale);
    for (int64_t i = 0, at = 0; i < panels; at += w.panel[i++].lanes()) {
        if (!w.begun[i]) fill(w.dq + at * p.head_dim, 0, w.panel[i].lanes() * p.head_dim, 0);
        write_lanes(dtype, dq, offset(dq, sample, head, 0), w.panel[i].token, w.panel[i].count, w.panel[i].lanes(),
                    p.head_dim, w.ones, w.lines, w.dq + at * p.head_dim);
    }
}

}  // namespace
