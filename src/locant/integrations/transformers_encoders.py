"""transformers' BERT and its kin: encoders of text whose attention knows no places, which were added to the tokens.
Nothing of transformers is imported.

A mask (texts of several lengths in a batch), a cache, and a call that asks for attention weights run the class's own
forward, and so does a decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from locant.grid import Grid
from locant.integrations.family import Attended, Family, Offer, dropout_of
from locant.integrations.replacing import Replacement, State
from locant.integrations.transformers import MODELS, wrong_implementation
from locant.integrations.windowed import attend_projected

_BERT, _DISTIL = ("query", "key", "value", "num_attention_heads"), ("q_lin", "k_lin", "v_lin", "n_heads")


def _forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *more: Any, **named: Any) -> Any:
    names = self._locant.names
    asked = attention_mask is not None or named.get("output_attentions") or any(x is not None for x in more)
    if asked or named.get("cache") is not None or self.config._attn_implementation != "sdpa":
        return type(self).forward(self, hidden_states, attention_mask, *more, **named)
    projected = [getattr(self, name)(hidden_states) for name in names[:3]]
    grid, dropout = Grid(hidden_states.shape[1]), dropout_of(self.dropout)
    if hasattr(self, "attention_dropout"):  # the number that some copies read in place of the module
        dropout = self.attention_dropout if self.training else 0.0
    out = attend_projected(projected, grid, None, None, getattr(self, names[3]), self.scaling, dropout)
    return (self.out_lin(out) if names is _DISTIL else out), None


_forward.__name__ = "forward"


def _encoder(attn: nn.Module) -> Offer | str:
    return _offer(attn, _BERT)


def _distil(attn: nn.Module) -> Offer | str:
    return _offer(attn, _DISTIL)


def _offer(attn: Any, names: tuple[str, ...]) -> Offer | str:
    if attn.config._attn_implementation != "sdpa":
        return wrong_implementation(attn.config)
    if getattr(attn, "is_causal", False) or getattr(attn, "is_decoder", False):
        return "it is a decoder's, whose order comes to it as a mask for every pair"
    first = getattr(attn, names[0])

    def trial(_: nn.Module) -> tuple[Any, ...]:
        return (torch.randn(2, 40, first.in_features, dtype=torch.float64),)

    attended = Attended(getattr(attn, names[3]), attn.attention_head_size)
    return Offer(Replacement({"forward": _forward}, State(names=names)), "no position", trial, attended)


# copies of BERT's that take torch's fused attention, by folder; the last part of a file's name is that of its folder
_COPIES = {
    "altclip": "AltRoberta", "bert": "Bert", "bert_generation": "BertGeneration", "camembert": "Camembert",
    "chinese_clip": "ChineseCLIPText", "data2vec": "Data2VecText", "electra": "Electra", "ernie": "Ernie",
    "layoutlm": "LayoutLM", "roberta": "Roberta", "roberta_prelayernorm": "RobertaPreLayerNorm", "roc_bert": "RoCBert",
    "xlm_roberta": "XLMRoberta", "xlm_roberta_xl": "XLMRobertaXL", "xmod": "Xmod",
}  # fmt: skip


def _class(folder: str, name: str) -> str:
    file = "data2vec_text" if folder == "data2vec" else folder
    return f"{MODELS}.{folder}.modeling_{file}.{name}SelfAttention"


_KNOWN = frozenset(
    "42779e4aff2bbdac 59bcdd84138fe604 7d7a77b273f20915 857f4e2043777801 a0144fafb7235a1d a768adc4c530d37d "
    "de429e4c64071fdc f3eaa078dde891bf".split()
)

FAMILIES = (
    Family(
        "attention",
        tuple(_class(folder, name) for folder, name in _COPIES.items()),
        ("forward",),
        _encoder,
        _KNOWN,
    ),
    Family(
        "attention",
        (f"{MODELS}.distilbert.modeling_distilbert.DistilBertSelfAttention",),
        ("forward",),
        _distil,
        frozenset({"8794fc7f95debc0d"}),
    ),
)  # 5.24.0
