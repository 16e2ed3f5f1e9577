// Linear maps and perceptrons, forward, for a block of rows and a range of strips.
#pragma once

#include "linear/activation.h"
#include "linear/weights.h"
#include "memory/arena.h"

namespace {

using locant::Linear;
using locant::Perceptron;

constexpr int64_t TALL = 96;      // rows of a block, at most: sixteen tiles, whose inputs and sums stay in the cache
constexpr int64_t HIDDEN = 256;   // terms of a hidden layer at once
constexpr int64_t TILE = TALLEST<MAX_VECTORS>;

// How a problem is shared out: blocks of rows times groups of strips. Threads only decide how fine.
struct Shares {
    int64_t rows, block, strips, group;
    INLINE int64_t groups() const { return (strips + group - 1) / group; }
    INLINE int64_t items() const { return (rows + block - 1) / block * groups(); }
};

// `splits`: strips may be shared out as well, which few rows need.
inline Shares share_out(int64_t rows, int64_t outputs, bool splits, int threads) {
    const int64_t wanted = threads > 1 ? 4 * threads : 1, strips = strips_of(outputs);
    int64_t blocks = (rows + TALL - 1) / TALL;
    if (blocks < wanted && !splits) blocks = least(wanted / 2, (rows + TILE - 1) / TILE);
    if (blocks < 8 * wanted) blocks = round_up(blocks, threads);
    const int64_t block = rows ? round_up((rows + blocks - 1) / blocks, TILE) : 1, own = rows ? (rows + block - 1) / block : 0;
    const int64_t groups = splits && own && own < wanted ? least(strips, (wanted + own - 1) / own) : 1;
    return {rows, block, strips, (strips + groups - 1) / groups};
}

// --- norms ------------------------------------------------------------------------------------------------------------

// y = (x - mean) / √(variance + ε) · scale + shift; of a RMSNorm the mean is taken to be 0, and there is no shift.
struct Norm {
    bool centred;
    const real *scale, *shift;  // null: nothing is shifted
    double epsilon;
};

// Rows of `width` numbers, `step` and `to_step` apart.
template <class From, class To>
inline void normalise_rows(const From* x, int64_t rows, int64_t width, int64_t step, const Norm& by, To* to,
                           int64_t to_step) {
    const int64_t whole = width / LANES * LANES;
    const auto total = [](vec sums) INLINE_LAMBDA { return reduce_lanes(sums, [](vec a, vec b) { return a + b; })[0]; };
    for (int64_t i = 0; i < rows; ++i, x += step, to += to_step) {
        // 1 the mean, and the variance about it: two sums, of which none cancels
        real mean = 0;
        if (by.centred) {
            vec sums = vec{};
            for (int64_t c = 0; c < whole; c += LANES) sums += load(x + c);
            real sum = total(sums);
            for (int64_t c = whole; c < width; ++c) sum += read(x + c);
            mean = sum / real(width);
        }
        vec squares = vec{};
        for (int64_t c = 0; c < whole; c += LANES) squares += (load(x + c) - mean) * (load(x + c) - mean);
        real square = total(squares);
        for (int64_t c = whole; c < width; ++c) square += (read(x + c) - mean) * (read(x + c) - mean);
        // 2 written out
        const real factor = real(1 / __builtin_sqrt(double(square) / double(width) + by.epsilon));
        const auto shift = [&](int64_t c) INLINE_LAMBDA { return by.shift ? load(by.shift + c) : vec{}; };
        for (int64_t c = 0; c < whole; c += LANES)
            store(to + c, (load(x + c) - mean) * factor * load(by.scale + c) + shift(c));
        for (int64_t c = whole; c < width; ++c)
            write(to + c, (read(x + c) - mean) * factor * by.scale[c] + (by.shift ? by.shift[c] : real(0)));
    }
}

// The rows that a product reads: as they are, through a norm, or copied until they end with a term.
template <class Asked>
INLINE const term* rows_in_front(const Asked& p, int64_t start, int64_t rows, element* copy) {
    const element* x = static_cast<const element*>(p.x) + start * p.inputs;
    if (!p.scale) return rows_of_terms(x, rows, p.inputs, copy);
    const int64_t wide = terms_of(p.inputs) * PER_TERM;
    normalise_rows(x, rows, p.inputs, p.inputs,
                   Norm{p.centred, static_cast<const real*>(p.scale), static_cast<const real*>(p.shift), p.epsilon}, copy,
                   wide);
    for (int64_t i = 0; i < (wide > p.inputs ? rows : 0); ++i) copy[i * wide + p.inputs] = element{};
    return reinterpret_cast<const term*>(copy);
}

// Room for that copy.
template <class Asked> INLINE element* allocate_rows(const Asked& p, int64_t block, Arena& arena) {
    const int64_t wide = terms_of(p.inputs) * PER_TERM;
    return arena.allocate<element>(p.scale || wide > p.inputs ? block * wide : 0);
}

// --- sums -------------------------------------------------------------------------------------------------------------

// What sums of `rows` rows start from: the bias, padded to whole vectors.
struct BiasSeeds {
    real* bias;
    const real** row;
    Seeds seeds;
    BiasSeeds(int64_t outputs, int64_t rows, Arena& arena)
        : bias(arena.allocate<real>(round_up(outputs, LANES))), row(arena.allocate<const real*>(rows)), seeds{} {}
    INLINE void set(const real* from, int64_t outputs, int64_t rows) {
        for (int64_t n = 0; n < round_up(outputs, LANES); ++n) bias[n] = from && n < outputs ? from[n] : real(0);
        for (int64_t i = 0; i < rows; ++i) row[i] = bias;
        seeds.row = row;
    }
    INLINE const Seeds* at(int64_t column) {
        UNROLL(n, MAX_VECTORS) seeds.place[n] = column + n * LANES;
        return &seeds;
    }
};

// --- what follows a product -----------------------------------------------------------------------------------------

// What is done to sums on their way out: before = sums, y = act(sums) ∘ gain + residual. Null: not wanted.
struct Finish {
    int64_t activation;
    const real* gain;
    const element* residual;
    element *before, *y;
    int64_t step, y_step;  // from a row of `residual` and `before`, and of y, to the next

    Finish at(int64_t row, int64_t column) const {
        const int64_t own = row * step + column;
        return {activation, gain ? gain + column : nullptr, residual ? residual + own : nullptr,
                before ? before + own : nullptr, y + row * y_step + column, step, y_step};
    }
};

template <Activation which> INLINE void finish_row(const real* sums, int64_t count, const Finish& by) {
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) {
        const vec x = load(sums + c);
        if (by.before) store(by.before + c, x);
        vec found = activate<which>(x);
        if (by.gain) found *= load(by.gain + c);
        if (by.residual) found += load(by.residual + c);
        store(by.y + c, found);
    }
    if (c == count) return;
    real in[LANES] = {}, out[LANES];
    for (int64_t i = c; i < count; ++i) in[i - c] = sums[i];
    store(out, activate<which>(load(in)));
    for (int64_t i = c; i < count; ++i) {
        if (by.before) write(by.before + i, sums[i]);
        const real found = out[i - c] * (by.gain ? by.gain[i] : real(1));
        write(by.y + i, found + (by.residual ? read(by.residual + i) : real(0)));
    }
}

// `rows` rows of `count` sums, `step` apart.
inline void finish_rows(int64_t rows, int64_t count, const real* sums, int64_t step, const Finish& by) {
    with_activation(by.activation, [&](auto activation) INLINE_LAMBDA {
        for (int64_t i = 0; i < rows; ++i) finish_row<activation()>(sums + i * step, count, by.at(i, 0));
    });
}

template <class Asked> INLINE Finish finish_of(const Asked& p, int64_t activation, void* before, int64_t before_step) {
    return {activation, static_cast<const real*>(p.gain), static_cast<const element*>(p.residual),
            static_cast<element*>(before), static_cast<element*>(p.y), before_step, p.outputs};
}

// Whole rows of sums through a norm behind a product, in place.
template <class Asked> INLINE void normalise_behind(const Asked& p, int64_t rows, real* sums, int64_t step) {
    if (p.scale_behind)
        normalise_rows(sums, rows, p.outputs, step,
                       Norm{true, static_cast<const real*>(p.scale_behind), static_cast<const real*>(p.shift_behind),
                            p.epsilon_behind}, sums, step);
}

// The first `count` sums of rows, `unit` at a time brought to length 1 in place: x / ‖x‖, and zeros stay zeros.
inline void normalise_units(int64_t rows, int64_t count, int64_t unit, real* sums, int64_t step) {
    const int64_t whole = unit / LANES * LANES;
    for (int64_t i = 0; i < rows; ++i, sums += step)
        for (real* x = sums; x < sums + count; x += unit) {
            vec squares = vec{};
            for (int64_t c = 0; c < whole; c += LANES) squares += load(x + c) * load(x + c);
            real square = reduce_lanes(squares, [](vec a, vec b) { return a + b; })[0];
            for (int64_t c = whole; c < unit; ++c) square += x[c] * x[c];
            const real by = real(square > 0 ? 1 / __builtin_sqrt(double(square)) : 1);
            for (int64_t c = 0; c < whole; c += LANES) store(x + c, load(x + c) * by);
            for (int64_t c = whole; c < unit; ++c) x[c] *= by;
        }
}

// --- linear ---------------------------------------------------------------------------------------------------------

// Whether rows have to be whole before they are finished: for a norm behind, or for units that strips cut.
INLINE bool wants_whole_rows(const Linear& p) { return p.scale_behind || (p.united && STRIP % p.unit); }

struct LinearWork {
    element* rows;
    real* sums;  // of a strip, or of whole rows
    BiasSeeds bias;
    LinearWork(const Linear& p, int64_t block, Arena& arena)
        : rows(allocate_rows(p, block, arena)),
          sums(arena.allocate<real>(block * (wants_whole_rows(p) ? round_up(p.outputs, LANES) : STRIP))),
          bias(p.outputs, block, arena) {}
};

inline void linear_item(const Linear& p, const Shares& by, int64_t item, LinearWork& w) {
    // 1 which rows and strips
    const int64_t start = item / by.groups() * by.block, rows = least(p.rows - start, by.block);
    const int64_t low = item % by.groups() * by.group, high = least(low + by.group, by.strips);
    // 2 what is multiplied, and what sums start from
    const int64_t depth = terms_of(p.inputs), wide = round_up(p.outputs, LANES);
    const A x{rows_in_front(p, start, rows, w.rows), depth, 1};
    w.bias.set(static_cast<const real*>(p.bias), p.outputs, rows);
    // 3 strip by strip, by way of a tile that stays in the cache
    const bool whole = wants_whole_rows(p);
    const Finish out = finish_of(p, p.activation, p.before, p.outputs);
    for (int64_t s = low; s < high; ++s) {
        const int64_t column = s * STRIP, width = width_of_strip(p.outputs, s), count = least(p.outputs - column, STRIP);
        const C sums = whole ? C{w.sums + column, wide} : C{w.sums, width};
        multiply_strip_by<true>(rows, depth, x, static_cast<const term*>(p.weight) + column * depth, width, sums,
                                w.bias.at(column), false);
        if (whole) continue;
        if (column < p.united) normalise_units(rows, least(p.united - column, STRIP), p.unit, w.sums, width);
        finish_rows(rows, count, w.sums, width, out.at(start, column));
    }
    // 4 or row by row
    if (!whole) return;
    if (p.united) normalise_units(rows, p.united, p.unit, w.sums, wide);
    normalise_behind(p, rows, w.sums, wide);
    finish_rows(rows, p.outputs, w.sums, wide, out.at(start, 0));
}

// --- perceptrons ----------------------------------------------------------------------------------------------------

constexpr int64_t PART = HIDDEN * PER_TERM;

struct PerceptronWork {
    element *rows, *hidden;
    real *tile, *sums;
    BiasSeeds bias1, bias2;
    PerceptronWork(const Perceptron& p, int64_t block, Arena& arena)
        : rows(allocate_rows(p, block, arena)), hidden(arena.allocate<element>(block * (PART + STRIP))),
          tile(arena.allocate<real>(PER_TERM > 1 ? block * STRIP : 0)),
          sums(arena.allocate<real>(block * round_up(p.outputs, LANES))), bias1(p.hidden, block, arena),
          bias2(p.outputs, block, arena) {}
};

// act(x W1 + b1) of hidden numbers [low, low + deep), to rows of `part` numbers.
inline void form_hidden(const Perceptron& p, int64_t start, int64_t rows, A x, int64_t low, int64_t deep, int64_t part,
                        PerceptronWork& w) {
    element* before = p.before ? static_cast<element*>(p.before) + start * p.hidden : nullptr;
    for (int64_t column = low; column < low + deep; column += STRIP) {
        const int64_t width = width_of_strip(p.hidden, column / STRIP), count = least(p.hidden - column, STRIP);
        element* to = w.hidden + (column - low);
        C sums{w.tile, width};
        if constexpr (PER_TERM == 1) sums = C{reinterpret_cast<real*>(to), part};  // in place
        multiply_strip_by<true>(rows, x.row, x, static_cast<const term*>(p.weight1) + column * x.row, width, sums,
                                w.bias1.at(column), false);
        finish_rows(rows, count, sums.at, sums.row,
                    {p.activation, nullptr, nullptr, before ? before + column : nullptr, to, p.hidden, part});
        if (count % PER_TERM)
            for (int64_t i = 0; i < rows; ++i) to[i * part + count] = element{};  // ends a term
    }
}

inline void perceptron_item(const Perceptron& p, const Shares& by, int64_t item, PerceptronWork& w) {
    // 1 which rows, and what they start from
    const int64_t start = item * by.block, rows = least(p.rows - start, by.block), wide = round_up(p.outputs, LANES);
    const A x{rows_in_front(p, start, rows, w.rows), terms_of(p.inputs), 1};
    w.bias1.set(static_cast<const real*>(p.bias1), p.hidden, rows);
    w.bias2.set(static_cast<const real*>(p.bias2), p.outputs, rows);
    // 2 part by part of the hidden layer: formed, bent, and multiplied into the sums
    const int64_t part = even_part(p.hidden, PART, STRIP);
    for (int64_t h = 0; h < p.hidden; h += part) {
        const int64_t deep = least(p.hidden - h, part), first = terms_of(h);
        form_hidden(p, start, rows, x, h, deep, part, w);
        const A hidden{reinterpret_cast<const term*>(w.hidden), part / PER_TERM, 1};
        for (int64_t s = 0; s < by.strips; ++s) {
            const int64_t column = s * STRIP, width = width_of_strip(p.outputs, s);
            const term* weight = static_cast<const term*>(p.weight2) + column * terms_of(p.hidden) + first * width;
            multiply_strip_by<true>(rows, terms_of(deep), hidden, weight, width, C{w.sums + column, wide},
                                    h ? nullptr : w.bias2.at(column), h > 0);
        }
    }
    // 3 the norm behind, the gain, the residual, and out
    normalise_behind(p, rows, w.sums, wide);
    const Finish out = finish_of(p, int64_t(Activation::none), nullptr, p.outputs);
    finish_rows(rows, p.outputs, w.sums, wide, out.at(start, 0));
}

}  // namespace
