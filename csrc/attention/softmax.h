// Softmax of a panel, block by block, and its gradient. Lanes are queries, rows are keys; scores are in units of log 2.
//
// Each lane has a whole-numbered reference `top`, from which weights are 2^(s - top). It moves only when a block
// exceeds it by 20, that is a factor of 2^20, and then what was summed is scaled by an exact power of 2.
#pragma once

#include "attention/bias.h"

namespace {

constexpr real FAR = sizeof(real) == 4 ? real(1 << 21) : real(1ll << 50);  // where references meet MAGIC's precision

struct RunningSoftmax {    // of a panel, over the blocks so far
    real *top, *sum, *o;   // [lane], [lane], [channel][lane]
    int64_t channels;
    bool fresh;            // nothing was summed yet, and o holds nothing
};

// Raise the references that the block exceeds. Returns whether one is so far from 0 that MAGIC cannot hold it.
template <unsigned WIDTH>
INLINE bool raise_tops(const RunningSoftmax& run, const vec (&highest)[WIDTH], vec (&reference)[WIDTH]) {
    constexpr int64_t lanes = WIDTH * LANES;
    bool far = false;
    UNROLL(n, WIDTH) {
        const vec before = run.fresh ? broadcast(LOWEST) : load(run.top + n * LANES);
        const ivec above = highest[n] > before + real(20);
        reference[n] = before;
        if (any_lane(above)) {
            reference[n] = above ? round_to_whole(highest[n]) : before;
            const vec factor = exp2(before - reference[n]);
            if (!run.fresh) {
                store(run.sum + n * LANES, load(run.sum + n * LANES) * factor);
                for (int64_t c = 0; c < run.channels; ++c)
                    store(run.o + c * lanes + n * LANES, load(run.o + c * lanes + n * LANES) * factor);
            }
        }
        store(run.top + n * LANES, reference[n]);
        far = far || any_lane((reference[n] > FAR) | (reference[n] < -FAR) | (reference[n] != reference[n]));
    }
    return far;
}

// Scores to weights, in place.
template <unsigned WIDTH> inline void softmax_block(int64_t keys, real* s, const RunningSoftmax& run) {
    constexpr int64_t lanes = WIDTH * LANES;
    vec highest[WIDTH], reference[WIDTH], total[WIDTH];
    // 1 the highest score of each lane, and its reference
    UNROLL(n, WIDTH) highest[n] = broadcast(LOWEST), total[n] = vec{};
    for (int64_t j = 0; j < keys; ++j)
        UNROLL(n, WIDTH) highest[n] = max_of(load(s + j * lanes + n * LANES), highest[n]);
    // 2 weights: the reference is subtracted inside exp2, unless it is too far from 0 for that
    if (raise_tops<WIDTH>(run, highest, reference)) {
        for (int64_t j = 0; j < keys; ++j)
            for (unsigned n = 0; n < WIDTH; ++n) {
                const vec weight = exp2(load(s + j * lanes + n * LANES) - reference[n]);
                store(s + j * lanes + n * LANES, weight);
                total[n] += weight;
            }
    } else {
        vec magic[WIDTH], least[WIDTH];
        UNROLL(n, WIDTH) magic[n] = MAGIC - reference[n], least[n] = reference[n] + SMALLEST;
        for (int64_t j = 0; j < keys; ++j) {
            vec weight[WIDTH];
            UNROLL(n, WIDTH) weight[n] = load(s + j * lanes + n * LANES);
            exp2<WIDTH>(weight, magic, least);
            UNROLL(n, WIDTH) store(s + j * lanes + n * LANES, weight[n]), total[n] += weight[n];
        }
    }
    // 3 their sum
    UNROLL(n, WIDTH) store(run.sum + n * LANES, run.fresh ? total[n] : load(run.sum + n * LANES) + total[n]);
}

INLINE void softmax_block(int64_t vectors, int64_t keys, real* s, const RunningSoftmax& run) {
    if (vectors == 1) softmax_block<1>(keys, s, run);
    if (vectors == 2) softmax_block<2>(keys, s, run);
    if constexpr (MAX_VECTORS >= 4) {
        if (vectors == 3) softmax_block<3>(keys, s, run);
        if (vectors == 4) softmax_block<4>(keys, s, run);
    }
}

// s: scores -> weights P = 2^(s - lse); d: dP -> dS = P (dP - delta). With TABLE dS is added, while it is at hand, to
// the slices of the table that the bias was read from. Keys from the four quarters of the block take turns:
// neighbouring keys touch overlapping slices, and a load waits for a store that it half overlaps.
template <unsigned WIDTH, bool TABLE>
inline void softmax_backward(const Panel& panel, const Keys& keys, const real* lse, const real* delta, real* table,
                             real* s, real* d) {
    constexpr int64_t lanes = WIDTH * LANES;
    vec sum[WIDTH], less[WIDTH], magic[WIDTH], least[WIDTH];
    UNROLL(n, WIDTH) sum[n] = load(lse + n * LANES), less[n] = load(delta + n * LANES);
    UNROLL(n, WIDTH) magic[n] = broadcast(MAGIC), least[n] = broadcast(SMALLEST);
    const auto key = [&](int64_t j) INLINE_LAMBDA {
        vec weight[WIDTH];
        UNROLL(n, WIDTH) weight[n] = load(s + j * lanes + n * LANES) - sum[n];
        exp2<WIDTH>(weight, magic, least);
        UNROLL(n, WIDTH) store(s + j * lanes + n * LANES, weight[n]);
        UNROLL(n, WIDTH) weight[n] *= load(d + j * lanes + n * LANES) - less[n];
        UNROLL(n, WIDTH) store(d + j * lanes + n * LANES, weight[n]);
        if constexpr (TABLE) {
            if (j < keys.prefix) return;
            real* to = table - keys.place[j];
            UNROLL(n, WIDTH) {
                for (int64_t i = panel.slices[n]; i < panel.slices[n + 1]; ++i) {
                    real* at = to + panel.slice[i].place;
                    store(at, load(at) + zero_unless(panel.slice[i].lanes, weight[n]));
                }
            }
        }
    };
    const int64_t quarter = keys.count / 4;
    for (int64_t j = 0; j < quarter; ++j) key(j), key(j + quarter), key(j + 2 * quarter), key(j + 3 * quarter);
    for (int64_t j = 4 * quarter; j < keys.count; ++j) key(j);
}

template <bool TABLE>
INLINE void softmax_backward(const Panel& panel, const Keys& keys, const real* lse, const real* delta, real* table,
                             real* s, real* d) {
    if (panel.vectors == 1) softmax_backward<1, TABLE>(panel, keys, lse, delta, table, s, d);
    if (panel.vectors == 2) softmax_backward<2, TABLE>(panel, keys, lse, delta, table, s, d);
    if constexpr (MAX_VECTORS >= 4) {
        if (panel.vectors == 3) softmax_backward<3, TABLE>(panel, keys, lse, delta, table, s, d);
        if (panel.vectors == 4) softmax_backward<4, TABLE>(panel, keys, lse, delta, table, s, d);
    }
}

}  // namespace
