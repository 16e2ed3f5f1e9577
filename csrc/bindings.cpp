// locant._native: the compiled kernels in Python, as functions of integers. The only file here that knows Python.
//
// Tensors come as addresses, sizes and strides, strides counted in numbers. Nothing here can tell a wrong address from
// a right one: this module is for locant.operators alone, and locant.operands makes the tuples. Their members stand in
// fields.h: Rows are tuples of five (data, batch, head, token, channel), PerSample of two; an address of 0 is null.
#include <nanobind/nanobind.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "attention.h"
#include "linear.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using locant::Dtype;
using locant::Layout;
using locant::PerSample;
using locant::Problem;
using locant::Rows;

[[noreturn]] void raise(PyObject* type, const std::string& message) {
    PyErr_SetString(type, message.c_str());
    throw nb::python_error();
}

// --- operands -----------------------------------------------------------------------------------------------------

// What Python calls the kind of an operand: the annotation that it has there.
template <class T> struct Kind;
template <> struct Kind<int64_t> { static constexpr const char* annotation = "int"; };
template <> struct Kind<uint64_t> { static constexpr const char* annotation = "int"; };
template <> struct Kind<Dtype> { static constexpr const char* annotation = "int"; };
template <> struct Kind<bool> { static constexpr const char* annotation = "bool"; };
template <> struct Kind<double> { static constexpr const char* annotation = "float"; };
template <> struct Kind<void*> { static constexpr const char* annotation = "Address"; };
template <> struct Kind<const void*> { static constexpr const char* annotation = "Address"; };
template <> struct Kind<const int32_t*> { static constexpr const char* annotation = "Int32s"; };
template <> struct Kind<const int64_t*> { static constexpr const char* annotation = "Int64s"; };
template <> struct Kind<Rows> { static constexpr const char* annotation = "Rows"; };
template <class T> struct Kind<PerSample<T>> { static constexpr const char* annotation = "PerSample"; };

#define NAME_AND_KIND(type, name) list.append(nb::make_tuple(#name, Kind<type>::annotation));
#define NAMES_AND_KINDS(fields) [] { nb::list list; fields(NAME_AND_KIND) return nb::tuple(list); }()

// Reads a tuple from its start to its end.
class Reader {
public:
    Reader(PyObject* tuple, Py_ssize_t length, const char* name) : tuple_(tuple) {
        if (tuple != nullptr && PyTuple_Check(tuple) && PyTuple_Size(tuple) == length) return;
        raise(PyExc_TypeError, std::string("`") + name + "` has to be a tuple of " + std::to_string(length) +
                                   ", in the order of csrc/fields.h. Make it with locant.operands.");
    }

    void read(int64_t& value) {
        static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "addresses have 64 bits");
        value = PyLong_AsSsize_t(next());
        if (value == -1 && PyErr_Occurred()) throw nb::python_error();
    }
    void read(double& value) {
        value = PyFloat_AsDouble(next());
        if (value == -1 && PyErr_Occurred()) throw nb::python_error();
    }
    template <class T> void read(T*& pointer) { pointer = reinterpret_cast<T*>(integer()); }
    void read(bool& value) { value = integer() != 0; }
    void read(uint64_t& value) { value = static_cast<uint64_t>(integer()); }
    void read(Dtype& dtype) {
        const int64_t code = integer();
        if (code < 0 || code > static_cast<int64_t>(Dtype::f16)) {
            raise(PyExc_ValueError, "`dtype` has to be 0, 1, 2 or 3; it is " + std::to_string(code) +
                                        ". Pass the code that locant.operands.DTYPES has for the tensors' dtype.");
        }
        dtype = static_cast<Dtype>(code);
    }
    void read(Rows& rows) {
        Reader inner(next(), 5, "Rows");
        inner.read(rows.data), inner.read(rows.batch), inner.read(rows.head), inner.read(rows.token);
        inner.read(rows.channel);
    }
    template <class T> void read(PerSample<T>& numbers) {
        Reader inner(next(), 2, "PerSample");
        inner.read(numbers.data), inner.read(numbers.batch);
    }

private:
    PyObject* next() { return PyTuple_GetItem(tuple_, at_++); }
    int64_t integer() {
        int64_t value;
        read(value);
        return value;
    }

    PyObject* tuple_;
    Py_ssize_t at_ = 0;
};

#define ONE(type, name) +1
#define READ(type, name) reader.read(to.name);

void read_layout(nb::handle operands, Layout& to) {
    Reader reader(operands.ptr(), LOCANT_LAYOUT(ONE), "operands");
    LOCANT_LAYOUT(READ)
}

void read_forward(nb::handle operands, Problem& to) {
    Reader reader(operands.ptr(), LOCANT_FORWARD(ONE), "operands");
    LOCANT_FORWARD(READ)
}

void read_gradients(nb::handle gradients, Problem& to) {
    Reader reader(gradients.ptr(), LOCANT_GRADIENTS(ONE), "gradients");
    LOCANT_GRADIENTS(READ)
}

#define READS(problem, fields)                                                  \
    void read_problem(nb::handle operands, problem& to) {                       \
        Reader reader(operands.ptr(), fields(ONE), "operands");                 \
        fields(READ)                                                            \
    }
READS(locant::Weight, LOCANT_WEIGHT)
READS(locant::Linear, LOCANT_LINEAR)
READS(locant::Perceptron, LOCANT_PERCEPTRON)
READS(locant::WeightGradient, LOCANT_WEIGHT_GRADIENT)
READS(locant::HiddenGradient, LOCANT_HIDDEN_GRADIENT)

// --- instruction sets ---------------------------------------------------------------------------------------------

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

nb::tuple isas() {
    nb::list names;
    const std::string all = locant::isa_names();
    for (size_t start = 0, end = 0; end != std::string::npos; start = end + 1) {
        end = all.find(' ', start);
        names.append(nb::str(all.substr(start, end - start).c_str()));
    }
    return nb::tuple(names);
}

// --- calls --------------------------------------------------------------------------------------------------------

// The bias as the kernels read it: in units of log 2, and zeros around the table, as vectors may read a little beyond
// it. Points the problem to it.
template <class Real> std::vector<Real> bias_in_log2(Problem& problem) {
    constexpr int64_t margin = 64;
    constexpr Real log2e = static_cast<Real>(1.4426950408889634074);
    const int64_t table = problem.heads * problem.entries;
    std::vector<Real> bias(static_cast<size_t>(2 * margin + table + 3 * problem.heads));
    const auto copy = [&](const void*& from, int64_t count, Real* to) {
        if (from == nullptr) return;
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<const Real*>(from)[i] * log2e;
        from = to;
    };
    copy(problem.table, table, bias.data() + margin);
    copy(problem.prefix_bias, 3 * problem.heads, bias.data() + 2 * margin + table);
    return bias;
}

void run(void (*pass)(const Problem&, int threads), Problem& problem, int threads) {
    const nb::gil_scoped_release released;  // the caller holds the layout and, through it, the tensors
    const bool wide = problem.dtype == Dtype::f64, biased = problem.table != nullptr;
    const auto narrow_bias = biased && !wide ? bias_in_log2<float>(problem) : std::vector<float>();
    const auto wide_bias = biased && wide ? bias_in_log2<double>(problem) : std::vector<double>();
    pass(problem, threads);
}

void forward(const Layout& layout, nb::tuple operands, int threads) {
    check_isa();
    Problem problem{};
    problem.layout = &layout;
    read_forward(operands, problem);
    run(locant::forward, problem, threads);
}

Problem backward_problem(const Layout& layout, nb::handle operands, nb::handle gradients) {
    check_isa();
    Problem problem{};
    problem.layout = &layout;
    read_forward(operands, problem);
    read_gradients(gradients, problem);
    return problem;
}

size_t backward_partial_bytes(const Layout& layout, nb::tuple operands, nb::tuple gradients) {
    return locant::backward_partial_bytes(backward_problem(layout, operands, gradients));
}

void backward(const Layout& layout, nb::tuple operands, nb::tuple gradients, int64_t partial, int threads) {
    Problem problem = backward_problem(layout, operands, gradients);
    problem.partial = reinterpret_cast<void*>(partial);
    run(locant::backward, problem, threads);
}

template <class Asked> void run_linear(nb::tuple operands, int threads) {
    check_isa();
    Asked problem{};
    read_problem(operands, problem);
    const nb::gil_scoped_release released;
    locant::run(problem, threads);
}

int64_t packed_numbers(nb::tuple operands) {
    check_isa();
    locant::Weight weight{};
    read_problem(operands, weight);
    return locant::packed_numbers(weight);
}

void define_linear(nb::module_& module) {
    module.attr("WEIGHT") = NAMES_AND_KINDS(LOCANT_WEIGHT);
    module.attr("LINEAR") = NAMES_AND_KINDS(LOCANT_LINEAR);
    module.attr("PERCEPTRON") = NAMES_AND_KINDS(LOCANT_PERCEPTRON);
    module.attr("WEIGHT_GRADIENT") = NAMES_AND_KINDS(LOCANT_WEIGHT_GRADIENT);
    module.attr("HIDDEN_GRADIENT") = NAMES_AND_KINDS(LOCANT_HIDDEN_GRADIENT);
    module.def("multiplies_pairs", locant::multiplies_pairs,
               "Whether the processor has an instruction for pairs of bfloat16.");
    module.def("packed_numbers", packed_numbers, "operands"_a, "How many numbers a packed weight has.");
    module.def("pack", run_linear<locant::Weight>, "operands"_a, "threads"_a, "Writes a packed weight.");
    module.def("linear", run_linear<locant::Linear>, "operands"_a, "threads"_a, "Writes y.");
    module.def("perceptron", run_linear<locant::Perceptron>, "operands"_a, "threads"_a, "Writes y.");
    module.def("weight_gradient", run_linear<locant::WeightGradient>, "operands"_a, "threads"_a, "Writes dw and db.");
    module.def("hidden_gradient", run_linear<locant::HiddenGradient>, "operands"_a, "threads"_a,
               "Writes dh, the activation once more, and dx.");
}

}  // namespace

NB_MODULE(_native, module) {
    nb::set_leak_warnings(false);  // layouts live in a cache of Python's, to the end of the process
    module.doc() = "The compiled CPU kernels of locant. Called by locant.operators, which checks what it passes.";

    module.attr("LAYOUT") = NAMES_AND_KINDS(LOCANT_LAYOUT);
    module.attr("FORWARD") = NAMES_AND_KINDS(LOCANT_FORWARD);
    module.attr("GRADIENTS") = NAMES_AND_KINDS(LOCANT_GRADIENTS);

    define_linear(module);

    nb::class_<Layout>(module, "Layout", "Who meets whom, as addresses of arrays that the caller keeps alive.")
        .def("__init__",
             [](Layout* self, nb::tuple operands) {
                 Layout layout{};
                 read_layout(operands, layout);
                 new (self) Layout(layout);
             },
             "operands"_a);

    module.def("forward", forward, "layout"_a, "operands"_a, "threads"_a, "Writes out and lse.");
    module.def("backward", backward, "layout"_a, "operands"_a, "gradients"_a, "partial"_a, "threads"_a,
               "Writes dq, dk, dv and the gradients of the bias; `partial` is backward_partial_bytes of memory.");
    module.def("backward_partial_bytes", backward_partial_bytes, "layout"_a, "operands"_a, "gradients"_a,
               "How much memory `partial` of backward has to be, under the instruction set in use.");
    module.def("isa", isa, "The instruction set in use.");
    module.def("isas", isas, "The instruction sets that this build and this machine have, best first.");
    module.def("choose_isa", choose_isa, "name"_a,
               "Use this one from now on. Not between backward_partial_bytes and backward.");

    const char* name = std::getenv("LOCANT_ISA");
    if (name != nullptr && *name != '\0' && !locant::choose_isa(name)) refused_isa = name;
}
