"""torch's scaled_dot_product_attention, with the bias expanded per group of equal cells.

Identity: keys outside a query's window have weight 0, so attention under windows is attention cell by cell; a table
read at query - key gives every cell of the same size the same bias. There are at most three sizes per axis (first,
middle, last), so a picture needs at most nine small biases, never one of N × N. Prefix tokens join every cell as
keys, and as queries form one more group that sees everything.
"""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from locant import separable
from locant.caching import remember
from locant.cells import Cell, cells, count, offsets_kind, visible_share
from locant.dispatch import is_exporting
from locant.forms import AxialTerms
from locant.grid import Grid
from locant.kernels.kernel import Output, Work
from locant.masks import Every, Structure, Windows
from locant.problem import Inputs, Problem
from locant.tokens import Tokens

name = "sdpa"
ALIGNED = 8  # numbers: 16 bytes of bfloat16
WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def refuses(problem: Problem) -> str | None:
    if problem.lse:
        return "torch's scaled_dot_product_attention keeps its log-sum-exp to itself, and return_lse asks for it"
    if problem.transformed and problem.bias_grad and problem.device in ("cpu", "meta"):
        return "under torch.func transforms torch's attention on the CPU has no gradient for a bias"
    return _refuses_open(problem) or separable.refuses(problem)


def _refuses_open(problem: Problem) -> str | None:
    """Why windows on a grid whose sizes a graph leaves open are not cut here, or None."""
    if not problem.exporting or not (problem.mask.windows and problem.grid.is_open) or _framable(problem):
        return None  # a graph that is compiled may be made again for each size
    return "windows on sizes that are left open are cut where queries and keys share a grid in steps of 1, by one mask"


def _framable(problem: Problem) -> bool:
    return problem.grid == problem.key_grid and len(problem.mask.windows) == 1 and set(problem.grid.stride) == {1}


def work(problem: Problem) -> Work:
    groups = _groups(problem.mask.windows, problem.grid, problem.key_grid)
    scores = problem.batch * problem.heads * sum(g.count * g.scores for g in groups)
    flops = 2 * scores * (problem.head_dim + problem.value_dim)
    held, notes = 0, []
    if problem.bias is not None:
        held = problem.heads * sum(g.scores for g in groups) * problem.width
        plural = "s" * (len(groups) != 1)
        notes.append(f"expands the bias for {len(groups)} group{plural} of equal cells: {held:,} bytes")
    if problem.content is not None:
        flops += 2 * problem.terms * problem.head_dim
        terms, pairs = problem.terms * problem.width, scores * problem.width
        held += terms + pairs
        whole = problem.grid.axes == 1 and problem.content.sizes[0] >= problem.keys
        long = "; in 1-D that is O(N²)" if whole else ""
        notes.append(f"content's terms are {terms:,} bytes{long}; expanded for every pair and sample: {pairs:,} bytes")
    if problem.bias_grad and problem.device in ("cpu", "meta"):
        held += 2 * scores * problem.width
        notes.append("the bias is being learned, so torch runs its unfused path and holds every score")
    elif problem.bias_grad:
        gradient = scores * problem.width
        held += gradient
        notes.append(
            f"the bias is being learned: its gradient is written for every pair and sample, {gradient:,} bytes"
        )
    spelled = _spelled_out(problem, sum(g.count * g.scores for g in groups))
    if spelled:
        held += spelled
        notes.append(f"spells out {problem.mask.beyond_windows()} pair by pair: {spelled:,} bytes")
    if problem.gate is not None:
        flops += separable.flops(problem)
        notes.append(separable.note(problem))
    if problem.exporting:
        notes.append("under export these are torch's own operators")
    copies = 3 if problem.mask.windows else 1  # cells are gathered before the call and put back after it
    # a mask that is spelled out is a bias to torch: it computes the pairs that the order forbids as well
    share = 1.0 if held else visible_share(problem.mask.causal, problem.grid, problem.key_grid)
    cells_in_all = problem.batch * problem.heads * count(problem.mask.windows, problem.grid, problem.key_grid)[0]
    return Work(
        flops, copies * problem.stream + held, held, tuple(notes),
        items=cells_in_all, computed=flops * share, copied=held + _rearranged(problem),
    )  # fmt: skip


def _rearranged(problem: Problem) -> int:
    """Bytes that are copied before torch's attention: cells gathered and put back, keys repeated or cleared."""
    rows = problem.batch * problem.keys * (problem.head_dim + problem.value_dim) * problem.width
    copied = 2 * problem.stream if problem.mask.windows else 0
    copied += rows * problem.heads if problem.kv_heads != problem.heads else 0
    return copied + rows * problem.kv_heads * problem.mask.padding


def _spelled_out(problem: Problem, scores: int) -> int:
    """Bytes of the masks beyond windows: True and False, or -inf in the bias, by all that they may differ by."""
    mask = problem.mask
    biased = problem.bias is not None or problem.content is not None
    by_pair = biased or mask.causal or mask.segments or mask.pairs  # padding alone is a row of keys
    if mask.beyond_windows() is None or not by_pair or _native_causal(problem):
        return 0
    by_sample = mask.windows or mask.padding or mask.segments or mask.pairs or problem.content is not None
    by_head = biased or mask.pairs
    width = problem.width if biased else 1
    return (problem.batch if by_sample else 1) * (problem.heads if by_head else 1) * scores * width


def run(problem: Problem, inputs: Inputs) -> Output:
    k, v = inputs.grouped()
    if 0 in (problem.batch, problem.heads, problem.queries, problem.keys, problem.head_dim, problem.value_dim):
        return inputs.q @ k.transpose(-1, -2) @ v, None  # nothing to attend to: zeros, with gradients of zeros
    grouped = replace(inputs, k=k, v=v)
    windowed = _attend_frames if problem.grid.is_open and _framable(problem) else _windowed
    out = windowed(problem, grouped) if problem.mask.windows else _whole(problem, grouped)
    return separable.mixed(problem, inputs.gate, out, v), None


def _whole(problem: Problem, inputs: Inputs) -> Tensor:
    """One call on all tokens."""
    if _native_causal(problem):
        return _sdpa(inputs, inputs.q, inputs.k, inputs.v, None, causal=True)
    device = inputs.q.device
    queries, keys = problem.grid.select(device=device), problem.key_grid.select(device=device)
    extra = _extra(inputs, _terms(inputs), queries, keys, problem.key_grid.shape)
    return _sdpa(inputs, inputs.q, inputs.k, inputs.v, None if extra is None else extra[:, 0])


def _native_causal(problem: Problem) -> bool:
    """Order on one whole sequence without prefix is torch's own `is_causal`: no mask is spelled out."""
    sequence = problem.grid == problem.key_grid and problem.grid.axes == 1 and not problem.grid.prefix
    causal = problem.mask.causal
    biased = problem.bias is not None or problem.content is not None
    return sequence and not biased and len(causal) == 1 and problem.mask == Structure(causal=causal)


def _windowed(problem: Problem, inputs: Inputs) -> Tensor:
    """Cell by cell: gather a group of equal cells as a batch, attend, put the rows back in order."""
    outs, order, device, terms = [], [], inputs.q.device, _terms(inputs)
    every_query, every_key = problem.grid.select(device=device), problem.key_grid.select(device=device)
    for group in _groups(problem.mask.windows, problem.grid, problem.key_grid):
        at, key_at = group.tokens(problem.grid, problem.key_grid, device)
        queries, keys = _chosen(every_query, at), _chosen(every_key, key_at)
        outs.append(_by_cell(problem, inputs, queries, keys, terms, group.box).transpose(1, 2).flatten(2, 3))
        order.append(queries.index.flatten())
    return torch.cat(outs, dim=2).index_select(2, torch.argsort(torch.cat(order)))


def _attend_frames(problem: Problem, inputs: Inputs) -> Tensor:
    """The same on a grid of sizes that a graph leaves open: how many cells there are is a symbol, and so are the sizes
    of those at the border. All are one group of whole windows, whose slots beyond the grid nobody sees."""
    grid, device, (windows,) = problem.grid, inputs.q.device, problem.mask.windows
    # 1 per axis: the index of the token in every slot of every cell, and the cell and slot of every token
    slots, at_cell = [], torch.zeros((), dtype=torch.int64, device=device)
    at_slot = at_cell
    for axis, (side, size) in enumerate(zip(grid.shape, windows.size, strict=True)):
        before = (grid.origin[axis] - windows.shift[axis]) % size
        cells = (side + before + size - 1) // size
        slots.append(torch.arange(cells, device=device)[:, None] * size + torch.arange(size, device=device) - before)
        line = (torch.arange(side, device=device) + before).reshape(-1, *(1,) * (grid.axes - 1 - axis))
        at_cell, at_slot = at_cell * cells + line // size, at_slot * size + line % size
    # 2 crossed: whole windows of tokens; those beyond the grid stand for their nearest
    crossed = _cross(slots)
    index, there = torch.zeros_like(crossed[0]), torch.ones_like(crossed[0], dtype=torch.bool)
    for slot, side in zip(crossed, grid.shape, strict=True):
        index, there = index * side + slot.clamp(0, side - 1), there & (slot >= 0) & (slot < side)
    places = torch.stack([slot + first for slot, first in zip(crossed, grid.origin, strict=True)], dim=-1)
    queries = Tokens(index + grid.prefix, places, torch.ones_like(there))
    keys, every = queries, grid.select(device=device)
    if grid.prefix:
        front = Tokens(*(t[:, : grid.prefix].expand(index.shape[0], *(-1,) * (t.ndim - 1)) for t in every))
        keys = Tokens(*(torch.cat(both, dim=1) for both in zip(front, queries, strict=True)))
        there = torch.cat([torch.ones_like(front.placed), there], dim=1)
    # 3 cells attend, and every token takes its row
    terms = _terms(inputs)
    rows = _by_cell(problem, inputs, queries, keys, terms, windows.size, there)
    # (rows of cells as one axis would be a view, which asks whether the number of cells is a multiple of itself)
    out = rows[:, at_cell.flatten(), :, at_slot.flatten()].permute(1, 2, 0, 3)
    if not grid.prefix:
        return out
    first = Tokens(*(t[:, : grid.prefix] for t in every))
    return torch.cat([_by_cell(problem, inputs, first, every, terms, grid.shape)[:, 0], out], dim=2)


def _cross(lines: list[Tensor]) -> list[Tensor]:
    """Numbers of slots `[cells, size]` per axis, of all cells and slots: `[cells in all, slots in all]`, row-major."""
    axes = len(lines)
    if axes == 1:  # nothing to cross; torch would ask of a view whether the number of cells is a multiple of itself
        return lines
    spread = [
        line.reshape(
            [line.shape[0] if a == axis else line.shape[1] if a == axes + axis else 1 for a in range(2 * axes)]
        )
        for axis, line in enumerate(lines)
    ]
    return [line.flatten(axes).flatten(0, axes - 1) for line in torch.broadcast_tensors(*spread)]


def _by_cell(
    problem: Problem, inputs: Inputs, queries: Tokens, keys: Tokens, terms: AxialTerms | None, box: tuple[int, ...],
    there: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention of a group of equal cells, laid along the batch: rows `[batch, cells, heads, queries, channels]`.

    `there [cells, keys]` says which slots hold a key; None is all of them.
    """
    q, k, v = (_gather(x, t.index) for x, t in ((inputs.q, queries), (inputs.k, keys), (inputs.v, keys)))
    extra = _extra(inputs, terms, queries, keys, box, there)
    cells = queries.index.shape[0]
    if extra is not None and extra.shape[:2] != (1, 1):  # differs by sample or cell: one row per cell of the batch
        extra = extra.expand(problem.batch, cells, *extra.shape[2:])
    out = _sdpa(inputs, q, k, v, None if extra is None else extra.flatten(0, 1))
    return out.unflatten(0, (problem.batch, cells))


def _sdpa(inputs: Inputs, q: Tensor, k: Tensor, v: Tensor, extra: Tensor | None, causal: bool = False) -> Tensor:
    if extra is not None:  # a 3-D mask would silently take torch's unfused path: always four axes, fully spelled out
        extra = extra.expand(*extra.shape[:2], q.shape[2], k.shape[2])
    with sdpa_kernel(WITHOUT_CUDNN) if _cudnn_gives_nan(q, k, v, extra) else nullcontext():
        out = scaled_dot_product_attention(q, k, v, extra, inputs.dropout, causal, scale=inputs.scale)
    # What is exported is traced twice, with gradients and without: torch's attention then lays its output out in two
    # ways, and views that were traced of the first have no meaning on the second. A copy has one layout.
    learned = extra is not None and extra.requires_grad and is_exporting()
    return out.clone(memory_format=torch.contiguous_format) if learned else out


def _cudnn_gives_nan(q: Tensor, k: Tensor, v: Tensor, extra: Tensor | None) -> bool:
    """cuDNN's backward on Hopper writes NaN into dq under a mask where keys % 128 == 64 (pytorch#196678)."""
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, extra) if x is not None)
    return q.is_cuda and extra is not None and learns and k.shape[2] % 128 == 64


def _terms(inputs: Inputs) -> AxialTerms | None:
    """What queries make of a content scheme's vectors: once for all groups of cells."""
    return None if inputs.content is None else inputs.content.terms()


def _extra(
    inputs: Inputs, terms: AxialTerms | None, queries: Tokens, keys: Tokens, box: tuple[int, ...],
    there: Tensor | None = None,
) -> Tensor | None:  # fmt: skip
    """What is added to the logits besides the content, `[batch or 1, cells or 1, heads or 1, queries, keys]`.

    Windows are dropped from the mask: inside a cell they allow everything. The bias is that of the first cell, for it
    depends on offsets alone; content's terms are those of every query.
    """
    count = keys.index.shape[-1]
    if inputs.bias is not None and terms is None and _reads_whole_rows(inputs.q):
        keys = _whole_rows(keys)
    rest = tuple(m for m in (() if inputs.mask is None else inputs.mask.members()) if not isinstance(m, Windows))
    allowed = Every(rest).pairs(queries, keys).transpose(1, 2) if rest else None
    if there is not None:
        there = there[None, :, None, None]
        allowed = there if allowed is None else allowed & there
    added = []
    if inputs.bias is not None:
        first = (Tokens(*(t[:1] for t in queries)), Tokens(*(t[:1] for t in keys)))
        added.append(inputs.bias.at(*first).to(inputs.q.dtype)[:, 0][None, None])
    if terms is not None:
        term = terms.at(queries, keys, box).to(inputs.q.dtype).transpose(1, 2)
        # strides that hold the number of cells out of order have torch ask which of them divides which
        added.append(term if there is None else term.contiguous())
    if not added:
        return allowed
    bias = sum(added[1:], added[0])
    return (bias if allowed is None else torch.where(allowed, bias, -torch.inf))[..., :count]


def _reads_whole_rows(q: Tensor) -> bool:
    """On GPUs torch copies a bias whose rows do not begin at a multiple of 16 bytes, at every call."""
    return q.is_cuda


def _whole_rows(keys: Tokens) -> Tokens:
    """As many keys as fill rows of a multiple of 8 numbers; the last one is repeated, and cut off behind."""
    count = keys.index.shape[-1]
    if count % ALIGNED == 0:
        return keys
    at = torch.arange(-(-count // ALIGNED) * ALIGNED, device=keys.index.device).clamp(max=count - 1)
    return Tokens(keys.index[..., at], keys.coordinates[..., at, :], keys.placed[..., at])


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x at `index [cells, count]`, the cells laid along the batch."""
    return x.index_select(2, index.flatten()).unflatten(2, index.shape).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class _Group:
    """Cells of equal shape: per axis, the cells that take part (all of one size)."""

    axes: tuple[tuple[Cell, ...], ...]
    prefix: int  # prefix tokens among the keys

    @property
    def count(self) -> int:
        return math.prod([len(line) for line in self.axes])

    @property
    def box(self) -> tuple[int, ...]:
        """The shape of a cell's keys, prefix tokens left out."""
        return tuple(line[0].keys[1] - line[0].keys[0] for line in self.axes)

    @property
    def scores(self) -> int:
        queries = math.prod([line[0].queries[1] - line[0].queries[0] for line in self.axes])
        return queries * (math.prod(self.box) + self.prefix)

    def tokens(self, grid: Grid, key_grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Token numbers of the queries and of the keys, `[cells, count]` each."""
        queries = _flat([[c.queries for c in line] for line in self.axes], grid, device)
        keys = _flat([[c.keys for c in line] for line in self.axes], key_grid, device)
        if not key_grid.prefix:  # no empty prefix in a graph: OpenVINO's converter divides by its size
            return queries, keys
        prefix = torch.arange(key_grid.prefix, device=device).expand(len(keys), -1)
        return queries, torch.cat([prefix, keys], dim=1)


@dataclass(frozen=True)
class _PrefixGroup:
    """The prefix queries, which see everything."""

    queries: int
    keys: int
    box: tuple[int, ...]
    count: int = 1

    @property
    def scores(self) -> int:
        return self.queries * self.keys

    def tokens(self, grid: Grid, key_grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.arange(grid.prefix, device=device)[None], torch.arange(key_grid.tokens, device=device)[None]


def _chosen(whole: Tokens, index: Tensor) -> Tokens:
    return Tokens(index, whole.coordinates[0, index], whole.placed[0, index])


def _flat(lines: list[list[tuple[int, int]]], grid: Grid, device: torch.device) -> Tensor:
    """Token numbers `[cells, tokens of a cell]`, both row-major, from index ranges per axis."""
    axes = len(lines)
    total = torch.full((1,) * (2 * axes), grid.prefix, device=device)
    for axis, ranges in enumerate(lines):
        first, last = ranges[0]
        starts = torch.tensor([start for start, _ in ranges], device=device)
        index = (starts[:, None] + torch.arange(last - first, device=device)) * math.prod(grid.shape[axis + 1 :])
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = index.shape
        total = total + index.reshape(shape)
    return total.flatten(axes).flatten(0, axes - 1)


@remember(256)
def _groups(windows: tuple[Windows, ...], grid: Grid, key_grid: Grid) -> tuple[_Group | _PrefixGroup, ...]:
    """Cells gathered by shape, and by where their keys lie from their queries: at most three kinds per axis."""
    kinds: list[list[tuple[Cell, ...]]] = []
    for axis in range(grid.axes):
        found: dict[tuple[int, int, int], list[Cell]] = {}
        for cell in cells(windows, axis, grid, key_grid):
            found.setdefault(offsets_kind(cell, axis, grid, key_grid), []).append(cell)
        kinds.append([tuple(line) for line in found.values()])
    groups: list[_Group | _PrefixGroup] = [_Group(axes, key_grid.prefix) for axes in itertools.product(*kinds)]
    return (*groups, *([_PrefixGroup(grid.prefix, key_grid.tokens, key_grid.shape)] if grid.prefix else []))
