"""Choosing is a value that says why: sentences, costs by hand, and nothing in silence."""

from __future__ import annotations

import pytest
import torch
from exactness import MASKS
from schemes import SCHEMES, heads, parts

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
    plan,
    planner,
)
from locant.masks import Structure
from locant.problem import Problem

ABSENT = {name for name in planner.KNOWN if name not in {k.name for k in planner.FAMILY}}


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


@pytest.mark.parametrize(("mask", "options", "sentence"), GATED)
def test_a_refusal_is_one_sentence_everywhere(mask, options, sentence):
    """What the kernel says, the plan prints, and asking for it by name raises."""
    options = dict(options)
    grid = Grid(2, 3, prefix=options.pop("prefix", 0))
    q, k, v = heads(grid, batch=1)
    arguments = {"grid": grid, "position": GatedPosition(2), "mask": mask, **options}
    found = plan(q, k, v, **arguments)
    assert found.kernel == "reference"
    why = dict(found.passed_over)["sdpa"]
    assert sentence in why
    assert f"not sdpa      {why}" in str(found)
    assert "kernel    reference" in str(found)
    for ask in (attention, plan):
        with pytest.raises(ValueError, match="it refuses") as caught:
            ask(q, k, v, kernel="sdpa", **arguments)
        assert why in str(caught.value)
        assert 'leave kernel="auto"' in str(caught.value)


def test_log_sum_exp_is_refused_by_sdpa():
    q, k, v = heads(Grid(6))
    found = plan(q, k, v, return_lse=True)
    assert found.kernel == "reference"
    assert "log-sum-exp" in dict(found.passed_over)["sdpa"]
    with pytest.raises(ValueError, match="keeps its log-sum-exp to itself"):
        attention(q, k, v, return_lse=True, kernel="sdpa")


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_kernels_that_this_build_has_not(name):
    q, k, v = heads(Grid(6))
    why = dict(plan(q, k, v).passed_over)[name]
    assert why == f"this build of Locant has no {name} kernel"
    with pytest.raises(ValueError, match=f"kernel='{name}' was asked for, and it refuses: {why}"):
        attention(q, k, v, kernel=name)


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
    assert {found.kernel, *dict(found.passed_over)} == set(planner.KNOWN)
    assert all(len(why) > 20 for _, why in found.passed_over)
    gated = any(isinstance(p, GatedPosition) for p in parts(arguments["position"]))
    beyond = Structure.of(arguments["mask"]).beyond_windows()
    assert found.kernel == ("reference" if gated and (beyond or scheme.grid.prefix) else "sdpa")
    assert plan(q, k, v, kernel="reference", **arguments).kernel == "reference"
    by_name = dict(plan(q, k, v, kernel="reference", **arguments).passed_over)["sdpa"]
    assert by_name == ("reference was asked for by name" if found.kernel == "sdpa" else dict(found.passed_over)["sdpa"])


def test_costs_of_a_whole_grid_by_hand():
    """2 pictures, 3 heads of 4 channels on 5 × 6 cells: 900 pairs a head."""
    grid = Grid(5, 6)
    q, k, v = blank(2, 3, grid, 4)
    stream = 4 * 2 * 3 * 30 * 4 * 4  # q, k, v and the output, float32
    free = plan(q, k, v, grid=grid).cost
    assert (free.flops, free.bytes, free.held) == (2 * 2 * 3 * 900 * (4 + 4), stream, 0)
    alibi = plan(q, k, v, grid=grid, position=ALiBi(3, distance="manhattan")).cost
    assert (alibi.flops, alibi.held) == (free.flops, 3 * 900 * 4)
    assert alibi.bytes == stream + alibi.held
    table = RelativeTable(grid, 3)
    learned = plan(*(torch.empty_like(x, device="cpu") for x in (q, k, v)), grid=grid, position=table).cost
    assert learned.held == 3 * 900 * 4 + 2 * (2 * 3 * 900) * 4, "torch's unfused path holds scores and weights"
    with torch.no_grad():
        assert plan(q, k, v, grid=grid, position=table).cost.held == alibi.held
    dense = plan(q, k, v, grid=grid, position=table, kernel="reference").cost
    assert dense.flops == free.flops
    assert dense.held == 3 * (2 * 3 * 900) * 4


def test_costs_of_swins_windows_by_hand():
    """56 × 56 cut at 7, shifted by 3: per axis one cell of 3, seven of 7 and one of 4, so nine groups of cells."""
    grid, mask = Grid(56, 56), Windows((7, 7), shift=(3, 3))
    q, k, v = blank(1, 3, grid, 32)
    with torch.no_grad():
        found = plan(q, k, v, grid=grid, position=RelativeTable(Grid(7, 7), 3), mask=mask)
    line = {3: 1, 7: 7, 4: 1}
    pairs = sum(a * b * (m * n) ** 2 for m, a in line.items() for n, b in line.items())
    assert pairs == (9 + 7 * 49 + 16) ** 2
    assert found.cost.flops == 2 * 3 * pairs * (32 + 32)
    assert found.cost.held == 4 * 3 * (9 + 49 + 16) ** 2, "one bias per group, never one per cell, never N × N"
    assert found.cost.bytes == 3 * 4 * (4 * 3 * 3136 * 32) + found.cost.held
    assert "expands the bias for 9 groups of equal cells" in str(found)
    with torch.no_grad():
        straight = plan(q, k, v, grid=grid, position=RelativeTable(Grid(7, 7), 3), mask=Windows((7, 7)))
    assert straight.cost.flops == 2 * 3 * 64 * 49**2 * 64
    assert "expands the bias for 1 group of equal cells" in str(straight)


def test_costs_of_prefix_tokens_by_hand():
    """They join every cell as keys, and as queries see everything."""
    grid = Grid(4, 4, prefix=1)
    q, k, v = blank(1, 2, grid, 8)
    found = plan(q, k, v, grid=grid, mask=Windows((2, 2)))
    assert found.cost.flops == 2 * 2 * (4 * 4 * (4 + 1) + 17) * 16


def test_costs_of_a_gate_by_hand():
    """Its positional half costs O(N (H + W)), once more the content's only on small grids."""
    grid = Grid(5, 6)
    q, k, v = blank(2, 3, grid, 4)
    found = plan(q, k, v, grid=grid, position=GatedPosition(3))
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
        return plan(q, k, v, grid=grid, mask=mask, position=position).cost.held

    assert held(line, Causal()) == 0, "torch's own is_causal"
    assert held(grid, Causal()) == 24 * 24
    assert held(grid, Padding(valid)) == 0, "a row of keys"
    assert held(grid, Segments(valid.long())) == batch * 24 * 24
    assert held(grid, Causal(), alibi) == 2 * bias
    assert held(grid, Padding(valid), alibi) == bias + batch * bias, "-inf in a bias of each sample's own"
    cells = Windows((2, 3))
    assert held(grid, cells & Padding(valid), alibi) == 4 * count * 36 + batch * 4 * count * 4 * 36
    assert "spells out padding pair by pair" in str(plan(q, k, v, grid=grid, mask=Padding(valid), position=alibi))


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
    caches = (planner.plan, planner._remembered)
    assert all(0 < cache.cache_info().maxsize <= 4096 for cache in caches)
    problem = Problem(1, 1, 1, 4, 4, Grid(3), Grid(3))
    assert hash(problem) == hash(Problem(1, 1, 1, 4, 4, Grid(3), Grid(3)))
    assert planner.plan(problem) is planner.plan(Problem(1, 1, 1, 4, 4, Grid(3), Grid(3)))
    for size in range(1100):
        planner.plan(Problem(1, 1, 1, 4, 4, Grid(size), Grid(size)))
    assert planner.plan.cache_info().currsize <= planner.plan.cache_info().maxsize


def test_it_shows_itself():
    q, k, v = heads(Grid(3))
    shown = str(plan(q, k, v))
    assert shown.startswith("kernel    sdpa\ncost      ")
    assert "not reference the definition, dense" in shown
    assert plan(q, k, v)._repr_html_().startswith("<pre>kernel    sdpa")
    assert "×" in plan(q, k, v, kernel="reference")._repr_html_()
