// Linear maps and perceptrons as plain pointers and sizes, of float or bfloat16. No torch, no Python.
//
//     linear        y = N(act(n(x) W + b)) ∘ g + r              n, N: norms in front and behind, or nothing;
//     perceptron    y = N(act(n(x) W1 + b1) W2 + b2) ∘ g + r    g: LayerScale, or 1; r: a residual, or 0
//
// and their gradients. No hidden layer is formed whole. Rows are contiguous. Weights come packed, by `pack`, in the order
// in which products read them. Sums are floats, and what is done to them; they are rounded once, on their way out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention.h"

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

// One build of the linear kernels: an instruction set and a dtype. Bits do not depend on how rows were shared out over threads.
struct LinearKernels {
    int64_t (*packed_numbers)(const Weight&);
    Pass<Weight> pack;
    Pass<Linear> linear;
    Pass<Perceptron> perceptron;
    Pass<WeightGradient> weight_gradient;
    Pass<HiddenGradient> hidden_gradient;
};

bool multiplies_pairs();  // whether bfloat16 takes half the time of float here: the processor has an instruction for it
int64_t packed_numbers(const Weight&);
void run(const Weight&, int threads);
void run(const Linear&, int threads);
void run(const Perceptron&, int threads);
void run(const WeightGradient&, int threads);
void run(const HiddenGradient&, int threads);

}  // namespace locant
