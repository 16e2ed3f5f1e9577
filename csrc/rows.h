// Rows of tensors, as numbers to compute with: any stride, any stored type.
#pragma once

#include "attention.h"
#include "vector.h"

namespace {

using locant::Number;
using locant::Rows;

constexpr Number OWN = sizeof(real) == 8 ? Number::f64 : Number::f32;

INLINE float widened(uint16_t bits) {  // bfloat16 is the upper half of a float
    const uint32_t word = uint32_t(bits) << 16;
    float x;
    __builtin_memcpy(&x, &word, sizeof x);
    return x;
}

INLINE uint16_t narrowed(float x) {  // to the nearest, ties to even; a NaN stays one
    uint32_t word;
    __builtin_memcpy(&word, &x, sizeof word);
    if (x != x) return 0x7fc0;
    return uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

struct Brain { uint16_t bits; };  // bfloat16

INLINE real read(const real* at) { return *at; }
INLINE real read(const Brain* at) { return real(widened(at->bits)); }
INLINE real read(const _Float16* at) { return real(*at); }
INLINE void write(real* at, real x) { *at = x; }
INLINE void write(Brain* at, real x) { at->bits = narrowed(float(x)); }
INLINE void write(_Float16* at, real x) { *at = _Float16(x); }

INLINE int64_t offset(const Rows& rows, int64_t sample, int64_t head, int64_t token) {
    return sample * rows.batch + head * rows.head + token * rows.token;
}

template <class Stored>
INLINE void unpack(const void* data, int64_t at, int64_t step, int64_t count, real factor, real* to) {
    const Stored* from = static_cast<const Stored*>(data) + at;
    if (step == 1)
        for (int64_t c = 0; c < count; ++c) to[c] = read(from + c) * factor;
    else
        for (int64_t c = 0; c < count; ++c) to[c] = read(from + c * step) * factor;
}

template <class Stored> INLINE void pack(void* data, int64_t at, int64_t step, int64_t count, const real* from) {
    Stored* to = static_cast<Stored*>(data) + at;
    if (step == 1)
        for (int64_t c = 0; c < count; ++c) write(to + c, from[c]);
    else
        for (int64_t c = 0; c < count; ++c) write(to + c * step, from[c]);
}

// to[0 .. count) = factor * the row at `at`.
INLINE void read_row(Number number, const Rows& rows, int64_t at, int64_t count, real factor, real* to) {
    switch (number) {
        case OWN: return unpack<real>(rows.data, at, rows.channel, count, factor, to);
        case Number::bf16: return unpack<Brain>(rows.data, at, rows.channel, count, factor, to);
        case Number::f16: return unpack<_Float16>(rows.data, at, rows.channel, count, factor, to);
        default: __builtin_unreachable();
    }
}

INLINE void write_row(Number number, const Rows& rows, int64_t at, int64_t count, const real* from) {
    switch (number) {
        case OWN: return pack<real>(rows.data, at, rows.channel, count, from);
        case Number::bf16: return pack<Brain>(rows.data, at, rows.channel, count, from);
        case Number::f16: return pack<_Float16>(rows.data, at, rows.channel, count, from);
        default: __builtin_unreachable();
    }
}

// to[i][c] = the rows of `tokens`, `width` numbers apart; numbers beyond `count` become 0.
INLINE void read_rows(Number number, const Rows& rows, int64_t at, const int32_t* tokens, int64_t n, int64_t count,
                      int64_t width, real* to) {
    for (int64_t i = 0; i < n; ++i) {
        real* line = to + i * width;
        read_row(number, rows, at + tokens[i] * rows.token, count, real(1), line);
        for (int64_t c = count; c < width; ++c) line[c] = 0;
    }
}

// Lanes: to[c][i] = factor * the row of tokens[i], for up to `lanes` tokens, the rest 0. `lines` is scratch for LANES
// rows of `count` numbers, rounded up to LANES.
INLINE void read_lanes(Number number, const Rows& rows, int64_t at, const int32_t* tokens, int64_t n, int64_t lanes,
                       int64_t count, real factor, real* lines, real* to) {
    const int64_t width = (count + LANES - 1) / LANES * LANES;
    for (int64_t i = 0; i < lanes; i += LANES) {
        for (int64_t r = 0; r < LANES; ++r) {
            real* line = lines + r * width;
            if (i + r < n) read_row(number, rows, at + tokens[i + r] * rows.token, count, factor, line);
            const int64_t from = i + r < n ? count : 0;
            for (int64_t c = from; c < width; ++c) line[c] = 0;
        }
        for (int64_t c = 0; c < count; c += LANES) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; ++r) square[r] = load(lines + r * width + c);
            transpose(square);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; ++r)
                if (c + r < count) store(to + (c + r) * lanes + i, square[r]);
        }
    }
}

// The inverse: the row of tokens[i] = from[c][i] * factor[i].
INLINE void write_lanes(Number number, const Rows& rows, int64_t at, const int32_t* tokens, int64_t n, int64_t lanes,
                        int64_t count, const real* factor, real* lines, const real* from) {
    const int64_t width = (count + LANES - 1) / LANES * LANES;
    for (int64_t i = 0; i < n; i += LANES) {
        const vec by = load(factor + i);
        for (int64_t c = 0; c < count; c += LANES) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; ++r)
                square[r] = c + r < count ? load(from + (c + r) * lanes + i) * by : vec{};
            transpose(square);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; ++r) store(lines + r * width + c, square[r]);
        }
        for (int64_t r = 0; r < LANES && i + r < n; ++r)
            write_row(number, rows, at + tokens[i + r] * rows.token, count, lines + r * width);
    }
}

}  // namespace
