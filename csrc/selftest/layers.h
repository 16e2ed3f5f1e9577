// A random perceptron through the linear kernels, against sums in double: its layers, and every gradient.
#pragma once

#include <cmath>
#include <cstring>
#include <string>

#include "linear.h"
#include "memory.h"

namespace {

using locant::Activation;
using locant::Dtype;

struct Layers {
    Dtype dtype;
    int64_t rows, inputs, hidden, outputs;
    Activation activation;
    bool normalised, added;
    vector<float> x, w1, b1, w2, b2, scale, shift, gain, residual, dy;
};

struct LayersRun { vector<float> y, before, layer, dx, dw1, db1, dw2, db2; };

// Numbers as they are stored: floats, or the upper halves of floats.
float nearest_bfloat16(float x) {
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    word = (word + 0x7fff + (word >> 16 & 1)) & 0xffff0000;
    std::memcpy(&x, &word, sizeof word);
    return x;
}
void store(const vector<float>& from, vector<float>& to) { to = from; }
void store(const vector<float>& from, vector<uint16_t>& to) {
    for (size_t i = 0; i < from.size(); ++i) {
        uint32_t word;
        std::memcpy(&word, &from[i], sizeof word);
        to[i] = uint16_t(word >> 16);
    }
}
vector<float> as_floats(const vector<float>& from) { return from; }
vector<float> as_floats(const vector<uint16_t>& from) {
    vector<float> to(from.size());
    for (size_t i = 0; i < from.size(); ++i) {
        const uint32_t word = uint32_t(from[i]) << 16;
        std::memcpy(&to[i], &word, sizeof word);
    }
    return to;
}

Layers random_layers(uint64_t number, Dtype dtype) {
    Random random{number * 0x9e3779b97f4a7c15};
    random.next();
    const auto size = [&](uint64_t most) { return int64_t(1 + random.next() % most); };
    Layers a{dtype, size(220), size(130), size(600), size(150), Activation(random.next() % 5), random.next() % 2 == 0,
             random.next() % 2 == 0, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    const auto fill = [&](vector<float>& to, int64_t count, double factor) {
        to.resize(index(count));
        for (float& one : to) one = float(factor * (double(random.next() % 4001) / 1000 - 2));
    };
    fill(a.x, a.rows * a.inputs, 1), fill(a.w1, a.hidden * a.inputs, 1 / std::sqrt(double(a.inputs)));
    fill(a.b1, a.hidden, 1), fill(a.w2, a.outputs * a.hidden, 1 / std::sqrt(double(a.hidden))), fill(a.b2, a.outputs, 1);
    fill(a.scale, a.inputs, 1), fill(a.shift, a.inputs, 1), fill(a.residual, a.rows * a.outputs, 1);
    fill(a.gain, a.outputs, 1);
    fill(a.dy, a.rows * a.outputs, 1);
    for (vector<float>* all : {&a.x, &a.w1, &a.w2, &a.residual, &a.dy})
        for (float& one : *all) one = dtype == Dtype::bf16 ? nearest_bfloat16(one) : one;
    return a;
}

template <class Stored> constexpr Stored UNWRITTEN = Stored(-1);  // NaN as bfloat16
template <> constexpr float UNWRITTEN<float> = float(NAN);

template <class Stored> vector<Stored> stored(const vector<float>& from) {
    vector<Stored> to(from.size());
    store(from, to);
    return to;
}

template <class Stored>
vector<Stored> pack(const Layers& a, const vector<float>& w, int64_t inputs, int64_t outputs, bool turned, int threads) {
    const vector<Stored> from = stored<Stored>(w);
    locant::Weight request{a.dtype, inputs, outputs, turned ? outputs : 1, turned ? 1 : inputs, from.data(), nullptr};
    vector<Stored> packed(index(locant::packed_numbers(request)), UNWRITTEN<Stored>);
    request.packed = packed.data();
    locant::run(request, threads);
    return packed;
}

template <class Stored> LayersRun run(const Layers& a, int threads) {
    // 1 what is read, and what is written
    const auto nothing = [](int64_t count) { return vector<Stored>(index(count), UNWRITTEN<Stored>); };
    const auto sums = [](int64_t count) { return vector<float>(index(count), NAN); };
    const auto x = stored<Stored>(a.x), residual = stored<Stored>(a.residual), dy = stored<Stored>(a.dy);
    auto y = nothing(a.rows * a.outputs), before = nothing(a.rows * a.hidden), layer = before, dh = before, after = before;
    auto dx = nothing(a.rows * a.inputs);
    auto dw1 = sums(a.hidden * a.inputs), db1 = sums(a.hidden), dw2 = sums(a.outputs * a.hidden), db2 = sums(a.outputs);
    const auto w1 = pack<Stored>(a, a.w1, a.inputs, a.hidden, false, threads);
    const auto w2 = pack<Stored>(a, a.w2, a.hidden, a.outputs, false, threads);
    const auto t1 = pack<Stored>(a, a.w1, a.hidden, a.inputs, true, threads);
    const auto t2 = pack<Stored>(a, a.w2, a.outputs, a.hidden, true, threads);
    const auto kind = int64_t(a.activation);
    const float *scale = a.normalised ? a.scale.data() : nullptr, *shift = a.normalised ? a.shift.data() : nullptr;
    // 2 forward, and backward
    locant::run(locant::Perceptron{a.dtype, a.rows, a.inputs, a.hidden, a.outputs, kind, x.data(), true, scale, shift, 1e-5,
                                   w1.data(), a.b1.data(), w2.data(), a.b2.data(), nullptr, nullptr, 0,
                                   a.added ? a.gain.data() : nullptr, a.added ? residual.data() : nullptr, before.data(),
                                   y.data()}, threads);
    locant::run(locant::Linear{a.dtype, a.rows, a.inputs, a.hidden, kind, x.data(), true, scale, shift, 1e-5, w1.data(),
                               a.b1.data(), nullptr, nullptr, 0, 0, 0, nullptr, nullptr, nullptr, layer.data()}, threads);
    locant::run(locant::HiddenGradient{a.dtype, a.rows, a.inputs, a.hidden, a.outputs, kind, dy.data(), before.data(),
                                       t1.data(), t2.data(), dh.data(), after.data(), dx.data()}, threads);
    locant::run(locant::WeightGradient{a.dtype, a.rows, a.inputs, a.hidden, false, dh.data(), x.data(), dw1.data(),
                                       db1.data()}, threads);
    locant::run(locant::WeightGradient{a.dtype, a.rows, a.hidden, a.outputs, false, dy.data(), after.data(), dw2.data(),
                                       db2.data()}, threads);
    return {as_floats(y), as_floats(before), as_floats(layer), as_floats(dx), dw1, db1, dw2, db2};
}

double bent(Activation activation, double x, bool slope) {
    const double root = 0.79788456080286536, inner = root * (x + 0.044715 * x * x * x), t = std::tanh(inner);
    const double phi = 0.5 * std::erfc(-x * 0.70710678118654752), s = 1 / (1 + std::exp(-x));
    switch (activation) {
        case Activation::gelu: return slope ? phi + x * 0.39894228040143268 * std::exp(-x * x / 2) : x * phi;
        case Activation::gelu_tanh:
            return slope ? (1 + t) / 2 + x / 2 * (1 - t * t) * root * (1 + 0.134145 * x * x) : x / 2 * (1 + t);
        case Activation::relu: return slope ? x > 0 : std::max(x, 0.0);
        case Activation::silu: return slope ? s + x * s * (1 - s) : x * s;
        case Activation::none: break;
    }
    return slope ? 1 : x;
}

// The same in double, from the definition. What the activation took is the kernels' own: a kink is no rounding.
class Definition {
public:
    Definition(const Layers& layers, const LayersRun& run)
        : a(layers), r(run), n(index(a.inputs)), dh(index(a.hidden)), dw1(r.dw1.size()), db1(r.db1.size()),
          dw2(r.dw2.size()), db2(r.db2.size()) {
        for (int64_t i = 0; i < a.rows; ++i) normalise(i), check_hidden(i), check_outputs(i), check_inputs(i);
        check_sums("dw1", r.dw1, dw1), check_sums("db1", r.db1, db1);
        check_sums("dw2", r.dw2, dw2), check_sums("db2", r.db2, db2);
    }
    std::string fault;

private:
    static double at(const vector<float>& all, int64_t i) { return double(all[index(i)]); }

    void check(const char* name, double found, double right, double size) {
        const double unit = a.dtype == Dtype::bf16 ? 0x1p-8 : 4e-6;  // of what is stored; of sums of at most 600 terms
        if (std::fabs(found - right) <= unit * (1 + size) || !fault.empty()) return;
        fault = std::string(name) + " is " + std::to_string(found) + "; it should be " + std::to_string(right);
    }

    void check_sums(const char* name, const vector<float>& found, const vector<double>& right) {
        for (size_t i = 0; i < right.size(); ++i) check(name, double(found[i]), right[i], 4 * double(a.rows));
    }

    void normalise(int64_t i) {
        double mean = 0, square = 0;
        for (int64_t c = 0; c < a.inputs; ++c) mean += at(a.x, i * a.inputs + c) / double(a.inputs);
        for (int64_t c = 0; c < a.inputs; ++c) square += std::pow(at(a.x, i * a.inputs + c) - mean, 2);
        const double factor = 1 / std::sqrt(square / double(a.inputs) + 1e-5);
        cancelled = a.normalised ? 2 * factor : 0;  // neighbours that nearly agree: x - mean keeps few of x's digits
        for (int64_t c = 0; c < a.inputs; ++c) {
            const double x = at(a.x, i * a.inputs + c);
            n[index(c)] = a.normalised ? (x - mean) * factor * at(a.scale, c) + at(a.shift, c) : x;
        }
    }

    void check_hidden(int64_t i) {
        for (int64_t h = 0; h < a.hidden; ++h) {
            double sum = at(a.b1, h), size = std::fabs(sum), given = 0;
            for (int64_t c = 0; c < a.inputs; ++c) {
                const double term = n[index(c)] * at(a.w1, h * a.inputs + c);
                sum += term, size += std::fabs(term) + cancelled * std::fabs(at(a.scale, c) * at(a.w1, h * a.inputs + c));
            }
            const double own = at(r.before, i * a.hidden + h), after = bent(a.activation, own, false);
            check("what the activation takes", own, sum, size);
            check("a linear layer", at(r.layer, i * a.hidden + h), bent(a.activation, sum, false), size);
            for (int64_t o = 0; o < a.outputs; ++o) {
                given += at(a.dy, i * a.outputs + o) * at(a.w2, o * a.hidden + h);
                dw2[index(o * a.hidden + h)] += at(a.dy, i * a.outputs + o) * after;
            }
            dh[index(h)] = given * bent(a.activation, own, true), db1[index(h)] += dh[index(h)];
            for (int64_t c = 0; c < a.inputs; ++c)
                dw1[index(h * a.inputs + c)] += dh[index(h)] * at(a.x, i * a.inputs + c);
        }
    }

    void check_outputs(int64_t i) {
        for (int64_t o = 0; o < a.outputs; ++o) {
            double sum = at(a.b2, o), size = 4;
            for (int64_t h = 0; h < a.hidden; ++h) {
                const double after = bent(a.activation, at(r.before, i * a.hidden + h), false);
                const double term = after * at(a.w2, o * a.hidden + h);
                sum += term, size += std::fabs(term);
            }
            if (a.added) sum = sum * at(a.gain, o) + at(a.residual, i * a.outputs + o);
            check("y", at(r.y, i * a.outputs + o), sum, 2 * size);
            db2[index(o)] += at(a.dy, i * a.outputs + o);
        }
    }

    void check_inputs(int64_t i) {
        for (int64_t c = 0; c < a.inputs; ++c) {
            double sum = 0, size = 0;
            for (int64_t h = 0; h < a.hidden; ++h) {
                const double term = dh[index(h)] * at(a.w1, h * a.inputs + c);
                sum += term, size += std::fabs(term);
            }
            check("dx", at(r.dx, i * a.inputs + c), sum, size);
        }
    }

    const Layers& a;
    const LayersRun& r;
    vector<double> n, dh, dw1, db1, dw2, db2;
    double cancelled = 0;
};

template <class Stored> std::string linear_fault(uint64_t number, Dtype dtype) {
    const Layers layers = random_layers(number, dtype);
    const LayersRun one = run<Stored>(layers, 1), other = run<Stored>(layers, 3);
    std::string fault = Definition(layers, one).fault;
    const auto same = [](const vector<float>& a, const vector<float>& b) {
        return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    if (!same(one.y, other.y) || !same(one.before, other.before) || !same(one.layer, other.layer) ||
        !same(one.dx, other.dx) || !same(one.dw1, other.dw1) || !same(one.db1, other.db1) || !same(one.dw2, other.dw2) ||
        !same(one.db2, other.db2))
        fault = "a linear map has other bits on 3 threads than on one";
    if (fault.empty()) return fault;
    return fault + " (" + std::to_string(layers.rows) + " rows, " + std::to_string(layers.inputs) + " to " +
           std::to_string(layers.hidden) + " to " + std::to_string(layers.outputs) + ", activation " +
           std::to_string(int(layers.activation)) + (dtype == Dtype::bf16 ? ", bfloat16)" : ")");
}

// A sentence about what is wrong with the linear kernels on problem `number`, or nothing.
std::string linear_fault(uint64_t number) {
    const std::string fault = linear_fault<float>(number, Dtype::f32);
    return fault.empty() ? linear_fault<uint16_t>(number, Dtype::bf16) : fault;
}

}  // namespace
