// The bias of a panel against a block of keys: slices of the table, from which the product q kᵀ starts.
//
// bias(i, j) = table[place_i - place_j]: for one key the bias of neighbouring queries is a run of the table. Scores are
// in units of log 2, and so is the table here (bindings.cpp multiplies it once per call). Terms of content (content.h)
// are rows as well, and are added.
#pragma once

#include "attention/content.h"

namespace {

INLINE void fill(real* row, int64_t from, int64_t to, real x) {
    for (int64_t l = from; l < to; ++l) row[l] = x;
}

// The learned bias between a token without a place and any other; 0 if none was learned.
INLINE real prefix_bias(const Problem& p, locant::PrefixBias which, int64_t head) {
    return p.prefix_bias ? static_cast<const real*>(p.prefix_bias)[which * p.heads + head] : real(0);
}

INLINE const real* table_of(const Problem& p, int64_t head) {
    return static_cast<const real*>(p.table) + head * p.entries;
}

struct Meeting {  // of a panel and a block of keys
    const Problem& p;
    int64_t sample, head;
    const Panel& panel;
    const Keys& keys;
    Visibility seen;
    const Content& content;
    int64_t number;  // of the panel in the chunk
};

// Whether scores start from anything but 0.
INLINE bool has_bias_or_mask(const Problem& p) {
    return p.table || p.vectors || p.query_id.data || p.layout->orders;
}

// One vector's bias for every key with a place: each lane from its slice of the table.
INLINE void write_slices(const real* table, const Slice* slice, int64_t count, const Keys& keys, int64_t lanes,
                         real* s) {
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
            store(s + j * lanes, select(mask, load(second - keys.place[j]), load(first - keys.place[j])));
    } else {
        for (int64_t j = keys.prefix; j < keys.count; ++j) {
            vec x = load(first - keys.place[j]);
            for (int64_t i = 1; i < count; ++i)
                x = select(slice[i].lanes, load(table + slice[i].place - keys.place[j]), x);
            store(s + j * lanes, x);
        }
    }
}

// Scores before their content: s[j][lane] = bias, -inf where a mask forbids.
inline void write_bias(const Meeting& m, real* s) {
    const Problem& p = m.p;
    const Panel& panel = m.panel;
    const Keys& keys = m.keys;
    const int64_t lanes = panel.lanes();
    if (p.table) {
        const real both = prefix_bias(p, locant::BOTH_PREFIX, m.head);
        const real query = prefix_bias(p, locant::QUERY_PREFIX, m.head);
        const real key = prefix_bias(p, locant::KEY_PREFIX, m.head);
        for (int64_t j = 0; j < keys.prefix; ++j) {
            fill(s + j * lanes, 0, panel.prefix, both);
            fill(s + j * lanes, panel.prefix, lanes, key);
        }
        for (int64_t n = 0; n < panel.vectors; ++n) {
            const int64_t first = panel.slices[n], count = panel.slices[n + 1] - first;
            write_slices(table_of(p, m.head), panel.slice + first, count, keys, lanes, s + n * LANES);
        }
        if (panel.prefix)
            for (int64_t j = keys.prefix; j < keys.count; ++j) fill(s + j * lanes, 0, panel.prefix, query);
    } else {
        fill(s, 0, keys.count * lanes, 0);
    }
    if (p.vectors) add_terms(panel, keys, m.content, m.number, s);
    if (m.seen == Visibility::some)
        for (int64_t j = 0; j < keys.count; ++j) mask_scores(p, m.sample, panel, keys.token[j], s + j * lanes);
}

// The table itself as seeds of a product, where each vector has one slice or two and no mask bites.
INLINE void point_to_slices(const Meeting& m, const real** row, Seeds& seeds) {
    const Panel& panel = m.panel;
    const real* table = table_of(m.p, m.head);
    for (int64_t j = 0; j < m.keys.count; ++j) row[j] = table - m.keys.place[j];
    for (int64_t n = 0; n < panel.vectors; ++n) {
        const Slice *one = panel.slice + panel.slices[n], *two = panel.slice + panel.slices[n + 1] - 1;
        seeds.place[n] = one->place, seeds.other[n] = two->place;
        seeds.mask[n] = one == two ? ivec{} : two->lanes;
        seeds.twice = seeds.twice || one != two;
    }
}

// What the scores start from. It is read in the table, or in the terms of content, where that is possible, unless it is
// to be `kept` for later cells of this kind; else it is written to `bias`, if it is not `there` already. `row` is scratch
// for two pointers per key.
INLINE Seeds make_seeds(const Meeting& m, bool kept, bool there, real* bias, const real** row) {
    Seeds seeds;
    seeds.row = row, seeds.twice = false, seeds.more = nullptr;
    const bool plain = m.keys.prefix == 0 && m.seen == Visibility::every;
    if (m.p.table && !m.p.vectors && !kept && m.panel.simple && plain) {
        point_to_slices(m, row, seeds);
        return seeds;
    }
    if (m.p.vectors && !m.p.table && m.content.axes <= 2 && plain) {
        point_to_terms(m.panel, m.keys, m.content, m.number, row, seeds);
        return seeds;
    }
    if (!there) write_bias(m, bias);
    for (int64_t j = 0; j < m.keys.count; ++j) row[j] = bias + j * m.panel.lanes();
    for (int64_t n = 0; n < m.panel.vectors; ++n)
        seeds.place[n] = seeds.other[n] = n * LANES, seeds.mask[n] = ivec{};
    return seeds;
}

}  // namespace
