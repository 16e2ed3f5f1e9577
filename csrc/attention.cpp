// One build of the kernels: compiled once per instruction set and type to compute in (CMakeLists.txt), chosen when the
// program runs (dispatch.cpp). No inline function of the standard library may stand here or in what is included here:
// the linker would keep one copy of it for all machines.
#ifndef LOCANT_FORWARD_ALONE
#include "attention/backward_items.h"
#endif
#include "attention/forward_items.h"

namespace {

using locant::Kernels;

// How much memory Forward or Backward takes.
template <class Work> size_t scratch_of(const Problem& p) {
    Arena arena{nullptr};
    Work counted(p, arena);
    return arena.used;
}

void run_forward(const Problem& p, int64_t item, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    Forward work(p, arena);
    const TileRegisters tiles(uses_tiles(p));
    forward_item(p, item, work);
}

#ifndef LOCANT_FORWARD_ALONE
int64_t backward_items(const Problem& p) { return divide_backward(p).items(p); }

size_t partial_bytes(const Problem& p) {
    const Division by = divide_backward(p);
    return size_t(by.items(p) * by.sums_of_item() + (by.splits > 1 ? by.splits * by.sums_of_split() : 0)) * sizeof(real);
}

void run_backward(const Problem& p, int64_t item, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    Backward work(p, arena);
    backward_item(p, divide_backward(p), item, work);
}

int64_t sum_items(const Problem& p) { return p.heads; }

void run_sums(const Problem& p, int64_t head) { add_partial_sums(p, divide_backward(p), head); }
#endif

}  // namespace

#define JOINED(isa, real) kernels_##isa##_##real
#define NAME(isa, real) JOINED(isa, real)

namespace locant {
extern const Kernels NAME(LOCANT_ISA, LOCANT_REAL);
const Kernels NAME(LOCANT_ISA, LOCANT_REAL) = {
    forward_items, scratch_of<Forward>, run_forward,
#ifndef LOCANT_FORWARD_ALONE
    backward_items, scratch_of<Backward>, partial_bytes, run_backward, sum_items, run_sums,
#else
    nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
#endif
};
}  // namespace locant
