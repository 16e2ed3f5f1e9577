// The gradient of the table: where each dS is added, before an item's sums and those of others are added up
// (backward_items.h, add_partial_sums).
//
//     softmax_backward (softmax.h)   vector by vector, to the slices of an item's own table, for most problems
//     sum_over_kind, add_kind        where an item has many small cells of a kind: dS is summed over the cells first
//     add_prefix_gradients           what tokens without a place meet: three numbers per head
//     single_row_table_gradient (single_row.h)   the same for a single row
#pragma once

#include "attention/chunk.h"
#include "attention/content_gradient.h"

namespace {

struct TableSums {           // one head's, of this item; null if nobody learns the table
    real *table, *prefix;    // prefix[QUERY_PREFIX, KEY_PREFIX, BOTH_PREFIX]
};

INLINE int which_prefix(bool query, bool key) {
    return query && key ? locant::BOTH_PREFIX : key ? locant::KEY_PREFIX : locant::QUERY_PREFIX;
}

inline void add_prefix_gradients(const Panel& panel, const Keys& keys, const real* d, real* prefix) {
    if (keys.prefix == 0 && panel.prefix == 0) return;
    for (int64_t j = 0; j < keys.count; ++j)
        for (int64_t l = 0; l < panel.count; ++l) {
            const bool query = l < panel.prefix, key = j < keys.prefix;
            if (query || key) prefix[which_prefix(query, key)] += d[j * panel.lanes() + l];
        }
}

// Add dS of a cell to those of the cells of its kind before it, or begin with it.
INLINE void sum_over_kind(int64_t count, const real* d, bool begun, real* total) {
    if (begun)
        for (int64_t x = 0; x < count; x += LANES) store(total + x, load(total + x) + load(d + x));
    else
        for (int64_t x = 0; x < count; x += LANES) store(total + x, load(d + x));
}

// Add what was summed over cells of a kind to the table, number by number: it happens once for many cells, and slices
// of neighbouring keys overlap, so that vectors would wait for each other's stores. `chunk` is the last of the cells.
inline void add_kind(const Problem& p, const Chunk& chunk, const real* total, Panel* panel, TableSums sums) {
    const Layout& layout = *p.layout;
    const int64_t panels = make_panels(p, chunk.query, chunk.queries - single_rows(p, chunk.queries, true), panel);
    int64_t lanes = 0;
    for (int64_t i = 0; i < panels; ++i) lanes += panel[i].lanes();
    for (int64_t from = chunk.low; from < chunk.high; from += BLOCK) {
        const int64_t n = chunk.high - from < BLOCK ? chunk.high - from : BLOCK;
        const real* d = total + from * lanes;
        for (int64_t i = 0; i < panels; ++i)
            for (int64_t j = 0; j < n; ++j, d += panel[i].lanes()) {
                const int32_t key = chunk.key[from + j];
                const bool of_prefix = key < layout.key_prefix;
                real* to = sums.table - layout.key_place[key];
                for (int64_t l = 0; l < panel[i].count; ++l)
                    if (l < panel[i].prefix || of_prefix)
                        sums.prefix[which_prefix(l < panel[i].prefix, of_prefix)] += d[l];
                    else
                        to[layout.query_place[panel[i].token[l]]] += d[l];
            }
    }
}

}  // namespace
