// Memory that will be needed soon. Products fetch it as they go, a few lines at a time: a burst would fill the few
// buffers that a core has for loads on their way, and all other loads would wait.
#pragma once

#include "simd/vector.h"

namespace {

constexpr int64_t MAX_PREFETCHES = 2048;  // pairs of cache lines

struct Prefetches {
    const char** pair;    // of neighbouring lines; room for MAX_PREFETCHES and one more, as they are fetched by twos
    int64_t count, next;  // those there, and the first that is not fetched
    INLINE void clear() { count = next = 0; }
    INLINE void fetch() {
        if (next >= count) return;
        UNROLL(i, 2) __builtin_prefetch(pair[next + i]), __builtin_prefetch(pair[next + i] + 64);
        next += 2;
    }
};

}  // namespace
