// Packed weights: strips of up to STRIP outputs, whose numbers lie in the order in which a product takes them.
//
//     strip 0: [inputs][STRIP]    strip 1: [inputs][STRIP]    ...    the last: [inputs][whole vectors that it needs]
//
// Outputs beyond the last are zeros.
#pragma once

#include "linear.h"
#include "simd/product.h"

namespace {

using locant::Weight;

constexpr int64_t STRIP = PANEL_LANES;  // outputs of a strip: the widest tile of a product
constexpr int64_t DEEPEST = 384;        // numbers of a sum at once: what a strip then reads stays in the cache

INLINE int64_t round_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t strips_of(int64_t outputs) { return (outputs + STRIP - 1) / STRIP; }
INLINE int64_t vectors_of(int64_t outputs) { return (outputs + LANES - 1) / LANES; }
INLINE int64_t width_of_strip(int64_t outputs, int64_t strip) {
    return round_up(least(outputs - strip * STRIP, STRIP), LANES);
}

// Parts of nearly even size, each a multiple of `step`, none longer than `longest`.
INLINE int64_t even_part(int64_t count, int64_t longest, int64_t step) {
    const int64_t parts = (count + longest - 1) / longest;
    return round_up((count + parts - 1) / parts, step);
}

inline int64_t numbers_of(const Weight& w) { return w.inputs * round_up(w.outputs, LANES); }

// Rows [0, count) of `width` numbers at any two steps, LANES by LANES through registers where neighbours run down.
inline void copy_strip(const real* from, int64_t down, int64_t across, int64_t count, int64_t real_width, int64_t width,
                       real* to) {
    int64_t k = 0;
    if (down == 1)
        for (; k + LANES <= count; k += LANES)
            for (int64_t n = 0; n < width; n += LANES) {
                vec square[LANES];
                UNROLL(i, LANES) square[i] = n + i < real_width ? load(from + k + (n + i) * across) : vec{};
                transpose(square);
                UNROLL(i, LANES) store(to + (k + i) * width + n, square[i]);
            }
    for (; k < count; ++k) {
        int64_t n = 0;
        if (across == 1)
            for (; n + LANES <= real_width; n += LANES) store(to + k * width + n, load(from + k * down + n));
        for (; n < width; ++n) to[k * width + n] = n < real_width ? from[k * down + n * across] : real(0);
    }
}

inline void pack_strip(const Weight& w, int64_t strip) {
    const int64_t start = strip * STRIP;
    copy_strip(static_cast<const real*>(w.packed_from) + start * w.output_step, w.input_step, w.output_step, w.inputs,
               least(w.outputs - start, STRIP), width_of_strip(w.outputs, strip),
               static_cast<real*>(w.packed) + start * w.inputs);
}

// rows × [columns of a strip] (+)= a[rows, depth] times `depth` inputs of the strip from `first`, in parts of the sum.
// The first part starts from `seeds` or, without them, from zero or from what is there.
template <bool ROWS>
INLINE void multiply_strip_by(int64_t rows, int64_t depth, A a, const real* strip, int64_t width, C c,
                              const Seeds* seeds, bool added) {
    Prefetches none{};
    const int64_t part = depth > DEEPEST ? even_part(depth, DEEPEST, 4) : depth;
    for (int64_t k = 0; k < depth; k += part) {
        const Into into = k || added ? Into::added : seeds ? Into::seeded : Into::fresh;
        multiply<ROWS>(rows, width / LANES, least(depth - k, part),
                       A{a.at + k * (ROWS ? 1 : a.column), a.row, a.column}, B{strip + k * width, width}, c, into, none,
                       into == Into::seeded ? seeds : nullptr);
    }
}

}  // namespace
