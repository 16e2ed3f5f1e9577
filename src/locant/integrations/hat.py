"""HAT (arXiv 2205.04437) and its copies, known by their shape: windows beside a convolution, and overlapping windows.

Each block is tried against its own forward first, as every class that nobody told Locant of. A model hands the index
of its table, and the mask of shifted windows, to its blocks: they are compared with what they stand for at each call,
so that graphs, which can't ask, keep the class's own forward.

In an overlapping block the window of the keys is larger than that of the queries. Keys beyond the map are zeros, and
take part. Its published index counts from a negative number, which torch reads from the end of the table: still one
row per offset, [(ws + we - 1)², heads] for windows of ws and we.
"""

from __future__ import annotations

import inspect
import math
import weakref
from typing import Any, final

import torch
from torch import Tensor, nn

from locant.attend import attention
from locant.grid import Grid
from locant.integrations.borrowed import BorrowedTable
from locant.integrations.family import Attended, Family, Offer
from locant.integrations.halves import residual_perceptron
from locant.integrations.replacing import Replacement, State
from locant.integrations.shapes import is_mask
from locant.integrations.windowed import swin_attention
from locant.masks import Structure, Windows
from locant.nn.window import window_mask
from locant.positions.position import Bias


def family_of_hat(module: nn.Module) -> Family | None:
    """The family whose parts and arguments this module has, or None."""
    try:
        names = tuple(inspect.signature(type(module).forward).parameters)[1:]
    except (TypeError, ValueError):
        return None
    if names == ("x", "x_size", "rpi_sa", "attn_mask") and _has(module, *_BLOCK, "attn", "conv_block", "conv_scale"):
        attn: Any = module.attn
        return _HYBRID if _has(attn, "relative_position_bias_table", "qkv", "proj", "num_heads", "scale") else None
    if names == ("x", "x_size", "rpi") and _has(module, *_OVERLAPPING):
        return _OVERLAP
    return None


_BLOCK = ("norm1", "norm2", "mlp", "drop_path", "window_size", "shift_size")
_OVERLAPPING = (
    "norm1", "norm2", "mlp", "qkv", "proj", "unfold", "window_size", "overlap_win_size", "num_heads", "scale",
    "relative_position_bias_table",
)  # fmt: skip


def _has(module: object, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


# --- windows beside a convolution -------------------------------------------------------------------------------------


def _hybrid_forward(self: Any, x: Tensor, x_size: tuple[int, int], rpi_sa: Tensor, attn_mask: Tensor | None) -> Tensor:
    position, sides = self._locant.position, (int(x_size[0]), int(x_size[1]))
    window, shift = (self.window_size,) * 2, (self.shift_size,) * 2
    fits = all(side % self.window_size == 0 for side in sides)
    masked = not self.shift_size or _is_known(attn_mask, sides, window, shift)
    if not (fits and masked and _is_index(rpi_sa, _index(self.window_size))):
        return type(self).forward(self, x, x_size, rpi_sa, attn_mask)
    inner = self.norm1(x).unflatten(1, sides)
    beside = self.conv_block(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
    attended = swin_attention(self.attn, inner, window, shift, "pad-roll", position).flatten(1, 2)
    x = x + self.drop_path(attended) + beside * self.conv_scale
    return residual_perceptron(x, self.norm2, self.mlp, self.drop_path)


_SEEN: list[tuple[Any, ...]] = []  # the last mask that was compared, which all blocks of a model are handed


def _is_known(mask: Any, sides: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> bool:
    """Whether it is that of these windows: a pass over all pairs, once for each mask that counts what is written."""
    if torch.compiler.is_compiling() or not isinstance(mask, Tensor) or mask.is_inference():
        return is_mask(mask, sides, window, shift)
    mark = mask._version, sides, window, shift
    if any(seen() is mask and mark == last for seen, last in _SEEN):
        return True
    known = is_mask(mask, sides, window, shift)
    if known:
        _SEEN[:] = [(weakref.ref(mask), mark)]
    return known


def _index(side: int) -> Tensor:
    """Of a table of Swin, [(2 side - 1)², heads], for every query and key of a window."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = places[:, None] - places + side - 1
    return apart[..., 0] * (2 * side - 1) + apart[..., 1]


def _is_index(given: Any, own: Tensor) -> bool:
    """Whether it is the published index. A graph can't ask."""
    if torch.compiler.is_compiling() or not isinstance(given, Tensor) or given.shape != own.shape:
        return False
    return torch.equal(given.to("cpu", torch.int64), own)


def _hybrid(block: nn.Module) -> Offer | str:
    module: Any = block
    attn, side, shift = module.attn, module.window_size, module.shift_size
    if not isinstance(side, int) or tuple(attn.relative_position_bias_table.shape) != (
        (2 * side - 1) ** 2,
        attn.num_heads,
    ):
        return "its table has not a row for each offset of its window"
    if not _has(attn, "attn_drop", "proj_drop"):
        return "its attention lacks dropouts"
    position = BorrowedTable(attn, "relative_position_bias_table", "window_size", attn.num_heads)
    windows = Windows((side, side), (shift, shift))
    attended = Attended(attn.num_heads, attn.qkv.in_features // attn.num_heads, position, None, windows)

    def trial(_: nn.Module) -> tuple[Any, ...]:
        sides = (2 * side, 3 * side)
        there = window_mask(sides, (side, side), (shift, shift), torch.device("cpu"))
        mask = torch.where(there, 0.0, -100.0).double() if shift else None
        return _tokens(sides, attn.qkv.in_features), sides, _index(side), mask

    what = f"table, windows of {side} × {side}, by its shape" + (", shifted" if shift else "")
    return Offer(Replacement({"forward": _hybrid_forward}, State(position=position)), what, trial, attended, ("attn",))


def _tokens(sides: tuple[int, int], width: int) -> Tensor:
    return torch.randn(2, math.prod(sides), width, dtype=torch.float64)


# --- overlapping windows ----------------------------------------------------------------------------------------------


@final
class BorrowedOverlap(Bias):
    """The table of an overlapping block, [(ws + we - 1)², heads], for keys that begin (we - ws) / 2 before queries."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        module: Any = owner
        self.__dict__["owner"] = owner
        self.heads = module.num_heads

    def parameters(self, recurse: bool = True) -> Any:
        owner: Any = self.owner
        yield owner.relative_position_bias_table

    def at(self, offset: Tensor) -> Tensor:
        owner: Any = self.owner
        table = owner.relative_position_bias_table
        row = _overlap_row(-offset + _before(owner), owner.window_size, owner.overlap_win_size)
        return table.index_select(0, row.flatten()).T.reshape(-1, *row.shape)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        """Its windows are those of its table."""


def _before(block: Any) -> int:
    return (block.overlap_win_size - block.window_size) // 2


def _overlap_row(apart: Tensor, side: int, wide: int) -> Tensor:
    """The row of a table for key - query [..., 2], counted in their windows."""
    apart = apart + side - wide + 1
    width = side + wide - 1
    return (apart[..., 0] * width + apart[..., 1]) % width**2


def _overlap_forward(self: Any, x: Tensor, x_size: tuple[int, int], rpi: Tensor) -> Tensor:
    side, wide, heads = self.window_size, self.overlap_win_size, self.num_heads
    rows, columns = int(x_size[0]), int(x_size[1])
    known = _is_index(rpi % len(self.relative_position_bias_table), _overlap_index(side, wide))
    if rows % side or columns % side or not known:
        return type(self).forward(self, x, x_size, rpi)
    # 1 queries in windows, keys and values in wider ones, zeros beyond the map
    q, kv = self.qkv(self.norm1(x)).split((x.shape[-1], 2 * x.shape[-1]), dim=-1)
    q = q.unflatten(1, (rows // side, side, columns // side, side)).permute(0, 1, 3, 2, 4, 5).flatten(3, 4)
    q = q.flatten(0, 2).unflatten(-1, (heads, -1)).transpose(1, 2)
    kv = self.unfold(kv.transpose(1, 2).unflatten(2, (rows, columns)))
    k, v = kv.unflatten(1, (2, heads, -1, wide * wide)).permute(1, 0, 5, 2, 4, 3).flatten(1, 2).unbind(0)
    # 2 attention
    start, position = -_before(self), self._locant.position
    keys = Grid(wide, wide, origin=(start, start))
    out = attention(q, k, v, grid=Grid(side, side), key_grid=keys, position=position, scale=self.scale)
    # 3 back to the map
    out = out.transpose(1, 2).flatten(2).unflatten(0, (len(x), rows // side, columns // side))
    out = out.unflatten(3, (side, side)).permute(0, 1, 3, 2, 4, 5).flatten(1, 4)
    x = self.proj(out) + x
    return x + self.mlp(self.norm2(x))


def _overlap_index(side: int, wide: int) -> Tensor:
    queries, keys = (torch.cartesian_prod(torch.arange(n), torch.arange(n)) for n in (side, wide))
    return _overlap_row(keys - queries[:, None], side, wide)


def _overlap(block: nn.Module) -> Offer | str:
    module: Any = block
    side, wide = module.window_size, module.overlap_win_size
    if tuple(module.relative_position_bias_table.shape) != ((side + wide - 1) ** 2, module.num_heads):
        return "its table has not a row for each offset of its windows"
    position = BorrowedOverlap(block)
    attended = Attended(module.num_heads, module.qkv.in_features // module.num_heads, position)

    def trial(_: nn.Module) -> tuple[Any, ...]:
        sides = (2 * side, 3 * side)
        return _tokens(sides, module.qkv.in_features), sides, _overlap_index(side, wide)

    what = f"table, windows of {side} × {side} in {wide} × {wide}, by its shape"
    return Offer(Replacement({"forward": _overlap_forward}, State(position=position)), what, trial, attended)


_hybrid_forward.__name__ = _overlap_forward.__name__ = "forward"

_HYBRID = Family("attention", (), ("forward",), _hybrid)
_OVERLAP = Family("attention", (), ("forward",), _overlap)
