// Rows of tensors, as numbers to compute with: any stride, any stored type.
//
// What is read becomes rows of whole vectors, or lanes: [channel][row], where a vector is one channel of LANES rows.
#pragma once

#include "simd/numbers.h"
#include "simd/prefetch.h"

namespace {

using locant::Rows;

INLINE int64_t round_up_to_lanes(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// The rows of some tokens, of one sample and head.
struct RowList {
    Dtype dtype;
    Rows rows;
    int64_t start;  // where token 0 would be, in numbers
    const int32_t* tokens;
    int64_t count;

    INLINE int64_t at(int64_t i) const { return start + tokens[i] * rows.token; }
    INLINE bool plain() const { return dtype == REAL_DTYPE && rows.channel == 1; }  // to be read as it is stored
};

INLINE RowList rows_of(Dtype dtype, const Rows& rows, int64_t sample, int64_t head, const int32_t* tokens,
                       int64_t count) {
    return {dtype, rows, sample * rows.batch + head * rows.head, tokens, count};
}

// --- one row ------------------------------------------------------------------------------------------------------

// Neighbours of the type that is computed with, in whole vectors where they reach.
INLINE void copy_numbers(const real* from, int64_t count, real factor, real* to) {
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) store(to + c, load(from + c) * factor);
    for (; c < count; ++c) to[c] = from[c] * factor;
}

template <class Stored>
INLINE void read_numbers(const Stored* from, int64_t step, int64_t count, real factor, real* to) {
    if (step == 1)
        for (int64_t c = 0; c < count; ++c) to[c] = read(from + c) * factor;
    else
        for (int64_t c = 0; c < count; ++c) to[c] = read(from + c * step) * factor;
}

template <class Stored> INLINE void write_numbers(const real* from, int64_t step, int64_t count, Stored* to) {
    if (step == 1)
        for (int64_t c = 0; c < count; ++c) write(to + c, from[c]);
    else
        for (int64_t c = 0; c < count; ++c) write(to + c * step, from[c]);
}

// to[0 .. channels) = factor * row i.
INLINE void read_row(const RowList& list, int64_t i, int64_t channels, real factor, real* to) {
    const int64_t at = list.at(i), step = list.rows.channel;
    switch (list.dtype) {
        case REAL_DTYPE: {
            const real* from = static_cast<const real*>(list.rows.data) + at;
            return step == 1 ? copy_numbers(from, channels, factor, to)
                             : read_numbers(from, step, channels, factor, to);
        }
        case Dtype::bf16:
            return read_numbers(static_cast<const BFloat16*>(list.rows.data) + at, step, channels, factor, to);
        case Dtype::f16:
            return read_numbers(static_cast<const Float16*>(list.rows.data) + at, step, channels, factor, to);
        default: __builtin_unreachable();
    }
}

INLINE void write_row(const RowList& list, int64_t i, int64_t channels, const real* from) {
    const int64_t at = list.at(i), step = list.rows.channel;
    switch (list.dtype) {
        case REAL_DTYPE: {
            real* to = static_cast<real*>(list.rows.data) + at;
            return step == 1 ? copy_numbers(from, channels, real(1), to) : write_numbers(from, step, channels, to);
        }
        case Dtype::bf16: return write_numbers(from, step, channels, static_cast<BFloat16*>(list.rows.data) + at);
        case Dtype::f16: return write_numbers(from, step, channels, static_cast<Float16*>(list.rows.data) + at);
        default: __builtin_unreachable();
    }
}

// --- rows ---------------------------------------------------------------------------------------------------------

constexpr int64_t ROWS_AHEAD = 24;  // where rows lie pages apart, finding a page takes as long as fetching it

// to[i][c] = row i, `width` numbers apart; numbers beyond `channels` become 0. The list goes on for `more` tokens,
// whose rows will be read next.
inline void read_rows(const RowList& list, int64_t channels, int64_t width, real* to, int64_t more = 0) {
    if (list.plain() && channels == width && channels % LANES == 0) {
        const real* from = static_cast<const real*>(list.rows.data) + list.start;
        const int64_t step = list.rows.token, far = step == width ? 0 : list.count + more - ROWS_AHEAD;
        for (int64_t i = 0; i < list.count; ++i, to += width) {
            const real* row = from + list.tokens[i] * step;
            if (i < far)
                for (int64_t c = 0; c < channels; c += 64 / int64_t(sizeof(real)))
                    __builtin_prefetch(from + list.tokens[i + ROWS_AHEAD] * step + c);
            for (int64_t c = 0; c < channels; c += LANES) store(to + c, load(row + c));
        }
        return;
    }
    for (int64_t i = 0; i < list.count; ++i, to += width) {
        read_row(list, i, channels, real(1), to);
        for (int64_t c = channels; c < width; ++c) to[c] = 0;
    }
}

// to[c][i] = factor * row(i)[c] for n rows of whole vectors; lanes beyond n become 0.
template <class Row>
INLINE void transpose_rows(Row row, int64_t n, int64_t lanes, int64_t channels, real factor, real* to) {
    for (int64_t i = 0; i < lanes; i += LANES)
        for (int64_t c = 0; c < channels; c += LANES) {
            vec square[LANES];
            UNROLL(r, LANES) square[r] = i + r < n ? load(row(i + r) + c) * factor : vec{};
            transpose(square);
            real* corner = to + c * lanes + i;
            if (c + LANES <= channels) {
                UNROLL(r, LANES) store(corner + r * lanes, square[r]);
            } else {
                UNROLL(r, LANES) if (c + r < channels) store(corner + r * lanes, square[r]);
            }
        }
}

// to[c][i] = factor * row i; lanes beyond the list become 0. `lines` is scratch for its rows.
inline void read_lanes(const RowList& list, int64_t lanes, int64_t channels, real factor, real* lines, real* to) {
    if (list.plain() && channels % LANES == 0) {
        const real* from = static_cast<const real*>(list.rows.data) + list.start;
        const int32_t* tokens = list.tokens;
        const int64_t step = list.rows.token;
        transpose_rows([=](int64_t i) { return from + tokens[i] * step; }, list.count, lanes, channels, factor, to);
    } else {
        const int64_t width = round_up_to_lanes(channels);
        read_rows(list, channels, width, lines);
        transpose_rows([=](int64_t i) { return lines + i * width; }, list.count, lanes, channels, factor, to);
    }
}

// The inverse: row i = factor[i] * from[c][i]. `lines` is scratch for LANES rows.
inline void write_lanes(const RowList& list, int64_t lanes, int64_t channels, const real* factor, real* lines,
                        const real* from) {
    const int64_t width = round_up_to_lanes(channels), n = list.count;
    const bool direct = list.plain() && channels == width;
    for (int64_t i = 0; i < n; i += LANES) {
        const vec by = load(factor + i);
        for (int64_t c = 0; c < channels; c += LANES) {
            vec square[LANES];
            const real* corner = from + c * lanes + i;
            if (c + LANES <= channels) {
                UNROLL(r, LANES) square[r] = load(corner + r * lanes) * by;
            } else {
                UNROLL(r, LANES) square[r] = c + r < channels ? load(corner + r * lanes) * by : vec{};
            }
            transpose(square);
            if (direct) {
                real* to = static_cast<real*>(list.rows.data) + c;
                UNROLL(r, LANES) if (i + r < n) store(to + list.at(i + r), square[r]);
            } else {
                UNROLL(r, LANES) store(lines + r * width + c, square[r]);
            }
        }
        if (!direct)
            for (int64_t r = 0; r < LANES && i + r < n; ++r) write_row(list, i + r, channels, lines + r * width);
    }
}

// Note rows that will be read, or written, soon.
INLINE void prefetch_rows(const RowList& list, int64_t channels, Prefetches& prefetches) {
    const int64_t size = list.dtype == Dtype::f64 ? 8 : list.dtype == Dtype::f32 ? 4 : 2;
    const char* from = static_cast<const char*>(list.rows.data) + list.start * size;
    const int64_t pairs = (channels * size + 127) / 128, step = list.rows.token * size;
    if (prefetches.count + list.count * pairs > MAX_PREFETCHES) return;
    const char** pair = prefetches.pair + prefetches.count;
    for (int64_t l = 0; l < pairs; ++l)
        for (int64_t i = 0; i < list.count; ++i) *pair++ = from + list.tokens[i] * step + l * 128;
    *pair = from;  // they are fetched by twos
    prefetches.count += list.count * pairs;
}

}  // namespace
