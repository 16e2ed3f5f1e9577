"""transformers' models of pictures whose attention takes all tokens: BEiT, Data2VecVision, ViT and its kin, DINOv2.

A mask, a picture of another size than the table's, and a call that asks for attention weights run the class's own
forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from locant.grid import Grid
from locant.integrations.borrowed import BorrowedTable
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.halves import (
    JOINED,
    Half,
    conclude,
    half_of,
    project,
    residual_attention,
    residual_perceptron,
)
from locant.integrations.layers import is_packed
from locant.integrations.replacing import Replacement, State
from locant.integrations.transformers import MODELS, wrong_implementation
from locant.integrations.windowed import attend_projected
from locant.positions.position import Position


def _beit_forward(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, interpolate_pos_encoding: bool = False,
    resolution: tuple[int, int] | None = None, **kwargs: Any,
) -> Any:  # fmt: skip
    attn, position = self.attention, self._locant.position
    fits = position is None or _is_whole(position.owner, resolution, self.patch_size)
    if not fits or attention_mask is not None or attn.config._attn_implementation != "sdpa":
        return type(self).forward(
            self, hidden_states, attention_mask, interpolate_pos_encoding, resolution=resolution, **kwargs
        )  # fmt: skip
    # 1 a LayerScale that is 1.0 is none
    x, grid = hidden_states, Grid(hidden_states.shape[1]) if position is None else position.grid
    scales = (scale if isinstance(scale, Tensor) else None for scale in (self.lambda_1, self.lambda_2))
    first, second = scales
    # 2 attention
    half = None
    if _are_packed(attn, _LAYERS):
        half = half_of(x, self.layernorm_before, (self.dropout, self.drop_path), (attn,), first)
    if half is None:
        out = self.dropout(_attend_tokens(attn, self.layernorm_before(x), grid, position))
        x = self.drop_path(out if first is None else first * out) + x
    else:
        x = _attend_tokens(attn, x, grid, position, half)
    # 3 perceptron
    return residual_perceptron(x, self.layernorm_after, self.mlp, self.drop_path, second, self.dropout)


def _data2vec_forward(
    self: Any, hidden_states: Tensor, output_attentions: bool = False, relative_position_bias: Tensor | None = None,
    interpolate_pos_encoding: bool = False, resolution: tuple[int, int] | None = None,
) -> Any:  # fmt: skip
    position = self._locant.position
    fits = position is None or _is_whole(position.owner, resolution, self.config.patch_size)
    if not fits or output_attentions or relative_position_bias is not None:
        return type(self).forward(
            self, hidden_states, output_attentions, relative_position_bias, interpolate_pos_encoding, resolution
        )
    grid = Grid(hidden_states.shape[1]) if position is None else position.grid
    projected = self.query(hidden_states), self.key(hidden_states), self.value(hidden_states)
    out = attend_projected(projected, grid, None, position, self.num_attention_heads, None, dropout_of(self.dropout))
    return (out, None) if type(self).__name__.endswith("SdpaSelfAttention") else (out,)


def _plain_forward(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, half: Half | None = None, **kwargs: Any
) -> Any:
    if attention_mask is not None or self.config._attn_implementation != "sdpa" or hidden_states.ndim != 3:
        return None if half else type(self).forward(self, hidden_states, attention_mask, **kwargs)
    return _attend_tokens(self, hidden_states, Grid(hidden_states.shape[1]), None, half), None


def _vit_layer_forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    named = {"attention_mask": attention_mask, **kwargs}
    x = residual_attention(hidden_states, self.layernorm_before, self.attention, self.dropout, **named)
    return residual_perceptron(x, self.layernorm_after, self.mlp, self.dropout)


def _dino_layer_forward(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:  # fmt: skip
    named = {"attention_mask": attention_mask, **kwargs}
    x = residual_attention(hidden_states, self.norm1, self.attention, self.drop_path, self.layer_scale1, **named)
    return residual_perceptron(x, self.norm2, self.mlp, self.drop_path, self.layer_scale2)


_METHODS: tuple[Any, ...] = (_beit_forward, _data2vec_forward, _plain_forward, _vit_layer_forward, _dino_layer_forward)
for _method in _METHODS:
    _method.__name__ = "forward"


def _is_whole(owner: Any, resolution: tuple[int, int] | None, patch: int) -> bool:
    """Whether a picture is as large as the table's. Others are read off a table that is resized at each call; where
    it is not square, the published reshape takes its sides for one another, on pictures of its own size as well."""
    rows, columns = owner.window_size
    return resolution is not None and rows == columns == resolution[0] // patch == resolution[1] // patch


_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")


def _are_packed(attn: nn.Module, names: tuple[str, ...]) -> bool:
    return all(is_packed(getattr(attn, name)) for name in names)


def _attend_tokens(attn: Any, x: Tensor, grid: Grid, position: Position | None, half: Half | None = None) -> Tensor:
    """Of a module with q_proj, k_proj, v_proj and o_proj."""
    projected = [project(layer, x, half) for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
    dropout = attn.attention_dropout if attn.training else 0.0
    out = attend_projected(projected, grid, None, position, attn.num_attention_heads, attn.scaling, dropout)
    return conclude(attn.o_proj, None, out, half)


# --- offers -----------------------------------------------------------------------------------------------------------


def _beit(layer: nn.Module) -> Offer | str:
    module: Any = layer
    config = module.attention.config
    if config._attn_implementation != "sdpa":
        return wrong_implementation(config)
    if config.use_shared_relative_position_bias:
        return "its bias is handed in whole by the model, which shares it among layers"
    inside = ("attention", *(("relative_position_bias",) if module.relative_position_bias is not None else ()))
    position = _class_table(module.relative_position_bias, module.attention.num_attention_heads)
    return _tokens(module, _beit_forward, position, module.attention, module.attention.head_dim, inside)


def _data2vec(attn: nn.Module) -> Offer | str:
    module: Any = attn
    if module.config.use_shared_relative_position_bias:
        return "its bias is handed in whole by the model, which shares it among layers"
    owner = module.relative_position_bias if module.has_relative_position_bias else None
    position = _class_table(owner, module.num_attention_heads)
    inside = () if owner is None else ("relative_position_bias",)
    return _tokens(module, _data2vec_forward, position, module, module.attention_head_size, inside)


def _plain(attn: nn.Module) -> Offer | str:
    module: Any = attn
    if module.config._attn_implementation != "sdpa":
        return wrong_implementation(module.config)
    return _tokens(module, _plain_forward, None, module, module.head_dim, ())


def _class_table(owner: nn.Module | None, heads: int) -> BorrowedTable | None:
    if owner is None:
        return None
    return BorrowedTable(owner, "relative_position_bias_table", "window_size", heads, prefix=1, prefix_rows=True)


def _tokens(
    module: Any, forward: Callable[..., Any], position: BorrowedTable | None, attn: Any, head_dim: int,
    inside: tuple[str, ...],
) -> Offer:  # fmt: skip
    """All tokens attend to all, behind a class token where there is a table."""
    attended = Attended(attn.num_attention_heads, head_dim, position, None if position is None else position.grid)

    def trial(_: nn.Module) -> tuple[Any, ...]:
        tokens = torch.randn(2, 50 if position is None else position.grid.tokens, attn.config.hidden_size)
        if position is None:
            return (tokens.double(),)
        picture = tuple(side * attn.config.patch_size for side in position.grid.shape)
        before = (None, False) if forward is _beit_forward else (False, None, False)
        return tokens.double(), *before, picture

    what = "no position" if position is None else "table"
    state = State(position=position, products=_LAYERS if forward is _plain_forward else ())
    return Offer(Replacement({"forward": forward}, state), what, trial, attended, inside)


def _joined(name: str, forward: Callable[..., Any], *layers: str, known: str) -> Family:
    """Layers around attention that is replaced by itself; `name` is that of their norm."""

    def trial(layer: nn.Module) -> tuple[Any, ...]:
        return (torch.randn(2, 50, getattr(layer, name).normalized_shape[0], dtype=torch.float64),)

    def offer(layer: nn.Module) -> Offer:
        return Offer(Replacement({"forward": forward}), JOINED, trial)

    return Family("block", tuple(f"{MODELS}.{x}Layer" for x in layers), ("forward",), offer, frozenset({known}))


_PLAIN = (
    "vit.modeling_vit.ViT", "deit.modeling_deit.DeiT", "dinov2.modeling_dinov2.Dinov2",
    "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegisters", "vit_mae.modeling_vit_mae.ViTMAE",
    "vit_msn.modeling_vit_msn.ViTMSN", "ijepa.modeling_ijepa.IJepa", "vivit.modeling_vivit.Vivit",
    "audio_spectrogram_transformer.modeling_audio_spectrogram_transformer.AST",
)  # fmt: skip
_DINO = (_PLAIN[2], _PLAIN[3])
_DATA2VEC = f"{MODELS}.data2vec.modeling_data2vec_vision.Data2VecVision"

FAMILIES = (
    Family(
        "attention",
        (f"{MODELS}.beit.modeling_beit.BeitLayer",),
        ("forward", "BeitAttention", "BeitRelativePositionBias"),
        _beit,
        frozenset({"821bb1365befebd0"}),
        (("attention", f"{MODELS}.beit.modeling_beit.BeitAttention"),),
    ),
    Family(
        "attention",
        (f"{_DATA2VEC}SelfAttention",),
        ("forward", "Data2VecVisionRelativePositionBias"),
        _data2vec,
        frozenset({"962b676b8955cca6"}),
    ),
    Family(
        "attention",
        (f"{_DATA2VEC}SdpaSelfAttention",),
        ("forward", "Data2VecVisionRelativePositionBias"),
        _data2vec,
        frozenset({"b769591191649d7e"}),
    ),
    Family(
        "attention",
        tuple(f"{MODELS}.{name}Attention" for name in _PLAIN),
        ("forward",),
        _plain,
        frozenset({"7d89d69b58129004"}),
    ),
    _joined("layernorm_before", _vit_layer_forward, *(x for x in _PLAIN if x not in _DINO), known="ee1765d90f6f1a44"),
    _joined("norm1", _dino_layer_forward, *_DINO, known="1ce6d6d7141798a5"),
)  # 5.24.0
