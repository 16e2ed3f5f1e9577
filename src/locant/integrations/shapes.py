"""Classes that nobody told Locant of, known by what they are made of: copies of Swin's attention, block, perceptron.

Their parts have the names that the first Swin gave them, and copies of it kept. That says nothing of what their code
does: each has to agree with its own forward first, on random input in float64, with and without a mask, on maps that
are shifted (locant.integrations.trying). What only a call can tell is asked at the call: a mask that is not the one
that shifted windows have, and a map that windows do not divide, run the class's own forward.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from locant.integrations.borrowed import BorrowedTable
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.halves import residual_perceptron
from locant.integrations.layers import perceptron_family
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import attend_projected, half_of_swin, swin_attention
from locant.masks import Windows
from locant.nn.window import window_mask


def family_of_shape(module: nn.Module) -> Family | None:
    """The family whose parts this module has, or None."""
    names = _parameters(module)
    if _is_attention(module) and names == ("x", "mask"):
        return _ATTENTION
    if _is_attention(getattr(module, "attn", None)) and names in _CALLS and _has(module, *_BLOCK):
        return _BLOCKS
    is_perceptron = names == ("x",) and {"fc1", "act", "fc2"} <= {*dict(module.named_children())} <= _PERCEPTRON
    return _PERCEPTRONS if is_perceptron else None


_PERCEPTRON = {"fc1", "act", "fc2", "drop", "drop1", "drop2", "norm"}
_BLOCK = ("norm1", "norm2", "mlp", "window_size", "shift_size")
_CALLS = (("x",), ("x", "x_size"), ("x", "mask_matrix"))


def _parameters(module: nn.Module) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(type(module).forward).parameters)[1:]
    except (TypeError, ValueError):
        return ()


def _has(module: object, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


def _is_attention(module: object) -> bool:
    """Whether its parts are those of Swin's attention, and its table has a row for each offset of its window."""
    if not _has(module, "relative_position_bias_table", "relative_position_index", "qkv", "proj", "num_heads", "scale"):
        return False
    m: Any = module
    window = getattr(m, "window_size", None)
    if not isinstance(window, tuple | list) or not all(isinstance(side, int) for side in window):
        return False
    sizes = (math.prod(2 * side - 1 for side in window), m.num_heads)
    table = m.relative_position_bias_table
    return isinstance(table, Tensor) and tuple(table.shape) == sizes and hasattr(m.qkv, "in_features")


# --- attention: windows lie along the batch ---------------------------------------------------------------------------


def _forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is not None:
        return type(self).forward(self, x, mask)
    position = self._locant.position
    dropout = dropout_of(getattr(self, "attn_drop", None))
    out = self.proj(attend_projected(self.qkv(x), position.grid, None, position, self.num_heads, self.scale, dropout))
    return self.proj_drop(out) if hasattr(self, "proj_drop") else out


def _attention(module: nn.Module) -> Offer:
    m: Any = module
    position = _table(m)
    attended = Attended(m.num_heads, m.qkv.out_features // (3 * m.num_heads), position, position.grid)
    tokens, width = position.grid.tokens, m.qkv.in_features

    def trial(_: nn.Module) -> list[tuple[Any, ...]]:
        x = torch.randn(4, tokens, width, dtype=torch.float64)
        return [(x,), (x, torch.zeros(2, tokens, tokens, dtype=torch.float64))]

    return Offer(Replacement({"forward": _forward}, State(position=position)), "table, by its shape", trial, attended)


def _table(attn: Any) -> BorrowedTable:
    return BorrowedTable(attn, "relative_position_bias_table", "window_size", attn.num_heads)


# --- blocks: x is a map's tokens in a row -----------------------------------------------------------------------------


def _block_forward(self: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
    (name, *_), state = (*more, *named.values(), None), self._locant
    window, shift = _windows(self)
    # 1 the sides of the map, and whether windows are what the class takes them for
    sides = _sides(self, state.call, name)
    filled = tuple(-(-side // size) * size for side, size in zip(sides, window, strict=True))
    given = state.call == "mask_matrix" and any(shift)
    if (state.call != "mask_matrix" and filled != sides) or (given and not is_mask(name, filled, window, shift)):
        return type(self).forward(self, x, *more, **named)
    # 2 the block
    drop_path = getattr(self, "drop_path", None) or nn.Identity()
    tokens = x.unflatten(1, sides)
    half = half_of_swin(tokens, self.norm1, self.attn, drop_path)
    tokens = self.norm1(x).unflatten(1, sides) if half is None else tokens
    out = swin_attention(self.attn, tokens, window, shift, "pad-roll", state.position, half).flatten(1, -2)
    x = out if half is not None else x + drop_path(out)
    return residual_perceptron(x, self.norm2, self.mlp, drop_path)


_forward.__name__ = _block_forward.__name__ = "forward"


def _windows(block: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    window, shift = (
        (value,) * 2 if isinstance(value, int) else tuple(value) for value in (block.window_size, block.shift_size)
    )
    return window, shift


def _sides(block: Any, call: str, given: Any) -> tuple[int, ...]:
    if call == "x_size":
        return tuple(int(side) for side in given)
    return (block.H, block.W) if call == "mask_matrix" else tuple(block.input_resolution)


def is_mask(mask: Any, sides: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> bool:
    """Whether it is that of these windows. A graph can't ask: it keeps the class's own forward."""
    if torch.compiler.is_compiling() or not isinstance(mask, Tensor):
        return False
    own = window_mask(sides, window, shift, mask.device)
    return mask.shape == own.shape and torch.equal(mask == 0, own) and bool((mask[~own] <= -100).all())


def _block(block: nn.Module) -> Offer | str:
    module: Any = block
    attn, call = module.attn, _parameters(block)[-1]
    window, shift = _windows(module)
    if tuple(attn.window_size) != window or not _has(attn, "attn_drop", "proj_drop"):
        return "its window is another than its attention's, or it lacks dropouts"
    if call == "x" and not _has(module, "input_resolution"):
        return "it does not say how large its map is"
    position = _table(attn)
    attended = Attended(attn.num_heads, attn.qkv.in_features // attn.num_heads, position, None, Windows(window, shift))
    what = f"table, windows of {window[0]} × {window[1]}, by its shape" + (", shifted" if any(shift) else "")
    replacement = Replacement({"forward": _block_forward}, State(position=position, call=call))
    return Offer(replacement, what, _maps, attended, inside=("attn",))


def _maps(block: nn.Module) -> list[tuple[Any, ...]]:
    """Calls as the block's signature has them."""
    module: Any = block
    (window, shift), call = _windows(module), _parameters(block)[-1]

    def tokens(sides: tuple[int, ...]) -> Tensor:
        return torch.randn(2, math.prod(sides), module.attn.qkv.in_features, dtype=torch.float64)

    if call == "x":
        return [(tokens(tuple(module.input_resolution)),)]
    if call == "x_size":
        several = [tuple(n * side for side in window) for n in (2, 3)]
        return [(tokens(sides), sides) for sides in several]
    module.H, module.W = sides = (2 * window[0] - 1, 3 * window[1])
    filled = (2 * window[0], 3 * window[1])
    mask = torch.where(window_mask(filled, window, shift, torch.device("cpu")), 0.0, -100.0).double()
    return [(tokens(sides), mask)]


_ATTENTION = Family("attention", (), ("forward",), _attention)
_BLOCKS = Family("attention", (), ("forward",), _block)
_PERCEPTRONS = perceptron_family((), "fc1", "act", "fc2")
