"""A call of attention, read once: positions by entrance, the problem from shapes alone, the tensors on demand.

call = describe(q, k, v, ..., position, mask, ...)  checked; positions sorted by entrance, masks laid out on the
                                                    grids; a plan stops here
inputs = materialise(call)                          rotated heads, tables, terms: what a kernel runs on
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from locant.cells import reach
from locant.checks import check_number, check_tensor, check_type, description
from locant.dispatch import is_exporting, is_transformed
from locant.forms import AxialVectors, OffsetTable, Separable, add_values
from locant.gpu.chips import chip_of
from locant.grid import Grid, check_grid
from locant.masks import Mask, Pairs, Structure, check_mask
from locant.positions.position import Bias, Content, Embedding, Gate, Position, Rotation
from locant.problem import BYTES, Inputs, Problem

DTYPES = {getattr(torch, name): name for name in BYTES}
Positions = Position | Sequence[Position] | nn.ModuleList | None


@dataclass(frozen=True)
class Schemes:
    """The positions of a call by the entrance that they act through; biases add up, the others come alone."""

    biases: tuple[Bias, ...] = ()
    content: Content | None = None
    rotation: Rotation | None = None
    gate: Gate | None = None

    def __iter__(self) -> Iterator[Position]:
        return iter([*self.biases, *(p for p in (self.content, self.rotation, self.gate) if p is not None)])

    def tensors(self) -> list[tuple[Position, Tensor]]:
        """Everything that they are made of, learned or not."""
        return [(p, x) for p in self for x in (*p.parameters(), *p.buffers())]


NOWHERE = Schemes()


@dataclass(frozen=True)
class Call:
    """What was asked for: q, k and v as they came, the static problem, and what its tensors are made of."""

    q: Tensor
    k: Tensor
    v: Tensor
    problem: Problem
    schemes: Schemes
    mask: Mask | None  # bound to the problem's grids
    scale: float | Tensor
    dropout: float
    kernel: str = "auto"
    qkv: Tensor | None = None  # what q, k and v are views of

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return _dtype(self.q)


def by_entrance(position: Positions) -> Schemes:
    """The members of `position`, sorted by entrance. Raises ValueError for what does not act on projected heads."""
    if position is None:
        return NOWHERE
    found: dict[str, list[Position]] = {}
    for p in members(position):
        if not isinstance(p, Position):
            raise ValueError(
                f"position needs a position scheme such as RelativeTable, or a tuple, list or nn.ModuleList of them; "
                f"got {_name(p)}. For a mask use mask=."
            )
        if isinstance(p, Embedding):
            raise ValueError(
                f"attention receives projected heads, and {type(p).__name__} acts on tokens before projection. "
                "Add it to the tokens, or use locant.nn.Attention, which adds it before it projects q and k."
            )
        if p.entrance in found and p.entrance != "bias":
            raise ValueError(
                f"position may hold one scheme per entrance (biases add up); got two that {p.entrance}. Keep one."
            )
        found.setdefault(p.entrance, []).append(p)

    alone: dict[str, Any] = {entrance: schemes[0] for entrance, schemes in found.items() if entrance != "bias"}
    biases = cast("list[Bias]", found.get("bias", []))
    return Schemes(tuple(biases), alone.get("content"), alone.get("rotate"), alone.get("gate"))


def members(position: Positions) -> tuple[object, ...]:
    """The schemes of `position`, or whatever was given in place of one."""
    if position is None:
        return ()
    if isinstance(position, Position):
        return (position,)
    if isinstance(position, nn.ModuleList) or (isinstance(position, Sequence) and not isinstance(position, str)):
        return tuple(position)
    return (position,)


def _name(x: object) -> str:
    return f"the class {x.__name__}: write {x.__name__}(...)" if isinstance(x, type) else type(x).__name__


def describe(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid | None, key_grid: Grid | None, position: Positions, mask: Mask | None,
    scale: float | Tensor | None, dropout: float, lse: bool, kernel: str = "auto", qkv: Tensor | None = None,
) -> Call:  # fmt: skip
    """The call, checked, and its problem: shapes, dtypes and descriptions.

    Raises:
        ValueError: for arguments that don't fit together.
    """
    # 1 tensors, positions and grids, each by itself
    _check_types(q, k, v, grid, key_grid, mask, dropout, lse, kernel)
    _check_tensors(q, k, v, dropout)
    schemes, structure = by_entrance(position), Structure.of(mask)
    grid, key_grid = _grids(q, k, grid, key_grid, position is None, structure)
    # 2 the mask on these grids, for this batch
    mask = None if mask is None else mask.bound(grid, key_grid)
    # 3 positions on these grids, for these heads
    beside = schemes.tensors()
    if not q.is_meta:  # a plan may be asked of shapes alone, beside a mask and positions that have numbers
        _check_tensors_beside(q, beside, mask)
    bias, content, gate = _forms(schemes, q, grid, key_grid, structure)
    if gate is not None and lse:
        raise ValueError(
            "return_lse needs one softmax; a gated position mixes two. Ask for the log-sum-exp without the gate."
        )
    problem = Problem(
        batch=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1], head_dim=q.shape[3], value_dim=v.shape[3],
        grid=grid, key_grid=key_grid, dtype=DTYPES[_dtype(q)], device=q.device.type,
        bias=bias, content=content, bias_grad=torch.is_grad_enabled() and _learns(beside, q), gate=gate,
        mask=structure, dropout=dropout > 0, lse=lse, rotated=schemes.rotation is not None,
        exporting=is_exporting(), transformed=is_transformed(), chip=chip_of(str(q.device)) if q.is_cuda else "",
    )  # fmt: skip
    return Call(q, k, v, problem, schemes, mask, _checked_scale(scale, q), dropout, kernel, qkv)


def materialise(call: Call) -> Inputs:
    """The tensors of a call's problem. Raises ValueError for numbers beside a q that has none."""
    problem, schemes, scale = call.problem, call.schemes, call.scale
    grid, key_grid, dtype = problem.grid, problem.key_grid, call.dtype
    q, k, v = call.q.to(dtype), call.k.to(dtype), call.v.to(dtype)
    if q.is_meta:
        _check_tensors_beside(q, schemes.tensors(), call.mask)
    # 1 content meets q as it was projected
    met = None
    if schemes.content is not None and problem.content is not None:
        met, q = schemes.content.values(problem.content, q, scale), schemes.content.queries(q)
    # 2 rotation turns what meets the keys
    if schemes.rotation is not None:
        q, k = schemes.rotation(q, grid), schemes.rotation(k, key_grid)
    # 3 a scale that is a tensor multiplies q here: kernels take a number, which has no gradient
    if isinstance(scale, Tensor):
        q, scale = q * scale.to(dtype), 1.0
    # 4 biases and gates
    tables = [p.values(problem.bias, q.device) for p in schemes.biases if problem.bias is not None]
    return Inputs(
        q, k, v,
        scale=scale,
        bias=add_values(tables) if tables else None,
        content=met,
        gate=None if schemes.gate is None else schemes.gate.values(grid, key_grid),
        mask=call.mask, dropout=call.dropout,
        qkv=call.qkv if call.qkv is not None and q is call.q else None,
    )  # fmt: skip


def _forms(
    schemes: Schemes, q: Tensor, grid: Grid, key_grid: Grid, mask: Structure
) -> tuple[OffsetTable | None, AxialVectors | None, Separable | None]:
    """What the schemes lower to on these grids: biases in one table, all read over one reach."""
    biases, content, gate = schemes.biases, schemes.content, schemes.gate
    if content is not None and content.head_dim != q.shape[3]:
        raise ValueError(
            f"{type(content).__name__} has vectors of head_dim={content.head_dim}, and q has {q.shape[3]} channels "
            f"per head. Build it with head_dim={q.shape[3]}."
        )
    added: list[Bias | Content] = [*biases, *(() if content is None else (content,))]
    needed = reach(grid, key_grid, mask.windows) if added else ()
    for scheme in added:
        scheme.check(grid, needed, mask)
    if gate is not None:
        gate.check(grid)
    for heads in [*(scheme.heads for scheme in added), *(() if gate is None else (gate.heads,))]:
        if heads != q.shape[1]:
            raise ValueError(
                f"the position scheme has {heads} heads and q has {q.shape[1]}. Build it with heads={q.shape[1]}."
            )
    prefix = any(p.prefix_rows() is not None for p in biases)
    table = OffsetTable(q.shape[1], needed, prefix) if biases else None
    met = None if content is None else AxialVectors(q.shape[1], _seen(content.ranges(needed), grid, key_grid, mask))
    return table, met, Separable(q.shape[1]) if gate is not None else None


def _seen(
    ranges: tuple[tuple[int, int], ...], grid: Grid, key_grid: Grid, mask: Structure
) -> tuple[tuple[int, int], ...]:
    """Without the lowest offsets that no query has from a key: beside a memory, say, or where an order hides them.

    The highest one stays: by it schemes whose tables are of another length know how far to stretch them.
    """
    if grid.is_open or key_grid.is_open:  # how far they lie apart is not asked of sizes that a graph leaves open
        return ranges
    ordered = {causal.axis or 0 for causal in mask.causal}
    found = []
    for axis, (low, high) in enumerate(ranges):
        queries, keys = grid.along(axis), key_grid.along(axis)
        if len(queries) > 0 and len(keys) > 0:
            low = min(max(low, queries[0] - keys[-1]), high)  # all may lie beyond the range: its nearest is left
        found.append((max(low, 0) if axis in ordered else low, high))
    return tuple(found)


def _grids(
    q: Tensor, k: Tensor, grid: Grid | None, key_grid: Grid | None, unplaced: bool, structure: Structure
) -> tuple[Grid, Grid]:
    """Where queries and keys are, checked. Where nothing speaks of places, keys may be as many as they like."""
    queries, keys = q.shape[2], k.shape[2]
    # the lengths are asked: dynamo traces no `not` of a tuple that holds objects
    free = grid is None and unplaced and len(structure.causal) == 0 and len(structure.windows) == 0
    grid = Grid(queries) if grid is None else grid
    if key_grid is None:
        key_grid = grid if keys == grid.tokens else Grid(keys) if free else grid
    for name, where, count, one in (("grid", grid, queries, "q"), ("key_grid", key_grid, keys, "k and v")):
        if where.tokens != count:
            raise ValueError(
                f"{one} on {where} must have {where.tokens} tokens (prefix included); got {count}. "
                f"Pass {name}= for these tokens; a slice such as Grid(1024)[1023:] knows where it lies."
            )
    if grid.axes != key_grid.axes:
        raise ValueError(
            f"queries and keys need grids of the same dimension; got {grid} and {key_grid}. "
            "Add axes of size 1 where one is smaller."
        )
    return grid, key_grid


def _check_types(
    q: object, k: object, v: object, grid: object, key_grid: object, mask: object, dropout: object, lse: object,
    kernel: object,
) -> None:  # fmt: skip
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor("attention", name, x, "a tensor [batch, heads, tokens, head_dim]")
    check_grid("attention", "grid", grid, needed=False)
    check_grid("attention", "key_grid", key_grid, needed=False)
    check_mask("attention", "mask", mask)
    if type(dropout) is not float:  # asked here first: a call of a small problem takes 50 µs in all
        check_number("attention", "dropout", dropout)
    if type(lse) is not bool:
        check_type("attention", "return_lse", lse, bool)
    if type(kernel) is not str:
        check_type("attention", "kernel", kernel, str)


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> None:
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(
            f"attention needs q, k and v as [batch, heads, tokens, head_dim]; got {_shapes(q, k, v)}. Reshape them."
        )
    if not (q.shape[0] == k.shape[0] == v.shape[0] and k.shape[1:3] == v.shape[1:3] and q.shape[3] == k.shape[3]):
        raise ValueError(
            "attention needs one batch, as many keys as values, and one head_dim for q and k; "
            f"got {_shapes(q, k, v)}. Make these agree."
        )
    if q.shape[3] == 0:
        raise ValueError(f"attention needs a head_dim of at least 1; got {_shapes(q, k, v)}. Give heads some channels.")
    if q.shape[1] % k.shape[1] if k.shape[1] else q.shape[1]:
        raise ValueError(
            f"the heads of q must be a multiple of the heads of k and v; got {q.shape[1]} and {k.shape[1]}. "
            "Project to matching heads."
        )
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(
            "q, k and v must share one dtype and one device; got "
            + ", ".join(f"{n} {t.dtype} on {t.device}" for n, t in (("q", q), ("k", k), ("v", v)))
            + ". Convert them first, or run under autocast after casting."
        )
    if q.dtype not in DTYPES:
        raise ValueError(f"attention needs a floating dtype ({', '.join(BYTES)}); got {q.dtype}. Convert q, k and v.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1; got {dropout}. Pass 0.0 in evaluation.")


def _check_mask_batch(mask: Mask | None, q: Tensor) -> None:
    for member in () if mask is None else mask.members():
        if isinstance(member, Pairs) and member.allowed_pairs.shape[1] not in (1, q.shape[1]):
            raise ValueError(
                f"Pairs needs {q.shape[1]} heads (or 1); got {member.allowed_pairs.shape[1]}. "
                "Lay it out as [batch, heads, queries, keys], or leave the heads out."
            )
        for value in (getattr(member, name) for name in member.tensors):
            if value.shape[0] not in (1, q.shape[0]) or value.device != q.device:
                raise ValueError(
                    f"{type(member).__name__} needs a batch of {q.shape[0]} (or 1) on {q.device}; "
                    f"got {value.shape[0]} on {value.device}. Build the mask for this batch and device."
                )


def _dtype(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: autocast's, where it is on and has a say."""
    kind = x.device.type
    if kind != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _check_tensors_beside(q: Tensor, positions: list[tuple[Position, Tensor]], mask: Mask | None) -> None:
    """All on one device: a kernel would read the memory of a meta tensor, which has none."""
    _check_mask_batch(mask, q)
    here = q.device
    for p, x in positions:
        if x.device != here:
            raise ValueError(
                f"position and q must be on one device; {type(p).__name__} is on {x.device}, and q on {here}. "
                f"Move it with position.to(q.device)"
                + (", or, as it was built on the meta device, to_empty and load its weights." * x.is_meta or ".")
            )


def _checked_scale(scale: float | Tensor | None, q: Tensor) -> float | Tensor:
    if scale is None:
        return float(q.shape[-1] ** -0.5)
    if isinstance(scale, Tensor):
        sizes = (*(1,) * (4 - scale.ndim), *scale.shape)
        fits = scale.ndim <= 4 and all(n in (1, m) for n, m in zip(sizes, (*q.shape[:2], 1, 1), strict=True))
        here = scale.device == q.device or (scale.ndim == 0 and scale.device.type == "cpu")
        if fits and here and scale.is_floating_point():
            return scale
        came = f"{scale.dtype} {list(scale.shape)} on {scale.device}"
    elif (
        isinstance(scale, int | float | torch.SymInt | torch.SymFloat)
        and not isinstance(scale, bool)
        and scale == scale
    ):
        return scale
    else:
        came = description(scale)
    raise ValueError(
        f"scale needs a number, or a floating tensor of one number or [heads, 1, 1] on {q.device} with "
        f"{q.shape[1]} heads; got {came}. Leave it out for head_dim ** -0.5."
    )


def _learns(positions: list[tuple[Position, Tensor]], q: Tensor) -> bool:
    """Whether what is added to logits has a gradient; content's has one through q as well."""
    return any(
        (x.requires_grad and isinstance(p, Bias | Content)) or (q.requires_grad and isinstance(p, Content))
        for p, x in positions
    )
