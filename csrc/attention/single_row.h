// Queries that would leave most of a vector empty, one at a time: the 49th of a 7 × 7 window, a class token, the newest
// token of a sequence. Lanes are keys in the scores and channels in all else: what a vector of queries would compute
// for the empty lanes is saved.
#pragma once

#include "attention/bias.h"

namespace {

constexpr int64_t MAX_SINGLES = LANES / 4;  // one by one, these cost less than a vector that they would share

// How many of `count` queries are left out of panels: the last ones. With content in the forward pass alone, and where
// no panel makes terms: its lanes would share theirs.
INLINE int64_t single_rows(const Problem& p, int64_t count, bool learns) {
    const int64_t rest = count % LANES;
    const bool cheaper = rest <= MAX_SINGLES && (!p.vectors || (rest == count && !learns));
    return cheaper && p.head_dim % LANES == 0 && p.value_dim % LANES == 0 ? rest : 0;
}

struct SingleRow {
    Queries query;
    Visibility seen;  // of the block at hand
    bool begun;       // whether `o`, or `dq`, holds anything yet
    real* q;          // scaled, in units of log 2
    real* content;    // what meets vectors, likewise
};

INLINE SingleRow single_row(const Problem& p, const int32_t* token, real* q, real* content) {
    return {{token, 1, *token < p.layout->query_prefix}, Visibility::none, false, q, content};
}

// Lane r is the sum of row r.
INLINE vec sums_of_rows(vec (&row)[LANES]) {
    if constexpr (LANES >= 2)
        for (int i = 0; i < LANES; i += 2) exchange_lanes<1>(row[i], row[i + 1]), row[i] += row[i + 1];
    if constexpr (LANES >= 4)
        for (int i = 0; i < LANES; i += 4) exchange_lanes<2>(row[i], row[i + 2]), row[i] += row[i + 2];
    if constexpr (LANES >= 8)
        for (int i = 0; i < LANES; i += 8) exchange_lanes<4>(row[i], row[i + 4]), row[i] += row[i + 4];
    if constexpr (LANES >= 16) exchange_lanes<8>(row[0], row[8]), row[0] += row[8];
    return row[0];
}

// s[j] += x · row j, for n rows of whole vectors; numbers of s beyond n, up to a whole vector, stay.
inline void add_dot_products(int64_t n, int64_t depth, const real* x, const real* rows, real* s) {
    for (int64_t j = 0; j < n; j += LANES) {
        vec sum[LANES];
        if (j + LANES <= n) {
            UNROLL(r, LANES) sum[r] = load(x) * load(rows + (j + r) * depth);
            for (int64_t c = LANES; c < depth; c += LANES)
                UNROLL(r, LANES) sum[r] += load(x + c) * load(rows + (j + r) * depth + c);
        } else {
            UNROLL(r, LANES) {
                sum[r] = vec{};
                if (j + r < n)
                    for (int64_t c = 0; c < depth; c += LANES) sum[r] += load(x + c) * load(rows + (j + r) * depth + c);
            }
        }
        store(s + j, load(s + j) + sums_of_rows(sum));
    }
}

// to = or += the sum of s[j] · row j, in four sums side by side.
template <unsigned WIDTH>
INLINE void weighted_sum(int64_t n, const real* s, const real* rows, int64_t step, real* to, bool added) {
    vec sum[4][WIDTH];
    UNROLL(u, 4) UNROLL(c, WIDTH) sum[u][c] = vec{};
    int64_t j = 0;
    for (; j + 4 <= n; j += 4)
        UNROLL(u, 4) UNROLL(c, WIDTH) sum[u][c] += s[j + u] * load(rows + (j + u) * step + c * LANES);
    for (; j < n; ++j) UNROLL(c, WIDTH) sum[0][c] += s[j] * load(rows + j * step + c * LANES);
    UNROLL(c, WIDTH) {
        const vec total = (sum[0][c] + sum[1][c]) + (sum[2][c] + sum[3][c]);
        store(to + c * LANES, added ? load(to + c * LANES) + total : total);
    }
}

inline void weighted_sum(int64_t n, int64_t channels, const real* s, const real* rows, real* to, bool added) {
    int64_t c = 0;
    for (; c + 2 * LANES <= channels; c += 2 * LANES) weighted_sum<2>(n, s, rows + c, channels, to + c, added);
    if (c < channels) weighted_sum<1>(n, s, rows + c, channels, to + c, added);
}

// s[j] += the terms of content, for the keys that have a place: those of the block's offsets are made side by side,
// where a panel's would be, and each key takes the one of its own offset.
inline void add_single_row_terms(const Problem& p, int64_t head, const SingleRow& one, const Keys& keys,
                                 const Content& content, real* s) {
    for (int64_t a = 0; a < content.axes && !one.query.prefix && keys.prefix < keys.count; ++a) {
        const int64_t at = p.layout->query_at[a * p.layout->queries + *one.query.token];
        const int64_t lowest = axis_number(p, a, locant::LOWEST_OFFSET), highest = lowest + offsets_of(p, a) - 1;
        const auto clamp = [&](int64_t x) INLINE_LAMBDA { return x < lowest ? lowest : x > highest ? highest : x; };
        const int64_t low = clamp(at - content.block[a].high), count = clamp(at - content.block[a].low) - low + 1;
        const int64_t group = p.vector_heads == 1 ? 0 : head;
        const int64_t vector = group * p.offsets + first_offset(p, a) + low - lowest;
        real* term = content.axis(0, a).term;
        fill(term, 0, round_up_to_lanes(count), 0);
        if (p.vector_bias) {
            const real *bias = static_cast<const real*>(p.vector_bias) + vector, scale = real(p.content_scale) * LOG2E;
            for (int64_t r = 0; r < count; ++r) term[r] = bias[r] * scale;
        }
        const real* vectors = static_cast<const real*>(p.vectors) + vector * p.head_dim;
        add_dot_products(count, p.head_dim, one.content, vectors, term);
        const int32_t* key_at = content.at + a * BLOCK;
        for (int64_t j = keys.prefix; j < keys.count; ++j) s[j] += term[clamp(at - key_at[j]) - low];
    }
}

// Scores before their product: bias and terms in units of log 2, -inf where forbidden and beyond the last key.
inline void single_row_bias(const Problem& p, int64_t sample, int64_t head, const SingleRow& one, const Keys& keys,
                            const Content& content, real* s) {
    const Queries& query = one.query;
    fill(s, 0, keys.count, 0);
    fill(s, keys.count, round_up_to_lanes(keys.count), -INF);
    if (p.table) {
        const real* table = table_of(p, head) + p.layout->query_place[*query.token];
        fill(s, 0, keys.prefix, prefix_bias(p, query.prefix ? locant::BOTH_PREFIX : locant::KEY_PREFIX, head));
        if (query.prefix)
            fill(s, keys.prefix, keys.count, prefix_bias(p, locant::QUERY_PREFIX, head));
        else
            for (int64_t j = keys.prefix; j < keys.count; ++j) s[j] = table[-int64_t(keys.place[j])];
    }
    if (p.vectors) add_single_row_terms(p, head, one, keys, content, s);
    if (one.seen == Visibility::some)
        for (int64_t j = 0; j < keys.count; ++j) mask_scores(p, sample, query, keys.token[j], s + j);
}

// Scores to weights, in place, as softmax_block does for a panel.
inline void single_row_softmax(int64_t n, real* s, real& top, real& sum, int64_t channels, real* o, bool fresh) {
    vec most = broadcast(LOWEST);
    for (int64_t j = 0; j < n; j += LANES) most = max_of(load(s + j), most);
    const real highest = reduce_lanes(most, [](vec a, vec b) INLINE_LAMBDA { return max_of(a, b); })[0];
    const real before = fresh ? LOWEST : top;
    top = highest > before + real(20) ? round_to_whole(broadcast(highest))[0] : before;
    if (!fresh && top != before) {
        const vec factor = exp2(broadcast(before - top));
        sum *= factor[0];
        for (int64_t c = 0; c < channels; c += LANES) store(o + c, load(o + c) * factor);
    }
    vec total{};
    for (int64_t j = 0; j < n; j += LANES) {
        const vec weight = exp2(load(s + j) - top);
        store(s + j, weight);
        total += weight;
    }
    total = reduce_lanes(total, [](vec a, vec b) INLINE_LAMBDA { return a + b; });
    sum = fresh ? total[0] : sum + total[0];
}

// s: scores -> weights; d: dP -> dS, as softmax_backward does for a panel.
inline void single_row_softmax_backward(int64_t n, real lse, real delta, real* s, real* d) {
    for (int64_t j = 0; j < n; j += LANES) {
        const vec weight = exp2(load(s + j) - lse);
        store(s + j, weight);
        store(d + j, weight * (load(d + j) - delta));
    }
}

// Add dS to the table, and to the three numbers that hold for tokens without a place.
inline void single_row_table_gradient(const Problem& p, const Queries& query, const Keys& keys, const real* d,
                                      real* table, real* prefix) {
    real* own = table + p.layout->query_place[*query.token];
    for (int64_t j = 0; j < keys.prefix; ++j) prefix[query.prefix ? locant::BOTH_PREFIX : locant::KEY_PREFIX] += d[j];
    for (int64_t j = keys.prefix; j < keys.count; ++j) {
        if (query.prefix) prefix[locant::QUERY_PREFIX] += d[j];
        else own[-int64_t(keys.place[j])] += d[j];
    }
}

}  // namespace
