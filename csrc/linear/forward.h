// Linear maps and perceptrons, forward, for a block of rows and a range of strips.
#pragma once

#include "linear/activation.h"
#include "linear/weights.h"
#include "memory/arena.h"

namespace {

using locant::Linear;
using locant::Perceptron;

constexpr int64_t TALL = 96;      // rows of a block, at most: sixteen tiles, whose inputs and sums stay in the cache
constexpr int64_t HIDDEN = 256;   // numbers of a hidden layer at once
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

// The rows that a product reads: as they are, or through a LayerNorm. y = (x - mean) / √(variance + ε) · scale + shift.
inline void normalise_rows(const real* x, int64_t rows, int64_t width, const real* scale, const real* shift,
                           double epsilon, real* to) {
    const int64_t whole = width / LANES * LANES;
    for (int64_t i = 0; i < rows; ++i, x += width, to += width) {
        // 1 the mean, and the variance about it: two sums, of which none cancels
        vec sums = vec{};
        for (int64_t c = 0; c < whole; c += LANES) sums += load(x + c);
        real sum = reduce_lanes(sums, [](vec a, vec b) { return a + b; })[0];
        for (int64_t c = whole; c < width; ++c) sum += x[c];
        const real mean = sum / real(width);
        vec squares = vec{};
        for (int64_t c = 0; c < whole; c += LANES) squares += (load(x + c) - mean) * (load(x + c) - mean);
        real square = reduce_lanes(squares, [](vec a, vec b) { return a + b; })[0];
        for (int64_t c = whole; c < width; ++c) square += (x[c] - mean) * (x[c] - mean);
        // 2 written out
        const real factor = real(1 / __builtin_sqrt(double(square) / double(width) + epsilon));
        for (int64_t c = 0; c < whole; c += LANES)
            store(to + c, (load(x + c) - mean) * factor * load(scale + c) + load(shift + c));
        for (int64_t c = whole; c < width; ++c) to[c] = (x[c] - mean) * factor * scale[c] + shift[c];
    }
}

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
    const real *gain, *residual;
    real *before, *y;
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
        if (by.before) by.before[i] = sums[i];
        by.y[i] = out[i - c] * (by.gain ? by.gain[i] : real(1)) + (by.residual ? by.residual[i] : real(0));
    }
}

// `rows` rows of `count` sums, `step` apart.
inline void finish_rows(int64_t rows, int64_t count, const real* sums, int64_t step, const Finish& by) {
    with_activation(by.activation, [&](auto activation) INLINE_LAMBDA {
        for (int64_t i = 0; i < rows; ++i) finish_row<activation()>(sums + i * step, count, by.at(i, 0));
    });
}

template <class Asked> INLINE Finish finish_of(const Asked& p, int64_t activation, void* before, int64_t before_step) {
    return {activation, static_cast<const real*>(p.gain), static_cast<const real*>(p.residual),
            static_cast<real*>(before), static_cast<real*>(p.y), before_step, p.outputs};
}

// --- linear ---------------------------------------------------------------------------------------------------------

struct LinearWork {
    real *rows, *tile;
    BiasSeeds bias;
    LinearWork(const Linear& p, int64_t block, Arena& arena)
        : rows(arena.allocate<real>(p.scale ? block * p.inputs : 0)), tile(arena.allocate<real>(block * STRIP)),
          bias(p.outputs, block, arena) {}
};

inline void linear_item(const Linear& p, const Shares& by, int64_t item, LinearWork& w) {
    // 1 which rows and strips
    const int64_t start = item / by.groups() * by.block, rows = least(p.rows - start, by.block);
    const int64_t low = item % by.groups() * by.group, high = least(low + by.group, by.strips);
    // 2 what is multiplied, and what sums start from
    const real* x = static_cast<const real*>(p.x) + start * p.inputs;
    if (p.scale) {
        normalise_rows(x, rows, p.inputs, static_cast<const real*>(p.scale), static_cast<const real*>(p.shift),
                       p.epsilon, w.rows);
        x = w.rows;
    }
    w.bias.set(static_cast<const real*>(p.bias), p.outputs, rows);
    // 3 strip by strip, by way of a tile that stays in the cache
    const Finish out = finish_of(p, p.activation, p.before, p.outputs);
    for (int64_t s = low; s < high; ++s) {
        const int64_t column = s * STRIP, width = width_of_strip(p.outputs, s);
        multiply_strip_by<true>(rows, p.inputs, A{x, p.inputs, 1}, static_cast<const real*>(p.weight) + column * p.inputs,
                                width, C{w.tile, width}, w.bias.at(column), false);
        finish_rows(rows, least(p.outputs - column, STRIP), w.tile, width, out.at(start, column));
    }
}

// --- perceptrons ----------------------------------------------------------------------------------------------------

struct PerceptronWork {
    real *rows, *hidden, *sums;
    BiasSeeds bias1, bias2;
    PerceptronWork(const Perceptron& p, int64_t block, Arena& arena)
        : rows(arena.allocate<real>(p.scale ? block * p.inputs : 0)), hidden(arena.allocate<real>(block * (HIDDEN + STRIP))),
          sums(arena.allocate<real>(block * round_up(p.outputs, LANES))), bias1(p.hidden, block, arena),
          bias2(p.outputs, block, arena) {}
};

inline void perceptron_item(const Perceptron& p, const Shares& by, int64_t item, PerceptronWork& w) {
    // 1 which rows, and what they start from
    const int64_t start = item * by.block, rows = least(p.rows - start, by.block), wide = round_up(p.outputs, LANES);
    const real* x = static_cast<const real*>(p.x) + start * p.inputs;
    if (p.scale) {
        normalise_rows(x, rows, p.inputs, static_cast<const real*>(p.scale), static_cast<const real*>(p.shift),
                       p.epsilon, w.rows);
        x = w.rows;
    }
    w.bias1.set(static_cast<const real*>(p.bias1), p.hidden, rows);
    w.bias2.set(static_cast<const real*>(p.bias2), p.outputs, rows);
    const auto *weight1 = static_cast<const real*>(p.weight1), *weight2 = static_cast<const real*>(p.weight2);
    real* before = p.before ? static_cast<real*>(p.before) + start * p.hidden : nullptr;
    // 2 part by part of the hidden layer: formed, bent, and multiplied into the sums
    const int64_t part = even_part(p.hidden, HIDDEN, STRIP);
    for (int64_t h = 0; h < p.hidden; h += part) {
        const int64_t deep = least(p.hidden - h, part);
        for (int64_t column = h; column < h + deep; column += STRIP) {
            const int64_t width = width_of_strip(p.hidden, column / STRIP), count = least(p.hidden - column, STRIP);
            real* sums = w.hidden + (column - h);
            multiply_strip_by<true>(rows, p.inputs, A{x, p.inputs, 1}, weight1 + column * p.inputs, width, C{sums, part},
                                    w.bias1.at(column), false);
            finish_rows(rows, count, sums, part,
                        {p.activation, nullptr, nullptr, before ? before + column : nullptr, sums, p.hidden, part});
        }
        for (int64_t s = 0; s < by.strips; ++s) {
            const int64_t column = s * STRIP, width = width_of_strip(p.outputs, s);
            multiply_strip_by<true>(rows, deep, A{w.hidden, part, 1}, weight2 + column * p.hidden + h * width, width,
                                    C{w.sums + column, wide}, h ? nullptr : w.bias2.at(column), h > 0);
        }
    }
    // 3 the gain, the residual, and out
    const Finish out = finish_of(p, int64_t(Activation::none), nullptr, p.outputs);
    finish_rows(rows, p.outputs, w.sums, wide, out.at(start, 0));
}

}  // namespace
