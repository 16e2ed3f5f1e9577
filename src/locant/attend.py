"""The verb: validate, lower, plan, run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from locant import planner
from locant.checks import check_tensor
from locant.forms import AxialTerms, OffsetTable, Separable, add_tables, add_values
from locant.grid import Grid, check_grid
from locant.kernels import reference
from locant.masks import Mask, Pairs, Structure, check_mask
from locant.positions.position import Bias, Content, Embedding, Gate, Position, Rotation
from locant.problem import BYTES, Inputs, Problem

Positions = Position | tuple[Position, ...] | None
_MASK_TENSORS = ("valid", "ids", "key_ids", "allowed_pairs")  # named: dynamo of torch 2.10 does not trace vars()


def attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    grid: Grid | None = None,
    key_grid: Grid | None = None,
    position: Positions = None,
    mask: Mask | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    return_lse: bool = False,
    kernel: str = "auto",
) -> Float[Tensor, "batch heads queries value_dim"] | tuple[Tensor, Float[Tensor, "batch heads queries"]]:
    """softmax_keys(scale · q kᵀ + bias) v, exactly, by the cheapest kernel that can.

    Args:
        q, k, v: projected heads; kv_heads divides heads (grouped-query attention repeats them).
        grid: where the queries are. Default `Grid(queries)`.
        key_grid: where the keys are. Default `grid`; needed when they are as many as the queries are not.
        position: how position acts: a bias, a rotation, content or a gate, or a tuple of them. Biases add up; the
            other members must act through different entrances. Embeddings act before projection: see `locant.nn`.
        mask: who may attend. A row that may attend to nothing gives zeros and finite gradients.
        scale: of the content logits, default head_dim ** -0.5. Biases are added after it, unscaled.
        dropout: probability on the weights; drawn from torch's default generator. Set it to 0 in evaluation.
        return_lse: also return log Σ_keys exp(logits), -inf on rows that see nothing.
        kernel: "auto", or a kernel by name, which runs or raises its reason.

    Raises:
        ValueError: sizes, dtypes, devices, grids, masks or positions that don't fit; a kernel that refuses.

    A NaN in keys or values that `Padding` hides does not leak; under other masks it may spread within its sample.
    """
    out, lse = _Request(q, k, v, grid, key_grid, position, mask, scale, dropout, return_lse).run(kernel)
    return out if lse is None else (out, lse)


def attention_packed(
    qkv: Float[Tensor, "batch *grid 3 heads head_dim"],
    *,
    grid: Grid | None = None,
    position: Positions = None,
    mask: Mask | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Float[Tensor, "batch *grid channels"]:
    """`attention` straight from a qkv projection, laid out `[batch, *grid, 3, heads, head_dim]`.

    With a prefix, or by choice, the tokens lie on one axis: `[batch, tokens, 3, heads, head_dim]`. The result has the
    same leading axes and `heads · head_dim` channels, ready for the output projection.
    """
    if qkv.ndim < 5 or qkv.shape[-3] != 3:
        raise ValueError(
            "attention_packed needs qkv of shape [batch, *grid, 3, heads, head_dim]; "
            f"got {list(qkv.shape)}. Reshape the projection: qkv(x).unflatten(-1, (3, heads, head_dim))."
        )
    places = tuple(qkv.shape[1:-3])
    grid = Grid(*places) if grid is None else grid
    if places not in ((grid.tokens,), grid.shape) or (
        places == grid.shape and places != (grid.tokens,) and grid.prefix
    ):
        raise ValueError(
            f"attention_packed on {grid} needs qkv of shape [batch, {grid.tokens}, 3, heads, head_dim] or, without a "
            f"prefix, [batch, *{grid.shape}, 3, heads, head_dim]; got {list(qkv.shape)}. Pass the grid of these tokens."
        )
    q, k, v = qkv.flatten(1, -4).permute(2, 0, 3, 1, 4).unbind(0)
    request = _Request(q, k, v, grid, None, position, mask, scale, dropout, False, qkv)
    out, _ = request.run(kernel)
    return out.transpose(1, 2).flatten(2).unflatten(1, places)


def weights(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    *,
    grid: Grid | None = None,
    key_grid: Grid | None = None,
    position: Positions = None,
    mask: Mask | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """The probabilities that `attention` would use, before dropout. Dense by definition: O(queries × keys)."""
    request = _Request(q, k, k, grid, key_grid, position, mask, scale, 0.0, False)
    problem = request.problem()
    return reference.probabilities(problem, request.inputs(problem))[0]


def plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Grid | None = None,
    key_grid: Grid | None = None,
    position: Positions = None,
    mask: Mask | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    return_lse: bool = False,
    kernel: str = "auto",
) -> planner.Plan:
    """What `attention` would do with these arguments, and why: reads shapes and descriptions, never values.

    q, k and v may be on the meta device. `print(plan(...))` shows the kernel, its cost, and a sentence for every
    kernel that was passed over.
    """
    request = _Request(q, k, v, grid, key_grid, position, mask, scale, dropout, return_lse)
    return planner.plan(request.problem(), kernel)


@dataclass(frozen=True)
class _Request:
    """The arguments as they came; `problem()` checks and describes them, `inputs()` makes the tensors."""

    q: Tensor
    k: Tensor
    v: Tensor
    grid: Grid | None
    key_grid: Grid | None
    position: Positions
    mask: Mask | None
    scale: float | None
    dropout: float
    lse: bool
    qkv: Tensor | None = None  # what q, k and v are views of

    def run(self, kernel: str) -> tuple[Tensor, Tensor | None]:
        problem = self.problem()
        chosen = planner.named(planner.cached(problem, kernel))
        out, lse = chosen.run(problem, self.inputs(problem))
        return out, lse if self.lse else None

    def problem(self) -> Problem:
        q, k, v = self.q, self.k, self.v
        for one, x in (("q", q), ("k", k), ("v", v)):
            check_tensor("attention", one, x, "a tensor [batch, heads, tokens, head_dim]")
        check_grid("attention", "grid", self.grid, needed=False)
        check_grid("attention", "key_grid", self.key_grid, needed=False)
        check_mask("attention", "mask", self.mask)
        _check_tensors(q, k, v, self.dropout)
        structure = Structure.of(self.mask)
        grid, key_grid = self._grids(structure)
        positions = self._positions()
        for described in (*structure.windows, *structure.causal):
            described.bound(grid, key_grid)
        biases = [p.form(grid, key_grid, self.mask) for p in positions if isinstance(p, Bias)]
        contents = [p.form(grid, key_grid, self.mask) for p in positions if isinstance(p, Content)]
        gates = [p.form(grid, key_grid, self.mask) for p in positions if isinstance(p, Gate)]
        _check_heads(q.shape[1], *biases, *contents, *gates)
        if gates and self.lse:
            raise ValueError(
                "return_lse needs one softmax; a gated position mixes two. Ask for the log-sum-exp without the gate."
            )
        return Problem(
            batch=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1], head_dim=q.shape[3], value_dim=v.shape[3],
            grid=grid, key_grid=key_grid,
            dtype=str(_dtype(q)).removeprefix("torch."), device=q.device.type,
            bias=add_tables(biases) if biases else None,
            content=contents[0] if contents else None,
            bias_grad=torch.is_grad_enabled() and any(_learns(p, q) for p in positions),
            gate=gates[0] if gates else None,
            mask=structure, dropout=self.dropout > 0, lse=self.lse,
            exporting=_exporting(), transformed=torch._C._are_functorch_transforms_active(),
        )  # fmt: skip

    def inputs(self, problem: Problem) -> Inputs:
        grid, key_grid, dtype = problem.grid, problem.key_grid, _dtype(self.q)
        q, k, v = self.q.to(dtype), self.k.to(dtype), self.v.to(dtype)
        mask = None if self.mask is None else self.mask.bound(grid, key_grid)
        _check_mask_batch(mask, q)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        positions, terms = self._positions(), None
        for content in positions:
            if isinstance(content, Content) and problem.content is not None:
                terms, q = content.values(problem.content, q, scale), content.queries(q)
        for rotation in positions:
            if isinstance(rotation, Rotation):
                q, k = rotation(q, grid), rotation(k, key_grid)
        biases = [p.values(problem.bias) for p in positions if isinstance(p, Bias) and problem.bias is not None]
        gates = [p.values(grid, key_grid) for p in positions if isinstance(p, Gate)]
        return Inputs(
            q, k, v,
            scale=scale,
            bias=add_values(biases) if biases else None,
            content=terms,
            gate=gates[0] if gates else None,
            mask=mask, dropout=self.dropout,
            qkv=self.qkv if self.qkv is not None and q is self.q else None,
        )  # fmt: skip

    def _grids(self, structure: Structure) -> tuple[Grid, Grid]:
        queries, keys = self.q.shape[2], self.k.shape[2]
        grid = Grid(queries) if self.grid is None else self.grid
        key_grid = self.key_grid
        if key_grid is None:
            # the lengths are asked: dynamo traces no `not` of a tuple that holds objects
            placed = len(structure.causal) + len(structure.windows) > 0 or self.position is not None
            free = self.grid is None and not placed
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

    def _positions(self) -> tuple[Position, ...]:
        given = self.position
        positions = () if given is None else given if isinstance(given, tuple) else (given,)
        seen = set()
        for p in positions:
            if not isinstance(p, Position):
                raise ValueError(
                    f"position needs a position scheme such as RelativeTable, or a tuple of them; "
                    f"got {type(p).__name__}. For a mask use mask=."
                )
            if isinstance(p, Embedding):
                raise ValueError(
                    f"attention receives projected heads, and {type(p).__name__} acts on tokens before projection. "
                    "Add it to the tokens, or use locant.nn.Attention, which adds it before it projects q and k."
                )
            if isinstance(p, Content) and p.head_dim != self.q.shape[3]:
                raise ValueError(
                    f"{type(p).__name__} has vectors of head_dim={p.head_dim}, and q has {self.q.shape[3]} channels "
                    f"per head. Build it with head_dim={self.q.shape[3]}."
                )
            if p.entrance in seen and p.entrance != "bias":
                raise ValueError(
                    f"position may hold one scheme per entrance (biases add up); got two that {p.entrance}. Keep one."
                )
            seen.add(p.entrance)
        return positions


@torch.compiler.assume_constant_result
def _exporting() -> bool:
    """Asked of Python while a graph is made: dynamo of torch 2.10 takes every compilation for an export."""
    return torch.compiler.is_exporting()


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> None:
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"attention needs q, k and v as [batch, heads, tokens, head_dim]; got {shapes}. Reshape them.")
    if not (q.shape[0] == k.shape[0] == v.shape[0] and k.shape[1:3] == v.shape[1:3] and q.shape[3] == k.shape[3]):
        raise ValueError(
            "attention needs one batch, as many keys as values, and one head_dim for q and k; "
            f"got {shapes}. Make these agree."
        )
    if q.shape[3] == 0:
        raise ValueError(f"attention needs a head_dim of at least 1; got {shapes}. Give heads some channels.")
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
    if str(q.dtype).removeprefix("torch.") not in BYTES:
        raise ValueError(f"attention needs a floating dtype ({', '.join(BYTES)}); got {q.dtype}. Convert q, k and v.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1; got {dropout}. Pass 0.0 in evaluation.")


def _check_heads(heads: int, *forms: OffsetTable | AxialTerms | Separable) -> None:
    for form in forms:
        if form.heads != heads:
            raise ValueError(
                f"the position scheme has {form.heads} heads and q has {heads}. Build it with heads={heads}."
            )


def _check_mask_batch(mask: Mask | None, q: Tensor) -> None:
    for member in () if mask is None else mask.members():
        if isinstance(member, Pairs) and member.allowed_pairs.shape[1] not in (1, q.shape[1]):
            raise ValueError(
                f"Pairs needs {q.shape[1]} heads (or 1); got {member.allowed_pairs.shape[1]}. "
                "Lay it out as [batch, heads, queries, keys], or leave the heads out."
            )
        for name in _MASK_TENSORS:
            value = getattr(member, name, None)
            if isinstance(value, Tensor) and (value.shape[0] not in (1, q.shape[0]) or value.device != q.device):
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


def _learns(position: Position, q: Tensor) -> bool:
    """Whether what it adds to logits has a gradient; content's has one through q as well."""
    parts = (*position.parameters(), *((q,) if isinstance(position, Content) else ()))
    return isinstance(position, Bias | Content) and any(p.requires_grad for p in parts)
