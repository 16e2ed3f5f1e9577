"""transformers' Swin and its kin, on pictures and sounds. Nothing of transformers is imported.

At the depth of layers, which cut windows and hand them to their attention with a mask. A layer whose windows are not
those that its table was made for, and a call that asks for attention weights, run the class's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locant.grid import Grid
from locant.integrations.borrowed import BorrowedTable
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.halves import conclude, half_of, normalise_filled, project, residual_perceptron, run_perceptron
from locant.integrations.layers import Layers, calls_parts, is_packed, layers_of
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import Project, attend_in_windows
from locant.masks import Windows
from locant.nn.cosine import angles, cosine_scale
from locant.products import linear


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
    layers = attn.query, attn.key, attn.value, last.dense
    half = None
    if all(map(is_packed, layers)):
        called = (self.attention, attn, attn.dropout, last, *layers)
        half = half_of(hidden_states, self.layernorm_before, (last.dropout, self.drop_path), called, behind=True)

    def project(tokens: Tensor) -> Sequence[Tensor]:
        if half is None or torch.is_autocast_enabled("cpu"):
            return *angles(attn.query(tokens), attn.key(tokens), attn.logit_scale), attn.value(tokens)
        unit = attn.attention_head_size, attn.all_head_size
        scale = cosine_scale(attn.logit_scale).repeat_interleave(unit[0])
        q = linear(tokens, attn.query.weight, attn.query.bias, True, gain=scale, units=unit)
        return q, linear(tokens, attn.key.weight, attn.key.bias, True, units=unit), attn.value(tokens)

    x = _attend(self, hidden_states.unflatten(1, input_dimensions), project, 1.0, dropout_of(attn.dropout))
    if half is not None:
        x = conclude(last.dense, None, x.flatten(1, 2), half)
    else:
        x = self.layernorm_before(last.dropout(last.dense(x)).flatten(1, 2))
        x = hidden_states + self.drop_path(x)
    perceptron = _layers_of(self)
    second = perceptron and half_of(
        x, self.layernorm_after, (self.drop_path,), (self.intermediate, self.output), behind=True
    )
    if perceptron and second:
        return (run_perceptron(perceptron, x, second),)
    return (x + self.drop_path(self.layernorm_after(_fed_forward(self, x))),)


for _method in (_swin_forward, _copied_forward, _angles_forward):
    _method.__name__ = "forward"


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
    tokens, half = normalise_filled(tokens, half, (layer.window_size,) * 2)
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
        return wrong_implementation(attn.config)
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


def _read_field(owner: Any) -> Tensor:
    line = owner.continuous_position_bias_mlp(owner.relative_coords_table)
    return 16 * torch.sigmoid(line.view(-1, owner.num_attention_heads))


def wrong_implementation(config: Any) -> str:
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


MODELS = "transformers.models"
_PARTS = ("forward", "get_attn_mask", "maybe_pad", "window_partition", "window_reverse")


def _layers(file: str, name: str, offer: Callable[[nn.Module], Offer | str], known: str, *methods: str) -> Family:
    """A layer whose attention and perceptron are in halves, as copies of the first Swin have them."""
    halves = {
        "attention": "Attention", "attention.self": "SelfAttention", "attention.output": "SelfOutput",
        "intermediate": "Intermediate", "output": "Output",
    }  # fmt: skip
    parts = tuple((path, f"{MODELS}.{file}.{name}{half}") for path, half in halves.items())
    sources = (*_PARTS, *methods, *(f"{name}{half}" for half in halves.values()))
    return Family("attention", (f"{MODELS}.{file}.{name}Layer",), sources, offer, frozenset({known}), parts)


FAMILIES = (
    Family(
        "attention",
        (f"{MODELS}.swin.modeling_swin.SwinLayer",),
        (*_PARTS, "set_shift_and_window_size", "cyclic_shift", "SwinAttention", "SwinRelativePositionBias"),
        _swin,
        frozenset({"59bd77644bbd7dd6"}),
        (("attention", f"{MODELS}.swin.modeling_swin.SwinAttention"),),
    ),
    _layers("donut.modeling_donut_swin", "DonutSwin", _copied, "a469d61a304563cd", "set_shift_and_window_size"),
    _layers("clap.modeling_clap", "ClapAudio", _copied, "6eff3e2a035aa5da", "set_shift_and_window_size"),
    _layers("maskformer.modeling_maskformer_swin", "MaskFormerSwin", _copied, "0106742e385de38e"),
    _layers("swinv2.modeling_swinv2", "Swinv2", _angles, "5bd1391d13003e67"),
    _layers("swin2sr.modeling_swin2sr", "Swin2SR", _angles, "234696fd58b075ab"),
)  # 5.24.0
