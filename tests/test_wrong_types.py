"""Every public callable, every argument, everything it is not: a ValueError that names the argument.

The README promises it. `CALLS` has a call that is right for each; one argument after another is replaced by a value of
another type, unless its annotation lets that type in.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import locant
from locant import Grid, masks, models, nn
from locant.models import detr_layers

pytestmark = pytest.mark.plain

ON = Grid(2, 3)
Q = torch.randn(2, 4, 6, 8)
KEPT = torch.ones(2, 6, dtype=torch.bool)
ALL = torch.ones(6, 6, dtype=torch.bool)

# Of each type a value that is right nowhere, and the annotations that let the type in but not the value.
WRONG: dict[str, tuple[Any, tuple[str, ...]]] = {
    "None": (None, ("None", "Positions", "Wanted")),
    "a string": ("no such word", ()),
    "a float": (2.5, ("float",)),
    "nan": (float("nan"), ()),
    "a tuple": (("no", 2.5), ()),
    "a list": (["no", 2.5], ()),
    "a tensor": (torch.zeros(1, 2, 3, 1, 2, 3, 1, dtype=torch.complex64), ()),
    "an array": (np.zeros((2, 3)), ()),
    "a class": (dict, ()),
    "an object": (object(), ()),
}


VERBS = ("attention", "attention_packed", "plan")
WORDS = {"patch_border": "(patch_)?border"}  # an argument that is handed on is named as where it acts


@dataclass(frozen=True)
class Call:
    """A call that is right. `free` names arguments that may be anything, and `words` what else errors may say."""

    run: Callable[..., Any]
    given: dict[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    words: dict[str, str] = field(default_factory=dict)
    of: Any = None  # whose signature counts, if `run` is made of another


QKV = {"q": Q, "k": Q, "v": Q}
CALLS: dict[str, Call] = {
    "Grid": Call(lambda size=2, **rest: Grid(size, 3, **rest), {"size": 2}, words={"size": "size"}, of=Grid.__init__),
    "Grid.pooled": Call(ON.pooled, {"stride": 2}),
    "Causal": Call(masks.Causal),
    "Windows": Call(masks.Windows, {"size": (2, 2), "shift": (1, 1)}),
    "Padding": Call(masks.Padding, {"valid": KEPT}, words={"valid": "valid|Padding"}),
    "Segments": Call(masks.Segments, {"ids": KEPT.long(), "key_ids": KEPT.long()}),
    "Pairs": Call(masks.Pairs, {"allowed": ALL}, words={"allowed": "allowed|Pairs"}),
    "Every": Call(masks.Every, {"masks": (masks.Causal(),)}),
    "Mask.allowed": Call(masks.Causal().allowed, {"grid": ON}, free=("device",)),
    "Mask.to": Call(masks.Padding(KEPT).to, {"device": "cpu"}),
    "Padding.from_lengths": Call(masks.Padding.from_lengths, {"lengths": torch.tensor([2, 3]), "tokens": 6}),
    "Padding.from_key_padding_mask": Call(
        masks.Padding.from_key_padding_mask, {"mask": ~KEPT}, words={"mask": "mask|from_key_padding_mask"}
    ),
    "Padding.from_attention_mask": Call(masks.Padding.from_attention_mask, {"mask": KEPT.long()}),
    "Padding.from_additive": Call(masks.Padding.from_additive, {"mask": torch.zeros(2, 6)}),
    "Pairs.from_kept": Call(masks.Pairs.from_kept, {"mask": ALL}),
    "Pairs.from_blocked": Call(masks.Pairs.from_blocked, {"mask": ~ALL}),
    "Pairs.from_additive": Call(masks.Pairs.from_additive, {"mask": torch.zeros(6, 6)}),
    "Pairs.from_window_mask": Call(masks.Pairs.from_window_mask, {"mask": torch.zeros(1, 6, 6), "batch": 2}),
    "Pairs.from_lengths": Call(masks.Pairs.from_lengths, {"lengths": torch.tensor([[2, 3]]), "keys": 6}),
    "ALiBi": Call(locant.ALiBi, {"heads": 4}),
    "Decomposed": Call(locant.Decomposed, {"grid": ON, "heads": 4, "head_dim": 8}),
    "GatedPosition": Call(locant.GatedPosition, {"heads": 4}),
    "Learned": Call(locant.Learned, {"grid": ON, "dim": 8}),
    "LearnedAxial": Call(locant.LearnedAxial, {"grid": ON, "dim": 8}),
    "LogCPB": Call(locant.LogCPB, {"grid": ON, "heads": 4}),
    "MaskedSine": Call(locant.MaskedSine, {"dim": 8}),
    "RelativeTable": Call(locant.RelativeTable, {"grid": ON, "heads": 4}),
    "Rotary": Call(locant.Rotary, {"head_dim": 8}),
    "Shaw": Call(locant.Shaw, {"heads": 4, "head_dim": 8, "distance": 2}),
    "Sinusoid": Call(locant.Sinusoid, {"dim": 8}),
    "T5Buckets": Call(locant.T5Buckets, {"heads": 4}),
    "TransformerXL": Call(locant.TransformerXL, {"dim": 8, "heads": 4}),
    "Learned()": Call(locant.Learned(ON, 8).forward, {}),
    "LearnedAxial()": Call(locant.LearnedAxial(ON, 8).forward, {}),
    "Sinusoid()": Call(locant.Sinusoid(8).forward, {"grid": ON}),
    "MaskedSine()": Call(locant.MaskedSine(8).forward, {"grid": ON}),
    "MaskedSine.encode": Call(locant.MaskedSine(8).encode, {"valid": KEPT}),
    "Rotary()": Call(locant.Rotary(8, axes=2).forward, {"x": Q, "grid": ON}),
    "RelativeTable()": Call(locant.RelativeTable(ON, 4).forward, {"grid": ON}),
    "Shaw()": Call(locant.Shaw(4, 8, 2).forward, {"q": Q, "grid": Grid(6)}),
    "T5Buckets.bucket": Call(locant.T5Buckets(4).bucket, {"offsets": torch.arange(3)}),
    "Learned.resized": Call(locant.Learned(ON, 8).resized, {"grid": ON}),
    "LearnedAxial.resized": Call(locant.LearnedAxial(ON, 8).resized, {"grid": ON}),
    "RelativeTable.resized": Call(locant.RelativeTable(ON, 4).resized, {"grid": ON}),
    "Decomposed.resized": Call(locant.Decomposed(ON, 4, 8).resized, {"grid": ON}),
    "LogCPB.resized": Call(locant.LogCPB(ON, 4).resized, {"grid": ON}),
    # verbs
    "accelerate": Call(locant.accelerate, {"model": torch.nn.Linear(8, 8)}, free=("example",)),
    "attention": Call(locant.attention, {**QKV, "grid": ON}),
    "attention_packed": Call(locant.attention_packed, {"qkv": torch.randn(2, 6, 3, 4, 8)}),
    "plan": Call(locant.plan, {**QKV, "grid": ON}),
    "weights": Call(locant.weights, {"q": Q, "k": Q, "grid": ON}),
}
X = torch.randn(2, 6, 8)
TWO = {"dim": 8, "heads": 2}
LAYERS: dict[str, Call] = {
    "Adapter": Call(nn.Adapter, {"dim": 8}),
    "AdditiveAttention": Call(nn.AdditiveAttention, {"hidden": 8}),
    "Attention": Call(nn.Attention, TWO),
    "Block": Call(nn.Block, TWO),
    "CosineWindowAttention": Call(nn.CosineWindowAttention, {**TWO, "window": 2}),
    "DotProductAttention": Call(nn.DotProductAttention),
    "GatedAttention": Call(nn.GatedAttention, TWO),
    "MultiHeadAttention": Call(nn.MultiHeadAttention, TWO),
    "NadarayaWatson": Call(nn.NadarayaWatson),
    "PatchEmbedding": Call(nn.PatchEmbedding, {"dim": 8, "patch": (2, 2)}),
    "PatchMerging": Call(nn.PatchMerging, {"dim": 8}),
    "RelativeAttention": Call(nn.RelativeAttention, {**TWO, "tokens": 4}),
    "SpaceTimeAttention": Call(nn.SpaceTimeAttention, {**TWO, "frames": 2}),
    "SpaceTimeBlock": Call(nn.SpaceTimeBlock, {**TWO, "frames": 2}),
    "TemporalModel": Call(nn.TemporalModel, {"in_channels": 8, "receptive_field": 2, "input_shape": (4, 4)}),
    "WindowAttention": Call(nn.WindowAttention, {**TWO, "window": 2}),
    "masked_softmax": Call(nn.masked_softmax, {"scores": X}),
    "masked_softmax_d2l": Call(nn.masked_softmax_d2l, {"scores": X, "valid_lens": torch.tensor([2, 3])}),
    "Attention()": Call(nn.Attention(8, 2).forward, {"x": X}),
    "Block()": Call(nn.Block(8, 2).forward, {"x": X}),
    "WindowAttention()": Call(nn.WindowAttention(8, 2, 2, grid=Grid(6)).forward, {"x": X}),
    "CosineWindowAttention()": Call(nn.CosineWindowAttention(8, 2, 2, grid=Grid(6)).forward, {"x": X}),
    "GatedAttention()": Call(nn.GatedAttention(8, 2, grid=ON).forward, {"x": X}),
    "MultiHeadAttention()": Call(nn.MultiHeadAttention(8, 2).forward, {"query": X, "key": X, "value": X}),
    "RelativeAttention()": Call(nn.RelativeAttention(8, 6, 2).forward, {"x": X}),
    "SpaceTimeAttention()": Call(nn.SpaceTimeAttention(8, 2, frames=2, grid=Grid(2, 3)).forward, {"x": X}),
    "DotProductAttention()": Call(nn.DotProductAttention().forward, {"query": X, "key": X, "value": X}),
    "AdditiveAttention()": Call(nn.AdditiveAttention(8).forward, {"query": X, "key": X, "value": X}),
    "NadarayaWatson()": Call(nn.NadarayaWatson().forward, {"query": X, "key": X, "value": X}),
    "PatchEmbedding()": Call(
        nn.PatchEmbedding(8, (2, 2)).forward, {"x": torch.randn(1, 3, 4, 4)}, words={"x": "x|input"}
    ),
    "Adapter()": Call(nn.Adapter(8).forward, {"x": X}),
}
SMALL: dict[str, dict[str, Any]] = {  # what a model needs to be built, and quickly
    "Bahdanau": {"source_vocabulary": 9, "target_vocabulary": 9, "embed": 8, "hidden": 8},
    "BertEmbeddings": {"vocabulary": 9, "dim": 8},
    "DETR": {"transformer": detr_layers.Transformer(8, 2, hidden=8), "position": locant.MaskedSine(8)},
    "MemTransformerLM": {"vocabulary": 9, "dim": 8, "layers": 1, "heads": 2, "hidden": 8},
    "Transformer": {"source_vocabulary": 9, "target_vocabulary": 9, "dim": 8, "heads": 2, "hidden": 8, "depth": 1},
    "TransformerEncoder": {"vocabulary": 9, "dim": 8, "heads": 2, "hidden": 8, "depth": 1},
    "TransformerDecoder": {"vocabulary": 9, "dim": 8, "heads": 2, "hidden": 8, "depth": 1},
}
BESIDE = {"attention_map", "from_file", "greedy", "non_locality"}  # functions that build nothing
MODELS = {name: Call(getattr(models, name), SMALL.get(name, {})) for name in models.__all__ if name not in BESIDE}
CALLS |= LAYERS | MODELS


def arguments(call: Call) -> Iterator[tuple[str, str]]:
    """Each argument with its annotation."""
    for name, parameter in inspect.signature(call.of or call.run).parameters.items():
        if name not in ("self", *call.free):
            yield name if parameter.kind != parameter.VAR_POSITIONAL else "size", str(parameter.annotation)


def cases() -> Iterator[tuple[str, str, str]]:
    """Each call, argument and wrong kind of value."""
    for title, call in CALLS.items():
        for name, annotation in arguments(call):
            for kind, (_, allowed) in WRONG.items():
                # which kernels there are is asked at the call: one may be added until then
                later = name == "kernel" and kind == "a string" and title not in VERBS
                if not later and not set(allowed) & set(re.split(r"[^\w]+", annotation)):
                    yield title, name, kind


def complaint(call: Call, name: str, value: object) -> str | None:
    """What is wrong with the answer, if anything."""
    try:
        call.run(**{**call.given, name: value})
    except ValueError as error:
        text = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "no error"
    named = re.search(rf"\b({(WORDS | call.words).get(name, name)})s?\b", text)
    return None if named and "\n" not in text and text.rstrip().endswith(".") else f"not named: {text}"


@pytest.mark.parametrize("title", CALLS)
def test_arguments_of_another_type_are_named(title):
    tried = [(name, kind) for one, name, kind in cases() if one == title]
    found = {(name, kind): complaint(CALLS[title], name, WRONG[kind][0]) for name, kind in tried}
    assert {case: wrong for case, wrong in found.items() if wrong is not None} == {}


@pytest.mark.parametrize("title", sorted({*CALLS} - {*MODELS} | {*SMALL}))
def test_the_right_call_is_right(title):
    CALLS[title].run(**CALLS[title].given)


def test_nothing_public_is_left_out():
    """Each name of the package, and each constructor of a mask."""
    callables = {name for name in locant.__all__ if callable(getattr(locant, name))}
    assert callables <= set(CALLS)
    assert {*nn.__all__, *models.__all__} <= {*CALLS, *BESIDE}
    for kind in (masks.Padding, masks.Pairs):
        assert {f"{kind.__name__}.{name}" for name in vars(kind) if name.startswith("from_")} <= set(CALLS)


if __name__ == "__main__":  # what is left, as a list
    for title, name, kind in cases():
        wrong = complaint(CALLS[title], name, WRONG[kind][0])
        if wrong is not None:
            print(f"{title}: {name} = {kind}: {wrong}"[:220])
