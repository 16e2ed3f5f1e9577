// One build of the kernels: compiled once per instruction set and kind of number (CMakeLists.txt), chosen when the
// program runs (dispatch.cpp). No inline function of the standard library may stand here or in what is included here:
// the linker would keep one copy of it for all machines.
#include "backward.h"

namespace {

using locant::Kernels;

constexpr int64_t TOGETHER = 8;  // cells that one item works on, if they are small

int64_t portions(const Layout& layout) {
    if (layout.longest <= CHUNK) return (layout.cells + TOGETHER - 1) / TOGETHER;
    int64_t n = 0;
    for (int64_t c = 0; c < layout.cells; ++c) n += chunks(layout.query_start[c + 1] - layout.query_start[c]);
    return n;
}

// Heads that one item works on: several where cells are many, so that one can fetch for the next.
int64_t heads_together(const Problem& p) {
    const int64_t cells = p.batch * portions(*p.layout), wanted = 256;  // items, of which every thread finds some
    if (p.layout->longest > CHUNK || cells * p.heads <= wanted) return 1;
    return cells >= wanted ? p.heads : (cells * p.heads + wanted - 1) / wanted;
}

int64_t forward_items(const Problem& p) {
    const int64_t together = heads_together(p);
    return p.batch * portions(*p.layout) * ((p.heads + together - 1) / together);
}

size_t forward_scratch(const Problem& p) {
    Arena arena{nullptr};
    Forward counted(p, arena);
    return arena.used;
}

void forward_item(const Problem& p, int64_t number, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    Forward work(p, arena);
    const Layout& layout = *p.layout;
    const int64_t together = heads_together(p), groups = (p.heads + together - 1) / together;
    const int64_t all = portions(layout), sample = number / groups / all, low = number % groups * together,
                  high = low + together < p.heads ? low + together : p.heads;
    int64_t portion = number / groups % all, c = 0;
    const auto queries = [&](int64_t c) { return layout.query_start[c + 1] - layout.query_start[c]; };
    const auto keys = [&](int64_t c) { return layout.key_start[c + 1] - layout.key_start[c]; };
    if (layout.longest > CHUNK) {
        for (int64_t own; portion >= (own = chunks(queries(c))); ++c) portion -= own;
        const int64_t size = chunk_size(queries(c)), at = portion * size, left = queries(c) - at;
        if (left <= 0) return;
        for (int64_t head = low; head < high; ++head)
            attend(p, sample, head, layout.query + layout.query_start[c] + at, left < size ? left : size,
                   layout.key + layout.key_start[c], keys(c), false, Next{}, work);
        return;
    }
    const int64_t first = portion * TOGETHER, end = first + TOGETHER < layout.cells ? first + TOGETHER : layout.cells;
    const auto cell = [&](int64_t head, int64_t c) {
        return Next{head, layout.query + layout.query_start[c], layout.key + layout.key_start[c], queries(c), keys(c)};
    };
    const bool kinds = alike(p);
    for (int64_t head = low; head < high; ++head)
        for (c = first; c < end; ++c) {
            const Next own = cell(head, c),
                       next = c + 1 < end ? cell(head, c + 1) : head + 1 < high ? cell(head + 1, first) : Next{};
            attend(p, sample, head, own.token, own.count, own.key, own.key_count,
                   kinds && c > first && layout.kind[c] == layout.kind[c - 1], next, work);
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
