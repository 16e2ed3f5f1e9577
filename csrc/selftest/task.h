// A random problem: sizes, grids, cells, masks and memory, all of them from one number.
#pragma once

#include <string>
#include <utility>

#include "memory.h"

namespace {

using locant::Layout;
using locant::Problem;

enum Kind {  // of tensors; results come from OUT on
    Q, K, V, DOUT, CONTENT, OUT, LSE, DQ, DK, DV, DCONTENT, DVECTORS, DVECTOR_BIAS, DTABLE, DROWS, KINDS
};
constexpr int64_t MARGIN = 64;  // numbers around a table that kernels may read (csrc/bindings.cpp)

class Task {
public:
    explicit Task(uint64_t number);
    std::string description() const;
    Dtype dtype(int kind) const {
        const bool summed = kind == LSE || kind >= DVECTORS;
        return summed ? arithmetic(problem.dtype) : problem.dtype;
    }
    void allocate(int first, int last, Shared* memory) const;  // the parts of a packed projection share theirs

    Problem problem{};  // all but the results
    Layout layout{};
    bool packed = false, trained = false, learns_vectors = false, together = false;  // together: two callers at once
    int threads = 2;
    Strides strides[KINDS];
    Shared given[OUT], dlse, table, learned, vectors, vector_bias;

private:
    void choose_sizes();
    void choose_places();
    vector<int32_t> places(bool of_keys) const;
    void choose_cells();
    void shuffle(vector<vector<int32_t>>& lists, int64_t prefix);
    void describe_cells();
    void join(const vector<vector<int32_t>>& lists, vector<int32_t>& all, vector<int32_t>& start);
    bool same_offsets(int64_t cell, int64_t other) const;
    void choose_ranks();
    void choose_segments();
    void choose_padding();
    void choose_strides();
    void choose_numbers();
    void choose_content();
    void place_content();
    int32_t widest(const vector<int32_t>& list, const vector<int32_t>& start, const int32_t* at, int64_t prefix,
                   int64_t count) const;
    Shared random_memory(int64_t count, int64_t margin, double size);

    Random random;
    int64_t axes = 1;
    std::array<int64_t, 3> size{1, 1, 1}, key_size{1, 1, 1}, origin{}, stride{1, 1, 1}, reach{};
    vector<int32_t> query, query_start, key, key_start, kind, query_place, key_place;
    vector<int64_t> query_rank, key_rank, query_id, key_id;
    vector<uint8_t> valid;
    vector<int32_t> query_at, key_at, axis;
};

Task::Task(uint64_t number) : random{number * 0x2545f4914f6cdd1d} {
    random.next();
    choose_sizes();
    choose_places();
    choose_cells();
    choose_ranks();
    choose_segments();
    choose_padding();
    choose_strides();
    choose_numbers();
    problem.layout = &layout;
    threads = int(random.from(2, 3));
    together = random.one_in(4);
    if (random.one_in(2)) choose_content();
}

void Task::choose_sizes() {
    Problem& p = problem;
    p.dtype = Dtype(random.from(0, 3));
    p.batch = random.one_in(40) ? 0 : random.from(1, 3);
    p.kv_heads = random.one_in(40) ? 0 : random.from(1, 3);
    p.heads = p.kv_heads * (random.one_in(40) ? 0 : random.one_in(2) ? 1 : random.from(2, 3));
    p.head_dim = random.size(130);
    p.value_dim = random.one_in(2) ? p.head_dim : random.size(130);
    axes = random.from(1, 3);
    for (auto* sizes : {&size, &key_size}) {
        int64_t left = random.size(random.one_in(30) ? 1000 : 200);
        for (size_t a = 0; a < index(axes); ++a) left /= (*sizes)[a] = a + 1 == index(axes) ? left : random.size(left);
        if (random.one_in(40)) (*sizes)[0] = 0;
    }
    if (random.one_in(2)) key_size = size;
    for (int64_t* prefix : {&layout.query_prefix, &layout.key_prefix}) *prefix = random.one_in(3) ? random.size(20) : 0;
    if (random.one_in(2)) layout.key_prefix = layout.query_prefix;
    layout.queries = layout.query_prefix + size[0] * size[1] * size[2];
    layout.keys = layout.key_prefix + key_size[0] * key_size[1] * key_size[2];
    const auto work = [&] { return p.batch * p.heads * layout.queries * layout.keys * (p.head_dim + p.value_dim); };
    constexpr int64_t most = 3000000;
    if (work() > most) p.batch = 1;
    if (work() > most) p.heads = p.kv_heads;
    if (work() > most) p.head_dim = p.value_dim = random.from(1, 16);
    p.scale = (random.one_in(30) ? 1e6 : random.one_in(8) ? 8 : random.one_in(10) ? -1 : 1) / std::sqrt(p.head_dim);
    p.dropout = random.one_in(4) ? double(random.from(1, 9)) / 10 : 0;
    p.seed = random.next();
}

void Task::choose_places() {  // in a table of every offset between the two grids
    problem.entries = 1;
    for (size_t a = 0; a < index(axes); ++a) {
        if (random.one_in(3)) origin[a] = random.from(-3, 3), stride[a] = random.from(1, 3);
        const int64_t last = origin[a] + stride[a] * (key_size[a] - 1);
        reach[a] = std::max({last, size[a] - 1 - origin[a], std::abs(origin[a]), int64_t(0)}) + random.from(0, 2);
        problem.entries *= 2 * reach[a] + 1;
    }
    query_place = places(false), key_place = places(true);
    layout.query_place = query_place.data(), layout.key_place = key_place.data();
}

vector<int32_t> Task::places(bool of_keys) const {  // query - key + reach, axis by axis, is where an offset stands
    const auto& n = of_keys ? key_size : size;
    vector<int32_t> place(index(of_keys ? layout.key_prefix : layout.query_prefix), 0);
    for (int64_t x = 0; x < n[0]; ++x)
        for (int64_t y = 0; y < n[1]; ++y)
            for (int64_t z = 0; z < n[2]; ++z) {
                const int64_t at[] = {x, y, z};
                int64_t sum = 0;
                for (size_t a = 0; a < index(axes); ++a)
                    sum = sum * (2 * reach[a] + 1) + (of_keys ? origin[a] + stride[a] * at[a] : at[a] + reach[a]);
                place.push_back(int32_t(sum));
            }
    place.shrink_to_fit();
    return place;
}

void Task::choose_cells() {
    Layout& l = layout;
    l.cells = l.queries == 0 && random.one_in(2) ? 0 : random.one_in(2) ? 1 : random.size(20);
    const int64_t way = random.from(0, 4);
    std::array<int64_t, 3> window{1, 1, 1}, shift{}, along{1, 1, 1};
    if (way > 2 && l.cells > 1) {  // windows, often cut off at the ends
        for (size_t a = 0; a < 3; ++a) {
            window[a] = random.size(size[a] + 1), shift[a] = random.one_in(2) ? 0 : random.from(0, window[a] - 1);
            along[a] = (std::max(size[a], key_size[a]) + shift[a] + window[a] - 1) / window[a];
        }
        l.cells = std::max(along[0] * along[1] * along[2], int64_t(1));
    }
    const auto cell_of = [&](int64_t i, int64_t count, int64_t prefix, const std::array<int64_t, 3>& n) {
        if (way == 0 || i < prefix) return i * l.cells / count;
        if (way < 3 || l.cells == 1) return way == 1 ? i % l.cells : random.from(0, l.cells - 1);
        int64_t at = i - prefix, cell[3];
        for (size_t a = 3; a-- > 0; at /= n[a]) cell[a] = (at % n[a] + shift[a]) / window[a];
        return (cell[0] * along[1] + cell[1]) * along[2] + cell[2];
    };
    vector<vector<int32_t>> queries(index(l.cells)), keys(index(l.cells));
    for (int64_t i = 0; i < l.queries; ++i)
        queries[index(cell_of(i, l.queries, l.query_prefix, size))].push_back(int32_t(i));
    const bool own = l.cells == 1 || random.one_in(2), all = random.one_in(2);  // each key in a cell of its own
    l.shared_keys = l.cells == 0 || !own || random.one_in(4);
    for (int64_t j = 0; j < l.keys && l.cells; ++j) {
        const int64_t home = cell_of(j, l.keys, l.key_prefix, key_size);
        for (int64_t c = 0; c < l.cells; ++c)
            if (own || (j >= l.key_prefix && way > 2) ? c == home : j < l.key_prefix ? all : random.one_in(3))
                keys[index(c)].push_back(int32_t(j));
    }
    if (random.one_in(3)) shuffle(queries, l.query_prefix), shuffle(keys, l.key_prefix);
    join(queries, query, query_start), join(keys, key, key_start);
    describe_cells();
}

void Task::shuffle(vector<vector<int32_t>>& lists, int64_t prefix) {  // but for prefix tokens, which come first
    for (auto& list : lists)
        for (size_t i = 0; i < list.size(); ++i)
            if (list[i] >= prefix)
                std::swap(list[i], list[index(random.from(int64_t(i), int64_t(list.size()) - 1))]);
}

void Task::describe_cells() {
    Layout& l = layout;
    l.query = query.data(), l.query_start = query_start.data(), l.key = key.data(), l.key_start = key_start.data();
    for (int32_t c = 0; c < l.cells; ++c) {
        kind.push_back(c && same_offsets(c, c - 1) ? kind.back() : c);
        l.longest = std::max(l.longest, int64_t(query_start[index(c + 1)] - query_start[index(c)]));
        l.longest_keys = std::max(l.longest_keys, int64_t(key_start[index(c + 1)] - key_start[index(c)]));
    }
    l.kind = kind.data();
}

void Task::join(const vector<vector<int32_t>>& lists, vector<int32_t>& all, vector<int32_t>& start) {
    start.assign(1, 0);
    for (const auto& list : lists) {
        all.insert(all.end(), list.begin(), list.end());
        start.push_back(int32_t(all.size()));
    }
    all.shrink_to_fit(), start.shrink_to_fit();  // so that a sanitizer sees where they end
}

bool Task::same_offsets(int64_t cell, int64_t other) const {  // each query as far from each key, and as many of them
    int64_t moved[2] = {INT64_MIN, INT64_MIN};
    const auto follow = [&](const vector<int32_t>& all, const vector<int32_t>& start, const vector<int32_t>& place,
                            int64_t prefix, int64_t& move) {
        const int32_t *a = all.data() + start[index(cell)], *b = all.data() + start[index(other)];
        const int32_t count = start[index(cell) + 1] - start[index(cell)];
        bool same = count == start[index(other) + 1] - start[index(other)];
        for (int32_t i = 0; i < count && same; ++i) {
            same = (a[i] < prefix) == (b[i] < prefix);
            if (!same || a[i] < prefix) continue;
            const int64_t own = place[index(a[i])] - place[index(b[i])];
            if (move == INT64_MIN) move = own;
            same = own == move;
        }
        return same;
    };
    return follow(query, query_start, query_place, layout.query_prefix, moved[0]) &&
           follow(key, key_start, key_place, layout.key_prefix, moved[1]) &&
           (moved[0] == moved[1] || moved[0] == INT64_MIN || moved[1] == INT64_MIN);
}

void Task::choose_ranks() {
    layout.orders = random.one_in(3) ? random.from(1, 2) : 0;
    query_rank.reserve(index(layout.orders * layout.queries)), key_rank.reserve(index(layout.orders * layout.keys));
    for (int64_t o = 0; o < layout.orders; ++o) {
        const bool line = random.one_in(2);
        const auto rank = [&](int64_t i, int64_t prefix) {
            return i < prefix ? -(int64_t(1) << 62) : line ? i - prefix : random.from(-3, 3);
        };
        for (int64_t i = 0; i < layout.queries; ++i) query_rank.push_back(rank(i, layout.query_prefix));
        for (int64_t j = 0; j < layout.keys; ++j) key_rank.push_back(rank(j, layout.key_prefix));
    }
    layout.query_rank = query_rank.data(), layout.key_rank = key_rank.data();
}

void Task::choose_segments() {
    if (!random.one_in(4)) return;
    const int64_t segments = random.from(1, 4), batch = random.one_in(2) ? problem.batch : 1;
    const bool line = random.one_in(2);
    const auto number = [&](int64_t count) {
        vector<int64_t> id(index(std::max(batch * count, int64_t(1))));  // a token at least: null is for no segments
        for (size_t i = 0; i < id.size() && count; ++i)
            id[i] = line ? int64_t(i) % count * segments / count : random.from(1, segments);
        return id;
    };
    query_id = number(layout.queries), key_id = number(layout.keys);
    problem.query_id = {query_id.data(), batch > 1 ? layout.queries : 0};
    problem.key_id = {key_id.data(), batch > 1 ? layout.keys : 0};
    if (random.one_in(2)) problem.free_queries = layout.query_prefix, problem.free_keys = layout.key_prefix;
}

void Task::choose_padding() {
    if (!random.one_in(3)) return;
    const int64_t batch = random.one_in(2) ? problem.batch : 1, kind = random.from(0, 2);
    valid.reserve(index(batch * layout.keys));
    for (int64_t i = 0; i < batch * layout.keys; ++i)  // few, most, or none in the first sample
        valid.push_back(kind == 0 ? random.one_in(5) : kind == 1 ? !random.one_in(5) : i >= layout.keys);
    problem.valid = {valid.empty() ? nullptr : valid.data(), batch > 1 ? layout.keys : 0};
}

void Task::choose_strides() {
    const Problem& p = problem;
    const int64_t n = layout.queries, m = layout.keys;
    packed = n == m && p.heads == p.kv_heads && p.head_dim == p.value_dim && random.one_in(2);
    for (int first : {int(Q), int(DQ)}) {
        const std::array<int64_t, 4> sizes[] = {
            {p.batch, p.heads, n, p.head_dim}, {p.batch, p.kv_heads, m, p.head_dim},
            {p.batch, p.kv_heads, m, p.value_dim}};
        for (int i = 0; i < 3; ++i)
            strides[first + i] = packed ? part(i, sizes[i]) : scattered_strides(random, sizes[i], first == Q);
    }
    strides[OUT] = scattered_strides(random, {p.batch, p.heads, n, p.value_dim}, false);
    strides[DOUT] = scattered_strides(random, strides[OUT].size, true);
    strides[LSE] = plain_strides({p.batch, p.heads, n, 1});
    strides[CONTENT] = strides[DCONTENT] = strides[DVECTORS] = strides[DVECTOR_BIAS] = plain_strides({0, 0, 0, 0});
    const bool table_wanted = !random.one_in(3) && p.heads * p.entries <= 30000, rows = random.one_in(2);
    trained = table_wanted && !random.one_in(4);
    if (!table_wanted) problem.entries = 0;
    strides[DTABLE] = plain_strides({1, p.heads, p.entries, 1});
    strides[DROWS] = plain_strides({1, 3, table_wanted && rows ? p.heads : 0, 1});
}

void Task::allocate(int first, int last, Shared* memory) const {
    for (int i = first; i < last; ++i) {
        const bool shares = packed && (i == K || i == V || i == DK || i == DV);
        memory[i] = shares ? memory[i - 1] : std::make_shared<Memory>(strides[i].numbers * format(dtype(i)).bytes);
    }
}

Shared Task::random_memory(int64_t count, int64_t margin, double scale) {
    const Dtype kind = arithmetic(problem.dtype);
    auto memory = std::make_shared<Memory>((count + 2 * margin) * format(kind).bytes);
    for (int64_t i = 0; i < count; ++i) set(kind, memory->data(), margin + i, scale * random.number());
    return memory;
}

void Task::choose_numbers() {
    Problem& p = problem;
    allocate(Q, OUT, given);
    for (int i = Q; i < OUT; ++i)
        strides[i].each([&](int64_t at) { set(p.dtype, given[i]->data(), at, random.number()); });
    for (int i : {int(K), int(V)})  // padding is not read: what is in it does not matter
        for (int64_t b = 0, j; b < p.batch && p.valid.data && strides[i].step[0] && strides[i].step[2]; ++b)
            for (j = 0; j < layout.keys; ++j)
                if (!row_of(p.valid, b)[j])
                    for (int64_t at = b * strides[i].step[0] + j * strides[i].step[2], h = 0; h < p.kv_heads; ++h)
                        set(p.dtype, given[i]->data(), strides[i].shift + at + h * strides[i].step[1], std::nan(""));
    if (random.one_in(2)) dlse = random_memory(strides[LSE].numbers, 0, 1), p.dlse = dlse->data();
    if (p.entries) {
        table = random_memory(strides[DTABLE].numbers, MARGIN, random.one_in(8) ? 20 : 2);
        const Dtype kind = arithmetic(p.dtype);
        const bool clean = random.one_in(2);  // or a NaN in the margin, which may do no harm
        for (int64_t i = 0; clean && i < MARGIN; ++i)
            set(kind, table->data(), i, 0), set(kind, table->data(), MARGIN + strides[DTABLE].numbers + i, 0);
        p.table = table->data() + MARGIN * format(kind).bytes;
        for (int64_t i = 0; random.one_in(8) && i < strides[DTABLE].numbers; i += random.from(1, 9))
            set(kind, table->data(), MARGIN + i, -HUGE_VAL);  // forbidden by the table
    }
    if (strides[DROWS].numbers) {
        learned = random_memory(strides[DROWS].numbers, 0, 2);
        p.prefix_bias = learned->data();
    }
    p.q = strides[Q].rows(p.dtype, *given[Q]), p.k = strides[K].rows(p.dtype, *given[K]);
    p.v = strides[V].rows(p.dtype, *given[V]), p.dout = strides[DOUT].rows(p.dtype, *given[DOUT]);
}

std::string Task::description() const {
    const Problem& p = problem;
    const auto list = [](const auto& n) {
        std::string text;
        for (int64_t x : n) text += (text.empty() ? "" : "x") + std::to_string(x);
        return text;
    };
    std::string text = std::string(format(p.dtype).name) + ", batch " + std::to_string(p.batch) + ", heads " +
                       std::to_string(p.heads) + "/" + std::to_string(p.kv_heads) + ", dims " +
                       std::to_string(p.head_dim) + "/" + std::to_string(p.value_dim) + ", queries " +
                       std::to_string(layout.query_prefix) + "+" + list(size) + ", keys " +
                       std::to_string(layout.key_prefix) + "+" + list(key_size) + ", cells " +
                       std::to_string(layout.cells) + " of up to " +
                       std::to_string(layout.longest) + "x" + std::to_string(layout.longest_keys) +
                       (layout.shared_keys ? " (shared keys)" : "") + ", orders " +
                       std::to_string(layout.orders) + ", scale " + std::to_string(p.scale);
    if (p.table) text += ", table " + std::to_string(p.entries);
    if (p.table) text += std::string(learned ? " with rows" : "") + (trained ? "" : " (fixed)");
    if (p.vectors)
        text += ", content of " + std::to_string(p.vector_heads) + " x " + std::to_string(p.offsets) + " vectors" +
                (p.content.data ? " met by rows of its own" : "") + (p.vector_bias ? " with numbers" : "") +
                (learns_vectors ? "" : " (fixed)") + ", scale " + std::to_string(p.content_scale);
    if (p.valid.data) text += ", padding";
    if (p.query_id.data) text += ", segments" + std::string(p.free_queries + p.free_keys ? " with a free prefix" : "");
    if (p.dropout > 0) text += ", dropout " + std::to_string(p.dropout);
    for (int i : {int(Q), int(K), int(V)}) {
        text += i == Q ? (packed ? ", packed, steps" : ", steps") : " |";
        for (int64_t step : strides[i].step) text += " " + std::to_string(step);
    }
    return text + (dlse ? ", dlse" : "") + (together ? ", two callers" : "");
}

}  // namespace
