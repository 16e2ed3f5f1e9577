// The backward pass as items of work, whose gradients gradient.h computes.
//
// An item is one key head with a range of (sample, cell) pairs, or a range of keys where pairs are few. How many items
// there are never depends on threads. What several items add to (the table, and queries when keys are split) goes into
// partial sums that belong to them, and these are added in the order of items: the same bits for any number of threads.
#pragma once

#include "gradient.h"

namespace {

struct Division {               // of the backward pass into items
    int64_t ranges, splits;     // of (sample, cell) pairs, and of the keys of a pair
    int64_t table, queries;     // numbers in an item's partial sums: of the table, and of all queries per split
    int64_t group;              // query heads per key head
    int64_t items(const Problem& p) const { return p.kv_heads * ranges * splits; }
};

constexpr int64_t MARGIN = 4 * LANES;  // what slices may hang over, before and after a head's table

inline Division division(const Problem& p) {
    const Layout& layout = *p.layout;
    const int64_t pairs = p.batch * layout.cells;
    Division d{pairs < RANGES ? pairs : RANGES, 1, 0, 0, p.kv_heads ? p.heads / p.kv_heads : 0};
    if (layout.shared_keys) d.ranges = p.batch;
    else if (layout.cells == 1 && pairs * p.kv_heads < RANGES && pairs * p.kv_heads > 0) {
        const int64_t blocks = (layout.key_start[1] + BLOCK - 1) / BLOCK, wanted = RANGES / (pairs * p.kv_heads);
        d.splits = blocks < wanted ? (blocks ? blocks : 1) : wanted;
    }
    if (p.dtable) d.table = d.group * (p.entries + 2 * MARGIN);
    if (p.dtable) d.table += d.group * padded(3);  // three learned rows
    if (d.splits > 1) d.queries = p.batch * p.heads * layout.queries * p.head_dim;
    return d;
}

// What was summed for the keys [low, high) of a cell, out to dk and dv: zeros for keys that are not there.
inline void settle(const Problem& p, int64_t sample, int64_t kv, const int32_t* key, int64_t low, int64_t high,
                   Backward& w) {
    const int64_t dk = offset(p.dk, sample, kv, 0), dv = offset(p.dv, sample, kv, 0);
    for (int64_t from = low; from < high; from += BLOCK) {
        const int64_t size = high - from < BLOCK ? high - from : BLOCK;
        gather_keys(p, sample, key + from, size, w.keys);
        for (int64_t j = 0, found = 0; j < size; ++j) {
            const int64_t token = key[from + j];
            const bool there = found < w.keys.count && w.keys.token[found] == token;
            real *rk = w.dk + (from + found) * w.wide, *rv = w.dv + (from + found) * w.tall;
            if (there) {
                for (int64_t c = 0; c < p.head_dim; ++c) rk[c] *= real(p.scale);
                ++found;
            } else {
                rk = rv = w.lines;
                fill(w.lines, 0, w.wide > w.tall ? w.wide : w.tall, 0);
            }
            if (p.layout->shared_keys) {
                for (int64_t c = 0; c < w.wide; ++c) w.shared_k[token * w.wide + c] += rk[c];
                for (int64_t c = 0; c < w.tall; ++c) w.shared_v[token * w.tall + c] += rv[c];
            } else {
                write_row(p.dtype, p.dk, dk + token * p.dk.token, p.head_dim, rk);
                write_row(p.dtype, p.dv, dv + token * p.dv.token, p.value_dim, rv);
            }
        }
    }
}

inline void settle_shared(const Problem& p, int64_t sample, int64_t kv, Backward& w) {
    for (int64_t j = 0; j < p.layout->keys; ++j) {
        write_row(p.dtype, p.dk, offset(p.dk, sample, kv, j), p.head_dim, w.shared_k + j * w.wide);
        write_row(p.dtype, p.dv, offset(p.dv, sample, kv, j), p.value_dim, w.shared_v + j * w.tall);
    }
}

// Rows of a small cell: read by the next pair, or written by this one.
inline void expected(const Problem& p, int64_t pair, int64_t head, int64_t kv, bool read, Ahead& ahead) {
    const Layout& layout = *p.layout;
    const int64_t sample = pair / layout.cells, c = pair % layout.cells;
    const int32_t *query = layout.query + layout.query_start[c], *key = layout.key + layout.key_start[c];
    const int64_t queries = layout.query_start[c + 1] - layout.query_start[c],
                  keys = layout.key_start[c + 1] - layout.key_start[c];
    if (read) {
        expect(p.dtype, p.q, offset(p.q, sample, head, 0), query, queries, p.head_dim, ahead);
        expect(p.dtype, p.dout, offset(p.dout, sample, head, 0), query, queries, p.value_dim, ahead);
        expect(p.dtype, p.out, offset(p.out, sample, head, 0), query, queries, p.value_dim, ahead);
    } else {
        expect(p.dtype, p.dq, offset(p.dq, sample, head, 0), query, queries, p.head_dim, ahead);
    }
    expect(p.dtype, read ? p.k : p.dk, offset(read ? p.k : p.dk, sample, kv, 0), key, keys, p.head_dim, ahead);
    expect(p.dtype, read ? p.v : p.dv, offset(read ? p.v : p.dv, sample, kv, 0), key, keys, p.value_dim, ahead);
}

INLINE bool same(const Layout& layout, int64_t pair, int64_t other) {  // a kind of cell
    return layout.kind[pair % layout.cells] == layout.kind[other % layout.cells];
}

// One item: a key head, a range of pairs, a split of their keys.
inline void item(const Problem& p, const Division& by, int64_t number, Backward& w) {
    const Layout& layout = *p.layout;
    const int64_t split = number % by.splits, range = number / by.splits % by.ranges,
                  kv = number / by.splits / by.ranges, pairs = p.batch * layout.cells;
    real* own = static_cast<real*>(p.partial) + number * by.table;
    fill(own, 0, by.table, 0);
    Rows dq = p.dq;
    if (by.splits > 1) {
        dq.data = static_cast<real*>(p.partial) + by.items(p) * by.table + split * by.queries;
        dq.channel = 1, dq.token = p.head_dim, dq.head = layout.queries * dq.token, dq.batch = p.heads * dq.head;
    }
    const int64_t begin = pairs * range / by.ranges, end = pairs * (range + 1) / by.ranges;
    for (int64_t pair = begin; pair < end; ++pair) {
        const int64_t sample = pair / layout.cells, c = pair % layout.cells, first = layout.query_start[c],
                      queries = layout.query_start[c + 1] - first, keys = layout.key_start[c + 1] - layout.key_start[c];
        const int32_t* key = layout.key + layout.key_start[c];
        const int64_t size = chunk_size(queries), low = keys * split / by.splits, high = keys * (split + 1) / by.splits;
        if (layout.shared_keys && c == 0)
            fill(w.shared_k, 0, layout.keys * w.wide, 0), fill(w.shared_v, 0, layout.keys * w.tall, 0);
        fill(w.dk, low * w.wide, high * w.wide, 0), fill(w.dv, low * w.tall, high * w.tall, 0);
        // One head a time stays with a kind of cell: seeds and sums of another head would have to be kept as well.
        const bool kept = summed(p) && by.group == 1, again = kept && pair > begin && same(layout, pair, pair - 1);
        w.ahead.count = w.ahead.next = 0;
        if (scattered(p) && layout.longest <= CHUNK && pair + 1 < end) {
            expected(p, pair, kv * by.group, kv, false, w.ahead);
            expected(p, pair + 1, kv * by.group, kv, true, w.ahead);
        }
        for (int64_t g = 0; g < by.group; ++g) {
            real* table = p.dtable ? own + g * (p.entries + 2 * MARGIN) + MARGIN : nullptr;
            const Sums sums{table, own + by.group * (p.entries + 2 * MARGIN) + g * padded(3)};
            for (int64_t from = 0; from < queries; from += size)
                chunk(p, sample, kv * by.group + g, layout.query + first + from,
                      queries - from < size ? queries - from : size, key, low, high, again, dq,
                      by.splits > 1 ? OWN : p.dtype, sums, w);
            const bool last = !kept || pair + 1 == end || !same(layout, pair, pair + 1);
            if (summed(p) && table && last) collect_kind(p, layout.query + first, queries, key, low, high, sums, w);
        }
        settle(p, sample, kv, key, low, high, w);
        if (layout.shared_keys && c == layout.cells - 1) settle_shared(p, sample, kv, w);
    }
}

// Partial sums of one head, in the order of items.
inline void add_up(const Problem& p, const Division& by, int64_t head) {
    const int64_t kv = head / by.group, g = head % by.group, items = by.ranges * by.splits;
    const real* partial = static_cast<const real*>(p.partial);
    if (p.dtable) {
        real* to = static_cast<real*>(p.dtable) + head * p.entries;
        real rows[3] = {};
        fill(to, 0, p.entries, 0);
        for (int64_t i = 0; i < items; ++i) {
            const real* own = partial + (kv * items + i) * by.table;
            const real* from = own + g * (p.entries + 2 * MARGIN) + MARGIN;
            for (int64_t x = 0; x < p.entries; ++x) to[x] += from[x];
            for (int r = 0; r < 3; ++r) rows[r] += own[by.group * (p.entries + 2 * MARGIN) + g * padded(3) + r];
        }
        for (int r = 0; r < 3 && p.dprefix_bias; ++r) static_cast<real*>(p.dprefix_bias)[r * p.heads + head] = rows[r];
    }
    if (by.splits == 1) return;
    const real* splits = partial + by.items(p) * by.table;
    const int64_t width = p.head_dim;
    for (int64_t b = 0; b < p.batch; ++b)
        for (int64_t i = 0; i < p.layout->queries; ++i) {
            const int64_t row = ((b * p.heads + head) * p.layout->queries + i) * width;
            real* sum = const_cast<real*>(splits) + row;  // the first split takes the others in
            for (int64_t s = 1; s < by.splits; ++s)
                for (int64_t c = 0; c < width; ++c) sum[c] += splits[s * by.queries + row + c];
            write_row(p.dtype, p.dq, offset(p.dq, b, head, i), width, sum);
        }
}

}  // namespace
