// Rows of tensors, as numbers to compute with: any stride, any stored type.
#pragma once

#include "attention.h"
#include "product.h"

namespace {

using locant::Dtype;
using locant::Rows;

constexpr Dtype OWN = sizeof(real) == 8 ? Dtype::f64 : Dtype::f32;

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

// float16, by what a processor has for it; not every compiler knows the type.
#if defined __F16C__
INLINE float widened_half(uint16_t bits) { return _cvtsh_ss(bits); }
INLINE uint16_t narrowed_half(float x) { return uint16_t(_cvtss_sh(x, 0)); }
#elif defined __aarch64__
INLINE float widened_half(uint16_t bits) {
    __fp16 x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return float(x);
}
INLINE uint16_t narrowed_half(float x) {
    const __fp16 half = __fp16(x);
    uint16_t bits;
    __builtin_memcpy(&bits, &half, sizeof bits);
    return bits;
}
#else
INLINE float widened_half(uint16_t bits) {
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
INLINE uint16_t narrowed_half(float x) {  // to the nearest, ties to even
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

struct Brain { uint16_t bits; };  // bfloat16
struct Half { uint16_t bits; };   // float16

INLINE real read(const real* at) { return *at; }
INLINE real read(const Brain* at) { return real(widened(at->bits)); }
INLINE real read(const Half* at) { return real(widened_half(at->bits)); }
INLINE void write(real* at, real x) { *at = x; }
INLINE void write(Brain* at, real x) { at->bits = narrowed(float(x)); }
INLINE void write(Half* at, real x) { at->bits = narrowed_half(float(x)); }

INLINE int64_t offset(const Rows& rows, int64_t sample, int64_t head, int64_t token) {
    return sample * rows.batch + head * rows.head + token * rows.token;
}

// Neighbours of the own type, in whole vectors where they reach.
INLINE void copy(const real* from, int64_t count, real factor, real* to) {
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) store(to + c, load(from + c) * factor);
    for (; c < count; ++c) to[c] = from[c] * factor;
}

template <class Stored> INLINE void unpack(const Stored* from, int64_t step, int64_t count, real factor, real* to) {
    if (step == 1)
        for (int64_t c = 0; c < count; ++c) to[c] = read(from + c) * factor;
    else
        for (int64_t c = 0; c < count; ++c) to[c] = read(from + c * step) * factor;
}

template <class Stored> INLINE void pack(const real* from, int64_t step, int64_t count, Stored* to) {
    if (step == 1)
        for (int64_t c = 0; c < count; ++c) write(to + c, from[c]);
    else
        for (int64_t c = 0; c < count; ++c) write(to + c * step, from[c]);
}

INLINE bool plain(Dtype dtype, const Rows& rows) { return dtype == OWN && rows.channel == 1; }

// to[0 .. count) = factor * the row at `at`.
INLINE void read_row(Dtype dtype, const Rows& rows, int64_t at, int64_t count, real factor, real* to) {
    switch (dtype) {
        case OWN: {
            const real* from = static_cast<const real*>(rows.data) + at;
            return rows.channel == 1 ? copy(from, count, factor, to) : unpack(from, rows.channel, count, factor, to);
        }
        case Dtype::bf16:
            return unpack(static_cast<const Brain*>(rows.data) + at, rows.channel, count, factor, to);
        case Dtype::f16:
            return unpack(static_cast<const Half*>(rows.data) + at, rows.channel, count, factor, to);
        default: __builtin_unreachable();
    }
}

INLINE void write_row(Dtype dtype, const Rows& rows, int64_t at, int64_t count, const real* from) {
    switch (dtype) {
        case OWN: {
            real* to = static_cast<real*>(rows.data) + at;
            return rows.channel == 1 ? copy(from, count, real(1), to) : pack(from, rows.channel, count, to);
        }
        case Dtype::bf16: return pack(from, rows.channel, count, static_cast<Brain*>(rows.data) + at);
        case Dtype::f16: return pack(from, rows.channel, count, static_cast<Half*>(rows.data) + at);
        default: __builtin_unreachable();
    }
}

constexpr int64_t soon = 24;  // rows: where they lie pages apart, finding a page takes as long as fetching it

// to[i][c] = the rows of `tokens`, `width` numbers apart; numbers beyond `count` become 0. `more` tokens follow, whose
// rows will be read next.
inline void read_rows(Dtype dtype, const Rows& rows, int64_t at, const int32_t* tokens, int64_t n, int64_t count,
                      int64_t width, real* to, int64_t more = 0) {
    if (plain(dtype, rows) && count == width && count % LANES == 0) {
        const real* from = static_cast<const real*>(rows.data) + at;
        const int64_t far = rows.token == width ? 0 : n + more - soon;
        for (int64_t i = 0; i < n; ++i, to += width) {
            const real* row = from + tokens[i] * rows.token;
            if (i < far)
                for (int64_t c = 0; c < count; c += 64 / int64_t(sizeof(real)))
                    __builtin_prefetch(from + tokens[i + soon] * rows.token + c);
            for (int64_t c = 0; c < count; c += LANES) store(to + c, load(row + c));
        }
        return;
    }
    for (int64_t i = 0; i < n; ++i, to += width) {
        read_row(dtype, rows, at + tokens[i] * rows.token, count, real(1), to);
        for (int64_t c = count; c < width; ++c) to[c] = 0;
    }
}

// Lanes from rows: to[c][i] = factor * row(i)[c] for n rows of whole vectors, the other lanes 0.
template <class Row>
INLINE void turn(Row row, int64_t n, int64_t lanes, int64_t count, real factor, real* to) {
    for (int64_t i = 0; i < lanes; i += LANES)
        for (int64_t c = 0; c < count; c += LANES) {
            vec square[LANES];
            EACH(r, LANES) square[r] = i + r < n ? load(row(i + r) + c) * factor : vec{};
            transpose(square);
            real* corner = to + c * lanes + i;
            if (c + LANES <= count) {
                EACH(r, LANES) store(corner + r * lanes, square[r]);
            } else {
                EACH(r, LANES) if (c + r < count) store(corner + r * lanes, square[r]);
            }
        }
}

// The same from rows of a tensor; `lines` is scratch for n rows.
inline void read_lanes(Dtype dtype, const Rows& rows, int64_t at, const int32_t* tokens, int64_t n, int64_t lanes,
                       int64_t count, real factor, real* lines, real* to) {
    if (plain(dtype, rows) && count % LANES == 0) {
        const real* from = static_cast<const real*>(rows.data) + at;
        turn([=](int64_t i) { return from + tokens[i] * rows.token; }, n, lanes, count, factor, to);
    } else {
        const int64_t width = (count + LANES - 1) / LANES * LANES;
        read_rows(dtype, rows, at, tokens, n, count, width, lines);
        turn([=](int64_t i) { return lines + i * width; }, n, lanes, count, factor, to);
    }
}

// Rows that will be read, or written, soon.
INLINE void expect(Dtype dtype, const Rows& rows, int64_t at, const int32_t* tokens, int64_t n, int64_t count,
                   Ahead& ahead) {
    const int64_t size = dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
    const char* from = static_cast<const char*>(rows.data) + at * size;
    const int64_t pairs = (count * size + 127) / 128, step = rows.token * size;
    if (ahead.count + n * pairs > ahead.room) return;
    const char** pair = ahead.pair + ahead.count;
    for (int64_t l = 0; l < pairs; ++l)
        for (int64_t i = 0; i < n; ++i) *pair++ = from + tokens[i] * step + l * 128;
    *pair = from;  // they are fetched by twos
    ahead.count += n * pairs;
}

// The inverse, into rows of a tensor: the row of tokens[i] = factor[i] * from[c][i]. `lines` is scratch for LANES rows.
inline void write_lanes(Dtype dtype, const Rows& rows, int64_t at, const int32_t* tokens, int64_t n, int64_t lanes,
                        int64_t count, const real* factor, real* lines, const real* from) {
    const int64_t width = (count + LANES - 1) / LANES * LANES;
    const bool direct = plain(dtype, rows) && count == width;
    for (int64_t i = 0; i < n; i += LANES) {
        const vec by = load(factor + i);
        for (int64_t c = 0; c < count; c += LANES) {
            vec square[LANES];
            const real* corner = from + c * lanes + i;
            if (c + LANES <= count) {
                EACH(r, LANES) square[r] = load(corner + r * lanes) * by;
            } else {
                EACH(r, LANES) square[r] = c + r < count ? load(corner + r * lanes) * by : vec{};
            }
            transpose(square);
            if (direct) {
                real* to = static_cast<real*>(rows.data) + at + c;
                EACH(r, LANES) if (i + r < n) store(to + tokens[i + r] * rows.token, square[r]);
            } else {
                EACH(r, LANES) store(lines + r * width + c, square[r]);
            }
        }
        if (!direct)
            for (int64_t r = 0; r < LANES && i + r < n; ++r)
                write_row(dtype, rows, at + tokens[i + r] * rows.token, count, lines + r * width);
    }
}

}  // namespace
