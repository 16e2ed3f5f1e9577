// One build of the linear kernels: compiled once per instruction set and dtype (CMakeLists.txt), chosen when the program runs
// (dispatch.cpp). No inline function of the standard library may stand here or in what is included here: the linker
// would keep one copy of it for all machines.
#include "linear.h"

#include "linear/backward.h"
#include "linear/forward.h"

namespace {

using locant::LinearKernels;

Shares share_out(const Linear& p, int threads) { return share_out(p.rows, p.outputs, !wants_whole_rows(p), threads); }
Shares share_out(const Perceptron& p, int threads) { return share_out(p.rows, p.outputs, false, threads); }
Shares share_out(const HiddenGradient& p, int threads) { return share_out(p.rows, p.inputs, false, threads); }

template <class Problem> int64_t items(const Problem& p, int threads) {
    return p.rows ? share_out(p, threads).items() : 0;
}

template <class Work, class Problem> size_t scratch(const Problem& p, int threads) {
    Arena arena{nullptr};
    Work counted(p, share_out(p, threads).block, arena);
    return arena.used;
}

template <class Work, class Problem, void (*item)(const Problem&, const Shares&, int64_t, Work&)>
void run_item(const Problem& p, int threads, int64_t number, void* memory) {
    const Shares by = share_out(p, threads);
    Arena arena{static_cast<char*>(memory)};
    Work work(p, by.block, arena);
    item(p, by, number, work);
}

int64_t pack_items(const Weight& w, int) { return strips_of(w.outputs); }
size_t no_scratch(const Weight&, int) { return 0; }
void pack_item(const Weight& w, int, int64_t strip, void*) { pack_strip(w, strip); }

int64_t weight_items(const WeightGradient& p, int threads) { return WeightShares(p, threads).items(); }
size_t weight_scratch(const WeightGradient& p, int threads) {
    Arena arena{nullptr};
    WeightGradientWork counted(WeightShares(p, threads), arena);
    return arena.used;
}
void weight_item(const WeightGradient& p, int threads, int64_t item, void* memory) {
    const WeightShares by(p, threads);
    Arena arena{static_cast<char*>(memory)};
    WeightGradientWork work(by, arena);
    weight_gradient_item(p, by, item, work);
}

}  // namespace

#ifdef LOCANT_PAIRS
#define JOINED(isa) linear_pairs_##isa
#else
#define JOINED(isa) linear_kernels_##isa
#endif
#define NAME(isa) JOINED(isa)

namespace locant {
extern const LinearKernels NAME(LOCANT_ISA);
const LinearKernels NAME(LOCANT_ISA) = {
    numbers_of,
    {pack_items, no_scratch, pack_item},
    {items<Linear>, scratch<LinearWork, Linear>, run_item<LinearWork, Linear, linear_item>},
    {items<Perceptron>, scratch<PerceptronWork, Perceptron>, run_item<PerceptronWork, Perceptron, perceptron_item>},
    {weight_items, weight_scratch, weight_item},
    {items<HiddenGradient>, scratch<HiddenGradientWork, HiddenGradient>,
     run_item<HiddenGradientWork, HiddenGradient, hidden_gradient_item>},
};
}  // namespace locant
