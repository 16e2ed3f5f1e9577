"""Encoders of Segment Anything and their kin: timm, transformers, segment-anything. Nothing of them is imported.

Their queries meet a vector per offset and axis (MViTv2's terms, as `Decomposed`). Replaced are blocks, most of which
cut windows out of a map: zeros fill what windows do not divide, and take part. Blocks of an unknown source that have
the same parts are replaced once they have agreed with themselves (locant.integrations.trying).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locant.dispatch import hooks_of
from locant.grid import Grid
from locant.integrations.borrowed_content import BorrowedDecomposed
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.layers import perceptron_family
from locant.integrations.replacing import Replacement, State
from locant.integrations.windowed import attend_in_windows, attend_projected
from locant.masks import Windows

# --- forwards ---------------------------------------------------------------------------------------------------------


def _timm_forward(self: Any, x: Tensor) -> Tensor:
    attn = self.attn
    out = self.ls1(_attend(attn, self.norm1(x), self.window_size, self._locant.position, dropout_of(attn.attn_drop)))
    if self.window_size and getattr(self.drop_path1, "drop_prob", 0.0) and self.training:  # drawn window by window
        library = sys.modules[type(self).__module__]
        windows, filled = library.window_partition(out, self.window_size)
        out = library.window_unpartition(self.drop_path1(windows), self.window_size, tuple(x.shape[1:3]), filled)
    else:
        out = self.drop_path1(out)
    tokens = (x + out).flatten(1, 2)
    tokens = tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))
    return tokens.unflatten(1, x.shape[1:3])


def _own_forward(self: Any, x: Tensor) -> Tensor:
    """Blocks with the names that segment-anything gave them."""
    drop = getattr(self, "drop_path", nn.Identity())
    x = x + drop(_attend(self.attn, self.norm1(x), self.window_size, self._locant.position, 0.0))
    return x + drop(self.mlp(self.norm2(x)))


def _layer_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """transformers' SAM and its copies; a class that makes weights makes them where someone listens."""
    attn, fused = self.attn, "Sdpa" in type(self.attn).__name__
    if not fused and _is_heard(attn):
        return type(self).forward(self, hidden_states)
    dropout = attn.dropout if attn.training and not fused else 0.0
    x = self.layer_norm1(hidden_states)
    hidden_states = hidden_states + _attend(attn, x, self.window_size, self._locant.position, dropout)
    return hidden_states + self.mlp(self.layer_norm2(hidden_states))


def _vitdet_forward(self: Any, hidden_states: Tensor, output_attentions: bool = False) -> Any:
    if output_attentions:
        return type(self).forward(self, hidden_states, output_attentions)
    x = hidden_states.permute(0, 2, 3, 1)
    x = x + self.drop_path(_attend(self.attention, self.norm1(x), self.window_size, self._locant.position, 0.0))
    x = (x + self.drop_path(self.mlp(self.norm2(x)))).permute(0, 3, 1, 2)
    return (self.residual(x) if self.use_residual_block else x,)


def _seggpt_forward(self: Any, hidden_states: Tensor, output_attentions: bool = False) -> Any:
    if output_attentions:
        return type(self).forward(self, hidden_states, output_attentions)
    return _attend(self, hidden_states, 0, self._locant.position, 0.0), None


for _method in (_timm_forward, _own_forward, _layer_forward, _vitdet_forward, _seggpt_forward):
    _method.__name__ = "forward"


def _attend(attn: Any, x: Tensor, window: int, position: BorrowedDecomposed | None, dropout: float) -> Tensor:
    """Of a map [batch, rows, columns, channels], in windows or (0) as a whole, output projection included."""
    heads = _heads(attn)

    def project(tokens: Tensor) -> Tensor | Sequence[Tensor]:
        qkv = attn.qkv(tokens)
        norms = [getattr(attn, name, nn.Identity()) for name in ("q_norm", "k_norm")]
        if all(isinstance(norm, nn.Identity) for norm in norms):
            return qkv
        *qk, v = qkv.chunk(3, dim=-1)
        q, k = (norm(part.unflatten(-1, (heads, -1))).flatten(-2) for norm, part in zip(norms, qk, strict=True))
        return q, k, v

    if window:
        out = attend_in_windows(x, project, (window,) * 2, (0, 0), "pad-roll", position, heads, attn.scale, dropout)
    else:
        tokens, grid = x.flatten(1, 2), Grid(*x.shape[1:3])
        out = attend_projected(project(tokens), grid, None, position, heads, attn.scale, dropout)
        out = out.unflatten(1, x.shape[1:3])
    out = attn.proj(out)
    return attn.proj_drop(out) if hasattr(attn, "proj_drop") else out


def _is_heard(attn: Any) -> bool:
    """Whether a hook wants what the attention returns. transformers' own stay, and wait for a call that asks."""
    hooks = hooks_of(attn)
    if not hooks:
        return hooks is None
    recorder = getattr(sys.modules.get("transformers.utils.output_capturing"), "_active_collector", None)
    others = [hook for hook in hooks if getattr(hook, "__name__", "") != "output_capturing_hook"]
    return bool(others) or recorder is None or "attentions" in (recorder.get() or ())


def _heads(attn: Any) -> int:
    return int(attn.num_attention_heads if hasattr(attn, "num_attention_heads") else attn.num_heads)


# --- offers -----------------------------------------------------------------------------------------------------------


def _block(forward: Callable[..., Any], name: str = "attn") -> Callable[[nn.Module], Offer | str]:
    """What offers `forward` to blocks whose attention has this name; "" is a module that is the attention."""

    def offer(block: nn.Module) -> Offer | str:
        module: Any = block
        attn: Any = block.get_submodule(name)
        if getattr(attn, "rope", None) is not None:
            return "its queries and keys are turned by angles (rotary), which Locant does not take from timm"
        heads, window = _heads(attn), int(getattr(module, "window_size", 0)) if name else 0
        position = _position(attn, heads)
        head_dim = attn.qkv.out_features // (3 * heads)
        grid = Grid(window, window) if window else None
        if position is not None:
            grid = Grid(*((len(table) + 1) // 2 for table in position.parameters()))
        mask = Windows((window, window)) if window else None
        what = "no position" if position is None else "a vector per offset and axis"
        what += f", windows of {window} × {window}" if window else ", the whole map"
        attended = Attended(heads, head_dim, position, grid, mask)
        replacement = Replacement({"forward": forward}, State(position=position))
        return Offer(replacement, what, _maps(attn, forward), attended, (name,) if name else ())

    return offer


def _position(attn: Any, heads: int) -> BorrowedDecomposed | None:
    said = (getattr(attn, name, False) for name in ("use_rel_pos", "use_relative_position_embeddings"))
    if not any(said):
        return None
    return BorrowedDecomposed(attn, ("rel_pos_h", "rel_pos_w"), heads, attn.qkv.out_features // (3 * heads))


def _maps(attn: Any, forward: Callable[..., Any]) -> Callable[[nn.Module], list[tuple[Any, ...]]]:
    """Maps that windows do not divide, one smaller than a window, one that is wider than high."""

    def trial(block: nn.Module) -> list[tuple[Any, ...]]:
        window = getattr(block, "window_size", 0) or 5
        maps = [
            torch.randn(2, *sides, attn.qkv.in_features, dtype=torch.float64)
            for sides in ((2 * window - 1, window + 2), (window - 1, window), (window, window))
        ]
        return [(x.permute(0, 3, 1, 2) if forward is _vitdet_forward else x,) for x in maps]

    return trial


def family_of_sam(module: nn.Module) -> Family | None:
    """The family of blocks of an unknown source that have the parts of segment-anything's, or None."""
    attn = getattr(module, "attn", None)
    names = ("norm1", "norm2", "mlp", "window_size")
    parts = ("qkv", "proj", "num_heads", "scale", "rel_pos_h", "rel_pos_w")
    if not (all(hasattr(module, name) for name in names) and all(hasattr(attn, name) for name in parts)):
        return None
    more = {*dict(module.named_children())} - {"norm1", "norm2", "mlp", "attn", "drop_path"}
    fits = not more and isinstance(getattr(module, "window_size", None), int)
    return _OF_SHAPE if fits and tuple(inspect.signature(type(module).forward).parameters)[1:] == ("x",) else None


_OF_SHAPE = Family("attention", (), ("forward",), _block(_own_forward))
_PARTS = ("forward", "window_partition", "window_unpartition")
_MODELS = "transformers.models"


def _layers(file: str, name: str, known: str, fused: bool) -> Family:
    classes = [f"{name}VisionAttention", *[f"{name}VisionSdpaAttention"] * fused]
    parts = (("attn", tuple(f"{_MODELS}.{file}.{cls}" for cls in classes)),)
    offer = _block(_layer_forward)
    layer, sources = f"{_MODELS}.{file}.{name}VisionLayer", (*_PARTS, *classes)
    return Family("attention", (layer,), sources, offer, frozenset({known}), parts, rounds=True)


_VITDET, _TIMM = f"{_MODELS}.vitdet.modeling_vitdet", "timm.models.vision_transformer_sam"
_SAM, _SEGGPT = "segment_anything.modeling.image_encoder", f"{_MODELS}.seggpt.modeling_seggpt"
_COPIES = (
    ("sam.modeling_sam", "Sam", "a3a5b306e179003e", True),
    ("sam_hq.modeling_sam_hq", "SamHQ", "426dce248e857bf1", True),
    ("got_ocr2.modeling_got_ocr2", "GotOcr2", "112a4f57ec25c6ac", False),
    ("slanext.modeling_slanext", "SLANeXt", "18c031c8c5c4576f", False),
    ("deepseek_ocr2.modeling_deepseek_ocr2", "DeepseekOcr2Sam", "13ab224abd245dbb", True),
    ("unlimited_ocr.modeling_unlimited_ocr", "UnlimitedOcrSam", "1add82ad6733ed51", True),
    ("pp_formulanet.modeling_pp_formulanet", "PPFormulaNet", "93d662f2a3c1a414", False),
)
_MLPS = tuple(f"{_MODELS}.{file}.{name}MLPBlock" for file, name, _, _ in _COPIES)

FAMILIES = (
    Family(
        "attention",
        (f"{_TIMM}.Block",),
        (*_PARTS, "Attention", "get_decomposed_rel_pos_bias", "get_rel_pos"),
        _block(_timm_forward),
        frozenset({"2651627abac384ca"}),
        (("attn", f"{_TIMM}.Attention"),),
    ),
    Family(
        "attention",
        (f"{_SAM}.Block",),
        (*_PARTS, "Attention", "add_decomposed_rel_pos", "get_rel_pos"),
        _block(_own_forward),
        frozenset({"cf6c44f079bacc53"}),
        (("attn", f"{_SAM}.Attention"),),
    ),
    *(_layers(*copy) for copy in _COPIES),
    Family(
        "attention",
        (f"{_VITDET}.VitDetLayer",),
        (*_PARTS, "VitDetAttention", "add_decomposed_relative_positions", "get_rel_pos"),
        _block(_vitdet_forward, "attention"),
        frozenset({"933ac8235f88f4a1"}),
        (("attention", f"{_VITDET}.VitDetAttention"),),
    ),
    Family(
        "attention",
        (f"{_SEGGPT}.SegGptAttention",),
        ("forward", "get_rel_pos", "add_decomposed_rel_pos"),
        _block(_seggpt_forward, ""),
        frozenset({"cf35b01b7a9b9918"}),
        rounds=True,
    ),
    perceptron_family(("segment_anything.modeling.common.MLPBlock",), "lin1", "act", "lin2", "a0441773dce7f997"),
    perceptron_family(_MLPS, "lin1", "act", "lin2", "2589f454975d6b64"),
    perceptron_family((f"{_VITDET}.VitDetMlp",), "fc1", "act", "fc2", "c75de0f7838d9ea6"),
)  # timm 1.0.31, transformers 5.24.0, segment-anything 1.0
