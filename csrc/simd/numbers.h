// Numbers as they are stored, and as they are computed with.
#pragma once

#include "attention.h"
#include "simd/vector.h"

namespace {

using locant::Dtype;

constexpr Dtype REAL_DTYPE = sizeof(real) == 8 ? Dtype::f64 : Dtype::f32;

INLINE float from_bfloat16(uint16_t bits) {  // bfloat16 is the upper half of a float
    const uint32_t word = uint32_t(bits) << 16;
    float x;
    __builtin_memcpy(&x, &word, sizeof x);
    return x;
}

INLINE uint16_t to_bfloat16(float x) {  // to the nearest, ties to even; a NaN stays one
    uint32_t word;
    __builtin_memcpy(&word, &x, sizeof word);
    if (x != x) return 0x7fc0;
    return uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

// float16, by what a processor has for it; not every compiler knows the type.
#if defined __F16C__
INLINE float from_float16(uint16_t bits) { return _cvtsh_ss(bits); }
INLINE uint16_t to_float16(float x) { return uint16_t(_cvtss_sh(x, 0)); }
#elif defined __aarch64__
INLINE float from_float16(uint16_t bits) {
    __fp16 x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return float(x);
}
INLINE uint16_t to_float16(float x) {
    const __fp16 half = __fp16(x);
    uint16_t bits;
    __builtin_memcpy(&bits, &half, sizeof bits);
    return bits;
}
#else
INLINE float from_float16(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
    uint32_t word = (rest << 13) + (112u << 23);
    float x;
    if (rest >= 0x7c00) word = 0x7f800000 | rest << 13;  // infinite, or a NaN
    if (rest < 0x400) {                                  // a denormal one, and ours are flushed: count its steps
        x = float(rest) * 0x1p-24f;
        __builtin_memcpy(&word, &x, sizeof x);
    }
    word |= sign;
    __builtin_memcpy(&x, &word, sizeof x);
    return x;
}
INLINE uint16_t to_float16(float x) {  // to the nearest, ties to even
    uint32_t word;
    __builtin_memcpy(&word, &x, sizeof word);
    const uint32_t sign = word >> 16 & 0x8000, size = word & 0x7fffffff;
    uint32_t half = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    if (size < 0x38800000) {              // denormal: the addition rounds to whole steps
        const float steps = (x < 0 ? -x : x) * 0x1p24f + 0x1p23f;
        __builtin_memcpy(&half, &steps, sizeof half);
        half &= 0x7fffff;
    }
    if (size >= 0x47800000) half = 0x7c00;
    if (x != x) half = 0x7e00;
    return uint16_t(sign | half);
}
#endif

struct BFloat16 { uint16_t bits; };  // bfloat16
struct Float16 { uint16_t bits; };   // float16

INLINE real read(const real* at) { return *at; }
INLINE real read(const BFloat16* at) { return real(from_bfloat16(at->bits)); }
INLINE real read(const Float16* at) { return real(from_float16(at->bits)); }
INLINE void write(real* at, real x) { *at = x; }
INLINE void write(BFloat16* at, real x) { at->bits = to_bfloat16(float(x)); }
INLINE void write(Float16* at, real x) { at->bits = to_float16(float(x)); }

}  // namespace
