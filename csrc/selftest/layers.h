// A random perceptron through the linear kernels, against sums in double: its layers, and every gradient.
#pragma once

#include <cmath>
#include <cstring>
#include <string>

#include "linear.h"
#include "memory.h"

namespace {

using locant::Activation;

struct Layers {
    int64_t rows, inputs, hidden, outputs;
    Activation activation;
    bool normalised, added;
    vector<float> x, w1, b1, w2, b2, scale, shift, gain, residual, dy;
};

struct LayersRun { vector<float> y, before, layer, dx, dw1, db1, dw2, db2; };

Layers random_layers(uint64_t number) {
    Random random{number * 0x9e3779b97f4a7c15};
    random.next();
    const auto size = [&](uint64_t most) { return int64_t(1 + random.next() % most); };
    Layers a{size(220), size(130), size(600), size(150), Activation(random.next() % 5), random.next() % 2 == 0,
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
    return a;
}

vector<float> pack(const vector<float>& w, int64_t inputs, int64_t outputs, bool turned, int threads) {
    locant::Weight request{inputs, outputs, turned ? outputs : 1, turned ? 1 : inputs, w.data(), nullptr};
    vector<float> packed(index(locant::packed_numbers(request)), NAN);
    request.packed = packed.data();
    locant::run(request, threads);
    return packed;
}

LayersRun run(const Layers& a, int threads) {
    const auto nothing = [](int64_t count) { return vector<float>(index(count), NAN); };
    LayersRun r{nothing(a.rows * a.outputs), nothing(a.rows * a.hidden), nothing(a.rows * a.hidden),
                nothing(a.rows * a.inputs), nothing(a.hidden * a.inputs), nothing(a.hidden),
                nothing(a.outputs * a.hidden), nothing(a.outputs)};
    const auto w1 = pack(a.w1, a.inputs, a.hidden, false, threads), w2 = pack(a.w2, a.hidden, a.outputs, false, threads);
    const auto t1 = pack(a.w1, a.hidden, a.inputs, true, threads), t2 = pack(a.w2, a.outputs, a.hidden, true, threads);
    const auto kind = int64_t(a.activation);
    const float *scale = a.normalised ? a.scale.data() : nullptr, *shift = a.normalised ? a.shift.data() : nullptr;
    locant::run(locant::Perceptron{a.rows, a.inputs, a.hidden, a.outputs, kind, a.x.data(), scale, shift, 1e-5, w1.data(),
                                   a.b1.data(), w2.data(), a.b2.data(), a.added ? a.gain.data() : nullptr,
                                   a.added ? a.residual.data() : nullptr,
                                   r.before.data(), r.y.data()}, threads);
    locant::run(locant::Linear{a.rows, a.inputs, a.hidden, kind, a.x.data(), scale, shift, 1e-5, w1.data(), a.b1.data(),
                               nullptr, nullptr, nullptr, r.layer.data()}, threads);
    vector<float> dh(r.before.size(), NAN), after(r.before.size(), NAN);
    locant::run(locant::HiddenGradient{a.rows, a.inputs, a.hidden, a.outputs, kind, a.dy.data(), r.before.data(),
                                       t1.data(), t2.data(), dh.data(), after.data(), r.dx.data()}, threads);
    locant::run(locant::WeightGradient{a.rows, a.inputs, a.hidden, false, dh.data(), a.x.data(), r.dw1.data(),
                                       r.db1.data()}, threads);
    locant::run(locant::WeightGradient{a.rows, a.hidden, a.outputs, false, a.dy.data(), after.data(), r.dw2.data(),
                                       r.db2.data()}, threads);
    return r;
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
        if (std::fabs(found - right) <= 4e-6 * (1 + size) || !fault.empty()) return;  // sums of at most 600 terms
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

// A sentence about what is wrong with the linear kernels on problem `number`, or nothing.
std::string linear_fault(uint64_t number) {
    const Layers layers = random_layers(number);
    const LayersRun one = run(layers, 1), other = run(layers, 3);
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
           std::to_string(int(layers.activation)) + ")";
}

}  // namespace
