// The gradient of content: dS is summed where terms were read, moved back to the offsets that they stood for, and then
// two products make of it the gradients of the queries and of the vectors.
#pragma once

#include "attention/content.h"

namespace {

struct ContentSums { real *vectors, *bias; };  // one head's, of this item: [offset][wide], [offset]; null: not learned

// Add dS of a panel and a block, where the terms stand that the scores were made of.
inline void add_terms_gradient(const Panel& own, const Keys& keys, const Content& content, int64_t i, const real* d) {
    const int64_t width = own.lanes();
    for (int64_t a = 0; a < content.axes; ++a) {
        const PanelAxis& of = content.axis(i, a);
        for (int64_t j = keys.prefix; j < keys.count; ++j) {
            real* sum = of.sum + of.row_of(content.at[a * BLOCK + j]) * width;
            for (int64_t n = 0; n < own.vectors; ++n) {
                real* at = sum + of.place(n, width);
                store(at, load(at) + load(d + j * width + n * LANES));
            }
        }
    }
}

// The inverse of move_lanes, for sums; lanes without a place are cleared.
inline void move_back(const PanelAxis& of, const Panel& own) {
    const int64_t rows = of.rows(), width = own.lanes();
    for (int64_t n = 0; n < own.vectors; ++n) {
        real* sum = of.sum + n * LANES;
        const ivec placed = placed_lanes(own, n), &above = of.above[n];
        if (any_lane(~placed) || any_lane((above & integer(LANES - 1)) != 0)) {
            const NearMoves moves = near_moves(above);
            RowsOnTheirWay way{};
            for (int64_t r = 0; r < rows; r += LANES)
                UNROLL(u, LANES) {
                    real* at = sum + (r + u < rows ? r + u : rows - 1) * width;
                    const vec x = push_row(moves, u, zero_unless(placed, load(at)), way);
                    if (r + u < rows) store(at, x);
                }
        }
        for (int64_t bit = LANES; bit <= of.lanes.high - of.lanes.low; bit *= 2) {
            const ivec moved = (above & integer(bit)) != 0;
            if (!any_lane(moved)) continue;
            for (int64_t r = rows - 1; r >= bit; --r)
                store(sum + r * width, select(moved, load(sum + (r - bit) * width), load(sum + r * width)));
            for (int64_t r = bit < rows ? bit - 1 : rows - 1; r >= 0; --r)
                store(sum + r * width, zero_unless(~moved, load(sum + r * width)));
        }
    }
}

inline void add_rows(const real* rows, int64_t vectors, int64_t begin, int64_t end, real* to) {
    for (int64_t r = begin; r < end; ++r)
        for (int64_t n = 0; n < vectors; ++n)
            store(to + n * LANES, load(to + n * LANES) + load(rows + (r * vectors + n) * LANES));
}

// Take what was summed for the held terms of a panel to dcontent, as lanes, and to the sums of the item, and clear it.
// `rows` are the panel's content, scaled, `wide` numbers apart.
inline void flush_terms(const Problem& p, const Panel& own, int64_t axis, int64_t head, const real* rows, int64_t wide,
                        const ContentSums& sums, real* dcontent, Prefetches& prefetches, PanelAxis& of) {
    if (of.held.low > of.held.high) return;
    const int64_t width = own.lanes(), depth = p.head_dim, group = p.vector_heads == 1 ? 0 : head;
    const OwnRows there = own_rows(p, axis, of);
    const int64_t vector = first_offset(p, axis) + there.vector;
    real* first = of.sum + there.row * width;
    // 1 lanes back to the offsets, and those that have no vector to the nearest that has one
    move_back(of, own);
    add_rows(of.sum, own.vectors, 0, there.row, first);
    add_rows(of.sum, own.vectors, there.row + there.count, of.rows(), first + (there.count - 1) * width);
    // 2 dcontent += d terms · vectors
    const real* vectors = static_cast<const real*>(p.vectors) + (group * p.offsets + vector) * depth;
    multiply<false>(depth, own.vectors, there.count, {vectors, 1, depth}, {first, width}, {dcontent, width},
                    Into::added, prefetches);
    // 3 d vectors += d terms · content
    if (sums.vectors)
        multiply<true>(there.count, wide / LANES, own.count, {first, width, 1}, {rows, wide},
                       {sums.vectors + vector * wide, wide}, Into::added, prefetches);
    if (sums.bias)
        for (int64_t r = 0; r < there.count; ++r) {
            vec sum{};
            for (int64_t n = 0; n < own.vectors; ++n) sum += load(first + r * width + n * LANES);
            sum = reduce_lanes(sum, [](vec a, vec b) INLINE_LAMBDA { return a + b; });
            sums.bias[vector + r] += sum[0] * real(p.content_scale);
        }
    of.held = {0, -1};
}

}  // namespace
