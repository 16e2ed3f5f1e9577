// A chunk of queries and its cell's keys: what the forward pass and the backward pass do alike.
#pragma once

#include "attention/dropout.h"
#include "attention/single_row.h"

namespace {

// Some queries of one cell, against the keys [low, high) of it, for one sample and head.
struct Chunk {
    int64_t sample, head, kv;  // kv: the head of the keys
    const int32_t* query;
    int64_t queries;
    const int32_t* key;        // of the cell
    int64_t low, high;
    bool kept;                 // the bias is kept for the next cell, which may be of the same kind
    bool again;                // this cell is of the kind of the last one: its panels and its bias are still there

    INLINE RowList queries_of(const Problem& p, const Rows& rows) const {
        return rows_of(p.dtype, rows, sample, head, query, queries);
    }
};

// The cell of a (sample, cell) pair, for one head of queries and one of keys: all of its queries and keys.
INLINE Chunk whole_cell(const Problem& p, int64_t head, int64_t kv, int64_t pair) {
    const Layout& layout = *p.layout;
    const int64_t c = pair % layout.cells, query = layout.query_start[c], key = layout.key_start[c];
    return {pair / layout.cells, head, kv, layout.query + query, layout.query_start[c + 1] - query,
            layout.key + key, 0, layout.key_start[c + 1] - key, false, false};
}

// Chunks of nearly even size, in whole vectors: how many, and how long.
INLINE int64_t chunks(int64_t queries) { return (queries + CHUNK - 1) / CHUNK; }
INLINE int64_t chunk_size(int64_t queries) {
    return queries ? round_up_to_lanes((queries + chunks(queries) - 1) / chunks(queries)) : 0;
}

// --- the bias of a whole cell, if it is small: made once for all cells of a kind -------------------------------------

constexpr int64_t SMALL = 48 * 1024;  // numbers

INLINE int64_t cell_scores(const Layout& layout) { return (layout.longest + 2 * PANEL_LANES) * layout.longest_keys; }

// How many numbers of bias are kept: of a whole cell, or of a panel and a block.
INLINE int64_t kept_scores(const Layout& layout) {
    const int64_t cell = cell_scores(layout), panel = BLOCK * PANEL_LANES;
    return cell <= SMALL && cell > panel ? cell : panel;
}

// Whether what is added to the scores depends on the kind of a cell alone, fits, and is needed again: there are more
// cells than `items`, so that some item has several.
INLINE bool shares_bias(const Problem& p, int64_t items) {
    const Layout& layout = *p.layout;
    return p.table && !p.vectors && !p.valid.data && !p.query_id.data && !layout.orders && p.batch * layout.cells > items &&
           layout.longest <= CHUNK && cell_scores(layout) <= SMALL;
}

INLINE bool same_kind(const Layout& layout, int64_t pair, int64_t other) {  // of the cells of (sample, cell) pairs
    return layout.kind[pair % layout.cells] == layout.kind[other % layout.cells];
}

// Whether rows lie apart, so that the processor does not fetch the next ones of its own accord.
INLINE bool has_scattered_rows(const Problem& p) { return p.q.token != p.head_dim || p.layout->cells > 1; }

// --- scratch, and what is in it -------------------------------------------------------------------------------------

struct Workspace {
    Panel* panel;                  // of the chunk
    Visibility* seen;              // of the block, by each panel
    int64_t panels, singles;       // how many panels, and queries that are in none
    int64_t lane[MAX_PANELS + 1];  // where each panel begins
    bool begun[MAX_PANELS];        // whether o, or dq, holds anything yet
    Keys keys;                     // the block, and its rows
    real *k, *v;
    real *s, *bias, *lines;        // scores; what they start from; rows on their way
    const real** seed_row;
    Prefetches prefetches;
    Content content;
    bool learns;                   // whether it is the backward pass's

    Workspace(const Problem& p, int64_t width, bool backward, Arena& arena)  // width: of the widest row
        : panel(arena.allocate<Panel>(MAX_PANELS)), seen(arena.allocate<Visibility>(MAX_PANELS)), panels(0), singles(0),
          lane{}, begun{}, keys{0, 0, nullptr, arena.allocate<int32_t>(BLOCK), arena.allocate<int32_t>(BLOCK)},
          k(arena.allocate<real>(BLOCK * p.head_dim)), v(arena.allocate<real>(BLOCK * p.value_dim)),
          s(arena.allocate<real>(BLOCK * PANEL_LANES)), bias(arena.allocate<real>(kept_scores(*p.layout))),
          lines(arena.allocate<real>(PANEL_LANES * width)), seed_row(arena.allocate<const real*>(2 * BLOCK)),
          prefetches{arena.allocate<const char*>(MAX_PREFETCHES + 1), 0, 0}, content(p, backward, arena),
          learns(backward) {}

    int64_t lanes() const { return lane[panels]; }  // of all panels

    // Where a kept cell has the scores of panel i and the block of keys from `from`.
    int64_t place_in_cell(int64_t i, int64_t from) const { return from * lanes() + lane[i] * keys.count; }
};

// Cut the chunk into panels, and leave out the queries that would have a vector to themselves.
inline void place_queries(const Problem& p, const Chunk& chunk, Workspace& w) {
    w.singles = single_rows(p, chunk.queries, w.learns);
    const int64_t count = chunk.queries - w.singles;
    w.panels = chunk.again ? move_panels(chunk.query, count, w.panel) : make_panels(p, chunk.query, count, w.panel);
    for (int64_t i = 0; i < w.panels; ++i) w.lane[i + 1] = w.lane[i] + w.panel[i].lanes(), w.begun[i] = false;
    if (p.vectors) place_content(p, w.panel, w.panels, chunk.key + chunk.low, chunk.high - chunk.low, w.content);
}

// Gather the keys [from, from + size) of the cell. Returns whether any query sees any of them.
template <class Row>
inline bool see_block(const Problem& p, const Chunk& chunk, int64_t from, int64_t size, Row* single, Workspace& w) {
    gather_keys(p, chunk.sample, chunk.key + from, size, w.keys);
    if (p.vectors) place_block(p, w.keys, w.content);
    bool needed = false;
    for (int64_t i = 0; i < w.panels; ++i) {
        w.seen[i] = visibility(p, chunk.sample, w.panel[i], w.keys);
        needed = needed || w.seen[i] != Visibility::none;
    }
    for (int64_t i = 0; i < w.singles; ++i) {
        single[i].seen = visibility(p, chunk.sample, single[i].query, w.keys);
        needed = needed || single[i].seen != Visibility::none;
    }
    return needed;
}

// What of panel i meets vectors, as lanes; those without a place meet none.
inline void read_content(const Problem& p, const Chunk& chunk, int64_t i, Workspace& w) {
    const Panel& panel = w.panel[i];
    real* to = w.content.lanes + w.lane[i] * p.head_dim;
    read_lanes(rows_of(p.dtype, content_rows(p), chunk.sample, chunk.head, panel.token, panel.count), panel.lanes(),
               p.head_dim, real(p.content_scale) * LOG2E, w.lines, to);
    for (int64_t c = 0; c < p.head_dim && panel.prefix; ++c) fill(to + c * panel.lanes(), 0, panel.prefix, 0);
}

// Read the rows of the block that begins at `from`.
inline void read_block(const Problem& p, const Chunk& chunk, int64_t from, bool keys, Workspace& w) {
    const int64_t n = w.keys.count, more = w.keys.token == chunk.key + from ? chunk.high - from - n : 0;
    if (keys)
        read_rows(rows_of(p.dtype, p.k, chunk.sample, chunk.kv, w.keys.token, n), p.head_dim, p.head_dim, w.k, more);
    read_rows(rows_of(p.dtype, p.v, chunk.sample, chunk.kv, w.keys.token, n), p.value_dim, p.value_dim, w.v, more);
}

}  // namespace
