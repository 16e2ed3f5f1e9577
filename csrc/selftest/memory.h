// Random numbers, numbers of every kind, and memory that notices what was written where it should not have been.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "../attention.h"

namespace {

using locant::Dtype;
using locant::Rows;
using std::vector;

size_t index(int64_t i) { return static_cast<size_t>(i); }

struct Random {  // the same everywhere, unlike the distributions of the standard library
    uint64_t state;
    uint64_t next() {
        uint64_t x = state += 0x9e3779b97f4a7c15;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
        x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
        return x ^ (x >> 31);
    }
    int64_t from(int64_t low, int64_t high) { return low + int64_t(next() % uint64_t(high - low + 1)); }
    bool one_in(int64_t n) { return from(1, n) == 1; }
    double share() { return double(next() >> 11) * 0x1p-53; }                                  // of 1
    double number() { return 2 * (share() + share() + share() - share() - share() - share()); }  // variance 2
    int64_t size(int64_t most) {  // 1 .. most, each order of magnitude as likely as another
        return std::min(most, int64_t(std::exp(share() * std::log(double(most + 1)))));
    }
};

// --- numbers ------------------------------------------------------------------------------------------------------

struct Format {
    const char* name;
    int64_t bytes;
    int mantissa, bias;
    double unit() const { return std::ldexp(1, -mantissa - 1); }  // the largest relative error of rounding
};
const Format formats[] = {
    {"float32", 4, 23, 127}, {"float64", 8, 52, 1023}, {"bfloat16", 2, 7, 127}, {"float16", 2, 10, 15}};

const Format& format(Dtype dtype) { return formats[int(dtype)]; }
Dtype arithmetic(Dtype dtype) { return dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32; }

double decode(const Format& f, unsigned bits) {  // formats of 16 bits
    const int most = 2 * f.bias + 1, exponent = int(bits >> f.mantissa) & most;
    const unsigned hidden = 1u << f.mantissa, fraction = bits & (hidden - 1);
    const double sign = bits >> 15 ? -1 : 1;
    if (exponent == most) return fraction ? std::nan("") : sign * HUGE_VAL;
    return sign * std::ldexp(exponent ? fraction + hidden : fraction, std::max(exponent, 1) - f.bias - f.mantissa);
}

unsigned encode(const Format& f, double x) {  // to the nearest, ties to even
    const unsigned sign = std::signbit(x) ? 1u << 15 : 0, infinite = unsigned(2 * f.bias + 1) << f.mantissa;
    if (std::isnan(x)) return infinite + 1;
    if (x == 0 || std::isinf(x)) return sign | (x == 0 ? 0 : infinite);
    const int exponent = std::max(std::ilogb(x), 1 - f.bias);
    const double whole = std::nearbyint(std::ldexp(std::fabs(x), f.mantissa - exponent));
    if (exponent > f.bias) return sign | infinite;
    return sign | std::min(infinite, (unsigned(exponent + f.bias - 1) << f.mantissa) + unsigned(whole));
}

double get(Dtype dtype, const void* from, int64_t at) {
    if (dtype == Dtype::f64) return static_cast<const double*>(from)[at];
    if (dtype == Dtype::f32) return double(static_cast<const float*>(from)[at]);
    return decode(format(dtype), static_cast<const uint16_t*>(from)[at]);
}

void set(Dtype dtype, void* to, int64_t at, double x) {
    if (dtype == Dtype::f64) static_cast<double*>(to)[at] = x;
    else if (dtype == Dtype::f32) static_cast<float*>(to)[at] = float(x);
    else static_cast<uint16_t*>(to)[at] = uint16_t(encode(format(dtype), x));
}

double round_to(Dtype dtype, double x) {
    if (dtype == Dtype::f64) return x;
    return dtype == Dtype::f32 ? double(float(x)) : decode(format(dtype), encode(format(dtype), x));
}

// --- memory -------------------------------------------------------------------------------------------------------

#if defined LOCANT_SANITIZED  // a sanitizer's own guard is the better one: it sees what is read, too
constexpr int64_t GUARD = 0, SPOILED = 0;
#else
constexpr int64_t GUARD = 64, SPOILED = 8 << 20;  // bytes
#endif

// Bytes of 0xff, a NaN in every format, with more of them before and after. Where nobody may write they stay.
struct Memory {
    explicit Memory(int64_t bytes) : all(index(bytes + 2 * GUARD), 0xff), writable(all.size(), 0) {}
    uint8_t* data() { return all.data() + GUARD; }
    void open(int64_t at, int64_t bytes) { std::fill_n(writable.data() + GUARD + at, bytes, uint8_t(1)); }
    bool intact() const {
        const uint8_t *byte = all.data(), *free = writable.data();
        for (size_t i = 0, n = all.size(); i < n; ++i)
            if (!free[i] && byte[i] != 0xff) return false;
        return true;
    }
    vector<uint8_t> all;
    vector<uint8_t> writable;
};
using Shared = std::shared_ptr<Memory>;

template <class T> const T* row_of(const locant::PerSample<T>& numbers, int64_t sample) {
    return numbers.data + sample * numbers.batch;
}

struct Strides {  // where [batch, heads, tokens, channels] lie, in memory of so many numbers
    std::array<int64_t, 4> size, step;
    int64_t shift, numbers;

    template <class Do> void each(Do work) const {  // work(index in memory), in order
        for (int64_t b = 0; b < size[0]; ++b)
            for (int64_t h = 0; h < size[1]; ++h)
                for (int64_t t = 0; t < size[2]; ++t)
                    for (int64_t c = 0; c < size[3]; ++c)
                        work(shift + b * step[0] + h * step[1] + t * step[2] + c * step[3]);
    }
    Rows rows(Dtype dtype, Memory& memory) const {
        return {memory.data() + shift * format(dtype).bytes, step[0], step[1], step[2], step[3]};
    }
};

Strides plain_strides(std::array<int64_t, 4> size) {
    const int64_t row = size[2] * size[3];
    return {size, {size[1] * row, row, size[3], 1}, 0, size[0] * size[1] * row};
}

// Axes in any order with gaps between them; what is only read may be expanded along some.
Strides scattered_strides(Random& random, std::array<int64_t, 4> size, bool only_read) {
    const int orders[4][4] = {{0, 1, 2, 3}, {0, 2, 1, 3}, {0, 1, 3, 2}, {2, 3, 1, 0}};  // outermost first
    const int* order = orders[random.one_in(3) ? random.from(0, 3) : random.from(0, 1)];
    Strides s{size, {}, random.one_in(3) ? random.from(1, 5) : 0, 0};
    int64_t step = random.one_in(6) ? random.from(2, 3) : 1;
    for (int i = 3; i >= 0; --i) {
        const auto axis = index(order[i]);
        s.step[axis] = only_read && random.one_in(20) ? 0 : step;
        step = std::max(step, s.step[axis] * size[axis]) + (random.one_in(6) ? random.from(1, 9) : 0);
    }
    s.each([&](int64_t at) { s.numbers = std::max(s.numbers, at + 1); });
    return s;
}

// One of the three parts of [batch, tokens, 3, heads, channels].
Strides part(int64_t number, std::array<int64_t, 4> size) {
    const int64_t row = size[1] * size[3];
    return {size, {size[2] * 3 * row, size[3], 3 * row, 1}, number * row, size[0] * size[2] * 3 * row};
}

}  // namespace
