// Activations of vectors, and their derivatives.
//
// With the normal distribution's lower tail Q(a) = Φ(-a), a = |x|:
//
//     gelu(x) = x Φ(x) = max(x, 0) - a Q(a)          gelu'(x) = Φ(x) + x φ(x),  φ(x) = exp(-x²/2) / √(2π)
//
// log2 Q is as smooth as a parabola, so a polynomial has it to 1.3e-7 on [0, 5.5], and 2 to that power is Q with the
// same relative error. Nothing cancels: far out on the negative side gelu keeps its leading digits, where
// x (1 + erf(x/√2)) / 2 has none. Beyond 5.5 the polynomial falls on, and a Q(a) < 1.1e-7 goes to 0.
#pragma once

#include "linear.h"
#include "simd/vector.h"

namespace {

using locant::Activation;

// Of log2 Q(a) on [0, 5.5], highest power first, fitted for the least absolute error.
constexpr double TAIL[] = {-1.7772874007490239e-08, 5.6193870900143973e-07, -7.6225577402916395e-06,
                           5.5896353807289267e-05,  -0.0002045668562467344, -0.00016647111899125726,
                           0.0071666627487855386,   -0.052604090269555905,  -0.45916096106597348,
                           -1.1511125426153026,     -0.99999981370534474};

constexpr real FARTHEST = 40;  // from there on every tail is 0, and powers of x are finite up to there

INLINE vec positive_part(vec x) { return max_of(vec{}, x); }  // a NaN stays one
INLINE vec at_most(real most, vec x) { return -max_of(broadcast(-most), -x); }  // exact, and a NaN stays one
INLINE vec absolute(vec x) { return max_of(x, -x); }
INLINE vec clamp(vec x) { return at_most(FARTHEST, max_of(broadcast(-FARTHEST), x)); }

// The normal distribution's tail above a >= 0.
INLINE vec tail(vec a) {
    vec p = broadcast(real(TAIL[0]));
    UNROLL(i, 10) p = p * a + real(TAIL[i + 1]);
    return exp2(p);
}

INLINE vec sigmoid(vec x) { return real(1) / (real(1) + exp2(at_most(128, x * -LOG2E))); }  // 2^128 is infinite

// gelu_tanh(x) = x σ(2 √(2/π) (x + c x³)).
constexpr real TWICE_ROOT = real(1.59576912160573071), CUBE = real(0.044715);
INLINE vec tanh_argument(vec x) { return TWICE_ROOT * (x + CUBE * x * x * x); }

template <Activation which> INLINE vec activate(vec x) {
    if constexpr (which == Activation::gelu) {
        const vec a = at_most(FARTHEST, absolute(x));
        return positive_part(x) - a * tail(a);
    } else if constexpr (which == Activation::gelu_tanh) {
        return x * sigmoid(tanh_argument(x));
    } else if constexpr (which == Activation::relu) {
        return positive_part(x);
    } else if constexpr (which == Activation::silu) {
        return x * sigmoid(x);
    } else {
        return x;
    }
}

// The derivative at x.
template <Activation which> INLINE vec slope(vec given) {
    const vec x = clamp(given);
    if constexpr (which == Activation::gelu) {
        const vec a = absolute(x), q = tail(a);
        const vec density = real(0.39894228040143268) * exp2(a * a * (real(-0.5) * LOG2E));
        return select(x > vec{}, real(1) - q, q) + x * density;
    } else if constexpr (which == Activation::gelu_tanh) {
        const vec s = sigmoid(tanh_argument(x)), inner = TWICE_ROOT * (real(1) + real(3) * CUBE * x * x);
        return s + x * s * (real(1) - s) * inner;
    } else if constexpr (which == Activation::relu) {
        return select(x > vec{}, broadcast(real(1)), x - x);
    } else if constexpr (which == Activation::silu) {
        const vec s = sigmoid(x);
        return s + x * s * (real(1) - s);
    } else {
        return broadcast(real(1));
    }
}

// Calls f with the activation as a constant, so that its branch is taken once and not per number.
template <class F> INLINE void with_activation(int64_t which, F f) {
    switch (Activation(which)) {
        case Activation::gelu: return f(std::integral_constant<Activation, Activation::gelu>());
        case Activation::gelu_tanh: return f(std::integral_constant<Activation, Activation::gelu_tanh>());
        case Activation::relu: return f(std::integral_constant<Activation, Activation::relu>());
        case Activation::silu: return f(std::integral_constant<Activation, Activation::silu>());
        case Activation::none: return f(std::integral_constant<Activation, Activation::none>());
    }
}

}  // namespace
