// The forward pass in items of work, whose number does not depend on threads.
//
// An item is some heads of a chunk of one long cell, or of a few short (sample, cell) pairs. Short ones that follow
// each other are fetched ahead, and those of a kind share what is added to their scores.
#pragma once

#include "attention/forward.h"

namespace {

INLINE Chunk whole_cell(const Problem& p, int64_t head, int64_t pair) {
    return whole_cell(p, head, head / (p.heads / p.kv_heads), pair);
}

// How many short pairs an item takes.
INLINE int64_t pairs_together(const Problem& p) {
    const int64_t all = p.batch * p.layout->cells, fair = all * p.heads / 64;  // so many that all threads find work
    const bool tiny = all * p.heads * p.layout->longest * p.layout->longest_keys < 1 << 16;  // one thread is enough
    return tiny || fair > 8 ? 8 : fair < 1 ? 1 : fair;
}

// Items, were each one head: groups of short pairs, or chunks of long cells.
inline int64_t portions(const Problem& p) {
    const Layout& layout = *p.layout;
    if (layout.longest <= CHUNK) return (p.batch * layout.cells + pairs_together(p) - 1) / pairs_together(p);
    int64_t n = 0;
    for (int64_t c = 0; c < layout.cells; ++c) n += chunks(layout.query_start[c + 1] - layout.query_start[c]);
    return p.batch * n;
}

inline int64_t heads_together(const Problem& p) {
    const int64_t own = portions(p), wanted = 256;  // items, of which every thread finds some
    if (p.layout->longest > CHUNK || own * p.heads <= wanted) return 1;
    return own >= wanted ? p.heads : (own * p.heads + wanted - 1) / wanted;
}

inline int64_t forward_items(const Problem& p) {
    const int64_t together = heads_together(p);
    return portions(p) * ((p.heads + together - 1) / together);
}

// Portion `number` of the chunks of long cells, for one head.
inline void forward_long_cell(const Problem& p, int64_t number, int64_t head, Forward& w) {
    const Layout& layout = *p.layout;
    const int64_t each = portions(p) / p.batch, sample = number / each;
    int64_t c = 0, left = number % each;
    const auto queries = [&](int64_t cell) { return layout.query_start[cell + 1] - layout.query_start[cell]; };
    for (int64_t own; left >= (own = chunks(queries(c))); ++c) left -= own;
    Chunk chunk = whole_cell(p, head, sample * layout.cells + c);
    const int64_t size = chunk_size(chunk.queries), at = left * size, count = chunk.queries - at;
    if (count <= 0) return;
    chunk.query += at, chunk.queries = count < size ? count : size;
    forward_chunk(p, chunk, Chunk{}, w);
}

inline void forward_item(const Problem& p, int64_t number, Forward& w) {
    // 1 which heads and pairs the item has
    const int64_t together = heads_together(p), groups = (p.heads + together - 1) / together;
    const int64_t low = number % groups * together, high = low + together < p.heads ? low + together : p.heads;
    if (p.layout->longest > CHUNK) return forward_long_cell(p, number / groups, low, w);
    const int64_t first = number / groups * pairs_together(p), all = p.batch * p.layout->cells,
                  end = first + pairs_together(p) < all ? first + pairs_together(p) : all;
    // 2 pair by pair; the next one is fetched meanwhile
    const bool kept = shares_bias(p, 1);
    for (int64_t head = low; head < high; ++head)
        for (int64_t pair = first; pair < end; ++pair) {
            Chunk chunk = whole_cell(p, head, pair), next{};
            if (pair + 1 < end) next = whole_cell(p, head, pair + 1);
            else if (head + 1 < high) next = whole_cell(p, head + 1, first);
            chunk.kept = kept, chunk.again = kept && pair > first && same_kind(*p.layout, pair, pair - 1);
            forward_chunk(p, chunk, next, w);
        }
}

}  // namespace
