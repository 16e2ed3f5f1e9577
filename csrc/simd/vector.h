// Vectors as the compiler knows them: one source for every instruction set, no intrinsics but two.
//
// LOCANT_REAL is the number that is computed with, LOCANT_LANES_BYTES the width of a register. Everything here has
// internal linkage: these files are compiled once per instruction set, and no copy of one may serve another.
#pragma once

#include <cstdint>
#include <utility>  // for the name of a type alone
#if defined __x86_64__
#include <immintrin.h>
#endif

namespace {

using real = LOCANT_REAL;
constexpr unsigned BYTES = LOCANT_LANES_BYTES;
constexpr int LANES = int(BYTES / sizeof(real));

#ifdef __aarch64__
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = BYTES == 64 ? 32 : 16;
#endif
constexpr int MAX_VECTORS = REGISTERS == 32 ? 4 : 2;  // of a panel, which fit in registers beside what they meet
constexpr int PANEL_LANES = MAX_VECTORS * LANES;      // queries of a panel, at most

template <int SIZE> struct Integer;
template <> struct Integer<4> { using type = int32_t; };
template <> struct Integer<8> { using type = int64_t; };
using integer = Integer<sizeof(real)>::type;

typedef real vec __attribute__((vector_size(BYTES)));
typedef integer ivec __attribute__((vector_size(BYTES)));
typedef real loose __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));  // at any address

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL(i, count) _Pragma("GCC unroll 16") for (unsigned i = 0; i < (count); ++i)

INLINE vec load(const real* from) { return *reinterpret_cast<const loose*>(from); }
INLINE void store(real* to, vec x) { *reinterpret_cast<loose*>(to) = x; }
INLINE vec broadcast(real x) { return x - vec{}; }

// a > b ? a : b, which gives b where either is a NaN: one instruction on x86, which compilers do not find alone.
INLINE vec max_of(vec a, vec b) {
#if defined __AVX512F__
    if constexpr (sizeof(real) == 4) return reinterpret_cast<vec>(_mm512_max_ps(__m512(a), __m512(b)));
    else return reinterpret_cast<vec>(_mm512_max_pd(__m512d(a), __m512d(b)));
#elif defined __AVX2__
    if constexpr (sizeof(real) == 4) return reinterpret_cast<vec>(_mm256_max_ps(__m256(a), __m256(b)));
    else return reinterpret_cast<vec>(_mm256_max_pd(__m256d(a), __m256d(b)));
#else
    return a > b ? a : b;
#endif
}

INLINE bool any_lane(ivec mask) {
    typedef int64_t words __attribute__((vector_size(BYTES)));
    const words x = reinterpret_cast<words>(mask);
    int64_t found = 0;
    for (int i = 0; i < int(BYTES / 8); ++i) found |= x[i];
    return found != 0;
}

// The lanes below `count`, as a mask.
INLINE ivec first_lanes(int64_t count) {
    ivec mask;
    for (int i = 0; i < LANES; ++i) mask[i] = i < count ? integer(-1) : integer(0);
    return mask;
}

// a where the mask is set, else b.
INLINE vec select(ivec mask, vec a, vec b) {
    return reinterpret_cast<vec>((mask & reinterpret_cast<ivec>(a)) | (~mask & reinterpret_cast<ivec>(b)));
}

// x where the mask is set, else 0.
INLINE vec zero_unless(ivec mask, vec x) { return reinterpret_cast<vec>(mask & reinterpret_cast<ivec>(x)); }

constexpr real INF = real(__builtin_inf());
constexpr real LOWEST = sizeof(real) == 4 ? real(-3.402823466e38) : real(-1.7976931348623157e308);
constexpr real LOG2E = real(1.4426950408889634074);
constexpr real LN2 = real(0.69314718055994530942);
constexpr real MAGIC = sizeof(real) == 4 ? real(12582912.0) : real(6755399441055744.0);  // 1.5 · 2^mantissa bits
constexpr real SMALLEST = sizeof(real) == 4 ? real(-127) : real(-1023);  // 2^x is denormal

// To the nearest whole number, for |x| < 2^22 (2^51); larger numbers come out near themselves.
INLINE vec round_to_whole(vec x) { return (x + MAGIC) - MAGIC; }

// Of 2^x on [-1/2, 1/2], highest power first, fitted for the least relative error with 2^0 = 1.
constexpr double POWER4[] = {0.00132647204, 0.00967151319, 0.0555073377, 0.240222421, 0.693146978, 1};
constexpr double POWER8[] = {2.2986908456904809e-10, 6.9270562785248407e-09, 1.0190525396034128e-07,
                             1.3216368596565528e-06, 1.5252710061906866e-05, 0.00015403528370030488,
                             0.0013333558162509206,  0.009618129109504844,   0.055504108664796666,
                             0.24022650695904246,    0.69314718055994551,    1};

// p · 2^(t - MAGIC) for t whole numbers off MAGIC. A NaN may carry any bits below its exponent, and adding to the
// exponent would make numbers of some: where there is no instruction for this, a NaN of p is put back.
INLINE vec times_power_of_2(vec p, vec t) {
#if defined __AVX512F__
    if constexpr (sizeof(real) == 4) return reinterpret_cast<vec>(_mm512_scalef_ps(__m512(p), __m512(t - MAGIC)));
    else return reinterpret_cast<vec>(_mm512_scalef_pd(__m512d(p), __m512d(t - MAGIC)));
#else
    constexpr int mantissa = sizeof(real) == 4 ? 23 : 52;
    return reinterpret_cast<vec>((reinterpret_cast<ivec>(p) + (reinterpret_cast<ivec>(t) << mantissa)) | ivec(p != p));
#endif
}

// 2^(x - top) for whole-numbered tops of less than 2^21: `magic` is MAGIC - top and `least` is top + SMALLEST, so that
// the reference costs no subtraction. Powers are exact, times a polynomial on [-1/2, 1/2] of relative error 9.1e-8
// (8e-16 in double). What is smaller than the smallest normal number becomes a denormal one, which is 0 as long as
// denormals are flushed, and they are wherever kernels run (parallel.cpp); -inf does too. A NaN stays one.
//
// Several at once, step by step: their chains of dependent instructions then run side by side.
template <unsigned COUNT>
INLINE void exp2(vec (&x)[COUNT], const vec (&magic)[COUNT], const vec (&least)[COUNT]) {
    constexpr int degree = sizeof(real) == 4 ? 5 : 11;
    constexpr const double* c = sizeof(real) == 4 ? POWER4 : POWER8;
    vec t[COUNT], f[COUNT], p[COUNT];
    UNROLL(n, COUNT) x[n] = max_of(least[n], x[n]);
    UNROLL(n, COUNT) t[n] = x[n] + magic[n];
    UNROLL(n, COUNT) f[n] = t[n] - magic[n];
    UNROLL(n, COUNT) f[n] = x[n] - f[n];
    UNROLL(n, COUNT) p[n] = f[n] * real(c[0]) + real(c[1]);
#pragma GCC unroll 16
    for (int i = 2; i <= degree; ++i) UNROLL(n, COUNT) p[n] = p[n] * f[n] + real(c[i]);
    UNROLL(n, COUNT) x[n] = times_power_of_2(p[n], t[n]);
}

INLINE vec exp2(vec x) {
    vec one[1] = {x};
    exp2<1>(one, {broadcast(MAGIC)}, {broadcast(SMALLEST)});
    return one[0];
}

// The logarithm to the base 2 of positive normal numbers: the exponent, and 2 atanh((m - 1) / (m + 1)) / ln 2 for the
// rest m of [sqrt(1/2), sqrt(2)), whose argument is at most 0.172. Relative error 2e-7 (1e-15 in double).
INLINE vec log2(vec x) {
    constexpr int mantissa = sizeof(real) == 4 ? 23 : 52, terms = sizeof(real) == 4 ? 5 : 11;
    const vec half = broadcast(real(0.70710678118654752));
    const ivec power = (reinterpret_cast<ivec>(x) - reinterpret_cast<ivec>(half)) >> mantissa;
    const vec m = reinterpret_cast<vec>(reinterpret_cast<ivec>(x) - (power << mantissa));
    const vec t = (m - real(1)) / (m + real(1)), square = t * t;
    vec sum = broadcast(real(1.0 / (2 * terms - 1)));
#pragma GCC unroll 16
    for (int i = terms - 2; i >= 0; --i) sum = sum * square + real(1.0 / (2 * i + 1));
    return __builtin_convertvector(power, vec) + real(2.8853900817779268) * t * sum + (x - x);  // a NaN stays one
}

// One stage of a transposition: lanes whose number has the bit `width` are swapped between two rows.
#ifdef __clang__
template <int width, int... lane> INLINE void exchange_lanes(vec& a, vec& b, std::integer_sequence<int, lane...>) {
    const vec x = __builtin_shufflevector(a, b, (lane & width ? LANES + lane - width : lane)...);
    b = __builtin_shufflevector(a, b, (lane & width ? LANES + lane : lane + width)...), a = x;
}
template <int width> INLINE void exchange_lanes(vec& a, vec& b) {
    exchange_lanes<width>(a, b, std::make_integer_sequence<int, LANES>());
}
#else
template <int width> INLINE void exchange_lanes(vec& a, vec& b) {
    ivec low, high;
    for (int i = 0; i < LANES; ++i) {
        low[i] = i & width ? LANES + i - width : i;
        high[i] = i & width ? LANES + i : i + width;
    }
    const vec x = __builtin_shuffle(a, b, low), y = __builtin_shuffle(a, b, high);
    a = x, b = y;
}
#endif

// f of all lanes, in every lane.
template <class F> INLINE vec reduce_lanes(vec x, F f) {
    vec y = x;
    if constexpr (LANES >= 2) exchange_lanes<1>(x, y), x = y = f(x, y);
    if constexpr (LANES >= 4) exchange_lanes<2>(x, y), x = y = f(x, y);
    if constexpr (LANES >= 8) exchange_lanes<4>(x, y), x = y = f(x, y);
    if constexpr (LANES >= 16) exchange_lanes<8>(x, y), x = y = f(x, y);
    return x;
}

// LANES rows of LANES numbers, in registers.
INLINE void transpose(vec (&row)[LANES]) {
    if constexpr (LANES >= 2)
        for (int i = 0; i < LANES; ++i)
            if (!(i & 1)) exchange_lanes<1>(row[i], row[i + 1]);
    if constexpr (LANES >= 4)
        for (int i = 0; i < LANES; ++i)
            if (!(i & 2)) exchange_lanes<2>(row[i], row[i + 2]);
    if constexpr (LANES >= 8)
        for (int i = 0; i < LANES; ++i)
            if (!(i & 4)) exchange_lanes<4>(row[i], row[i + 4]);
    if constexpr (LANES >= 16)
        for (int i = 0; i < LANES; ++i)
            if (!(i & 8)) exchange_lanes<8>(row[i], row[i + 8]);
}

}  // namespace
