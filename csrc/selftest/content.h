// Content of a random problem: vectors per offset and axis, and what meets them.
#pragma once

#include "task.h"

namespace {

// How many coordinates apart any `count` tokens lie that follow each other in a list.
int32_t Task::widest(const vector<int32_t>& list, const vector<int32_t>& start, const int32_t* at, int64_t prefix,
                     int64_t count) const {
    int32_t found = 0;
    for (size_t c = 0; c + 1 < start.size(); ++c)
        for (int64_t i = start[c]; i < start[c + 1]; ++i) {
            int32_t low = INT32_MAX, high = INT32_MIN;
            for (int64_t j = i; j < std::min(i + count, int64_t(start[c + 1])); ++j)
                if (const int32_t token = list[index(j)]; token >= prefix)
                    low = std::min(low, at[token]), high = std::max(high, at[token]);
            if (low <= high) found = std::max(found, high - low);
        }
    return found;
}

void Task::place_content() {
    const auto coordinates = [&](bool of_keys, size_t a) {
        const auto& n = of_keys ? key_size : size;
        vector<int32_t> all(index(of_keys ? layout.key_prefix : layout.query_prefix), int32_t(random.from(-99, 99)));
        for (int64_t i = 0; i < n[0] * n[1] * n[2]; ++i) {
            const int64_t at[] = {i / (n[1] * n[2]), i / n[2] % n[1], i % n[2]};
            all.push_back(int32_t(of_keys ? origin[a] + stride[a] * at[a] : at[a]));
        }
        return all;
    };
    for (size_t a = 0; a < index(axes); ++a) {
        const vector<int32_t> queries = coordinates(false, a), keys = coordinates(true, a);
        const bool all = random.one_in(2);
        const int64_t low = all ? -reach[a] : random.from(-reach[a], reach[a]),
                      high = all ? reach[a] : random.from(low, reach[a]);
        for (int64_t x : {low, high, int64_t(widest(query, query_start, queries.data(), layout.query_prefix, 64)),
                          int64_t(widest(key, key_start, keys.data(), layout.key_prefix, 64)),
                          int64_t(widest(key, key_start, keys.data(), layout.key_prefix, layout.keys)) + 1})
            axis.push_back(int32_t(x));
        query_at.insert(query_at.end(), queries.begin(), queries.end());
        key_at.insert(key_at.end(), keys.begin(), keys.end());
        problem.offsets += high - low + 1;
    }
    layout.axes = axes, layout.axis = axis.data();
    query_at.shrink_to_fit(), key_at.shrink_to_fit();
    layout.query_at = query_at.data(), layout.key_at = key_at.data();
}

void Task::choose_content() {
    Problem& p = problem;
    place_content();
    p.vector_heads = random.one_in(2) ? p.heads : 1;
    p.content_scale = random.one_in(2) ? 1 : random.one_in(4) ? 0 : 1 / std::sqrt(double(p.head_dim));
    learns_vectors = !random.one_in(4);
    const double size_of = random.one_in(8) ? 4 : 1 / std::sqrt(double(p.head_dim));
    vectors = random_memory(p.vector_heads * p.offsets * p.head_dim + 1, 0, size_of), p.vectors = vectors->data();
    if (random.one_in(2)) vector_bias = random_memory(p.vector_heads * p.offsets + 1, 0, 1);
    if (vector_bias) p.vector_bias = vector_bias->data();
    if (random.one_in(2)) {
        const std::array<int64_t, 4> sizes{p.batch, p.heads, layout.queries, p.head_dim};
        strides[CONTENT] = scattered_strides(random, sizes, true);
        strides[DCONTENT] = scattered_strides(random, sizes, false);
        allocate(CONTENT, OUT, given);
        strides[CONTENT].each([&](int64_t at) { set(p.dtype, given[CONTENT]->data(), at, random.number()); });
        p.content = strides[CONTENT].rows(p.dtype, *given[CONTENT]);
    }
    if (learns_vectors) {
        strides[DVECTORS] = plain_strides({1, p.heads, p.offsets, p.head_dim});
        strides[DVECTOR_BIAS] = plain_strides({1, vector_bias ? p.heads : 0, p.offsets, 1});
    }
}

}  // namespace
