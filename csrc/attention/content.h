// Content: what queries make of a vector per offset, axis by axis.
//
//     bias(i, j) = Σ_axis term_axis[o](i),  o = query_at - key_at along the axis, clamped to [lowest, highest]
//     term[o](i) = content_scale · (content_i · vectors[o] + vector_bias[o])
//
// The terms of a panel are the product of a few rows of vectors and its lanes, and are made when keys need them, for a
// stretch of coordinates at a time: nothing of the size of queries × offsets exists. Lanes lie at different coordinates,
// so that one key meets each lane at another offset; the rows are moved, lane by lane, once they are made, and then
// the terms of all lanes against one key are a row again. In units of log 2, as scores are.
#pragma once

#include "attention/visibility.h"
#include "simd/product.h"

namespace {

constexpr int64_t STRETCH = 512;  // coordinates of keys whose terms are held at once; more where a block spans more
constexpr int MAX_AXES = 3;

INLINE const Rows& content_rows(const Problem& p) { return p.content.data ? p.content : p.q; }

INLINE int32_t axis_number(const Problem& p, int64_t axis, locant::AxisNumber which) {
    return p.layout->axis[axis * locant::AXIS_NUMBERS + which];
}

INLINE int64_t offsets_of(const Problem& p, int64_t axis) {
    return axis_number(p, axis, locant::HIGHEST_OFFSET) - axis_number(p, axis, locant::LOWEST_OFFSET) + 1;
}

// How many coordinates of keys are held, and how many rows of terms that takes.
INLINE int64_t held_coordinates(const Problem& p, int64_t axis) {
    const int64_t span = axis_number(p, axis, locant::KEY_SPAN) + 1, extent = axis_number(p, axis, locant::KEY_EXTENT);
    const int64_t wanted = span > STRETCH ? span : STRETCH;
    return extent < wanted ? extent : wanted;
}
INLINE int64_t held_rows(const Problem& p, int64_t axis) {
    return held_coordinates(p, axis) + axis_number(p, axis, locant::QUERY_SPAN);
}

// The numbers [0, offsets) of vectors that belong to one axis begin here.
INLINE int64_t first_offset(const Problem& p, int64_t axis) {
    int64_t first = 0;
    for (int64_t a = 0; a < axis; ++a) first += offsets_of(p, a);
    return first;
}

struct Bounds { int64_t low, high; };  // of coordinates; low > high: there are none

INLINE void include(Bounds& bounds, int64_t x) {
    bounds.low = x < bounds.low ? x : bounds.low, bounds.high = x > bounds.high ? x : bounds.high;
}

// One axis of a panel: where its lanes lie, and the terms that are held.
//
// Row r belongs to the offset first + r. Moved, lane l of vector n holds there the term of first + r + above[n][l]:
// with the offset of the vector's least lane every lane has its own.
struct PanelAxis {
    Bounds lanes;                // their coordinates
    int64_t least[MAX_VECTORS];  // of each vector
    ivec above[MAX_VECTORS];     // how far each lane lies above its vector's least
    Bounds held;                 // coordinates of the keys whose terms are there
    real *term, *sum;            // [row][lane]: terms; sums of dS, in the backward pass
    int64_t rows() const { return held.high - held.low + lanes.high - lanes.low + 1; }
    int64_t first() const { return lanes.low - held.high; }
    int64_t row_of(int64_t key_at) const { return held.high - key_at; }         // of a key, before what place says
    int64_t place(int64_t n, int64_t width) const { return n * LANES + (least[n] - lanes.low) * width; }
};

// Which rows of the held ones have a vector of their own: `count` from `row`, of the vectors from `vector` of the axis.
// Rows below and above stand for offsets that are taken for the nearest of these.
struct OwnRows { int64_t row, count, vector; };

INLINE OwnRows own_rows(const Problem& p, int64_t axis, const PanelAxis& of) {
    const int64_t lowest = axis_number(p, axis, locant::LOWEST_OFFSET), highest = lowest + offsets_of(p, axis) - 1;
    const auto clamp = [](int64_t x, int64_t low, int64_t high) INLINE_LAMBDA {
        return x < low ? low : x > high ? high : x;
    };
    const int64_t low = clamp(of.first(), lowest, highest), high = clamp(of.first() + of.rows() - 1, lowest, highest);
    return {clamp(low - of.first(), 0, of.rows() - 1), high - low + 1, low - lowest};
}

// What content is, for the panels of a chunk.
struct Content {
    int64_t axes;
    PanelAxis* panel;        // [panel][axis]
    real* lanes;             // of the chunk: [panel][channel][lane], scaled
    Bounds chunk[MAX_AXES];  // coordinates of the chunk's keys
    Bounds block[MAX_AXES];  // of the block's
    int32_t* at;             // of the block's keys: [axis][key]

    Content(const Problem& p, bool learns, Arena& arena) : axes(p.layout->axes), chunk{}, block{} {
        panel = arena.allocate<PanelAxis>(axes ? MAX_PANELS * axes : 0);
        lanes = arena.allocate<real>(axes ? CHUNK * p.head_dim : 0);
        at = arena.allocate<int32_t>(axes * BLOCK);
        for (int64_t a = 0; a < axes; ++a) {
            const int64_t each = held_rows(p, a) * PANEL_LANES;
            real *term = arena.allocate<real>(MAX_PANELS * each),
                 *sum = arena.allocate<real>(learns ? MAX_PANELS * each : 0);
            for (int64_t i = 0; arena.at && i < MAX_PANELS; ++i)
                axis(i, a).term = term + i * each, axis(i, a).sum = sum + i * each;
        }
    }
    INLINE PanelAxis& axis(int64_t i, int64_t a) const { return panel[i * axes + a]; }
};

// --- where lanes and keys lie ---------------------------------------------------------------------------------------

INLINE bool has_place(const Panel& own, int64_t lane) { return lane >= own.prefix && lane < own.count; }

// A mask of the lanes of vector n that hold a query with a place: others have no terms.
INLINE ivec placed_lanes(const Panel& own, int64_t n) {
    return first_lanes(own.count - n * LANES) & ~first_lanes(own.prefix - n * LANES);
}

inline void place_lanes(const Problem& p, const Panel& own, int64_t axis, PanelAxis& to) {
    const int32_t* at = p.layout->query_at + axis * p.layout->queries;
    to.held = {0, -1};
    to.lanes = {INT64_MAX, INT64_MIN};
    for (int64_t l = own.prefix; l < own.count; ++l) include(to.lanes, at[own.token[l]]);
    if (own.prefix >= own.count) to.lanes = {0, 0};
    for (int64_t n = 0; n < own.vectors; ++n) {
        Bounds bounds{INT64_MAX, INT64_MIN};
        for (int64_t l = n * LANES; l < (n + 1) * LANES; ++l)
            if (has_place(own, l)) include(bounds, at[own.token[l]]);
        to.least[n] = bounds.low <= bounds.high ? bounds.low : to.lanes.low;
        for (int l = 0; l < LANES; ++l)
            to.above[n][l] = has_place(own, n * LANES + l) ? integer(at[own.token[n * LANES + l]] - to.least[n]) : 0;
    }
}

// The panels of a chunk, and the coordinates of the keys [0, count) of `key`.
inline void place_content(const Problem& p, const Panel* panel, int64_t panels, const int32_t* key, int64_t count,
                          Content& content) {
    for (int64_t a = 0; a < content.axes; ++a) {
        for (int64_t i = 0; i < panels; ++i) place_lanes(p, panel[i], a, content.axis(i, a));
        const int32_t* at = p.layout->key_at + a * p.layout->keys;
        content.chunk[a] = {INT64_MAX, INT64_MIN};
        for (int64_t j = 0; j < count; ++j)
            if (key[j] >= p.layout->key_prefix) include(content.chunk[a], at[key[j]]);
    }
}

inline void place_block(const Problem& p, const Keys& keys, Content& content) {
    for (int64_t a = 0; a < content.axes; ++a) {
        const int32_t* at = p.layout->key_at + a * p.layout->keys;
        content.block[a] = {INT64_MAX, INT64_MIN};
        for (int64_t j = keys.prefix; j < keys.count; ++j) {
            content.at[a * BLOCK + j] = at[keys.token[j]];
            include(content.block[a], at[keys.token[j]]);
        }
    }
}

// --- terms ----------------------------------------------------------------------------------------------------------

// Which lanes go how far: `above`, bit by bit, for the distances below LANES, the bit of 2^i being the i-th.
constexpr int NEAR_BITS = __builtin_ctz(unsigned(LANES));

struct NearMoves { ivec bit[NEAR_BITS]; };

INLINE NearMoves near_moves(const ivec& above) {
    NearMoves moves;
    UNROLL(i, NEAR_BITS) moves.bit[i] = (above & integer(1 << i)) != 0;
    return moves;
}

// Rows on their way: of each bit the last 2^i rows, from 2^i on, row r at 2^i + r mod 2^i. They stay in registers.
struct RowsOnTheirWay { vec row[LANES]; };

// Row r goes in; row r - (LANES - 1) comes out, each lane of it from `above` rows on.
INLINE vec pull_row(const NearMoves& moves, unsigned r, vec x, RowsOnTheirWay& way) {
    UNROLL(i, NEAR_BITS) {
        vec& last = way.row[(1u << i) + r % (1u << i)];
        const vec before = last;
        last = x, x = select(moves.bit[i], x, before);
    }
    return x;
}

// Row r goes in and comes out, each lane of it from `above` rows before.
INLINE vec push_row(const NearMoves& moves, unsigned r, vec x, RowsOnTheirWay& way) {
    UNROLL(i, NEAR_BITS) {
        vec& last = way.row[(1u << i) + r % (1u << i)];
        const vec before = last;
        last = x, x = select(moves.bit[i], before, x);
    }
    return x;
}

// Give each lane the terms of its own offsets, `above` rows on: in one pass for what is less than a vector's length, and
// bit by bit for the rest.
inline void move_lanes(const PanelAxis& of, int64_t vectors) {
    const int64_t rows = of.rows(), width = vectors * LANES;
    for (int64_t n = 0; n < vectors; ++n) {
        real* term = of.term + n * LANES;
        for (int64_t bit = LANES; bit <= of.lanes.high - of.lanes.low; bit *= 2) {
            const ivec moved = (of.above[n] & integer(bit)) != 0;
            if (!any_lane(moved)) continue;
            for (int64_t r = 0; r < rows - bit; ++r)
                store(term + r * width, select(moved, load(term + (r + bit) * width), load(term + r * width)));
        }
        if (!any_lane((of.above[n] & integer(LANES - 1)) != 0)) continue;
        const NearMoves moves = near_moves(of.above[n]);
        RowsOnTheirWay way{};
        const int64_t late = LANES - 1;
        for (int64_t r = 0; r < rows + late; r += LANES)
            UNROLL(u, LANES) {
                const int64_t in = r + u < rows ? r + u : rows - 1, out = r + u - late;
                const vec x = pull_row(moves, u, load(term + in * width), way);
                if (out >= 0 && out < rows) store(term + out * width, x);
            }
    }
}

inline void copy_row(const real* from, int64_t vectors, int64_t begin, int64_t end, real* rows) {
    for (int64_t r = begin; r < end; ++r)
        for (int64_t n = 0; n < vectors; ++n) store(rows + (r * vectors + n) * LANES, load(from + n * LANES));
}

// The terms of a panel for the coordinates of keys in `held`.
inline void make_terms(const Problem& p, const Panel& own, int64_t axis, int64_t head, const real* lanes,
                       Prefetches& prefetches, PanelAxis& of) {
    const int64_t width = own.lanes(), depth = p.head_dim, group = p.vector_heads == 1 ? 0 : head;
    const OwnRows there = own_rows(p, axis, of);
    const int64_t vector = group * p.offsets + first_offset(p, axis) + there.vector;
    real* first = of.term + there.row * width;
    // 1 a product for offsets that have a vector
    multiply<true>(there.count, own.vectors, depth,
                   {static_cast<const real*>(p.vectors) + vector * depth, depth, 1}, {lanes, width}, {first, width},
                   Into::fresh, prefetches);
    if (p.vector_bias) {
        const real* bias = static_cast<const real*>(p.vector_bias) + vector;
        for (int64_t r = 0; r < there.count; ++r)
            for (int64_t n = 0; n < own.vectors; ++n) {
                real* at = first + r * width + n * LANES;
                store(at, load(at) + zero_unless(placed_lanes(own, n), broadcast(bias[r] * real(p.content_scale) * LOG2E)));
            }
    }
    // 2 others are taken for the nearest
    copy_row(first, own.vectors, 0, there.row, of.term);
    copy_row(first + (there.count - 1) * width, own.vectors, there.row + there.count, of.rows(), of.term);
    // 3 lanes to their own offsets
    move_lanes(of, own.vectors);
}

// Which coordinates of keys to hold, if those of the block are not held: all of the chunk, or a stretch. In order, keys
// after the last lane are seen by none where vectors begin at offset 0, and their blocks do not come.
INLINE Bounds next_stretch(const Problem& p, int64_t axis, const PanelAxis& of, const Content& content) {
    const Bounds &chunk = content.chunk[axis], &block = content.block[axis];
    const int64_t held = held_coordinates(p, axis), low = chunk.high - chunk.low < held ? chunk.low : block.low;
    const bool ends = p.layout->orders && axis_number(p, axis, locant::LOWEST_OFFSET) >= 0;
    const int64_t last = ends && of.lanes.high < chunk.high ? of.lanes.high : chunk.high;
    const int64_t needed = last > block.high ? last : block.high;
    return {low, low + held - 1 < needed ? low + held - 1 : needed};
}

INLINE bool holds(const PanelAxis& of, const Bounds& block) {
    return block.low > block.high || (of.held.low <= block.low && of.held.high >= block.high);
}

// The terms of vector n against key j of the block, one axis.
INLINE const real* term_of(const PanelAxis& of, int32_t key_at, int64_t width) {
    return of.term + of.row_of(key_at) * width;
}

// s[j][lane] += terms, for the keys that have a place.
inline void add_terms(const Panel& own, const Keys& keys, const Content& content, int64_t i, real* s) {
    const int64_t width = own.lanes();
    for (int64_t a = 0; a < content.axes; ++a) {
        const PanelAxis& of = content.axis(i, a);
        for (int64_t j = keys.prefix; j < keys.count; ++j) {
            const real* term = term_of(of, content.at[a * BLOCK + j], width);
            for (int64_t n = 0; n < own.vectors; ++n) {
                real* at = s + j * width + n * LANES;
                store(at, load(at) + load(term + of.place(n, width)));
            }
        }
    }
}

// Terms as seeds of the product, where they are all that scores start from, and there is at most one sum to be made.
inline void point_to_terms(const Panel& own, const Keys& keys, const Content& content, int64_t i, const real** row,
                           Seeds& seeds) {
    const int64_t width = own.lanes();
    for (int64_t a = 0; a < content.axes; ++a) {
        const PanelAxis& of = content.axis(i, a);
        const real** to = row + a * BLOCK;
        int64_t* place = a ? seeds.more_place : seeds.place;
        for (int64_t j = 0; j < keys.count; ++j) to[j] = term_of(of, content.at[a * BLOCK + j], width);
        for (int64_t n = 0; n < own.vectors; ++n) place[n] = of.place(n, width);
    }
    seeds.more = content.axes > 1 ? row + BLOCK : nullptr;
}

}  // namespace
