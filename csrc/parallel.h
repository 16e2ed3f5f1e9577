// Work items over threads, each thread with memory of its own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace locant {

// Calls work(context, item, scratch) once for each item of [0, items), on up to `threads` threads.
//
// Which thread takes an item, and when, is open: work must give the same result for an item wherever it runs. It must
// not throw. `scratch` is `scratch_bytes` of memory, at a cache line, that no other thread has; what an earlier item or
// call left in it is still there, so it is to be written before it is read. Denormal numbers count as zero inside.
//
// Throws std::bad_alloc, after the region, if no thread got its scratch; items are then not done.
void parallel_for(int64_t items, int threads, size_t scratch_bytes,
                  void (*work)(void* context, int64_t item, void* scratch), void* context);

}  // namespace locant
