"""Choosing is a value that says why: sentences, costs by hand, and nothing in silence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from exactness import MASKS
from refusals import REFUSALS, refusal
from schemes import SCHEMES, heads

from locant import (
    ALiBi,
    Causal,
    GatedPosition,
    Grid,
    Padding,
    Pairs,
    RelativeTable,
    Segments,
    Windows,
    attention,
    operators,
    plan,
    planner,
    speed,
)
from locant.forms import AxialVectors, Separable
from locant.kernels import reference, sdpa
from locant.kernels.kernel import Work
from locant.masks import Structure
from locant.problem import Problem

COMPILED = not isinstance(operators.built(), str)


def blank(batch, count, grid, head_dim, **options):
    """q, k, v on the meta device: shapes without numbers."""
    shape = (batch, count, grid.tokens, head_dim)
    return [torch.empty(shape, device="meta", **options) for _ in range(3)]


VALID = torch.ones(1, 6, dtype=torch.bool)
GATED = [
    (Causal(), {}, "under causal the positional map no longer factorises"),
    (Padding(VALID), {}, "under padding the positional map"),
    (Segments(VALID.long()), {}, "under segments the positional map"),
    (Pairs(VALID), {}, "under pairs the positional map"),
    (Causal() & Padding(VALID) & Windows((2, 2)), {}, "under causal and padding the positional map"),
    (None, {"dropout": 0.1}, "dropout acts on the mixed map"),
    (None, {"prefix": 1}, "prefix tokens have no place on the axes"),
]


@pytest.mark.parametrize("kernel", ["native", "sdpa"])
@pytest.mark.parametrize(("mask", "options", "sentence"), GATED)
def test_a_refusal_is_one_sentence_everywhere(mask, options, sentence, kernel):
    """What the kernel says, the plan prints, and asking for it by name raises."""
    if kernel == "native" and isinstance(mask, Pairs):
        sentence = "Pairs is dense by nature, and these kernels never form what is dense"
    options = dict(options)
    grid = Grid(2, 3, prefix=options.pop("prefix", 0))
    q, k, v = heads(grid, batch=1)
    arguments = {"grid": grid, "position": GatedPosition(2), "mask": mask, **options}
    found = plan(q, k, v, **arguments)
    assert found.kernel == "reference"
    why = dict(found.passed_over)[kernel]
    assert sentence in why
    assert f"not {kernel:9} {why}" in str(found)
    assert "kernel    reference" in str(found)
    for ask in (attention, plan):
        with pytest.raises(ValueError, match="it refuses") as caught:
            ask(q, k, v, kernel=kernel, **arguments)
        assert why in str(caught.value)
        assert 'leave kernel="auto"' in str(caught.value)


def test_log_sum_exp_is_refused_by_sdpa():
    q, k, v = heads(Grid(6))
    found = plan(q, k, v, return_lse=True)
    assert found.kernel == ("native" if COMPILED else "reference")
    assert "log-sum-exp" in dict(found.passed_over)["sdpa"]
    with pytest.raises(ValueError, match="keeps its log-sum-exp to itself"):
        attention(q, k, v, return_lse=True, kernel="sdpa")


def test_unknown_kernels():
    there = ", ".join(kernel.name for kernel in planner.FAMILY)
    with pytest.raises(ValueError, match=f"there is no kernel of that name; there are {there}"):
        attention(*heads(Grid(6)), kernel="fastest")


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_nothing_falls_back_in_silence(scheme, mask):
    """Whatever was chosen, every other kernel has its sentence; a kernel named in vain raises just that."""
    q, k, v = heads(scheme.grid)
    arguments = {"grid": scheme.grid, "position": scheme.make(), "mask": MASKS[mask](scheme.grid)}
    found = plan(q, k, v, **arguments)
    assert {found.kernel, *dict(found.passed_over)} == {kernel.name for kernel in planner.FAMILY}
    assert all(len(why) > 20 for _, why in found.passed_over)
    able = [kernel.name for kernel in planner.FAMILY[:-1] if refusal(kernel.name, found.problem) is None]
    assert found.kernel in (able or ["reference"])
    dense = plan(q, k, v, kernel="reference", **arguments)
    assert dense.kernel == "reference"
    for name, why in dense.passed_over:
        refused = planner.named(name).refuses(dense.problem) is not None
        assert why == (dict(found.passed_over)[name] if refused else "reference was asked for by name")


CELLS = Problem(1, 2, 2, 4, 4, Grid(2, 3), Grid(2, 3))
REFUSED = [
    {"device": "cuda"}, {"exporting": True}, {"transformed": True}, {"transformed": True, "bias_grad": True},
    {"content": AxialVectors(2, ((-1, 1), (-2, 2)))},
    {"mask": Structure(pairs=True)}, {"mask": Structure(segments=2)}, {"lse": True, "gate": None},
    {"gate": Separable(2), "mask": Structure(padding=True)}, {"gate": Separable(2), "dropout": True},
    {"gate": Separable(2), "grid": Grid(2, 3, prefix=1)}, {"gate": Separable(2), "key_grid": Grid(2, 3, prefix=1)},
]  # fmt: skip


@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_what_is_refused_is_refused_in_these_words(change):
    """The table of refusals, row by row; what may be alike and is not refused, too."""
    problem = replace(CELLS, **change)
    found = planner.plan(problem)
    for kernel in planner.FAMILY:
        said = refusal(kernel.name, problem)
        assert said is None or dict(found.passed_over)[kernel.name] == said
    for fine in (CELLS, replace(CELLS, device="meta", mask=Structure(segments=1, padding=True)),
                 replace(CELLS, gate=Separable(2), mask=Structure(windows=(Windows((2, 2)),)))):  # fmt: skip
        for kernel in planner.FAMILY:
            refusal(kernel.name, fine)


def test_every_row_of_the_table_of_refusals_is_met():
    problems = [replace(CELLS, **change) for change in REFUSED]
    for name, rows in REFUSALS.items():
        for when, sentence in rows:
            assert sentence == "" or any(when(p) for p in problems), f"{name}: nothing meets {sentence!r}"


def test_without_the_compiled_kernels_everything_runs_and_the_plan_says_why(monkeypatch):
    monkeypatch.setattr(operators, "built", lambda: "the compiled kernels are not there (no compiler)")
    caches = (planner._planned, planner._remembered)
    try:
        for cache in caches:
            cache.cache_clear()
        q, k, v = heads(Grid(6))
        found = plan(q, k, v, mask=Causal())
        assert found.kernel == "sdpa"
        assert "not native    the compiled kernels are not there (no compiler)" in str(found)
        with pytest.raises(
            ValueError, match=r"kernel='native' was asked for, and it refuses: .* \(no compiler\)\. Change"
        ):
            attention(q, k, v, mask=Causal(), kernel="native")
        golden = attention(q, k, v, mask=Causal(), kernel="reference")
        assert (attention(q, k, v, mask=Causal()) - golden).abs().max() < 1e-12
        assert plan(q, k, v, return_lse=True).kernel == "reference"
    finally:
        for cache in caches:
            cache.cache_clear()


def test_a_module_that_does_not_load_is_a_sentence():
    """Whatever fails, importing locant does not, and the plan shows what it was."""
    code = """
import sys
sys.modules["locant._native"] = None  # an import of it now raises ImportError
import torch, locant
q = torch.randn(1, 1, 3, 4)
print(locant.plan(q, q, q))
print(locant.attention(q, q, q).isfinite().all().item())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("kernel    sdpa\n")
    assert "not native    the compiled kernels are not there (import of locant._native halted" in said
    assert "; install Locant where a C++ compiler is\n" in said
    assert said.endswith("True\n")


@pytest.mark.native
def test_costs_of_native_by_hand():
    """No bias is expanded and no mask is spelled out: FLOPs are those of the pairs that share a cell."""
    grid = Grid(5, 6)
    q, k, v = blank(2, 3, grid, 4)
    stream = 4 * 2 * 3 * 30 * 4 * 4  # q, k, v and the output, float32
    valid = torch.ones(2, 30, dtype=torch.bool)
    for mask in (None, Causal(), Padding(valid), Segments(valid.long())):
        free = plan(q, k, v, grid=grid, mask=mask, kernel="native")
        assert (free.cost.flops, free.cost.bytes, free.cost.held) == (2 * 2 * 3 * 900 * (4 + 4), stream, 0)
        assert free.cost.notes == ()
    numbers, table = 3 * 9 * 11, RelativeTable(grid, 3)
    for dtype, width in ((torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 4)):  # halves are computed in float32
        found = plan(*(x.to(dtype) for x in (q, k, v)), grid=grid, position=table, kernel="native").cost
        assert found.flops == 2 * 2 * 3 * 900 * (4 + 4)
        assert found.held == numbers * width
        assert found.bytes == stream * dtype.itemsize // 4 + found.held
        assert found.notes == (f"reads the table in place: {numbers * width:,} bytes, whatever the number of pairs",)
    rows = plan(
        *blank(2, 3, Grid(5, 6, prefix=2), 4), grid=Grid(5, 6, prefix=2), position=ALiBi(3, distance="manhattan")
    )
    assert rows.cost.flops == 2 * 2 * 3 * 32**2 * 8


@pytest.mark.native
def test_costs_of_native_under_windows_by_hand():
    """56 × 56 cut at 7, shifted by 3, and cells that a prefix joins as keys and as a cell of its own."""
    grid, mask = Grid(56, 56), Windows((7, 7), shift=(3, 3))
    q, k, v = blank(1, 3, grid, 32)
    found = plan(q, k, v, grid=grid, position=RelativeTable(Grid(7, 7), 3), mask=mask, kernel="native")
    assert found.cost.flops == 2 * 3 * (9 + 7 * 49 + 16) ** 2 * (32 + 32)
    assert found.cost.held == 3 * 13 * 13 * 4
    assert found.cost.bytes == 4 * (4 * 3 * 3136 * 32) + found.cost.held
    grid = Grid(4, 4, prefix=1)
    found = plan(*blank(1, 2, grid, 8), grid=grid, mask=Windows((2, 2)), kernel="native")
    assert found.cost.flops == 2 * 2 * (4 * 4 * (4 + 1) + 17) * 16
    gate = plan(*blank(2, 3, Grid(5, 6), 4), grid=Grid(5, 6), position=GatedPosition(3), kernel="native")
    assert gate.cost.flops == 2 * 2 * 3 * 900 * 8 + 2 * 2 * 3 * 30 * (5 + 6) * 4
    assert f"axis by axis: {3 * (25 + 36)} weights for the whole batch" in str(gate)


def test_costs_of_a_whole_grid_by_hand():
    """2 pictures, 3 heads of 4 channels on 5 × 6 cells: 900 pairs a head."""
    grid = Grid(5, 6)
    q, k, v = blank(2, 3, grid, 4)
    stream = 4 * 2 * 3 * 30 * 4 * 4  # q, k, v and the output, float32
    free = plan(q, k, v, grid=grid, kernel="sdpa").cost
    assert (free.flops, free.bytes, free.held) == (2 * 2 * 3 * 900 * (4 + 4), stream, 0)
    alibi = plan(q, k, v, grid=grid, position=ALiBi(3, distance="manhattan"), kernel="sdpa").cost
    assert (alibi.flops, alibi.held) == (free.flops, 3 * 900 * 4)
    assert alibi.bytes == stream + alibi.held
    table = RelativeTable(grid, 3)
    real = [torch.empty_like(x, device="cpu") for x in (q, k, v)]
    learned = plan(*real, grid=grid, position=table, kernel="sdpa").cost
    assert learned.held == 3 * 900 * 4 + 2 * (2 * 3 * 900) * 4, "torch's unfused path holds scores and weights"
    with torch.no_grad():
        assert plan(q, k, v, grid=grid, position=table, kernel="sdpa").cost.held == alibi.held
    dense = plan(q, k, v, grid=grid, position=table, kernel="reference").cost
    assert dense.flops == free.flops
    assert dense.held == 3 * (2 * 3 * 900) * 4


def test_costs_of_swins_windows_by_hand():
    """56 × 56 cut at 7, shifted by 3: per axis one cell of 3, seven of 7 and one of 4, so nine groups of cells."""
    grid, mask = Grid(56, 56), Windows((7, 7), shift=(3, 3))
    q, k, v = blank(1, 3, grid, 32)
    with torch.no_grad():
        found = plan(q, k, v, grid=grid, position=RelativeTable(Grid(7, 7), 3), mask=mask, kernel="sdpa")
    line = {3: 1, 7: 7, 4: 1}
    pairs = sum(a * b * (m * n) ** 2 for m, a in line.items() for n, b in line.items())
    assert pairs == (9 + 7 * 49 + 16) ** 2
    assert found.cost.flops == 2 * 3 * pairs * (32 + 32)
    assert found.cost.held == 4 * 3 * (9 + 49 + 16) ** 2, "one bias per group, never one per cell, never N × N"
    assert found.cost.bytes == 3 * 4 * (4 * 3 * 3136 * 32) + found.cost.held
    assert "expands the bias for 9 groups of equal cells" in str(found)
    with torch.no_grad():
        cells = Windows((7, 7))
        straight = plan(q, k, v, grid=grid, position=RelativeTable(Grid(7, 7), 3), mask=cells, kernel="sdpa")
    assert straight.cost.flops == 2 * 3 * 64 * 49**2 * 64
    assert "expands the bias for 1 group of equal cells" in str(straight)


def test_costs_of_prefix_tokens_by_hand():
    """They join every cell as keys, and as queries see everything."""
    grid = Grid(4, 4, prefix=1)
    q, k, v = blank(1, 2, grid, 8)
    found = plan(q, k, v, grid=grid, mask=Windows((2, 2)), kernel="sdpa")
    assert found.cost.flops == 2 * 2 * (4 * 4 * (4 + 1) + 17) * 16


def test_costs_of_a_gate_by_hand():
    """Its positional half costs O(N (H + W)), once more the content's only on small grids."""
    grid = Grid(5, 6)
    q, k, v = blank(2, 3, grid, 4)
    found = plan(q, k, v, grid=grid, position=GatedPosition(3), kernel="sdpa")
    content = 2 * 2 * 3 * 900 * 8
    assert found.cost.flops == content + 2 * 2 * 3 * 30 * (5 + 6) * 4
    assert f"axis by axis: {3 * (25 + 36)} weights for the whole batch" in str(found)


def test_masks_that_are_spelled_out_are_counted():
    grid, count, batch = Grid(4, 6), 2, 3
    q, k, v = blank(batch, count, grid, 8)
    valid = torch.ones(batch, 24, dtype=torch.bool)
    alibi = ALiBi(count, distance="manhattan")
    bias, line = 4 * count * 24 * 24, Grid(24)

    def held(grid, mask, position=None):
        return plan(q, k, v, grid=grid, mask=mask, position=position, kernel="sdpa").cost.held

    assert held(line, Causal()) == 0, "torch's own is_causal"
    assert held(grid, Causal()) == 24 * 24
    assert held(grid, Padding(valid)) == 0, "a row of keys"
    assert held(grid, Segments(valid.long())) == batch * 24 * 24
    assert held(grid, Causal(), alibi) == 2 * bias
    assert held(grid, Padding(valid), alibi) == bias + batch * bias, "-inf in a bias of each sample's own"
    cells = Windows((2, 3))
    assert held(grid, cells & Padding(valid), alibi) == 4 * count * 36 + batch * 4 * count * 4 * 36
    shown = str(plan(q, k, v, grid=grid, mask=Padding(valid), position=alibi, kernel="sdpa"))
    assert "spells out padding pair by pair" in shown


def test_it_reads_no_values():
    """Meta tensors have none; the same plan comes out for real ones."""
    for scheme in SCHEMES:
        real = heads(scheme.grid, dtype=torch.float32)
        meta = [x.to("meta") for x in real]
        for mask in (None, Windows((2,) * scheme.grid.axes), Causal()):
            arguments = {"grid": scheme.grid, "position": scheme.make(torch.float32), "mask": mask}
            one, other = plan(*real, **arguments), plan(*meta, **arguments)
            assert (one.kernel, one.cost.flops, one.passed_over) == (other.kernel, other.cost.flops, other.passed_over)


def test_it_is_cached_and_the_cache_is_bounded():
    caches = (planner._planned, planner._remembered)
    assert all(0 < cache.cache_info().maxsize <= 4096 for cache in caches)
    problem = Problem(1, 1, 1, 4, 4, Grid(3), Grid(3))
    assert hash(problem) == hash(Problem(1, 1, 1, 4, 4, Grid(3), Grid(3)))
    assert planner.plan(problem) is planner.plan(Problem(1, 1, 1, 4, 4, Grid(3), Grid(3)))
    for size in range(1100):
        planner.plan(Problem(1, 1, 1, 4, 4, Grid(size), Grid(size)))
    assert planner._planned.cache_info().currsize <= planner._planned.cache_info().maxsize


def test_it_shows_itself():
    q, k, v = heads(Grid(3))
    found = plan(q, k, v)
    assert found.kernel in ("native", "sdpa")
    assert str(found).startswith(f"kernel    {found.kernel}\ncost      ")
    assert "not reference the definition, dense" in str(found)
    assert found._repr_html_().startswith(f"<pre>kernel    {found.kernel}")
    assert "×" in plan(q, k, v, kernel="reference")._repr_html_()


class Eager:
    """A kernel that can do everything at no cost, and that nobody has measured."""

    name = "eager"
    refuses = staticmethod(lambda problem: None)
    work = staticmethod(lambda problem: Work(0, 0, 0))
    run = staticmethod(reference.run)


@pytest.mark.parametrize("first", [True, False])
def test_a_kernel_without_constants_is_listed_and_never_chosen_by_itself(monkeypatch, first):
    q, k, v = heads(Grid(6))
    before = plan(q, k, v), plan(q, k, v, return_lse=True, mask=Pairs(torch.ones(6, 6, dtype=torch.bool)))
    monkeypatch.setattr(planner, "FAMILY", (Eager(), *planner.FAMILY) if first else (*planner.FAMILY, Eager()))
    after = plan(q, k, v), plan(q, k, v, return_lse=True, mask=Pairs(torch.ones(6, 6, dtype=torch.bool)))
    sentence = "exact as well, and never measured on cpu: it runs when asked for by name"
    for one, other in zip(before, after, strict=True):
        assert other.kernel == one.kernel
        assert dict(other.passed_over) == {**dict(one.passed_over), "eager": sentence}
    golden = attention(q, k, v, kernel="reference")
    assert torch.equal(attention(q, k, v, kernel="eager"), golden)
    assert plan(q, k, v, kernel="eager").kernel == "eager"


def test_a_device_that_was_never_measured_has_no_seconds_and_runs_torchs_attention():
    on_gpu = replace(CELLS, device="cuda")
    assert speed.seconds(on_gpu, sdpa) is None
    assert speed.seconds(CELLS, sdpa) > 0
    assert planner.plan(on_gpu).kernel == "sdpa"
    assert planner.plan(replace(on_gpu, lse=True)).kernel == "reference"
    assert "planned as on a CPU" in str(planner.plan(replace(CELLS, device="meta")))
    assert "planned as on a CPU" not in str(planner.plan(CELLS))
