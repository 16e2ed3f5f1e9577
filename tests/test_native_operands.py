"""Operands are stated for Python and for C++: a module of others is refused, and the stub tells the truth."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from locant import operands, operators
from locant.layout import Layout

pytestmark = pytest.mark.native

MODULE = operators.built()
LISTS = tuple(operands.RECORDS)


def module_like(**changed: object) -> ModuleType:
    """A module that reads the operands of this one, but for what is changed."""
    module = ModuleType("locant._native")
    module.__file__ = "_native.so"
    for name in LISTS:
        setattr(module, name, changed.get(name, getattr(MODULE, name)))
    return module


def test_the_module_reads_what_it_is_handed():
    operands.check(module_like())
    assert [name for name, _ in MODULE.LAYOUT] == [*Layout.__dataclass_fields__]
    for name, record in operands.RECORDS.items():
        assert record is Layout or [field for field, _ in getattr(MODULE, name)] == [*record._fields]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("change", ["order", "name", "kind", "one less", "one more", "none"])
def test_a_module_of_other_operands_is_refused(name, change):
    """Whatever differs: tensors would be read at addresses of others."""
    first, second, *rest = getattr(MODULE, name)
    other = {
        "order": (second, first, *rest),
        "name": (first, ("other", second[1]), *rest),
        "kind": (first, (second[0], "Rows" if second[1] != "Rows" else "int"), *rest),
        "one less": (first, second, *rest[:-1]),
        "one more": (first, second, *rest, ("more", "int")),
        "none": (),
    }[change]
    sentence = rf"have to read the operands .* of {name} is `.*` here and `.*` in _native.so, .* Build it again: "
    with pytest.raises(ImportError, match=sentence):
        operands.check(module_like(**{name: other}))


def test_it_is_refused_when_it_is_first_asked_for():
    """A build that fell behind its sources is an error with the cure in it, not a slower kernel."""
    code = """if True:
        import sys, types
        sys.modules["locant._native"] = types.ModuleType("locant._native")
        sys.modules["locant._native"].__file__ = "old.so"
        import torch, locant
        try:
            locant.attention(*torch.randn(3, 1, 1, 4, 4))
        except ImportError as error:
            print(error)
    """
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    assert "number 0 of LAYOUT is `cells: int` here and `nothing` in old.so" in told


def test_tuples_of_another_length_are_refused():
    layout = operators._native_layout(operators_layout())[0]
    with pytest.raises(TypeError, match="`operands` has to be a tuple of 28, in the order of csrc/fields.h"):
        MODULE.forward(layout, (0,) * 27, 1)
    with pytest.raises(TypeError, match="`Rows` has to be a tuple of 5"):
        MODULE.forward(layout, (0,) * 28, 1)
    with pytest.raises(ValueError, match="`dtype` has to be 0, 1, 2 or 3; it is 4"):
        MODULE.forward(layout, (4,) + (0,) * 27, 1)
    with pytest.raises(TypeError, match="`operands` has to be a tuple of 22"):
        MODULE.Layout((1, 2, 3))


def operators_layout() -> tuple[int, ...]:
    from locant import Grid
    from locant.layout import described
    from locant.masks import Structure

    return described(Grid(3), Grid(3), Structure.of(None), ())


def test_kept_tensors_are_the_ones_that_are_read():
    """A table in another dtype or order is copied, and the copy is handed over; a mask of one row is shared."""
    q, k, v = torch.randn(3, 2, 1, 3, 4).unbind(0)
    out, lse = operators._new_out(q, v)
    table, valid = torch.randn(5, 1, dtype=torch.float64).T, torch.ones(1, 3, dtype=torch.bool)
    problem, kept = operands.forward(
        q, k, v, out, lse, table, None, q, q[:1, 0].double(), None, valid, torch.zeros(2, 3, dtype=torch.int32), None,
        (1, 2), 0.5, 0.75, 0.25, torch.tensor([2**61 + 1]),
    )  # fmt: skip
    bias, of_prefix, met, beside, real, ids, key_ids = kept
    assert (met.dtype, beside, problem.vector_bias, problem.content_scale) == (torch.float32, None, 0, 0.75)
    assert (problem.vectors, problem.vector_heads, problem.offsets) == (met.data_ptr(), 1, 3)
    assert problem.content == problem.q
    assert (bias.dtype, bias.is_contiguous(), of_prefix, key_ids) == (torch.float32, True, None, None)
    assert problem.table == bias.data_ptr()
    assert problem.valid == (real.data_ptr(), 0)
    assert problem.query_id == (ids.data_ptr(), 3)
    assert problem.q == (q.data_ptr(), *q.stride())
    assert problem[1:6] == (2, 1, 1, 4, 4)
    told = (problem.entries, problem.prefix_bias, problem.free_queries, problem.free_keys, problem.scale)
    assert told == (5, 0, 1, 2, 0.5)
    assert (problem.dropout, problem.seed) == (0.25, 2**61 + 1)


def test_the_stub_is_the_module():
    """_native.pyi has every name of the module, no other, and the arguments that it takes."""
    stub = ast.parse((Path(operators.__file__).parent / "_native.pyi").read_text())
    functions = {node.name: ast.unparse(node) for node in stub.body if isinstance(node, ast.FunctionDef)}
    (layout,) = (node for node in stub.body if isinstance(node, ast.ClassDef))
    values = [ast.unparse(node.target) for node in stub.body if isinstance(node, ast.AnnAssign)]
    public = {name for name in dir(MODULE) if not name.startswith("_")}
    assert public == {*functions, layout.name, *values}
    for name, text in functions.items():
        assert text == written(getattr(MODULE, name)), name
    assert ast.unparse(layout.body[0]) == written(MODULE.Layout.__init__)
    assert values == list(LISTS)
    assert all(type(x) is str for name in LISTS for pair in getattr(MODULE, name) for x in pair)


def written(function) -> str:
    """The signature that nanobind gives a function, as a stub has it."""
    ((signature, *_),) = function.__nb_signature__
    text = signature.replace("locant._native.", "").replace("(self, /,", "(self,")
    return ast.unparse(ast.parse(f"{text}: ..."))
