"""timm: Swin, Swin v2, BEiT, ViT with a table, ConViT, ViT. Nothing of timm is imported: its modules say what they are.

Swin at block depth: the blocks cut windows. The others in their attention, which takes all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from locant.grid import Grid
from locant.integrations.borrowed import BorrowedGate, BorrowedTable
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.halves import JOINED, Half, conclude, project, residual_attention, residual_perceptron
from locant.integrations.layers import linear_with
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import attend_projected, cosine_attention, half_of_swin, swin_attention
from locant.masks import Windows
from locant.positions.position import Position

# --- windows ----------------------------------------------------------------------------------------------------------


def _attn(self: Any, x: Tensor) -> Tensor:
    window, shift = tuple(self.window_size), tuple(self.shift_size)
    return swin_attention(self.attn, x, window, shift, "roll-pad", self._locant.position)


def _swin_forward(self: Any, x: Tensor) -> Tensor:
    half = half_of_swin(x, self.norm1, self.attn, self.drop_path1)
    if half is None:
        x = x + self.drop_path1(self._attn(self.norm1(x)))
    else:
        window, shift = tuple(self.window_size), tuple(self.shift_size)
        x = swin_attention(self.attn, x, window, shift, "roll-pad", self._locant.position, half)
    return residual_perceptron(x, self.norm2, self.mlp, self.drop_path2)


_swin_forward.__name__ = "forward"


def _angles(self: Any, x: Tensor) -> Tensor:
    window, shift = tuple(self.window_size), tuple(self.shift_size)
    return cosine_attention(self.attn, x, window, shift, "roll-pad", self._locant.position, _bias(self.attn))


_angles.__name__ = "_attn"


def _swin_v2_forward(self: Any, x: Tensor) -> Tensor:
    half = half_of_swin(x, self.norm1, self.attn, self.drop_path1, behind=True)
    if half is None:
        x = x + self.drop_path1(self.norm1(self._attn(x)))
    else:
        window, shift, attn = tuple(self.window_size), tuple(self.shift_size), self.attn
        x = cosine_attention(attn, x, window, shift, "roll-pad", self._locant.position, _bias(attn), half)
    return residual_perceptron(x, self.norm2, self.mlp, self.drop_path2, behind=True)


_swin_v2_forward.__name__ = "forward"


def _shifted_window_attn(self: Any, x: Tensor) -> Tensor:
    attn = self.attn
    if dropout_of(attn.meta_mlp.drop1):  # drawn pair by pair: the bias is no function of the offset then
        return type(self)._shifted_window_attn(self, x)
    window, shift = tuple(self.window_size), tuple(self.shift_size)
    return cosine_attention(attn, x, window, shift, "roll-pad", self._locant.position, attn.qkv.bias)


def _swin(block: nn.Module) -> Offer:
    module: Any = block
    attn = module.attn
    position = BorrowedTable(attn, "relative_position_bias_table", "window_size", attn.num_heads)
    offer = _block(module, _attn, position, "table", module.input_resolution)
    return replace(offer, replacement=Replacement({"_attn": _attn, "forward": _swin_forward}, offer.replacement.state))


def _swin_v2(block: nn.Module) -> Offer:
    module: Any = block
    position = BorrowedTable(module.attn, "cpb_mlp", "window_size", module.attn.num_heads, rows=_read_field)
    offer = _block(module, _angles, position, "log-CPB by angles", module.input_resolution)
    methods = {"_attn": _angles, "forward": _swin_v2_forward}
    return replace(offer, replacement=Replacement(methods, offer.replacement.state))


def _swin_v2_cr(block: nn.Module) -> Offer:
    module: Any = block
    position = BorrowedTable(module.attn, "meta_mlp", "window_size", module.attn.num_heads, rows=_read_meta)
    return _block(module, _shifted_window_attn, position, "perceptron of offsets by angles", module.feat_size)


def _block(
    module: Any, method: Callable[..., Tensor], position: BorrowedTable, what: str, sides: tuple[int, int]
) -> Offer:
    window, shift = tuple(module.window_size), tuple(module.shift_size)
    head_dim = module.attn.qkv.out_features // (3 * position.heads)
    attended = Attended(position.heads, head_dim, position, Grid(*sides), Windows(window, shift))
    what = f"{what}, windows of {window[0]} × {window[1]}" + (", shifted" if any(shift) else "")
    replacement = Replacement({method.__name__: method}, State(position=position))
    return Offer(replacement, what, lambda block: _map(block, sides), attended, inside=("attn",))


def _map(block: nn.Module, sides: tuple[int, int]) -> tuple[Any, ...]:
    """A map of the size that the block was built for: its mask is."""
    module: Any = block
    return (torch.randn(2, *sides, module.dim, dtype=torch.float64),)


def _read_field(owner: Any) -> Tensor:
    return 16 * torch.sigmoid(owner.cpb_mlp(owner.relative_coords_table).view(-1, owner.num_heads))


def _read_meta(owner: Any) -> Tensor:
    scale = owner.logit_scale
    lines = [torch.arange(1 - side, side, dtype=torch.float32, device=scale.device) for side in owner.window_size]
    apart = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, 1)
    return owner.meta_mlp((apart.sign() * torch.log(1 + apart.abs())).to(scale.dtype))


def _bias(attn: Any) -> Tensor | None:
    """Of qkv, where its three parts belong to the attention."""
    return None if attn.q_bias is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))


# --- all tokens -------------------------------------------------------------------------------------------------------


def _beit_forward(
    self: Any, x: Tensor, shared_rel_pos_bias: Tensor | None = None, half: Half | None = None
) -> Tensor | None:
    if shared_rel_pos_bias is not None:
        return None if half else type(self).forward(self, x, shared_rel_pos_bias)
    position = self._locant.position
    qkv = linear_with(self.qkv, x, _bias(self), half and half.norm)
    out = attend_projected(qkv, position.grid, None, position, self.num_heads, self.scale, dropout_of(self.attn_drop))
    return conclude(self.proj, self.proj_drop, out, half)


def _relpos_forward(self: Any, x: Tensor, shared_rel_pos: Tensor | None = None, half: Half | None = None) -> Tensor:
    position = self._locant.position
    return conclude(self.proj, self.proj_drop, _attend(self, x, position.grid, position, half), half)


def _plain_forward(
    self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, half: Half | None = None
) -> Tensor | None:
    if attn_mask is not None or is_causal or (half and self.gate is not None):
        return None if half else type(self).forward(self, x, attn_mask, is_causal)
    out = self.norm(_attend(self, x, Grid(x.shape[1]), None, half))
    out = out if self.gate is None else out * self.gate(x).sigmoid()
    return conclude(self.proj, self.proj_drop, out, half)


def _class_forward(self: Any, x: Tensor, half: Half | None = None) -> Tensor:
    qkv, dropout = project(self.qkv, x, half), dropout_of(self.attn_drop)
    out = attend_projected(qkv, Grid(x.shape[1]), None, None, self.num_heads, self.scale, dropout)
    return conclude(self.proj, self.proj_drop, out, half)


def _gated_forward(self: Any, x: Tensor, half: Half | None = None) -> Tensor | None:
    side = math.isqrt(x.shape[1])
    if side * side != x.shape[1]:
        return None if half else type(self).forward(self, x)
    if self.rel_indices is None or self.rel_indices.shape[1] != x.shape[1]:
        self.rel_indices = self.get_rel_indices(x.shape[1])  # what the module's maps are drawn from
    projected = *project(self.qk, x, half).chunk(2, dim=-1), project(self.v, x, half)
    dropout = dropout_of(self.attn_drop)
    position = self._locant.position
    out = attend_projected(projected, Grid(side, side), None, position, self.num_heads, self.scale, dropout)
    return conclude(self.proj, self.proj_drop, out, half)


# --- blocks -----------------------------------------------------------------------------------------------------------


def _vit_block_forward(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    named: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal}
    x = residual_attention(x, self.norm1, self.attn, self.drop_path1, self.ls1, **named)
    return residual_perceptron(x, self.norm2, self.mlp, self.drop_path2, self.ls2)


def _relpos_block_forward(self: Any, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
    x = residual_attention(x, self.norm1, self.attn, self.drop_path1, self.ls1, shared_rel_pos=shared_rel_pos)
    return residual_perceptron(x, self.norm2, self.mlp, self.drop_path2, self.ls2)


def _beit_block_forward(self: Any, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
    named: dict[str, Any] = {"shared_rel_pos_bias": shared_rel_pos_bias}
    x = residual_attention(x, self.norm1, self.attn, self.drop_path1, self.gamma_1, **named)
    return residual_perceptron(x, self.norm2, self.mlp, self.drop_path2, self.gamma_2)


def _convit_block_forward(self: Any, x: Tensor) -> Tensor:
    x = residual_attention(x, self.norm1, self.attn, self.drop_path)
    return residual_perceptron(x, self.norm2, self.mlp, self.drop_path)


_METHODS: tuple[Any, ...] = (
    _beit_forward, _relpos_forward, _plain_forward, _class_forward, _gated_forward,
    _vit_block_forward, _relpos_block_forward, _beit_block_forward, _convit_block_forward,
)  # fmt: skip
for _method in _METHODS:
    _method.__name__ = "forward"


def _attend(self: Any, x: Tensor, grid: Grid, position: Position | None, half: Half | None) -> Tensor:
    """Attention of a module that may bring q and k to a norm first."""
    qkv: Any = project(self.qkv, x, half)
    if not (isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity)):
        q, k, v = qkv.chunk(3, dim=-1)
        q, k = (
            norm(part.unflatten(-1, (self.num_heads, -1))).flatten(2)
            for norm, part in ((self.q_norm, q), (self.k_norm, k))
        )
        qkv = (q, k, v)
    return attend_projected(qkv, grid, None, position, self.num_heads, self.scale, dropout_of(self.attn_drop))


def _beit(attn: nn.Module) -> Offer | str:
    module: Any = attn
    if module.relative_position_bias_table is None:
        return "it has no table of its own: its bias, if there is one, is handed in whole by the model"
    position = BorrowedTable(
        module, "relative_position_bias_table", "window_size", module.num_heads, prefix=1, prefix_rows=True
    )
    return _offer(module, _beit_forward, position, position.grid, "table")


def _relpos(attn: nn.Module) -> Offer | str:
    module: Any = attn
    found = relative_position(module.rel_pos, module.num_heads)
    if isinstance(found, str):
        return found
    position, what = found
    return _offer(module, _relpos_forward, position, position.grid, what, inside=("rel_pos",))


def relative_position(owner: Any, heads: int) -> tuple[BorrowedTable, str] | str:
    """The bias of timm's modules of relative positions, and its name; a sentence if it is none of them."""
    kinds = {
        "RelPosBias": ("relative_position_bias_table", None, "table"),
        "RelPosBiasTf": ("relative_position_bias_table", _read_transposed, "table"),
        "RelPosMlp": ("mlp", _read_relpos, "log-CPB"),
    }
    if type(owner).__name__ not in kinds:
        return "it has no position of its own: its bias, if there is one, is handed in whole by the model"
    table, rows, what = kinds[type(owner).__name__]
    count = getattr(owner, "prefix_tokens", 0)  # that with a table [heads, 2H-1, 2W-1] has none
    has_rows = rows is None and count > 0
    return BorrowedTable(owner, table, "window_size", heads, prefix=count, prefix_rows=has_rows, rows=rows), what


def _read_relpos(owner: Any) -> Tensor:
    bias = owner.bias_act(owner.mlp(owner.rel_coords_log).view(-1, owner.num_heads))
    return bias if owner.bias_gain is None else owner.bias_gain * bias


def _read_transposed(owner: Any) -> Tensor:
    """Of [heads, 2H-1, 2W-1] over key - query: the order of rows is that of query - key backwards."""
    return owner.relative_position_bias_table.flatten(1).flip(1).T


def _gated(attn: nn.Module) -> Offer:
    module: Any = attn
    side = math.isqrt(max(module.rel_indices.shape[1], 9))
    return _offer(
        module,
        _gated_forward,
        BorrowedGate(module, module.num_heads),
        Grid(side, side),
        "gated position",
        ("pos_proj",),
    )


def _class(attn: nn.Module) -> Offer:
    return _offer(attn, _class_forward, None, None, "no position")


def _plain(attn: nn.Module) -> Offer:
    return _offer(attn, _plain_forward, None, None, "no position")


def _offer(
    module: Any, forward: Callable[..., Tensor | None], position: Position | None, grid: Grid | None, what: str,
    inside: tuple[str, ...] = (),
) -> Offer:  # fmt: skip
    dim = module.proj.in_features
    attended = Attended(module.num_heads, dim // module.num_heads, position, grid)
    tokens = 50 if grid is None else grid.tokens
    width = getattr(module, "qkv", module.proj).in_features

    def trial(_: nn.Module) -> tuple[Any, ...]:
        return (torch.randn(2, tokens, width, dtype=torch.float64),)

    products = tuple(name for name in ("qkv", "qk", "v", "proj") if hasattr(module, name))
    state = State(position=position, products=products)
    return Offer(Replacement({"forward": forward}, state), what, trial, attended, inside)


_MODELS = "timm.models"


def _joined(name: str, forward: Callable[..., Tensor], known: str) -> Family:
    """A block whose norms and sums go with products."""

    def offer(block: nn.Module) -> Offer:
        module: Any = block
        owner = getattr(module.attn, "rel_pos", module.attn)
        sides = getattr(owner, "window_size", None) or (7, 7)
        tokens = math.prod(sides) + getattr(owner, "prefix_tokens", int(hasattr(owner, "relative_position_bias_table")))
        trial = (torch.randn(2, tokens, module.norm2.weight.shape[0], dtype=torch.float64),)
        return Offer(Replacement({"forward": forward}), JOINED, lambda _: trial)

    return Family("block", (f"{_MODELS}.{name}",), ("forward",), offer, frozenset({known}))


def _blocks(file: str, name: str, attn: str, method: str, offer: Callable[[nn.Module], Offer], known: str) -> Family:
    sources = ("forward", method, "get_attn_mask", attn, "window_partition", "window_reverse")
    parts = (("attn", f"{_MODELS}.{file}.{attn}"),)
    return Family("attention", (f"{_MODELS}.{file}.{name}",), sources, offer, frozenset({known}), parts)


def _attention(name: str, offer: Callable[[nn.Module], Offer | str], known: str, *methods: str) -> Family:
    return Family("attention", (f"timm.{name}",), ("forward", *methods), offer, frozenset({known}))


_RELPOS = ("RelPosBias", "RelPosMlp")

FAMILIES = (
    _blocks("swin_transformer", "SwinTransformerBlock", "WindowAttention", "_attn", _swin, "ae7b21e94d2eaecd"),
    _blocks("swin_transformer_v2", "SwinTransformerV2Block", "WindowAttention", "_attn", _swin_v2, "c4f704b36b161b9a"),
    _blocks(
        "swin_transformer_v2_cr", "SwinTransformerV2CrBlock", "WindowMultiHeadAttention", "_shifted_window_attn",
        _swin_v2_cr, "688ee7c13d900a50",
    ),
    _attention("models.beit.Attention", _beit, "c8b4c0fdaf36823f", "_get_rel_pos_bias", "gen_relative_position_index"),
    _attention("models.vision_transformer_relpos.RelPosAttention", _relpos, "e46b629ca1187c99", *_RELPOS),
    _attention("models.convit.GPSA", _gated, "8e89a4d6f96f2b2a", "get_attention", "get_rel_indices"),
    _attention("models.convit.MHSA", _class, "7fd1a09d396920b1"),
    _attention("layers.attention.Attention", _plain, "0bafdd4c06027799"),
    _joined("vision_transformer.Block", _vit_block_forward, "b0251e6642e6e0a6"),
    _joined("vision_transformer_relpos.RelPosBlock", _relpos_block_forward, "5b68ae42ed44b5f9"),
    _joined("beit.Block", _beit_block_forward, "5b138adb56ff9544"),
    _joined("convit.Block", _convit_block_forward, "8408fbbe0861d8d0"),
)  # 1.0.31  # fmt: skip
