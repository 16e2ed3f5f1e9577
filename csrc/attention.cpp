// One build of the kernels: compiled once per instruction set and kind of number (CMakeLists.txt), chosen when the
// program runs (dispatch.cpp). No inline function of the standard library may stand here or in what is included here:
// the linker would keep one copy of it for all machines.
#include "backward.h"

namespace {

using locant::Kernels;

constexpr int64_t TOGETHER = 8;  // cells that one item works on, if they are small

int64_t chunks(int64_t queries) { return (queries + CHUNK - 1) / CHUNK; }

int64_t portions(const Layout& layout) {
    if (layout.longest <= CHUNK) return (layout.cells + TOGETHER - 1) / TOGETHER;
    int64_t n = 0;
    for (int64_t c = 0; c < layout.cells; ++c) n += chunks(layout.query_start[c + 1] - layout.query_start[c]);
    return n;
}

int64_t forward_items(const Problem& p) { return p.batch * portions(*p.layout) * p.heads; }

size_t forward_scratch(const Problem& p) {
    Arena arena{nullptr};
    Forward counted(p, arena);
    return arena.used;
}

void forward_item(const Problem& p, int64_t number, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    Forward work(p, arena);
    const Layout& layout = *p.layout;
    const int64_t head = number % p.heads, all = portions(layout), sample = number / p.heads / all;
    const auto start = [&](int64_t c, int64_t at, bool again) {
        const int64_t first = layout.query_start[c] + at, left = layout.query_start[c + 1] - first;
        attend(p, sample, head, layout.query + first, left < CHUNK ? left : CHUNK, layout.key + layout.key_start[c],
               layout.key_start[c + 1] - layout.key_start[c], again, work);
    };
    int64_t portion = number / p.heads % all, c = 0;
    if (layout.longest <= CHUNK) {
        const int64_t first = portion * TOGETHER, end = first + TOGETHER;
        for (c = first; c < end && c < layout.cells; ++c)
            start(c, 0, c > first && alike(p) && layout.kind[c] == layout.kind[c - 1]);
    } else {
        for (int64_t own; portion >= (own = chunks(layout.query_start[c + 1] - layout.query_start[c])); ++c)
            portion -= own;
        start(c, portion * CHUNK, false);
    }
}

int64_t backward_items(const Problem& p) { return division(p).items(p); }

size_t backward_scratch(const Problem& p) {
    Arena arena{nullptr};
    Backward counted(p, arena);
    return arena.used;
}

size_t backward_partial(const Problem& p) {
    const Division by = division(p);
    return size_t(by.items(p) * by.table + (by.splits > 1 ? by.splits * by.queries : 0)) * sizeof(real);
}

void backward_item(const Problem& p, int64_t number, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    Backward work(p, arena);
    item(p, division(p), number, work);
}

int64_t gather_items(const Problem& p) { return p.heads; }

void gather_item(const Problem& p, int64_t head) { add_up(p, division(p), head); }

}  // namespace

#define NAMED(isa, number) kernels_##isa##_##number
#define NAME(isa, number) NAMED(isa, number)

namespace locant {
extern const Kernels NAME(LOCANT_ISA, LOCANT_REAL);
const Kernels NAME(LOCANT_ISA, LOCANT_REAL) = {forward_items,    forward_scratch, forward_item, backward_items,
                                               backward_scratch, backward_partial, backward_item, gather_items,
                                               gather_item};
}  // namespace locant
