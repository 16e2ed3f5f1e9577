"""Who may attend, said of coordinates.

A mask is a value: `Causal`, `Windows`, `Padding`, `Segments` and `Pairs`, combined with `&`. True always means
*may take part*; every other published sense has a constructor that is named after it. A row that may attend to
nothing gives zeros and finite gradients. Prefix tokens see all and are seen by all, under windows too; under
`Causal` they come first: all see them, and they see only the prefix.

The planner reads `Structure.of(mask)`, which is static; kernels read `mask.pairs(...)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.utils import _pytree

from locant.grid import Grid, Tokens

BLOCKED = -100.0  # Swin writes "blocked" as this finite number; BERT uses -1e4, others -1e9 or -inf: all lie below


class Mask(ABC):
    """Which query may see which key."""

    @abstractmethod
    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "#batch #heads #groups #queries #keys"]:
        """True where the query may see the key, for tokens chosen in groups."""

    def members(self) -> Iterator[Mask]:
        """The masks that this one joins; itself, if it is a single one."""
        yield self

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        """This mask, checked against the grids it is used on and laid out by token. Raises ValueError."""
        return self

    def allowed(
        self, grid: Grid, key_grid: Grid | None = None, device: torch.device | str | None = None
    ) -> Bool[Tensor, "#batch #heads queries keys"]:
        """The dense truth, for looking at it and for the reference."""
        key_grid = grid if key_grid is None else key_grid
        queries, keys = grid.select(device=device), key_grid.select(device=device)
        pairs = self.bound(grid, key_grid).pairs(queries, keys)[:, :, 0]
        return pairs.expand(*pairs.shape[:2], grid.tokens, key_grid.tokens)

    def __and__(self, other: Mask) -> Mask:
        return Every((*self.members(), *other.members()))

    def __repr__(self) -> str:
        shapes = [f"{name}={list(t.shape)}" for name, t in vars(self).items() if isinstance(t, Tensor)]
        return f"{type(self).__name__}({', '.join(shapes)})"


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees keys that do not come after it.

    Args:
        axis: None compares the order of tokens (row-major coordinates); an axis compares that coordinate alone,
            so that `Causal(axis=0)` on a clip lets a frame see itself and all earlier frames whole.
    """

    axis: int | None = None

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "1 1 groups queries keys"]:
        axes = range(queries.coordinates.shape[-1]) if self.axis is None else (self.axis,)
        past = torch.ones((), dtype=torch.bool, device=queries.index.device)
        for axis in reversed(axes):  # lexicographic: an earlier axis decides before a later one
            q, k = queries.coordinates[..., axis, None], keys.coordinates[..., None, :, axis]
            past = (k < q) | ((k == q) & past)
        past = past & queries.placed[..., None]  # a prefix query sees the prefix only
        return (past | ~keys.placed[..., None, :])[None, None]

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        if self.axis is not None and self.axis not in range(grid.axes):
            raise ValueError(
                f"Causal(axis=...) needs an axis of the grid, 0 to {grid.axes - 1} for {grid}; it got {self.axis}. "
                "Name one of those, or leave it out for the order of tokens."
            )
        return self


@dataclass(frozen=True, init=False)
class Windows(Mask):
    """A query sees the keys of its own cell; cells are cut at every multiple of `size`, moved by `shift`.

    Coordinate c lies in cell floor((c - shift) / size), per axis. On any grid the cells are literal: those at the
    border are smaller. For sizes that divide, this equals Swin's cyclic roll with its -100 mask
    (arXiv 2103.14030, section 3.2) without roll or mask. `Windows((T, 1, 1))` is AIM's temporal attention.

    Args:
        size: cells per axis (an int on a sequence), each at least 1.
        shift: per axis; None is no shift. Swin's shifted layers use size // 2.
    """

    size: tuple[int, ...]
    shift: tuple[int, ...]

    def __init__(self, size: int | tuple[int, ...], shift: int | tuple[int, ...] | None = None) -> None:
        size = tuple(size) if isinstance(size, (tuple, list)) else (size,)
        shift = (0,) * len(size) if shift is None else tuple(shift) if isinstance(shift, (tuple, list)) else (shift,)
        if not all(isinstance(n, int) for n in (*size, *shift)) or len(size) != len(shift) or not size or min(size) < 1:
            raise ValueError(
                "Windows needs a size of at least 1 per axis and, if any, a shift per axis, all whole numbers; "
                f"got size={size}, shift={shift}. Write Windows((7, 7), shift=(3, 3))."
            )
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "shift", tuple(s % n for s, n in zip(shift, size, strict=True)))

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "1 1 groups queries keys"]:
        q, k = self._cell(queries.coordinates), self._cell(keys.coordinates)
        same = (q[..., :, None, :] == k[..., None, :, :]).all(-1)
        return (same | ~queries.placed[..., None] | ~keys.placed[..., None, :])[None, None]

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        if len(self.size) != grid.axes:
            raise ValueError(
                f"Windows needs a size per axis of {grid}, which has {grid.axes}; it got {len(self.size)}: "
                f"{self.size}. Give one number per axis, 1 for an axis that is not to mix."
            )
        return self

    def _cell(self, coordinates: Int[Tensor, "*groups count axes"]) -> Int[Tensor, "*groups count axes"]:
        moved = coordinates - coordinates.new_tensor(self.shift)
        return torch.div(moved, moved.new_tensor(self.size), rounding_mode="floor")

    def cell_of(self, axis: int, coordinate: int) -> int:
        """The same on one axis, in plain integers: what a planner needs."""
        return (coordinate - self.shift[axis]) // self.size[axis]


class Padding(Mask):
    """Keys that are not there are seen by nobody. Rows of padded queries are still computed.

    Args:
        valid: bool, True = a real token: `[batch, tokens]` over all keys, the prefix included, or
            `[batch, *grid]` over the cells, the prefix then being real.
    """

    def __init__(self, valid: Bool[Tensor, "batch *tokens"]) -> None:
        if valid.dtype != torch.bool or valid.ndim < 2:
            raise ValueError(
                "Padding needs a bool tensor [batch, tokens] or [batch, *grid], True for a real token; "
                f"got {valid.dtype} of shape {tuple(valid.shape)}. "
                "For other senses use from_lengths, from_key_padding_mask, from_attention_mask or from_additive."
            )
        self.valid = valid

    @classmethod
    def from_lengths(cls, lengths: Int[Tensor, " batch"], tokens: int) -> Padding:
        """The first `lengths[b]` of `tokens` keys are real (d2l's 1-D `valid_lens`)."""
        return cls(torch.arange(tokens, device=lengths.device) < lengths[:, None])

    @classmethod
    def from_key_padding_mask(cls, mask: Bool[Tensor, "batch *tokens"]) -> Padding:
        """True = *ignore* (`nn.MultiheadAttention`, DETR's masks `[batch, rows, columns]`)."""
        if mask.dtype != torch.bool:
            raise ValueError(
                f"from_key_padding_mask needs a bool tensor, True = ignore; got {mask.dtype}. "
                "If 1 means keep, use from_attention_mask; if it is added to the logits, from_additive."
            )
        return cls(~mask)

    @classmethod
    def from_attention_mask(cls, mask: Shaped[Tensor, "batch *tokens"]) -> Padding:
        """1 = keep, 0 = padding (BERT and the transformers library, its DETR `pixel_mask` included)."""
        return cls(_zero_or_one("from_attention_mask", mask).bool())

    @classmethod
    def from_additive(cls, mask: Float[Tensor, "batch ... tokens"]) -> Padding:
        """0 = keep, a large negative number = padding, `[batch, 1, 1, tokens]` (BERT adds (1 - m) * -10000)."""
        if mask.ndim < 2 or any(size != 1 for size in mask.shape[1:-1]):
            raise ValueError(
                "Padding.from_additive needs a mask [batch, tokens] or [batch, 1, 1, tokens]; "
                f"got {list(mask.shape)}. If it differs by query or head, use Pairs.from_additive."
            )
        return cls(_not_blocked(mask).reshape(mask.shape[0], mask.shape[-1]))

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "batch 1 groups 1 keys"]:
        return self.valid[:, keys.index][:, None, :, None, :]

    def bound(self, grid: Grid, key_grid: Grid) -> Padding:
        by_token, _ = _by_token("Padding", "valid", self.valid, key_grid, fill=True)
        return Padding(by_token)


class Segments(Mask):
    """A query sees keys of its own segment: packed sequences, several pictures in one row.

    Args:
        ids: whole numbers, `[batch, tokens]` with the prefix or `[batch, *grid]`, whose prefix then sees all.
        key_ids: the same for keys on a grid of their own; by default the queries' ids.
    """

    def __init__(self, ids: Int[Tensor, "batch *tokens"], key_ids: Int[Tensor, "batch *keys"] | None = None) -> None:
        key_ids = ids if key_ids is None else key_ids
        for name, value in (("ids", ids), ("key_ids", key_ids)):
            if value.is_floating_point() or value.dtype == torch.bool or value.ndim < 2:
                raise ValueError(
                    f"Segments needs whole numbers [batch, tokens] or [batch, *grid] as {name}; "
                    f"got {value.dtype} of shape {tuple(value.shape)}. Number the segments 0, 1, 2, ..."
                )
        self.ids, self.key_ids = ids, key_ids
        self._literal = (True, True)  # whether the prefix has ids of its own, set by bound()

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "batch 1 groups queries keys"]:
        q, k = self.ids[:, queries.index], self.key_ids[:, keys.index]
        same = q[..., :, None] == k[..., None, :]
        if not self._literal[0]:
            same = same | ~queries.placed[..., None]
        if not self._literal[1]:
            same = same | ~keys.placed[..., None, :]
        return same[:, None]

    def free(self, grid: Grid, key_grid: Grid) -> tuple[int, int]:
        """How many queries and keys belong to every segment: a prefix without ids of its own."""
        return 0 if self._literal[0] else grid.prefix, 0 if self._literal[1] else key_grid.prefix

    def bound(self, grid: Grid, key_grid: Grid) -> Segments:
        ids, literal = _by_token("Segments", "ids", self.ids, grid, fill=0)
        key_ids, key_literal = _by_token("Segments", "key_ids", self.key_ids, key_grid, fill=0)
        bound = Segments(ids, key_ids)
        bound._literal = (literal and self._literal[0], key_literal and self._literal[1])  # also if bound before
        return bound


class Pairs(Mask):
    """Any set of pairs, given densely and taken literally, the prefix included. Costs a tensor of its size.

    Args:
        allowed: bool, True = may take part: `[queries, keys]`, `[batch, queries, keys]` or
            `[batch, heads, queries, keys]`, sizes of 1 standing for all.
    """

    def __init__(self, allowed: Bool[Tensor, "*batch queries keys"]) -> None:
        if allowed.dtype != torch.bool or not 2 <= allowed.ndim <= 4:
            raise ValueError(
                "Pairs needs a bool tensor [queries, keys], [batch, queries, keys] or [batch, heads, queries, keys], "
                f"True = may take part; got {allowed.dtype} of shape {tuple(allowed.shape)}. "
                "For other senses use from_kept, from_blocked, from_additive, from_window_mask or from_lengths."
            )
        self.allowed_pairs = allowed

    @classmethod
    def from_kept(cls, mask: Shaped[Tensor, "*batch queries keys"]) -> Pairs:
        """1 or True = keep, 0 = blocked (torch's SDPA bool mask; The Annotated Transformer)."""
        return cls(_zero_or_one("from_kept", mask).bool())

    @classmethod
    def from_blocked(cls, mask: Shaped[Tensor, "*batch queries keys"]) -> Pairs:
        """1 or True = blocked (TensorFlow's tutorial, Transformer-XL, XLNet, MultiheadAttention's bool `attn_mask`)."""
        return cls(~_zero_or_one("from_blocked", mask).bool())

    @classmethod
    def from_additive(cls, mask: Float[Tensor, "*batch queries keys"]) -> Pairs:
        """0 = free, -100 or less = blocked (BERT, float masks of SDPA). Anything between is a bias: refused."""
        return cls(_not_blocked(mask))

    @classmethod
    def from_window_mask(cls, mask: Float[Tensor, "windows queries keys"], batch: int) -> Pairs:
        """Swin's `attn_mask` for `batch` pictures whose windows are laid along the batch, picture by picture."""
        return cls(_not_blocked(mask).repeat(batch, 1, 1))

    @classmethod
    def from_lengths(cls, lengths: Int[Tensor, "batch queries"], keys: int) -> Pairs:
        """Query i of sample b sees the first `lengths[b, i]` keys (d2l's 2-D `valid_lens`)."""
        return cls(torch.arange(keys, device=lengths.device) < lengths[..., None])

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "#batch #heads groups queries keys"]:
        q, k = queries.index[..., :, None], keys.index[..., None, :]
        rows, columns = self.allowed_pairs.shape[-2:]
        return self.allowed_pairs[:, :, q if rows > 1 else q * 0, k if columns > 1 else k * 0]

    def bound(self, grid: Grid, key_grid: Grid) -> Pairs:
        allowed = self.allowed_pairs
        rows, columns = allowed.shape[-2:]
        if rows not in (1, grid.tokens) or columns not in (1, key_grid.tokens):
            raise ValueError(
                f"Pairs needs {grid.tokens} queries × {key_grid.tokens} keys (prefix included) or sizes of 1; "
                f"got {rows} × {columns}. Lay the mask out for {grid} and {key_grid}."
            )
        allowed = allowed[:, None] if allowed.ndim == 3 else allowed
        return Pairs(allowed.reshape(*(1,) * (4 - allowed.ndim), *allowed.shape))


class Every(Mask):
    """Several masks at once: a pair must be allowed by every one. Written `a & b`."""

    def __init__(self, masks: tuple[Mask, ...]) -> None:
        self.masks = masks

    def members(self) -> Iterator[Mask]:
        return iter(self.masks)

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.masks))

    def bound(self, grid: Grid, key_grid: Grid) -> Mask:
        return Every(tuple(m.bound(grid, key_grid) for m in self.masks))

    def pairs(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "#batch #heads #groups #queries #keys"]:
        pairs = self.masks[0].pairs(queries, keys)
        for mask in self.masks[1:]:
            pairs = pairs & mask.pairs(queries, keys)
        return pairs


@dataclass(frozen=True)
class Structure:
    """What is static about a mask: all that a planner may read."""

    causal: tuple[Causal, ...] = ()
    windows: tuple[Windows, ...] = ()
    padding: bool = False
    segments: int = 0  # how many
    pairs: bool = False

    @staticmethod
    def of(mask: Mask | None) -> Structure:
        members = () if mask is None else tuple(mask.members())
        return Structure(
            causal=tuple(m for m in members if isinstance(m, Causal)),
            windows=tuple(m for m in members if isinstance(m, Windows)),
            padding=any(isinstance(m, Padding) for m in members),
            segments=sum(isinstance(m, Segments) for m in members),
            pairs=any(isinstance(m, Pairs) for m in members),
        )

    def beyond_windows(self) -> str | None:
        """The names of what is not windows, or None."""
        named = {"causal": self.causal, "padding": self.padding, "segments": self.segments, "pairs": self.pairs}
        return " and ".join(name for name, there in named.items() if there) or None


def _by_token(what: str, name: str, value: Tensor, grid: Grid, fill: int) -> tuple[Tensor, bool]:
    """`value` as `[batch, tokens]`, and whether it spoke of the prefix itself."""
    if tuple(value.shape[1:]) == (grid.tokens,):
        return value, True
    if tuple(value.shape[1:]) == grid.shape:
        prefix = value.new_full((value.shape[0], grid.prefix), fill)
        return torch.cat([prefix, value.flatten(1)], dim=1), False
    raise ValueError(
        f"{what} on {grid} needs `{name}` of shape [batch, {grid.tokens}] (prefix included) or "
        f"[batch, {', '.join(map(str, grid.shape))}]; got {list(value.shape)}. Lay it out for that grid."
    )


def _zero_or_one(what: str, mask: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"{what} needs zeros and ones; the mask ({mask.dtype}) holds other numbers. "
            "If it is added to the logits, use from_additive."
        )
    return mask


def _not_blocked(mask: Tensor) -> Tensor:
    free = mask == 0
    if not torch.compiler.is_compiling() and not bool((free | (mask <= BLOCKED)).all()):
        raise ValueError(
            "an additive mask needs zeros (free) and numbers of -100 or less (blocked); it holds others, "
            f"such as {float(mask[~free & ~(mask <= BLOCKED)][0]):.4g}. Numbers between are a bias, not a mask."
        )
    return free


def _register(kind: type[Mask], names: tuple[str, ...]) -> None:
    """Masks that hold tensors are pytree nodes, so that they pass compile, export and checkpointing."""

    def flatten(mask: Any) -> tuple[list[Any], Any]:
        return [getattr(mask, n) for n in names], getattr(mask, "_literal", None)

    def with_keys(mask: Any) -> tuple[list[Any], Any]:
        children, literal = flatten(mask)
        return [(_pytree.GetAttrKey(n), child) for n, child in zip(names, children, strict=True)], literal

    def unflatten(children: Any, literal: Any) -> Any:
        mask = object.__new__(kind)
        for name, child in zip(names, children, strict=True):
            setattr(mask, name, child)
        if literal is not None:
            setattr(mask, "_literal", literal)  # noqa: B010 (only Segments has it)
        return mask

    name = f"locant.masks.{kind.__name__}"
    _pytree.register_pytree_node(kind, flatten, unflatten, serialized_type_name=name, flatten_with_keys_fn=with_keys)


_pytree.register_constant(Causal)
_pytree.register_constant(Windows)
_register(Padding, ("valid",))
_register(Segments, ("ids", "key_ids"))
_register(Pairs, ("allowed_pairs",))
_register(Every, ("masks",))
