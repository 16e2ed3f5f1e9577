// Gradients: of weights, and of a perceptron's hidden layer.
#pragma once

#include "linear/forward.h"

namespace {

using locant::HiddenGradient;
using locant::WeightGradient;

// --- of weights: dW = dYᵀ X -----------------------------------------------------------------------------------------

constexpr int64_t SUMMED = 256;   // rows at once, or pairs of them: both operands of a block are copied together, and stay in the cache
constexpr int64_t OUTPUTS = 192;  // of a block, at most

// Blocks of outputs times groups of strips of inputs; then the strips of the bias. Threads only decide how fine: as
// many parts as they need, of the shape that copies least.
struct WeightShares {
    int64_t block = 1, blocks = 0, group = 1, groups = 0;
    WeightShares(const WeightGradient& p, int threads) {
        if (!p.outputs || !p.inputs) return;
        const int64_t wanted = threads > 1 ? 2 * threads : 1, strips = strips_of(p.inputs);
        const int64_t fewest = (p.outputs + OUTPUTS - 1) / OUTPUTS, most = (p.outputs + 2 * TILE - 1) / (2 * TILE);
        int64_t cheapest = -1;
        for (int64_t b = fewest; b <= most && b <= fewest + wanted; ++b) {
            const int64_t g = least(strips, (wanted + b - 1) / b), cost = p.outputs * g + p.inputs * b;
            if (b * g < wanted && b < most) continue;
            if (cheapest < 0 || cost < cheapest) cheapest = cost, blocks = b, groups = g;
        }
        block = round_up((p.outputs + blocks - 1) / blocks, TILE), blocks = (p.outputs + block - 1) / block;
        group = (strips + groups - 1) / groups, groups = (strips + group - 1) / group;
    }
    INLINE int64_t items() const { return blocks * groups; }
};

struct WeightGradientWork {
    term *given, *strip;
    real *sums, *bias;
    WeightGradientWork(const WeightShares& by, Arena& arena)
        : given(arena.allocate<term>(SUMMED * round_up(by.block, LANES))), strip(arena.allocate<term>(SUMMED * STRIP)),
          sums(arena.allocate<real>(by.block * by.group * STRIP)), bias(arena.allocate<real>(round_up(by.block, LANES))) {}
};

// to[n] += the sum over rows of whole vectors. Sums of some rows, added to the others', round less than one sum.
inline void add_rows(const term* from, int64_t rows, int64_t width, real* to) {
    for (int64_t n = 0; n < width; n += LANES) {
        vec sum[4] = {};
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4) UNROLL(i, 4) sum[i] += sum_of_term(from + (r + i) * width + n);
        for (; r < rows; ++r) sum[0] += sum_of_term(from + r * width + n);
        store(to + n, load(to + n) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
}

// A part of a gradient to its place.
INLINE void put(const real* sums, int64_t count, bool added, real* to) {
    for (int64_t n = 0; n < count; ++n) to[n] = added ? to[n] + sums[n] : sums[n];
}

inline void weight_gradient_item(const WeightGradient& p, const WeightShares& by, int64_t item, WeightGradientWork& w) {
    // 1 which part of dW; whoever has its first columns has that part of db
    const int64_t low = item % by.blocks * by.block, outputs = least(p.outputs - low, by.block);
    const int64_t first = item / by.blocks * by.group, last = least(strips_of(p.inputs), first + by.group);
    const int64_t wide = round_up(outputs, LANES), size = by.block * STRIP;
    const element *dy = static_cast<const element*>(p.dy) + low, *x = static_cast<const element*>(p.x);
    const bool bias = p.db && first == 0;
    for (int64_t i = 0; i < (p.rows ? 0 : (last - first) * size); ++i) w.sums[i] = 0;
    for (int64_t n = 0; n < wide; ++n) w.bias[n] = 0;
    // 2 rows by rows: both operands copied side by side, and their products added
    Prefetches none{};
    for (int64_t r = 0; r < p.rows; r += SUMMED * PER_TERM) {
        const int64_t rows = least(p.rows - r, SUMMED * PER_TERM);
        copy_strip(dy + r * p.outputs, p.outputs, 1, rows, outputs, wide, w.given);
        if (bias) add_rows(w.given, terms_of(rows), wide, w.bias);
        for (int64_t s = first; s < (p.dw ? last : first); ++s) {
            const int64_t column = s * STRIP, width = width_of_strip(p.inputs, s);
            copy_strip(x + r * p.inputs + column, p.inputs, 1, rows, least(p.inputs - column, STRIP), width, w.strip);
            multiply<false>(outputs, width / LANES, terms_of(rows), A{w.given, 1, wide}, B{w.strip, width},
                            C{w.sums + (s - first) * size, STRIP}, r ? Into::added : Into::fresh, none);
        }
    }
    // 3 to their places
    if (bias) put(w.bias, outputs, p.added, static_cast<real*>(p.db) + low);
    for (int64_t s = first; s < (p.dw ? last : first); ++s)
        for (int64_t m = 0; m < outputs; ++m)
            put(w.sums + (s - first) * size + m * STRIP, least(p.inputs - s * STRIP, STRIP), p.added,
                static_cast<real*>(p.dw) + (low + m) * p.inputs + s * STRIP);
}

// --- of a hidden layer ----------------------------------------------------------------------------------------------

struct HiddenGradientWork {
    element* rows;
    real *tile, *sums;
    HiddenGradientWork(const HiddenGradient& p, int64_t block, Arena& arena)
        : rows(arena.allocate<element>(PER_TERM > 1 ? block * (1 + (p.hidden > p.outputs ? p.hidden : p.outputs)) : 0)),
          tile(arena.allocate<real>(block * STRIP)), sums(arena.allocate<real>(block * round_up(p.inputs, LANES))) {}
};

// One row: dh = given ∘ act'(h), after = act(h).
template <Activation which>
INLINE void bend_row(const real* given, const element* before, int64_t count, element* dh, element* after) {
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) {
        const vec h = load(before + c);
        store(dh + c, load(given + c) * slope<which>(h));
        store(after + c, activate<which>(h));
    }
    if (c == count) return;
    real h[LANES] = {}, steep[LANES], bent[LANES];
    for (int64_t i = c; i < count; ++i) h[i - c] = read(before + i);
    store(steep, slope<which>(load(h))), store(bent, activate<which>(load(h)));
    for (int64_t i = c; i < count; ++i) write(dh + i, given[i] * steep[i - c]), write(after + i, bent[i - c]);
}

inline void hidden_gradient_item(const HiddenGradient& p, const Shares& by, int64_t item, HiddenGradientWork& w) {
    // 1 which rows
    const int64_t start = item * by.block, rows = least(p.rows - start, by.block), wide = round_up(p.inputs, LANES);
    const element* dy = static_cast<const element*>(p.dy) + start * p.outputs;
    const element* before = static_cast<const element*>(p.before) + start * p.hidden;
    element *dh = static_cast<element*>(p.dh) + start * p.hidden, *after = static_cast<element*>(p.after) + start * p.hidden;
    const auto *turned1 = static_cast<const term*>(p.turned1), *turned2 = static_cast<const term*>(p.turned2);
    const int64_t outputs = terms_of(p.outputs), hidden = terms_of(p.hidden);
    // 2 dh = (dY W2ᵀ) ∘ act'(h), and act(h)
    const A given{rows_of_terms(dy, rows, p.outputs, w.rows), outputs, 1};
    for (int64_t s = 0; s < strips_of(p.hidden); ++s) {
        const int64_t column = s * STRIP, width = width_of_strip(p.hidden, s), count = least(p.hidden - column, STRIP);
        multiply_strip_by<true>(rows, outputs, given, turned2 + column * outputs, width, C{w.tile, width}, nullptr, false);
        with_activation(p.activation, [&](auto which) INLINE_LAMBDA {
            for (int64_t i = 0; i < rows; ++i) {
                const int64_t at = i * p.hidden + column;
                bend_row<which()>(w.tile + i * width, before + at, count, dh + at, after + at);
            }
        });
    }
    if (!p.dx) return;
    // 3 dx = dh W1ᵀ
    const A bent{rows_of_terms(dh, rows, p.hidden, w.rows), hidden, 1};
    for (int64_t s = 0; s < strips_of(p.inputs); ++s) {
        const int64_t column = s * STRIP, width = width_of_strip(p.inputs, s);
        multiply_strip_by<true>(rows, hidden, bent, turned1 + column * hidden, width, C{w.sums + column, wide}, nullptr,
                                false);
    }
    finish_rows(rows, p.inputs, w.sums, wide,
                {int64_t(Activation::none), nullptr, nullptr, nullptr, static_cast<element*>(p.dx) + start * p.inputs, 0,
                 p.inputs});
}

}  // namespace
