// What products are made of: numbers, or pairs, two bfloat16 side by side, whose products are summed in float. A
// processor that has an instruction for pairs (AVX512_BF16) multiplies them in half the time of floats; others multiply
// one number of all pairs after the other, as floats.
//
// With LOCANT_PAIRS all products are of pairs (csrc/linear), with LOCANT_TILES attention's may be.
#pragma once

#include "simd/numbers.h"

namespace {

template <bool PAIRS> struct TermOf { using type = real; };
template <bool PAIRS> constexpr unsigned TERM_PARTS = 1;  // products that a term takes

INLINE vec load_factor(const real* from, unsigned) { return load(from); }
INLINE vec broadcast_factor(real x, unsigned) { return broadcast(x); }
INLINE void add_product(vec& sum, vec a, vec b) { sum += a * b; }
INLINE vec sum_of_term(const real* from) { return load(from); }

#if defined(LOCANT_PAIRS) || defined(LOCANT_TILES)

typedef uint32_t pair __attribute__((aligned(2), may_alias));  // the first number in the lower half
template <> struct TermOf<true> { typedef pair type; };

typedef integer loose_bits __attribute__((vector_size(BYTES), aligned(2), may_alias));
typedef uint16_t halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));

INLINE ivec load_bits(const pair* from) { return *reinterpret_cast<const loose_bits*>(from); }
INLINE void store_bits(pair* to, ivec x) { *reinterpret_cast<loose_bits*>(to) = x; }
INLINE ivec load_bits(const BFloat16* from) {
    return __builtin_convertvector(*reinterpret_cast<const halves*>(from), ivec);
}
INLINE vec load(const BFloat16* from) { return reinterpret_cast<vec>(load_bits(from) << 16); }

// To the nearest, ties to even; a NaN stays one.
INLINE void store(BFloat16* to, vec x) {
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
INLINE ivec factor_of(ivec pairs, unsigned) { return pairs; }
INLINE void add_product(vec& sum, ivec a, ivec b) {
    sum = vec(_mm512_dpbf16_ps(__m512(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}
#else
template <> constexpr unsigned TERM_PARTS<true> = 2;
INLINE vec factor_of(ivec pairs, unsigned part) { return number_of(pairs, part); }
#endif
INLINE auto load_factor(const pair* from, unsigned part) { return factor_of(load_bits(from), part); }
INLINE auto broadcast_factor(pair x, unsigned part) { return factor_of(int32_t(x) - ivec{}, part); }
INLINE vec sum_of_term(const pair* from) { return number_of(load_bits(from), 0) + number_of(load_bits(from), 1); }

#endif

#ifdef LOCANT_PAIRS
constexpr bool OF_PAIRS = true;
using element = BFloat16;  // as rows are stored
#else
constexpr bool OF_PAIRS = false;
using element = real;
#endif
using term = TermOf<OF_PAIRS>::type;

constexpr int64_t PER_TERM = int64_t(sizeof(term) / sizeof(element));
INLINE int64_t terms_of(int64_t numbers) { return (numbers + PER_TERM - 1) / PER_TERM; }

}  // namespace
