// What the compiled CPU kernels are asked, as plain pointers, sizes and strides. No torch, no Python.
//
// Tokens are numbers. A layout says who meets whom: lists of tokens, cell by cell, and for each token where its slice
// of the position table starts. Everything about grids, windows and shifts was said in those lists before.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fields.h"

namespace locant {

enum class Dtype : int32_t { f32, f64, bf16, f16 };  // how tensors are stored

enum PrefixBias { QUERY_PREFIX, KEY_PREFIX, BOTH_PREFIX };  // whose token has no place: the query, the key, or both

// What is known of an axis that content has vectors along: the offsets that have one, how far coordinates lie apart among
// 64 queries, or keys, that follow each other in a cell, and how many coordinates the keys of a cell span.
enum AxisNumber { LOWEST_OFFSET, HIGHEST_OFFSET, QUERY_SPAN, KEY_SPAN, KEY_EXTENT, AXIS_NUMBERS };

// Rows of `width` numbers: one per sample, head and token, at strides counted in numbers.
struct Rows {
    void* data;
    int64_t batch, head, token, channel;
};

// [batch or 1, tokens], contiguous along the tokens. No function stands here: attention.cpp is compiled per instruction
// set, and the linker would keep one copy for all machines.
template <class T> struct PerSample {
    const T* data;
    int64_t batch;  // stride over samples; 0 if all share one row
};

#define LOCANT_MEMBER(type, name) type name;

struct Layout {
    LOCANT_LAYOUT(LOCANT_MEMBER)
};

struct Problem {
    const Layout* layout;
    LOCANT_FORWARD(LOCANT_MEMBER)
    LOCANT_GRADIENTS(LOCANT_MEMBER)
    void* partial;  // backward_partial_bytes, for sums that belong to work items
};

#undef LOCANT_MEMBER

// One build of the kernels: an instruction set and a type to compute in.
struct Kernels {
    int64_t (*forward_items)(const Problem&);
    size_t (*forward_scratch)(const Problem&);
    void (*forward)(const Problem&, int64_t item, void* scratch);

    int64_t (*backward_items)(const Problem&);
    size_t (*backward_scratch)(const Problem&);
    size_t (*backward_partial_bytes)(const Problem&);
    void (*backward)(const Problem&, int64_t item, void* scratch);
    int64_t (*sum_items)(const Problem&);  // after all of `backward`: partial sums, added in the order of items
    void (*add_sums)(const Problem&, int64_t item);
};

// The instruction sets of this build that this machine can run, best first; names as in LOCANT_ISA.
const char* isa_names();                     // "avx512 avx2 portable"
const char* isa();                           // the one in use
bool choose_isa(const char* name);           // false if this machine or this build has it not

size_t backward_partial_bytes(const Problem&);
void forward(const Problem&, int threads);
void backward(const Problem&, int threads);

}  // namespace locant
