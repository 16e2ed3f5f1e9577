// Linear maps and perceptrons as plain pointers and sizes, in float alone. No torch, no Python.
//
//     linear        y = act(n(x) W + b) ∘ g + r                n: a LayerNorm in front, or nothing; g: LayerScale, or 1;
//     perceptron    y = (act(n(x) W1 + b1) W2 + b2) ∘ g + r    r: a residual, or 0; no hidden layer is formed whole
//
// and their gradients. Rows are contiguous. Weights come packed, by `pack`, in the order in which products read them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fields.h"

namespace locant {

enum class Activation : int64_t { none, gelu, gelu_tanh, relu, silu };

#define LOCANT_MEMBER(type, name) type name;

struct Weight {
    LOCANT_WEIGHT(LOCANT_MEMBER)
};

struct Linear {
    LOCANT_LINEAR(LOCANT_MEMBER)
};

struct Perceptron {
    LOCANT_PERCEPTRON(LOCANT_MEMBER)
};

struct WeightGradient {
    LOCANT_WEIGHT_GRADIENT(LOCANT_MEMBER)
};

struct HiddenGradient {
    LOCANT_HIDDEN_GRADIENT(LOCANT_MEMBER)
};

#undef LOCANT_MEMBER

// One pass of one problem: items in any order, on any threads, each with scratch memory of its own.
template <class Problem> struct Pass {
    int64_t (*items)(const Problem&, int threads);
    size_t (*scratch)(const Problem&, int threads);
    void (*run)(const Problem&, int threads, int64_t item, void* scratch);
};

// One build of the linear kernels: an instruction set. Bits do not depend on how rows were shared out over threads.
struct LinearKernels {
    int64_t (*packed_numbers)(const Weight&);
    Pass<Weight> pack;
    Pass<Linear> linear;
    Pass<Perceptron> perceptron;
    Pass<WeightGradient> weight_gradient;
    Pass<HiddenGradient> hidden_gradient;
};

int64_t packed_numbers(const Weight&);
void run(const Weight&, int threads);
void run(const Linear&, int threads);
void run(const Perceptron&, int threads);
void run(const WeightGradient&, int threads);
void run(const HiddenGradient&, int threads);

}  // namespace locant
