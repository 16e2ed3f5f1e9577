"""The kernels on tensors: `forward` and `backward` take what the operators take (locant.operators).

Windows of at most 64 tokens, alone, run in the kernels of locant.gpu.windows; all else in the general ones. What a
layout says lies on the device once, in caches that are filled at the first call; no call waits for the device, and
every tensor is torch's, so that a CUDA graph can hold all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locant import places
from locant.frames import frames
from locant.gpu import general, launches, learned, lists, windows
from locant.gpu.chips import chip_of, interpreted
from locant.gpu.lists import Numbers
from locant.layout import read


class Given(NamedTuple):
    """What forward and backward share: tensors whose last stride is 1, numbers, and what kernels are compiled for."""

    q: Tensor
    k: Tensor
    v: Tensor
    vector: Tensor  # float32, divided by the scale; empty where there is no bias and no order
    key_place: Tensor  # int32 [batch or 1, keys]
    ids: Tensor
    key_ids: Tensor
    seed: Tensor
    numbers: Numbers
    free: tuple[int, int]
    scale: float
    sign: float  # of the scale that was asked for: q was multiplied by it
    dropout: float
    constants: dict[str, Any]

    @property
    def device(self) -> str:
        return str(self.q.device)

    def strides(self, *others: Tensor) -> tuple[int, ...]:
        return tuple(n for x in (self.q, self.k, self.v, *others) for n in x.stride()[:3])

    @property
    def by_sample(self) -> tuple[int, int, int]:
        """Strides over samples, 0 where one row serves all."""
        return tuple(x.stride(0) if x.shape[0] > 1 else 0 for x in (self.key_place, self.ids, self.key_ids))  # type: ignore[return-value]

    @property
    def tail(self) -> tuple[float, ...]:
        """hidden, absent, free, free_keys, scale, limit, kept"""
        own = places.places(self.numbers)
        return (
            own.hidden, own.absent, *self.free, self.scale, int(self.dropout * 2**31), 1 / (1 - self.dropout),
        )  # fmt: skip

    def words(self, block: int, *, key_major: bool = False) -> tuple[Tensor, Tensor, int]:
        """What a kernel reads as its vector, its places of pairs, and how long the vector of a head is."""
        if self.constants["HOW"] != "pair":
            return self.vector, self.key_place, self.vector.stride(0) if self.vector.shape[0] > 1 else 0
        place, other = lists.words(self.numbers, self.device, block, key_major)
        stretches = len(other) // max(1, self.vector.shape[1])
        both = torch.stack([self.vector.repeat(1, stretches), self.vector[:, other]], -1)
        return both, place, both.stride(0) if both.shape[0] > 1 else 0

    def launch(self, kernel: str) -> launches.Launch:
        return launches.launch(chip_of(self.device), kernel, max(self.q.shape[3], self.v.shape[3]))


def forward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Tensor | None, valid: Tensor | None,
    query_id: Tensor | None, key_id: Tensor | None, described: Sequence[int], free: Sequence[int], scale: float,
    dropout: float, seed: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, heads, queries, _ = q.shape
    out = q.new_empty(batch, queries, heads, v.shape[3]).transpose(1, 2)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if 0 in (out.numel(), k.shape[2]):
        return out.zero_(), lse.fill_(-torch.inf)
    numbers = tuple(described)
    if _fits_windows(q, k, valid, query_id, dropout, numbers):
        _windows_forward(q, k, v, out, lse, table, numbers, scale)
    else:
        given = _given(q, k, v, table, rows, valid, query_id, key_id, numbers, free, scale, dropout, seed)
        _forward(given, out, lse)
    return out, lse


def backward(
    into: tuple[Tensor, Tensor, Tensor], dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, learns: bool,
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Tensor | None, valid: Tensor | None,
    query_id: Tensor | None, key_id: Tensor | None, described: Sequence[int], free: Sequence[int], scale: float,
    dropout: float, seed: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Writes the gradients of q, k and v into `into`; returns those of the table and its rows, empty if not wanted."""
    numbers = tuple(described)
    dtable, drows = (
        torch.zeros(x.shape if learns and x is not None else (0,), dtype=torch.float32, device=q.device)
        for x in (table, rows)
    )
    if 0 in (out.numel(), k.shape[2]):
        for x in into:
            x.zero_()
        return dtable, drows
    written = tuple(x if x.stride(-1) == 1 else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in into)
    dout = dout.contiguous() if dout.stride(-1) != 1 or 0 in dout.stride() else dout
    dlse = None if dlse is None else dlse.to(torch.float32).contiguous()
    if _fits_windows(q, k, valid, query_id, dropout, numbers):
        found = _windows_backward(written, dout, dlse, q, k, v, table, numbers, scale, learns)
    else:
        given = _given(q, k, v, table, rows, valid, query_id, key_id, numbers, free, scale, dropout, seed)
        found = _backward(given, written, dout, dlse, out, lse, valid, learns and (dtable.numel() + drows.numel()) > 0)
    for x, y in zip(into, written, strict=True):
        if x is not y:
            x.copy_(y)
    if found is not None:
        of_table, of_rows = found
        dtable = of_table.reshape(dtable.shape) if dtable.numel() else dtable
        drows = of_rows if drows.numel() and of_rows is not None else drows
    return dtable, drows


def _given(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Tensor | None, valid: Tensor | None,
    query_id: Tensor | None, key_id: Tensor | None, numbers: Numbers, free: Sequence[int], scale: float,
    dropout: float, seed: Tensor | None,
) -> Given:  # fmt: skip
    """Passes: rows that can be read; a scale above 0; the vector; what the kernels are compiled for."""
    # 1 rows of numbers side by side
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    own, device = places.places(numbers), str(q.device)
    # 2 biases are divided by the scale, so that they seed the product: its sign goes to q
    sign = 1.0 if scale > 0 else -1.0 if scale < 0 else 0.0
    if sign <= 0:
        q, scale = q * sign, abs(scale) or 1.0
    # 3 one vector per head
    forbidden, key_place = lists.on_device(numbers, device)[:2]
    biased = table is not None or rows is not None or forbidden is not None
    vector = torch.empty(1, 0, dtype=torch.float32, device=q.device)
    if biased:
        held = None if table is None else table.detach().to(torch.float32)
        of_prefix = None if rows is None else rows.detach().to(torch.float32)
        vector = places.vector(own.stretches, forbidden, held, of_prefix, vector) / scale
    # 4 constants
    plain, padded = not read(numbers)[2], valid is not None
    d, dv = q.shape[3], v.shape[3]
    constants = {
        "GROUP": q.shape[1] // k.shape[1], "D": d, "DV": dv, "BD": _power(d), "BDV": _power(dv), "PLAIN": plain,
        "PADDED": padded, "CUT": query_id is not None, "DROP": dropout > 0,
        "HOW": "none" if not biased else "pair" if plain and not padded else "single", **_arithmetic(q),
    }  # fmt: skip
    none = key_place[None]
    return Given(
        q, k, v, vector, places.seen(own.hidden, key_place, None if valid is None else valid.to(torch.bool)),
        none if query_id is None else query_id.to(torch.int64).contiguous(),
        none if key_id is None else key_id.to(torch.int64).contiguous(),
        none if seed is None else seed, numbers, (free[0], free[1]), scale, sign, dropout, constants,
    )  # fmt: skip


def _arithmetic(q: Tensor) -> dict[str, Any]:
    """How products are rounded: three products in tf32 are as good as one in float32, and one is not."""
    raw = interpreted()
    return {
        "PREC": "tf32x3" if q.dtype == torch.float32 and not raw else "ieee",
        "RAW": raw,
        "ASM": not raw and torch.version.hip is None,
    }


def _power(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


# --- cells of any size -----------------------------------------------------------------------------------------------


def _forward(given: Given, out: Tensor, lse: Tensor) -> None:
    one = given.launch("forward")
    batch, heads, queries, _ = given.q.shape
    _, _, query_place, tokens = lists.on_device(given.numbers, given.device)
    tiles = lists.tiles(given.numbers, given.device, one.queries, one.keys, False)
    vector, pair_place, vector_h = given.words(one.keys)
    general.forward_kernel[(len(tiles) * heads * batch,)](
        given.q, given.k, given.v, out, lse, vector, query_place, given.key_place, pair_place, tokens[0], tokens[1],
        tiles, given.ids, given.key_ids, given.seed, *given.strides(out), *given.by_sample, len(tiles), heads, queries,
        vector_h, *given.tail, BM=one.queries, BN=one.keys, **_options(given, one),
    )  # fmt: skip


def _options(given: Given, one: launches.Launch) -> dict[str, Any]:
    return {**given.constants, "num_warps": one.warps, "num_stages": one.stages}


def _backward(
    given: Given, into: tuple[Tensor, ...], dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor,
    valid: Tensor | None, learns: bool,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """Passes: delta; gradients of keys and values; of queries; of the table."""
    dq, dk, dv = into
    batch, heads, queries, _ = given.q.shape
    numbers, device, own = given.numbers, given.device, places.places(given.numbers)
    _, _, query_place, tokens = lists.on_device(numbers, device)
    # 1 delta and the log-sum-exp, as long as whole tiles
    block = 64 if not interpreted() else 16
    widest = max(given.launch(name).queries for name in ("keys", "queries", "table"))
    longer = -(-queries // max(block, widest)) * max(block, widest)
    count = longer // block
    delta, ready = (torch.empty(batch, heads, longer, dtype=torch.float32, device=device) for _ in range(2))
    norm = torch.empty(batch * heads * count, dtype=torch.float32, device=device)
    learned.delta_kernel[(count * heads * batch,)](
        out, dout, lse, lse if dlse is None else dlse, delta, ready, norm, *out.stride()[:3], *dout.stride()[:3],
        count, heads, queries, longer, DV=given.constants["DV"], BDV=given.constants["BDV"], BM=block,
        LSE=dlse is not None,
    )  # fmt: skip
    first = (given.q, given.k, given.v, dout, ready, delta)
    last = (given.ids, given.key_ids, given.seed)
    # 2 key by key
    one = given.launch("keys")
    tiles = lists.tiles(numbers, device, one.keys, one.queries, True)
    vector, pair_place, vector_h = given.words(one.queries, key_major=True)
    general.key_gradients_kernel[(len(tiles) * given.k.shape[1] * batch,)](
        *first, dk, dv, vector, query_place, given.key_place, pair_place, tokens[2], tokens[3], tiles, *last,
        *given.strides(dout, dk, dv), *given.by_sample, len(tiles), heads, longer, vector_h, *given.tail,
        BM=one.queries, BN=one.keys, **_options(given, one),
    )  # fmt: skip
    # 3 query by query
    one = given.launch("queries")
    tiles = lists.tiles(numbers, device, one.queries, one.keys, False)
    vector, pair_place, vector_h = given.words(one.keys)
    general.query_gradients_kernel[(len(tiles) * heads * batch,)](
        *first, dq, vector, query_place, given.key_place, pair_place, tokens[0], tokens[1], tiles, *last,
        *given.strides(dout, dq), *given.by_sample, len(tiles), heads, longer, vector_h, *given.tail,
        BM=one.queries, BN=one.keys, **_options(given, one),
    )  # fmt: skip
    if given.sign <= 0:
        dq.mul_(given.sign)
    # 4 the table
    if not learns:
        return None
    unit, bound = _unit(given, norm, dlse, valid)
    dvector = _table_pass(given, first, last, unit, longer)
    return places.split_gradient(
        own, torch.where(bound.isfinite(), dvector.double() / unit.double(), torch.nan).float()
    )


def _unit(given: Given, norm: Tensor, dlse: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """How many units a gradient of 1 has [1], and the bound of all sums; keys that nobody sees may be NaN."""
    batch, _, queries, _ = given.q.shape
    largest = given.v.detach().abs().amax(-1).float()
    living = lists.living(given.numbers, given.device)
    for there in (None if valid is None else valid[:, None], living):
        largest = largest if there is None else largest.masked_fill(~there, 0.0)
    bound = 2 * norm.amax() * largest.amax() / (1 - given.dropout)
    bound = (bound if dlse is None else bound + dlse.abs().amax()) * (batch * queries)
    power = (60 - torch.log2(bound.clamp(1e-30, 1e38))).floor().clamp(-100, 120)
    return torch.exp2(power).reshape(1), bound


def _table_pass(given: Given, first: tuple[Tensor, ...], last: tuple[Tensor, ...], unit: Tensor, longer: int) -> Tensor:
    """Whole numbers of units, [heads, size]."""
    one, own = given.launch("table"), places.places(given.numbers)
    batch, heads = given.q.shape[:2]
    _, base_place, query_place, tokens = lists.on_device(given.numbers, given.device)
    groups, parts = lists.groups(given.numbers, given.device, one.queries, one.keys, batch, heads)
    dvector = torch.zeros(heads, own.size, dtype=torch.int64, device=given.device)
    if len(groups) == 0:
        return dvector
    vector, pair_place, vector_h = given.words(one.keys)
    learned.table_gradients_kernel[(len(groups) * heads * parts,)](
        *first, vector, dvector, unit, query_place, given.key_place, base_place, pair_place, *tokens[:2], *tokens[4:],
        groups, *last, *given.strides(first[3]), *given.by_sample, len(groups), parts, batch, heads, longer, vector_h,
        own.size, *given.tail, BM=one.queries, BN=one.keys, **_options(given, one),
    )  # fmt: skip
    return dvector


# --- windows ---------------------------------------------------------------------------------------------------------


def _fits_windows(
    q: Tensor, k: Tensor, valid: Tensor | None, query_id: Tensor | None, dropout: float, numbers: Numbers
) -> bool:
    alone = valid is None and query_id is None and dropout == 0 and q.shape[1] == k.shape[1]
    return alone and frames(numbers) is not None


def _windows_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, table: Tensor | None, numbers: Numbers, scale: float
) -> None:
    (q, k, v), held, slots, work, numeric, constants = _windows(q, k, v, table, numbers, scale)
    windows.forward_kernel[(len(work) * q.shape[1],)](
        q, k, v, out, lse, held, *slots, work, *(n for x in (q, k, v, out) for n in x.stride()[:3]), *numeric,
        **constants,
    )  # fmt: skip


def _windows_backward(
    into: tuple[Tensor, ...], dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
    table: Tensor | None, numbers: Numbers, scale: float, learns: bool,
) -> tuple[Tensor, Tensor | None] | None:  # fmt: skip
    (q, k, v), held, slots, work, numeric, constants = _windows(q, k, v, table, numbers, scale)
    learns, width, heads = learns and table is not None, constants["BW"], q.shape[1]
    partial = torch.empty(len(work) if learns else 0, heads, width * width, dtype=torch.float32, device=q.device)
    windows.backward_kernel[(len(work) * heads,)](
        q, k, v, dout, held if dlse is None else dlse, *into, held, partial, *slots, work,
        *(n for x in (q, k, v, dout, *into) for n in x.stride()[:3]), *numeric, LSE=dlse is not None, TABLE=learns,
        **constants,
    )  # fmt: skip
    if scale <= 0:
        into[0].mul_(1.0 if scale > 0 else -1.0 if scale < 0 else 0.0)
    if not learns:
        return None
    dense = torch.nn.functional.pad(partial.sum(0), (0, 1))  # in a fixed order: the same bits every time
    return dense[:, lists.frames_on_device(numbers, str(q.device))[-1]].sum(-1), None


def _windows(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, numbers: Numbers, scale: float
) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...], Tensor, tuple[float, ...], dict[str, Any]]:
    """Rows, the table, the lists, the work, numbers and constants of both kernels."""
    made, device = frames(numbers), str(q.device)
    assert made is not None
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if scale <= 0:
        q, scale = q * (-1.0 if scale < 0 else 0.0), abs(scale) or 1.0
    held = q.new_empty(0, dtype=torch.float32) if table is None else table.detach().float().flatten(1).contiguous()
    *slots, _ = lists.frames_on_device(numbers, device)
    work = lists.windows_work(numbers, device, q.shape[0], q.shape[1])
    warps, stages = launches.WINDOWS
    numeric = (len(work), q.shape[0], q.shape[1], q.shape[2], 0 if table is None else held.shape[1], scale, 1 / scale)
    constants = {
        "D": q.shape[3], "DV": v.shape[3], "BD": _power(q.shape[3]), "BDV": _power(v.shape[3]), "BW": made.width,
        "BIAS": table is not None, "num_warps": warps, "num_stages": stages,
        **{name: value for name, value in _arithmetic(q).items() if name != "ASM"},
    }  # fmt: skip
    return (q, k, v), held, tuple(slots), work, numeric, constants
