// locant._native: the compiled kernels in Python, as functions of integers. The only file here that knows Python.
//
// Tensors come as addresses, sizes and strides, all int64, strides counted in numbers. Nothing here can tell a wrong
// address from a right one: this module is for locant.kernels.native alone, which checks what it passes.
//
// `numbers` of forward, backward and backward_partial_bytes is a tuple: the fields of struct Problem in their order.
//
//    0  number                    0 float32, 1 float64, 2 bfloat16, 3 float16
//    1  batch, heads, kv_heads, head_dim, value_dim
//    6  q                         each of these is five: data, batch, head, token, channel
//   11  k
//   16  v
//   21  out
//   26  lse, table, numbers, query_prefix, key_prefix, both; contiguous, float32 (float64 for float64)
//   32  valid, valid_batch, query_id, query_id_batch, key_id, key_id_batch
//   38  free_queries, free_keys
//   40  (forward ends here)
//   40  dout                      five each, as above
//   45  dq
//   50  dk
//   55  dv
//   60  dlse, dtable, dquery_prefix, dkey_prefix, dboth, partial
//   66  (backward ends here; backward_partial_bytes takes the same 66 and does not look at `partial`)
//
// An address of 0 says that there is none.
#include <nanobind/nanobind.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "attention.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using locant::Layout;
using locant::Number;
using locant::Problem;
using locant::Rows;

constexpr Py_ssize_t forward_numbers = 40, backward_numbers = 66;

void* address(int64_t number) { return reinterpret_cast<void*>(static_cast<intptr_t>(number)); }

template <class T>
void point(T*& pointer, int64_t number) {
    pointer = static_cast<T*>(address(number));
}

// Reads the tuple from its start to its end.
class Reader {
public:
    explicit Reader(nb::handle numbers) : tuple_(numbers.ptr()) {}

    int64_t next() {
        static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "addresses have 64 bits");
        const Py_ssize_t value = PyLong_AsSsize_t(PyTuple_GetItem(tuple_, at_++));
        if (value == -1 && PyErr_Occurred()) throw nb::python_error();
        return value;
    }
    template <class T>
    void next(T*& pointer) { point(pointer, next()); }
    void next(Rows& rows) {
        next(rows.data);
        rows.batch = next();
        rows.head = next();
        rows.token = next();
        rows.channel = next();
    }

private:
    PyObject* tuple_;
    Py_ssize_t at_ = 0;
};

[[noreturn]] void raise(PyObject* type, const std::string& message) {
    PyErr_SetString(type, message.c_str());
    throw nb::python_error();
}

Problem read(const Layout& layout, nb::handle numbers, Py_ssize_t wanted) {
    if (!PyTuple_Check(numbers.ptr())) raise(PyExc_TypeError, "`numbers` has to be a tuple of integers.");
    const Py_ssize_t length = PyTuple_Size(numbers.ptr());
    if (length != wanted) {
        raise(PyExc_ValueError, "`numbers` has to hold " + std::to_string(wanted) + " integers; it holds " +
                                    std::to_string(length) + ". Their order stands in csrc/bindings.cpp.");
    }
    Reader reader(numbers);
    Problem problem{};
    problem.layout = &layout;
    const int64_t number = reader.next();
    if (number < 0 || number > static_cast<int64_t>(Number::f16)) {
        raise(PyExc_ValueError, "`numbers[0]` has to be 0, 1, 2 or 3; it is " + std::to_string(number) +
                                    ". Pass the code of the tensors' dtype: csrc/bindings.cpp lists them.");
    }
    problem.number = static_cast<Number>(number);
    problem.batch = reader.next();
    problem.heads = reader.next();
    problem.kv_heads = reader.next();
    problem.head_dim = reader.next();
    problem.value_dim = reader.next();
    for (Rows* rows : {&problem.q, &problem.k, &problem.v, &problem.out}) reader.next(*rows);
    reader.next(problem.lse);
    reader.next(problem.table);
    problem.numbers = reader.next();
    reader.next(problem.query_prefix);
    reader.next(problem.key_prefix);
    reader.next(problem.both);
    reader.next(problem.valid);
    problem.valid_batch = reader.next();
    reader.next(problem.query_id);
    problem.query_id_batch = reader.next();
    reader.next(problem.key_id);
    problem.key_id_batch = reader.next();
    problem.free_queries = reader.next();
    problem.free_keys = reader.next();
    if (wanted == forward_numbers) return problem;
    for (Rows* rows : {&problem.dout, &problem.dq, &problem.dk, &problem.dv}) reader.next(*rows);
    reader.next(problem.dlse);
    reader.next(problem.dtable);
    reader.next(problem.dquery_prefix);
    reader.next(problem.dkey_prefix);
    reader.next(problem.dboth);
    reader.next(problem.partial);
    return problem;
}

// What the environment variable LOCANT_ISA asked for in vain. Each call says so, until choose_isa names another: an
// error at import would look as if the module had not been built.
std::string refused_isa;

[[noreturn]] void refuse_isa(const char* argument, const std::string& name) {
    raise(PyExc_ValueError, std::string("`") + argument + "` has to name an instruction set that this build and this " +
                                "machine have; it is '" + name + "'. Choose one of: " + locant::isa_names() + ".");
}

void check_isa() {
    if (!refused_isa.empty()) refuse_isa("LOCANT_ISA", refused_isa);
}

void choose_isa(const char* name) {
    if (!locant::choose_isa(name)) refuse_isa("name", name);
    refused_isa.clear();
}

const char* isa() {
    check_isa();
    return locant::isa();
}

// The table and its three rows as the kernels read them: in units of log 2, and zeros around the table, as vectors may
// read a little beyond it. Points the problem to them.
template <class Real>
std::vector<Real> scaled(Problem& problem) {
    constexpr int64_t margin = 64;
    constexpr Real log2e = static_cast<Real>(1.4426950408889634074);
    const int64_t table = problem.heads * problem.numbers;
    std::vector<Real> own(static_cast<size_t>(2 * margin + table + 3 * problem.heads));
    Real* to = own.data() + margin;
    const auto move = [&](const void*& from, int64_t count) {
        if (from == nullptr) return;
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<const Real*>(from)[i] * log2e;
        from = to;
    };
    move(problem.table, table);
    to += table + margin;
    for (const void** row : {&problem.query_prefix, &problem.key_prefix, &problem.both}) {
        move(*row, problem.heads);
        to += problem.heads;
    }
    return own;
}

using Run = void (*)(const Problem&, int threads);

template <Run run, Py_ssize_t wanted>
void call(const Layout& layout, nb::handle numbers, double scale, double dropout, uint64_t seed, int threads) {
    check_isa();
    Problem problem = read(layout, numbers, wanted);
    problem.scale = scale;
    problem.dropout = dropout;
    problem.seed = seed;
    const nb::gil_scoped_release released;  // the caller holds the layout and, through it, the tensors
    const bool wide = problem.number == Number::f64, biased = problem.table != nullptr;
    const auto narrow_bias = biased && !wide ? scaled<float>(problem) : std::vector<float>();
    const auto wide_bias = biased && wide ? scaled<double>(problem) : std::vector<double>();
    run(problem, threads);
}

size_t partial_bytes(const Layout& layout, nb::handle numbers) {
    check_isa();
    return locant::backward_partial_bytes(read(layout, numbers, backward_numbers));
}

nb::tuple isas() {
    nb::list names;
    const std::string all = locant::isa_names();
    for (size_t start = 0, end = 0; end != std::string::npos; start = end + 1) {
        end = all.find(' ', start);
        names.append(nb::str(all.substr(start, end - start).c_str()));
    }
    return nb::tuple(names);
}

}  // namespace

NB_MODULE(_native, module) {
    nb::set_leak_warnings(false);  // layouts live in a cache of Python's, to the end of the process
    module.doc() = "The compiled CPU kernels of locant. Called by locant.kernels.native, which checks what it passes.";

    nb::class_<Layout>(module, "Layout", "Who meets whom, as addresses of arrays that the caller keeps alive.")
        .def("__init__",
             [](Layout* self, int64_t cells, int64_t queries, int64_t keys, int64_t query_prefix, int64_t key_prefix,
                int64_t query, int64_t query_start, int64_t key, int64_t key_start, int64_t kind,
                int64_t longest, int64_t longest_keys, int64_t query_place,
                int64_t key_place, int64_t orders, int64_t query_rank, int64_t key_rank, bool shared_keys) {
                 Layout layout{};
                 layout.cells = cells;
                 layout.queries = queries;
                 layout.keys = keys;
                 layout.query_prefix = query_prefix;
                 layout.key_prefix = key_prefix;
                 point(layout.query, query);
                 point(layout.query_start, query_start);
                 point(layout.key, key);
                 point(layout.key_start, key_start);
                 point(layout.kind, kind);
                 layout.longest = longest;
                 layout.longest_keys = longest_keys;
                 point(layout.query_place, query_place);
                 point(layout.key_place, key_place);
                 layout.orders = orders;
                 point(layout.query_rank, query_rank);
                 point(layout.key_rank, key_rank);
                 layout.shared_keys = shared_keys;
                 new (self) Layout(layout);
             },
             nb::kw_only(), "cells"_a, "queries"_a, "keys"_a, "query_prefix"_a, "key_prefix"_a, "query"_a,
             "query_start"_a, "key"_a, "key_start"_a, "kind"_a, "longest"_a, "longest_keys"_a, "query_place"_a, "key_place"_a, "orders"_a, "query_rank"_a,
             "key_rank"_a, "shared_keys"_a);

    module.def("forward", call<locant::forward, forward_numbers>, "layout"_a, "numbers"_a, "scale"_a, "dropout"_a,
               "seed"_a, "threads"_a, "Writes out and lse.");
    module.def("backward", call<locant::backward, backward_numbers>, "layout"_a, "numbers"_a, "scale"_a, "dropout"_a,
               "seed"_a, "threads"_a, "Writes dq, dk, dv and the gradients of the bias.");
    module.def("backward_partial_bytes", partial_bytes, "layout"_a, "numbers"_a,
               "How much memory `partial` of backward has to be, under the instruction set in use.");
    module.def("isa", isa, "The instruction set in use.");
    module.def("isas", isas, "The instruction sets that this build and this machine have, best first.");
    module.def("choose_isa", choose_isa, "name"_a,
               "Use this one from now on. Not between backward_partial_bytes and backward.");

    const char* name = std::getenv("LOCANT_ISA");
    if (name != nullptr && *name != '\0' && !locant::choose_isa(name)) refused_isa = name;
}
