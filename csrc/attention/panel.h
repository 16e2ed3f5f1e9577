// A panel of queries, one per lane, and the block of keys that it meets.
#pragma once

#include "memory/arena.h"
#include "memory/rows.h"

namespace {

using locant::Layout;
using locant::Problem;

constexpr int64_t CHUNK = 448;  // queries that share a packed block of keys
constexpr int64_t BLOCK = 64;   // keys in a block, at most
constexpr int64_t MAX_PANELS = CHUNK / PANEL_LANES;

template <class T> INLINE const T* row_of(const locant::PerSample<T>& numbers, int64_t sample) {
    return numbers.data + sample * numbers.batch;
}

// --- queries ------------------------------------------------------------------------------------------------------

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
    int64_t vectors;                  // that hold them
    int64_t slices[MAX_VECTORS + 1];  // vector n takes slices[n] .. slices[n + 1]
    bool simple;                      // no vector takes more than two slices, and all lanes have a place
    Slice slice[PANEL_LANES];
    int64_t lanes() const { return vectors * LANES; }
};

// Find where each vector of the panel has its part of the bias: as few slices of the table as there are breaks between
// neighbours (at the end of a row of the grid). Lanes without a place or a query take part in any.
inline void find_slices(const Layout& layout, Panel& panel) {
    int64_t used = 0;
    for (int64_t n = 0; n < panel.vectors; ++n) {
        panel.slices[n] = used;
        const int64_t low = panel.prefix - n * LANES, high = panel.count - n * LANES;
        for (int lane = low > 0 ? int(low) : 0; lane < (high < LANES ? high : LANES); ++lane) {
            const int64_t place = layout.query_place[panel.token[n * LANES + lane]] - lane;
            if (used == panel.slices[n] || panel.slice[used - 1].place != place)
                panel.slice[used++] = {place, lane, 0, ivec{}};
            panel.slice[used - 1].last = lane + 1;
        }
    }
    for (int64_t i = 0; i < used; ++i)
        panel.slice[i].lanes = first_lanes(panel.slice[i].last) & ~first_lanes(panel.slice[i].first);
    panel.slices[panel.vectors] = used;
    panel.simple = panel.prefix == 0;
    for (int64_t n = 0; n < panel.vectors; ++n) {
        const int64_t own = panel.slices[n + 1] - panel.slices[n];
        panel.simple = panel.simple && own <= 2 && own > 0;
    }
}

// The queries `token[0 .. count)` as panels of nearly equal width. Returns how many.
inline int64_t make_panels(const Problem& p, const int32_t* token, int64_t count, Panel* panel) {
    const Layout& layout = *p.layout;
    int64_t vectors = (count + LANES - 1) / LANES;
    const int64_t panels = (vectors + MAX_VECTORS - 1) / MAX_VECTORS;
    for (int64_t i = 0, at = 0; i < panels; ++i) {
        Panel& own = panel[i];
        own.vectors = (vectors + (panels - i) - 1) / (panels - i);
        own.token = token + at;
        own.count = count - at < own.lanes() ? count - at : own.lanes();
        own.prefix = 0;
        while (own.prefix < own.count && own.token[own.prefix] < layout.query_prefix) ++own.prefix;
        if (p.table) find_slices(layout, own);
        at += own.count, vectors -= own.vectors;
    }
    return panels;
}

// Put the same panels on a cell of the same kind: the queries are others, the slices relative to the keys are not.
inline int64_t move_panels(const int32_t* token, int64_t count, Panel* panel) {
    int64_t i = 0;
    for (; count > 0; ++i) {
        panel[i].token = token;
        token += panel[i].count, count -= panel[i].count;
    }
    return i;
}

// --- keys ---------------------------------------------------------------------------------------------------------

struct Keys {
    int64_t count;
    int64_t prefix;            // the first so many have no place
    const int32_t* token;
    int32_t *place, *kept;     // scratch: their places, and the tokens if some are missing
};

// The keys of `token[0 .. count)` that padding leaves.
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

}  // namespace
