// Which keys of a block queries may see: order (ranks) and segments. Padding's keys are not in the block at all.
#pragma once

#include "attention/panel.h"

namespace {

enum class Visibility { none, some, every };  // what queries see of a block of keys

struct Range { int64_t low, high; };

INLINE Range range_of(const int64_t* value, const int32_t* token, int64_t count) {
    Range r{value[token[0]], value[token[0]]};
    for (int64_t i = 1; i < count; ++i) {
        const int64_t x = value[token[i]];
        r.low = x < r.low ? x : r.low, r.high = x > r.high ? x : r.high;
    }
    return r;
}

// Decided by ranges alone, so that blocks that nobody sees are skipped, and blocks that all see need no mask.
inline Visibility visibility(const Problem& p, int64_t sample, const Queries& queries, const Keys& keys) {
    const Layout& layout = *p.layout;
    if (keys.count == 0) return Visibility::none;
    bool every = true;
    for (int64_t o = 0; o < layout.orders; ++o) {
        const Range i = range_of(layout.query_rank + o * layout.queries, queries.token, queries.count);
        const Range j = range_of(layout.key_rank + o * layout.keys, keys.token, keys.count);
        if (j.low > i.high) return Visibility::none;
        every = every && j.high <= i.low;
    }
    if (p.query_id.data) {
        const Range i = range_of(row_of(p.query_id, sample), queries.token, queries.count);
        const Range j = range_of(row_of(p.key_id, sample), keys.token, keys.count);
        const bool bound = queries.token[0] >= p.free_queries && keys.token[0] >= p.free_keys;
        if (bound && (j.high < i.low || j.low > i.high)) return Visibility::none;
        every = every && bound && i.low == i.high && j.low == j.high;
    }
    return every ? Visibility::every : Visibility::some;
}

// Write -inf to the lanes of `scores` whose query may not see the key.
inline void mask_scores(const Problem& p, int64_t sample, const Queries& queries, int32_t key, real* scores) {
    const Layout& layout = *p.layout;
    for (int64_t o = 0; o < layout.orders; ++o) {
        const int64_t rank = layout.key_rank[o * layout.keys + key];
        const int64_t* own = layout.query_rank + o * layout.queries;
        for (int64_t l = 0; l < queries.count; ++l)
            if (own[queries.token[l]] < rank) scores[l] = -INF;
    }
    if (p.query_id.data && key >= p.free_keys) {
        const int64_t id = row_of(p.key_id, sample)[key];
        const int64_t* own = row_of(p.query_id, sample);
        for (int64_t l = 0; l < queries.count; ++l)
            if (queries.token[l] >= p.free_queries && own[queries.token[l]] != id) scores[l] = -INF;
    }
}

}  // namespace
