// Which build of the kernels runs a problem, and its items over threads.
#include <atomic>
#include <cstring>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "attention.h"
#include "linear.h"
#include "parallel.h"

namespace locant {

#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kernels_amx_float, kernels_avx512_bf16_float;
extern const LinearKernels linear_kernels_amx, linear_kernels_avx512, linear_kernels_avx2, linear_kernels_portable;
extern const LinearKernels linear_pairs_amx, linear_pairs_avx512_bf16, linear_pairs_avx512, linear_pairs_avx2,
    linear_pairs_portable;
extern const Kernels kernels_avx512_float, kernels_avx512_double;
extern const Kernels kernels_avx2_float, kernels_avx2_double;
extern const Kernels kernels_portable_float, kernels_portable_double;
#elif defined(__aarch64__) || defined(_M_ARM64)
extern const Kernels kernels_neon_float, kernels_neon_double;
extern const LinearKernels linear_kernels_neon, linear_pairs_neon;
#else
extern const Kernels kernels_portable_float, kernels_portable_double;
extern const LinearKernels linear_kernels_portable, linear_pairs_portable;
#endif
#ifdef LOCANT_EMULATE
extern const Kernels kernels_emulated_float;
extern const LinearKernels linear_kernels_emulated, linear_pairs_emulated;
#endif

namespace {

struct Isa {
    const char* name;
    const Kernels *with_float, *with_double;
    const LinearKernels *linear, *linear_pairs;  // of float, of bfloat16
    bool (*runs_here)();
    const LinearKernels* faster_pairs = nullptr;  // by the instruction for pairs, where the processor has it
    const Kernels* faster_forward = nullptr;      // attention of bfloat16, likewise
};

bool always() { return true; }

// Best first. The compiler's own test asks the operating system as well (XCR0): registers that it does not save are
// not there.
#if defined(__x86_64__) || defined(_M_X64)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

// Matrix units: the processor has them, and the system lets this process use their registers, which it asks for once.
bool has_amx() {
#ifdef __linux__
    unsigned a, b, c, d = 0;
    constexpr unsigned bf16 = 1u << 22, tiles = 1u << 24;
    constexpr long ask = 0x1023, registers = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bf16) && (d & tiles) &&
           syscall(SYS_arch_prctl, ask, registers) == 0;
#else
    return false;
#endif
}
bool has_pairs() { return __builtin_cpu_supports("avx512bf16"); }
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

const Isa isas[] = {
    {"amx", &kernels_amx_float, &kernels_avx512_double, &linear_kernels_amx, &linear_pairs_amx, has_amx,
     &linear_pairs_amx},
    {"avx512", &kernels_avx512_float, &kernels_avx512_double, &linear_kernels_avx512, &linear_pairs_avx512, has_avx512,
     &linear_pairs_avx512_bf16, &kernels_avx512_bf16_float},
    {"avx2", &kernels_avx2_float, &kernels_avx2_double, &linear_kernels_avx2, &linear_pairs_avx2, has_avx2},
    {"portable", &kernels_portable_float, &kernels_portable_double, &linear_kernels_portable, &linear_pairs_portable,
     always},
#ifdef LOCANT_EMULATE
    {"emulated", &kernels_emulated_float, &kernels_avx512_double, &linear_kernels_emulated, &linear_pairs_emulated,
     has_avx512},  // last: never the best
#endif
};
#elif defined(__aarch64__) || defined(_M_ARM64)
bool has_pairs() { return false; }
const Isa isas[] = {{"neon", &kernels_neon_float, &kernels_neon_double, &linear_kernels_neon, &linear_pairs_neon, always}};
#else
bool has_pairs() { return false; }
const Isa isas[] = {{"portable", &kernels_portable_float, &kernels_portable_double, &linear_kernels_portable,
                     &linear_pairs_portable, always}};
#endif

const Isa* best() {
    for (const Isa& one : isas) {
        if (one.runs_here()) return &one;
    }
    return nullptr;  // not reached: the last one runs on all machines that this build is for
}

std::atomic<const Isa*>& chosen() {
    static std::atomic<const Isa*> one{best()};
    return one;
}

const Kernels& kernels_for(const Problem& problem) {
    const Isa& one = *chosen().load();
    return problem.dtype == Dtype::f64 ? *one.with_double : *one.with_float;
}

const Kernels& forward_kernels_for(const Problem& problem) {
    const Isa& one = *chosen().load();
    const bool pairs = problem.dtype == Dtype::bf16 && one.faster_forward && has_pairs();
    return pairs ? *one.faster_forward : kernels_for(problem);
}

const LinearKernels& linear_kernels_for(Dtype dtype) {
    const Isa& one = *chosen().load();
    if (dtype != Dtype::bf16) return *one.linear;
    return multiplies_pairs() ? *one.faster_pairs : *one.linear_pairs;
}

struct Work {
    const Problem* problem;
    void (*run)(const Problem&, int64_t item, void* scratch);
    void (*add)(const Problem&, int64_t item);
};

void run_item(void* context, int64_t item, void* scratch) {
    const Work& work = *static_cast<const Work*>(context);
    work.run(*work.problem, item, scratch);
}

void add_item(void* context, int64_t item, void*) {
    const Work& work = *static_cast<const Work*>(context);
    work.add(*work.problem, item);
}

}  // namespace

const char* isa_names() {
    static const std::string names = [] {
        std::string all;
        for (const Isa& one : isas) {
            if (one.runs_here()) all.append(all.empty() ? "" : " ").append(one.name);
        }
        return all;
    }();
    return names.c_str();
}

const char* isa() { return chosen().load()->name; }

bool choose_isa(const char* name) {
    for (const Isa& one : isas) {
        if (std::strcmp(one.name, name) == 0 && one.runs_here()) {
            chosen().store(&one);
            return true;
        }
    }
    return false;
}

namespace {

template <class Asked> struct LinearWork {
    const Asked* problem;
    const Pass<Asked>* pass;
    int threads;
};

template <class Asked> void run_linear_item(void* context, int64_t item, void* scratch) {
    const auto& work = *static_cast<const LinearWork<Asked>*>(context);
    work.pass->run(*work.problem, work.threads, item, scratch);
}

template <class Asked> void run_pass(const Asked& problem, Pass<Asked> LinearKernels::* which, int threads) {
    const Pass<Asked>& pass = linear_kernels_for(problem.dtype).*which;
    LinearWork<Asked> work{&problem, &pass, threads};
    parallel_for(pass.items(problem, threads), threads, pass.scratch(problem, threads), run_linear_item<Asked>, &work);
}

}  // namespace

bool multiplies_pairs() { return chosen().load()->faster_pairs && has_pairs(); }
int64_t packed_numbers(const Weight& weight) { return linear_kernels_for(weight.dtype).packed_numbers(weight); }
void run(const Weight& weight, int threads) { run_pass(weight, &LinearKernels::pack, threads); }
void run(const Linear& problem, int threads) { run_pass(problem, &LinearKernels::linear, threads); }
void run(const Perceptron& problem, int threads) { run_pass(problem, &LinearKernels::perceptron, threads); }
void run(const WeightGradient& problem, int threads) { run_pass(problem, &LinearKernels::weight_gradient, threads); }
void run(const HiddenGradient& problem, int threads) { run_pass(problem, &LinearKernels::hidden_gradient, threads); }

size_t backward_partial_bytes(const Problem& problem) { return kernels_for(problem).backward_partial_bytes(problem); }

void forward(const Problem& problem, int threads) {
    const Kernels& kernels = forward_kernels_for(problem);
    Work work{&problem, kernels.forward, nullptr};
    parallel_for(kernels.forward_items(problem), threads, kernels.forward_scratch(problem), run_item, &work);
}

void backward(const Problem& problem, int threads) {
    const Kernels& kernels = kernels_for(problem);
    Work work{&problem, kernels.backward, kernels.add_sums};
    parallel_for(kernels.backward_items(problem), threads, kernels.backward_scratch(problem), run_item, &work);
    parallel_for(kernels.sum_items(problem), threads, 0, add_item, &work);
}

}  // namespace locant
