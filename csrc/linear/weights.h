// Packed weights: strips of up to STRIP outputs, whose terms lie in the order in which a product takes them.
//
//     strip 0: [terms][STRIP]    strip 1: [terms][STRIP]    ...    the last: [terms][whole vectors that it needs]
//
// A term is the number of an input, or those of two. Outputs and inputs beyond the last are zeros.
#pragma once

#include "linear.h"
#include "simd/product.h"

namespace {

using locant::Weight;

constexpr int64_t STRIP = PANEL_LANES;  // outputs of a strip: the widest tile of a product
constexpr int64_t DEEPEST = 384;        // terms of a sum at once: what a strip then reads stays in the cache

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

inline int64_t numbers_of(const Weight& w) { return terms_of(w.inputs) * PER_TERM * round_up(w.outputs, LANES); }

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

#ifdef LOCANT_PAIRS
// The same of bfloat16: rows by twos, side by side. Where neighbours run down, pairs are neighbours already.
inline void copy_strip(const element* from, int64_t down, int64_t across, int64_t count, int64_t real_width,
                       int64_t width, term* to) {
    const bool aligned = reinterpret_cast<uintptr_t>(from) % sizeof(real) == 0 && across % 2 == 0 && count % 2 == 0;
    if (down == 1 && aligned)
        return copy_strip(reinterpret_cast<const real*>(from), 1, across / 2, count / 2, real_width, width,
                          reinterpret_cast<real*>(to));
    for (int64_t k = 0; k < count; k += 2, to += width) {
        const element *low = from + k * down, *high = low + down;
        const bool both = k + 1 < count;
        int64_t n = 0;
        if (across == 1)
            for (; n + LANES <= real_width; n += LANES)
                store_bits(to + n, load_bits(low + n) | (both ? load_bits(high + n) << 16 : ivec{}));
        for (; n < width; ++n) {
            to[n] = n < real_width ? low[n * across].bits : 0;
            if (n < real_width && both) to[n] |= uint32_t(high[n * across].bits) << 16;
        }
    }
}
#endif

inline void pack_strip(const Weight& w, int64_t strip) {
    const int64_t start = strip * STRIP;
    copy_strip(static_cast<const element*>(w.packed_from) + start * w.output_step, w.input_step, w.output_step,
               w.inputs, least(w.outputs - start, STRIP), width_of_strip(w.outputs, strip),
               static_cast<term*>(w.packed) + start * terms_of(w.inputs));
}

// Rows of numbers as rows of terms, which they are where they end with one; else copied, and a 0 put behind.
inline const term* rows_of_terms(const element* rows, int64_t count, int64_t width, element* copy) {
    const int64_t whole = terms_of(width) * PER_TERM;
    if (whole == width) return reinterpret_cast<const term*>(rows);
    for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < whole; ++c) copy[i * whole + c] = c < width ? rows[i * width + c] : element{};
    return reinterpret_cast<const term*>(copy);
}

// rows × [columns of a strip] (+)= a[rows, depth] times `depth` terms of the strip from `first`, in parts of the sum.
// The first part starts from `seeds` or, without them, from zero or from what is there.
template <bool ROWS>
INLINE void multiply_strip_by(int64_t rows, int64_t depth, A a, const term* strip, int64_t width, C c,
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
