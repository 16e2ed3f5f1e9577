"""Content: the global layer of Segment Anything's encoder, and Transformer-XL with a memory, against what models run.

SAM's code makes two tensors of its tables and q, and adds them to one of N × N, eager or as the bias of SDPA;
Transformer-XL's makes [N, 2 N] products of q and sinusoids, which it shifts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from locant import Causal, Grid
from locant.measuring.memory import extra, peak
from locant.measuring.workload import Workload
from locant.positions.decomposed import Decomposed
from locant.positions.transformer_xl import TransformerXL
from rows.row import Row, Setting, exact, fresh, near, of_ratio

SIDE, HEADS, HEAD_DIM = 64, 12, 64  # SAM ViT-B at 1,024 pixels
SEGMENT, MEMORY = 1024, 1024
GB = 1e9


def drawn(side: int, heads: int, head_dim: int) -> Workload:
    fresh()
    grid = Grid(side, side)
    return Workload.draw(1, heads, head_dim, grid, position=Decomposed(grid, heads, head_dim, init_std=0.3))


def without(work: Workload) -> Workload:
    return Workload(work.q, work.k, work.v, work.dout, work.grid, work.key_grid, mask=work.mask)


def published_bias(q: Tensor, tables: list[Tensor], side: int) -> Tensor:
    """[batch, heads, queries, keys], as SAM's `add_decomposed_rel_pos` makes it."""
    place = torch.arange(side)
    offsets = place[:, None] - place[None] + side - 1
    rows, columns = (table[offsets] for table in tables)
    cells = q.unflatten(2, (side, side))
    by_row = torch.einsum("bnhwc,hkc->bnhwk", cells, rows)
    by_column = torch.einsum("bnhwc,wkc->bnhwk", cells, columns)
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(-2).flatten(2, 3)


def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias).softmax(-1) @ v


def gradients(work: Workload, run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(run(), [work.q, work.k, work.v, *work.learned], work.dout)


def picture(setting: Setting) -> Iterator[Row]:
    """SAM's global layer, forward and trained."""
    exact(drawn(16, 2, HEAD_DIM), train=True)
    work = drawn(SIDE, HEADS, HEAD_DIM)
    q, k, v, tables = work.q, work.k, work.v, list(work.position.tables)

    def with_sdpa() -> Tensor:
        return scaled_dot_product_attention(q, k, v, published_bias(q, tables, SIDE))

    def unfused() -> Tensor:
        return eager(q, k, v, published_bias(q, tables, SIDE))

    what = f"SAM ViT-B global layer, {SIDE} × {SIDE}, {HEADS} heads, d {HEAD_DIM}"
    with torch.no_grad():
        near("SDPA with the bias", with_sdpa(), work.forward("native"))
        times = setting.times({
            "native": lambda: work.forward("native"), "native, none": lambda: without(work).forward("native"),
            "SDPA": with_sdpa, "eager": unfused,
        })  # fmt: skip
    for other, target in (("SDPA", 2.5), ("eager", None)):
        against = "SDPA, bias materialised" if other == "SDPA" else other
        yield of_ratio("content", f"forward, {what}", against, times.ratio(other, "native"), times, target=target)
    yield of_ratio(
        "content", f"forward, {what}", "the same kernel without position", times.ratio("native", "native, none"), times,
        target=1.25, most=True,
    )  # fmt: skip
    for one, other in zip(gradients(work, unfused), work.gradients("native"), strict=True):
        near("gradients, eager", one, other, 1e-3)
    times = setting.times({
        "native": lambda: work.gradients("native"), "native, none": lambda: without(work).gradients("native"),
        "SDPA": lambda: gradients(work, with_sdpa), "eager": lambda: gradients(work, unfused),
    })  # fmt: skip
    best = min(("SDPA", "eager"), key=times.seconds)
    yield of_ratio("content", f"forward + backward, {what}", best, times.ratio(best, "native"), times, target=5.0)
    yield of_ratio(
        "content", f"forward + backward, {what}", "the same kernel without position",
        times.ratio("native", "native, none"), times,
    )  # fmt: skip


def published_xl(work: Workload) -> Tensor:
    """As `mem_transformer.py` computes it: products with 2 N sinusoids, shifted, and a mask."""
    xl, (q, k, v), keys = work.position, (work.q, work.k, work.v), work.key_grid.tokens
    u, bias = xl.biases()
    told = xl.r_net(xl.distances(keys - 1)[keys - 1 :].flip(0)).unflatten(-1, (xl.heads, -1)).transpose(0, 1)
    by_content, by_distance = (q + u[:, None]) @ k.mT, (q + bias[:, None]) @ told.mT
    queries = q.shape[2]
    shifted = pad(by_distance, (1, 0)).reshape(*q.shape[:2], keys + 1, queries)[:, :, 1:].reshape(by_distance.shape)
    hidden = torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)
    logits = ((by_content + shifted) / math.sqrt(q.shape[3])).masked_fill(hidden, -torch.inf)
    return logits.softmax(-1) @ v


def drawn_xl(segment: int, memory: int, heads: int = 8, batch: int = 1) -> Workload:
    fresh()
    whole, xl = Grid(memory + segment), TransformerXL(heads * HEAD_DIM, heads, init_std=0.05)
    return Workload.draw(
        batch, heads, HEAD_DIM, whole[memory:] if memory else whole, key_grid=whole, position=xl, mask=Causal()
    )


def sequence(setting: Setting) -> Iterator[Row]:
    """Transformer-XL, a segment of 1,024 with a memory of 1,024, trained; and the same with every distance."""
    exact(drawn_xl(100, 60, 2), train=True)
    work = drawn_xl(SEGMENT, MEMORY)
    what = f"Transformer-XL, {SEGMENT:,} + {MEMORY:,} of memory, 8 heads, d {HEAD_DIM}"
    for one, other in zip(gradients(work, lambda: published_xl(work)), work.gradients("native"), strict=True):
        near("gradients, eager", one, other, 1e-3)
    times = setting.times({
        "native": lambda: work.gradients("native"), "native, none": lambda: without(work).gradients("native"),
        "eager": lambda: gradients(work, lambda: published_xl(work)),
    })  # fmt: skip
    yield of_ratio(
        "content", f"forward + backward, {what}", "eager with shifted rows", times.ratio("eager", "native"), times,
        target=3.0,
    )  # fmt: skip
    yield of_ratio(
        "content", f"forward + backward, {what}", "the same kernel without position",
        times.ratio("native", "native, none"), times, target=1.6, most=True,
    )  # fmt: skip
    for named, free in (("in order", work), ("both ways", Workload(*_free(work)))):
        times = setting.times({
            "native": lambda free=free: free.forward("native"),
            "native, none": lambda free=free: without(free).forward("native"),
        })  # fmt: skip
        yield of_ratio(
            "content", f"forward, {what}, {named}", "the same kernel without position",
            times.ratio("native", "native, none"), times, target=1.6, most=True,
        )  # fmt: skip


def _free(work: Workload) -> tuple[object, ...]:
    return work.q, work.k, work.v, work.dout, work.grid, work.key_grid, work.position


def memory(setting: Setting) -> Iterator[Row]:
    """Of SAM's layer, forward, beside the size of q, k and v."""
    work, small = drawn(SIDE, HEADS, HEAD_DIM), drawn(7, HEADS, HEAD_DIM)
    size = sum(x.nbytes for x in (work.q, work.k, work.v))
    small.forward("native"), torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # threads and their buffers are there
    ours = extra(lambda: work.forward("native"))
    if ours is not None:
        yield Row(
            "content", f"extra memory, forward, SAM ViT-B global layer, {SIDE} × {SIDE}",
            f"the size of q + k + v ({size / 1e6:.0f} MB)", ours / size, target=1.5, most=True,
        )  # fmt: skip


def long_picture(setting: Setting) -> Iterator[Row]:
    """65,536 tokens that meet decomposed vectors, trained, beyond what importing takes."""
    yield from _trained(lambda: drawn(256, 1, HEAD_DIM), "decomposed, N = 65,536, 1 head of 64", 1.0)


def long_sequence(setting: Setting) -> Iterator[Row]:
    yield from _trained(lambda: drawn_xl(32768, 0), "Transformer-XL, N = 32,768, 8 heads of 64", 2.0)


def _trained(draw: Callable[[], Workload], what: str, target: float) -> Iterator[Row]:
    work = draw()
    drawn_xl(32, 0).gradients("native")
    found = extra(lambda: work.gradients("native"))
    if found is not None and peak() is not None:
        yield Row(
            "content", f"extra memory, forward + backward, {what}", "", found / GB, target=target, most=True, unit="GB"
        )
