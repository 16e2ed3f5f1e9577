// Queries that would leave most of a vector empty, one at a time: the 49th of a 7 × 7 window, a class token, the newest
// token of a sequence. Lanes are keys in the scores and channels in all else: what a vector of queries would compute
// for the empty lanes is saved.
#pragma once

#include "dropout.h"
#include "panel.h"

namespace {

constexpr int64_t FEW = LANES / 4;  // one by one, these cost less than a vector that they would share

// How many of `count` queries are left to themselves: the last ones.
INLINE int64_t lone(const Problem& p, int64_t count) {
    const int64_t rest = count % LANES;
    return rest <= FEW && p.head_dim % LANES == 0 && p.value_dim % LANES == 0 ? rest : 0;
}

INLINE Queries lone(const Problem& p, const int32_t* token) { return {token, 1, *token < p.layout->query_prefix}; }

// Lane r is the sum of row r.
INLINE vec folded(vec (&row)[LANES]) {
    if constexpr (LANES >= 2)
        for (int i = 0; i < LANES; i += 2) exchange<1>(row[i], row[i + 1]), row[i] += row[i + 1];
    if constexpr (LANES >= 4)
        for (int i = 0; i < LANES; i += 4) exchange<2>(row[i], row[i + 2]), row[i] += row[i + 2];
    if constexpr (LANES >= 8)
        for (int i = 0; i < LANES; i += 8) exchange<4>(row[i], row[i + 4]), row[i] += row[i + 4];
    if constexpr (LANES >= 16) exchange<8>(row[0], row[8]), row[0] += row[8];
    return row[0];
}

// s[j] += x · row j, for n rows of whole vectors; numbers of s beyond n, up to a whole vector, stay.
inline void lone_scores(int64_t n, int64_t depth, const real* x, const real* rows, real* s) {
    for (int64_t j = 0; j < n; j += LANES) {
        vec sum[LANES];
        if (j + LANES <= n) {
            EACH(r, LANES) sum[r] = load(x) * load(rows + (j + r) * depth);
            for (int64_t c = LANES; c < depth; c += LANES)
                EACH(r, LANES) sum[r] += load(x + c) * load(rows + (j + r) * depth + c);
        } else {
            EACH(r, LANES) {
                sum[r] = vec{};
                if (j + r < n)
                    for (int64_t c = 0; c < depth; c += LANES) sum[r] += load(x + c) * load(rows + (j + r) * depth + c);
            }
        }
        store(s + j, load(s + j) + folded(sum));
    }
}

// to = or += the sum of s[j] · row j, in four sums side by side.
template <unsigned WIDTH>
INLINE void lone_sum(int64_t n, const real* s, const real* rows, int64_t step, real* to, bool added) {
    vec sum[4][WIDTH];
    EACH(u, 4) EACH(c, WIDTH) sum[u][c] = vec{};
    int64_t j = 0;
    for (; j + 4 <= n; j += 4)
        EACH(u, 4) EACH(c, WIDTH) sum[u][c] += s[j + u] * load(rows + (j + u) * step + c * LANES);
    for (; j < n; ++j) EACH(c, WIDTH) sum[0][c] += s[j] * load(rows + j * step + c * LANES);
    EACH(c, WIDTH) {
        const vec all = (sum[0][c] + sum[1][c]) + (sum[2][c] + sum[3][c]);
        store(to + c * LANES, added ? load(to + c * LANES) + all : all);
    }
}

inline void lone_sum(int64_t n, int64_t channels, const real* s, const real* rows, real* to, bool added) {
    int64_t c = 0;
    for (; c + 2 * LANES <= channels; c += 2 * LANES) lone_sum<2>(n, s, rows + c, channels, to + c, added);
    if (c < channels) lone_sum<1>(n, s, rows + c, channels, to + c, added);
}

// Scores before their content: the bias in units of log 2, -inf where forbidden and beyond the last key.
inline void lone_seed(const Problem& p, int64_t sample, int64_t head, const Queries& query, const Keys& keys, Sight seen,
                      real* s) {
    fill(s, 0, keys.count, 0);
    fill(s, keys.count, (keys.count + LANES - 1) / LANES * LANES, -INFINITE);
    if (p.table) {
        const real* table = static_cast<const real*>(p.table) + head * p.entries + p.layout->query_place[*query.token];
        fill(s, 0, keys.prefix, prefix_bias(p, query.prefix ? locant::BOTH_PREFIX : locant::KEY_PREFIX, head));
        if (query.prefix)
            fill(s, keys.prefix, keys.count, prefix_bias(p, locant::QUERY_PREFIX, head));
        else
            for (int64_t j = keys.prefix; j < keys.count; ++j) s[j] = table[-int64_t(keys.place[j])];
    }
    if (seen == Sight::some)
        for (int64_t j = 0; j < keys.count; ++j) forbid(p, sample, query, keys.token[j], s + j);
}

// Scores to weights, in place, as `soften` does for a query.
inline void lone_soften(int64_t n, real* s, real& top, real& sum, int64_t channels, real* o, bool fresh) {
    vec most = all(LOWEST);
    for (int64_t j = 0; j < n; j += LANES) most = larger(load(s + j), most);
    const real highest = across(most, [](vec a, vec b) INLINED { return larger(a, b); })[0];
    const real before = fresh ? LOWEST : top;
    top = highest > before + real(20) ? rounded(all(highest))[0] : before;
    if (!fresh && top != before) {
        const vec factor = exp2(all(before - top));
        sum *= factor[0];
        for (int64_t c = 0; c < channels; c += LANES) store(o + c, load(o + c) * factor);
    }
    vec total{};
    for (int64_t j = 0; j < n; j += LANES) {
        const vec weight = exp2(load(s + j) - top);
        store(s + j, weight);
        total += weight;
    }
    total = across(total, [](vec a, vec b) INLINED { return a + b; });
    sum = fresh ? total[0] : sum + total[0];
}

// s: scores -> weights; d: gradients of weights -> gradients of scores, as `harden` does for a query.
inline void lone_harden(int64_t n, real lse, real delta, real* s, real* d) {
    for (int64_t j = 0; j < n; j += LANES) {
        const vec weight = exp2(load(s + j) - lse);
        store(s + j, weight);
        store(d + j, weight * (load(d + j) - delta));
    }
}

// The gradients of scores, to the table and the three numbers that hold for tokens without a place.
inline void lone_collect(const Problem& p, const Queries& query, const Keys& keys, const real* d, real* table, real* rows) {
    real* own = table + p.layout->query_place[*query.token];
    for (int64_t j = 0; j < keys.prefix; ++j) rows[query.prefix ? 2 : 1] += d[j];
    for (int64_t j = keys.prefix; j < keys.count; ++j) {
        if (query.prefix) rows[0] += d[j];
        else own[-int64_t(keys.place[j])] += d[j];
    }
}

}  // namespace
