// Dropout on the weights, from a counter: weight (sample, head, query, key) has its own random number, whoever asks.
// src/locant/gpu/tiles.py says the same for GPUs, bit for bit: one seed drops the same weights on both.
#pragma once

#include "attention/panel.h"

namespace {

// A bijection of 32 bits in which every bit of x moves every bit of the result.
INLINE uint32_t mix(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// What the weights of one head of one sample have in common; row = sample * heads + head.
INLINE uint32_t dropout_key(uint64_t seed, uint32_t row) {
    return mix(uint32_t(seed) ^ mix(uint32_t(seed >> 32) ^ mix(row)));
}
INLINE uint32_t dropout_query(uint32_t key, uint32_t token) { return mix(key + token * 0x9e3779b9u); }
INLINE uint32_t dropout_key_token(uint32_t key, uint32_t token) {
    return mix((key ^ 0x85ebca6bu) + token * 0x9e3779b9u);
}

// 31 bits of a query and a key, which are mixed once each: what is left for a weight is short.
INLINE uint32_t random_bits(uint32_t query, uint32_t key) {
    uint32_t x = (query ^ key) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return (x ^ (x >> 16)) >> 1;
}

// s[j][lane], at j * step + lane, becomes 0 with probability `dropout`, else it is divided by 1 - dropout.
inline void drop_weights(const Problem& p, int64_t sample, int64_t head, const Queries& queries, const Keys& keys,
                         real* s, int64_t step) {
    constexpr int64_t AT_ONCE = 64;
    const real factor = real(1 / (1 - p.dropout));
    const uint32_t limit = uint32_t(p.dropout * 2147483648.0);
    const uint32_t key = dropout_key(p.seed, uint32_t(sample * p.heads + head));
    uint32_t query[AT_ONCE];
    for (int64_t first = 0; first < queries.count; first += AT_ONCE) {
        const int64_t count = queries.count - first < AT_ONCE ? queries.count - first : AT_ONCE;
        for (int64_t l = 0; l < count; ++l) query[l] = dropout_query(key, uint32_t(queries.token[first + l]));
        for (int64_t j = 0; j < keys.count; ++j) {
            const uint32_t other = dropout_key_token(key, uint32_t(keys.token[j]));
            real* row = s + j * step + first;
            for (int64_t l = 0; l < count; ++l)
                row[l] = random_bits(query[l], other) < limit ? real(0) : row[l] * factor;
        }
    }
}

}  // namespace
