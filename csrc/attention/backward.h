// The gradients of a chunk of queries, from q, k, v, out and the log-sum-exp alone: scores and weights are computed
// again, block by block.
//
//     P = 2^(S - lse)            dV = Pᵀ dO
//     dP = dO Vᵀ                 dS = P ∘ (dP - δ),  δ = Σ_channels dO ∘ O - dlse
//     dQ = scale · dS K          dK = scale · dSᵀ Q          d table[query - key] = Σ dS
//
// As in the forward pass lanes are queries, and S, P, dP and dS stand transposed. Steps have the forward's numbers.
#pragma once

#include "attention/softmax.h"
#include "attention/table_gradient.h"

namespace {

constexpr int64_t RANGES = 16;  // work items per key head, at most, and in all, at least, if the work can be cut so

struct Backward : Workspace {
    int64_t wide, tall;            // head_dim and value_dim, in whole vectors: the widths of rows
    real *q, *q_lanes;             // the chunk's queries as rows, and as lanes, scaled and in units of log 2
    real *dout, *dout_lanes;
    real *content_rows, *dcontent; // what meets vectors as rows, scaled; its gradient as lanes
    real *dq, *lse, *delta;
    real *scale, *content_scale, *one;  // factors of rows, as lanes
    real *d;                       // dP, then dS, of a panel and a block
    real *total;                   // dS, summed over cells of a kind
    real *dk, *dv;                 // of the cell
    real *shared_dk, *shared_dv;   // of all keys, where several cells add to them

    Backward(const Problem& p, Arena& arena)
        : Workspace(p, round_up_to_lanes(p.head_dim > p.value_dim ? p.head_dim : p.value_dim), true, arena),
          wide(round_up_to_lanes(p.head_dim)), tall(round_up_to_lanes(p.value_dim)) {
        const Layout& layout = *p.layout;
        q = arena.allocate<real>(CHUNK * wide), q_lanes = arena.allocate<real>(CHUNK * p.head_dim);
        dout = arena.allocate<real>(CHUNK * tall), dout_lanes = arena.allocate<real>(CHUNK * p.value_dim);
        dq = arena.allocate<real>(CHUNK * p.head_dim), lse = arena.allocate<real>(CHUNK);
        delta = arena.allocate<real>(CHUNK), scale = arena.allocate<real>(CHUNK);
        content_scale = arena.allocate<real>(CHUNK), one = arena.allocate<real>(CHUNK);
        content_rows = arena.allocate<real>(p.vectors ? CHUNK * wide : 0);
        dcontent = arena.allocate<real>(p.vectors ? CHUNK * p.head_dim : 0);
        d = arena.allocate<real>(BLOCK * PANEL_LANES);
        total = arena.allocate<real>(shares_bias(p, RANGES) ? kept_scores(layout) : 0);
        dk = arena.allocate<real>(layout.longest_keys * wide), dv = arena.allocate<real>(layout.longest_keys * tall);
        const int64_t shared = layout.shared_keys ? layout.keys : 0;
        shared_dk = arena.allocate<real>(shared * wide), shared_dv = arena.allocate<real>(shared * tall);
        for (int64_t l = 0; arena.at && l < CHUNK; ++l)
            scale[l] = real(p.scale), content_scale[l] = real(p.content_scale), one[l] = 1;
    }
};

struct BackwardTarget {  // of a chunk
    Rows dq;             // that of the problem, or an item's own partial sums
    Rows dcontent;       // likewise; null: it is part of dq
    Dtype dtype;
    TableSums sums;
    ContentSums content;
};

struct SingleBackward : SingleRow {
    real *unscaled, *dout, *dq, lse, delta;
};

// A log-sum-exp in units of log 2; +inf where nothing was seen, which makes weights of 0.
INLINE real lse_in_log2(real lse) { return lse == -INF ? INF : lse * LOG2E; }

// --- single rows ----------------------------------------------------------------------------------------------------

inline SingleBackward read_single(const Problem& p, const Chunk& chunk, int64_t i, Backward& w) {
    const int32_t* token = chunk.query + chunk.queries - w.singles + i;
    const int64_t at = w.lanes() + i, row = (chunk.sample * p.heads + chunk.head) * p.layout->queries + *token;
    const auto rows = [&](const Rows& x) { return rows_of(p.dtype, x, chunk.sample, chunk.head, token, 1); };
    SingleBackward one{single_row(p, token, w.q_lanes + at * p.head_dim, nullptr), w.q + at * w.wide,
                       w.dout + at * w.tall, w.dq + at * p.head_dim,
                       lse_in_log2(static_cast<const real*>(p.lse)[row]), 0};
    read_row(rows(p.q), 0, p.head_dim, real(1), one.unscaled);
    for (int64_t c = 0; c < p.head_dim; c += LANES) store(one.q + c, load(one.unscaled + c) * (real(p.scale) * LOG2E));
    read_row(rows(p.dout), 0, p.value_dim, real(1), one.dout);
    read_row(rows(p.out), 0, p.value_dim, real(1), w.lines);
    vec sum{};
    for (int64_t c = 0; c < p.value_dim; c += LANES) sum += load(one.dout + c) * load(w.lines + c);
    one.delta = reduce_lanes(sum, [](vec a, vec b) INLINE_LAMBDA { return a + b; })[0];
    if (p.dlse) one.delta -= static_cast<const real*>(p.dlse)[row];
    return one;
}

// The same steps as backward_panel.
inline void backward_single(const Problem& p, const Chunk& chunk, int64_t from, TableSums sums, Backward& w,
                            SingleBackward& one) {
    if (one.seen == Visibility::none) return;
    const int64_t n = w.keys.count;
    real *dk = w.dk + from * w.wide, *dv = w.dv + from * w.tall;
    single_row_bias(p, chunk.sample, chunk.head, one, w.keys, w.content, w.s);
    add_dot_products(n, p.head_dim, one.q, w.k, w.s);
    fill(w.d, 0, round_up_to_lanes(n), 0);
    add_dot_products(n, p.value_dim, one.dout, w.v, w.d);
    if (p.dropout > 0) drop_weights(p, chunk.sample, chunk.head, one.query, w.keys, w.d, 1);
    single_row_softmax_backward(n, one.lse, one.delta, w.s, w.d);
    if (sums.table) single_row_table_gradient(p, one.query, w.keys, w.d, sums.table, sums.prefix);
    if (p.dropout > 0) drop_weights(p, chunk.sample, chunk.head, one.query, w.keys, w.s, 1);
    multiply<true>(n, w.tall / LANES, 1, {w.s, 1, 1}, {one.dout, w.tall}, {dv, w.tall}, Into::added, w.prefetches);
    multiply<true>(n, w.wide / LANES, 1, {w.d, 1, 1}, {one.unscaled, w.wide}, {dk, w.wide}, Into::added, w.prefetches);
    weighted_sum(n, p.head_dim, w.d, w.k, one.dq, one.begun);
    one.begun = true;
}

inline void write_single(const Problem& p, const Chunk& chunk, const BackwardTarget& target,
                         const SingleBackward& one) {
    if (!one.begun) fill(one.dq, 0, p.head_dim, 0);
    for (int64_t c = 0; c < p.head_dim; c += LANES) store(one.dq + c, load(one.dq + c) * real(p.scale));
    write_row(rows_of(target.dtype, target.dq, chunk.sample, chunk.head, one.query.token, 1), 0, p.head_dim, one.dq);
}

// --- panels ---------------------------------------------------------------------------------------------------------

// delta[i] = Σ_channels dO[i] · O[i] for rows `width` apart, whole vectors.
INLINE void write_delta(const real* dout, const real* out, int64_t n, int64_t lanes, int64_t width, real* delta) {
    for (int64_t i = 0; i < lanes; i += LANES) {
        vec square[LANES];
        UNROLL(r, LANES) {
            square[r] = vec{};
            if (i + r < n)
                for (int64_t c = 0; c < width; c += LANES)
                    square[r] += load(dout + (i + r) * width + c) * load(out + (i + r) * width + c);
        }
        transpose(square);
        vec sum = square[0];
        UNROLL(r, LANES) if (r > 0) sum += square[r];
        store(delta + i, sum);
    }
}

// The rows of panel i, `more` queries after it: q and dO as rows and as lanes, and what its weights are measured by.
inline void read_panel(const Problem& p, const Chunk& chunk, int64_t i, int64_t more, Backward& w) {
    const Panel& panel = w.panel[i];
    const int64_t at = w.lane[i], n = panel.count, lanes = panel.lanes(), wide = w.wide, tall = w.tall,
                  first = (chunk.sample * p.heads + chunk.head) * p.layout->queries;
    const auto rows = [&](const Rows& x) { return rows_of(p.dtype, x, chunk.sample, chunk.head, panel.token, n); };
    real *q = w.q + at * wide, *dout = w.dout + at * tall, *own = w.lse + at, *delta = w.delta + at;
    const auto *lse = static_cast<const real*>(p.lse), *dlse = static_cast<const real*>(p.dlse);
    read_rows(rows(p.q), p.head_dim, wide, q, more);
    transpose_rows([=](int64_t r) { return q + r * wide; }, n, lanes, p.head_dim, real(p.scale) * LOG2E,
                   w.q_lanes + at * p.head_dim);
    read_rows(rows(p.dout), p.value_dim, tall, dout, more);
    transpose_rows([=](int64_t r) { return dout + r * tall; }, n, lanes, p.value_dim, real(1),
                   w.dout_lanes + at * p.value_dim);
    read_rows(rows(p.out), p.value_dim, tall, w.lines, more);
    write_delta(dout, w.lines, n, lanes, tall, delta);
    if (p.vectors) {
        read_content(p, chunk, i, w);
        real* content = w.content_rows + at * wide;
        for (int64_t r = 0; r < n; ++r) {
            read_row(rows(content_rows(p)), r, p.head_dim, real(p.content_scale), content + r * wide);
            fill(content + r * wide, p.head_dim, wide, 0);
        }
        fill(w.dcontent + at * p.head_dim, 0, lanes * p.head_dim, 0);
    }
    fill(own, 0, lanes, INF);  // lanes without a query have weights of 0
    for (int64_t l = 0; l < n; ++l) {
        own[l] = lse_in_log2(lse[first + panel.token[l]]);
        if (dlse) delta[l] -= dlse[first + panel.token[l]];
    }
}

// Take the sums of panel i to the gradients of content, one axis.
inline void flush_content(const Problem& p, const Chunk& chunk, int64_t i, int64_t axis, const ContentSums& sums,
                          Backward& w) {
    flush_terms(p, w.panel[i], axis, chunk.head, w.content_rows + w.lane[i] * w.wide, w.wide, sums,
                w.dcontent + w.lane[i] * p.head_dim, w.prefetches, w.content.axis(i, axis));
}

// The terms of panel i that the block at hand needs, and sums for their gradient; those of others are taken further.
inline void hold_terms(const Problem& p, const Chunk& chunk, int64_t i, const ContentSums& sums, Backward& w) {
    for (int64_t a = 0; a < w.content.axes; ++a) {
        PanelAxis& of = w.content.axis(i, a);
        if (holds(of, w.content.block[a])) continue;
        flush_content(p, chunk, i, a, sums, w);
        of.held = next_stretch(p, a, of, w.content);
        make_terms(p, w.panel[i], a, chunk.head, w.content.lanes + w.lane[i] * p.head_dim, w.prefetches, of);
        fill(of.sum, 0, of.rows() * w.panel[i].lanes(), 0);
    }
}

// Panel i against the block at hand, which begins at key `from` of the cell.
inline void backward_panel(const Problem& p, const Chunk& chunk, int64_t i, int64_t from, const BackwardTarget& target,
                           Backward& w) {
    const Panel& panel = w.panel[i];
    const TableSums& sums = target.sums;
    const int64_t n = w.keys.count, lanes = panel.lanes(), at = w.lane[i];
    const int64_t place = chunk.kept ? w.place_in_cell(i, from) : 0;
    // 3 scores, and dP = V dO
    Seeds bias;
    const Seeds* seeds = nullptr;
    if (has_bias_or_mask(p)) {
        const Meeting meeting{p, chunk.sample, chunk.head, panel, w.keys, w.seen[i], w.content, i};
        if (p.vectors) hold_terms(p, chunk, i, target.content, w);
        bias = make_seeds(meeting, chunk.kept, chunk.again, w.bias + place, w.seed_row);
        seeds = &bias;
    }
    multiply<true>(n, panel.vectors, p.head_dim, {w.k, p.head_dim, 1}, {w.q_lanes + at * p.head_dim, lanes},
                   {w.s, lanes}, seeds ? Into::seeded : Into::fresh, w.prefetches, seeds);
    multiply<true>(n, panel.vectors, p.value_dim, {w.v, p.value_dim, 1}, {w.dout_lanes + at * p.value_dim, lanes},
                   {w.d, lanes}, Into::fresh, w.prefetches);
    // 4 softmax: P and dS, which goes to the table and to the terms
    if (p.dropout > 0) drop_weights(p, chunk.sample, chunk.head, panel, w.keys, w.d, lanes);
    if (sums.table && !chunk.kept)
        softmax_backward<true>(panel, w.keys, w.lse + at, w.delta + at, sums.table, w.s, w.d);
    else
        softmax_backward<false>(panel, w.keys, w.lse + at, w.delta + at, nullptr, w.s, w.d);
    if (p.vectors) add_terms_gradient(panel, w.keys, w.content, i, w.d);
    if (p.dropout > 0) drop_weights(p, chunk.sample, chunk.head, panel, w.keys, w.s, lanes);
    // 5 dV += Pᵀ dO   dK += dSᵀ Q   dQ += dS K
    multiply<true>(n, w.tall / LANES, panel.count, {w.s, lanes, 1}, {w.dout + at * w.tall, w.tall},
                   {w.dv + from * w.tall, w.tall}, Into::added, w.prefetches);
    multiply<true>(n, w.wide / LANES, panel.count, {w.d, lanes, 1}, {w.q + at * w.wide, w.wide},
                   {w.dk + from * w.wide, w.wide}, Into::added, w.prefetches);
    multiply<false>(p.head_dim, panel.vectors, n, {w.k, 1, p.head_dim}, {w.d, lanes},
                    {w.dq + at * p.head_dim, lanes}, w.begun[i] ? Into::added : Into::fresh, w.prefetches);
    w.begun[i] = true;
    if (!sums.table) return;  // what of dS softmax_backward has not added to the table
    if (chunk.kept) sum_over_kind(n * lanes, w.d, chunk.again, w.total + place);
    else add_prefix_gradients(panel, w.keys, w.d, sums.prefix);
}

inline void write_panel(const Problem& p, const Chunk& chunk, const BackwardTarget& target, int64_t i, Backward& w) {
    const Panel& panel = w.panel[i];
    real* dq = w.dq + w.lane[i] * p.head_dim;
    const real* scale = w.scale;
    const auto rows = [&](const Rows& x) {
        return rows_of(target.dtype, x, chunk.sample, chunk.head, panel.token, panel.count);
    };
    if (!w.begun[i]) fill(dq, 0, panel.lanes() * p.head_dim, 0);
    if (p.vectors) {
        real* dcontent = w.dcontent + w.lane[i] * p.head_dim;
        for (int64_t a = 0; a < w.content.axes; ++a) flush_content(p, chunk, i, a, target.content, w);
        if (p.content.data) {
            if (target.dcontent.data)
                write_lanes(rows(target.dcontent), panel.lanes(), p.head_dim, w.content_scale, w.lines, dcontent);
        } else {  // q has met both
            for (int64_t x = 0; x < panel.lanes() * p.head_dim; x += LANES)
                store(dq + x, load(dq + x) * real(p.scale) + load(dcontent + x) * real(p.content_scale));
            scale = w.one;
        }
    }
    write_lanes(rows(target.dq), panel.lanes(), p.head_dim, scale, w.lines, dq);
}

// --- a chunk --------------------------------------------------------------------------------------------------------

// Adds to dk, dv and the sums of the table, writes dq.
inline void backward_chunk(const Problem& p, const Chunk& chunk, const BackwardTarget& target, Backward& w) {
    // 1 queries into panels; a few that would have a vector to themselves stay single rows
    place_queries(p, chunk, w);
    int64_t more = chunk.queries - w.singles;
    for (int64_t i = 0; i < w.panels; ++i) read_panel(p, chunk, i, more -= w.panel[i].count, w);
    SingleBackward single[MAX_SINGLES + 1] = {};
    for (int64_t i = 0; i < w.singles; ++i) single[i] = read_single(p, chunk, i, w);

    for (int64_t from = chunk.low; from < chunk.high; from += BLOCK) {
        // 2 keys of this block; skip if nothing is visible
        const int64_t size = chunk.high - from < BLOCK ? chunk.high - from : BLOCK;
        if (!see_block(p, chunk, from, size, single, w)) continue;
        read_block(p, chunk, from, true, w);
        // 3 scores and dP   4 softmax   5 dV, dK and dQ
        for (int64_t i = 0; i < w.panels; ++i)
            if (w.seen[i] != Visibility::none) backward_panel(p, chunk, i, from, target, w);
        for (int64_t i = 0; i < w.singles; ++i) backward_single(p, chunk, from, target.sums, w, single[i]);
    }

    // 6 scale dQ and write
    for (int64_t i = 0; i < w.singles; ++i) write_single(p, chunk, target, single[i]);
    for (int64_t i = 0; i < w.panels; ++i) write_panel(p, chunk, target, i, w);
}

}  // namespace
