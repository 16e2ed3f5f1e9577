"""A call is read once: positions in any container, on q's device; a scale that learns; hooks that are scoped."""

from __future__ import annotations

import pytest
import torch
from schemes import heads
from torch import nn

from locant import (
    ALiBi,
    Causal,
    GatedPosition,
    Grid,
    LogCPB,
    RelativeTable,
    Rotary,
    Shaw,
    T5Buckets,
    TransformerXL,
    attention,
    attention_packed,
    hooks,
    plan,
    planner,
    weights,
)

KERNELS = ("auto", "native", "sdpa", "reference")


# --- a scale that is a tensor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1), (1, 2, 1, 1)], ids=str)
@pytest.mark.parametrize("position", ["none", "table", "xl", "shaw"])
def test_a_scale_that_is_a_tensor_gets_its_gradient(kernel, shape, position):
    q, k, v = heads(Grid(6))
    count, dim = q.shape[1], q.shape[3]
    make = {
        "none": lambda: None,
        "table": lambda: RelativeTable(Grid(6), count, init_std=1.0).double(),
        "xl": lambda: TransformerXL(8, count, dim, init_std=1.0).double(),
        "shaw": lambda: Shaw(count, dim, 3, biases=True, init_std=1.0).double(),
    }[position]
    sizes = tuple(count if n == 2 else n for n in shape)
    scheme, scale = make(), torch.linspace(0.3, 0.7, max(1, torch.Size(sizes).numel()), dtype=q.dtype).reshape(sizes)
    arguments = {"grid": Grid(6), "position": scheme}
    refused = kernel != "auto" and planner.named(kernel).refuses(plan(q, k, v, **arguments).problem) is not None
    chosen = "auto" if refused else kernel

    def loss(scale: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v, scale=scale, kernel=chosen, **arguments).square().sum()

    learned = scale.clone().requires_grad_()
    loss(learned).backward()
    step = 1e-6
    for index in range(scale.numel()):
        change = torch.zeros_like(scale)
        change.view(-1)[index] = step
        slope = (loss(scale + change) - loss(scale - change)) / (2 * step)
        assert torch.isclose(learned.grad.view(-1)[index], slope, rtol=1e-6, atol=1e-7)
    if scale.numel() == 1:
        number = attention(q, k, v, scale=float(scale), kernel=chosen, **arguments)
        assert (attention(q, k, v, scale=scale, kernel=chosen, **arguments) - number).abs().max() < 1e-12


def test_a_scale_per_head_is_that_of_each_head_alone():
    q, k, v = heads(Grid(6))
    scales = torch.linspace(0.2, 0.9, q.shape[1], dtype=q.dtype)
    out, p = attention(q, k, v, scale=scales[:, None, None]), weights(q, k, scale=scales[:, None, None])
    for h, one in enumerate(scales.tolist()):
        alone = [x if x.shape[1] == 1 else x[:, h : h + 1] for x in (q, k, v)]
        assert (out[:, h : h + 1] - attention(*alone, scale=one)).abs().max() < 1e-12
        assert (p[:, h : h + 1] - weights(*alone[:2], scale=one)).abs().max() < 1e-12
    same = attention(q, q, q, scale=scales[:, None, None])
    packed = attention_packed(torch.stack([q] * 3, dim=3).permute(0, 2, 3, 1, 4), scale=scales[:, None, None])
    assert (packed - same.transpose(1, 2).flatten(2)).abs().max() < 1e-12


@pytest.mark.plain
@pytest.mark.parametrize(
    "scale", ["auto", True, [0.5], torch.ones(5), torch.ones(2, 1), torch.tensor(2), torch.ones((), device="meta")]
)
def test_a_scale_that_is_none_is_refused(scale):
    q = torch.randn(1, 2, 6, 8)
    with pytest.raises(ValueError, match=r"scale needs a number, or a floating tensor .*; got .*\. Leave it out"):
        attention(q, q, q, scale=scale)


# --- positions -------------------------------------------------------------------------------------------------------


def test_positions_come_in_any_sequence_and_in_a_list_of_modules():
    q, k, v = heads(Grid(6))
    pair = [Rotary(q.shape[3]), RelativeTable(Grid(6), q.shape[1]).double()]
    golden = attention(q, k, v, grid=Grid(6), position=tuple(pair))
    assert torch.equal(attention(q, k, v, grid=Grid(6), position=pair), golden)
    assert torch.equal(attention(q, k, v, grid=Grid(6), position=nn.ModuleList(pair)), golden)
    assert torch.equal(attention(q, k, v, grid=Grid(6), position=nn.ModuleList()), attention(q, k, v))


META = {
    "RelativeTable": lambda: RelativeTable(Grid(6), 2),
    "ALiBi": lambda: ALiBi(2),
    "T5Buckets": lambda: T5Buckets(2),
    "LogCPB": lambda: LogCPB(Grid(6), 2),
    "TransformerXL": lambda: TransformerXL(8, 2),
    "GatedPosition": lambda: GatedPosition(2),
}


@pytest.mark.parametrize("kernel", ["auto", "native", "sdpa", "reference"])
@pytest.mark.parametrize("name", META)
def test_a_position_on_another_device_is_refused_by_name(name, kernel):
    with torch.device("meta"):
        there = META[name]()
    axes = 2 if name == "GatedPosition" else 1
    grid = Grid(6, 1) if axes == 2 else Grid(6)
    q = torch.randn(1, 2, 6, 4)
    with pytest.raises(ValueError, match=rf"one device; {name} is on meta, and q on cpu\. Move it .*to_empty"):
        attention(q, q, q, grid=grid, position=there, kernel=kernel)
    with pytest.raises(ValueError, match=rf"{name} is on meta, and q on cpu"):
        plan(q, q, q, grid=grid, position=there)
    on_meta = q.to("meta")
    assert attention(on_meta, on_meta, on_meta, grid=grid, position=there).is_meta
    assert plan(on_meta, on_meta, on_meta, grid=grid, position=META[name]()).kernel
    with pytest.raises(ValueError, match=rf"{name} is on cpu, and q on meta\. Move it with"):
        attention(on_meta, on_meta, on_meta, grid=grid, position=META[name]())


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_hooks_see_the_call_in_their_order_and_may_stand_in_for_it():
    q, k, v = heads(Grid(6))
    golden, seen = attention(q, k, v, mask=Causal()), []

    def outer(call, proceed):
        seen.append(("outer", call.problem.mask.causal))
        out, lse = proceed()
        return 2 * out, lse

    def inner(call, proceed):
        seen.append(("inner", call.kernel))
        return proceed()

    with hooks.attending(outer), hooks.attending(inner):
        attention(q, k, v, mask=Causal(), kernel="reference")
        doubled = attention(q, k, v, mask=Causal())
    assert seen == [("outer", (Causal(),)), ("inner", "reference"), ("outer", (Causal(),)), ("inner", "auto")]
    assert torch.equal(doubled, 2 * golden)
    assert torch.equal(attention(q, k, v, mask=Causal()), golden)
    assert len(seen) == 4
    with pytest.raises(KeyError), hooks.attending(lambda call, proceed: {}["nothing"]):
        attention(q, k, v)
    assert torch.equal(attention(q, k, v, mask=Causal()), golden)
