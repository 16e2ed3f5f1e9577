// One build of the kernels: compiled once per instruction set and kind of number (CMakeLists.txt), chosen when the
// program runs (dispatch.cpp). No inline function of the standard library may stand here or in what is included here:
// the linker would keep one copy of it for all machines.
#include "backward.h"

namespace {

using locant::Kernels;

// The forward pass in items: some heads of a chunk of one long cell, or of a few short (sample, cell) pairs. Short ones
// that follow each other are fetched ahead, and those of a kind share what is added to their scores.
int64_t pairs_together(const Problem& p) {
    const int64_t all = p.batch * p.layout->cells, fair = all * p.heads / 64;  // so many that all threads find work
    const bool tiny = all * p.heads * p.layout->longest * p.layout->longest_keys < 1 << 16;  // one thread is enough
    return tiny || fair > 8 ? 8 : fair < 1 ? 1 : fair;
}

int64_t portions(const Problem& p) {
    const Layout& layout = *p.layout;
    if (layout.longest <= CHUNK) return (p.batch * layout.cells + pairs_together(p) - 1) / pairs_together(p);
    int64_t n = 0;
    for (int64_t c = 0; c < layout.cells; ++c) n += chunks(layout.query_start[c + 1] - layout.query_start[c]);
    return p.batch * n;
}

int64_t heads_together(const Problem& p) {
    const int64_t own = portions(p), wanted = 256;  // items, of which every thread finds some
    if (p.layout->longest > CHUNK || own * p.heads <= wanted) return 1;
    return own >= wanted ? p.heads : (own * p.heads + wanted - 1) / wanted;
}

int64_t forward_items(const Problem& p) {
    const int64_t together = heads_together(p);
    return portions(p) * ((p.heads + together - 1) / together);
}

size_t forward_scratch(const Problem& p) {
    Arena arena{nullptr};
    Forward counted(p, arena);
    return arena.used;
}

void long_item(const Problem& p, int64_t portion, int64_t head, Forward& work) {
    const Layout& layout = *p.layout;
    const int64_t each = portions(p) / p.batch, sample = portion / each;
    int64_t c = 0, left = portion % each;
    const auto queries = [&](int64_t c) { return layout.query_start[c + 1] - layout.query_start[c]; };
    for (int64_t own; left >= (own = chunks(queries(c))); ++c) left -= own;
    const int64_t size = chunk_size(queries(c)), at = left * size, count = queries(c) - at;
    if (count <= 0) return;
    attend(p, sample, head, layout.query + layout.query_start[c] + at, count < size ? count : size,
           layout.key + layout.key_start[c], layout.key_start[c + 1] - layout.key_start[c], false, Next{}, work);
}

void forward_item(const Problem& p, int64_t number, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    Forward work(p, arena);
    const Tiles units(tiled(p));
    const Layout& layout = *p.layout;
    const int64_t together = heads_together(p), groups = (p.heads + together - 1) / together;
    const int64_t low = number % groups * together, high = low + together < p.heads ? low + together : p.heads;
    if (layout.longest > CHUNK) return long_item(p, number / groups, low, work);

    const int64_t first = number / groups * pairs_together(p), all = p.batch * layout.cells,
                  end = first + pairs_together(p) < all ? first + pairs_together(p) : all;
    const auto cell = [&](int64_t head, int64_t pair) {
        const int64_t c = pair % layout.cells;
        return Next{pair / layout.cells, head, layout.query + layout.query_start[c], layout.key + layout.key_start[c],
                    layout.query_start[c + 1] - layout.query_start[c], layout.key_start[c + 1] - layout.key_start[c]};
    };
    const auto kind = [&](int64_t pair) { return layout.kind[pair % layout.cells]; };
    for (int64_t head = low; head < high; ++head)
        for (int64_t pair = first; pair < end; ++pair) {
            const Next own = cell(head, pair),
                       next = pair + 1 < end ? cell(head, pair + 1) : head + 1 < high ? cell(head + 1, first) : Next{};
            attend(p, own.sample, head, own.token, own.count, own.key, own.key_count,
                   alike(p) && pair > first && kind(pair) == kind(pair - 1), next, work);
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
