// Dropout on the weights, from a counter: weight (sample, head, query, key) has its own random number, whoever asks.
#pragma once

#include "attention/panel.h"

namespace {

// Two rounds of a 64-bit multiply-and-fold over what names a weight.
INLINE uint32_t random_bits(uint64_t seed, uint64_t pair, uint64_t row) {
    uint64_t x = seed ^ (row * 0x9e3779b97f4a7c15u) ^ (pair * 0xd1342543de82ef95u);
    x = (x ^ (x >> 32)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 29)) * 0x94d049bb133111ebu;
    return uint32_t((x ^ (x >> 31)) >> 32);
}

// s[j][lane], at j * step + lane, becomes 0 with probability `dropout`, else it is divided by 1 - dropout.
inline void drop_weights(const Problem& p, int64_t sample, int64_t head, const Queries& queries, const Keys& keys,
                         real* s, int64_t step) {
    const real factor = real(1 / (1 - p.dropout));
    const uint32_t limit = uint32_t(p.dropout * 4294967296.0);
    const uint64_t row = uint64_t(sample * p.heads + head);
    for (int64_t j = 0; j < keys.count; ++j)
        for (int64_t l = 0; l < queries.count; ++l) {
            const uint64_t pair = uint64_t(uint32_t(queries.token[l])) << 32 | uint32_t(keys.token[j]);
            real& x = s[j * step + l];
            x = random_bits(p.seed, pair, row) < limit ? real(0) : x * factor;
        }
}

}  // namespace
