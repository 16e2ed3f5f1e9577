// Attention and its gradients as they are defined, pair by pair, in the arithmetic of T.
//
//     s_ij = scale q_i·k_j + bias_ij      p_ij = exp(s_ij - lse_i)      out_i = Σ_j kept_ij p_ij v_j
//     ds_ij = p_ij (kept_ij dout_i·v_j - Σ_c dout_i out_i + dlse_i)
//     dq_i = scale Σ_j ds_ij k_j     dk_j = scale Σ_i ds_ij q_i     dv_j = Σ_i kept_ij p_ij dout_i     dbias = Σ ds
//
// Content is a part of the bias: content_scale Σ_axis (content_i·vectors_o + vector_bias_o), o the offset of i and j.
#pragma once

#include "content.h"

namespace {

template <class T> class Naive {
public:
    explicit Naive(const Task& task);

    vector<T> value[KINDS];      // of results; the learned rows' gradients stand behind the table's
    vector<double> size[KINDS];  // the same sums with every term positive: what rounding errors are relative to
    double largest = 0;          // score, likewise

private:
    struct Row { int64_t sample, head, cell, query; };
    bool sees(int64_t sample, int64_t i, int64_t j) const;
    double dropout_factor(const Row& row, int64_t j) const;
    int64_t entry(int64_t head, int64_t i, int64_t j) const;
    int64_t place(const Row& row) const { return (row.sample * p.heads + row.head) * layout.queries + row.query; }
    int64_t keys_before(const Row& row) const {
        return (row.sample * p.kv_heads + row.head / (p.heads / p.kv_heads)) * layout.keys;
    }
    int64_t met(const Row& row, int64_t j, int64_t axis) const;
    T content(const Row& row, int64_t j, double& magnitude) const;
    void add_content_gradient(const Row& row, int64_t j, T ds, double magnitude);
    void attend(const Row& row);
    void forward(const Row& row, const vector<int64_t>& seen, const vector<T>& weight);
    void backward(const Row& row, const vector<int64_t>& seen, const vector<T>& weight);
    void add(int kind, int64_t at, T x, double magnitude) {
        value[kind][index(at)] += x, size[kind][index(at)] += magnitude;
    }

    const Task& task;
    const Problem& p;
    const Layout& layout;
    vector<T> given[OUT], dlse, bias, vectors, numbers;  // bias: the table and behind it the learned rows
};

template <class T> Naive<T>::Naive(const Task& t) : task(t), p(t.problem), layout(t.layout) {
    const Dtype kind = arithmetic(p.dtype);
    const int64_t entries = t.strides[DTABLE].numbers, learned = t.strides[DROWS].numbers;
    for (int i = Q; i < OUT; ++i)
        t.strides[i].each([&](int64_t at) { given[i].push_back(T(get(p.dtype, t.given[i]->data(), at))); });
    for (int64_t i = 0; p.dlse && i < t.strides[LSE].numbers; ++i) dlse.push_back(T(get(kind, p.dlse, i)));
    for (int64_t i = 0; i < entries + learned; ++i)  // the kernels' are in units of log 2
        bias.push_back(
            T(std::log(2.0) * (i < entries ? get(kind, p.table, i) : get(kind, p.prefix_bias, i - entries))));
    for (int64_t i = 0; p.vectors && i < p.vector_heads * p.offsets * p.head_dim; ++i)
        vectors.push_back(T(get(kind, p.vectors, i)));
    for (int64_t i = 0; p.vector_bias && i < p.vector_heads * p.offsets; ++i)
        numbers.push_back(T(get(kind, p.vector_bias, i)));
    for (int i = OUT; i < DTABLE; ++i) {
        const auto& n = t.strides[i].size;
        value[i].resize(index(n[0] * n[1] * n[2] * n[3])), size[i].resize(value[i].size());
    }
    if (t.trained) value[DTABLE].resize(bias.size()), size[DTABLE].resize(bias.size());
    for (int64_t b = 0; b < p.batch; ++b)
        for (int64_t h = 0; h < p.heads; ++h)
            for (int64_t c = 0; c < layout.cells; ++c)
                for (int64_t i = layout.query_start[c]; i < layout.query_start[c + 1]; ++i)
                    attend({b, h, c, layout.query[i]});
}

template <class T> bool Naive<T>::sees(int64_t sample, int64_t i, int64_t j) const {
    if (p.valid.data && !row_of(p.valid, sample)[j]) return false;
    for (int64_t o = 0; o < layout.orders; ++o)
        if (layout.key_rank[o * layout.keys + j] > layout.query_rank[o * layout.queries + i]) return false;
    return !p.query_id.data || i < p.free_queries || j < p.free_keys ||
           row_of(p.query_id, sample)[i] == row_of(p.key_id, sample)[j];
}

// What dropout does to a weight (attention/dropout.h).
template <class T> double Naive<T>::dropout_factor(const Row& row, int64_t j) const {
    if (p.dropout == 0) return 1;
    const auto mix = [](uint32_t x) {
        x = (x ^ (x >> 16)) * 0x7feb352d;
        x = (x ^ (x >> 15)) * 0x846ca68b;
        return x ^ (x >> 16);
    };
    const uint32_t head = mix(uint32_t(row.sample * p.heads + row.head));
    const uint32_t key = mix(uint32_t(p.seed) ^ mix(uint32_t(p.seed >> 32) ^ head));
    uint32_t x = mix(key + uint32_t(row.query) * 0x9e3779b9) ^ mix((key ^ 0x85ebca6b) + uint32_t(j) * 0x9e3779b9);
    x = x * 0x7feb352d;
    x = (x ^ (x >> 15)) * 0x846ca68b;
    return (x ^ (x >> 16)) >> 1 < std::floor(p.dropout * 0x1p31) ? 0 : 1 / (1 - p.dropout);
}

template <class T> int64_t Naive<T>::entry(int64_t head, int64_t i, int64_t j) const {  // of the bias; -1 for none
    const bool query = i < layout.query_prefix, key = j < layout.key_prefix;
    if (!p.table || ((query || key) && !p.prefix_bias)) return -1;
    if (query || key) return p.heads * (p.entries + (query && key ? 2 : key ? 1 : 0)) + head;
    return head * p.entries + layout.query_place[i] - layout.key_place[j];
}

// Which of all vectors of all heads the row's query meets against a key along an axis; -1 for none.
template <class T> int64_t Naive<T>::met(const Row& row, int64_t j, int64_t a) const {
    if (row.query < layout.query_prefix || j < layout.key_prefix) return -1;
    const int32_t* of = layout.axis + a * locant::AXIS_NUMBERS;
    const auto offset = layout.query_at[a * layout.queries + row.query] - layout.key_at[a * layout.keys + j];
    int64_t first = p.vector_heads == 1 ? 0 : row.head * p.offsets;
    for (const int32_t* before = layout.axis; before < of; before += locant::AXIS_NUMBERS)
        first += before[locant::HIGHEST_OFFSET] - before[locant::LOWEST_OFFSET] + 1;
    return first + std::min(std::max(offset, of[locant::LOWEST_OFFSET]), of[locant::HIGHEST_OFFSET]) -
           of[locant::LOWEST_OFFSET];
}

template <class T> T Naive<T>::content(const Row& row, int64_t j, double& magnitude) const {
    const T* own = &given[p.content.data ? CONTENT : Q][index(place(row) * p.head_dim)];
    T sum = 0;
    for (int64_t a = 0; a < layout.axes; ++a) {
        const int64_t o = met(row, j, a);
        if (o < 0) continue;
        for (int64_t c = 0; c < p.head_dim; ++c) {
            const T x = T(p.content_scale) * own[c] * vectors[index(o * p.head_dim + c)];
            sum += x, magnitude += std::fabs(double(x));
        }
        if (p.vector_bias) sum += T(p.content_scale) * numbers[index(o)];
        if (p.vector_bias) magnitude += std::fabs(double(p.content_scale) * double(numbers[index(o)]));
    }
    return sum;
}

template <class T> void Naive<T>::add_content_gradient(const Row& row, int64_t j, T ds, double magnitude) {
    const int64_t own = place(row) * p.head_dim;
    const T scale = T(p.content_scale), *x = &given[p.content.data ? CONTENT : Q][index(own)];
    for (int64_t a = 0; a < layout.axes; ++a) {
        const int64_t o = met(row, j, a);
        if (o < 0) continue;
        const int64_t learned = p.vector_heads == 1 ? row.head * p.offsets + o : o;
        for (int64_t c = 0; c < p.head_dim; ++c) {
            const T by_vector = scale * vectors[index(o * p.head_dim + c)], by_query = scale * x[c];
            add(p.content.data ? DCONTENT : DQ, own + c, ds * by_vector, magnitude * std::fabs(double(by_vector)));
            if (task.learns_vectors)
                add(DVECTORS, learned * p.head_dim + c, ds * by_query, magnitude * std::fabs(double(by_query)));
        }
        if (task.learns_vectors && p.vector_bias)
            add(DVECTOR_BIAS, learned, ds * scale, magnitude * std::fabs(double(scale)));
    }
}

// What the query sees: keys, and their weights.
template <class T> void Naive<T>::attend(const Row& row) {
    const int64_t own = place(row), depth = p.head_dim, first = keys_before(row);
    const T scale = T(p.scale), *q = &given[Q][index(own * depth)];
    vector<int64_t> seen;
    vector<T> weight;
    T top = -T(HUGE_VAL), sum = 0;
    for (int64_t at = layout.key_start[row.cell]; at < layout.key_start[row.cell + 1]; ++at) {
        const int64_t j = layout.key[at], e = entry(row.head, row.query, j);
        if (!sees(row.sample, row.query, j)) continue;
        const T* k = &given[K][index((first + j) * depth)];
        T score = 0, extra = e < 0 ? 0 : bias[index(e)];
        double magnitude = 0;
        for (int64_t c = 0; c < depth; ++c)
            score += scale * q[c] * k[c], magnitude += std::fabs(double(scale * q[c] * k[c]));
        if (p.vectors) score += content(row, j, magnitude);
        if (std::isfinite(extra)) largest = std::max(largest, magnitude + std::fabs(double(extra)));
        seen.push_back(j), weight.push_back(score + extra);
        top = std::max(top, score + extra);
    }
    value[LSE][index(own)] = -T(HUGE_VAL);
    if (top == -T(HUGE_VAL)) return;  // it sees nothing: zeros
    for (T& w : weight) sum += w = std::exp(w - top);
    for (T& w : weight) w /= sum;
    value[LSE][index(own)] = top + std::log(sum), size[LSE][index(own)] = 1;
    forward(row, seen, weight);
    backward(row, seen, weight);
}

template <class T> void Naive<T>::forward(const Row& row, const vector<int64_t>& seen, const vector<T>& weight) {
    const int64_t own = place(row), width = p.value_dim, first = keys_before(row);
    for (size_t at = 0; at < seen.size(); ++at) {
        const T share = T(dropout_factor(row, seen[at])) * weight[at];
        const T* v = &given[V][index((first + seen[at]) * width)];
        for (int64_t c = 0; c < width; ++c) add(OUT, own * width + c, share * v[c], std::fabs(double(share * v[c])));
    }
}

template <class T> void Naive<T>::backward(const Row& row, const vector<int64_t>& seen, const vector<T>& weight) {
    const int64_t own = place(row), depth = p.head_dim, width = p.value_dim, first = keys_before(row);
    const T scale = T(p.scale), *q = &given[Q][index(own * depth)], *dout = &given[DOUT][index(own * width)];
    T delta = dlse.empty() ? 0 : -dlse[index(own)];
    double rough = std::fabs(double(delta));
    for (int64_t c = 0; c < width; ++c) {
        T out = value[OUT][index(own * width + c)];
        if (sizeof(T) == sizeof(float)) out = T(round_to(p.dtype, double(out)));  // as the backward pass finds it
        delta += dout[c] * out, rough += std::fabs(double(dout[c])) * size[OUT][index(own * width + c)];
    }
    for (size_t at = 0; at < seen.size(); ++at) {
        const int64_t j = seen[at], e = entry(row.head, row.query, j);
        const T *k = &given[K][index((first + j) * depth)], *v = &given[V][index((first + j) * width)];
        const T keep = T(dropout_factor(row, j));
        T dp = 0;
        double magnitude = rough;
        for (int64_t c = 0; c < width; ++c)
            dp += keep * dout[c] * v[c], magnitude += std::fabs(double(keep * dout[c] * v[c]));
        const T ds = weight[at] * (dp - delta), share = keep * weight[at];
        magnitude *= double(weight[at]);
        for (int64_t c = 0; c < depth; ++c) {
            add(DQ, own * depth + c, scale * ds * k[c], magnitude * std::fabs(double(scale * k[c])));
            add(DK, (first + j) * depth + c, scale * ds * q[c], magnitude * std::fabs(double(scale * q[c])));
        }
        for (int64_t c = 0; c < width; ++c)
            add(DV, (first + j) * width + c, share * dout[c], std::fabs(double(share * dout[c])));
        if (task.trained && e >= 0) add(DTABLE, e, ds, magnitude);
        if (p.vectors) add_content_gradient(row, j, ds, magnitude);
    }
}

}  // namespace
