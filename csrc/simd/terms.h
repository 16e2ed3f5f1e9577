// What products are made of: numbers, or, with LOCANT_PAIRS, two bfloat16 side by side, whose products are summed in
// float. A processor that has an instruction for pairs (AVX512_BF16) multiplies them in half the time of floats; others
// multiply one number of all pairs after the other, as floats.
#pragma once

#include "simd/numbers.h"

namespace {

#ifdef LOCANT_PAIRS

typedef uint32_t term __attribute__((aligned(2), may_alias));  // the first number in the lower half
using element = BFloat16;                                      // as rows are stored

typedef integer loose_bits __attribute__((vector_size(BYTES), aligned(2), may_alias));
typedef uint16_t halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));

INLINE ivec load_bits(const term* from) { return *reinterpret_cast<const loose_bits*>(from); }
INLINE void store_bits(term* to, ivec x) { *reinterpret_cast<loose_bits*>(to) = x; }
INLINE ivec load_bits(const element* from) {
    return __builtin_convertvector(*reinterpret_cast<const halves*>(from), ivec);
}
INLINE vec load(const element* from) { return reinterpret_cast<vec>(load_bits(from) << 16); }

// To the nearest, ties to even; a NaN stays one.
INLINE void store(element* to, vec x) {
#ifdef __AVX512BF16__
    const auto rounded = _mm512_cvtneps_pbh(__m512(x));
    __builtin_memcpy(to, &rounded, sizeof rounded);
#else
    const ivec word = reinterpret_cast<ivec>(x), nan = ivec(x != x);
    const ivec rounded = (word + 0x7fff + (word >> 16 & 1)) >> 16;
    *reinterpret_cast<halves*>(to) = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), halves);
#endif
}

// Number `which` of pairs.
INLINE vec number_of(ivec pairs, unsigned which) {
    return reinterpret_cast<vec>(which ? pairs & ivec(ivec{} - 0x10000) : pairs << 16);
}

#ifdef __AVX512BF16__
constexpr unsigned TERM_PARTS = 1;
using factor = ivec;
INLINE factor factor_of(ivec pairs, unsigned) { return pairs; }
INLINE void add_product(vec& sum, factor a, factor b) {
    sum = vec(_mm512_dpbf16_ps(__m512(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}
#else
constexpr unsigned TERM_PARTS = 2;
using factor = vec;
INLINE factor factor_of(ivec pairs, unsigned part) { return number_of(pairs, part); }
INLINE void add_product(vec& sum, factor a, factor b) { sum += a * b; }
#endif
INLINE factor load_factor(const term* from, unsigned part) { return factor_of(load_bits(from), part); }
INLINE factor broadcast_factor(term x, unsigned part) { return factor_of(int32_t(x) - ivec{}, part); }
INLINE vec sum_of_term(const term* from) { return number_of(load_bits(from), 0) + number_of(load_bits(from), 1); }

#else

using term = real;
using element = real;
constexpr unsigned TERM_PARTS = 1;
using factor = vec;
INLINE factor load_factor(const term* from, unsigned) { return load(from); }
INLINE factor broadcast_factor(term x, unsigned) { return broadcast(x); }
INLINE vec sum_of_term(const term* from) { return load(from); }
INLINE void add_product(vec& sum, factor a, factor b) { sum += a * b; }

#endif

constexpr int64_t PER_TERM = int64_t(sizeof(term) / sizeof(element));
INLINE int64_t terms_of(int64_t numbers) { return (numbers + PER_TERM - 1) / PER_TERM; }

}  // namespace
