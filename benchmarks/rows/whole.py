"""Attention over a whole grid with a learned table: against itself without position, and against torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from locant import Grid, RelativeTable
from locant.measuring.workload import Workload
from rows.row import Row, Setting, exact, fresh, near, of_ratio

SHAPES = ((16, 12, 14), (2, 12, 28), (1, 8, 56))  # batch, heads, side of the map
DIMS = (64, 32)
BIASED = {64: 1.55, 32: 1.75}
LEARNED = {196: 1.9, 784: 4.3, 3136: 7.4}
Calls = dict[str, Callable[[], object]]


def drawn(
    batch: int, heads: int, side: int, head_dim: int, dtype: torch.dtype = torch.float32, apart: bool = False
) -> Workload:
    """Rows token by token, as a projection leaves them, or each head `apart`, contiguous."""
    fresh()
    grid = Grid(side, side)
    position = RelativeTable(grid, heads, init_std=0.5)
    work = Workload.draw(batch, heads, head_dim, grid, position=position.to(dtype), dtype=dtype)
    if not apart:
        return work
    q, k, v = (x.detach().contiguous().requires_grad_() for x in (work.q, work.k, work.v))
    return replace(work, q=q, k=k, v=v)


def without(work: Workload) -> Workload:
    return Workload(work.q, work.k, work.v, work.dout, work.grid, work.key_grid)


def flat_index(side: int) -> Tensor:
    """Where Swin's flat table has the bias of each pair: [queries · keys]."""
    place = Grid(side, side).coordinates()
    offset = place[:, None] - place[None] + side - 1
    return (offset[..., 0] * (2 * side - 1) + offset[..., 1]).flatten()


def biased(table: Tensor, index: Tensor, tokens: int) -> Tensor:
    """[1, heads, queries, keys] from a flat table [offsets, heads], as Swin, BEiT and timm gather it."""
    return table[index].view(tokens, tokens, -1).permute(2, 0, 1).contiguous()[None]


def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As timm computes it unfused."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias).softmax(-1) @ v


def forward(setting: Setting, apart: bool = False) -> Iterator[Row]:
    for batch, heads, side in SHAPES:
        for head_dim in DIMS:
            yield from _forward(setting, batch, heads, side, head_dim, apart)


def _forward(setting: Setting, batch: int, heads: int, side: int, head_dim: int, apart: bool) -> Iterator[Row]:
    work = drawn(batch, heads, side, head_dim, apart=apart)
    exact(work, train=False)
    plain, tokens = without(work), side * side
    q, k, v = (x.detach() for x in (work.q, work.k, work.v))
    flat = work.position.table.detach().flatten(1).T.contiguous()
    bias = biased(flat, flat_index(side), tokens)  # expanded beforehand, four axes
    near("SDPA with a bias", scaled_dot_product_attention(q, k, v, bias), work.forward("native"))
    times = setting.times({
        "native, table": lambda: work.forward("native"),
        "native, none": lambda: plain.forward("native"),
        "SDPA, none": lambda: scaled_dot_product_attention(q, k, v),
        "SDPA, bias": lambda: scaled_dot_product_attention(q, k, v, bias),
    })  # fmt: skip
    what = f"forward, table, N = {tokens:,}, d {head_dim}{', heads apart' * apart}"
    large = tokens > 196
    rows = (
        ("the same kernel without position", "native, table", "native, none", 1.06 if large else None, True),
        ("SDPA, bias expanded beforehand", "SDPA, bias", "native, table", BIASED[head_dim] if large else None, False),
        ("SDPA without any bias", "SDPA, none", "native, table", 1.3, False),
    )
    for against, over, under, target, most in rows:
        yield of_ratio(
            "forward" + "-apart" * apart, what, against, times.ratio(over, under), times, target=target, most=most
        )


def train(setting: Setting, apart: bool = False) -> Iterator[Row]:
    for batch, heads, side in SHAPES:
        for head_dim in DIMS:
            yield from _train(setting, batch, heads, side, head_dim, apart)


def _train(setting: Setting, batch: int, heads: int, side: int, head_dim: int, apart: bool) -> Iterator[Row]:
    work = drawn(batch, heads, side, head_dim, apart=apart)
    exact(work, train=True)
    plain, tokens, q, k, v = without(work), side * side, work.q, work.k, work.v
    flat = work.position.table.detach().flatten(1).T.contiguous().requires_grad_()
    index = flat_index(side)

    def learned(attend: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(q, k, v, biased(flat, index, tokens)), (q, k, v, flat), work.dout)

    calls: Calls = {
        "native, table": lambda: work.gradients("native"),
        "native, none": lambda: plain.gradients("native"),
        "SDPA, none": lambda: torch.autograd.grad(scaled_dot_product_attention(q, k, v), (q, k, v), work.dout),
        "SDPA, table": lambda: learned(scaled_dot_product_attention),
        "eager, table": lambda: learned(eager),
    }
    for attend in (scaled_dot_product_attention, eager):
        *theirs, dflat = learned(attend)
        *ours, dtable = work.gradients("native")
        for found, own in zip([*theirs, dflat.T.reshape(dtable.shape)], [*ours, dtable], strict=True):
            near("gradients with a learned table", found, own)
    times = setting.times(calls)
    peer = times.fastest("SDPA, table", "eager, table")
    what = f"forward + backward, table, N = {tokens:,}, d {head_dim}{', heads apart' * apart}"
    rows = (
        ("the same kernel without position", "native, table", "native, none", 1.09 if tokens > 196 else None, True),
        (f"learned table: {peer.split(',')[0]}", peer, "native, table", LEARNED[tokens], False),
        ("SDPA without any bias", "SDPA, none", "native, table", 1.2, False),
    )
    for against, over, under, target, most in rows:
        yield of_ratio(
            "train" + "-apart" * apart, what, against, times.ratio(over, under), times, target=target, most=most
        )


def bfloat16(setting: Setting) -> Iterator[Row]:
    """Meant for matrix units; without them the row shows what comes out."""
    amx = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_amx_tile_supported()
    for batch, heads, side in SHAPES[1:]:
        for head_dim in DIMS:
            work = drawn(batch, heads, side, head_dim, torch.bfloat16)
            exact(work, train=False)
            q, k, v = (x.detach() for x in (work.q, work.k, work.v))
            flat = work.position.table.detach().flatten(1).T.contiguous()
            bias = biased(flat, flat_index(side), side * side)
            times = setting.times({
                "native, table": lambda w=work: w.forward("native"),
                "SDPA, none": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v),
                "SDPA, bias": lambda q=q, k=k, v=v, b=bias: scaled_dot_product_attention(q, k, v, b),
            })  # fmt: skip
            what = f"bfloat16 forward, table, N = {side * side:,}, d {head_dim}"
            note = "" if amx else "a processor without AMX, which the target is set for"
            for peer, target in (("SDPA, none", 1.2), ("SDPA, bias", 1.7)):
                ratio = times.ratio(peer, "native, table")
                against = "SDPA bfloat16 without any bias" if peer.endswith("none") else "SDPA bfloat16 with the bias"
                yield of_ratio("bfloat16", what, against, ratio, times, target=target, note=note)


def share(setting: Setting) -> Iterator[Row]:
    """Of the fastest float32 matrix product in the same run."""
    batch, heads, side, head_dim = 1, 8, 56, 64
    work = drawn(batch, heads, side, head_dim)
    exact(work, train=False)
    sides = (1024, 2048)
    squares = {f"product {n}": torch.randn(n, n) for n in sides}
    times = setting.times({
        "native, table": lambda: work.forward("native"),
        **{name: (lambda x=x: x @ x) for name, x in squares.items()},
    })  # fmt: skip
    best = max(2 * n**3 / min(s.seconds for s in times.samples[f"product {n}"]) for n in sides)
    flops = 4 * work.pairs * head_dim
    quiet = [s.seconds for s in times.samples["native, table"] if setting.gate.accepts(s)]
    shares = sorted(100 * flops / t / best for t in quiet or [times.seconds("native, table")])
    middle = 100 * flops / times.seconds("native, table") / best
    ms = {name: round(1e3 * times.seconds(name), 4) for name in times.samples}
    yield Row(
        "share", f"share of the best float32 matrix product, forward, table, N = {side * side:,}, d {head_dim}",
        f"{best / 1e9:.0f} GF/s", middle, shares[len(shares) // 4], shares[3 * len(shares) // 4], len(shares),
        bool(quiet), target=85, unit="%", ms=ms,
    )  # fmt: skip
