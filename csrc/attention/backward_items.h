// The backward pass in items of work, whose gradients backward.h computes.
//
// An item is one key head with a range of (sample, cell) pairs, or a range of keys where pairs are few. How many items
// there are never depends on threads. What several items add to (the table, and queries when keys are split) goes into
// partial sums that belong to them, and these are added in the order of items: the same bits for any number of threads.
#pragma once

#include "attention/backward.h"

namespace {

constexpr int64_t MARGIN = 4 * LANES;  // what slices may hang over, before and after a head's table

struct Division {               // of the backward pass into items
    int64_t ranges, splits;     // of (sample, cell) pairs, and of the keys of a pair
    int64_t table, vectors;     // numbers in an item's partial sums: of the table, and of what content meets
    int64_t queries, contents;  // of all queries, and of their content, per split
    int64_t group;              // query heads per key head

    int64_t items(const Problem& p) const { return p.kv_heads * ranges * splits; }
    // Where one item's sums of its g-th query head lie.
    TableSums sums(const Problem& p, real* item, int64_t g) const {
        const int64_t head = p.entries + 2 * MARGIN;
        return {item + g * head + MARGIN, item + group * head + g * round_up_to_lanes(3)};
    }
    ContentSums content_sums(const Problem& p, real* item, int64_t g) const {
        const int64_t each = vectors / group;
        real* own = item + table + g * each;
        return {own, p.vector_bias ? own + each - round_up_to_lanes(p.offsets) : nullptr};
    }
    int64_t sums_of_item() const { return table + vectors; }
    int64_t sums_of_split() const { return queries + contents; }
};

inline Division divide_backward(const Problem& p) {
    const Layout& layout = *p.layout;
    const int64_t pairs = p.batch * layout.cells;
    Division d{pairs < RANGES ? pairs : RANGES, 1, 0, 0, 0, 0, p.kv_heads ? p.heads / p.kv_heads : 0};
    if (layout.shared_keys) d.ranges = p.batch;
    else if (layout.cells == 1 && pairs * p.kv_heads < RANGES && pairs * p.kv_heads > 0) {
        const int64_t blocks = (layout.key_start[1] + BLOCK - 1) / BLOCK, wanted = RANGES / (pairs * p.kv_heads);
        d.splits = blocks < wanted ? (blocks ? blocks : 1) : wanted;
    }
    if (p.dtable) d.table = d.group * (p.entries + 2 * MARGIN) + d.group * round_up_to_lanes(3);
    if (p.dvectors) d.vectors = d.group * (p.offsets * round_up_to_lanes(p.head_dim) + round_up_to_lanes(p.offsets));
    if (d.splits > 1) d.queries = p.batch * p.heads * layout.queries * p.head_dim;
    if (p.dcontent.data) d.contents = d.queries;
    return d;
}

// --- gradients of keys ----------------------------------------------------------------------------------------------

// Add to the sums of keys that several cells share, or write.
INLINE void write_key(const Problem& p, const RowList& dk_rows, const RowList& dv_rows, int64_t i, const real* dk,
                      const real* dv, Backward& w) {
    if (p.layout->shared_keys) {
        const int64_t token = dk_rows.tokens[i];
        for (int64_t c = 0; c < w.wide; ++c) w.shared_dk[token * w.wide + c] += dk[c];
        for (int64_t c = 0; c < w.tall; ++c) w.shared_dv[token * w.tall + c] += dv[c];
    } else {
        write_row(dk_rows, i, p.head_dim, dk);
        write_row(dv_rows, i, p.value_dim, dv);
    }
}

// What was summed for the keys [low, high) of a cell, out to dk and dv: zeros for keys that are not there.
inline void write_keys(const Problem& p, const Chunk& chunk, Backward& w) {
    for (int64_t from = chunk.low; from < chunk.high; from += BLOCK) {
        const int64_t size = chunk.high - from < BLOCK ? chunk.high - from : BLOCK;
        const int32_t* key = chunk.key + from;
        const RowList dk_rows = rows_of(p.dtype, p.dk, chunk.sample, chunk.kv, key, size),
                      dv_rows = rows_of(p.dtype, p.dv, chunk.sample, chunk.kv, key, size);
        gather_keys(p, chunk.sample, key, size, w.keys);
        for (int64_t j = 0, found = 0; j < size; ++j) {
            real *dk = w.dk + (from + found) * w.wide, *dv = w.dv + (from + found) * w.tall;
            if (found < w.keys.count && w.keys.token[found] == key[j]) {
                for (int64_t c = 0; c < p.head_dim; ++c) dk[c] *= real(p.scale);
                ++found;
            } else {
                dk = dv = w.lines;
                fill(w.lines, 0, w.wide > w.tall ? w.wide : w.tall, 0);
            }
            write_key(p, dk_rows, dv_rows, j, dk, dv, w);
        }
    }
}

// The sums of keys that several cells share, after the last cell of a sample.
inline void write_shared_keys(const Problem& p, int64_t sample, int64_t kv, Backward& w) {
    for (int32_t j = 0; j < p.layout->keys; ++j) {
        write_row(rows_of(p.dtype, p.dk, sample, kv, &j, 1), 0, p.head_dim, w.shared_dk + j * w.wide);
        write_row(rows_of(p.dtype, p.dv, sample, kv, &j, 1), 0, p.value_dim, w.shared_dv + j * w.tall);
    }
}

// --- an item --------------------------------------------------------------------------------------------------------

// Note the rows that this pair writes and those that the next one reads: products fetch them.
inline void prefetch_backward(const Problem& p, const Chunk& cell, const Chunk& next, Prefetches& prefetches) {
    const auto keys = [&](const Rows& x, const Chunk& of) {
        return rows_of(p.dtype, x, of.sample, of.kv, of.key, of.high);
    };
    prefetch_rows(cell.queries_of(p, p.dq), p.head_dim, prefetches);
    prefetch_rows(keys(p.dk, cell), p.head_dim, prefetches);
    prefetch_rows(keys(p.dv, cell), p.value_dim, prefetches);
    prefetch_rows(next.queries_of(p, p.q), p.head_dim, prefetches);
    prefetch_rows(next.queries_of(p, p.dout), p.value_dim, prefetches);
    prefetch_rows(next.queries_of(p, p.out), p.value_dim, prefetches);
    prefetch_rows(keys(p.k, next), p.head_dim, prefetches);
    prefetch_rows(keys(p.v, next), p.value_dim, prefetches);
}

// One head's part of a cell: its chunks, and the table's gradient where it was summed over cells of this kind.
inline void backward_head(const Problem& p, Chunk cell, bool last, const BackwardTarget& target, Backward& w) {
    const int64_t size = chunk_size(cell.queries);
    Chunk chunk = cell;
    for (int64_t from = 0; from < cell.queries; from += size) {
        chunk.query = cell.query + from;
        chunk.queries = cell.queries - from < size ? cell.queries - from : size;
        backward_chunk(p, chunk, target, w);
    }
    if (cell.kept && target.sums.table && last) add_kind(p, cell, w.total, w.panel, target.sums);
}

// The gradients of queries that are written: those of the problem, or partial sums of this split.
INLINE BackwardTarget target_of(const Problem& p, const Division& by, int64_t split) {
    if (by.splits == 1) return {p.dq, p.dcontent, p.dtype, {}, {}};
    const int64_t token = p.head_dim, head = p.layout->queries * token;
    real* sums = static_cast<real*>(p.partial) + by.items(p) * by.sums_of_item() + split * by.sums_of_split();
    Rows dq{sums, p.heads * head, head, token, 1}, dcontent = dq;
    dcontent.data = p.dcontent.data ? sums + by.queries : nullptr;
    return {dq, dcontent, REAL_DTYPE, {}, {}};
}

inline void backward_item(const Problem& p, const Division& by, int64_t number, Backward& w) {
    // 1 what the item has: a key head, a range of pairs, a split of their keys; and its sums, which begin at 0
    const Layout& layout = *p.layout;
    const int64_t split = number % by.splits, range = number / by.splits % by.ranges,
                  kv = number / by.splits / by.ranges, pairs = p.batch * layout.cells;
    const int64_t begin = pairs * range / by.ranges, end = pairs * (range + 1) / by.ranges;
    real* sums = static_cast<real*>(p.partial) + number * by.sums_of_item();
    fill(sums, 0, by.sums_of_item(), 0);
    BackwardTarget target = target_of(p, by, split);
    const bool kept = shares_bias(p, RANGES);
    for (int64_t pair = begin; pair < end; ++pair) {
        // 2 the cell, for each head that shares its keys. A kept bias is one head's: it is there again if there is one
        Chunk cell = whole_cell(p, kv * by.group, kv, pair);
        const int64_t keys = cell.high, c = pair % layout.cells;
        const bool one_head = kept && by.group == 1;
        w.prefetches.clear();
        if (has_scattered_rows(p) && layout.longest <= CHUNK && pair + 1 < end)
            prefetch_backward(p, cell, whole_cell(p, kv * by.group, kv, pair + 1), w.prefetches);
        cell.low = keys * split / by.splits, cell.high = keys * (split + 1) / by.splits, cell.kept = kept;
        cell.again = one_head && pair > begin && same_kind(layout, pair, pair - 1);
        if (layout.shared_keys && c == 0)
            fill(w.shared_dk, 0, layout.keys * w.wide, 0), fill(w.shared_dv, 0, layout.keys * w.tall, 0);
        fill(w.dk, cell.low * w.wide, cell.high * w.wide, 0), fill(w.dv, cell.low * w.tall, cell.high * w.tall, 0);
        for (int64_t g = 0; g < by.group; ++g, ++cell.head) {
            if (p.dtable) target.sums = by.sums(p, sums, g);
            if (p.dvectors) target.content = by.content_sums(p, sums, g);
            const bool last = !one_head || pair + 1 == end || !same_kind(layout, pair, pair + 1);
            backward_head(p, cell, last, target, w);
        }
        // 3 gradients of its keys
        write_keys(p, cell, w);
        if (layout.shared_keys && c == layout.cells - 1) write_shared_keys(p, cell.sample, kv, w);
    }
}

// --- after all items ------------------------------------------------------------------------------------------------

// The gradients of queries of one head, or of their content, whose keys were split: the first split takes the others in.
inline void add_query_splits(const Problem& p, const Division& by, int64_t head, bool content) {
    real* splits = static_cast<real*>(p.partial) + by.items(p) * by.sums_of_item() + (content ? by.queries : 0);
    const int64_t width = p.head_dim;
    for (int64_t b = 0; b < p.batch; ++b)
        for (int32_t i = 0; i < p.layout->queries; ++i) {
            real* sum = splits + ((b * p.heads + head) * p.layout->queries + i) * width;
            for (int64_t s = 1; s < by.splits; ++s)
                for (int64_t c = 0; c < width; ++c) sum[c] += sum[s * by.sums_of_split() + c];
            write_row(rows_of(p.dtype, content ? p.dcontent : p.dq, b, head, &i, 1), 0, width, sum);
        }
}

// The gradients of one head's vectors, and of the numbers beside them.
inline void add_vector_sums(const Problem& p, const Division& by, int64_t head) {
    const int64_t kv = head / by.group, items = by.ranges * by.splits, depth = p.head_dim,
                  wide = round_up_to_lanes(depth);
    real *vectors = static_cast<real*>(p.dvectors) + head * p.offsets * depth,
         *bias = p.dvector_bias ? static_cast<real*>(p.dvector_bias) + head * p.offsets : nullptr;
    fill(vectors, 0, p.offsets * depth, 0);
    if (bias) fill(bias, 0, p.offsets, 0);
    for (int64_t i = 0; i < items; ++i) {
        real* item = static_cast<real*>(p.partial) + (kv * items + i) * by.sums_of_item();
        const ContentSums sums = by.content_sums(p, item, head % by.group);
        for (int64_t o = 0; o < p.offsets; ++o)
            for (int64_t c = 0; c < depth; ++c) vectors[o * depth + c] += sums.vectors[o * wide + c];
        for (int64_t o = 0; bias && o < p.offsets; ++o) bias[o] += sums.bias[o];
    }
}

// Add the partial sums of one head, in the order of items: this is the table's gradient.
inline void add_partial_sums(const Problem& p, const Division& by, int64_t head) {
    if (p.dtable) {
        const int64_t kv = head / by.group, items = by.ranges * by.splits;
        real* to = static_cast<real*>(p.dtable) + head * p.entries;
        real prefix[3] = {};
        fill(to, 0, p.entries, 0);
        for (int64_t i = 0; i < items; ++i) {
            real* item = static_cast<real*>(p.partial) + (kv * items + i) * by.sums_of_item();
            const TableSums sums = by.sums(p, item, head % by.group);
            for (int64_t x = 0; x < p.entries; ++x) to[x] += sums.table[x];
            for (int r = 0; r < 3; ++r) prefix[r] += sums.prefix[r];
        }
        for (int r = 0; r < 3 && p.dprefix_bias; ++r)
            static_cast<real*>(p.dprefix_bias)[r * p.heads + head] = prefix[r];
    }
    if (p.dvectors) add_vector_sums(p, by, head);
    if (by.splits > 1) add_query_splits(p, by, head, false);
    if (by.splits > 1 && p.dcontent.data) add_query_splits(p, by, head, true);
}

}  // namespace
