// Random problems through the kernels, against attention as it is defined (csrc/selftest/naive.h).
//
//     selftest [seconds] [number]     problems number, number + 1, ... for so long; 10 seconds from 1, unless told
//     selftest --case number          this one alone: what it is, and each result's error beside its limit
//     selftest --bits number count    a hash of each problem's results: builds that print the same give the same bits
//
// Every problem runs on every instruction set of this machine, forward and backward, on one thread and on several.
// Values have to be right, bits the same for any number of threads, and nothing may be written but the results.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "parallel.h"
#include "selftest/layers.h"
#include "selftest/naive.h"

namespace {

const char* const names[KINDS] = {"q", "k", "v", "dout", "content", "out", "lse", "dq", "dk", "dv", "dcontent",
                                  "the vectors' gradient", "the gradient of numbers beside vectors",
                                  "the table's gradient"};

// --- the kernels --------------------------------------------------------------------------------------------------

struct Run {
    vector<double> value[KINDS];
    std::string fault;
};

// Scratch memory has no meaning between items: NaN now, so that what is read before it is written shows.
void spoil_scratch() {
    const auto spoil = [](void*, int64_t, void* scratch) { std::memset(scratch, 0xff, index(SPOILED)); };
    if (SPOILED) locant::parallel_for(1, 1, index(SPOILED), spoil, nullptr);
}

vector<double> values(const Task& task, int kind, Memory& memory) {
    vector<double> found;
    task.strides[kind].each([&](int64_t at) { found.push_back(get(task.dtype(kind), memory.data(), at)); });
    return found;
}

void want_content(const Task& task, const Shared* memory, Problem& p) {  // its gradients
    if (p.content.data) p.dcontent = task.strides[DCONTENT].rows(p.dtype, *memory[DCONTENT]);
    if (task.learns_vectors) p.dvectors = memory[DVECTORS]->data();
    if (task.learns_vectors && p.vector_bias) p.dvector_bias = memory[DVECTOR_BIAS]->data();
}

Run run(const Task& task, int threads) {
    Problem p = task.problem;
    Shared memory[KINDS];
    task.allocate(OUT, KINDS, memory);
    for (int i = OUT; i < KINDS; ++i) {
        const int64_t bytes = format(task.dtype(i)).bytes;
        task.strides[i].each([&](int64_t at) { memory[i]->open(at * bytes, bytes); });
    }
    const auto rows = [&](int kind) { return task.strides[kind].rows(p.dtype, *memory[kind]); };
    p.out = rows(OUT), p.lse = memory[LSE]->data();
    spoil_scratch();
    locant::forward(p, threads);

    Run found;
    for (int i : {int(OUT), int(LSE)}) found.value[i] = values(task, i, *memory[i]);
    const auto out = memory[OUT]->all, lse = memory[LSE]->all;
    p.dq = rows(DQ), p.dk = rows(DK), p.dv = rows(DV);
    if (task.trained) p.dtable = memory[DTABLE]->data();
    if (task.trained && task.learned) p.dprefix_bias = memory[DROWS]->data();
    want_content(task, memory, p);
    const auto bytes = int64_t(locant::backward_partial_bytes(p));
    Memory partial(bytes);
    partial.open(0, bytes);
    p.partial = partial.data();
    spoil_scratch();
    locant::backward(p, threads);

    for (int i = DQ; i < DTABLE; ++i) found.value[i] = values(task, i, *memory[i]);
    for (int i : {int(DK), int(DV)})
        if (task.layout.cells == 0) found.value[i].assign(found.value[i].size(), 0);  // the caller's to clear
    for (int i = DTABLE; i < KINDS && task.trained; ++i)
        for (double x : values(task, i, *memory[i])) found.value[DTABLE].push_back(x);
    if (memory[OUT]->all != out || memory[LSE]->all != lse) found.fault = "backward wrote to what forward had written";
    for (int i = OUT; i < KINDS; ++i)
        if (!memory[i]->intact())
            found.fault = std::string("something was written beside ") + names[std::min(i, int(DTABLE))];
    if (!partial.intact()) found.fault = "something was written beside the partial sums";
    return found;
}

// As many callers at once, each on a thread of its own, whose scratch memory ends with it.
vector<Run> runs(const Task& task, int threads, int callers) {
    vector<Run> found(index(callers));
    vector<std::thread> all;
    for (Run& one : found) all.emplace_back([&] { one = run(task, threads); });
    for (std::thread& one : all) one.join();
    return found;
}

// --- judgement ----------------------------------------------------------------------------------------------------

// The largest of `limits` that follows from the reference alone; `low` is the error of plain arithmetic.
double policy(Dtype dtype, int kind, double low, const vector<double>& reference) {
    double most = 0, rounding = 0;
    for (double x : reference) {
        if (std::isinf(x)) continue;
        most = std::max(most, std::fabs(x));
        rounding = std::max(rounding, std::fabs(round_to(dtype, round_to(dtype, round_to(dtype, x) + 0.3) - 0.3) - x));
    }
    const double factor = kind == OUT || kind == LSE ? 2 : 3;
    if (dtype == Dtype::f64) return 1e-10 * std::max(most, 1.0);
    return dtype == Dtype::f32 ? std::max(factor * low, 1e-5 * most) : factor * low + 2 * rounding;
}

class Judge {
public:
    explicit Judge(const Task& t) : task(t), exact(t) {
        if (t.problem.dtype != Dtype::f64) plain = std::make_unique<Naive<float>>(t);
    }

    // A sentence about what is wrong with a run, or nothing.
    std::string verdict(const Run& found, bool telling) const {
        if (!found.fault.empty()) return found.fault;
        for (int kind = OUT; kind <= DTABLE; ++kind) {
            const std::string wrong = verdict(kind, found.value[kind], telling);
            if (!wrong.empty()) return wrong;
        }
        return "";
    }

private:
    std::string verdict(int kind, const vector<double>& found, bool telling) const {
        const Dtype dtype = task.dtype(kind);
        const vector<double>& reference = exact.value[kind];
        if (found.size() != reference.size()) return std::string(names[kind]) + " has another size";
        double low = 0, worst = 0;
        for (size_t i = 0; plain && i < reference.size(); ++i)
            if (std::isfinite(reference[i]))
                low = std::max(low, std::fabs(round_to(dtype, double(plain->value[kind][i])) - reference[i]));
        const double limit = policy(dtype, kind, low, reference);
        // A sum of terms that cancel has no scale of its own. Rounding moves scores, and with them weights, by their
        // size; what is stored in between is rounded as well.
        const double share = 16 * format(arithmetic(dtype)).unit() * (1 + exact.largest) +
                             (kind == LSE ? 0 : 4 * format(task.problem.dtype).unit());
        for (size_t i = 0; i < reference.size(); ++i) {
            if (found[i] == reference[i]) continue;  // -inf too
            const double error = std::fabs(found[i] - reference[i]), own = std::max(limit, share * exact.size[kind][i]);
            if (!(error <= own)) {
                char text[200];
                std::snprintf(text, sizeof text,
                              "%s[%zu] is %.9g; it should be %.9g, within %.3g (plain arithmetic: %.3g)", names[kind],
                              i, found[i], reference[i], own, low);
                return text;
            }
            worst = std::max(worst, error);
        }
        if (telling) std::printf("    %-22s %.3g of %.3g\n", names[kind], worst, limit);
        return "";
    }

    const Task& task;
    Naive<double> exact;
    std::unique_ptr<Naive<float>> plain;
};

std::string difference(const Run& one, const Run& other, int threads) {
    for (int kind = OUT; kind <= DTABLE; ++kind)
        for (size_t i = 0; i < one.value[kind].size(); ++i) {
            const double a = one.value[kind][i], b = other.value[kind][i];
            if (std::memcmp(&a, &b, sizeof a) == 0) continue;
            char text[200];
            std::snprintf(text, sizeof text, "%s[%zu] has other bits on %d threads than on one: %.17g and %.17g",
                          names[kind], i, threads, b, a);
            return text;
        }
    return "";
}

using Bytes = vector<vector<uint8_t>>;

Bytes inputs(const Task& task) {
    Bytes all;
    for (const Shared& one : {task.given[Q], task.given[K], task.given[V], task.given[DOUT], task.given[CONTENT],
                              task.dlse, task.table, task.vectors, task.vector_bias})
        if (one) all.push_back(one->all);
    return all;
}

std::string verdict(const Task& task, const Judge& judge, bool telling) {
    const Bytes before = inputs(task);
    const Run one = runs(task, 1, 1)[0];
    const std::string wrong = judge.verdict(one, telling);
    if (!wrong.empty()) return wrong;
    for (const Run& other : runs(task, task.threads, task.together ? 2 : 1)) {
        if (!other.fault.empty()) return other.fault;
        const std::string other_bits = difference(one, other, task.threads);
        if (!other_bits.empty()) return other_bits;
    }
    return inputs(task) == before ? "" : "an input was written to";
}

// --- the program --------------------------------------------------------------------------------------------------

vector<std::string> isas() {
    vector<std::string> names_of(1);
    for (const char* at = locant::isa_names(); *at; ++at) {
        if (*at == ' ') names_of.emplace_back();
        else names_of.back() += *at;
    }
    return names_of;
}

bool passes(uint64_t number, bool telling) {
    const Task task(number);
    const Judge judge(task);
    if (telling) std::printf("problem %llu: %s\n", static_cast<unsigned long long>(number), task.description().c_str());
    for (const std::string& isa : isas()) {
        if (telling) std::printf("  %s\n", isa.c_str());
        locant::choose_isa(isa.c_str());
        std::string wrong = verdict(task, judge, telling);
        if (wrong.empty()) wrong = linear_fault(number);
        if (wrong.empty()) continue;
        std::printf("selftest: problem %llu fails on %s: %s\n  %s\n  again: selftest --case %llu\n",
                    static_cast<unsigned long long>(number), isa.c_str(), wrong.c_str(), task.description().c_str(),
                    static_cast<unsigned long long>(number));
        return false;
    }
    return true;
}

// A hash of the bits of all results; a NaN counts as a NaN, whatever its bits.
uint64_t hash(const Run& run) {
    uint64_t sum = 0xcbf29ce484222325;
    for (const auto& result : run.value)
        for (double x : result) {
            uint64_t bits = 1;
            if (!std::isnan(x)) std::memcpy(&bits, &x, sizeof bits);
            sum = (sum ^ bits) * 0x100000001b3, sum ^= sum >> 29;
        }
    return sum;
}

void print_bits(uint64_t number) {
    const Task task(number);
    for (const std::string& isa : isas()) {
        locant::choose_isa(isa.c_str());
        std::printf("%llu %s %016llx\n", static_cast<unsigned long long>(number), isa.c_str(),
                    static_cast<unsigned long long>(hash(run(task, 1))));
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count > 2 && std::strcmp(arguments[1], "--case") == 0)
        return !passes(std::strtoull(arguments[2], nullptr, 10), true);
    if (count > 3 && std::strcmp(arguments[1], "--bits") == 0) {
        const auto number = std::strtoull(arguments[2], nullptr, 10);
        const auto problems = std::strtoull(arguments[3], nullptr, 10);
        for (uint64_t i = 0; i < problems; ++i) print_bits(number + i);
        return 0;
    }
    const double seconds = count > 1 ? std::atof(arguments[1]) : 10;
    const uint64_t first = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
    using Clock = std::chrono::steady_clock;
    const auto begun = Clock::now();
    const auto since = [&] { return std::chrono::duration<double>(Clock::now() - begun).count(); };
    uint64_t number = first;
    do {
        if (!passes(number, false)) return 1;
        ++number;
    } while (since() < seconds);
    std::printf("selftest: %llu problems (%llu to %llu) in %.0f s, each on %s: all right\n",
                static_cast<unsigned long long>(number - first), static_cast<unsigned long long>(first),
                static_cast<unsigned long long>(number - 1), since(), locant::isa_names());
    return 0;
}
