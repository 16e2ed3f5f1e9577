"""torch's flex_attention, which compiles a kernel for the bias that is written for it.

Identity: the bias of a pair, its order, its prefix and its padding are one number of one vector, read at the difference
of two places (locant.places); so `score_mod` is one load and one sum. Under windows tokens are put in the order of
their cells, pairs of two cells read -inf, and blocks of tokens in which nothing is seen are left out.

The gradient of the vector is summed by atomic additions of floating point: its last bits differ from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from locant import places, separable
from locant.cells import count
from locant.dispatch import constant_to_graphs
from locant.kernels.kernel import Output, Work
from locant.layout import Layout, described
from locant.masks import Padding, Segments
from locant.problem import Inputs, Problem

name = "flex"
BLOCK = 128  # tokens of a block that is left out or worked on


def refuses(problem: Problem) -> str | None:
    if problem.device not in ("cuda", "xpu"):
        here = problem.device.replace("meta", "cpu")  # as which meta tensors are planned
        return f"torch's flex_attention trains on GPUs alone, and the tensors are on {here}"
    if find_spec("triton") is None:
        return "torch compiles flex_attention by Triton, which is not installed; it comes with torch's builds for GPUs"
    if problem.exporting:
        return "under export the graph is made of torch's own operators, so that it runs without Locant"
    if problem.transformed:
        return "torch.func transforms need rules for each operator, and flex_attention has none"
    if problem.content is not None:
        return "content brings each query terms of its own, and flex_attention may read one tensor that learns"
    if problem.mask.pairs:
        return "Pairs is dense by nature, and this kernel never forms what is dense"
    if problem.mask.segments > 1:
        return "this kernel knows one Segments; two would have to be numbered anew"
    if problem.dropout:
        return "flex_attention has no dropout"
    if problem.dtype == "float64":
        return "flex_attention is compiled for float32, bfloat16 and float16 alone"
    if min(problem.head_dim, problem.value_dim) < 16:
        return f"flex_attention needs heads of at least 16 channels; these have {problem.head_dim}"
    if 0 in (problem.batch, problem.heads, problem.queries, problem.keys):
        return "flex_attention needs at least one sample, head, query and key"
    return separable.refuses(problem)


def work(problem: Problem) -> Work:
    copies = problem.batch * problem.heads
    cells, scores = (copies * n for n in count(problem.mask.windows, problem.grid, problem.key_grid))
    flops = 2 * scores * (problem.head_dim + problem.value_dim)
    held = 4 * (problem.bias.numbers if problem.bias is not None else 0) * 4
    notes = ["torch compiles a kernel for each shape, at its first call: some 20 seconds"]
    if problem.bias_grad:
        notes.append("the table's gradient is summed by atomic additions: its last bits differ from run to run")
    copied = 2 * problem.stream if problem.mask.windows else 0
    return Work(flops, problem.stream + copied + held, held, tuple(notes), items=cells, copied=copied)


def run(problem: Problem, inputs: Inputs) -> Output:
    call = _call if torch.compiler.is_compiling() else _compiled(problem)
    out, lse = attend(problem, inputs, call)
    out = separable.mixed(problem, inputs.gate, out, inputs.grouped()[1] if inputs.gate is not None else out)
    return out, lse


def _call(
    q: Tensor, k: Tensor, v: Tensor, score_mod: Callable, block_mask: Any, scale: float, grouped: bool, lse: bool
) -> Output:
    """flex_attention, imported where it is needed: it brings torch's compiler along."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    if not lse:
        return flex_attention(q, k, v, score_mod, block_mask, scale, grouped), None
    out, aux = flex_attention(q, k, v, score_mod, block_mask, scale, grouped, return_aux=AuxRequest(lse=True))
    return out, aux.lse


@lru_cache(maxsize=256)
def _compiled(problem: Problem) -> Callable[..., Output]:
    """One function per problem: torch counts what it compiles per code object, and gives up after eight."""
    own = FunctionType(_call.__code__.replace(co_name=f"flex_{problem.batch}"), _call.__globals__)
    return torch.compile(own, dynamic=False)


def attend(problem: Problem, inputs: Inputs, call: Callable[..., Output]) -> Output:
    """Passes: the vector and its places; tokens in the order of cells; one call; the order that was asked for."""
    bias, q, k, v = inputs.bias, inputs.q, inputs.k, inputs.v
    numbers = described(
        problem.grid, problem.key_grid, problem.mask, () if problem.bias is None else problem.bias.reach
    )
    device = str(q.device)
    # 1 one number per pair: bias, order, prefix, padding
    rows = None
    if bias is not None and bias.query_prefix is not None and bias.key_prefix is not None and bias.both is not None:
        rows = torch.stack([bias.query_prefix, bias.key_prefix, bias.both])
    vector = places.vector(
        _stretches(numbers), _forbidden(numbers, device), None if bias is None else bias.table, rows, q
    )  # fmt: skip
    valid, same = _by_sample(problem, inputs)
    if valid is not None:  # 0 · NaN is NaN: what nobody may see is made 0
        k, v = (x.masked_fill(~valid[:, None, :, None], 0.0) for x in (k, v))
    key_place = places.seen(_hidden(numbers), _key_place(numbers, device), valid)
    # 2 cells one after the other
    query_place, block_mask = _query_place(numbers, device), None
    query_order, key_order = _query_order(numbers, device), _key_order(numbers, device)
    if problem.mask.windows:
        q, query_place = q.index_select(2, query_order), query_place[query_order]
        k, v, key_place = k.index_select(2, key_order), v.index_select(2, key_order), key_place[:, key_order]
    if problem.mask.windows or problem.mask.causal:
        block_mask = _block_mask(numbers, device, problem.queries, problem.keys)
    # 3 the call
    score_mod = _score_mod(problem, numbers, vector, query_place, key_place, same, query_order, key_order)
    out, lse = call(q, k, v, score_mod, block_mask, inputs.scale, problem.heads != problem.kv_heads, problem.lse)
    if problem.mask.windows:
        back = _back(numbers, device)
        out, lse = out.index_select(2, back), None if lse is None else lse.index_select(2, back)
    return out, lse


def _score_mod(
    problem: Problem, numbers: tuple[int, ...], vector: Tensor, query_place: Tensor, key_place: Tensor,
    same: Callable[..., Tensor] | None, query_order: Tensor, key_order: Tensor,
) -> Callable[..., Tensor]:  # fmt: skip
    """score + vector[head, place - place], or -inf there; the vector is indexed once, as torch's compiler demands."""
    many, heads, windowed = key_place.shape[0] > 1, vector.shape[0] > 1, bool(problem.mask.windows)
    nothing = sum(_stretches(numbers)[:4])
    cell, key_cell = (_cell_of(numbers, str(vector.device), keys) for keys in (False, True))

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        at = query_place[i] - (key_place[b, j] if many else key_place[0, j])
        if windowed:
            apart = (cell[i] != key_cell[j]) & (cell[i] >= 0) & (key_cell[j] >= 0)
            at = torch.where(apart, nothing, at)
        if same is not None:
            at = torch.where(same(b, query_order[i], key_order[j]), at, nothing)
        return score + (vector[h, at] if heads else vector[0, at])

    return score_mod


def _by_sample(problem: Problem, inputs: Inputs) -> tuple[Tensor | None, Callable[..., Tensor] | None]:
    """What hides keys from all queries of a sample, and the condition that segments put on a pair."""
    valid, same = None, None
    for member in () if inputs.mask is None else inputs.mask.members():
        if isinstance(member, Padding):
            valid = member.valid if valid is None else valid & member.valid
        elif isinstance(member, Segments):
            same = _same_segment(member, *member.free(problem.grid, problem.key_grid))
    return valid, same


def _same_segment(member: Segments, free: int, free_keys: int) -> Callable[..., Tensor]:
    ids, key_ids = member.ids, member.key_ids
    one, other = ids.shape[0] == 1, key_ids.shape[0] == 1

    def same(b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query, key = ids[0, i] if one else ids[b, i], key_ids[0, j] if other else key_ids[b, j]
        return (query == key) | (i < free) | (j < free_keys)

    return same


# --- what a layout says, as tensors: constants to a graph ------------------------------------------------------------


@constant_to_graphs
def _stretches(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return places.places(numbers).stretches


@constant_to_graphs
def _hidden(numbers: tuple[int, ...]) -> int:
    return places.places(numbers).hidden


def _on(x: np.ndarray | None, device: str) -> Tensor | None:
    return None if x is None else torch.from_numpy(np.ascontiguousarray(x)).to(device)


@constant_to_graphs
def _forbidden(numbers: tuple[int, ...], device: str) -> Tensor | None:
    return _on(places.places(numbers).forbidden, device)


@constant_to_graphs
def _query_place(numbers: tuple[int, ...], device: str) -> Any:
    return _on(places.places(numbers).query, device)


@constant_to_graphs
def _key_place(numbers: tuple[int, ...], device: str) -> Any:
    return _on(places.places(numbers).key, device)


@lru_cache(maxsize=64)
def _orders(numbers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Queries cell by cell; keys likewise, behind the prefix, those in no cell last."""
    own = places.both_ways(numbers)[0]
    every = np.concatenate([np.arange(own.key_prefix), *_cells_of_keys(own), np.arange(own.keys)])
    _, first = np.unique(every, return_index=True)
    return own.query.astype(np.int64), every[np.sort(first)].astype(np.int64)


def _cells_of_keys(own: Layout) -> list[np.ndarray]:
    """The keys of each cell of the grid; the prefix queries, which see all, are no cell of it."""
    return [
        own.key[own.key_start[c] : own.key_start[c + 1]]
        for c in range(own.cells)
        if own.query[own.query_start[c]] >= own.query_prefix
    ]


@constant_to_graphs
def _query_order(numbers: tuple[int, ...], device: str) -> Any:
    return _on(_orders(numbers)[0], device)


@constant_to_graphs
def _key_order(numbers: tuple[int, ...], device: str) -> Any:
    return _on(_orders(numbers)[1], device)


@constant_to_graphs
def _back(numbers: tuple[int, ...], device: str) -> Any:
    return _on(np.argsort(_orders(numbers)[0]), device)


@constant_to_graphs
def _cell_of(numbers: tuple[int, ...], device: str, keys: bool) -> Any:
    """int32, in the order of cells: the cell of each token; -1 is a prefix, which is in all of them."""
    own = places.both_ways(numbers)[0]
    tokens, start, prefix = (
        (own.key, own.key_start, own.key_prefix) if keys else (own.query, own.query_start, own.query_prefix)
    )
    found = np.full(own.keys if keys else own.queries, own.cells, dtype=np.int32)
    for c in range(own.cells):
        if own.query[own.query_start[c]] >= own.query_prefix:
            found[tokens[start[c] : start[c + 1]]] = c
    found[:prefix] = -1
    return _on(found[_orders(numbers)[keys]], device)


@lru_cache(maxsize=64)
def blocks(numbers: tuple[int, ...], size: int) -> np.ndarray:
    """bool [blocks of queries, blocks of keys], in the order of cells: whether anything may be seen in them.

    Passes: blocks that share a cell; of these, blocks that every order leaves.
    """
    own, (query_order, key_order) = places.both_ways(numbers)[0], _orders(numbers)
    found = np.zeros((math.ceil(own.queries / size), math.ceil(own.keys / size)), dtype=bool)
    where = np.argsort(key_order)
    for c in range(own.cells):
        first, last = own.query_start[c : c + 2]
        met = np.unique(where[own.key[own.key_start[c] : own.key_start[c + 1]]] // size)
        found[first // size : (last - 1) // size + 1, met] = True
    for rank, key_rank in zip(own.query_rank, own.key_rank, strict=True):
        latest = np.maximum.reduceat(rank[query_order], np.arange(0, own.queries, size))
        earliest = np.minimum.reduceat(key_rank[key_order], np.arange(0, own.keys, size))
        found &= earliest <= latest[:, None]
    return found


@constant_to_graphs
def _block_counts(numbers: tuple[int, ...], device: str, of_keys: bool) -> Any:
    found = blocks(numbers, BLOCK)
    return _on(found.sum(0 if of_keys else 1).astype(np.int32)[None, None], device)


@constant_to_graphs
def _block_indices(numbers: tuple[int, ...], device: str, of_keys: bool) -> Any:
    """The blocks that are worked on, in front."""
    found = blocks(numbers, BLOCK)
    order = np.argsort(~(found.T if of_keys else found), axis=1, kind="stable")
    return _on(order.astype(np.int32)[None, None], device)


def _block_mask(numbers: tuple[int, ...], device: str, queries: int, keys: int) -> Any:
    """Made of constants: torch's own ways to one go by a map of all pairs, or by transforms that no graph can hold."""
    from torch.nn.attention.flex_attention import BlockMask

    (count, index), (key_count, key_index) = (
        (_block_counts(numbers, device, of_keys), _block_indices(numbers, device, of_keys)) for of_keys in (False, True)
    )
    return BlockMask(
        (queries, keys), count, index, None, None, key_count, key_index, None, None, BLOCK_SIZE=(BLOCK, BLOCK)
    )
