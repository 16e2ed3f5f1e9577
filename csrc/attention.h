// What the compiled CPU kernels are asked, as plain pointers, sizes and strides. No torch, no Python.
//
// Tokens are numbers. A layout says who meets whom: lists of tokens, cell by cell, and for each token where its slice
// of the position table starts. Everything about grids, windows and shifts was said in those lists before.
#pragma once

#include <cstddef>
#include <cstdint>

namespace locant {

enum class Number : int32_t { f32, f64, bf16, f16 };  // how tensors are stored

// Who meets whom. bias(i, j) = table[query_place[i] - key_place[j]] for tokens with a place, which come after the
// prefix. Cell c holds the queries query[query_start[c] .. query_start[c + 1]] and the keys likewise.
struct Layout {
    int64_t cells, queries, keys;            // how many cells, and tokens in all
    int64_t query_prefix, key_prefix;        // tokens below have no place
    const int32_t *query, *query_start;
    const int32_t *key, *key_start;
    const int32_t* kind;                     // [cells]: cells of one kind differ by where they are alone
    int64_t longest, longest_keys;           // of the cells: how many queries, and keys
    const int32_t *query_place, *key_place;  // [queries], [keys]; unused without a table
    int64_t orders;                          // key j is visible to i if key_rank[o][j] <= query_rank[o][i] for all o
    const int64_t *query_rank, *key_rank;    // [orders][queries], [orders][keys]
    bool shared_keys;                        // a key may be in several cells, or in none
};

// Rows of `width` numbers: one per sample, head and token, at strides counted in numbers.
struct Rows {
    void* data;
    int64_t batch, head, token, channel;
};

struct Problem {
    const Layout* layout;
    Number number;
    int64_t batch, heads, kv_heads, head_dim, value_dim;
    Rows q, k, v;
    Rows out;                                // forward: written; backward: read
    void* lse;                               // [batch, heads, queries], float or double; forward: written
    double scale;

    const void* table;                       // [heads, numbers], float or double; null without a bias
    int64_t numbers;
    const void *query_prefix, *key_prefix, *both;  // [heads] each; all null without learned rows

    const uint8_t* valid;                    // [batch or 1, keys]: 1 = a real key; null if all are
    int64_t valid_batch;                     // stride over samples, in numbers: 0 if all share one row
    const int64_t *query_id, *key_id;        // [batch or 1, tokens]: segments; null without
    int64_t query_id_batch, key_id_batch;
    int64_t free_queries, free_keys;         // prefix tokens that belong to every segment

    double dropout;                          // probability; 0 for none
    uint64_t seed;

    // backward alone
    Rows dout, dq, dk, dv;
    const void* dlse;                        // [batch, heads, queries], or null
    void* dtable;                            // [heads, numbers], or null if nobody learns it
    void *dquery_prefix, *dkey_prefix, *dboth;  // [heads] each, or all null
    void* partial;                           // backward_partial_bytes, for sums that belong to work items
};

// One build of the kernels: an instruction set and a kind of number.
struct Kernels {
    int64_t (*forward_items)(const Problem&);
    size_t (*forward_scratch)(const Problem&);
    void (*forward)(const Problem&, int64_t item, void* scratch);

    int64_t (*backward_items)(const Problem&);
    size_t (*backward_scratch)(const Problem&);
    size_t (*backward_partial_bytes)(const Problem&);
    void (*backward)(const Problem&, int64_t item, void* scratch);
    int64_t (*gather_items)(const Problem&);  // after all of `backward`: partial sums, added in the order of items
    void (*gather)(const Problem&, int64_t item);
};

// The instruction sets of this build that this machine can run, best first; names as in LOCANT_ISA.
const char* isa_names();                     // "avx512 avx2 portable"
const char* isa();                           // the one in use
bool choose_isa(const char* name);           // false if this machine or this build has it not

size_t backward_partial_bytes(const Problem&);
void forward(const Problem&, int threads);
void backward(const Problem&, int threads);

}  // namespace locant
