"""transformers' models of pictures and sounds: Swin and its kin, BEiT, ViT. Nothing of transformers is imported.

At block depth where layers cut windows, or make a bias, and hand them to their attention with a mask. A layer whose
windows are not those that its table was made for, a mask, and a call that asks for attention weights run the class's
own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    normalised,
    project,
    residual_attention,
    residual_perceptron,
    run_perceptron,
)  # fmt: skip
from locant.integrations.layers import Layers, calls_parts, is_packed, layers_of
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import Project, attend_in_windows, attend_projected
from locant.masks import Windows
from locant.nn.cosine import angles
from locant.positions.position import Position


def _swin_forward(
    self: Any, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, **kwargs: Any
) -> Any:
    if not always_partition:
        self.set_shift_and_window_size(input_dimensions)
    attn = self.attention
    fits = self.window_size == attn.relative_position_bias.window_size[0]
    if not fits or attn.config._attn_implementation != "sdpa":
        return type(self).forward(self, hidden_states, input_dimensions, always_partition, **kwargs)
    dropout = attn.attention_dropout if self.training else 0.0
    layers, drops = (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj), (self.dropout, self.drop_path)
    x = _first_half(self, hidden_states, input_dimensions, layers, drops, (attn,), attn.scaling, dropout)
    return residual_perceptron(x, self.layernorm_after, self.mlp, self.dropout), None


def _copied_forward(
    self: Any, hidden_states: Tensor, input_dimensions: tuple[int, int], output_attentions: bool | None = False,
    *always_partition: bool, **named: bool,
) -> Any:  # fmt: skip
    """Copies of Swin's layer: Donut, CLAP, MaskFormer. The last two differ in their arguments."""
    partition = always_partition[0] if always_partition else named.get("always_partition", False)
    if hasattr(self, "set_shift_and_window_size") and not partition:
        self.set_shift_and_window_size(input_dimensions)
    if output_attentions or self.window_size != self.attention.self.window_size[0]:
        return type(self).forward(self, hidden_states, input_dimensions, output_attentions, *always_partition, **named)
    attn, last = self.attention.self, self.attention.output
    layers, drops = (attn.query, attn.key, attn.value, last.dense), (last.dropout, self.drop_path)
    called = (self.attention, attn, attn.dropout, last)
    x = _first_half(self, hidden_states, input_dimensions, layers, drops, called, None, dropout_of(attn.dropout))
    perceptron = _layers_of(self)
    half = perceptron and half_of(x, self.layernorm_after, (), (self.intermediate, self.output))
    if perceptron and half:
        return (run_perceptron(perceptron, x, half),)
    return (x + _fed_forward(self, self.layernorm_after(x)),)


def _angles_forward(
    self: Any, hidden_states: Tensor, input_dimensions: tuple[int, int], output_attentions: bool | None = False
) -> Any:
    """Swin v2 and Swin2SR: norms behind, products of vectors of length 1."""
    if output_attentions:
        return type(self).forward(self, hidden_states, input_dimensions, output_attentions)
    attn, last = self.attention.self, self.attention.output

    def project(tokens: Tensor) -> Sequence[Tensor]:
        return *angles(attn.query(tokens), attn.key(tokens), attn.logit_scale), attn.value(tokens)

    x = _attend(self, hidden_states.unflatten(1, input_dimensions), project, 1.0, dropout_of(attn.dropout))
    x = self.layernorm_before(last.dropout(last.dense(x)).flatten(1, 2))
    hidden_states = hidden_states + self.drop_path(x)
    return (hidden_states + self.drop_path(self.layernorm_after(_fed_forward(self, hidden_states))),)


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


_METHODS: tuple[Any, ...] = (
    _swin_forward, _copied_forward, _angles_forward, _beit_forward, _data2vec_forward, _plain_forward,
    _vit_layer_forward, _dino_layer_forward,
)  # fmt: skip
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


def _first_half(
    layer: Any, x: Tensor, sides: tuple[int, int], layers: tuple[Any, ...], drops: tuple[nn.Module, ...],
    called: tuple[nn.Module, ...], scale: float | None, dropout: float,
) -> Tensor:  # fmt: skip
    """Of a layer that cuts windows: x, and attention of its norm by `layers` (q, k, v, and the last)."""
    # 1 what goes with the products
    *three, last = layers
    norm, tokens = layer.layernorm_before, x.unflatten(1, sides)
    half = half_of(tokens, norm, drops, called) if all(map(is_packed, layers)) else None
    tokens = norm(x).unflatten(1, sides) if half is None else tokens
    tokens, half = normalised(tokens, half, (layer.window_size,) * 2)
    # 2 attention
    out = _attend(layer, tokens, lambda rows: [project(part, rows, half) for part in three], scale, dropout)
    out = conclude(last, None, out, half).flatten(1, 2)
    if half is not None:
        return out
    for drop in drops:
        out = drop(out)
    return x + out


def _attend(layer: Any, x: Tensor, project: Project, scale: float | None, dropout: float) -> Tensor:
    window, shift = (layer.window_size,) * 2, (layer.shift_size,) * 2
    position = layer._locant.position
    return attend_in_windows(x, project, window, shift, "pad-roll", position, position.heads, scale, dropout)


def _fed_forward(layer: Any, x: Tensor) -> Tensor:
    """A perceptron whose halves are modules of their own, intermediate and output."""
    layers = _layers_of(layer)
    return layer.output(layer.intermediate(x)) if layers is None else run_perceptron(layers, x)


def _layers_of(layer: Any) -> Layers | None:
    inner, outer = layer.intermediate, layer.output
    packed = is_packed(inner.dense) and is_packed(outer.dense) and not calls_parts(outer)
    return layers_of(inner.dense, inner.intermediate_act_fn, outer.dense) if packed else None


# --- offers -----------------------------------------------------------------------------------------------------------

_COPIED = ("attention", "attention.self", "attention.output", "intermediate", "output")


def _swin(layer: nn.Module) -> Offer | str:
    module: Any = layer
    attn = module.attention
    if attn.config._attn_implementation != "sdpa":
        return _wrong_implementation(attn.config)
    position = BorrowedTable(
        attn.relative_position_bias, "relative_position_bias_table", "window_size", attn.num_attention_heads
    )
    return _offer(
        module, _swin_forward, position, "table", attn.head_dim, ("attention", "attention.relative_position_bias")
    )


def _copied(layer: nn.Module) -> Offer:
    module: Any = layer
    attn = module.attention.self
    position = BorrowedTable(attn, "relative_position_bias_table", "window_size", attn.num_attention_heads)
    return _offer(module, _copied_forward, position, "table", attn.attention_head_size, _COPIED)


def _angles(layer: nn.Module) -> Offer:
    module: Any = layer
    attn = module.attention.self
    position = BorrowedTable(
        attn, "continuous_position_bias_mlp", "window_size", attn.num_attention_heads, rows=_read_field
    )
    return _offer(module, _angles_forward, position, "log-CPB by angles", attn.attention_head_size, _COPIED)


def _beit(layer: nn.Module) -> Offer | str:
    module: Any = layer
    config = module.attention.config
    if config._attn_implementation != "sdpa":
        return _wrong_implementation(config)
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
        return _wrong_implementation(module.config)
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

    return Family("block", tuple(f"{_MODELS}.{x}Layer" for x in layers), ("forward",), offer, frozenset({known}))


def _read_field(owner: Any) -> Tensor:
    line = owner.continuous_position_bias_mlp(owner.relative_coords_table)
    return 16 * torch.sigmoid(line.view(-1, owner.num_attention_heads))


def _wrong_implementation(config: Any) -> str:
    return (
        f"its attention is set to {config._attn_implementation!r}, which hands out weights or runs elsewhere; "
        'call model.set_attn_implementation("sdpa") first'
    )


def _offer(
    layer: Any, forward: Callable[..., Any], position: BorrowedTable, what: str, head_dim: int, inside: tuple[str, ...]
) -> Offer:
    side, shift = position.grid.shape[0], int(layer.shift_size)
    grid, windows = Grid(*layer.input_resolution), Windows((side, side), (shift, shift))
    attended = Attended(position.heads, head_dim, position, grid if min(grid.shape) >= side else None, windows)
    what = f"{what}, windows of {side} × {side}" + (", shifted" if shift else "")
    return Offer(Replacement({"forward": forward}, State(position=position)), what, _map, attended, inside)


def _map(layer: nn.Module) -> tuple[Any, ...]:
    """A map that windows do not divide."""
    module: Any = layer
    sides = (2 * module.window_size - 1, 3 * module.window_size + 1)
    tokens = torch.randn(2, sides[0] * sides[1], module.layernorm_before.normalized_shape[0], dtype=torch.float64)
    return tokens, sides


_MODELS = "transformers.models"
_PARTS = ("forward", "get_attn_mask", "maybe_pad", "window_partition", "window_reverse")


def _layers(file: str, name: str, offer: Callable[[nn.Module], Offer | str], known: str, *methods: str) -> Family:
    """A layer whose attention and perceptron are in halves, as copies of the first Swin have them."""
    halves = {
        "attention": "Attention", "attention.self": "SelfAttention", "attention.output": "SelfOutput",
        "intermediate": "Intermediate", "output": "Output",
    }  # fmt: skip
    parts = tuple((path, f"{_MODELS}.{file}.{name}{half}") for path, half in halves.items())
    sources = (*_PARTS, *methods, *(f"{name}{half}" for half in halves.values()))
    return Family("attention", (f"{_MODELS}.{file}.{name}Layer",), sources, offer, frozenset({known}), parts)


_PLAIN = (
    "vit.modeling_vit.ViT", "deit.modeling_deit.DeiT", "dinov2.modeling_dinov2.Dinov2",
    "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegisters", "vit_mae.modeling_vit_mae.ViTMAE",
    "vit_msn.modeling_vit_msn.ViTMSN", "ijepa.modeling_ijepa.IJepa", "vivit.modeling_vivit.Vivit",
    "audio_spectrogram_transformer.modeling_audio_spectrogram_transformer.AST",
)  # fmt: skip
_DINO = (_PLAIN[2], _PLAIN[3])
_DATA2VEC = f"{_MODELS}.data2vec.modeling_data2vec_vision.Data2VecVision"

FAMILIES = (
    Family(
        "attention",
        (f"{_MODELS}.swin.modeling_swin.SwinLayer",),
        (*_PARTS, "set_shift_and_window_size", "cyclic_shift", "SwinAttention", "SwinRelativePositionBias"),
        _swin,
        frozenset({"59bd77644bbd7dd6"}),
        (("attention", f"{_MODELS}.swin.modeling_swin.SwinAttention"),),
    ),
    _layers("donut.modeling_donut_swin", "DonutSwin", _copied, "a469d61a304563cd", "set_shift_and_window_size"),
    _layers("clap.modeling_clap", "ClapAudio", _copied, "6eff3e2a035aa5da", "set_shift_and_window_size"),
    _layers("maskformer.modeling_maskformer_swin", "MaskFormerSwin", _copied, "0106742e385de38e"),
    _layers("swinv2.modeling_swinv2", "Swinv2", _angles, "5bd1391d13003e67"),
    Family(
        "attention",
        (f"{_MODELS}.beit.modeling_beit.BeitLayer",),
        ("forward", "BeitAttention", "BeitRelativePositionBias"),
        _beit,
        frozenset({"821bb1365befebd0"}),
        (("attention", f"{_MODELS}.beit.modeling_beit.BeitAttention"),),
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
        tuple(f"{_MODELS}.{name}Attention" for name in _PLAIN),
        ("forward",),
        _plain,
        frozenset({"7d89d69b58129004"}),
    ),
    _layers("swin2sr.modeling_swin2sr", "Swin2SR", _angles, "234696fd58b075ab"),
    _joined("layernorm_before", _vit_layer_forward, *(x for x in _PLAIN if x not in _DINO), known="ee1765d90f6f1a44"),
    _joined("norm1", _dino_layer_forward, *_DINO, known="1ce6d6d7141798a5"),
)  # 5.24.0
