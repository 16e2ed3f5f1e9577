// out = softmax_keys(scale · q kᵀ + bias) v, a panel of queries against a block of keys at a time.
//
// Lanes are queries: S, P and O stand transposed, [key or channel][query], so that softmax is plain vector arithmetic
// down a column, a bias is a slice of the table along the queries, and no head_dim is wasted on padding.
#pragma once

#include "attention/chunk.h"
#include "attention/softmax.h"
#include "attention/units.h"

namespace {

struct Forward : Workspace {
    real *q, *o, *top, *sum;
    Units units;

    Forward(const Problem& p, Arena& arena)
        : Workspace(p, round_up_to_lanes(p.head_dim > p.value_dim ? p.head_dim : p.value_dim), false, arena),
          q(arena.allocate<real>(CHUNK * p.head_dim)), o(arena.allocate<real>(CHUNK * p.value_dim)),
          top(arena.allocate<real>(CHUNK)), sum(arena.allocate<real>(CHUNK)), units(p, arena) {}
};

struct SingleForward : SingleRow {
    real *o, top, sum;
};

// --- single rows ----------------------------------------------------------------------------------------------------

inline SingleForward read_single(const Problem& p, const Chunk& chunk, int64_t i, Forward& w) {
    const int32_t* token = chunk.query + chunk.queries - w.singles + i;
    const int64_t at = w.lanes() + i;
    real *q = w.q + at * p.head_dim, *content = p.vectors ? w.content.lanes + at * p.head_dim : nullptr;
    const auto rows = [&](const Rows& of) { return rows_of(p.dtype, of, chunk.sample, chunk.head, token, 1); };
    read_row(rows(p.q), 0, p.head_dim, real(p.scale) * LOG2E, q);
    if (content) read_row(rows(content_rows(p)), 0, p.head_dim, real(p.content_scale) * LOG2E, content);
    return {single_row(p, token, q, content), w.o + at * p.value_dim, 0, 0};
}

// The same steps as forward_panel.
inline void forward_single(const Problem& p, const Chunk& chunk, Forward& w, SingleForward& one) {
    if (one.seen == Visibility::none) return;
    single_row_bias(p, chunk.sample, chunk.head, one, w.keys, w.content, w.s);
    add_dot_products(w.keys.count, p.head_dim, one.q, w.k, w.s);
    single_row_softmax(w.keys.count, w.s, one.top, one.sum, p.value_dim, one.o, !one.begun);
    if (p.dropout > 0) drop_weights(p, chunk.sample, chunk.head, one.query, w.keys, w.s, 1);
    weighted_sum(w.keys.count, p.value_dim, w.s, w.v, one.o, one.begun);
    one.begun = true;
}

inline void write_single(const Problem& p, const Chunk& chunk, const SingleForward& one) {
    const bool empty = !one.begun || one.sum == 0;
    const real share = empty ? real(0) : real(1) / one.sum;
    if (!one.begun) fill(one.o, 0, p.value_dim, 0);
    for (int64_t c = 0; c < p.value_dim; c += LANES) store(one.o + c, load(one.o + c) * share);
    write_row(rows_of(p.dtype, p.out, chunk.sample, chunk.head, one.query.token, 1), 0, p.value_dim, one.o);
    real* lse = static_cast<real*>(p.lse) + (chunk.sample * p.heads + chunk.head) * p.layout->queries;
    lse[*one.query.token] = empty ? -INF : LN2 * (one.top + log2(broadcast(one.sum))[0]);
}

// --- panels ---------------------------------------------------------------------------------------------------------

inline void read_panel(const Problem& p, const Chunk& chunk, int64_t i, Forward& w) {
    const Panel& panel = w.panel[i];
    real* q = w.q + w.lane[i] * p.head_dim;
    read_lanes(rows_of(p.dtype, p.q, chunk.sample, chunk.head, panel.token, panel.count), panel.lanes(), p.head_dim,
               w.units.on ? real(1) : real(p.scale) * LOG2E, w.lines, q);
    if (w.units.on) w.units.queries(p, w.lane[i], panel.lanes(), q);
    if (p.vectors) read_content(p, chunk, i, w);
}

// The terms of panel i that the block at hand needs.
inline void hold_terms(const Problem& p, const Chunk& chunk, int64_t i, Forward& w) {
    for (int64_t a = 0; a < w.content.axes; ++a) {
        PanelAxis& of = w.content.axis(i, a);
        if (holds(of, w.content.block[a])) continue;
        of.held = next_stretch(p, a, of, w.content);
        make_terms(p, w.panel[i], a, chunk.head, w.content.lanes + w.lane[i] * p.head_dim, w.prefetches, of);
    }
}

// Panel i against the block at hand, which begins at key `from` of the cell.
inline void forward_panel(const Problem& p, const Chunk& chunk, int64_t i, int64_t from, Forward& w) {
    const Panel& panel = w.panel[i];
    const int64_t n = w.keys.count, lanes = panel.lanes();
    real *q = w.q + w.lane[i] * p.head_dim, *o = w.o + w.lane[i] * p.value_dim;
    // 3 scores
    Seeds bias;
    const Seeds* seeds = nullptr;
    if (has_bias_or_mask(p)) {
        const int64_t place = chunk.kept ? w.place_in_cell(i, from) : 0;
        const Meeting meeting{p, chunk.sample, chunk.head, panel, w.keys, w.seen[i], w.content, i};
        if (p.vectors) hold_terms(p, chunk, i, w);
        bias = make_seeds(meeting, chunk.kept, chunk.again, w.bias + place, w.seed_row);
        seeds = &bias;
    }
    if (w.units.on)
        w.units.scores(p, n, w.lane[i], panel.vectors, seeds, w.prefetches, w.s);
    else
        multiply<true>(n, panel.vectors, p.head_dim, {w.k, p.head_dim, 1}, {q, lanes}, {w.s, lanes},
                       seeds ? Into::seeded : Into::fresh, w.prefetches, seeds);
    // 4 softmax
    softmax_block(panel.vectors, n, w.s,
                  {w.top + i * PANEL_LANES, w.sum + i * PANEL_LANES, o, p.value_dim, !w.begun[i]});
    if (p.dropout > 0) drop_weights(p, chunk.sample, chunk.head, panel, w.keys, w.s, lanes);
    // 5 O += P V
    if (w.units.on)
        w.units.values(p, n, panel.vectors, w.s, w.begun[i], w.prefetches, o);
    else
        multiply<false>(p.value_dim, panel.vectors, n, {w.v, 1, p.value_dim}, {w.s, lanes}, {o, lanes},
                        w.begun[i] ? Into::added : Into::fresh, w.prefetches);
    w.begun[i] = true;
}

// Divide by the sums and write; a query that saw nothing gives zeros and a log-sum-exp of -inf.
inline void write_panel(const Problem& p, const Chunk& chunk, int64_t i, Forward& w) {
    const Panel& panel = w.panel[i];
    const int64_t lanes = panel.lanes();
    const real *top = w.top + i * PANEL_LANES, *sum = w.sum + i * PANEL_LANES;
    real *o = w.o + w.lane[i] * p.value_dim, share[PANEL_LANES], measure[PANEL_LANES];
    for (int64_t l = 0; l < lanes; l += LANES) {
        const vec total = w.begun[i] ? load(sum + l) : vec{};
        const ivec empty = total == 0;
        store(share + l, empty ? vec{} : real(1) / total);
        store(measure + l, empty ? broadcast(-INF) : LN2 * (load(top + l) + log2(total)));
    }
    if (!w.begun[i]) fill(o, 0, lanes * p.value_dim, 0);
    write_lanes(rows_of(p.dtype, p.out, chunk.sample, chunk.head, panel.token, panel.count), lanes, p.value_dim, share,
                w.lines, o);
    real* lse = static_cast<real*>(p.lse) + (chunk.sample * p.heads + chunk.head) * p.layout->queries;
    for (int64_t l = 0; l < panel.count; ++l) lse[panel.token[l]] = measure[l];
}

// --- a chunk --------------------------------------------------------------------------------------------------------

// Note the rows that this chunk will write, and those that the next small cell will read: products fetch them.
inline void prefetch_forward(const Problem& p, const Chunk& chunk, const Chunk& next, Prefetches& prefetches) {
    prefetches.clear();
    if (next.queries == 0 || !has_scattered_rows(p)) return;
    prefetch_rows(chunk.queries_of(p, p.out), p.value_dim, prefetches);
    prefetch_rows(next.queries_of(p, p.q), p.head_dim, prefetches);
    prefetch_rows(rows_of(p.dtype, p.k, next.sample, next.kv, next.key, next.high), p.head_dim, prefetches);
    prefetch_rows(rows_of(p.dtype, p.v, next.sample, next.kv, next.key, next.high), p.value_dim, prefetches);
}

inline void forward_chunk(const Problem& p, const Chunk& chunk, const Chunk& next, Forward& w) {
    // 1 queries into panels; a few that would have a vector to themselves stay single rows
    place_queries(p, chunk, w);
    for (int64_t i = 0; i < w.panels; ++i) read_panel(p, chunk, i, w);
    SingleForward single[MAX_SINGLES + 1] = {};
    for (int64_t i = 0; i < w.singles; ++i) single[i] = read_single(p, chunk, i, w);
    prefetch_forward(p, chunk, next, w.prefetches);

    const int64_t blocks = (chunk.high + BLOCK - 1) / BLOCK;
    for (int64_t block = 0, from = 0, size; block < blocks; ++block, from += size) {
        // 2 keys of this block; skip if nothing is visible
        size = (chunk.high - from + (blocks - block) - 1) / (blocks - block);
        if (!see_block(p, chunk, from, size, single, w)) continue;
        read_block(p, chunk, from, !w.units.on || w.singles, w);  // matrix units read their own keys
        if (w.units.on) w.units.keys(p, chunk.sample, chunk.kv, w.keys, w.v);
        // 3 scores   4 softmax   5 O += P V
        for (int64_t i = 0; i < w.panels; ++i)
            if (w.seen[i] != Visibility::none) forward_panel(p, chunk, i, from, w);
        for (int64_t i = 0; i < w.singles; ++i) forward_single(p, chunk, w, single[i]);
    }

    // 6 divide by the sums of weights and write
    for (int64_t i = 0; i < w.singles; ++i) write_single(p, chunk, single[i]);
    for (int64_t i = 0; i < w.panels; ++i) write_panel(p, chunk, i, w);
}

}  // namespace
