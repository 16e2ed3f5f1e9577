// A panel of queries, one per lane, and what is added to its scores: the bias, read from the table as slices, and -inf
// where a mask forbids.
#pragma once

#include "rows.h"

namespace {

using locant::Layout;
using locant::Problem;

constexpr int64_t CHUNK = 448;  // queries that share a packed block of keys
constexpr int64_t BLOCK = 64;   // keys in a block, at most

template <class T> INLINE const T* row_of(const locant::PerSample<T>& numbers, int64_t sample) {
    return numbers.data + sample * numbers.batch;
}

struct Arena {  // scratch memory, handed out in order; null only counts
    char* at;
    size_t used = 0;
    template <class T> T* take(int64_t count) {
        T* found = at ? reinterpret_cast<T*>(at + used) : nullptr;
        used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
        return found;
    }
};

struct Slice {     // lanes of one vector that are neighbours in the table
    int64_t place; // of lane 0, were it one of them
    int first, last;
    ivec lanes;    // a mask of them
};

struct Queries {
    const int32_t* token;      // in the order of the cell
    int64_t count;
    int64_t prefix;            // the first so many have no place
};

struct Panel : Queries {
    int64_t vectors;           // that hold them
    int64_t slices[WIDE + 1];  // vector n takes slices[n] .. slices[n + 1]
    bool simple;               // no vector takes more than two slices, and all lanes have a place
    Slice slice[PANEL];
    int64_t lanes() const { return vectors * LANES; }
};

struct Keys {                  // the block of keys that the panels meet
    int64_t count;
    int64_t prefix;            // the first so many have no place
    const int32_t* token;
    int32_t *place, *kept;     // scratch: their places, and the tokens if some are missing
};

enum class Sight { none, some, all };  // what queries see of a block

// Where each vector of the panel finds its part of the bias: as few slices of the table as there are breaks between
// neighbours (at the end of a row of the grid). Lanes without a place or a query take part in any.
inline void slice(const Layout& layout, Panel& panel) {
    int64_t used = 0;
    for (int64_t n = 0; n < panel.vectors; ++n) {
        panel.slices[n] = used;
        const int64_t low = panel.prefix - n * LANES, high = panel.count - n * LANES;
        for (int lane = low > 0 ? int(low) : 0; lane < (high < LANES ? high : LANES); ++lane) {
            const int64_t l = n * LANES + lane;
            const int64_t place = layout.query_place[panel.token[l]] - lane;
            if (used == panel.slices[n] || panel.slice[used - 1].place != place) panel.slice[used++] = {place, lane, 0, ivec{}};
            panel.slice[used - 1].last = lane + 1;
        }
    }
    for (int64_t i = 0; i < used; ++i) panel.slice[i].lanes = first(panel.slice[i].last) & ~first(panel.slice[i].first);
    panel.slices[panel.vectors] = used;
    panel.simple = panel.prefix == 0;
    for (int64_t n = 0; n < panel.vectors; ++n)
        panel.simple = panel.simple && panel.slices[n + 1] - panel.slices[n] <= 2 && panel.slices[n + 1] > panel.slices[n];
}

// The queries `token[0 .. count)` as panels of nearly equal width. Returns how many.
inline int64_t make_panels(const Problem& p, const int32_t* token, int64_t count, Panel* panel) {
    const Layout& layout = *p.layout;
    int64_t vectors = (count + LANES - 1) / LANES;
    const int64_t panels = (vectors + WIDE - 1) / WIDE;
    for (int64_t i = 0, at = 0; i < panels; ++i) {
        Panel& own = panel[i];
        own.vectors = (vectors + (panels - i) - 1) / (panels - i);
        own.token = token + at;
        own.count = count - at < own.lanes() ? count - at : own.lanes();
        own.prefix = 0;
        while (own.prefix < own.count && own.token[own.prefix] < layout.query_prefix) ++own.prefix;
        if (p.table) slice(layout, own);
        at += own.count, vectors -= own.vectors;
    }
    return panels;
}

// The same panels on a cell of the same kind.
inline int64_t moved(const int32_t* token, int64_t count, Panel* panel) {
    int64_t i = 0;
    for (; count > 0; ++i) {
        panel[i].token = token;
        token += panel[i].count, count -= panel[i].count;
    }
    return i;
}

// The keys of `token[0 .. count)` that are there.
inline void gather_keys(const Problem& p, int64_t sample, const int32_t* token, int64_t count, Keys& keys) {
    const uint8_t* valid = p.valid.data ? row_of(p.valid, sample) : nullptr;
    keys.count = 0, keys.prefix = 0;
    if (!valid) {
        keys.token = token, keys.count = count;
        while (keys.prefix < count && token[keys.prefix] < p.layout->key_prefix) ++keys.prefix;
        if (p.table)
            for (int64_t j = 0; j < count; ++j) keys.place[j] = p.layout->key_place[token[j]];
        return;
    }
    keys.token = keys.kept;
    for (int64_t j = 0; j < count; ++j) {
        if (!valid[token[j]]) continue;
        keys.prefix += token[j] < p.layout->key_prefix;
        keys.place[keys.count] = p.table ? p.layout->key_place[token[j]] : 0;
        keys.kept[keys.count++] = token[j];
    }
}

struct Range { int64_t low, high; };

INLINE Range range(const int64_t* value, const int32_t* token, int64_t count) {
    Range r{value[token[0]], value[token[0]]};
    for (int64_t i = 1; i < count; ++i) {
        const int64_t x = value[token[i]];
        r.low = x < r.low ? x : r.low, r.high = x > r.high ? x : r.high;
    }
    return r;
}

inline Sight sight(const Problem& p, int64_t sample, const Queries& queries, const Keys& keys) {
    const Layout& layout = *p.layout;
    if (keys.count == 0) return Sight::none;
    bool whole = true;
    for (int64_t o = 0; o < layout.orders; ++o) {
        const Range i = range(layout.query_rank + o * layout.queries, queries.token, queries.count);
        const Range j = range(layout.key_rank + o * layout.keys, keys.token, keys.count);
        if (j.low > i.high) return Sight::none;
        whole = whole && j.high <= i.low;
    }
    if (p.query_id.data) {
        const Range i = range(row_of(p.query_id, sample), queries.token, queries.count);
        const Range j = range(row_of(p.key_id, sample), keys.token, keys.count);
        const bool bound = queries.token[0] >= p.free_queries && keys.token[0] >= p.free_keys;
        if (bound && (j.high < i.low || j.low > i.high)) return Sight::none;
        whole = whole && bound && i.low == i.high && j.low == j.high;
    }
    return whole ? Sight::all : Sight::some;
}

// -inf in the lanes of `row` that may not see the key.
inline void forbid(const Problem& p, int64_t sample, const Queries& queries, int32_t key, real* row) {
    const Layout& layout = *p.layout;
    for (int64_t o = 0; o < layout.orders; ++o) {
        const int64_t rank = layout.key_rank[o * layout.keys + key];
        const int64_t* own = layout.query_rank + o * layout.queries;
        for (int64_t l = 0; l < queries.count; ++l)
            if (own[queries.token[l]] < rank) row[l] = -INFINITE;
    }
    if (p.query_id.data && key >= p.free_keys) {
        const int64_t id = row_of(p.key_id, sample)[key];
        const int64_t* own = row_of(p.query_id, sample);
        for (int64_t l = 0; l < queries.count; ++l)
            if (queries.token[l] >= p.free_queries && own[queries.token[l]] != id) row[l] = -INFINITE;
    }
}

INLINE real prefix_bias(const Problem& p, locant::PrefixBias which, int64_t head) {
    return p.prefix_bias ? static_cast<const real*>(p.prefix_bias)[which * p.heads + head] : real(0);
}

INLINE void fill(real* row, int64_t from, int64_t to, real x) {
    for (int64_t l = from; l < to; ++l) row[l] = x;
}

// One vector's bias for every key with a place: each lane from its slice of the table.
INLINE void slices(const real* table, const Slice* slice, int64_t count, const Keys& keys, int64_t lanes, real* s) {
    if (count == 0) {  // no lane has a place; those without a query must not hold what was there before
        for (int64_t j = keys.prefix; j < keys.count; ++j) store(s + j * lanes, vec{});
        return;
    }
    const real* first = table + slice[0].place;
    if (count == 1) {
        for (int64_t j = keys.prefix; j < keys.count; ++j) store(s + j * lanes, load(first - keys.place[j]));
    } else if (count == 2) {
        const real* second = table + slice[1].place;
        const ivec mask = slice[1].lanes;
        for (int64_t j = keys.prefix; j < keys.count; ++j)
            store(s + j * lanes, mixed(mask, load(second - keys.place[j]), load(first - keys.place[j])));
    } else {
        for (int64_t j = keys.prefix; j < keys.count; ++j) {
            vec x = load(first - keys.place[j]);
            for (int64_t i = 1; i < count; ++i)
                x = mixed(slice[i].lanes, load(table + slice[i].place - keys.place[j]), x);
            store(s + j * lanes, x);
        }
    }
}

// Scores before their content, in units of log 2 as the table is: s[j][lane] = bias, -inf where forbidden.
inline void make_seed(const Problem& p, int64_t sample, int64_t head, const Panel& panel, const Keys& keys, Sight seen,
                 real* s) {
    const int64_t lanes = panel.lanes();
    if (p.table) {
        const real both = prefix_bias(p, locant::BOTH_PREFIX, head), query = prefix_bias(p, locant::QUERY_PREFIX, head);
        const real* table = static_cast<const real*>(p.table) + head * p.entries;
        for (int64_t j = 0; j < keys.prefix; ++j) {
            fill(s + j * lanes, 0, panel.prefix, both);
            fill(s + j * lanes, panel.prefix, lanes, prefix_bias(p, locant::KEY_PREFIX, head));
        }
        for (int64_t n = 0; n < panel.vectors; ++n)
            slices(table, panel.slice + panel.slices[n], panel.slices[n + 1] - panel.slices[n], keys, lanes,
                   s + n * LANES);
        if (panel.prefix)
            for (int64_t j = keys.prefix; j < keys.count; ++j) fill(s + j * lanes, 0, panel.prefix, query);
    } else {
        fill(s, 0, keys.count * lanes, 0);
    }
    if (seen == Sight::some)
        for (int64_t j = 0; j < keys.count; ++j) forbid(p, sample, panel, keys.token[j], s + j * lanes);
}

// The same as seeds of a product. Where it can, it reads the table in place; else it writes to `own`, unless they are
// `there` already. `row` is scratch for a pointer per key.
INLINE Seeds seeds_of(const Problem& p, int64_t sample, int64_t head, const Panel& panel, const Keys& keys, Sight seen,
                      bool keep, bool there, real* own, const real** row) {
    Seeds seeds;
    seeds.row = row, seeds.twice = false;
    if (p.table && !keep && panel.simple && keys.prefix == 0 && seen == Sight::all) {
        const real* table = static_cast<const real*>(p.table) + head * p.entries;
        for (int64_t j = 0; j < keys.count; ++j) row[j] = table - keys.place[j];
        for (int64_t n = 0; n < panel.vectors; ++n) {
            const Slice *one = panel.slice + panel.slices[n], *two = panel.slice + panel.slices[n + 1] - 1;
            seeds.place[n] = one->place, seeds.other[n] = two->place;
            seeds.mask[n] = one == two ? ivec{} : two->lanes;
            seeds.twice = seeds.twice || one != two;
        }
        return seeds;
    }
    if (!there) make_seed(p, sample, head, panel, keys, seen, own);
    for (int64_t j = 0; j < keys.count; ++j) row[j] = own + j * panel.lanes();
    for (int64_t n = 0; n < panel.vectors; ++n) seeds.place[n] = seeds.other[n] = n * LANES, seeds.mask[n] = ivec{};
    return seeds;
}

}  // namespace
