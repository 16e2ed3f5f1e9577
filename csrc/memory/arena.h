// Scratch memory, handed out in order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

struct Arena {
    char* at;         // null only counts
    size_t used = 0;
    template <class T> T* allocate(int64_t count) {
        T* found = at ? reinterpret_cast<T*>(at + used) : nullptr;
        used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
        return found;
    }
};

}  // namespace
